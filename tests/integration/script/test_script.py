"""Studies of a training script, from claim to outcome: real processes, a real database."""

import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers.commands import one_line, report_of, run_hpo
from helpers.lines import ON_CPU, ONE_WORKER, TWO_WORKERS
from helpers.script_studies import create_study, curve_of, scripts_running, study_file, trained

from hpo.errors import MemoryShortError, SpecError
from hpo.script.endings import partial_match
from hpo.space.load import load_spec
from hpo.store.database import Database
from hpo.study.logs import log_path
from hpo.study.paths import study_folder, trial_folder
from hpo.study.study import Study
from hpo.worker.worker import run_worker

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")


@pytest.mark.slow
def test_a_whole_trial(database: Database, tmp_path: Path) -> None:
    record = trained(database, study_file(tmp_path))
    study = Study.open(database, "script")
    points = curve_of(study, record)
    assert record.state == "complete"
    assert [point.step for point in points] == list(range(5, 61, 5))
    assert record.value == points[-1].value
    assert points[0].loss == pytest.approx(2 * points[0].value)
    assert points[0].metrics["lr"] == 0.02
    assert (record.step, record.steps, record.config["lr"]) == (60, 60, 0.02)
    # The seed of the base and the trial's number.
    assert record.config["seed"] == 3
    assert " script " in record.code_version


SHOW = """
import json, os, sys
seen = {
    "words": sys.argv[1:],
    "environment": dict(os.environ),
    "cwd": os.getcwd(),
    "stdin": os.readlink("/proc/self/fd/0"),
    "config": json.load(open(os.environ["HPO_CONFIG"])),
    "file": json.load(open("train.json")),
}
json.dump(seen, open("seen.json", "w"))
open(os.environ["HPO_METRICS"], "a").write('{"step": 60, "value": 0.5}\\n')
"""


@pytest.mark.slow
def test_a_script_gets_its_words_environment_and_configuration(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGPASSWORD", "a secret")
    monkeypatch.setenv("A_COPY", database.url)
    monkeypatch.setenv("KEPT", "as it is")
    show = tmp_path / "show.py"
    show.write_text(SHOW)
    section = {
        "command": [sys.executable, str(show), "{code}", "{trial}", "{checkpoints}"],
        "flag": "--{name}={value}",
        "fixed": {"way": "{study}/x"},
        "environment": {"OWN": "{attempt}/out", "NUMBER": 5},
    }
    record = trained(database, study_file(tmp_path, section))
    assert record.value == 0.5, record.reason
    folder = trial_folder(study_folder(Study.open(database, "script")), 0) / "attempt-1"
    seen = json.loads((folder / "seen.json").read_text())
    assert seen["words"][:3] == [str(tmp_path / "code"), "0", str(folder / "checkpoints")]
    assert "--way=script/x" in seen["words"]
    assert seen["cwd"] == str(folder)
    assert seen["stdin"] == "/dev/null"
    assert seen["config"] == seen["file"]
    assert seen["config"]["lr"] == 0.02
    assert seen["config"]["way"] == "script/x"

    environment = seen["environment"]
    expected = {
        "OWN": f"{folder}/out",
        "NUMBER": "5",
        "HPO_TRIAL": "0",
        "HPO_ATTEMPT": "1",
        "HPO_SEED": "3",
        "CUDA_VISIBLE_DEVICES": "",
        "KEPT": "as it is",
    }
    assert {name: environment[name] for name in expected} == expected
    assert not {"HPO_DATABASE_URL", "HPO_HOME", "PGPASSWORD", "A_COPY"} & set(environment)
    assert not any(database.url in value for value in environment.values())


# The way a script ends, keys of script:, the state of its trial, words of the reason.
ENDS: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "a number that is none": ("nan", {}, "stopped", "PER nan at step 35"),
    "a word that means divergence": (
        "fails",
        {"diverged": "a fault of"},
        "stopped",
        "the script says 'ValueError: a fault of the script'",
    ),
    "an error": ("fails", {}, "failed", "exit code 1; its last output: "),
    "memory": ("out-of-memory", {}, "failed", "ran out of memory"),
    "memory in the lab's words": (
        "fails",
        {"memory": "a fault of the script"},
        "failed",
        "ran out of memory",
    ),
    "a signal from outside": ("killed", {}, "failed", "was ended by SIGKILL"),
    "silence": ("hangs", {"silence_seconds": 0.5}, "failed", "written nothing for 0.5 s"),
    "silence, with a checkpoint that is gone": (
        "hangs",
        {"silence_seconds": 0.5, "fixed": {"way": "hangs", "dangles": True}},
        "failed",
        "written nothing for 0.5 s",
    ),
    "no value": ("silent", {}, "failed", "metrics.jsonl has no row with a value"),
    "steps that go back": ("backwards", {}, "failed", "backwards"),
    "below the bounds": ("negative", {}, "failed", "outside of 0 to 1"),
    "percent": ("percent", {}, "failed", "expression: value / 100"),
}


