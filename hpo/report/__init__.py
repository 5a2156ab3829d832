"""What a study says, as text, JSON and pages."""
