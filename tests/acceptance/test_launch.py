"""A study from one command line, with a real Postgres, real workers and small data."""

import json
import os
import pickle
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from helpers.commands import Running, launch, launch_arguments, report_of, run_hpo, start, until
from helpers.data import tiny_contents

from hpo.decoder.config import DecoderConfig
from hpo.process import start_time
from hpo.store.database import Database
from hpo.study.study import Study


@pytest.mark.slow
def test_launch_report_extend_and_export(
    database: Database, tiny_space: Path, tiny_data: Path, tmp_path: Path
) -> None:
    done = launch(tiny_space, tiny_data, "--workers", "2")
    assert done.returncode == 0, done.stderr
    for part in (
        "study      tiny",
        f"data       {tiny_data}",
        "2 workers on cpu",
        "trial 0 (baseline) complete PER",
        "4/4 trials done",
        "Best PER",
        "Next: hpo export",
    ):
        assert part in done.stdout
    report = report_of("tiny")
    assert report["trials"]["complete"] + report["trials"]["stopped"] == 4
    best = report["best"]
    assert best["partition"] == "validation"
    pers_of_starts = [start["per"] for start in report["starts"].values()]
    assert all(best["per"] <= per for per in pers_of_starts if per is not None)
    assert DecoderConfig().with_values(best["config"]).flat() == best["config"]
    assert set(report["starts"]) == {"baseline", "slow"}
    assert report["gpu_seconds"]["spent"] > 0

    again = launch(tiny_space, tiny_data, "--workers", "2")
    assert "the budget of 4 trials is spent" in again.stdout
    assert report_of("tiny") == report

    more = launch(tiny_space, tiny_data, "--workers", "2", "--trials", "5")
    assert more.returncode == 2
    assert "Take --extend to continue it" in more.stderr
    extended = launch(tiny_space, tiny_data, "--workers", "1", "--trials", "5", "--extend")
    assert extended.returncode == 0
    assert sum(report_of("tiny")["trials"].values()) >= 5

    out = tmp_path / "best.yaml"
    assert run_hpo("export", "--study", "tiny", "--out", out).stdout == f"wrote {out}\n"
    exported = yaml.safe_load(out.read_text())
    config = DecoderConfig().with_values(exported["base"])
    arguments = exported["args"]
    assert arguments["lrStart"] == config.optimizer.lr
    assert arguments["whiteNoiseSD"] == config.augment.white_noise_sd
    assert arguments["nUnits"] == 8
    assert arguments["nDays"] == 2
    assert arguments["nInputFeatures"] == 3
    assert arguments["kernelLen"] == 4

    status = json.loads(run_hpo("status", "--study", "tiny", "--json").stdout)
    assert [trial["number"] for trial in status["trials"]] == list(range(len(status["trials"])))
    assert "complete" in run_hpo("status", "--study", "tiny").stdout


