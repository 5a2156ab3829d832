"""URLs of Postgres: how users write them, and connections to the server at one."""

import os
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote

import psycopg2
from psycopg2.extensions import connection as Connection
from psycopg2.extensions import make_dsn
from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from hpo.errors import CallerError, DatabaseError

# The first version with idle_session_timeout.
OLDEST_POSTGRES = 14
URL_FORM = "postgresql://USER:PASSWORD@HOST:PORT/DATABASE"
# A setting that nobody uses, but that shows whether `options` reached the server.
MARK = "hpo.options"
# Nothing waits forever: not this process when the network is gone, and not the server when this
# process is.
SERVER_LIMITS = {
    "statement_timeout": "120s",
    "idle_in_transaction_session_timeout": "30s",
    "tcp_keepalives_idle": "15",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
}
CLIENT_LIMITS = {
    "connect_timeout": 10,
    "keepalives_idle": 15,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}
# What a URL may give in another way, and libpq's variables, which a URL may leave it to.
VARIABLES = {
    "connect_timeout": "PGCONNECT_TIMEOUT",
    "application_name": "PGAPPNAME",
    "options": "PGOPTIONS",
}
# Only URLs of the embedded server have it: after a crash any program may listen on the server's
# port and ask for the password in clear text. With this option libpq accepts SCRAM only, which
# reveals nothing of the password and proves that the other side knows it too.
EMBEDDED_HOST = "127.0.0.1"
EMBEDDED_AUTH = "scram-sha-256"
# Variables of other servers must not reach the embedded one. They are taken away while a thread
# connects to it, so only one thread connects at a time.
_environment = threading.RLock()


def parse_url(url: str) -> URL:
    """The parts of a Postgres URL, in libpq's spellings too: several hosts, a folder of sockets.

    Raises ValueError.
    """
    scheme, _, rest = url.strip().partition("://")
    authority = re.split("[/?#]", rest, maxsplit=1)[0]
    user, at, hosts = authority.rpartition("@")
    try:
        if "," not in hosts and "%2f" not in hosts.lower():
            return make_url(url.strip())
        parsed = make_url(f"{scheme}://{user}{at}{rest.removeprefix(authority)}")
    except ArgumentError as error:
        raise ValueError(str(error)) from None
    places = [_HOST_AND_PORT.fullmatch(place) for place in hosts.split(",")]
    if None in places or "host" in parsed.query:
        raise ValueError("hosts")
    names = [unquote(place["name"] or place["address"] or "") for place in places if place]
    query = {"host": ",".join(names)}
    ports = [place["port"] or "" for place in places if place]
    if any(ports):
        query["port"] = ",".join(ports)
    return parsed.update_query_dict(query)


_HOST_AND_PORT = re.compile(r"(\[(?P<address>[^]]+)\]|(?P<name>[^:]*))(:(?P<port>\d*))?")


def normal_url(url: str, source: str = "--database") -> str:
    """The URL as SQLAlchemy 2.1 passes it to psycopg2, from any spelling of a Postgres URL.

    Raises CallerError, without showing `url`: any part of it may be a piece of a password that was
    not encoded.
    """
    try:
        parsed = parse_url(url)
    except ValueError:
        # Among others, a port that is not a number.
        raise CallerError(f"{source}: not a URL. Valid: {URL_FORM}") from None
    backend = parsed.get_backend_name()
    if backend not in ("postgresql", "postgres"):
        raise CallerError(f"{source}: {backend} is not supported. Valid: {URL_FORM}")
    if "%00" in url:
        raise _not_encoded(source, "%00")
    if url.count("@") > 1:
        raise _not_encoded(source, "more than one @")
    if not url.strip().isprintable():
        raise _not_encoded(source, "a line break or another control character in its middle")
    if "password" in parsed.query:
        # libpq takes a password there too, but there it would be shown.
        password = str(parsed.query["password"])
        parsed = parsed.set(password=password).difference_update_query(["password"])
    return parsed.set(drivername="postgresql+psycopg2").render_as_string(hide_password=False)


def _not_encoded(source: str, fault: str) -> CallerError:
    return CallerError(
        f"{source}: {fault}. Valid: {URL_FORM}; in a password write @ as %40, / as %2F, : as %3A, "
        f"? as %3F, # as %23, % as %25"
    )


def has_password(url: str) -> bool:
    """Whether a URL, as the user typed it, may hold a password."""
    try:
        parsed = parse_url(url)
    except ValueError:
        return "@" in url
    return bool(parsed.password or {"password", "sslpassword"} & set(parsed.query))


def secrets_of(url: str) -> tuple[str, ...]:
    """The strings of a URL that no other program may see: the URL itself and its password.

    Empty for an empty URL.
    """
    try:
        parsed = parse_url(url)
    except ValueError:
        return (url,) if url else ()
    password = str(parsed.password or parsed.query.get("password") or "")
    spellings = (
        url,
        parsed.render_as_string(hide_password=False),
        password,
        quote(password, safe=""),
    )
    distinct = dict.fromkeys(spellings)
    return tuple(secret for secret in distinct if secret)


