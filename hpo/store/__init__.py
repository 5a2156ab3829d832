"""Postgres: the database, its tables, and the queries on them."""
