"""The history of hpo's tables: one migration a version, which alembic runs on an older database."""
