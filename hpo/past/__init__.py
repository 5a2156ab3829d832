"""Runs that were trained outside: read, judged, imported, replayed."""
