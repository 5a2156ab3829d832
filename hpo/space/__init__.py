"""What is searched and under which rules: values only."""
