"""Where studies are kept: a Postgres server given by URL, or the embedded one of this machine."""

import os
import unicodedata
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import platformdirs
from sqlalchemy import Engine, create_engine, event, func, make_url, select
from sqlalchemy.engine import Connection, ExceptionContext
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
from hpo.store.url import SERVER_LIMITS, connect, look_at, normal_url

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


def prepare(engine: Engine, database: "Database") -> Engine:
    """Turn the server's refusals on this engine into DatabaseErrors of one line, from now on.

    Other engines of the process, such as those of a tracker or a trainer, stay as they are. Returns
    the engine.
    """
    event.listen(engine, "handle_error", _translate)
    if database.is_pooled:
        # Before other listeners, which may already wait for something.
        event.listen(engine, "begin", _limit, insert=True)
    return engine


def _limit(connection: Connection) -> None:
    """Limit this transaction. The pooler has dropped what was asked for the whole session."""
    for name in ("statement_timeout", "idle_in_transaction_session_timeout"):
        connection.execute(select(func.set_config(name, SERVER_LIMITS[name], True)))


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
    creator = partial(connect, database.url)
    engine = create_engine(database.url, poolclass=NullPool, creator=creator)
    return prepare(engine, database)


@dataclass(frozen=True)
class Database:
    """A database that answers. As text it shows no password."""

    # A URL of SQLAlchemy's, with the password.
    url: str = field(repr=False)
    # The data folder of the embedded server; None for a server given by URL.
    embedded_in: Path | None
    # The data folder as text, with the reason if it is not in HPO_HOME.
    where: str = ""
    # Whether a pooler stands before the server, which drops the options of connections.
    is_pooled: bool = False

    def revive(self) -> None:
        """Restart the embedded server if it crashed. After `hpo database stop` it stays down."""
        if self.embedded_in and (self.embedded_in / "postmaster.pid").exists():
            with suppress(DatabaseError):
                EmbeddedServer(home()).start()

    def __str__(self) -> str:
        if self.embedded_in:
            return f"embedded Postgres in {self.where or self.embedded_in}"
        url = make_url(self.url)
        # Other parts of the query may be secret, such as sslpassword.
        query = {name: url.query[name] for name in ("host", "port") if name in url.query}
        url = url.set(drivername="postgresql", query=query)
        return url.render_as_string(hide_password=True)


def home() -> Path:
    """HPO_HOME, or the platform's folder for user data. Creates it if it is missing.

    Raises DatabaseError if the folder cannot be written.
    """
    wanted = Path(os.environ.get("HPO_HOME") or platformdirs.user_data_path("hpo"))
    if any(unicodedata.category(letter) == "Cc" for letter in str(wanted)):
        # Postgres writes the folder into a file of lines.
        raise DatabaseError(f"HPO_HOME {str(wanted)!r}: has a line break or a control character")
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
        url = os.environ.get("HPO_DATABASE_URL", "").strip()
        source = "HPO_DATABASE_URL"
    if not url:
        server = EmbeddedServer(home())
        return Database(server.start(), server.data, server.where())
    database = Database(normal_url(url, source), None)
    look = look_at(database.url)
    if look.problem:
        raise DatabaseAwayError(
            f"{source} {database}: {look.problem}. Is the server running? "
            f"Are host, port, user, database and sslmode right?"
        )
    return replace(database, is_pooled=look.is_pooled)


def study_names(url: str | None) -> list[str]:
    """The names of studies, for a shell that completes a word.

    Answers fast, does not start a server, and raises whatever goes wrong.
    """
    given = url or os.environ.get("HPO_DATABASE_URL", "").strip()
    url = given or EmbeddedServer(home()).url()
    if not url:
        return []
    with (
        closing(connect(normal_url(url), connect_timeout=COMPLETION_SECONDS)) as connection,
        connection.cursor() as cursor,
    ):
        cursor.execute("SELECT study_name FROM studies ORDER BY study_name")
        return [name for (name,) in cursor]
