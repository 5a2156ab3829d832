"""Where studies are kept: a Postgres that is given by URL, or one of our own on this machine (embedded.py)."""

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import platformdirs
import psycopg2
from sqlalchemy import Engine, create_engine, event, make_url
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import (
    DBAPIError,
    InterfaceError,
    InternalError,
    OperationalError,
    ProgrammingError,
)
from sqlalchemy.pool import NullPool

from hpo.errors import DatabaseAwayError, DatabaseError
from hpo.store.embedded import EmbeddedServer
from hpo.store.url import CONNECT_ARGUMENTS, connection_problem, normal_url

COMPLETION_SECONDS = 2
AWAY = (
    OperationalError,
    InterfaceError,
    InternalError,
)  # lost, full or restarting; the driver's; a standby that is not yet the primary
TRANSLATED = (*AWAY, ProgrammingError)  # no right to do it


def translate_errors(engine: Engine) -> None:
    """From now on what the server refuses on this engine is a DatabaseError of one line.

    Other engines of the process, such as a tracker's or a trainer's own, stay as they are.
    """
    event.listen(engine, "handle_error", _translate)


def _translate(context: ExceptionContext) -> None:
    error = context.sqlalchemy_exception
    if isinstance(error, TRANSLATED) and not context.is_pre_ping:
        raise _database_error(error)


@contextmanager
def translated_errors() -> Iterator[None]:
    """The same for the statements of code whose engine is not ours yet."""
    try:
        yield
    except TRANSLATED as error:
        raise _database_error(error) from None


def _database_error(error: DBAPIError) -> DatabaseError:
    first_line = (str(error.orig).strip() or "no reason given").splitlines()[0]
    kind = DatabaseAwayError if isinstance(error, AWAY) else DatabaseError
    return kind(
        f"database: {first_line}. Nothing stored is lost: when it answers again, type the same line"
    )


def open_engine(database: "Database") -> Engine:
    """An engine without a pool: each connection is closed after its use."""
    engine = create_engine(database.url, poolclass=NullPool, connect_args=CONNECT_ARGUMENTS)
    translate_errors(engine)
    return engine


@dataclass(frozen=True)
class Database:
    url: str = field(repr=False)  # SQLAlchemy's, with the password
    embedded_in: Path | None  # the data folder of the embedded server
    where: str = ""  # the same for people, with the reason if it is not in HPO_HOME

    def revive(self) -> None:
        """Start the embedded server again if it crashed. One that `hpo database stop` has stopped stays down."""
        if self.embedded_in and (self.embedded_in / "postmaster.pid").exists():
            with suppress(DatabaseError):
                EmbeddedServer(home()).start()

    def __str__(self) -> str:
        if self.embedded_in:
            return f"embedded Postgres in {self.where or self.embedded_in}"
        return (
            make_url(self.url)
            .set(drivername="postgresql", query={})
            .render_as_string(hide_password=True)
        )  # sslpassword is in the query


def home() -> Path:
    """HPO_HOME, or the platform's folder for user data. Made if missing; raises DatabaseError if that fails."""
    wanted = Path(os.environ.get("HPO_HOME") or platformdirs.user_data_path("hpo"))
    try:
        folder = wanted.expanduser().absolute()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with (folder / ".writable").open("w"):
            pass
        (folder / ".writable").unlink(missing_ok=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: ~NAME of nobody
        why = error.strerror if isinstance(error, OSError) else error
        raise DatabaseError(
            f"HPO_HOME {wanted}: cannot be written ({why}). Set HPO_HOME to a folder that can"
        ) from None
    return folder


def open_database(url: str | None = None) -> Database:
    """The database at `url`, else at HPO_DATABASE_URL, else the embedded one, started if it is not running.

    Raises CallerError for a URL that is none of Postgres's, DatabaseError if no server answers.
    """
    given, source = (
        (url, "--database") if url else (os.environ.get("HPO_DATABASE_URL"), "HPO_DATABASE_URL")
    )
    if not given:
        server = EmbeddedServer(home())
        return Database(server.start(), server.data, server.where())
    database = Database(normal_url(given, source), None)
    problem = connection_problem(database.url)
    if problem:
        raise DatabaseAwayError(
            f"{source} {database}: {problem}. Does the server run? Are host, port, user, database and sslmode right?"
        )
    return database


def study_names(url: str | None) -> list[str]:
    """For a shell that completes a word: quick, and no server is started for it. Raises whatever goes wrong."""
    given = url or os.environ.get("HPO_DATABASE_URL") or EmbeddedServer(home()).url()
    if not given:
        return []
    plain = (
        make_url(normal_url(given))
        .set(drivername="postgresql")
        .render_as_string(hide_password=False)
    )
    with (
        closing(psycopg2.connect(plain, connect_timeout=COMPLETION_SECONDS)) as connection,
        connection.cursor() as cursor,
    ):
        cursor.execute("SELECT study_name FROM studies ORDER BY study_name")
        return [name for (name,) in cursor]
