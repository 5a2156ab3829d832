"""URLs of Postgres: as a person writes them, and whether a server answers there."""

import os
import socket
from urllib.parse import quote

import psycopg2
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

from hpo.errors import CallerError, DatabaseError

OLDEST_POSTGRES = 14  # idle_session_timeout
URL_FORM = "postgresql://USER:PASSWORD@HOST:PORT/DATABASE"
CONNECT_ARGUMENTS = {  # nothing waits for ever: neither we for a network that is gone, nor the server for one of us that is
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
    """Any spelling of a Postgres URL as the one that SQLAlchemy 2.1 sends to psycopg2.

    Raises CallerError. It does not show `url`: any part of it may be a piece of a password that was not encoded.
    """
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):  # ValueError: a port that is no number
        raise CallerError(f"{source}: not a URL. Valid: {URL_FORM}") from None
    if parsed.get_backend_name() not in ("postgresql", "postgres"):
        raise CallerError(
            f"{source}: {parsed.get_backend_name()} is not supported. Valid: {URL_FORM}"
        )
    if url.count("@") > 1 or "%00" in url:
        raise CallerError(f"{source}: {'more than one @' if '%00' not in url else '%00'}. Valid: {URL_FORM}; in a password write "
                          f"@ as %40, / as %2F, : as %3A, ? as %3F, # as %23, % as %25")  # fmt: skip
    if "password" in parsed.query:  # where libpq takes it too, but where it would be shown
        parsed = parsed.set(password=str(parsed.query["password"])).difference_update_query(
            ["password"]
        )
    return parsed.set(drivername="postgresql+psycopg2").render_as_string(hide_password=False)


def has_password(url: str) -> bool:
    """Whether a URL, as a person typed it, may hold a password."""
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        return "@" in url
    return bool(parsed.password or {"password", "sslpassword"} & set(parsed.query))


def secrets_of(url: str) -> tuple[str, ...]:
    """What of a URL no other program may see: the URL itself and its password. Nothing of an empty one."""
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
    return tuple(secret for secret in dict.fromkeys(spellings) if secret)


def connection_problem(url: str) -> str | None:
    """Why the server at `url` does not let us in; None if it does. Raises CallerError for an option that libpq does not know."""
    parsed = make_url(url)
    _, arguments = parsed.get_dialect()().create_connect_args(
        parsed
    )  # in pieces: some of libpq's messages quote a whole URL
    try:
        connection = psycopg2.connect(**{**arguments, **CONNECT_ARGUMENTS})
        connection.close()
    except psycopg2.Error as error:
        lines = str(error).strip().splitlines()
        line = lines[0].rstrip(".") if lines else type(error).__name__
        if isinstance(error, psycopg2.ProgrammingError):
            raise CallerError(
                f"database URL: {line}. Valid after the '?': libpq's options, such as sslmode=verify-full"
            ) from None
        return line
    check_version(connection.server_version)
    return None


def check_version(number: int) -> str:
    """number: as server_version_num, 140002 for 14.2. Returns it for people; raises DatabaseError if it is too old."""
    shown = f"Postgres {number // 10000}.{number % 10000}"
    if number < 10000 * OLDEST_POSTGRES:
        raise DatabaseError(
            f"{shown}: {OLDEST_POSTGRES} or later is required. Give the URL of a newer server"
        )
    return shown