@pytest.mark.slow
@pytest.mark.parametrize("end", ENDS)
def test_the_state_and_reason_say_how_a_script_ended(
    database: Database, tmp_path: Path, end: str
) -> None:
    way, section, state, words = ENDS[end]
    path = study_file(
        tmp_path,
        {"fixed": {"way": way}, **section},
        budget={"trials": 1, "failures": 0},
        attempts={"max_attempts": 1},
    )
    study = create_study(database, path)
    workers = 0
    # Too little memory makes the worker leave.
    while workers < 3 and study.records()[0].state == "waiting":
        workers += 1
        with suppress(MemoryShortError):
            run_worker(study, None, torch.device("cpu"), 1, lambda: False)
    record = study.records()[0]
    assert record.state == state
    assert words in record.reason
    assert "\n" not in record.reason
    assert scripts_running(study_folder(study)) == []


@pytest.mark.slow
def test_the_reason_of_a_failure_has_the_last_lines_of_the_script(
    database: Database, tmp_path: Path
) -> None:
    path = study_file(tmp_path, {"fixed": {"way": "fails"}}, budget={"trials": 1, "failures": 0})
    record = trained(database, path)
    assert "ValueError: a fault of the script" in record.reason
    assert record.cause == "code error"
    study = Study.open(database, "script")
    log = log_path(study_folder(study), 0).read_text()
    assert "Traceback" in log
    assert "ValueError: a fault of the script" in log


@pytest.mark.slow
def test_a_pattern_that_never_matches_is_the_reason_of_a_failure(
    database: Database, tmp_path: Path
) -> None:
    curve = {"file": "log", "pattern": r"PER (?P<value>\d+) at (?P<step>\d+)"}
    path = study_file(tmp_path, {"curve": curve}, budget={"trials": 1, "failures": 0})
    record = trained(database, path)
    assert "no line of its output matches" in record.reason
    assert "PER (?P<value>" in record.reason


def test_children_of_a_script_that_has_ended_are_ended(database: Database, tmp_path: Path) -> None:
    section = {"fixed": {"way": "leaves"}, "grace_seconds": 1}
    record = trained(database, study_file(tmp_path, section))
    assert record.state == "complete"
    assert scripts_running(study_folder(Study.open(database, "script"))) == []


def test_the_log_is_capped(database: Database, tmp_path: Path) -> None:
    fixed = {"way": "loud", "megabytes": 20, "every": 60}
    record = trained(database, study_file(tmp_path, {"fixed": fixed, "log_megabytes": 1}))
    assert record.state == "complete"
    path = log_path(study_folder(Study.open(database, "script")), 0)
    assert 1e6 < path.stat().st_size < 1.1e6
    text = path.read_text()
    assert "more than 1 MB" in text
    assert "the end of a loud script" in text


def test_a_binary_log_is_shown(database: Database, tmp_path: Path) -> None:
    assert trained(database, study_file(tmp_path, {"fixed": {"way": "binary"}})).state == "complete"
    shown = run_hpo("logs", "--study", "script", "--trial", "0")
    assert shown.returncode == 0
    assert "!\"#$%&'()" in shown.stdout


