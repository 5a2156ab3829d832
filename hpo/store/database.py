"""Where studies are kept: a Postgres server given by URL, or the embedded one of this machine."""

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
    # The server is lost, full or restarting.
    OperationalError,
    # The driver has lost the connection.
    InterfaceError,
    # The server is a standby that is not yet the primary.
    InternalError,
)
# ProgrammingError: the role has no right to do it.
TRANSLATED = (*AWAY, ProgrammingError)


def translate_errors(engine: Engine) -> None:
    """Turn the server's refusals on this engine into DatabaseErrors of one line, from now on.

    Other engines of the process, such as those of a tracker or a trainer, stay as they are.
    """
    event.listen(engine, "handle_error", _translate)


def _translate(context: ExceptionContext) -> None:
    error = context.sqlalchemy_exception
    if isinstance(error, TRANSLATED) and not context.is_pre_ping:
        raise _database_error(error)


@contextmanager
def translated_errors() -> Iterator[None]:
    """Do the same for code that builds an engine of its own and uses it at once."""
    try:
        yield
    except TRANSLATED as error:
        raise _database_error(error) from None


def _database_error(error: DBAPIError) -> DatabaseError:
    text = str(error.orig).strip() or "no reason given"
    first_line = text.splitlines()[0]
    kind = DatabaseAwayError if isinstance(error, AWAY) else DatabaseError
    return kind(
        f"database: {first_line}. Nothing stored is lost: "
        f"run the same command again when the database answers"
    )


def open_engine(database: "Database") -> Engine:
    """An engine without a pool: it closes each connection after its use."""
    engine = create_engine(database.url, poolclass=NullPool, connect_args=CONNECT_ARGUMENTS)
    translate_errors(engine)
    return engine


@dataclass(frozen=True)
class Database:
    """A database that answers. As text it shows no password."""

    # A URL of SQLAlchemy's, with the password.
    url: str = field(repr=False)
    # The data folder of the embedded server; None for a server given by URL.
    embedded_in: Path | None
    # The data folder as text, with the reason if it is not in HPO_HOME.
    where: str = ""

    def revive(self) -> None:
        """Restart the embedded server if it crashed. After `hpo database stop` it stays down."""
        if self.embedded_in and (self.embedded_in / "postmaster.pid").exists():
            with suppress(DatabaseError):
                EmbeddedServer(home()).start()

    def __str__(self) -> str:
        if self.embedded_in:
            return f"embedded Postgres in {self.where or self.embedded_in}"
        # The query may hold sslpassword.
        url = make_url(self.url).set(drivername="postgresql", query={})
        return url.render_as_string(hide_password=True)


def home() -> Path:
    """HPO_HOME, or the platform's folder for user data. Creates it if it is missing.

    Raises DatabaseError if the folder cannot be written.
    """
    wanted = Path(os.environ.get("HPO_HOME") or platformdirs.user_data_path("hpo"))
    try:
        folder = wanted.expanduser().absolute()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        probe = folder / ".writable"
        with probe.open("w"):
            pass
        probe.unlink(missing_ok=True)
    except OSError as error:
        raise _not_writable(wanted, error.strerror) from None
    except RuntimeError as error:
        # `~NAME` of a user who does not exist.
        raise _not_writable(wanted, str(error)) from None
    return folder


def _not_writable(folder: Path, why: str | None) -> DatabaseError:
    return DatabaseError(
        f"HPO_HOME {folder}: cannot be written ({why}). Set HPO_HOME to a folder that can"
    )


def open_database(url: str | None = None) -> Database:
    """The database at `url`, else at HPO_DATABASE_URL, else the embedded one, which is started.

    Raises CallerError for a URL that is not one of Postgres, DatabaseError if no server answers.
    """
    source = "--database"
    if not url:
        url = os.environ.get("HPO_DATABASE_URL")
        source = "HPO_DATABASE_URL"
    if not url:
        server = EmbeddedServer(home())
        return Database(server.start(), server.data, server.where())
    database = Database(normal_url(url, source), None)
    problem = connection_problem(database.url)
    if problem:
        raise DatabaseAwayError(
            f"{source} {database}: {problem}. Is the server running? "
            f"Are host, port, user, database and sslmode right?"
        )
    return database


def study_names(url: str | None) -> list[str]:
    """The names of studies, for a shell that completes a word.

    Answers fast, does not start a server, and raises whatever goes wrong.
    """
    url = url or os.environ.get("HPO_DATABASE_URL") or EmbeddedServer(home()).url()
    if not url:
        return []
    parsed = make_url(normal_url(url)).set(drivername="postgresql")
    plain = parsed.render_as_string(hide_password=False)
    with (
        closing(psycopg2.connect(plain, connect_timeout=COMPLETION_SECONDS)) as connection,
        connection.cursor() as cursor,
    ):
        cursor.execute("SELECT study_name FROM studies ORDER BY study_name")
        return [name for (name,) in cursor]
