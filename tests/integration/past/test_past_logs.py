"""Past runs of training scripts: the Brain-to-Text '25 trainer's logs, and any log as a study's
`curve` reads it.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.commands import one_line, run_hpo
from helpers.paths import STAND_INS

from hpo.past.labels import LONGEST_NAME
from hpo.space.load import load_spec
from hpo.store.database import Database
from hpo.study.study import Study

STAND_IN = STAND_INS / "brain_to_text_25"
ARGS: dict[str, Any] = {
    **yaml.safe_load((STAND_IN / "rnn_args.yaml").read_text()),
    "num_training_batches": 100,
    "batches_per_val_step": 20,
    "lr_min": 1e-4,
}
PERS = (1.2155, 0.62, 0.41, 0.30, 0.25, 0.2412)
FALLING = (0.9, 0.6, 0.4, 0.3, 0.25, 0.24)
PATTERN = (
    r"Val batch (?P<step>\d+): PER \(avg\): (?P<value>[\d.]+) "
    r"CTC Loss \(avg\): (?P<validation_loss>[\d.]+)"
)
Files = dict[str, Any]
MONDAY = datetime(2025, 1, 6, 9, 0, 0, 123000)


def stamped(second: float, text: str, since: datetime = MONDAY) -> str:
    moment = since + timedelta(seconds=second)
    return f"{moment:%Y-%m-%d %H:%M:%S},{moment.microsecond // 1000:03d}: {text}\n"


def steps_of(count: int, every: int, last: int) -> list[int]:
    return [*range(0, every * (count - 1), every), last]


def log(
    pers: Sequence[float] = PERS,
    every: int = 20,
    last: int = 99,
    since: datetime = MONDAY,
    first: int = 0,
) -> str:
    """A training_log in that trainer's form, 1 s a batch and 4 s an evaluation."""
    text = stamped(-9, "Using device: cuda:0", since)
    text += stamped(-8, "Model has 44,315,177 parameters", since)
    for number, step in enumerate(steps_of(len(pers), every, last)):
        if step < first:
            continue
        second = step + 4 * number
        for batch in range(max(first, step - every // 2), step + 1, 5):
            line = f"Train batch {batch}: loss: {100 - batch:.2f} grad norm: 7.41 time: 0.113"
            text += stamped(second - step + batch, line, since)
        text += stamped(second + 4, f"Running test after training batch: {step}", since)
        per = pers[number]
        line = f"Val batch {step}: PER (avg): {per:.4f} CTC Loss (avg): {40 * per:.4f} time: 4.000"
        text += stamped(second + 4, line, since)
        for session in ("t15.2023.08.11", "t15.2025.03.14"):
            text += stamped(second + 4, f"{session} val PER: {per:.4f}", since)
        text += stamped(second + 4, "Checkpointing model", since)
    return text


def write(folder: Path, files: Files) -> Path:
    """name -> text, bytes, or values for YAML."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif isinstance(content, str):
            path.write_text(content)
        else:
            path.write_text(yaml.safe_dump(content))
    return folder


def run_files(text: str | bytes | None = None, args: Mapping[str, Any] | None = ARGS) -> Files:
    files: Files = {"training_log": log() if text is None else text}
    return files if args is None else files | {"checkpoint/args.yaml": dict(args)}


def imported(*arguments: str | Path) -> dict[str, Any]:
    done = run_hpo("import", *arguments, "--json")
    assert done.returncode == 0, done.stderr
    printed: dict[str, Any] = json.loads(done.stdout)
    return printed


def run_of(*arguments: str | Path) -> dict[str, Any]:
    (run,) = imported(*arguments)["runs"]
    assert isinstance(run, dict)
    return run


# ---- the Brain-to-Text '25 trainer, without options


def test_a_run_of_the_stand_in_is_recognised(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "baseline"
    args = ARGS | {"output_dir": str(folder), "stand_in_seconds": 0.0, "num_training_batches": 40}
    write(tmp_path, {"rnn_args.yaml": args})
    folder.parent.mkdir()
    script = [sys.executable, str(STAND_IN / "train_model.py")]
    subprocess.run(script, cwd=tmp_path, check=True, capture_output=True)
    write(folder, {"checkpoint/args.yaml": args})
    run = run_of(tmp_path / "runs")
    assert run["name"] == "baseline"
    assert (run["evaluations"], run["last_step"], run["steps"]) == (3, 39, 40)
    assert run["split"] == "validation"
    assert run["config"]["model.rnn_dropout"] == 0.4
    assert run["config"]["lr_max"] == 0.005
    assert run["doubts"] == []
    assert run["gpu_seconds"] is not None


def test_the_curve_of_a_run_is_read(tmp_path: Path) -> None:
    write(tmp_path / "a", run_files())
    run = run_of(tmp_path)
    assert (run["evaluations"], run["last_step"], run["steps"]) == (6, 99, 100)
    assert (run["best_per"], run["last_per"]) == (0.2412, 0.2412)
    # From the first evaluation to the last one.
    assert run["gpu_seconds"] == pytest.approx(99 + 5 * 4)
    assert run["doubts"] == []


NAN = log((1.2, 0.6, 0.4, float("nan"), float("nan"), float("nan")))
RESUMED = log(PERS[:5], last=80) + log(PERS, first=60, since=MONDAY + timedelta(days=1))
TWICE = log((1.1, 0.7, 0.5), last=40) + log(since=MONDAY + timedelta(days=2))
TORN = log() + stamped(400, "Val batch 100: PER (avg): 0.3x12 CTC Loss (avg): 9.6 time: 4.0")


FALLEN_BACK = log() + stamped(300, "Train batch 0: loss: 99.1 grad norm: 7.4 time: 0.1")
ABOVE_1 = log((1.2, 0.6, 1.3, 0.3, 0.25, 0.24))
LEARNED_NOTHING = log((1.2, 1.1, 1.05, 1.02, 1.01, 1.001))
PERCENT = log([100 * per for per in FALLING])
WITH_BINARY = log().encode() + "\N{SNOWMAN} \x1b[31m\n".encode() + b"\xff\xfe\n"
WITHOUT_TIMES = "".join(line[25:] + "\n" for line in log().splitlines())
BACK_IN_TIME = log().replace("2025-01-06 09:00:52", "2025-01-06 08:00:52")
NAN_VALIDATION_LOSS = log().replace("0.4100 CTC Loss (avg): 16.4000", "0.4100 CTC Loss (avg): nan")
NAN_BEFORE_OTHERS = log().replace("batch 45: loss: 55.00", "batch 45: loss: nan")
NAN_AT_AN_EVALUATION = log().replace("batch 55: loss: 45.00", "batch 55: loss: nan")
SAVED_ARGS = "checkpoint/args.yaml"
# Logs beside the usual args: text, warnings, evaluations, the last PER.
LOGS: list[tuple[str | bytes, list[str], int, float | None]] = [
    (
        TWICE,
        [
            "two runs in one file: the step falls back from 40 to 0. Only the last start is "
            "kept, without the 3"
        ],
        6,
        0.2412,
    ),
    (
        RESUMED,
        ["the step goes backwards from 80 to 60: the 2 evaluations from there on are replaced"],
        6,
        0.2412,
    ),
    (
        log() + log((1.1,), last=0),
        ["two runs in one file", "ended at step 0 of 100 planned"],
        1,
        1.1,
    ),
    (FALLEN_BACK, ["the step falls back from 99 to 0 after the"], 6, 0.2412),
    (log(PERS[:4], last=60), ["ended at step 60 of 100 planned"], 4, 0.30),
    (log(PERS[:5], last=80), ["ended at step 80 of 100 planned"], 5, 0.25),
    (NAN, ["PER or loss is not finite at step 60, 80, 99"], 6, None),
    (ABOVE_1, ["PER above 1 at step 40, highest 1.3: insertions"], 6, 0.24),
    (LEARNED_NOTHING, ["no PER at or below 1: it has learned nothing"], 6, 1.001),
    (PERCENT, ["no PER at or below 1, the lowest is 24: percent?"], 6, 24.0),
    (TORN, ["1 line is left out, the first because", "0.3x12 is not a number"], 6, 0.2412),
    (log().replace("\n", "\r\n"), [], 6, 0.2412),
    (WITH_BINARY, [], 6, 0.2412),
    (WITHOUT_TIMES, ["times are not recorded"], 6, 0.2412),
    (BACK_IN_TIME, ["times go backwards before step 40"], 6, 0.2412),
    (NAN_VALIDATION_LOSS, ["PER or loss is not finite at step 40"], 6, 0.2412),
    (NAN_BEFORE_OTHERS, [], 6, 0.2412),
    (NAN_AT_AN_EVALUATION, ["training loss is not finite at step 60"], 6, 0.2412),
]
# The usual log in other folders: files, warnings.
FOLDERS: list[tuple[Files, list[str]]] = [
    (
        run_files(args=None),
        ["its configuration is not recorded: no args.yaml", "its planned length is not recorded"],
    ),
    (
        run_files() | {SAVED_ARGS: "lr: [1, "},
        ["its configuration cannot be read", "not valid YAML"],
    ),
    (
        run_files() | {SAVED_ARGS: "num_training_batches: many\n"},
        ["num_training_batches = 'many' is not a number of steps"],
    ),
    ({"checkpoint/training_log": log(), SAVED_ARGS: ARGS}, []),
    ({"training_log": log(), "args.yaml": ARGS}, []),
]
RUNS = [
    *((run_files(text), warnings, count, last) for text, warnings, count, last in LOGS),
    *((files, warnings, 6, 0.2412) for files, warnings in FOLDERS),
]


@pytest.mark.parametrize(("files", "warnings", "evaluations", "last"), RUNS)
def test_training_logs_of_every_kind_are_read_with_warnings(
    tmp_path: Path, files: Files, warnings: list[str], evaluations: int, last: float | None
) -> None:
    run = run_of(write(tmp_path / "a", files).parent)
    assert warnings or not run["doubts"], run["doubts"]
    for warning in warnings:
        assert any(warning in text for text in run["doubts"]), run["doubts"]
    assert (run["name"], run["evaluations"], run["last_per"]) == ("a", evaluations, last)


def test_the_time_between_two_starts_does_not_count(tmp_path: Path) -> None:
    write(tmp_path / "twice", run_files(TWICE))
    write(tmp_path / "resumed", run_files(RESUMED))
    seconds = {run["name"]: run["gpu_seconds"] for run in imported(tmp_path)["runs"]}
    assert seconds["twice"] == pytest.approx(99 + 5 * 4)
    # Without the 24 hours between the starts, and the 24 s from the last evaluation before the
    # second start to its first one.
    assert seconds["resumed"] == pytest.approx(99 + 5 * 4 - 24)


def test_runs_are_found_wherever_they_lie(tmp_path: Path, shared_data: Path) -> None:
    write(tmp_path / "one" / "run", run_files())
    write(tmp_path / "two" / "attempt-1" / "run", run_files())
    write(tmp_path / "notes", {"todo.txt": "nothing"})
    (tmp_path / "of_the_lab").symlink_to(shared_data / "lab_runs" / "run16_3")
    printed = imported(tmp_path)
    names = [run["name"] for run in printed["runs"]]
    assert names == ["of_the_lab", "one/run", "two/attempt-1/run"]
    assert list(printed["refused"]) == ["notes"]
    assert "Valid: a folder with args, metrics.jsonl" in printed["refused"]["notes"]
    for path in (tmp_path / "one" / "run", tmp_path / "one" / "run" / "training_log"):
        assert run_of(path)["name"] == "run"
        assert run_of(path)["steps"] == 100


def test_output_files_of_slurm_jobs_are_runs(tmp_path: Path) -> None:
    for number in (11, 12):
        write(tmp_path, {f"job_{number}.out": log(), f"job_{number}.yaml": ARGS | {"seed": number}})
    write(tmp_path, {"job_13.out": "srun: error: out of memory\n"})
    runs = imported(tmp_path)["runs"]
    assert [run["name"] for run in runs] == ["job_11.out", "job_12.out"]
    assert [run["config"]["seed"] for run in runs] == [11, 12]
    assert run_of(tmp_path / "job_11.out")["evaluations"] == 6


def test_a_run_of_another_trainer_joins_no_study(
    database: Database, tmp_path: Path, tiny_space: Path
) -> None:
    write(tmp_path / "runs" / "a", run_files())
    data = {"path": None, "fingerprint": "f"}
    study = Study.create_or_open(database, "s", load_spec(tiny_space), data)
    study.engine.dispose()
    run = run_of(tmp_path / "runs", "--study", "s", "--same-data")
    assert run["trial"] is None
    assert run["why_not"].startswith("a run of the Brain-to-Text '25 trainer")


def test_training_logs_are_backtested(tmp_path: Path) -> None:
    rising = (1.2, 0.4, 0.3, 0.42, 0.5, 0.6)
    for name, pers in {"first": PERS, "second": FALLING, "risen": rising}.items():
        write(tmp_path / name, run_files(log(pers)))
    done = run_hpo("backtest", tmp_path, "--json")
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    assert printed["best_run"] == "second"
    stops = {run["run"]: run["stopped_at"] for run in printed["rules"][0]["runs"]}
    assert stops == {"first": None, "second": None, "risen": 99}
    facts = {run["run"]: run for run in printed["runs"]}
    assert facts["risen"]["ended_badly"] == "PER rose from 30.0 to 60.0 %"
    assert {run["remark"] for run in printed["runs"]} == {""}
    assert done.stderr == ""


# ---- curves as a study of the script, or its file, describes them


SECTION: dict[str, Any] = {
    "code": str(STAND_IN),
    "command": [sys.executable, "{code}/train_model.py"],
    "config": {"from": "{code}/rnn_args.yaml", "file": "rnn_args.yaml"},
    "fixed": {"output_dir": "run", "checkpoint_dir": "run/checkpoint", "gpu_number": "0"},
    "curve": {"file": "run/training_log", "pattern": PATTERN},
    "metric": {"name": "PER", "unit": "percent", "direction": "minimize"},
    "steps": "num_training_batches",
    "seed": "seed",
}
PARAMETERS: dict[str, Any] = {
    "lr_max": {"low": 1e-3, "high": 1e-2, "log": True, "writes": ["lr_max", "lr_max_day"]},
    "model.rnn_dropout": {"low": 0.1, "high": 0.6},
}


def study_file(folder: Path, **changes: Any) -> Path:
    path = folder / "t15.yaml"
    tree = {
        "script": {key: value for key, value in (SECTION | changes).items() if value is not None},
        "base": {"steps": 100},
        "parameters": PARAMETERS,
        "starts": {"published": {}},
        "budget": {"trials": 3},
    }
    path.write_text(yaml.safe_dump(tree))
    return path


@pytest.fixture
def study(database: Database, tmp_path: Path) -> Study:
    spec = load_spec(study_file(tmp_path))
    data = {"path": None, "fingerprint": "not recorded"}
    return Study.create_or_open(database, "t15", spec, data)


BASE = yaml.safe_load((STAND_IN / "rnn_args.yaml").read_text()) | {
    "num_training_batches": 100,
    "lr_min": 1e-4,
}
MODEL = BASE["model"]


def attempt(args: Mapping[str, Any] | None = None, text: str | None = None) -> Files:
    """The files that an attempt of ours leaves, or a person who starts the script in a folder."""
    files: Files = {"run/training_log": log() if text is None else text}
    if args is not None:
        files["rnn_args.yaml"] = dict(args)
    return files


# Run -> its files, and why it cannot become a trial of the study.
REASONS: dict[str, tuple[Files, str]] = {
    "outside": (
        attempt(BASE | {"lr_max": 0.5, "lr_max_day": 0.5}),
        "lr_max = 0.5 is outside the space",
    ),
    "two_rates": (
        attempt(BASE | {"lr_max_day": 0.001}),
        "lr_max writes lr_max and lr_max_day, which differ in the run: 0.005 and 0.001",
    ),
    "units": (
        attempt(BASE | {"model": MODEL | {"n_units": 512}}),
        "model.n_units = 512, the study has 768",
    ),
    "decay": (
        attempt(BASE | {"lr_decay_steps": 50}),
        "lr_decay_steps = 50, the study has '${num_training_batches}'",
    ),
    "kind": (
        attempt(BASE | {"use_amp": "sometimes"}),
        "not of the study: use_amp: 'sometimes'",
    ),
    "long": (attempt(BASE | {"num_training_batches": 400}), "steps = 400, the study has 100"),
    "short": (attempt(BASE, log(PERS[:3], last=40)), "ended at step 40 of 100"),
    "bare": (
        attempt(),
        "lr_max is searched but not known of the run; give it with --set lr_max=VALUE",
    ),
    "percent": (attempt(BASE, PERCENT), "percent?"),
}


def test_runs_of_a_script_become_trials_of_its_study(study: Study, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    write(runs / "good", attempt(BASE | {"lr_max": 0.002, "lr_max_day": 0.002, "output_dir": "x"}))
    saved = BASE | {"seed": 77, "lr_decay_steps": 100}
    write(runs / "saved", {"run/training_log": log(), "run/checkpoint/args.yaml": saved})
    less_dropout = BASE | {"model": MODEL | {"rnn_dropout": 0.2}}
    write(runs / "risen", attempt(less_dropout, log((1.2, 0.4, 0.5, 0.6, 0.7, 0.8))))
    for name, (files, _) in REASONS.items():
        write(runs / name, files)

    line = (runs, "--study", "t15", "--same-data")
    printed = {run["name"]: run for run in imported(*line)["runs"]}
    for name, (_, reason) in REASONS.items():
        assert reason in printed[name]["why_not"], (name, printed[name])
    past = {record.imported: record for record in study.imported()}
    assert set(past) == {"good", "saved", "risen"}, printed
    assert (past["good"].state, past["good"].value) == ("complete", 0.2412)
    assert past["good"].params == {"lr_max": 0.002, "model.rnn_dropout": 0.4}
    assert past["risen"].state == "stopped"
    points = study.curves(study.imported())[past["good"].number]
    assert [point.step for point in points] == [0, 20, 40, 60, 80, 99]
    assert points[1].validation_loss == pytest.approx(40 * 0.62)

    again = imported(*line)["runs"]
    assert len(again) == len(printed)
    assert len(study.imported()) == 3


def test_set_states_what_a_run_does_not_record(study: Study, tmp_path: Path) -> None:
    bare = {name: value for name, value in BASE.items() if not name.startswith("lr_max")}
    write(tmp_path / "runs" / "a", attempt(bare))
    line = (tmp_path / "runs", "--study", "t15", "--same-data")
    assert "give it with --set lr_max=VALUE" in run_of(*line)["why_not"]
    run = run_of(*line, "--set", "lr_max=0.004")
    assert run["why_not"] == ""
    assert "lr_max = 0.004 is stated by hand" in run["doubts"]
    one_line(run_hpo("import", *line, "--set", "lr_maxx=1"), 2, "Did you mean lr_max?")


def test_with_take_best_the_best_of_a_curve_is_the_trials_value(
    database: Database, tmp_path: Path
) -> None:
    spec = load_spec(study_file(tmp_path, curve=SECTION["curve"] | {"take": "best"}))
    data = {"path": None, "fingerprint": "not recorded"}
    study = Study.create_or_open(database, "t15", spec, data)
    write(tmp_path / "runs" / "a", attempt(BASE, log((1.2, 0.5, 0.3, 0.2, 0.21, 0.22))))
    assert run_of(tmp_path / "runs", "--study", "t15", "--same-data")["trial"] == 1
    assert [record.value for record in study.imported()] == [0.2]


def test_without_same_data_nothing_is_added(study: Study, tmp_path: Path) -> None:
    write(tmp_path / "runs" / "a", attempt(BASE))
    run = run_of(tmp_path / "runs", "--study", "t15")
    assert "--same-data states that they are the study's" in run["why_not"]
    assert not study.imported()


@pytest.mark.slow
def test_a_configuration_that_hpo_has_written_is_read(study: Study, tmp_path: Path) -> None:
    tree = BASE | {"lr_max": 0.003, "lr_max_day": 0.003, "an_extra": 1}
    files = {"run/training_log": log(), "hpo-config.json": json.dumps(tree)}
    write(tmp_path / "runs" / "0" / "attempt-1", files)
    into_study = (tmp_path / "runs", "--study", "t15", "--same-data")
    run = run_of(*into_study)
    assert "unknown settings: an_extra" in run["why_not"]
    assert not study.imported()
    run = run_of(*into_study, "--accept-unknown", "an_extra")
    assert (run["name"], run["why_not"]) == ("0/attempt-1", "")
    assert run["config"]["lr_max"] == 0.003
    warning = "taken as without effect, as stated by hand: an_extra"
    assert warning in run["doubts"]


ACCURACY = {"name": "accuracy", "unit": "percent", "direction": "maximize"}
CSV_CURVE = {"file": "out/metrics.csv", "names": {"step": "epoch", "value": "val/acc"}}
CSV_ROWS = "".join(f"{n},{9 - n}.5,0.{n + 1}\n" for n in range(6))
CSV = "epoch,train/loss,val/acc\n" + CSV_ROWS
TSV = (CSV + CSV_ROWS).replace(",", "\t").replace("epoch", "step")
JSON_LINES = "".join(
    f'{{"step": {20 * n}, "value": {per}, "lr": 0.1}}\n' for n, per in enumerate(FALLING)
)
PARTS = {"file": "metrics.jsonl", "expression": "mean(per_0, per_1)"}
STATE = json.dumps({"log_history": [{"step": n, "eval_per": 1 / n} for n in range(1, 6)]})
STATE_CURVE = {
    "file": "out/checkpoint-*/trainer_state.json",
    "rows": "log_history",
    "names": {"value": "eval_per"},
}
OUTPUT = {"file": "log", "pattern": r"step (?P<step>\d+) per (?P<value>\S+)"}
PRINTED = "".join(f"step {20 * n} per {per}\n" for n, per in enumerate(FALLING))


@pytest.mark.parametrize(
    ("curve", "files", "evaluations", "last"),
    [
        ({"file": "run/training_log", "pattern": PATTERN}, {"x/y/training_log": log()}, 6, 0.2412),
        (CSV_CURVE, {"a/out/metrics.csv": CSV}, 6, 0.6),
        (CSV_CURVE, {"a/metrics.csv": CSV + CSV}, 6, 0.6),
        (CSV_CURVE, {"a/metrics.csv": CSV + CSV_ROWS}, 6, 0.6),
        (CSV_CURVE, {"a/metrics.csv": CSV + "6,1,0.7,5,5\n7,1.0,0.75\n"}, 7, 0.75),
        ({"file": "m.tsv", "names": {"value": "val/acc"}}, {"a/m.tsv": TSV}, 6, 0.6),
        ({"file": "metrics.jsonl"}, {"a/metrics.jsonl": JSON_LINES}, 6, 0.24),
        ({"file": "metrics.jsonl"}, {"a/metrics.jsonl": JSON_LINES + '{"step": 120, "va'}, 6, 0.24),
        ({"file": "metrics.jsonl"}, {"a/metrics.jsonl": JSON_LINES + JSON_LINES}, 6, 0.24),
        (PARTS, {"a/metrics.jsonl": '{"step": 1, "per_0": 0.5, "per_1": 0.25}\n'}, 1, 0.375),
        (STATE_CURVE, {"a/out/checkpoint-5/trainer_state.json": STATE}, 5, 0.2),
        (OUTPUT, {"a/train.out": PRINTED, "a/rnn_args.yaml": ARGS}, 6, 0.24),
        (
            OUTPUT,
            {"a/stdout": PRINTED, "a/readme.md": "no numbers", "a/weights": b"\0\1\2"},
            6,
            0.24,
        ),
        (OUTPUT, {"a/b/c/x.log": PRINTED.replace("0.3\n", "nan\n")}, 6, 0.24),
    ],
)
def test_a_study_file_describes_any_curve(
    tmp_path: Path, curve: dict[str, Any], files: Files, evaluations: int, last: float
) -> None:
    """The code of the script need not be on this machine."""
    metric = SECTION["metric"]
    if curve.get("names", {}).get("value") == "val/acc":
        metric = ACCURACY
    path = study_file(tmp_path, curve=curve, metric=metric, code="/not/here")
    write(tmp_path / "runs", files)
    run = run_of(tmp_path / "runs", "--curve", path)
    assert (run["evaluations"], run["last_value"]) == (evaluations, last), run
    assert run[f"best_{metric['name'].lower()}"] == last


def test_what_systems_and_editors_leave_is_no_run_of_a_script(tmp_path: Path) -> None:
    path = study_file(tmp_path, curve=STATE_CURVE | {"file": "*.json"})
    runs = write(tmp_path / "runs", {"a/m.json": STATE, "c/._m.json": STATE, "c/.n.json": STATE})
    for name in ("__MACOSX/a", ".old", "a.bak", "b~"):
        write(runs, {f"{name}/m.json": STATE})
    assert run_of(runs, "--curve", path)["name"] == "a"
    # Only where the study says that the file is hidden.
    hidden = study_file(tmp_path, curve=STATE_CURVE | {"file": ".n.json"})
    assert run_of(runs, "--curve", hidden)["name"] == "c"


def test_a_study_file_names_the_fields_of_steps_and_seed(tmp_path: Path) -> None:
    path = study_file(tmp_path, seed=["seed", "data_seed"])
    write(tmp_path / "runs" / "a", attempt(BASE | {"seed": 7, "data_seed": 7}))
    write(tmp_path / "runs" / "b", attempt(BASE | {"seed": 7, "data_seed": 8}))
    one, two = imported(tmp_path / "runs", "--curve", path)["runs"]
    assert (one["config"]["seed"], one["config"]["steps"]) == (7, 100)
    assert "data_seed" not in one["config"]
    assert "seed" not in two["config"]
    differing = "seed writes seed and data_seed, which differ in the run: 7 and 8"
    assert differing in two["doubts"]


def test_a_backtest_has_the_metric_of_the_study_file(tmp_path: Path) -> None:
    path = study_file(tmp_path, curve=CSV_CURVE, metric=ACCURACY)
    write(tmp_path / "runs", {"good/out/metrics.csv": CSV})
    fallen = "epoch,val/acc\n0,0.4\n1,0.8\n2,0.5\n3,0.4\n4,0.3\n"
    write(tmp_path / "runs", {"fallen/out/metrics.csv": fallen})
    done = run_hpo("backtest", tmp_path / "runs", "--curve", path, "--json")
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    assert printed["best_run"] == "fallen"
    facts = {run["run"]: run for run in printed["runs"]}
    assert facts["fallen"]["ended_badly"] == "accuracy fell from 80.0 to 30.0 %"
    assert facts["fallen"]["best_accuracy"] == 0.8
    assert printed["rules"][0]["healthy_stopped"] == []
    assert printed["rules"][0]["bad_missed"] == []
    assert "best accuracy" in run_hpo("backtest", tmp_path / "runs", "--curve", path).stdout


def test_a_backtest_with_the_rule_of_a_study(study: Study, tmp_path: Path) -> None:
    write(tmp_path / "runs" / "a", attempt(BASE))
    write(tmp_path / "runs" / "b", attempt(BASE, log(FALLING)))
    done = run_hpo("backtest", tmp_path / "runs", "--study", "t15", "--rule", "own-past", "--json")
    assert done.returncode == 0, done.stderr
    assert [run["run"] for run in json.loads(done.stdout)["runs"]] == ["a", "b"]
    assert "backtest" not in study.results(), "these are not its trials"


@pytest.mark.slow
def test_a_log_may_be_large(tmp_path: Path) -> None:
    """4 MB of other lines around the evaluations: lines are read in pieces, which cut some."""
    noise = "".join(f"progress {n} of 100000 [{'=' * 40}]\r\n" for n in range(10_000))
    text = log((0.9, 0.8), last=20) + noise * 3 + log() + noise * 3
    write(tmp_path / "a", run_files(text))
    run = run_of(tmp_path)
    assert (run["evaluations"], run["last_per"]) == (6, 0.2412)
    assert any("two runs in one file" in warning for warning in run["doubts"])


# ---- mistakes


def not_read(*arguments: str | Path) -> str:
    """The line with which `hpo import` refuses these arguments."""
    done = run_hpo("import", *arguments)
    one_line(done, 2)
    return done.stderr


def val_batches(*numbers: int) -> bytes:
    lines = (f"Val batch {number}: PER (avg): 0.5 CTC Loss (avg): 1.0\n" for number in numbers)
    return "".join(lines).encode()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (b"", ("training_log: is empty",)),
        (b"\x93NUMPY\0\0\1" + b"\0" * 100, ("training_log: is binary",)),
        (
            b"Using device: cuda:0\nTraceback\nRuntimeError: no CUDA \x1b[31m\n",
            (
                "none of 3 lines",
                "matches the pattern",
                "It ends with: Using device: cuda:0 | Traceback | RuntimeError: no CUDA ?[31m",
            ),
        ),
        (b"Train batch 0: loss: 9.1 grad norm: 1\n", ("no value", "It ends with: Train batch 0")),
        (
            val_batches(*range(5)) * 40,
            ("steps go backwards more than 20 times, at last from 4 to 0",),
        ),
        (val_batches(*range(6000)), ("more than 5,000 evaluations",)),
        (
            b"Val batch 1: PER (avg): x CTC Loss (avg): 1.0\n" * 200,
            ("reading starts again more than 100 times", "x is not a number"),
        ),
    ],
)
def test_a_log_that_is_no_curve_is_one_line(
    tmp_path: Path, text: bytes, parts: tuple[str, ...]
) -> None:
    write(tmp_path / "a", {"training_log": text})
    for part in parts:
        assert part in not_read(tmp_path)
    write(tmp_path / "b", run_files())
    printed = imported(tmp_path)
    assert [run["name"] for run in printed["runs"]] == ["b"]
    assert parts[0] in printed["refused"]["a"]
    done = run_hpo("backtest", tmp_path, "--json")
    assert parts[0] in json.loads(done.stdout)["not_replayable"]["a"]


def test_files_that_cannot_be_read_are_one_line(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", {"x": "y"})
    os.mkfifo(folder / "training_log")
    assert "is not a regular file" in not_read(tmp_path)
    (folder / "training_log").unlink()
    with (folder / "training_log").open("wb") as file:
        file.write(b"Using device\n" * 10_000)
        file.truncate(200_000_001)
    assert "is larger than 200 MB" in not_read(tmp_path)
    (folder / "training_log").unlink()
    (folder / "training_log").symlink_to(tmp_path / "gone")
    assert "training_log" in not_read(tmp_path)
    (folder / "training_log").unlink()
    error = not_read(tmp_path)
    assert "not a run: it contains x. Valid: a folder with args, metrics.jsonl" in error
    if os.geteuid():
        write(folder, run_files())
        (folder / "training_log").chmod(0)
        assert "Permission denied" in not_read(tmp_path)


def test_where_no_run_is_found_the_message_names_the_files_sought(tmp_path: Path) -> None:
    runs = write(tmp_path / "runs", {"a/notes.md": "nothing"})
    path = study_file(tmp_path)
    error = not_read(runs, "--curve", path)
    assert "no run found: looked for run/training_log, or training_log in any folder" in error
    path = study_file(tmp_path, curve=OUTPUT)
    error = not_read(runs, "--curve", path)
    assert "looked for *.log, *.out, *.txt, or a folder with a single text" in error
    write(runs, {"a/train.out": "nothing\n"})
    error = not_read(runs, "--curve", path)
    assert "none of 1 line in log matches the pattern" in error
    assert "It ends with: nothing" in error
    assert "no such file or folder" in not_read(tmp_path / "gone", "--curve", path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (("--curve", "{here}/gone.yaml"), ("gone.yaml: no such file",)),
        (("--curve", "{here}/plain.yaml"), ("no script: section",)),
        (("--curve", "{here}/broken.yaml"), ("broken.yaml: is not valid YAML",)),
        (("--curve", "{here}/group.yaml"), ("group.yaml: script.curve.pattern: no group `value`",)),
        (("--curve", "{here}/short.yaml"), ("short.yaml: script: ", "is missing")),
        (("--curve", "{here}/t15.yaml", "--study", "t15"), ("--curve and --study",)),
        (("--curve", "{here}/t15.yaml", "--map", "a=step"), ("--map is for tables",)),
        (("--study", "t15", "--map", "a=step"), ("--map is for tables",)),
    ],
)
def test_mistakes_are_one_line(
    study: Study, tmp_path: Path, options: tuple[str, ...], parts: tuple[str, ...]
) -> None:
    text = study_file(tmp_path).read_text()
    files = {
        "plain.yaml": {"parameters": {}},
        "broken.yaml": "a: [",
        "short.yaml": {"script": {"curve": SECTION["curve"]}},
        "group.yaml": text.replace("?P<value>", "?P<loss>"),
        "runs/a/training_log": log(),
    }
    write(tmp_path, files)
    typed = [option.format(here=tmp_path) for option in options]
    for command in ("import", "backtest"):
        one_line(run_hpo(command, tmp_path / "runs", *typed), 2, *parts)


# ---- names


def test_long_names_become_numbers_with_a_legend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"baseline_rnn_2025-01-0{n}_seed12_lr0.00{n}_dropout0.4" for n in range(1, 4)]
    for number, name in enumerate(names):
        write(tmp_path / "runs" / name, run_files(log([per + 0.01 * number for per in PERS])))
    monkeypatch.setenv("COLUMNS", "100")
    shown = run_hpo("import", tmp_path / "runs").stdout
    table, _, below = shown.partition("\nRuns\n")
    assert [line.split()[0] for line in table.splitlines()[1:4]] == ["#1", "#2", "#3"]
    for number, name in enumerate(names, 1):
        assert name not in table
        assert f"#{number}  {name}" in below
    picture = tmp_path / "stops.svg"
    done = run_hpo("backtest", tmp_path / "runs", "--plot", picture, "--sweep")
    assert done.returncode == 0, done.stderr
    assert all(len(line) <= 100 for line in done.stdout.splitlines())
    assert "#1 *" in done.stdout
    assert f"#2  {names[1]}" in done.stdout
    svg = picture.read_text()
    # In each panel, and once in the legend.
    assert svg.count("<!-- #2 -->") == 3
    assert svg.count(f"<!-- #2  {names[1]} -->") == 1


def test_short_names_stay(tmp_path: Path) -> None:
    longest = "b" * LONGEST_NAME
    for name in ("a", longest):
        write(tmp_path / "runs" / name, run_files())
    shown = run_hpo("backtest", tmp_path / "runs").stdout
    assert "#1" not in shown
    assert longest in shown
