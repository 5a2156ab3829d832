"""Locks that a process holds while it works on a study, or on the list of studies."""

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Engine, func, select, text
from sqlalchemy.engine import Connection

# The first key of hpo's advisory locks. The second is the id of a study.
LOCK_CLASS = 0x4850
# The second key of the lock on the list of studies.
LIST_OF_STUDIES = 0
# A suspended process that holds a lock loses its session, and with it the lock, after this time.
LOCK_IDLE = "30s"
# The same while tables are created or migrated: rewriting a large curve takes long.
MIGRATION_IDLE = "2h"


@contextmanager
def locked(engine: Engine, study_id: int, idle_limit: str = LOCK_IDLE) -> Iterator[Connection]:
    """Lock the study, or the list of studies (0). Gives a connection that commits each statement.

    The lock belongs to the session, not to a transaction: meanwhile Optuna writes on a connection
    of its own, and would wait forever for a row that an open transaction here has touched.
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
    """Keep other processes from creating or migrating tables at the same time.

    When two sessions run CREATE TABLE IF NOT EXISTS at once, Postgres lets one of them fail.
    """
    with locked(engine, LIST_OF_STUDIES, MIGRATION_IDLE):
        yield
