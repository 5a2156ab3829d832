"""URLs reach the server as they were meant, and libpq's variables reach only what they may."""

import os
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from helpers.commands import launch, run_hpo
from helpers.servers import answers, execute
from sqlalchemy import make_url

from hpo.errors import CallerError, DatabaseAwayError, DatabaseError
from hpo.store.database import Database, home, open_database, open_engine, study_names
from hpo.store.embedded import EmbeddedServer
from hpo.store.url import connect, has_password, normal_url, secrets_of

TABLES = "SELECT schemaname, count(*) FROM pg_tables WHERE tablename LIKE 'hpo%' GROUP BY 1"
# Each of them would break a connection to the embedded server, or change its meaning.
VARIABLES = {
    "PGSSLMODE": "verify-full",
    "PGSSLROOTCERT": "system",
    "PGSSLMINPROTOCOLVERSION": "nonsense",
    "PGREQUIRESSL": "1",
    "PGHOST": "db.example.org",
    "PGHOSTADDR": "192.0.2.1",
    "PGPORT": "1",
    "PGSERVICE": "nobody-has-defined-it",
    "PGREQUIREAUTH": "none",
    "PGCHANNELBINDING": "require",
    "PGTARGETSESSIONATTRS": "standby",
    "PGLOADBALANCEHOSTS": "nonsense",
    "PGOPTIONS": "-c search_path=elsewhere",
    "PGCLIENTENCODING": "nonsense",
    "PGDATESTYLE": "nonsense",
    "PGCONNECT_TIMEOUT": "nonsense",
    "PGDATABASE": "x",
    "PGUSER": "x",
    "PGPASSWORD": "x",
    "PGDATA": "/nowhere",
}


def settings_of(url: str, *names: str) -> dict[str, str]:
    with closing(connect(normal_url(url))) as connection, connection.cursor() as cursor:
        values = {}
        for name in names:
            cursor.execute("SELECT current_setting(%s)", (name,))
            (values[name],) = cursor.fetchone()
        return values


def with_query(database: Database, query: str) -> str:
    return f"{make_url(database.url).set(query={}).render_as_string(hide_password=False)}?{query}"


# ---- options of the user


@pytest.fixture
def in_schema(database: Database, server: EmbeddedServer) -> Any:
    """A database without any table, with a schema named lab."""
    name = f"lab_{os.urandom(4).hex()}"
    execute(server, f"CREATE DATABASE {name} OWNER hpo")
    url = make_url(database.url).set(database=name, query={})
    plain = url.set(drivername="postgresql").render_as_string(hide_password=False)
    with closing(psycopg2.connect(plain)) as connection, connection.cursor() as cursor:
        cursor.execute("CREATE SCHEMA lab")
        connection.commit()
    yield plain, lambda: execute(server, TABLES, name)
    execute(server, f"DROP DATABASE {name} WITH (FORCE)")


