"""Hyperparameter optimization for speech-BCI phoneme decoders: see README.md for the map of this package."""

__version__ = "0.1.0"
