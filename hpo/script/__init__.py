"""Trainer 2: any training script, in any environment, run as a process.

See README, "Your own script".
"""
