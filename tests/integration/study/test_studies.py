"""The list of studies, the end of one, and the names that a shell completes."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import optuna
import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner
from helpers.commands import invoke
from helpers.lines import refusal
from helpers.studies import HERE, RECORD, claim, completed

from hpo.cli import main
from hpo.errors import StudyError
from hpo.launch.doctor import judge_disk
from hpo.space.spec import StudySpec
from hpo.store.database import Database
from hpo.store.storage import open_storage
from hpo.study import control
from hpo.study.foreign import find_foreign
from hpo.study.paths import study_folder
from hpo.study.studies import remove_foreign
from hpo.study.study import Study
from hpo.terminal.snapshot import snapshot

Make = Callable[..., Study]


def test_the_list_shows_the_state_of_each_study(make_study: Make, tiny_spec: StudySpec) -> None:
    assert invoke("studies").stdout == "There is no study yet. hpo launch creates one\n"
    names = ("busy", "done", "halted", "new")
    busy, done, halted, _ = (make_study(tiny_spec, name) for name in names)
    claim(busy)
    for per in (0.4, 0.2):
        done.finish(claim(done), completed(per))
    done.change_budget({"trials": "2"})
    control.halt(halted, "paused")
    lines = {line["name"]: line for line in json.loads(invoke("studies", "--json").stdout)}
    states = {name: line["state"] for name, line in lines.items()}
    assert states == {"busy": "running", "done": "done", "halted": "paused", "new": "idle"}
    line = lines["done"]
    assert (line["ended"], line["budget"], line["best_value"]) == (2, 2, 0.2)
    assert (line["running"], line["failed"]) == (0, 0)
    assert lines["new"]["last"] is None
    assert lines["busy"]["last"] is not None
    text = invoke("studies").stdout
    assert [line.split()[0] for line in text.splitlines()] == ["study", *names]
    assert "2 of 2" in text
    assert "20.00 %" in text


def test_the_list_shows_names_of_foreign_studies_as_they_are(database: Database) -> None:
    for name in ('[/b] "x"', "[red]y"):
        optuna.create_study(storage=open_storage(database), study_name=name)
    done = invoke("studies")
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()[1:]
    names = [line.rstrip().rpartition(" foreign")[0].rstrip() for line in lines]
    assert names == ['[/b] "x"', "[red]y"]


def test_values_that_no_training_scored_are_in_no_list(
    make_study: Make, tiny_spec: StudySpec, database: Database
) -> None:
    """Those of another project's study, and those that were typed in."""
    foreign = optuna.create_study(storage=open_storage(database), study_name="theirs")
    foreign.set_user_attr("budget", 3)
    foreign.set_user_attr("metric", "loss")
    foreign.set_user_attr("spec", "v2")
    foreign.set_user_attr("halt", True)
    foreign.optimize(lambda trial: trial.suggest_float("x", 0, 1) * 0 + 0.028, n_trials=2)
    study = make_study(tiny_spec, "ours")
    assert study.finish(claim(study), completed(0.4))
    study.optuna.tell(claim(study).number, 0.001)

    lines = {line["name"]: line for line in json.loads(invoke("studies", "--json").stdout)}
    theirs = lines["theirs"]
    assert (theirs["state"], theirs["metric"], theirs["best_value"]) == ("foreign", None, None)
    assert (theirs["ended"], theirs["budget"]) == (2, None)
    assert lines["ours"]["best_value"] == 0.4
    assert "2.80 %" not in invoke("studies").stdout
    assert "study 'theirs' was not made by hpo" in refusal("report", "--study", "theirs")
    seen = snapshot(study)
    assert seen.best == (0, 0.4)
    states = {ended.number: (ended.state, ended.value, ended.reason) for ended in seen.ended}
    assert states[1] == ("stopped", None, "ended by hand")


