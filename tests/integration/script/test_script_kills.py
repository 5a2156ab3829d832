"""Scripts, workers and keepers are killed: no trial is lost, and none exists twice."""

import json
import os
import random
import signal
import subprocess
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.commands import run_hpo, start, until
from helpers.script_studies import (
    create_study,
    curve_of,
    scripts_running,
    study_file,
    trained,
    values,
)

from hpo.store.database import Database
from hpo.study.paths import study_folder, trial_folder
from hpo.study.study import Study
from hpo.worker.worker import run_worker

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")


@pytest.mark.slow
@pytest.mark.parametrize("way", ["deaf", "leaves"])
def test_nothing_remains_of_a_trial_that_is_killed(
    database: Database, tmp_path: Path, way: str
) -> None:
    path = study_file(tmp_path, {"fixed": {"way": way, "seconds": 0.2}, "grace_seconds": 0.5})
    study = create_study(database, path)
    folder = study_folder(study)
    worker = start("worker", "--study", "script", "--device", "cpu")
    try:
        until(lambda: study.records()[0].step >= 5)
        assert scripts_running(folder)
        assert run_hpo("kill", "--study", "script", "--trial", "0").returncode == 0
        until(lambda: scripts_running(folder) == [])
        assert worker.wait(120) == 0
    finally:
        worker.kill()
        worker.communicate()
    assert study.records()[0].state == "stopped"
    assert not trial_folder(folder, 0).exists()


@pytest.mark.slow
def test_a_trial_goes_on_exactly_after_five_interruptions(
    database: Database, tmp_path: Path
) -> None:
    """The curve is that of an undisturbed training, whoever was killed."""
    whole = tmp_path / "whole"
    whole.mkdir()
    undisturbed = trained(database, study_file(whole), "whole")
    expected = values(curve_of(Study.open(database, "whole"), undisturbed))
    path = study_file(
        tmp_path,
        {"fixed": {"seconds": 0.1}},
        attempts={"max_attempts": 50, "lease_seconds": 600, "checkpoint_seconds": 0.1},
    )
    study = create_study(database, path)
    folder = study_folder(study)
    targets = ["TERM", "worker", "script", "keeper", "all"]
    worker = start("worker", "--study", "script", "--device", "cpu")
    try:
        for number, target in enumerate(targets):
            reached = 8 * (number + 1)
            until(partial(_has_come_to, study, reached, folder))
            _end(target, worker, folder)
            if target in ("TERM", "worker", "all"):
                worker.wait(60)
                worker.communicate()
                worker = start("worker", "--study", "script", "--device", "cpu")
        until(lambda: worker.poll() is not None)
    finally:
        worker.kill()
        worker.communicate()
    record = study.records()[0]
    assert record.state == "complete", record.reason
    assert record.attempts >= 5
    assert values(curve_of(study, record)) == expected
    assert record.value == undisturbed.value
    assert scripts_running(folder) == []


def _has_come_to(study: Study, step: int, folder: Path) -> bool:
    """The trial has reached this step, and there is a script that can be killed."""
    return study.records()[0].step >= step and bool(scripts_running(folder))


def _end(target: str, worker: Any, folder: Path) -> None:
    scripts = scripts_running(folder)
    keepers = [_parent(pid) for pid in scripts]
    if target == "TERM":
        worker.terminate()
    if target in ("worker", "all"):
        worker.kill()
    if target in ("keeper", "all"):
        _kill(keepers)
    if target in ("script", "all"):
        _kill(scripts)


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[1])
    except OSError:
        return 0


def _kill(pids: list[int]) -> None:
    for pid in pids:
        if pid > 1:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@pytest.mark.slow
def test_without_checkpoints_a_trial_starts_over(database: Database, tmp_path: Path) -> None:
    path = study_file(
        tmp_path,
        {"fixed": {"forgets": True, "seconds": 0.1}, "resume": "none"},
        attempts={"checkpoint_seconds": 0},
    )
    study = create_study(database, path)
    worker = start("worker", "--study", "script", "--device", "cpu")
    until(lambda: study.records()[0].step >= 30)
    worker.terminate()
    worker.communicate()
    assert study.records()[0].state == "waiting"
    before = study.records()[0].seconds
    run_worker(study, None, torch.device("cpu"), 1, lambda: False)
    record = study.records()[0]
    assert record.state == "complete"
    assert [point.step for point in curve_of(study, record)] == list(range(5, 61, 5))
    assert record.seconds > before
    assert record.lost_seconds == pytest.approx(before, abs=0.5)
    assert "lost to trials that started over" in run_hpo("report", "--study", "script").stdout


