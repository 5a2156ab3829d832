"""Direct queries to the Postgres of the tests."""

import os
from typing import Any

import psycopg2
from sqlalchemy import make_url

from hpo.store.embedded import EmbeddedServer

TESTER_PASSWORD = os.urandom(12).hex()
COLUMNS = """
SELECT relname, attname, atttypid FROM pg_class JOIN pg_attribute ON attrelid = pg_class.oid
WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' AND attnum > 0
ORDER BY relname, attnum
"""
EMPTY = """
DO $$ BEGIN EXECUTE (
    SELECT 'TRUNCATE ' || string_agg(quote_ident(tablename), ', ') FROM pg_tables
    WHERE schemaname = 'public'
    AND tablename NOT IN ('version_info', 'alembic_version', 'hpo_version')
); END $$
"""


def url_of(server: EmbeddedServer, name: str) -> str:
    url = server.url()
    assert url is not None
    return make_url(url).set(database=name).render_as_string(hide_password=False)


def execute(
    server: EmbeddedServer, statement: str, database: str = "postgres"
) -> list[tuple[Any, ...]]:
    """Run a statement as a superuser; gives the rows."""
    url = make_url(url_of(server, database)).set(
        drivername="postgresql", username="tester", password=TESTER_PASSWORD
    )
    connection = psycopg2.connect(url.render_as_string(hide_password=False))
    connection.autocommit = True
    try:
        with connection.cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchall() if cursor.description else []
    finally:
        connection.close()


def postmaster(embedded: EmbeddedServer) -> int:
    """The process id of the server."""
    return int((embedded.data / "postmaster.pid").read_text().splitlines()[0])


def answers(url: str | None) -> bool:
    """Whether the database at this URL answers a query."""
    if url is None:
        return False
    plain = make_url(url).set(drivername="postgresql")
    connection = psycopg2.connect(plain.render_as_string(hide_password=False))
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
        row = cursor.fetchone()
    connection.close()
    return bool(row == (1,))
