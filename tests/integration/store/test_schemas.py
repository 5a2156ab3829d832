"""Databases whose Optuna tables are of another version, and their upgrade after a dump."""

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import optuna
import pytest
from helpers.commands import one_line, run_hpo
from helpers.servers import execute, url_of
from helpers.studies import claim
from sqlalchemy import make_url

from hpo.space.spec import StudySpec
from hpo.store import programs
from hpo.store.database import Database
from hpo.store.embedded import EmbeddedServer
from hpo.store.tables import OPTUNA
from hpo.study.study import Study

Make = Callable[..., Study]
OLDER = "v3.0.0.d"


def set_version(server: EmbeddedServer, database: Database, version: str) -> None:
    name = make_url(database.url).database
    assert name
    execute(server, f"UPDATE alembic_version SET version_num = '{version}'", name)


@pytest.fixture
def study(make_study: Make, tiny_spec: StudySpec) -> Study:
    study = make_study(tiny_spec)
    claim(study)
    return study


@pytest.fixture
def older(study: Study, server: EmbeddedServer, database: Database) -> Iterator[Database]:
    """As Optuna 3.0 left it."""
    name = make_url(database.url).database
    assert name
    execute(server, "DROP INDEX IF EXISTS trials_study_id_key", name)
    set_version(server, database, OLDER)
    yield database
    set_version(server, database, OPTUNA)


def test_the_version_that_is_read_without_optuna_is_that_of_this_optuna() -> None:
    storage = optuna.storages.RDBStorage("sqlite://")
    assert storage.get_head_version() == OPTUNA


@pytest.mark.parametrize("command", [("studies",), ("status", "--study", "s"), ("launch",)])
def test_older_tables_of_optuna_are_one_line(older: Database, command: tuple[str, ...]) -> None:
    if command == ("launch",):
        command = ("launch", "--study", "lr-aug")
    one_line(run_hpo(*command), 1, OLDER, OPTUNA, optuna.__version__, "hpo database upgrade")


@pytest.mark.parametrize("command", [("studies",), ("database", "upgrade")])
def test_newer_tables_of_optuna_are_one_line(
    study: Study, server: EmbeddedServer, database: Database, command: tuple[str, ...]
) -> None:
    set_version(server, database, "v9.0.0.a")
    try:
        one_line(run_hpo(*command), 1, "v9.0.0.a", OPTUNA, "pip install --upgrade optuna")
    finally:
        set_version(server, database, OPTUNA)
    assert not (Path(os.environ["HPO_HOME"]) / "dumps").exists()


def test_an_upgrade_dumps_the_database_first_and_says_where(
    older: Database, study: Study, server: EmbeddedServer
) -> None:
    done = run_hpo("database", "upgrade")
    assert done.returncode == 0, done.stderr
    match = re.search(r"as it was: (.*)", done.stdout)
    assert match
    dump = Path(match[1])
    assert dump.stat().st_mode & 0o777 == 0o600
    assert run_hpo("status", "--study", "s").returncode == 0
    assert [record.state for record in study.records()] == ["running", "waiting"]
    # The dump is the whole database, with its old tables.
    name = f"back_{os.urandom(4).hex()}"
    execute(server, f"CREATE DATABASE {name} OWNER hpo")
    url = make_url(url_of(server, name))
    program = programs.find_binaries(None, None) / "pg_restore"
    to = f"host=127.0.0.1 port={url.port} user=hpo dbname={name}"
    environment = {**os.environ, "PGPASSWORD": str(url.password)}
    subprocess.run([program, "--no-owner", f"--dbname={to}", dump], env=environment, check=True)
    assert execute(server, "SELECT version_num FROM alembic_version", name) == [(OLDER,)]
    assert execute(server, "SELECT count(*) FROM trials", name) == [(2,)]
    execute(server, f"DROP DATABASE {name} WITH (FORCE)")
    assert "nothing to upgrade" in run_hpo("database", "upgrade").stdout


def test_without_a_dump_nothing_is_upgraded(older: Database) -> None:
    dumps = Path(os.environ["HPO_HOME"]) / "dumps"
    dumps.parent.mkdir(exist_ok=True)
    dumps.write_text("in the way")
    one_line(run_hpo("database", "upgrade"), 1, "nothing was upgraded", str(dumps))
    one_line(run_hpo("studies"), 1, OLDER)


def test_an_upgrade_of_a_new_database_makes_no_dump(database: Database) -> None:
    assert "nothing to upgrade" in run_hpo("database", "upgrade").stdout