class Crew:
    """Two workers; one that has ended is started again while there is work."""

    def __init__(self, study: Study):
        self.study = study
        self.workers = [self._start(), self._start()]
        self.codes: set[int] = set()

    def _start(self) -> "subprocess.Popen[str]":
        return start("worker", "--study", self.study.name, "--device", "cpu")

    def at_work(self) -> bool:
        for index, worker in enumerate(self.workers):
            code = worker.poll()
            if code is not None and not self.study.budget_spent():
                worker.communicate()
                self.codes.add(code)
                self.workers[index] = self._start()
        return True


@pytest.mark.slow
def test_a_budget_is_exact_whatever_is_killed(database: Database, tmp_path: Path) -> None:
    """Two workers train eight trials.

    At ten random moments a worker, scripts, their keepers or all of them are killed.
    """
    path = study_file(
        tmp_path,
        {"fixed": {"seconds": 0.02}},
        budget={"trials": 8, "failures": 100},
        attempts={"max_attempts": 100, "lease_seconds": 5, "checkpoint_seconds": 0.1},
    )
    study = create_study(database, path)
    folder = study_folder(study)
    dice = random.Random(5)
    crew = Crew(study)
    try:
        for number in range(10):
            until(lambda: crew.at_work() and (scripts_running(folder) or study.budget_spent()))
            time.sleep(dice.random() * 0.5)
            worker = crew.workers[number % 2]
            _end(dice.choice(["worker", "script", "keeper", "all"]), worker, folder)
        until(lambda: crew.at_work() and study.budget_spent())
        until(lambda: all(worker.poll() is not None for worker in crew.workers))
    finally:
        for worker in crew.workers:
            worker.kill()
            worker.communicate()
    assert crew.codes <= {0, -signal.SIGKILL}
    records = study.records()
    done = [record for record in records if record.state in ("complete", "stopped")]
    assert len(done) == 8
    assert len({json.dumps(record.config, sort_keys=True) for record in records}) == len(records)
    assert all(record.state != "running" for record in records)
    assert scripts_running(folder) == []


@pytest.mark.slow
def test_a_terminated_worker_asks_its_script_to_stop(database: Database, tmp_path: Path) -> None:
    path = study_file(tmp_path, {"fixed": {"seconds": 0.2}})
    study = create_study(database, path)
    worker = start("worker", "--study", "script", "--device", "cpu")
    until(lambda: study.records()[0].step >= 5)
    worker.terminate()
    worker.communicate()
    record = study.records()[0]
    assert (record.state, record.cause) == ("waiting", "interrupted")
    assert (trial_folder(study_folder(study), 0) / "attempt-1" / "stop").exists()


@pytest.mark.slow
def test_a_signal_for_all_processes_of_a_job_hands_the_trial_back(
    database: Database, tmp_path: Path
) -> None:
    """A scheduler sends it: the script obeys and ends well, sooner than its worker."""
    path = study_file(tmp_path, {"fixed": {"way": "obeys", "seconds": 0.1}})
    study = create_study(database, path)
    worker = start("worker", "--study", "script", "--device", "cpu")
    until(lambda: study.records()[0].step >= 5)
    for pid in scripts_running(study_folder(study)):
        os.kill(pid, signal.SIGTERM)
    worker.terminate()
    worker.communicate()
    record = study.records()[0]
    assert (record.state, record.cause) == ("waiting", "interrupted")


@pytest.mark.slow
def test_a_curve_among_the_checkpoints_goes_on(database: Database, tmp_path: Path) -> None:
    """The copied file has rows of steps that are trained again."""
    whole = tmp_path / "whole"
    whole.mkdir()
    fixed = {"rows_among_checkpoints": True}
    section = {"curve": {"file": "checkpoints/rows.jsonl"}, "fixed": fixed}
    undisturbed = trained(database, study_file(whole, section), "whole")
    expected = values(curve_of(Study.open(database, "whole"), undisturbed))
    path = study_file(
        tmp_path,
        {**section, "fixed": {**fixed, "seconds": 0.1, "saves_every": 20}},
        attempts={"max_attempts": 50},
    )
    study = create_study(database, path)
    for reached in (22, 42):
        worker = start("worker", "--study", "script", "--device", "cpu")
        until(partial(_has_come_to, study, reached, study_folder(study)))
        worker.kill()
        worker.communicate()
        until(lambda: not scripts_running(study_folder(study)))
    run_worker(study, None, torch.device("cpu"), 1, lambda: False)
    record = study.records()[0]
    assert record.state == "complete", record.reason
    assert values(curve_of(study, record)) == expected
