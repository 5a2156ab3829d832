"""Locks that a process holds while it works on a study, or on the list of studies."""

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Engine, func, select, text
from sqlalchemy.engine import Connection

LOCK_CLASS = (
    0x4850  # first key of our advisory locks; the second is the study, 0 for the list of studies
)
MIGRATION_IDLE = (
    "2h"  # the same, around what makes or changes tables: a large curve takes long to rewrite
)
LOCK_IDLE = "30s"  # a process that is halted while it holds a lock loses its session, and with it the lock, after so long


@contextmanager
def locked(engine: Engine, study_id: int, idle_limit: str = LOCK_IDLE) -> Iterator[Connection]:
    """A connection that alone works on the study (0: on the list of studies). Each statement on it commits at once.

    The lock is the session's, not a transaction's: Optuna writes on a connection of its own meanwhile, and would wait for
    ever for a row that an open transaction of ours has touched.
    """
    keys = (LOCK_CLASS, study_id)
    idle = text("SELECT set_config('idle_session_timeout', :value, false)")
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(idle, {"value": idle_limit})
        connection.execute(select(func.pg_advisory_lock(*keys)))
        try:
            yield connection
        finally:
            if not connection.invalidated:
                connection.execute(select(func.pg_advisory_unlock(*keys)))
                connection.execute(idle, {"value": "0"})


@contextmanager
def alone(engine: Engine) -> Iterator[None]:
    """While no other process is here too. Around what creates tables: Postgres lets one of two
    CREATE TABLE IF NOT EXISTS at once fail.
    """
    with locked(engine, 0, MIGRATION_IDLE):
        yield
