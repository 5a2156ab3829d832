"""The tests' Postgres, asked directly."""

import os
from typing import Any

import psycopg2
from sqlalchemy import make_url

from hpo.store.embedded import EmbeddedServer

TESTER_PASSWORD = os.urandom(12).hex()
COLUMNS = """
SELECT relname, attname, atttypid FROM pg_class JOIN pg_attribute ON attrelid = pg_class.oid
WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' AND attnum > 0 ORDER BY relname, attnum
"""
EMPTY = """
DO $$ BEGIN EXECUTE (
    SELECT 'TRUNCATE ' || string_agg(quote_ident(tablename), ', ') FROM pg_tables
    WHERE schemaname = 'public' AND tablename NOT IN ('version_info', 'alembic_version', 'hpo_version')
); END $$
"""


def url_of(server: EmbeddedServer, name: str) -> str:
    url = server.url()
    assert url is not None
    return make_url(url).set(database=name).render_as_string(hide_password=False)


def execute(
    server: EmbeddedServer, statement: str, database: str = "postgres"
) -> list[tuple[Any, ...]]:
    """As a superuser."""
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
    return int((embedded.data / "postmaster.pid").read_text().splitlines()[0])


def answers(url: str | None) -> bool:
    if url is None:
        return False
    connection = psycopg2.connect(
        make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    )
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
        found = cursor.fetchone()
    connection.close()
    return bool(found == (1,))
