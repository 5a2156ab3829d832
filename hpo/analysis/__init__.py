"""What a study's numbers are worth, and what its trials say together."""