@pytest.mark.slow
@pytest.mark.usefixtures("database")
def test_without_data_the_bundled_recordings_are_used_with_their_profile() -> None:
    small = ("--set", "steps=2", "--set", "model.units=4")
    line = ("launch", "--study", "lr-only", *small, "--trials", "1", "--workers", "1")
    done = run_hpo(*line, "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert "no --data given: the bundled spoken-digit recordings" in done.stdout
    assert "profile demo of the space: a small training, because no data are given" in done.stdout
    assert report_of("lr-only")["profile"] == "demo"
    with_another_digest = run_hpo(*line, "--device", "cpu", "--set", "model.units=5")
    assert with_another_digest.returncode == 2


@pytest.mark.slow
@pytest.mark.usefixtures("database")
def test_files_of_the_working_folder_shadow_nothing_in_workers(
    tiny_space: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python itself would import each of these rather than its own module or that of a library."""
    folder = tmp_path / "lab"
    folder.mkdir()
    for name in ("random", "click", "optuna", "queue", "torch", "hpo", "logging", "token"):
        (folder / f"{name}.py").write_text("raise SystemExit('the file of a lab')\n")
    monkeypatch.chdir(folder)
    done = launch(tiny_space, tiny_data, "--workers", "1", "--trials", "1")
    assert done.returncode == 0, done.stderr
    assert "1/1 trials done" in done.stdout


@pytest.mark.slow
@pytest.mark.usefixtures("database")
def test_a_worker_joins_by_hand(tiny_space: Path, tiny_data: Path, tmp_path: Path) -> None:
    data = ("--study", tiny_space, "--data", tiny_data)
    launched = run_hpo("launch", *data, "--trials", "0", "--name", "by-hand")
    assert "No trial is complete yet" in launched.stdout
    run_hpo("budget", "--study", "by-hand", "--trials", "2")
    done = run_hpo("worker", "--study", "by-hand", "--device", "cpu")
    assert done.stdout == "2 trials ended here; nothing is left to do\n"

    other = tiny_contents()
    other["train"][0]["phonemes"][0][0] += 1
    path = tmp_path / "other"
    path.write_bytes(pickle.dumps(other))
    with_other_data = run_hpo("worker", "--study", "by-hand", "--data", path)
    assert with_other_data.returncode == 2
    message = r"other: fingerprint \w+, but study by-hand was made on \w+"
    assert re.search(message, with_other_data.stderr)


@pytest.mark.slow
def test_two_launches_at_once_share_the_budget(
    database: Database, tiny_space: Path, tiny_data: Path
) -> None:
    other = start(*launch_arguments(tiny_space, tiny_data, "--workers", "1"))
    done = launch(tiny_space, tiny_data, "--workers", "1")
    out, err = other.communicate(timeout=120)
    assert done.returncode == 0
    assert done.stderr == ""
    assert other.returncode == 0
    assert err == ""
    assert "Trials: " in done.stdout
    assert "Trials: " in out
    records = Study.open(database, "tiny").records()
    assert len(records) == 4
    assert all(record.state in ("complete", "stopped") for record in records)


# ---- stopped and killed


@pytest.fixture
def running(database: Database, tiny_space: Path, tiny_data: Path) -> Iterator[Running]:
    launched = Running(database, tiny_space, tiny_data)
    yield launched
    launched.end()


def files_of_study(pattern: str) -> list[Path]:
    return list(Path(os.environ["HPO_HOME"]).glob(f"studies/tiny-*/{pattern}"))


def all_have_passed(running: Running, steps: list[int]) -> bool:
    """Whether every trial has gone beyond the step that it had."""
    records = zip(running.records(), steps, strict=True)
    return all(record.step > step for record, step in records)


def handles_sigterm(process: int) -> bool:
    """Whether the process has installed a handler, as a launch does before it starts workers."""
    status = Path(f"/proc/{process}/status").read_text()
    caught = re.search(r"SigCgt:\s*(\w+)", status)
    return caught is not None and bool(int(caught[1], 16) >> (signal.SIGTERM - 1) & 1)


@pytest.mark.slow
def test_ctrl_c_hands_the_trials_back_and_a_second_one_ends_the_workers(running: Running) -> None:
    """In between, the same command line resumes the trials."""
    running.process.send_signal(signal.SIGINT)
    out, _ = running.process.communicate(timeout=60)
    assert "run the same command to continue" in out
    assert running.process.returncode == 130
    before = running.records()
    assert [record.state for record in before] == ["waiting", "waiting"]
    checkpoints = files_of_study("trial-*/checkpoint-*.pt")
    assert {file.parent.name for file in checkpoints} == {"trial-0", "trial-1"}

    running.process = start(*running.line)
    steps = [record.step for record in before]

    def both_have_resumed() -> bool:
        states = {record.state for record in running.records()}
        return states == {"running"} and all_have_passed(running, steps)

    until(both_have_resumed)
    assert [(record.number, record.attempts) for record in running.records()] == [(0, 2), (1, 2)]
    logs = "".join(file.read_text() for file in files_of_study("logs/trial-*.log"))
    resumed_after = [int(step) for step in re.findall(r"resumes after step (\d+)", logs)]
    assert sorted(resumed_after) == sorted(steps)

    workers = running.workers()
    assert len(workers) == 2
    # Stopped workers cannot react to the first Ctrl-C.
    for pid in workers:
        os.kill(pid, signal.SIGSTOP)
    running.process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        running.process.communicate(timeout=1)
    running.process.send_signal(signal.SIGINT)
    running.process.communicate(timeout=20)
    assert not running.workers()


@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_workers_outlive_a_killed_launcher(
    running: Running,
) -> None:
    victim = running.workers()[0]
    os.kill(victim, signal.SIGKILL)
    until(lambda: any(record.attempts == 2 for record in running.records()))
    # No trial was added.
    assert [record.number for record in running.records()] == [0, 1]
    workers = running.workers()
    assert victim not in workers

    running.process.kill()
    running.process.wait()
    steps = [record.step for record in running.records()]
    until(lambda: all_have_passed(running, steps))
    before = [record.attempts for record in running.records()]

    again = start(*running.line)
    try:
        assert again.stdout is not None
        said = next(line for line in again.stdout if "already" in line)
        pids = ", ".join(str(pid) for pid in sorted(workers))
        assert f"2 workers of this study run here already ({pids}); no other is started" in said
        assert "Ctrl-C here stops them" in said
        until(lambda: handles_sigterm(again.pid))
        # The launch looks after them: it replaces one that is killed.
        os.kill(workers[0], signal.SIGKILL)
        until(lambda: len(files_of_study(f"logs/worker-*-{again.pid}-*.log")) == 1)
        until(lambda: sum(record.attempts for record in running.records()) == sum(before) + 1)
        assert [record.number for record in running.records()] == [0, 1]
        assert start_time(workers[1])
        steps = [record.step for record in running.records()]
        until(lambda: all_have_passed(running, steps))
        again.send_signal(signal.SIGINT)
        again.communicate(timeout=60)
        assert again.returncode == 130
    finally:
        again.kill()
        again.communicate()
        for pid in workers:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    assert [record.state for record in running.records()] == ["waiting", "waiting"]
    assert not start_time(workers[1])


@pytest.mark.slow
def test_a_second_launch_follows_the_workers_of_the_first_and_leaves_them_alone(
    running: Running,
) -> None:
    workers = running.workers()
    other = start(*running.line)
    try:
        assert other.stdout is not None
        said = next(line for line in other.stdout if "already" in line)
        assert "no other is started" in said
        assert "Ctrl-C" not in said
        until(lambda: handles_sigterm(other.pid))
        other.send_signal(signal.SIGINT)
        other.communicate(timeout=60)
        assert other.returncode == 130
    finally:
        other.kill()
        other.communicate()
    assert running.workers() == workers
    more = start(*running.line, "--workers", "3")
    try:
        assert more.stdout is not None
        said = next(line for line in more.stdout if "already" in line)
        assert "; 1 more to start" in said
        until(lambda: len(files_of_study(f"logs/worker-*-{more.pid}-*.log")) == 1)
    finally:
        more.terminate()
        more.communicate(timeout=60)
