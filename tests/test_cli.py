"""What a person types, as processes of their own, against a real Postgres; real workers, small data."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import TINY, tiny_contents
from sqlalchemy import make_url

from hpo.decoder.config import DecoderConfig
from hpo.search.database import Database
from hpo.search.study import Study
from hpo.search.trial import Record

Done = subprocess.CompletedProcess[str]
LONG = (
    TINY.replace("steps: 6, evaluate_every: 2", "steps: 20000, evaluate_every: 10").replace("trials: 4", "trials: 2") + "stopping: null\n"
)


def start(*arguments: str | Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "hpo.cli", *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def hpo(*arguments: str | Path) -> Done:
    process = start(*arguments)
    out, err = process.communicate(timeout=120)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def report_of(study: str) -> Any:
    return json.loads(hpo("report", "--study", study, "--json").stdout)


def until(condition: Callable[[], Any], seconds: float = 150) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


# ---- the main job


def test_launch_report_and_launch_again(database: Database, tiny_space: Path, tiny_data: Path, tmp_path: Path) -> None:
    line = ("launch", "--study", tiny_space, "--data", tiny_data, "--workers", "2", "--device", "cpu")
    done = hpo(*line)
    assert done.returncode == 0, done.stderr
    for part in (
        "study      tiny",
        f"data       {tiny_data}",
        "2 workers on cpu",
        "start baseline",
        "4 of 4 trials done",
        "Best PER",
        "Next: hpo export",
    ):
        assert part in done.stdout
    report = report_of("tiny")
    assert report["trials"]["complete"] + report["trials"]["stopped"] == 4
    best = report["best"]
    assert best["partition"] == "validation"
    assert best["per"] == min([best["per"], *(start["per"] for start in report["starts"].values() if start["per"] is not None)])
    assert DecoderConfig().with_values(best["config"]).flat() == best["config"]
    assert set(report["starts"]) == {"baseline", "slow"}
    assert report["gpu_seconds"]["spent"] > 0

    again = hpo(*line)
    assert "the budget of 4 trials is spent" in again.stdout
    assert report_of("tiny") == report

    more = hpo(*line, "--trials", "5")
    assert (more.returncode, "Take --extend to go on with it" in more.stderr) == (2, True)
    assert hpo(*line, "--trials", "5", "--extend").returncode == 0
    assert sum(report_of("tiny")["trials"].values()) >= 5

    out = tmp_path / "best.yaml"
    assert hpo("export", "--study", "tiny", "--out", out).stdout == f"wrote {out}\n"
    exported = yaml.safe_load(out.read_text())
    config = DecoderConfig().with_values(exported["base"])
    arguments = exported["args"]
    assert (arguments["lrStart"], arguments["whiteNoiseSD"], arguments["nUnits"]) == (config.optimizer.lr, config.augment.white_noise_sd, 8)
    assert (arguments["nDays"], arguments["nInputFeatures"], arguments["kernelLen"]) == (2, 3, 4)

    status = json.loads(hpo("status", "--study", "tiny", "--json").stdout)
    assert [trial["number"] for trial in status["trials"]] == list(range(len(status["trials"])))
    assert "complete" in hpo("status", "--study", "tiny").stdout


def test_the_bundled_recordings_and_their_profile_are_taken_without_data(database: Database) -> None:
    steps = ("--set", "steps=2", "--set", "model.units=4", "--trials", "1", "--workers", "1", "--device", "cpu")
    done = hpo("launch", "--study", "lr-only", *steps)
    assert done.returncode == 0, done.stderr
    assert "no --data given: the bundled spoken-digit recordings" in done.stdout
    assert "profile demo of the space: a small decoder, because the data are the bundled ones" in done.stdout
    assert report_of("lr-only")["profile"] == "demo"
    assert hpo("launch", "--study", "lr-only", *steps, "--set", "model.units=5").returncode == 2  # another digest


def test_a_worker_joins_by_hand(database: Database, tiny_space: Path, tiny_data: Path, tmp_path: Path, write_data: Any) -> None:
    study = hpo("launch", "--study", tiny_space, "--data", tiny_data, "--trials", "0", "--name", "by-hand")
    assert "No trial is complete yet" in study.stdout
    hpo("launch", "--study", tiny_space, "--data", tiny_data, "--trials", "3", "--name", "by-hand", "--extend", "--device", "cpu")
    assert hpo("worker", "--study", "by-hand").stdout == "0 trials came to an end here; nothing is left to do\n"
    other = tiny_contents()
    other["train"][0]["phonemes"][0][0] += 1
    path = tmp_path / "other"
    path.write_bytes(__import__("pickle").dumps(other))
    wrong = hpo("worker", "--study", "by-hand", "--data", path)
    assert wrong.returncode == 2
    assert re.search(r"other: fingerprint \w+, but study by-hand was made on \w+", wrong.stderr)


def test_two_launches_at_once_share_the_budget(database: Database, tiny_space: Path, tiny_data: Path) -> None:
    line = ("launch", "--study", tiny_space, "--data", tiny_data, "--workers", "1", "--device", "cpu")
    both = [start(*line) for _ in range(2)]
    for process in both:
        out, err = process.communicate(timeout=120)
        assert (process.returncode, err) == (0, "")
        assert "Trials: " in out
    records = Study.open(database, "tiny").records()
    assert len(records) == 4
    assert all(record.state in ("complete", "stopped") for record in records)


# ---- stopped and killed


class Running:
    """A launch of two long trials, caught when both have steps behind them."""

    def __init__(self, database: Database, space: Path, data: Path):
        space.write_text(LONG)
        self.line = ("launch", "--study", space, "--data", data, "--workers", "2", "--device", "cpu")
        self.process = start(*self.line)
        self.database = database
        until(lambda: len([r for r in self.records() if r.state == "running" and r.step > 20]) == 2)

    def records(self) -> list[Record]:
        try:
            return Study.open(self.database, "tiny").records()
        except Exception:  # not made yet
            return []

    def workers(self) -> list[int]:
        children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(self.process.pid)], capture_output=True, text=True).stdout
        return [int(pid) for pid in children.split()]


@pytest.fixture
def running(database: Database, tiny_space: Path, tiny_data: Path) -> Any:
    found = Running(database, tiny_space, tiny_data)
    yield found
    found.process.kill()
    for record in found.workers():
        os.kill(record, signal.SIGKILL)


def test_ctrl_c_stops_at_the_next_step_and_the_same_line_goes_on(running: Running) -> None:
    running.process.send_signal(signal.SIGINT)
    out, _ = running.process.communicate(timeout=60)
    assert "the same line goes on with it" in out
    assert running.process.returncode == 130
    before = running.records()
    assert [record.state for record in before] == ["waiting", "waiting"]
    checkpoints = Path(os.environ["HPO_HOME"]).glob("studies/tiny-*/trial-*/checkpoint-*.pt")
    assert {file.parent.name for file in checkpoints} == {"trial-0", "trial-1"}
    running.process = start(*running.line)
    until(lambda: all(new.state == "running" and new.step > old.step for new, old in zip(running.records(), before, strict=True)))
    running.process.send_signal(signal.SIGINT)
    running.process.communicate(timeout=60)
    assert [(record.number, record.attempts, record.state) for record in running.records()] == [(0, 2, "waiting"), (1, 2, "waiting")]
    logs = "".join(file.read_text() for file in Path(os.environ["HPO_HOME"]).glob("studies/tiny-*/logs/*"))
    assert sorted(map(int, re.findall(r"goes on after step (\d+)", logs))) == sorted(record.step for record in before)


def test_a_second_ctrl_c_ends_at_once(running: Running) -> None:
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


def test_a_killed_worker_is_started_again_and_its_trial_goes_on(running: Running) -> None:
    victim = running.workers()[0]
    os.kill(victim, signal.SIGKILL)
    until(lambda: any(record.attempts == 2 for record in running.records()))
    assert [record.number for record in running.records()] == [0, 1]  # no trial was added
    assert victim not in running.workers()
    running.process.send_signal(signal.SIGINT)
    running.process.communicate(timeout=60)


def test_a_killed_launcher_leaves_workers_that_finish(running: Running) -> None:
    workers = running.workers()
    running.process.kill()
    running.process.wait()
    steps = [record.step for record in running.records()]
    until(lambda: all(record.step > step for record, step in zip(running.records(), steps, strict=True)))
    for pid in workers:
        os.kill(pid, signal.SIGTERM)
    until(lambda: all(record.state == "waiting" for record in running.records()))


# ---- what a person gets wrong


def launch_with(space: Path, data: Path, *more: str) -> Done:
    return hpo("launch", "--study", space, "--data", data, "--device", "cpu", *more)


def one_line(done: Done, code: int, *parts: str) -> None:
    assert done.returncode == code, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert done.stderr.startswith("hpo: ")
    for part in parts:
        assert part in done.stderr


@pytest.mark.parametrize(
    ("more", "parts"),
    [
        (("--workers", "0"), ("--workers 0", "valid is 1 or more")),
        (("--name", "a/b"), ("study name 'a/b'", "Valid: letters")),
        (("--profile", "dmeo"), ("--profile", "'dmeo'")),
        (("--set", "model.unit=3"), ("--set model.unit=3", "Did you mean model.units?")),
        (("--set", "model.units=many"), ("--set model.units", "'many'")),
        (("--trials", "-1"), ("trials", "greater than or equal to 0")),
        (("--device", "gpu"), ("--device gpu", "Valid: cpu, cuda")),
        (("--database", "sqlite:///x"), ("sqlite is not supported", "postgresql://")),
    ],
)
def test_mistakes_on_the_command_line(
    database: Database, tiny_space: Path, tiny_data: Path, more: tuple[str, ...], parts: tuple[str, ...]
) -> None:
    one_line(launch_with(tiny_space, tiny_data, *more), 2, *parts)


def test_mistakes_in_files(database: Database, tiny_space: Path, tiny_data: Path, tmp_path: Path) -> None:
    one_line(launch_with(Path("lr-agu"), tiny_data), 2, "Did you mean lr-aug?")
    one_line(launch_with(tiny_space, tmp_path / "nothing"), 2, "no such file")
    cut = tmp_path / "cut"
    cut.write_bytes(tiny_data.read_bytes()[:500])
    one_line(launch_with(tiny_space, cut), 2, "not a whole pickle (500 bytes")
    tiny_space.write_text(TINY.replace("optimizer.lr:", "optimizer.rl:", 1))
    one_line(launch_with(tiny_space, tiny_data), 2, "parameters.optimizer.rl", "Valid: ")


def test_what_the_machine_lacks(database: Database, tiny_space: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = make_url(database.url).set(port=1).render_as_string(hide_password=False)
    monkeypatch.setenv("HPO_DATABASE_URL", gone)
    one_line(launch_with(tiny_space, tiny_data), 1, "Connection refused")
    missing = make_url(database.url).set(database="nowhere").render_as_string(hide_password=False)
    monkeypatch.setenv("HPO_DATABASE_URL", missing)
    one_line(launch_with(tiny_space, tiny_data), 1, 'database "nowhere" does not exist')
    monkeypatch.setenv("HPO_DATABASE_URL", database.url)
    one_line(hpo("launch", "--study", tiny_space, "--data", tiny_data, "--device", "cuda:7"), 1, "cuda:7", "CUDA devices")
    monkeypatch.delenv("HPO_DATABASE_URL")
    monkeypatch.setenv("HPO_HOME", "/proc/hpo")
    one_line(launch_with(tiny_space, tiny_data), 1, "HPO_HOME /proc/hpo: cannot be written")


def test_a_study_that_fails_too_often_says_so(database: Database, tiny_data: Path, tmp_path: Path) -> None:
    """Nesterov needs momentum; the space allows them apart, so some draws are no valid configuration."""
    space = tmp_path / "odd.yaml"
    sizes = TINY.splitlines()[1].replace("base: {", "base: {optimizer.name: sgd, ")
    choices = "  optimizer.momentum: {choices: [0.0, 0.9]}\n  optimizer.nesterov: {choices: [false, true]}"
    space.write_text(f"{sizes}\nparameters:\n{choices}\nbudget: {{trials: 40, failures: 0}}\n")
    done = launch_with(space, tiny_data, "--workers", "1")
    one_line(done, 1, "study odd is not done: 1 trials failed, more than the budget's 0")
    assert "optimizer.nesterov needs optimizer.momentum above 0" in done.stdout


def test_questions_about_what_is_not_there(database: Database, tmp_path: Path) -> None:
    for command in (("status",), ("report",), ("export", "--out", tmp_path / "x"), ("worker",)):
        one_line(hpo(*command, "--study", "nothing"), 2, "no study 'nothing'", "hpo launch makes one")


def test_a_home_where_nothing_can_be_written_below(database: Database, tiny_space: Path, tiny_data: Path) -> None:
    home = Path(os.environ["HPO_HOME"])
    home.mkdir()
    (home / "studies").touch()
    one_line(launch_with(tiny_space, tiny_data), 1, str(home / "studies"))


def test_the_embedded_database_has_a_status_and_stops(private_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HPO_HOME", str(private_folder / "cli-home"))
    assert hpo("database", "status").stdout.startswith("not running; data in ")
    one_line(hpo("report", "--study", "none-yet"), 2, "There are: none")  # asking starts it
    assert hpo("database", "status").stdout.startswith("running at 127.0.0.1:")
    assert hpo("database", "stop").stdout == "stopped\n"
    assert hpo("database", "stop").stdout == "it was not running\n"
