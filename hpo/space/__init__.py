"""The space of a search, its budget and its rules: values and pure functions only."""
