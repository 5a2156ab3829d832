"""Workers on this machine and on a SLURM cluster, and what they need there."""
