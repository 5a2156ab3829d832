"""A database of an earlier version is brought to this one, and its study goes on.

data/study_of_359d9c5.sql was dumped from a study of commit 359d9c5, before tables had a version.
"""

import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from helpers.commands import launch, one_line, report_of, run_hpo
from helpers.paths import ROOT
from helpers.servers import COLUMNS, execute, url_of
from helpers.studies import TINY
from sqlalchemy import create_engine, make_url

import hpo
from hpo import open_study
from hpo.space.spec import StudySpec
from hpo.store.database import Database
from hpo.store.embedded import EmbeddedServer
from hpo.store.storage import open_storage
from hpo.store.tables import VERSION, VERSION_TABLE, metadata
from hpo.study.study import Study

DUMP = ROOT / "tests" / "data" / "study_of_359d9c5.sql"
SPACE = TINY + "stopping: {per_margin: 0.04}\n"
PERS = [0.6, 1.2, 1.2]
OURS = ("hpo_trial", "hpo_attempt", "hpo_curve", "hpo_score", "hpo_result")


@pytest.fixture
def old(
    server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Database]:
    name = f"old_{os.urandom(4).hex()}"
    execute(server, f"CREATE DATABASE {name} OWNER hpo")
    execute(server, "SET ROLE hpo;" + DUMP.read_text(), name)
    database = Database(url_of(server, name), None)
    monkeypatch.setenv("HPO_DATABASE_URL", database.url)
    monkeypatch.setenv("HPO_HOME", str(tmp_path / "home"))
    yield database
    execute(server, f"DROP DATABASE {name} WITH (FORCE)")


def name_of(database: Database) -> str:
    return str(make_url(database.url).database)


@pytest.mark.slow
def test_an_old_study_is_read_and_goes_on(old: Database, tiny_space: Path, tiny_data: Path) -> None:
    listed = json.loads(run_hpo("studies", "--json").stdout)
    assert [(line["name"], line["ended"], line["best_per"]) for line in listed] == [
        ("tiny", 3, min(PERS)),
        ("tiny.confirm", 2, 0.6),
    ]
    trials = json.loads(run_hpo("status", "--study", "tiny", "--json").stdout)["trials"]
    assert [trial["per"] for trial in trials] == PERS
    assert [trial["value"] for trial in trials] == PERS
    report = report_of("tiny")
    assert (report["best"]["per"], report["best"]["trial"]) == (0.6, 0)
    for config in report["findings"]["confirm"]["configs"]:
        assert config["search_per"] == config["search_value"]
    assert "per" not in open_study("tiny").results()["confirm"]["configs"][0]

    study = open_study("tiny")
    assert (study.spec.metric.name, study.spec.trainer) == ("PER", "hpo.decoder.trainer:gru_ctc")
    assert study.spec.stopping is not None
    assert study.spec.stopping.margin == 0.04
    curve = study.curves(study.records())[0]
    assert [point.step for point in curve] == [2, 4, 6]
    for point in curve:
        assert set(point.metrics) == {"lr", "grad_norm", "step_seconds"}
        assert point.validation_loss is not None
        assert math.isfinite(point.validation_loss)

    tiny_space.write_text(SPACE)
    done = launch(tiny_space, tiny_data, "--workers", "1", "--extend")
    assert done.returncode == 0, done.stderr
    assert [record.state for record in open_study("tiny").records()] == ["complete"] * 4
    page = tiny_space.parent / "page.html"
    assert run_hpo("report", "--study", "tiny", "--html", page).returncode == 0


def test_a_worker_joins_an_old_study(old: Database, tiny_data: Path) -> None:
    assert run_hpo("budget", "--study", "tiny", "--trials", "+1").returncode == 0
    done = run_hpo("worker", "--study", "tiny", "--data", tiny_data, "--device", "cpu")
    assert done.returncode == 0, done.stderr
    states = [record.state for record in open_study("tiny").records()]
    assert states.count("complete") == 4


def test_unknown_values_of_an_imported_run_are_null(old: Database, server: EmbeddedServer) -> None:
    unknown = "attempt = NULL, validation_loss = 'NaN', lr = 'NaN'"
    execute(server, f"UPDATE hpo_curve SET {unknown} WHERE trial_id = 1", name_of(old))
    study = open_study("tiny")
    curve = study.curves(study.records())[0]
    assert len(curve) == 3
    for point in curve:
        assert point.validation_loss is None
        assert "lr" not in point.metrics


def test_migrated_and_new_tables_are_those_that_the_code_knows(
    old: Database, server: EmbeddedServer, columns: list[tuple[object, ...]]
) -> None:
    open_storage(old)
    name = name_of(old)

    def ours(rows: list[tuple[object, ...]]) -> list[tuple[object, ...]]:
        """The columns in a fixed order, without dropped ones, whose names Postgres keeps."""
        return sorted(row for row in rows if row[0] in OURS and "dropped" not in str(row[1]))

    assert ours(execute(server, COLUMNS, name)) == ours(columns)
    options = {
        "include_name": lambda name, kind, _: kind != "table" or name in OURS,
        "compare_type": True,
    }
    engine = create_engine(old.url)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts=options)
        changes = compare_metadata(context, metadata)
    engine.dispose()
    assert [change for change in changes if change[0] != "add_table"] == []


def test_the_last_migration_leads_to_the_version_that_the_code_knows() -> None:
    migrations = Path(hpo.__file__).parent / "store" / "migrations"
    config = Config()
    config.set_main_option("script_location", str(migrations))
    assert ScriptDirectory.from_config(config).get_current_head() == VERSION


def test_tables_of_a_later_version_are_left_alone(
    make_study: Callable[..., Study],
    tiny_spec: StudySpec,
    database: Database,
    server: EmbeddedServer,
) -> None:
    make_study(tiny_spec, "tiny")
    name = name_of(database)
    execute(server, f"UPDATE {VERSION_TABLE} SET version_num = '99'", name)
    try:
        later = "later version of hpo (tables 99, this one knows"
        for command in (("status", "--study", "tiny"), ("studies",)):
            one_line(run_hpo(*command), 1, later, "pip install --upgrade")
    finally:
        execute(server, f"UPDATE {VERSION_TABLE} SET version_num = '{VERSION}'", name)
