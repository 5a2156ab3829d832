"""How our tables came to be what they are: a step a version, run by alembic when a database is opened."""
