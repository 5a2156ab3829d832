"""Postgres: the database, its tables, and what is read and written of them."""
