"""Run by alembic: migrates a database on the connection that the caller has passed."""

from alembic import context

from hpo.store.tables import VERSION_TABLE

context.configure(connection=context.config.attributes["connection"], version_table=VERSION_TABLE)
with context.begin_transaction():
    context.run_migrations()