@pytest.mark.slow
def test_deleting_a_study_asks_first_and_removes_its_files(
    make_study: Make, tiny_spec: StudySpec
) -> None:
    study = make_study(tiny_spec, "s")
    make_study(tiny_spec, "s.confirm")
    folder = study_folder(study)
    weights = folder / "trial-0" / "last.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"0" * 2_000_000)
    trial = claim(study)
    error = refusal("delete", "--study", "s", "--yes")
    assert "study s: 1 trials run. First hpo stop --study s, or take --force" in error

    study.finish(trial, completed(0.25))
    confirmation = CliRunner().invoke(main, ["delete", "--study", "s"], input="n\n")
    assert confirmation.exit_code == 1
    for part in (
        "study s: 2 trials, best PER 25.00 %",
        f"{folder}: 2.0 MB",
        "kept        s.confirm, which was made from it",
    ):
        assert part in confirmation.stdout
    assert weights.exists()
    assert len(study.records()) == 2

    assert "deleted study s" in invoke("delete", "--study", "s", "--yes").stdout
    assert not folder.exists()
    error = refusal("status", "--study", "s")
    assert "no study 's' in" in error
    assert "There are: s.confirm" in error
    with pytest.raises(StudyError, match="study s was deleted"):
        study.claim(replace(HERE, identity="other"), RECORD)


ANY_NAMES = (
    "plain",
    "<img src=x onerror=alert(1)>",
    "a b ",
    "-x",
    "--yes",
    "",
    "%2F/../é",
    '"; DROP TABLE studies; --',
    "$(id)`id`",
    300 * "x",
)


def foreign(database: Database, name: str) -> optuna.Study:
    return optuna.create_study(storage=open_storage(database), study_name=name)


@pytest.mark.parametrize("name", ANY_NAMES)
def test_a_study_that_hpo_did_not_make_is_deleted_whatever_its_name(
    make_study: Make, tiny_spec: StudySpec, database: Database, name: str
) -> None:
    make_study(tiny_spec, "ours")
    study = foreign(database, name)
    study.add_trial(optuna.create_trial(value=1.0))
    asked = CliRunner().invoke(main, ["delete", "--study", name], input="n\n")
    assert asked.exit_code == 1
    assert ": 1 trials, not made by hpo" in asked.stdout
    assert len(json.loads(invoke("studies", "--json").stdout)) == 2
    deleted = invoke("delete", "--study", name, "--yes")
    assert (deleted.exit_code, "deleted study" in deleted.stdout) == (0, True)
    assert [line["name"] for line in json.loads(invoke("studies", "--json").stdout)] == ["ours"]


def test_names_that_a_terminal_would_obey_are_shown_and_taken_as_text(database: Database) -> None:
    shown = {
        "\x1b[2J\x1b[31mred": r"\x1b[2J\x1b[31mred",
        "two\nlines\r": r"two\nlines\r",
        "\u202egnp": r"\u202egnp",
        "": '""',
    }
    for name in shown:
        foreign(database, name)
    listed = invoke("studies").stdout
    assert listed.isascii()
    assert "\x1b" not in listed
    unknown = refusal("status", "--study", "no")
    for text in shown.values():
        assert text in listed
        assert text in unknown
        assert f"deleted study {text}\n" in invoke("delete", "--study", text, "--yes").stdout
    assert json.loads(invoke("studies", "--json").stdout) == []


def test_a_foreign_study_that_runs_is_deleted_by_force_only(database: Database) -> None:
    foreign(database, "s p").ask()
    error = refusal("delete", "--study", "s p", "--yes")
    assert "study s p: 1 trials run in another program. Stop that, or take --force" in error
    assert invoke("delete", "--study", "s p", "--yes", "--force").exit_code == 0
    assert json.loads(invoke("studies", "--json").stdout) == []


