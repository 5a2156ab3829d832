"""A study and the life of its trials."""
