"""hpo behind a real PgBouncer: it works as without one, or says in one line what is in the way."""

import os
import pwd
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import psycopg2
import pytest
from helpers.commands import launch, launch_arguments, one_line, run_hpo, start, until
from helpers.servers import execute
from sqlalchemy import make_url

from hpo.errors import DatabaseError
from hpo.store import locks
from hpo.store.database import Database, open_database, open_engine
from hpo.store.embedded import EmbeddedServer
from hpo.study.reader import open_reader

PGBOUNCER = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
pytestmark = pytest.mark.skipif(PGBOUNCER is None, reason="pgbouncer is not installed")
IGNORE = "ignore_startup_parameters = options"
CONFIGURATION = """
[databases]
* = host=127.0.0.1 port={server_port} user=hpo password={password}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = {mode}
{more}
"""
StartPooler = Callable[..., str]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def pooler(
    database: Database, private_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[StartPooler]:
    """Starts a PgBouncer before the database. Gives the URL through it, which commands use too."""
    running: list[subprocess.Popen[bytes]] = []

    def begin(mode: str, more: str = IGNORE) -> str:
        assert PGBOUNCER
        server = make_url(database.url)
        port = free_port()
        file = private_folder / f"pgbouncer-{port}.ini"
        settings = {"server_port": server.port, "password": server.password}
        file.write_text(CONFIGURATION.format(port=port, mode=mode, more=more, **settings))
        file.chmod(0o644)
        user = None
        if os.geteuid() == 0:
            # PgBouncer refuses to run as root.
            user = pwd.getpwnam("nobody").pw_uid
        running.append(subprocess.Popen([PGBOUNCER, "-q", str(file)], user=user))
        until(lambda: listens(port))
        url = server.set(drivername="postgresql", port=port, password="x", query={})
        text = url.render_as_string(hide_password=False)
        monkeypatch.setenv("HPO_DATABASE_URL", text)
        return text

    yield begin
    for process in running:
        process.terminate()
        process.wait()


def locks_left(server: EmbeddedServer) -> int:
    return len(execute(server, "SELECT 1 FROM pg_locks WHERE locktype = 'advisory'"))


@pytest.mark.parametrize("mode", ["transaction", "session"])
def test_a_study_ends_behind_a_pooler_with_its_exact_budget(
    pooler: StartPooler, mode: str, server: EmbeddedServer, tiny_space: Path, tiny_data: Path
) -> None:
    pooler(mode)
    launches = [start(*launch_arguments(tiny_space, tiny_data, "--workers", "2")) for _ in range(2)]
    for process in launches:
        _, err = process.communicate()
        assert process.returncode == 0, err
    states = [record.state for record in open_reader(open_database(), "tiny").records()]
    assert len(states) == 4
    assert set(states) <= {"complete", "stopped"}
    assert locks_left(server) == 0


def test_a_lock_holds_behind_a_pooler_in_transaction_mode(
    pooler: StartPooler, server: EmbeddedServer
) -> None:
    engine = open_engine(open_database(pooler("transaction")))
    try_lock = f"SELECT pg_try_advisory_xact_lock({locks.LOCK_CLASS}, 7)"
    with locks.locked(engine, 7), engine.connect() as other:
        assert other.exec_driver_sql(try_lock).scalar() is False
    with engine.connect() as other:
        assert other.exec_driver_sql(try_lock).scalar() is True
    assert locks_left(server) == 0


def test_transactions_behind_a_pooler_have_their_limits(pooler: StartPooler) -> None:
    """Otherwise a suspended process would keep its rows from all others for ever."""
    engine = open_engine(open_database(pooler("transaction")))
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SHOW statement_timeout").scalar() == "2min"
    other = psycopg2.connect(os.environ["HPO_DATABASE_URL"])
    with closing(other), other.cursor() as cursor:
        # Other clients of the same session have theirs.
        cursor.execute("SHOW statement_timeout")
        assert cursor.fetchone() == ("0",)


def test_a_pooler_that_refuses_our_options_is_named(
    pooler: StartPooler, tiny_space: Path, tiny_data: Path
) -> None:
    pooler("transaction", more="")
    done = launch(tiny_space, tiny_data)
    one_line(done, 1, "PgBouncer", "unsupported startup parameter", IGNORE)


def test_a_pooler_that_drops_the_users_options_is_named(pooler: StartPooler) -> None:
    url = pooler("session")
    with pytest.raises(DatabaseError, match=r"a pooler such as PgBouncer.*search_path=lab"):
        open_database(f"{url}?options=-csearch_path%3Dlab")


def test_a_pooler_that_refuses_transactions_is_named(pooler: StartPooler) -> None:
    pooler("statement")
    one_line(run_hpo("studies"), 1, "PgBouncer", "pool_mode = transaction")