def test_tables_are_made_in_the_schema_that_the_url_names(
    in_schema: Any, tiny_space: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, schemas = in_schema
    monkeypatch.setenv("HPO_DATABASE_URL", f"{url}?options=-csearch_path%3Dlab")
    done = launch(tiny_space, tiny_data, "--workers", "1")
    assert done.returncode == 0, done.stderr
    ((schema, _),) = schemas()
    assert schema == "lab"


def test_tables_are_made_in_the_schema_that_a_variable_names(
    in_schema: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, schemas = in_schema
    monkeypatch.setenv("HPO_DATABASE_URL", url)
    with monkeypatch.context() as patch:
        patch.setenv("PGOPTIONS", "-c search_path=lab")
        assert run_hpo("studies").returncode == 0
    ((schema, _),) = schemas()
    assert schema == "lab"


@pytest.mark.parametrize(
    ("query", "name", "value"),
    [
        ("options=-csearch_path%3Dlab", "search_path", "lab"),
        ("options=-c%20search_path%3Dlab", "search_path", "lab"),
        ("options=-c+search_path%3Dlab", "search_path", "lab"),
        ("options=--search_path%3Dlab", "search_path", "lab"),
        ("options=-cwork_mem%3D1MB%20-csearch_path%3Dlab", "search_path", "lab"),
        ("options=-cstatement_timeout%3D5s", "statement_timeout", "5s"),
        ("options=-cwork_mem%3D1MB", "statement_timeout", "2min"),
        ("application_name=lab", "application_name", "lab"),
        ("sslmode=prefer", "statement_timeout", "2min"),
        ("keepalives=0&connect_timeout=3", "idle_in_transaction_session_timeout", "30s"),
    ],
)
def test_options_of_a_url_are_kept_beside_ours(
    database: Database, query: str, name: str, value: str
) -> None:
    url = with_query(database, query)
    assert settings_of(url, name) == {name: value}
    with open_engine(Database(normal_url(url), None)).connect() as connection:
        assert connection.exec_driver_sql(f"SHOW {name}").scalar() == value


def test_client_options_of_a_url_are_kept(database: Database) -> None:
    url = normal_url(with_query(database, "connect_timeout=3&keepalives_idle=77"))
    with closing(connect(url)) as connection:
        parameters = connection.info.dsn_parameters
    assert (parameters["connect_timeout"], parameters["keepalives_idle"]) == ("3", "77")
    assert parameters["keepalives_interval"] == "5"


# ---- variables of libpq


@pytest.mark.parametrize("name", VARIABLES)
def test_no_variable_of_libpq_reaches_the_embedded_server(
    server: EmbeddedServer, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, VARIABLES[name])
    url = server.url()
    assert url is not None
    with open_engine(Database(url, server.data)).connect() as connection:
        assert connection.exec_driver_sql("SHOW search_path").scalar() == '"$user", public'
    assert os.environ[name] == VARIABLES[name]


def test_a_home_is_created_and_used_under_all_variables_at_once(
    fresh: EmbeddedServer,
    monkeypatch: pytest.MonkeyPatch,
    tiny_space: Path,
    tiny_data: Path,
) -> None:
    monkeypatch.delenv("HPO_DATABASE_URL", raising=False)
    monkeypatch.setenv("HPO_HOME", str(fresh.home))
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    done = launch(tiny_space, tiny_data, "--workers", "1")
    assert done.returncode == 0, done.stderr
    assert "running at 127.0.0.1" in run_hpo("database", "status").stdout
    assert study_names(None) == ["tiny"]
    assert run_hpo("database", "stop").stdout == "stopped\n"


def test_threads_that_connect_at_once_leave_the_variables_as_they_were(
    server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGSSLMODE", "verify-full")
    url = server.url()
    assert url is not None
    opened: list[bool] = []

    def open_and_close() -> None:
        connect(url).close()
        opened.append(True)

    threads = [threading.Thread(target=open_and_close) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(opened) == 8
    assert os.environ["PGSSLMODE"] == "verify-full"


def test_variables_reach_a_server_given_by_url(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("PGSSLMODE", "require")
        with pytest.raises(DatabaseAwayError, match="SSL"):
            open_database(with_query(database, ""))


# ---- spellings


@pytest.mark.parametrize(
    "around",
    [" {}", "{}\n", "\t{} \r\n", "\n\n{}", "{}\x0b"],  # as secrets of Kubernetes end
)
def test_white_space_around_a_url_does_not_matter(
    database: Database, around: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert open_database(around.format(database.url)).url == database.url
    monkeypatch.setenv("HPO_DATABASE_URL", around.format(database.url))
    assert open_database().url == database.url


@pytest.mark.parametrize("middle", ["\n", "\t", "\x7f", "\x1b[2J"])
def test_a_control_character_inside_a_url_is_refused(database: Database, middle: str) -> None:
    with pytest.raises(CallerError, match="control character") as caught:
        open_database(f"{database.url}{middle}x")
    assert str(make_url(database.url).password) not in str(caught.value)


@pytest.mark.parametrize(
    ("hosts", "host", "port"),
    [
        ("a:1,b:2", "a,b", "1,2"),
        ("a,b", "a,b", None),
        ("a:1,b", "a,b", "1,"),
        ("[::1]:1,[fe80::2]:2", "::1,fe80::2", "1,2"),
        ("%2Fvar%2Frun", "/var/run", None),
        ("%2fvar%2frun%2Fa%20b:5433", "/var/run/a b", "5433"),
        ("%2Fvar%2Frun,b:2", "/var/run,b", ",2"),
    ],
)
def test_hosts_are_understood_as_libpq_does(hosts: str, host: str, port: str | None) -> None:
    for user in ("", "u@", "u:p%2Cq@"):
        url = make_url(normal_url(f"postgresql://{user}{hosts}/d?sslmode=prefer"))
        assert url.query.get("host") == host
        assert url.query.get("port") == port
        assert (url.database, url.query["sslmode"]) == ("d", "prefer")
        _, arguments = url.get_dialect()().create_connect_args(url)
        assert arguments["host"] == host
        # To libpq, empty ports are the default.
        assert (arguments.get("port") or "").strip(",") == (port or "").strip(",")


@pytest.mark.parametrize("hosts", ["a:x,b:2", "a:1,b:2:3", "[::1,b"])
def test_hosts_that_make_no_sense_are_refused_without_the_password(hosts: str) -> None:
    with pytest.raises(CallerError, match="not a URL") as caught:
        normal_url(f"postgresql://u:secret@{hosts}/d")
    assert "secret" not in str(caught.value)


def test_the_server_that_answers_of_several_is_used(database: Database) -> None:
    url = make_url(database.url)
    answering = f"127.0.0.1:{url.port}"
    for hosts in (f"127.0.0.1:1,{answering}", f"{answering},127.0.0.1:1"):
        opened = open_database(f"postgresql://hpo:{url.password}@{hosts}/{url.database}")
        assert answers(opened.url)
        assert "127.0.0.1" in str(opened)
        assert str(url.password) not in str(opened)


def test_a_password_beside_several_hosts_is_a_secret() -> None:
    url = "postgresql://u:pass%2Cword@a:1,b:2/d\n"
    assert has_password(url)
    assert "pass,word" in secrets_of(url)


# ---- places of a home


@pytest.mark.parametrize(
    "name",
    ["$HOME", "a b", "quote'", 'double"', "`id`", "$(id)", "back\\slash", "a;b&c|d", "%s", "é ü"],
)
def test_a_home_may_have_any_printable_name(
    private_folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = private_folder / name
    folder.mkdir(mode=0o711)
    monkeypatch.setenv("HPO_HOME", str(folder))
    embedded = EmbeddedServer(home())
    try:
        assert answers(embedded.start())
        assert embedded.stop()
        # On existing data too.
        assert answers(embedded.start())
        assert embedded.log.read_text()
    finally:
        embedded.stop()
    assert str(embedded.data).startswith(str(folder))


def test_a_home_with_a_line_break_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HPO_HOME", str(tmp_path / "a\nb"))
    with pytest.raises(DatabaseError, match="line break"):
        home()
    assert not (tmp_path / "a\nb").exists()