def connect(url: str, **arguments: Any) -> Connection:
    """Open a connection with hpo's limits, beside the options of the URL and of libpq's variables.

    Where they name the same limit, theirs holds. arguments: those of psycopg2 that replace all
    others. Raises psycopg2.Error.
    """
    parsed = make_url(url)
    with right_variables(parsed):
        given = _given_arguments(parsed)
        own = _own_arguments()
        if "options" in given:
            # The later of two settings of one name holds.
            given["options"] = f"{own['options']} {given['options']}"
        return psycopg2.connect(**{**own, **given, **arguments})


def _given_arguments(url: URL) -> dict[str, Any]:
    """The arguments for libpq that the URL has, and those of its variables that hpo also sets."""
    # In pieces, because some of libpq's messages quote a whole URL.
    _, pieces = url.get_dialect()().create_connect_args(url)
    given: dict[str, Any] = {}
    for name, value in pieces.items():
        # Of an option that is given twice, the last holds, as for libpq.
        given[name] = value[-1] if isinstance(value, tuple) else value
    for name, variable in VARIABLES.items():
        if variable in os.environ:
            given.setdefault(name, os.environ[variable])
    return given


def place_and_password(url: URL) -> tuple[str, str | None]:
    """The server in the words of libpq's programs, and the password, which belongs in no line."""
    given = _given_arguments(url)
    password = given.pop("password", None)
    return make_dsn(**given), None if password is None else str(password)


def _own_arguments() -> dict[str, Any]:
    settings = {MARK: "yes", **SERVER_LIMITS}
    return {
        "application_name": f"hpo {socket.gethostname()} {os.getpid()}"[:63],
        "options": " ".join(f"-c {name}={value}" for name, value in settings.items()),
        **CLIENT_LIMITS,
    }


def is_embedded(url: URL) -> bool:
    """Whether the URL is that of an embedded server."""
    return url.host == EMBEDDED_HOST and url.query.get("require_auth") == EMBEDDED_AUTH


@contextmanager
def right_variables(url: URL) -> Iterator[None]:
    """Hide libpq's variables from connections to the embedded server, for as long as they are made.

    Some of them cannot be overridden by an argument, such as PGSERVICE.
    """
    if not is_embedded(url):
        yield
        return
    with _environment:
        hidden = {name: value for name, value in os.environ.items() if name.startswith("PG")}
        for name in hidden:
            del os.environ[name]
        try:
            yield
        finally:
            os.environ.update(hidden)


@dataclass(frozen=True)
class Look:
    """What a first connection to a server shows."""

    # Why the server refuses a connection; None if it accepts one.
    problem: str | None = None
    # Whether a pooler between here and the server has dropped hpo's options.
    is_pooled: bool = False


def look_at(url: str) -> Look:
    """Connect to the server at `url` once.

    Raises CallerError for an option that libpq does not know, DatabaseError for an old server, and
    for a pooler that refuses or drops what was asked for.
    """
    try:
        with closing(connect(url)) as connection, connection.cursor() as cursor:
            check_version(connection.server_version)
            connection.autocommit = True
            cursor.execute("SELECT current_setting(%s, true)", (MARK,))
            is_pooled = cursor.fetchone() != ("yes",)
            if is_pooled:
                _check_transactions(connection)
    except psycopg2.Error as error:
        problem = _first_line(error)
        if isinstance(error, psycopg2.ProgrammingError):
            raise CallerError(
                f"database URL: {problem}. "
                f"Valid after the '?': libpq's options, such as sslmode=verify-full"
            ) from None
        if "unsupported startup parameter" in problem:
            raise DatabaseError(
                f"database: {problem}. A pooler such as PgBouncer answers there: give the address "
                f"of Postgres itself, or set ignore_startup_parameters = options in pgbouncer.ini"
            ) from None
        return Look(problem)
    options = make_url(url).query.get("options") or os.environ.get("PGOPTIONS")
    if is_pooled and options:
        raise DatabaseError(
            f"database: a pooler such as PgBouncer answers there, and drops the options {options}. "
            f"Give the address of Postgres itself, or set them with ALTER ROLE ... SET, and leave "
            f"them out of the URL and of PGOPTIONS"
        )
    return Look(is_pooled=is_pooled)


def _check_transactions(connection: Connection) -> None:
    """Raises DatabaseError for a pooler that gives each statement another session."""
    connection.autocommit = False
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
    except psycopg2.Error:
        raise DatabaseError(
            "database: a pooler such as PgBouncer answers there, and refuses transactions: give "
            "the address of Postgres itself, or set pool_mode = transaction in pgbouncer.ini"
        ) from None


def _first_line(error: psycopg2.Error) -> str:
    lines = str(error).strip().splitlines()
    if not lines:
        return type(error).__name__
    return lines[0].rstrip(".")


def check_version(number: int) -> str:
    """The server's version for people. Raises DatabaseError if it is too old.

    number: server_version_num, which is 140002 for 14.2.
    """
    version = f"Postgres {number // 10000}.{number % 10000}"
    if number < 10000 * OLDEST_POSTGRES:
        raise DatabaseError(
            f"{version}: {OLDEST_POSTGRES} or later is required. Give the URL of a newer server"
        )
    return version