@pytest.mark.slow
def test_changed_code_is_refused_unless_it_is_allowed(database: Database, tmp_path: Path) -> None:
    path = study_file(tmp_path, budget={"trials": 2})
    study = create_study(database, path)
    study.settle(None, "")
    script = tmp_path / "code" / "train.py"
    line = ("launch", "--study", path, "--name", "other")
    done = run_hpo(*line, *ONE_WORKER, "--trials", "1")
    assert done.returncode == 0, done.stderr
    script.write_text(script.read_text() + "# another state\n")
    extended = (*line, "--trials", "2", "--extend")
    refused = run_hpo(*extended, *ON_CPU)
    one_line(refused, 2, "another state of the script's code", "--allow-different-code")
    allowed = run_hpo(*extended, *ONE_WORKER, "--allow-different-code")
    assert allowed.returncode == 0, allowed.stderr
    versions = {record.code_version for record in Study.open(database, "other").records()}
    assert len(versions) == 2


@pytest.mark.slow
def test_every_command_works_for_a_script_from_try_to_export(
    database: Database, tmp_path: Path
) -> None:
    path = study_file(
        tmp_path,
        {"fixed": {"seconds": 0.02}},
        starts={"published": {"lr": 0.02}, "slow": {"lr": 0.006}},
        budget={"trials": 5},
    )
    tried = run_hpo("try", "--study", path, *ON_CPU)
    assert tried.returncode == 0, tried.stderr
    assert "resumes    exact" in tried.stdout
    assert json.loads((tmp_path / "study.try.json").read_text())["resume"] == "exact"
    launched = run_hpo("launch", "--study", path, *TWO_WORKERS)
    assert launched.returncode == 0, launched.stderr
    assert "an interrupted trial resumes: exact" in launched.stdout
    assert "one number, so no interval over items" in launched.stdout
    best = report_of("study")["best"]
    assert best["interval"] is None
    assert best["partition"] == "validation"

    study = ("--study", "study")
    confirmed = run_hpo("confirm", *study, "--top", "1", "--seeds", "3", *TWO_WORKERS)
    assert confirmed.returncode == 0, confirmed.stderr
    assert "p: Welch's t test over seeds" in confirmed.stdout
    assert "which the search has seen" in " ".join(confirmed.stdout.split())
    assert max(map(len, confirmed.stdout.splitlines()[-8:])) <= 100
    path_to_published = ("--from", "slow", "--to", "published", "--seeds", "2", "--rounds", "0")
    ablated = run_hpo("ablate", *study, *path_to_published, *TWO_WORKERS)
    assert ablated.returncode == 0, ablated.stderr
    assert "lr" in ablated.stdout

    for command in (["effects"], ["backtest"], ["status"], ["plan", "--gpus", "1", "--hours", "1"]):
        done = run_hpo(command[0], *study, *command[1:])
        assert done.returncode == 0, (command, done.stderr)
    page = tmp_path / "page.html"
    assert run_hpo("report", *study, "--html", page).returncode == 0
    assert "as the script reports them" in page.read_text()

    out = tmp_path / "best"
    assert run_hpo("export", *study, "--format", "script", "--out", out).returncode == 0
    assert json.loads((out / "train.json").read_text())["lr"] == best["config"]["lr"]
    assert "train.py" in (out / "command.sh").read_text()
    text = tmp_path / "best.yaml"
    assert run_hpo("export", *study, "--out", text).returncode == 0
    assert yaml.safe_load(text.read_text())["base"] == best["config"]

    for command in (
        ["ensemble", *study],
        ["evaluate", *study, "--model", "best", "--partition", "test"],
    ):
        one_line(run_hpo(*command), 2, "a script trains this study", "needs the built-in decoder")
    imported = run_hpo("import", *study, "--from-study", "study")
    assert imported.returncode in (0, 2)


