"""URLs of Postgres: how users write them, and whether a server answers at one."""

import os
import socket
from urllib.parse import quote

import psycopg2
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

from hpo.errors import CallerError, DatabaseError

# The first version with idle_session_timeout.
OLDEST_POSTGRES = 14
URL_FORM = "postgresql://USER:PASSWORD@HOST:PORT/DATABASE"
# Nothing waits forever: not this process when the network is gone, and not the server when this
# process is.
CONNECT_ARGUMENTS = {
    "application_name": f"hpo {socket.gethostname()} {os.getpid()}"[:63],
    "connect_timeout": 10,
    "keepalives_idle": 15,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
    "options": "-c statement_timeout=120s -c idle_in_transaction_session_timeout=30s "
    "-c tcp_keepalives_idle=15 -c tcp_keepalives_interval=5 -c tcp_keepalives_count=3",
}


def normal_url(url: str, source: str = "--database") -> str:
    """The URL as SQLAlchemy 2.1 passes it to psycopg2, from any spelling of a Postgres URL.

    Raises CallerError, without showing `url`: any part of it may be a piece of a password that was
    not encoded.
    """
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        # ValueError: a port that is not a number.
        raise CallerError(f"{source}: not a URL. Valid: {URL_FORM}") from None
    backend = parsed.get_backend_name()
    if backend not in ("postgresql", "postgres"):
        raise CallerError(f"{source}: {backend} is not supported. Valid: {URL_FORM}")
    if "%00" in url:
        raise _not_encoded(source, "%00")
    if url.count("@") > 1:
        raise _not_encoded(source, "more than one @")
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
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        return "@" in url
    return bool(parsed.password or {"password", "sslpassword"} & set(parsed.query))


def secrets_of(url: str) -> tuple[str, ...]:
    """The strings of a URL that no other program may see: the URL itself and its password.

    Empty for an empty URL.
    """
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
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


def connection_problem(url: str) -> str | None:
    """Why the server at `url` refuses a connection; None if it accepts one.

    Raises CallerError for an option that libpq does not know, DatabaseError for an old server.
    """
    parsed = make_url(url)
    # psycopg2 gets the URL in pieces, because some of libpq's messages quote a whole URL.
    _, arguments = parsed.get_dialect()().create_connect_args(parsed)
    try:
        connection = psycopg2.connect(**{**arguments, **CONNECT_ARGUMENTS})
        connection.close()
    except psycopg2.Error as error:
        problem = _first_line(error)
        if isinstance(error, psycopg2.ProgrammingError):
            raise CallerError(
                f"database URL: {problem}. "
                f"Valid after the '?': libpq's options, such as sslmode=verify-full"
            ) from None
        return problem
    check_version(connection.server_version)
    return None


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
