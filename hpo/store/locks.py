"""Locks that a process holds while it works on a study, or on the list of studies."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Engine, func, select, text
from sqlalchemy.engine import Connection
from sqlalchemy.exc import SQLAlchemyError

from hpo.errors import DatabaseAwayError, DatabaseError

# The first key of hpo's advisory locks. The second is the id of a study.
LOCK_CLASS = 0x4850
# The second key of the lock on the list of studies.
LIST_OF_STUDIES = 0
# A suspended process that holds a lock loses its transaction, and with it the lock, after this
# time.
IDLE_LIMIT = "30s"
# How often a holder shows that it is not suspended, however slow its work is.
BEAT_SECONDS = 5.0
HEARTBEAT = text("SELECT 1")
LOST = (
    "database: this process was suspended, or cut off, while it held a lock, and others went on "
    "without it. Nothing stored is lost: run the same command again"
)


class Lock:
    """A lock that this process holds as long as the transaction of `connection` lasts.

    A thread keeps the transaction from being idle.
    """

    def __init__(self, connection: Connection):
        self._connection = connection
        self._over = threading.Event()
        self._is_lost = False
        self._thread = threading.Thread(target=self._beat, name="lock", daemon=True)
        self._thread.start()

    def _beat(self) -> None:
        while not self._over.wait(BEAT_SECONDS):
            try:
                self._connection.execute(HEARTBEAT)
            except (DatabaseError, SQLAlchemyError):
                self._is_lost = True
                return

    def end_heartbeat(self) -> None:
        """From now on the connection belongs to the caller alone."""
        self._over.set()
        self._thread.join()

    def last_write(self) -> Connection:
        """The lock's own transaction: what is written there counts only if the lock was held.

        It must be the last work under the lock: Optuna writes on a connection of its own, and would
        wait forever for a row that an open transaction here has touched. Raises DatabaseAwayError
        if the lock is lost already.
        """
        self.end_heartbeat()
        if self._is_lost:
            raise DatabaseAwayError(LOST)
        return self._connection


@contextmanager
def locked(engine: Engine, study_id: int) -> Iterator[Lock]:
    """Lock the study, or the list of studies (0).

    The lock belongs to a transaction, so it also holds behind a pooler that hands the sessions of
    the server to one client after another. Raises DatabaseAwayError at the end of the block if the
    lock was lost meanwhile.
    """
    # A stricter level would hide rows that Optuna commits while the lock is held.
    options = {"isolation_level": "READ COMMITTED"}
    idle = select(func.set_config("idle_in_transaction_session_timeout", IDLE_LIMIT, True))
    with engine.connect().execution_options(**options) as connection:
        connection.execute(idle)
        connection.execute(select(func.pg_advisory_xact_lock(LOCK_CLASS, study_id)))
        lock = Lock(connection)
        try:
            yield lock
        finally:
            lock.end_heartbeat()
        try:
            lock.last_write().commit()
        except DatabaseAwayError:
            raise DatabaseAwayError(LOST) from None


@contextmanager
def alone(engine: Engine) -> Iterator[None]:
    """Keep other processes from creating or migrating tables at the same time.

    When two sessions run CREATE TABLE IF NOT EXISTS at once, Postgres lets one of them fail.
    """
    with locked(engine, LIST_OF_STUDIES):
        yield