@pytest.mark.slow
def test_a_report_warns_of_figures_on_test(database: Database, tmp_path: Path) -> None:
    curve = {"take": "best"}
    path = study_file(tmp_path, {"partition": "test", "curve": curve, "seed": None})
    trained(database, path)
    shown = run_hpo("report", "--study", "script").stdout
    assert "These figures are on test" in shown
    assert "best of its curve" in shown
    page = tmp_path / "page.html"
    assert run_hpo("report", "--study", "script", "--html", page).returncode == 0
    assert "on which the search therefore selected" in page.read_text()
    line = ("confirm", "--study", "script", "--top", "1", "--seeds", "2")
    confirmed = run_hpo(*line, *ONE_WORKER)
    assert confirmed.returncode == 0, confirmed.stderr
    assert "takes no seed" in " ".join(confirmed.stdout.split())


# Keys of script:, the exit code of hpo try, words that it prints.
TRIED: dict[str, tuple[dict[str, Any], int, str]] = {
    "cannot read its checkpoint": (
        {"fixed": {"way": "broken-resume", "seconds": 0.02}},
        0,
        "resumes    none: it fails when it is resumed",
    ),
    "does not resume": (
        {"fixed": {"forgets": True, "seconds": 0.02}},
        0,
        "resumes    none: it saves nothing in HPO_CHECKPOINTS",
    ),
    "trains its steps anew": (
        {"fixed": {"way": "longer", "seconds": 0.02}},
        0,
        "resumes    none: the resumed script continues to step",
    ),
    "hangs": (
        {"fixed": {"way": "hangs"}, "silence_seconds": 0.5},
        2,
        "written nothing for 0.5 s",
    ),
    "no line matches": (
        {"fixed": {}, "curve": {"file": "log", "pattern": r"(?P<step>\d+): (?P<value>\S+)"}},
        2,
        "no line of its output matches",
    ),
    "does not start": (
        {"fixed": {"way": "binary"}, "command": [sys.executable, "/nowhere.py"]},
        2,
        "exit code 2",
    ),
    "diverges": ({"fixed": {"way": "nan", "seconds": 0.02}}, 2, "the base diverges at step"),
}


@pytest.mark.slow
@pytest.mark.parametrize("finding", TRIED)
def test_try_finds_how_a_script_resumes_and_what_it_lacks(
    database: Database, tmp_path: Path, finding: str
) -> None:
    section, code, words = TRIED[finding]
    done = run_hpo("try", "--study", study_file(tmp_path, section), *ON_CPU)
    assert done.returncode == code, done.stderr
    if code:
        one_line(done, code, words)
    else:
        assert words in done.stdout


@pytest.mark.slow
def test_the_study_file_and_results_do_not_count_as_code(
    database: Database, tmp_path: Path
) -> None:
    """A study file among the code, what hpo try finds and what a training leaves there."""
    first = study_file(tmp_path)
    inside = tmp_path / "code" / "study.yaml"
    content = yaml.safe_load(first.read_text())
    content["script"]["code"] = "."
    content["script"]["fixed"] = {"seconds": 0.02}
    inside.write_text(yaml.safe_dump(content))
    state_of_code = load_spec(inside).load_trainer().state_of_code
    assert state_of_code is not None
    state = state_of_code()
    assert run_hpo("try", "--study", inside, *ON_CPU).returncode == 0
    assert load_spec(inside).load_trainer().resume == "exact"
    (tmp_path / "code" / "results.json").write_text("{}")
    inside.write_text(yaml.safe_dump(content | {"budget": {"trials": 5}}))
    assert state_of_code() == state
    (tmp_path / "code" / "model.py").write_text("units = 5\n")
    assert state_of_code() != state


@pytest.mark.slow
def test_a_refused_extension_changes_nothing(database: Database, tmp_path: Path) -> None:
    path = study_file(tmp_path)
    line = ("launch", "--study", path, *ONE_WORKER)
    assert run_hpo(*line).returncode == 0
    script = tmp_path / "code" / "train.py"
    text = script.read_text()
    script.write_text(text + "# another state\n")
    study_file(tmp_path, budget={"trials": 3})
    one_line(run_hpo(*line, "--extend"), 2, "another state of the script's code")
    assert Study.open(database, "study").budget.trials == 1
    script.write_text(text)
    study_file(tmp_path)
    again = run_hpo(*line)
    assert again.returncode == 0, again.stderr


