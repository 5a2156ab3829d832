"""Runs MANY trainings: the space, the study in Postgres, stopping rules, workers."""
