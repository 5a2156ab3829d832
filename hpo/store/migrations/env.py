"""What alembic runs to bring a database to another version, on the connection that it is given."""

from alembic import context

from hpo.store.tables import VERSION_TABLE

context.configure(connection=context.config.attributes["connection"], version_table=VERSION_TABLE)
with context.begin_transaction():
    context.run_migrations()
