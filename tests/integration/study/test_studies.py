"""The list of studies, the end of one, and the names that a shell completes."""

import json
import os
from collections.abc import Callable
from dataclasses import replace

import optuna
import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner, Result
from helpers.studies import HERE, claim, completed

from hpo.cli import main
from hpo.errors import StudyError
from hpo.space.spec import StudySpec
from hpo.store.database import Database
from hpo.store.storage import open_storage
from hpo.study import control
from hpo.study.paths import study_folder
from hpo.study.study import Study

Make = Callable[..., Study]


def hpo(*arguments: str, said: str | None = None) -> Result:
    return CliRunner().invoke(main, list(arguments), input=said)


def test_the_list(make_study: Make, tiny_spec: StudySpec) -> None:
    assert hpo("studies").stdout == "There is no study yet. hpo launch creates one\n"
    busy, done, halted, _ = (
        make_study(tiny_spec, name) for name in ("busy", "done", "halted", "new")
    )
    claim(busy)
    for per in (0.4, 0.2):
        done.finish(claim(done), completed(per))
    done.change_budget({"trials": "2"})
    control.halt(halted, "paused")
    lines = {line["name"]: line for line in json.loads(hpo("studies", "--json").stdout)}
    assert {name: line["state"] for name, line in lines.items()} == {
        "busy": "running",
        "done": "done",
        "halted": "paused",
        "new": "idle",
    }
    assert [
        lines["done"][key] for key in ("ended", "budget", "best_value", "running", "failed")
    ] == [2, 2, 0.2, 0, 0]
    assert lines["new"]["last"] is None and lines["busy"]["last"] is not None
    text = hpo("studies").stdout
    assert [line.split()[0] for line in text.splitlines()] == [
        "study",
        "busy",
        "done",
        "halted",
        "new",
    ]
    assert "2 of 2" in text and "20.00 %" in text


def test_the_list_shows_names_of_foreign_studies_as_they_are(database: Database) -> None:
    for name in ('[/b] "x"', "[red]y"):
        optuna.create_study(storage=open_storage(database), study_name=name)
    done = hpo("studies")
    assert done.exit_code == 0, done.output
    assert [
        line.rstrip().rpartition(" foreign")[0].rstrip() for line in done.stdout.splitlines()[1:]
    ] == ['[/b] "x"', "[red]y"]


def test_the_end_of_a_study(make_study: Make, tiny_spec: StudySpec, database: Database) -> None:
    study = make_study(tiny_spec, "s")
    make_study(tiny_spec, "s.confirm")
    folder = study_folder(study)
    weights = folder / "trial-0" / "last.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"0" * 2_000_000)
    trial = claim(study)
    refused = hpo("delete", "--study", "s", "--yes")
    assert (
        refused.exit_code,
        "study s: 1 trials run. First hpo stop --study s, or take --force" in refused.stderr,
    ) == (2, True)
    study.finish(trial, completed(0.25))
    asked = hpo("delete", "--study", "s", said="n\n")
    assert asked.exit_code == 1
    for part in (
        "study s: 2 trials, best PER 25.00 %",
        f"{folder}: 2.0 MB",
        "kept        s.confirm, which was made from it",
    ):
        assert part in asked.stdout
    assert weights.exists() and len(study.records()) == 2
    assert "deleted study s" in hpo("delete", "--study", "s", "--yes").stdout
    assert not folder.exists()
    gone = hpo("status", "--study", "s")
    assert (
        gone.exit_code,
        "no study 's' in" in gone.stderr,
        "There are: s.confirm" in gone.stderr,
    ) == (2, True, True)
    with pytest.raises(StudyError, match="study s was deleted"):
        study.claim(
            replace(HERE, identity="other"), {"device": "cpu", "code_version": "0", "data": "f"}
        )


def test_a_study_is_removed_under_its_worker_only_by_force(
    make_study: Make, tiny_spec: StudySpec
) -> None:
    study = make_study(tiny_spec, "s")
    trial = claim(study)
    assert hpo("delete", "--study", "s", "--yes", "--force").exit_code == 0
    assert not study.deliver(trial, [], 2, 1.0)
    assert not study.finish(trial, completed(0.1))


def test_an_unknown_study_is_told_the_nearest_name(make_study: Make, tiny_spec: StudySpec) -> None:
    for number in range(22):
        make_study(tiny_spec, f"lr-aug-{number:02}")
    error = hpo("kill", "--study", "lr-agu-07", "--trial", "1").stderr
    assert "Did you mean lr-aug-07? There are: lr-aug-00, " in error
    assert error.endswith("lr-aug-19, ...\n")


def completions(incomplete: str) -> list[str]:
    shell = ShellComplete(main, {}, "hpo", "_HPO_COMPLETE")
    return [item.value for item in shell.get_completions(["pause", "--study"], incomplete)]


def test_a_shell_completes_names_of_studies(
    make_study: Make, tiny_spec: StudySpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("lr-aug", "lr-only", "other"):
        make_study(tiny_spec, name)
    assert completions("lr") == ["lr-aug", "lr-only"]
    monkeypatch.setenv("HPO_DATABASE_URL", os.environ["HPO_DATABASE_URL"].replace("hpo:", "wrong:"))
    assert completions("lr") == []
    monkeypatch.delenv("HPO_DATABASE_URL")  # an embedded server that does not run is not started
    assert completions("lr") == []
