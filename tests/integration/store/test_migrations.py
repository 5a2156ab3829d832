"""A database of an earlier version: brought to this one, and its study goes on.

data/study_of_359d9c5.sql was dumped from a study that commit 359d9c5 made, before tables had a version.
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
from helpers.commands import asked, one_line, report_of
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
    found = Database(url_of(server, name), None)
    monkeypatch.setenv("HPO_DATABASE_URL", found.url)
    monkeypatch.setenv("HPO_HOME", str(tmp_path / "home"))
    yield found
    execute(server, f"DROP DATABASE {name} WITH (FORCE)")


def name_of(database: Database) -> str:
    return str(make_url(database.url).database)


def test_an_old_study_is_read_and_goes_on(old: Database, tiny_space: Path, tiny_data: Path) -> None:
    listed = json.loads(asked("studies", "--json").stdout)
    assert [(line["name"], line["ended"], line["best_per"]) for line in listed] == [
        ("tiny", 3, min(PERS)),
        ("tiny.confirm", 2, 0.6),
    ]
    trials = json.loads(asked("status", "--study", "tiny", "--json").stdout)["trials"]
    assert [trial["per"] for trial in trials] == [trial["value"] for trial in trials] == PERS
    report = report_of("tiny")
    assert (report["best"]["per"], report["best"]["trial"]) == (0.6, 0)
    configs = report["findings"]["confirm"]["configs"]
    assert [config["search_per"] for config in configs] == [
        config["search_value"] for config in configs
    ]
    assert "per" not in open_study("tiny").results()["confirm"]["configs"][0]

    study = open_study("tiny")
    assert (study.spec.metric.name, study.spec.trainer) == ("PER", "hpo.decoder.trainer:gru_ctc")
    assert study.spec.stopping is not None and study.spec.stopping.margin == 0.04
    curve = study.curves(study.records())[0]
    assert [point.step for point in curve] == [2, 4, 6]
    assert all(set(point.metrics) == {"lr", "grad_norm", "step_seconds"} for point in curve)
    assert all(
        point.validation_loss is not None and math.isfinite(point.validation_loss)
        for point in curve
    )

    tiny_space.write_text(SPACE)
    done = asked(
        "launch",
        "--study",
        tiny_space,
        "--data",
        tiny_data,
        "--workers",
        "1",
        "--device",
        "cpu",
        "--extend",
    )
    assert done.returncode == 0, done.stderr
    assert [record.state for record in open_study("tiny").records()] == ["complete"] * 4
    page = tiny_space.parent / "page.html"
    assert asked("report", "--study", "tiny", "--html", page).returncode == 0


def test_a_worker_joins_an_old_study(old: Database, tiny_data: Path) -> None:
    assert asked("budget", "--study", "tiny", "--trials", "+1").returncode == 0
    done = asked("worker", "--study", "tiny", "--data", tiny_data, "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert (
        len([record for record in open_study("tiny").records() if record.state == "complete"]) == 4
    )


def test_what_was_not_known_of_an_imported_run_is_null(
    old: Database, server: EmbeddedServer
) -> None:
    name = name_of(old)
    execute(
        server,
        "UPDATE hpo_curve SET attempt = NULL, validation_loss = 'NaN', lr = 'NaN' WHERE trial_id = 1",
        name,
    )
    curve = open_study("tiny").curves(open_study("tiny").records())[0]
    assert [(point.validation_loss, "lr" in point.metrics) for point in curve] == [
        (None, False)
    ] * 3


def test_migrated_and_new_tables_are_those_that_the_code_knows(
    old: Database, server: EmbeddedServer, columns: list[tuple[object, ...]]
) -> None:
    open_storage(old)
    name = name_of(old)

    def ours(rows: list[tuple[object, ...]]) -> list[tuple[object, ...]]:
        """Of columns that are there, whatever their order; a dropped one keeps its place under another name."""
        return sorted(row for row in rows if row[0] in OURS and "dropped" not in str(row[1]))

    assert ours(execute(server, COLUMNS, name)) == ours(columns)
    engine = create_engine(old.url)
    with engine.connect() as connection:
        options = {
            "include_name": lambda name, kind, _: kind != "table" or name in OURS,
            "compare_type": True,
        }
        context = MigrationContext.configure(connection, opts=options)
        changes = [
            change for change in compare_metadata(context, metadata) if change[0] != "add_table"
        ]
    engine.dispose()
    assert changes == []


def test_the_last_step_is_the_version_that_the_code_knows() -> None:
    config = Config()
    config.set_main_option(
        "script_location", str(Path(hpo.__file__).parent / "store" / "migrations")
    )
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
        for command in (("status", "--study", "tiny"), ("studies",)):
            one_line(
                asked(*command),
                1,
                "later version of hpo (tables 99, this one knows",
                "pip install --upgrade",
            )
    finally:
        execute(server, f"UPDATE {VERSION_TABLE} SET version_num = '{VERSION}'", name)
