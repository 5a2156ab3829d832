"""Studies from one line: what a person types, against a real Postgres; real workers, small data."""

import json
import os
import pickle
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from helpers.commands import Running, asked, report_of, start, until
from helpers.data import tiny_contents

from hpo.decoder.config import DecoderConfig
from hpo.store.database import Database
from hpo.study.study import Study


def test_launch_report_and_launch_again(
    database: Database, tiny_space: Path, tiny_data: Path, tmp_path: Path
) -> None:
    line = (
        "launch",
        "--study",
        tiny_space,
        "--data",
        tiny_data,
        "--workers",
        "2",
        "--device",
        "cpu",
    )
    done = asked(*line)
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
    assert best["per"] == min(
        [
            best["per"],
            *(start["per"] for start in report["starts"].values() if start["per"] is not None),
        ]
    )
    assert DecoderConfig().with_values(best["config"]).flat() == best["config"]
    assert set(report["starts"]) == {"baseline", "slow"}
    assert report["gpu_seconds"]["spent"] > 0

    again = asked(*line)
    assert "the budget of 4 trials is spent" in again.stdout
    assert report_of("tiny") == report

    more = asked(*line, "--trials", "5")
    assert (more.returncode, "Take --extend to continue it" in more.stderr) == (2, True)
    assert asked(*line, "--workers", "1", "--trials", "5", "--extend").returncode == 0
    assert sum(report_of("tiny")["trials"].values()) >= 5

    out = tmp_path / "best.yaml"
    assert asked("export", "--study", "tiny", "--out", out).stdout == f"wrote {out}\n"
    exported = yaml.safe_load(out.read_text())
    config = DecoderConfig().with_values(exported["base"])
    arguments = exported["args"]
    assert (arguments["lrStart"], arguments["whiteNoiseSD"], arguments["nUnits"]) == (
        config.optimizer.lr,
        config.augment.white_noise_sd,
        8,
    )
    assert (arguments["nDays"], arguments["nInputFeatures"], arguments["kernelLen"]) == (2, 3, 4)

    status = json.loads(asked("status", "--study", "tiny", "--json").stdout)
    assert [trial["number"] for trial in status["trials"]] == list(range(len(status["trials"])))
    assert "complete" in asked("status", "--study", "tiny").stdout


def test_the_bundled_recordings_and_their_profile_are_taken_without_data(
    database: Database,
) -> None:
    steps = (
        "--set",
        "steps=2",
        "--set",
        "model.units=4",
        "--trials",
        "1",
        "--workers",
        "1",
        "--device",
        "cpu",
    )
    done = asked("launch", "--study", "lr-only", *steps)
    assert done.returncode == 0, done.stderr
    assert "no --data given: the bundled spoken-digit recordings" in done.stdout
    assert "profile demo of the space: a small training, because no data are given" in done.stdout
    assert report_of("lr-only")["profile"] == "demo"
    assert (
        asked("launch", "--study", "lr-only", *steps, "--set", "model.units=5").returncode == 2
    )  # another digest


def test_a_worker_joins_by_hand(
    database: Database, tiny_space: Path, tiny_data: Path, tmp_path: Path
) -> None:
    study = asked(
        "launch", "--study", tiny_space, "--data", tiny_data, "--trials", "0", "--name", "by-hand"
    )
    assert "No trial is complete yet" in study.stdout
    asked("budget", "--study", "by-hand", "--trials", "2")
    assert (
        asked("worker", "--study", "by-hand", "--device", "cpu").stdout
        == "2 trials ended here; nothing is left to do\n"
    )
    other = tiny_contents()
    other["train"][0]["phonemes"][0][0] += 1
    path = tmp_path / "other"
    path.write_bytes(pickle.dumps(other))
    wrong = asked("worker", "--study", "by-hand", "--data", path)
    assert wrong.returncode == 2
    assert re.search(r"other: fingerprint \w+, but study by-hand was made on \w+", wrong.stderr)


def test_two_launches_at_once_share_the_budget(
    database: Database, tiny_space: Path, tiny_data: Path
) -> None:
    line = (
        "launch",
        "--study",
        tiny_space,
        "--data",
        tiny_data,
        "--workers",
        "1",
        "--device",
        "cpu",
    )
    other = start(*line)
    done = asked(*line)
    out, err = other.communicate(timeout=120)
    assert (done.returncode, done.stderr, other.returncode, err) == (0, "", 0, "")
    assert "Trials: " in done.stdout and "Trials: " in out
    records = Study.open(database, "tiny").records()
    assert len(records) == 4
    assert all(record.state in ("complete", "stopped") for record in records)


# ---- stopped and killed


@pytest.fixture
def running(database: Database, tiny_space: Path, tiny_data: Path) -> Iterator[Running]:
    found = Running(database, tiny_space, tiny_data)
    yield found
    found.end()


def test_ctrl_c_stops_at_the_next_step_the_same_line_goes_on_and_a_second_ctrl_c_ends_at_once(
    running: Running,
) -> None:
    running.process.send_signal(signal.SIGINT)
    out, _ = running.process.communicate(timeout=60)
    assert "run the same command to continue" in out
    assert running.process.returncode == 130
    before = running.records()
    assert [record.state for record in before] == ["waiting", "waiting"]
    checkpoints = Path(os.environ["HPO_HOME"]).glob("studies/tiny-*/trial-*/checkpoint-*.pt")
    assert {file.parent.name for file in checkpoints} == {"trial-0", "trial-1"}

    running.process = start(*running.line)
    until(
        lambda: all(
            new.state == "running" and new.step > old.step
            for new, old in zip(running.records(), before, strict=True)
        )
    )
    assert [(record.number, record.attempts) for record in running.records()] == [(0, 2), (1, 2)]
    logs = "".join(
        file.read_text()
        for file in Path(os.environ["HPO_HOME"]).glob("studies/tiny-*/logs/trial-*.log")
    )
    assert sorted(map(int, re.findall(r"resumes after step (\d+)", logs))) == sorted(
        record.step for record in before
    )

    workers = running.workers()
    assert len(workers) == 2
    for pid in workers:
        os.kill(pid, signal.SIGSTOP)  # they cannot react to the first one
    running.process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        running.process.communicate(timeout=1)
    running.process.send_signal(signal.SIGINT)
    running.process.communicate(timeout=20)
    assert not running.workers()


def test_a_killed_worker_is_started_again_and_a_killed_launcher_leaves_workers_that_finish(
    running: Running,
) -> None:
    victim = running.workers()[0]
    os.kill(victim, signal.SIGKILL)
    until(lambda: any(record.attempts == 2 for record in running.records()))
    assert [record.number for record in running.records()] == [0, 1]  # no trial was added
    workers = running.workers()
    assert victim not in workers

    running.process.kill()
    running.process.wait()
    steps = [record.step for record in running.records()]
    until(
        lambda: all(
            record.step > step for record, step in zip(running.records(), steps, strict=True)
        )
    )
    for pid in workers:
        os.kill(pid, signal.SIGTERM)
    until(lambda: all(record.state == "waiting" for record in running.records()))
