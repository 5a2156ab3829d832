"""Readers of recordings: sentences, their formats, and what a data set holds."""