def test_a_bad_row_of_an_earlier_attempt_does_not_end_the_next(
    database: Database, tmp_path: Path
) -> None:
    path = study_file(tmp_path, {"fixed": {"way": "once-bad"}}, attempts={"max_attempts": 5})
    record = trained(database, path)
    assert (record.state, record.attempts) == ("complete", 2), record.reason


def test_steps_without_an_evaluation_are_no_points(database: Database, tmp_path: Path) -> None:
    record = trained(database, study_file(tmp_path, {"fixed": {"way": "loss-at-the-end"}}))
    points = curve_of(Study.open(database, "script"), record)
    assert [point.step for point in points] == list(range(5, 61, 5))
    assert (record.state, record.value) == ("complete", points[-1].value)


SHOW_WORDS = """
import json, os, sys
json.dump(sys.argv[1:], open("seen.json", "w"))
open(os.environ["HPO_METRICS"], "a").write('{"step": 60, "value": 0.5}\\n')
"""


def test_text_in_quotes_stays_text(database: Database, tmp_path: Path) -> None:
    (tmp_path / "show.py").write_text(SHOW_WORDS)
    section = {
        "command": [sys.executable, str(tmp_path / "show.py")],
        "config": None,
        "flag": "--{name}={value}",
        "steps": 60,
        "seed": None,
        "fixed": {"device": "0", "date": "20230811", "name": "inf", "eps": "1e-6"},
    }
    trained(database, study_file(tmp_path, section, base={"lr": 0.02}))
    folder = trial_folder(study_folder(Study.open(database, "script")), 0) / "attempt-1"
    seen = json.loads((folder / "seen.json").read_text())
    assert {"--device=0", "--date=20230811", "--name=inf", "--eps=1e-6"} <= set(seen)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("section", "changes", "words"),
    [
        (
            {"config": None},
            {"base": {"lr": 0.02, "steps": 60, "seed": 3}},
            "the script does not read them",
        ),
        (
            {"fixed": {"seconds": 0.02}, "metric": {"name": "PER", "direction": "maximize"}},
            {},
            "PER falls while",
        ),
    ],
)
def test_try_warns_of_parameters_and_metrics_that_look_wrong(
    database: Database, tmp_path: Path, section: dict[str, Any], changes: dict[str, Any], words: str
) -> None:
    path = study_file(tmp_path, section, **changes)
    if "config" in section:
        script = tmp_path / "code" / "train.py"
        base = tmp_path / "code" / "base.json"
        reads_base = f"json.load(open({str(base)!r}))"
        script.write_text(script.read_text().replace("hpo_report.config()", reads_base))
    done = run_hpo("try", "--study", path, *ON_CPU)
    assert done.returncode == 0, done.stderr
    assert "WARNING" in done.stdout
    assert words in done.stdout


def test_partial_match_says_how_far_a_pattern_matches() -> None:
    lines = ["Epoch 1/20  train_loss=2.3 val_per=0.27"]
    pattern = r"Epoch (?P<step>\d+)/\d+ train_loss=\S+ val_per=(?P<value>\S+)"
    message = partial_match(pattern, lines)
    assert "up to 'Epoch 1/20 '" in message
    assert "'train_loss" in message
    assert partial_match(r"Batch (?P<step>\d+)", lines) == ""


