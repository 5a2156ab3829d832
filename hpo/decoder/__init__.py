"""Trains and scores ONE model; knows nothing of studies, trials or databases."""