@pytest.mark.parametrize("spec", ["v2", {"layers": 2}, None, {"parameters": {}}])
def test_a_foreign_study_with_a_spec_of_its_own_is_deleted(database: Database, spec: Any) -> None:
    foreign(database, "theirs").set_user_attr("spec", spec)
    assert invoke("delete", "--study", "theirs", "--yes").exit_code == 0
    assert json.loads(invoke("studies", "--json").stdout) == []


def test_a_study_that_is_taken_over_by_a_launch_meanwhile_is_kept(
    database: Database, tiny_spec: StudySpec
) -> None:
    foreign(database, "s")
    seen = find_foreign(database, "s")
    assert seen
    Study.create_or_open(database, "s", tiny_spec, {"path": None, "fingerprint": "f"})
    with pytest.raises(StudyError, match="study s is now one of hpo launch"):
        remove_foreign(database, seen)
    assert find_foreign(database, "s") is None
    assert invoke("delete", "--study", "s", "--yes").exit_code == 0
    with pytest.raises(StudyError, match="study s was deleted meanwhile"):
        remove_foreign(database, seen)


def test_a_study_that_this_version_cannot_read_can_be_deleted(
    make_study: Make, tiny_spec: StudySpec
) -> None:
    study = make_study(tiny_spec, "s")
    study.set_attribute("spec", {**study.attributes["spec"], "of": "another age"})
    done = invoke("delete", "--study", "s", "--yes")
    assert done.exit_code == 0, done.output
    assert "made by another version of hpo" in done.stdout
    assert "deleted study s" in done.stdout


def test_with_force_a_study_is_deleted_under_its_worker(
    make_study: Make, tiny_spec: StudySpec
) -> None:
    study = make_study(tiny_spec, "s")
    trial = claim(study)
    assert invoke("delete", "--study", "s", "--yes", "--force").exit_code == 0
    assert not study.deliver(trial, [], 2, 1.0)
    assert not study.finish(trial, completed(0.1))


@pytest.mark.slow
def test_the_error_about_an_unknown_study_names_the_nearest(
    make_study: Make, tiny_spec: StudySpec
) -> None:
    for number in range(22):
        make_study(tiny_spec, f"lr-aug-{number:02}")
    error = invoke("kill", "--study", "lr-agu-07", "--trial", "1").stderr
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
    # An embedded server that does not run is not started.
    monkeypatch.delenv("HPO_DATABASE_URL")
    assert completions("lr") == []


def test_studies_tells_what_the_files_of_each_study_take(
    make_study: Make, tiny_spec: StudySpec
) -> None:
    study = make_study(tiny_spec, "small")
    make_study(tiny_spec, "no-files")
    folder = study_folder(study)
    sizes = {
        "trial-0/best.safetensors": 1_000_000,
        "trial-0/last.safetensors": 2_000_000,
        "trial-1/checkpoint-00000002-x.pt": 4_000_000,
        "trial-2/attempt-1/checkpoints/best.ckpt": 8_000_000,
        "logs/trial-0.log": 16_000_000,
        "slurm.sh": 32_000_000,
    }
    for name, count in sizes.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("wb") as content:
            content.truncate(count)
    (folder / "trial-0" / "gone").symlink_to("nowhere")
    deleted = folder.parent / "deleted-12345678"
    deleted.mkdir()
    listed = json.loads(invoke("studies", "--disk", "--json").stdout)
    by_name = {line["study"]: line for line in listed}
    assert set(by_name) == {"small", "no-files", None}
    assert by_name["small"]["bytes"] == {
        "weights": 3_000_000,
        "checkpoints": 12_000_000,
        "logs": 16_000_000,
        "other": 32_000_000 + len("nowhere"),
    }
    assert by_name[None]["folder"] == str(deleted)
    text = invoke("studies", "--disk").stdout
    assert "small  63.0 MB: weights 3.0 MB, checkpoints 12.0 MB" in text
    assert "(no study of this database)" in text
    said = judge_disk(folder.parent)
    assert "2 folders of studies take 63.0 MB" in said
    assert f"The largest: {folder.name}, 63.0 MB" in said