WRONG: dict[str, tuple[dict[str, Any], dict[str, Any], tuple[str, ...]]] = {
    "both trainers": ({}, {"trainer": "a.py:b"}, ("has both script: and trainer:",)),
    "no program": (
        {"command": ["no-such-program"]},
        {},
        ("script.command: no-such-program", "no such program"),
    ),
    "no file": ({"command": ["/no/such/python"]}, {}, ("/no/such/python: there is no such file",)),
    "not executable": ({"command": ["{code}/train.py"]}, {}, ("it is not executable",)),
    "no code": (
        {"code": "elsewhere"},
        {},
        ("script.code: elsewhere: there is no such folder or file",),
    ),
    "an unknown parameter": (
        {},
        {"parameters": {"lrr": {"low": 1, "high": 2}}},
        ("has no 'lrr'", "Did you mean lr?"),
    ),
    "an unknown fixed field": ({"fixed": {"sed": 1}}, {}, ("has no 'sed'", "Did you mean seed?")),
    "an unknown key": ({"comand": ["x"]}, {}, ("there is no 'comand'", "Did you mean command?")),
    "an unknown key of the curve": (
        {"curve": {"patern": "x"}},
        {},
        ("there is no 'patern'", "pattern"),
    ),
    "no value": ({"curve": {"pattern": r"(?P<step>\d+)"}}, {}, ("value",)),
    "an unknown group": (
        {"curve": {"pattern": r"(?P<step>\d+) (?P<value>\S+) (?P<wer>\S+)"}},
        {},
        ("wer",),
    ),
    "no expression": ({"curve": {"pattern": r"(?P<step>\d+"}}, {}, ("pattern",)),
    "a base that is none": (
        {"config": {"from": "{code}/train.py", "file": "x.json"}},
        {},
        ("train.py",),
    ),
    "steps that are not there": ({"steps": "epochs"}, {}, ("script.steps", "has no 'epochs'")),
    "steps that are text": (
        {"steps": "way"},
        {},
        ("script.steps: way: the base has 'exact' for it",),
    ),
    "a field written twice": (
        {"fixed": {"lr": 0.1}},
        {},
        ("the field lr is written by fixed and by parameters.lr",),
    ),
    "a range for text": (
        {},
        {"parameters": {"way": {"low": 1, "high": 2}}, "starts": None},
        ("way", "range", "choices"),
    ),
    "an unknown place": ({"environment": {"X": "{cod}"}}, {}, ("{cod}",)),
    "a relative file": ({"command": [sys.executable, "train.py"]}, {}, ("Valid: {code}/train.py",)),
    "too many GPUs": ({"gpus": 100}, {}, ("script.gpus: 100",)),
    "no metric": ({"metric": None}, {}, ("metric is missing",)),
    "a bad unit of time": ({"grace_seconds": "soon"}, {}, ("grace_seconds",)),
    "a shared curve": (
        {"curve": {"file": "/data/rows.jsonl"}},
        {},
        ("is outside the attempt's folder",),
    ),
    "a curve above": (
        {"curve": {"file": "../rows.jsonl"}},
        {},
        ("is outside the attempt's folder",),
    ),
    "the lab's own file": (
        {"config": {"from": "{code}/base.json", "file": "/data/base.json"}},
        {},
        ("is outside the attempt's folder",),
    ),
    "our file": (
        {"config": {"from": "{code}/base.json", "file": "hpo-config.json"}},
        {},
        ("hpo writes a file of this name",),
    ),
    "our variable": (
        {"environment": {"HPO_METRICS": "x"}},
        {},
        ("names that begin with HPO_ are reserved",),
    ),
    "a seed that goes nowhere": (
        {"seed": None},
        {"parameters": {"seed": {"low": 1, "high": 9}}, "starts": None},
        ("parameters.seed: no field of the script takes it",),
    ),
    "another field called steps": (
        {"steps": "every"},
        {"parameters": {"steps": {"low": 1, "high": 9}}, "starts": None},
        ("parameters.steps: the base has a field steps",),
    ),
    "too many steps": (
        {"steps": 3_000_000_000},
        {},
        ("script.steps: 3000000000. Valid: a whole number from 0",),
    ),
    "a unit": ({"metric": {"name": "PER", "unit": "%"}}, {}, ("unit: percent is meant",)),
    "a flag in one word": ({"flag": "--{name} {value}"}, {}, ("one word with a blank in it",)),
    "validation": ({}, {"validation": {"fraction": 0.1}}, ("has both script: and validation:",)),
}


@pytest.mark.parametrize(("section", "changes", "words"), WRONG.values(), ids=WRONG)
def test_a_mistake_is_one_line(
    tmp_path: Path, section: dict[str, Any], changes: dict[str, Any], words: tuple[str, ...]
) -> None:
    with pytest.raises(SpecError) as caught:
        load_spec(study_file(tmp_path, section, **changes))
    message = str(caught.value)
    for word in words:
        assert word in message
    assert "\n" not in message
    assert "study.yaml" in message or "train.py" in message
