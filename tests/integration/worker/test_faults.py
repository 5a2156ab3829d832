"""A worker's database, GPU or allocation goes away: real training, Postgres and signals."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import optuna
import psycopg2
import pytest
import torch
from helpers.commands import Running, run_hpo, until
from helpers.data import recordings
from helpers.lines import ON_CPU
from helpers.servers import execute
from helpers.studies import RECORD, TINY, claim, curve, decoder_config, long, point
from sqlalchemy import make_url, select

from hpo.decoder.training import GruTraining, Recordings
from hpo.errors import BadNodeError, DatabaseAwayError, StudyError, WorkerError
from hpo.launch.launcher import Launcher, Plan
from hpo.launch.slurm_element import run_node
from hpo.process import Process
from hpo.space.load import load_spec
from hpo.store import locks
from hpo.store.database import Database
from hpo.store.embedded import EmbeddedServer
from hpo.store.tables import trial_table
from hpo.study.paths import study_folder
from hpo.study.study import Study
from hpo.study.trial import Completed, Interrupted
from hpo.study.version import code_version
from hpo.terminal.live import AWAY
from hpo.worker.checkpoint import begin, checkpoints
from hpo.worker.reporter import Reporter
from hpo.worker.signals import StopFlag
from hpo.worker.worker import Worker, run_worker

Make = Callable[..., Study]


@pytest.fixture
def data(tiny_data: Path, tiny_space: Path) -> Recordings:
    return recordings(tiny_data, load_spec(tiny_space), 0.2)


def state_after_sweep(study: Study) -> str:
    study.sweep()
    return study.records()[0].state


def has_trained(study: Study) -> bool:
    return study.records()[0].step > 20


@contextmanager
def meanwhile(act: Callable[[], None]) -> Iterator[None]:
    """`act` runs in a thread beside the block, which waits for its end."""
    thread = threading.Thread(target=act)
    thread.start()
    try:
        yield
    finally:
        thread.join()


class Outage:
    """Nobody can connect to the database, and whoever was connected is cut off."""

    def __init__(self, server: EmbeddedServer, url: str):
        self.server, self.name = server, make_url(url).database

    def begin(self) -> None:
        execute(self.server, f"ALTER DATABASE {self.name} ALLOW_CONNECTIONS false")
        connections = f"FROM pg_stat_activity WHERE datname = '{self.name}'"
        execute(self.server, f"SELECT pg_terminate_backend(pid) {connections}")

    def end(self) -> None:
        execute(self.server, f"ALTER DATABASE {self.name} ALLOW_CONNECTIONS true")


@pytest.fixture
def outage(server: EmbeddedServer, database: Database) -> Outage:
    return Outage(server, database.url)


class Parts(NamedTuple):
    """The parts of a worker in this process."""

    space: Path
    data: Recordings
    make_study: Make
    folder: Path

    def study(self) -> Study:
        return self.make_study(load_spec(self.space))

    def worker(self, study: Study, stop: Callable[[], bool]) -> Worker:
        return Worker(study, self.data, self.folder, RECORD, stop)


@pytest.fixture
def parts(tiny_space: Path, data: Recordings, make_study: Make, tmp_path: Path) -> Parts:
    return Parts(tiny_space, data, make_study, tmp_path)


def test_a_worker_trains_on_without_its_database_and_reports_everything_afterwards(
    parts: Parts, outage: Outage, caplog: pytest.LogCaptureFixture
) -> None:
    study = parts.study()
    folder = parts.folder / "trial-0"
    looks = iter(range(100))
    reached: list[int] = []

    def stop() -> bool:
        if next(looks) == 1:
            outage.begin()
        return False

    def end_when_trained() -> None:
        # The checkpoint of the last step.
        until(lambda: bool(checkpoints(folder)))
        begun = begin(partial(GruTraining, decoder_config(study.spec), parts.data), folder)
        reached.append(begun.training.step)
        until(lambda: "trying again" in caplog.text)
        outage.end()

    worker = parts.worker(study, stop)
    trial = claim(study, worker.process)
    with meanwhile(end_when_trained), caplog.at_level("WARNING"):
        outcome = worker.run_trial(trial)
    assert reached == [6]
    assert isinstance(outcome, Completed)
    assert [step for step, _, _ in curve(study, trial)] == [2, 4, 6]
    record = study.records()[0]
    assert (record.state, record.step, record.last_value) == ("complete", 6, record.value)


@pytest.mark.slow
def test_a_worker_cut_off_beyond_its_lease_writes_no_weights_until_it_may(
    parts: Parts, outage: Outage, caplog: pytest.LogCaptureFixture
) -> None:
    """Another may hold the trial meanwhile, and write its weights into their shared folder."""
    parts.space.write_text(TINY + "attempts: {lease_seconds: 1}")
    study = parts.study()
    folder = parts.folder / "trial-0"
    looks = iter(range(100))
    written_while_away: list[str] = []

    def stop() -> bool:
        match next(looks):
            case 0:
                # Before any evaluation, and so before any weights.
                outage.begin()
                end = time.monotonic() + 1
                until(lambda: time.monotonic() > end)
            case 1:
                # After an evaluation, which the worker reports to the database.
                until(lambda: "training continues" in caplog.text)
        return False

    def has_last_checkpoint() -> bool:
        return any(path.name.startswith("checkpoint-00000006") for path in checkpoints(folder))

    def end_when_trained() -> None:
        until(has_last_checkpoint)
        written_while_away.extend(path.name for path in folder.glob("*.safetensors"))
        outage.end()

    worker = parts.worker(study, stop)
    trial = claim(study, worker.process)
    with meanwhile(end_when_trained), caplog.at_level("WARNING"):
        assert isinstance(worker.run_trial(trial), Completed)
    assert written_while_away == []
    files = sorted(path.name for path in folder.iterdir())
    assert files == ["best.safetensors", "last.safetensors"]


def test_a_failed_delivery_does_not_forget_how_far_the_training_went_back(
    parts: Parts, server: EmbeddedServer, database: Database
) -> None:
    """The training goes back once more while the database is asked to go back, and is lost."""
    study = parts.study()
    trial = claim(study)
    reporter = Reporter(study, trial, lambda: 0, lambda problem: None)
    # From here on this test delivers.
    reporter.close()
    for step in (2, 3, 4, 6):
        reporter.at(step, point(step, 0.9))
    reporter.deliver()
    reporter.go_back(point(2, 0.9))
    failures: list[Exception] = []

    def deliver() -> None:
        try:
            reporter.deliver()
        except DatabaseAwayError as error:
            failures.append(error)

    name = make_url(database.url).database
    waiting = f"pg_stat_activity WHERE datname = '{name}' AND wait_event_type = 'Lock'"
    with study.engine.begin() as connection:
        connection.execute(select(trial_table).with_for_update())
        with meanwhile(deliver):
            until(lambda: execute(server, f"SELECT pid FROM {waiting}"))
            again = point(4, 0.5)
            reporter.at(4, again)
            reporter.go_back(again)
            execute(server, f"SELECT pg_terminate_backend(pid) FROM {waiting}")
    assert len(failures) == 1
    reporter.deliver()
    assert curve(study, trial) == [(2, 0.9, 1), (4, 0.5, 1)]


def hands_back(study: Study, worker: Worker, is_claimed: Callable[[], bool]) -> None:
    """A worker that got a signal while it claims leaves a trial that nobody lost."""
    claimed: list[bool] = []

    def stop() -> bool:
        if is_claimed():
            claimed.append(True)
        return bool(claimed)

    worker.stop = stop
    assert worker.run() == 0
    record = study.records()[0]
    assert (record.state, record.cause) == ("waiting", "interrupted")
    assert record.reason == "its worker was stopped before it began"
    # The next one gets it at once, as another attempt.
    assert claim(study).number == 0


def test_a_signal_while_a_configuration_is_drawn_hands_the_trial_back(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hpo.worker.reporter.ANSWER_SECONDS", 0.1)
    study = parts.study()
    worker = parts.worker(study, lambda: False)
    answer = threading.Event()
    configure = worker.study.configure

    def slow(trial_id: int) -> Any:
        answer.wait()
        return configure(trial_id)

    with monkeypatch.context() as patch:
        patch.setattr(worker.study, "configure", slow)
        hands_back(parts.study(), worker, lambda: study.standing().running > 0)
    threads = [thread for thread in threading.enumerate() if thread.name == "ask"]
    answer.set()
    for thread in threads:
        thread.join()
    # The late answer wrote nothing.
    assert [record.attempts for record in study.records()] == [2, 0]


def test_a_signal_while_another_holds_the_lock_claims_nothing(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The claim that waits for the lock must not get a trial after its worker has left."""
    monkeypatch.setattr("hpo.worker.reporter.ANSWER_SECONDS", 0.1)
    monkeypatch.setattr("hpo.worker.worker.HAND_BACK_SECONDS", 0.5)
    study = parts.study()
    other = parts.study()
    worker = parts.worker(study, lambda: False)

    def is_asking() -> bool:
        return any(thread.name == "ask" for thread in threading.enumerate())

    worker.stop = is_asking
    with locks.locked(other.engine, other.id):
        assert worker.run() == 0
        threads = [thread for thread in threading.enumerate() if thread.name == "ask"]
    for thread in threads:
        thread.join()
    assert [record.state for record in other.records()] == ["waiting", "waiting"]
    assert [record.attempts for record in other.records()] == [0, 0]


@pytest.mark.slow
def test_a_signal_while_the_database_is_away_keeps_the_work(
    parts: Parts, outage: Outage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next attempt reports the curve of the steps that the first one could not report."""
    monkeypatch.setattr("hpo.worker.worker.HAND_BACK_SECONDS", 1.0)
    parts.space.write_text(TINY + "attempts: {lease_seconds: 1}")
    study = parts.study()
    looks = iter(range(100))

    def stop() -> bool:
        look = next(looks)
        if look == 1:
            outage.begin()
        return look >= 5

    # There is no error: a signal ends a worker well.
    assert parts.worker(study, stop).run() == 0
    outage.end()
    assert study.records()[0].state == "running"
    until(lambda: state_after_sweep(study) == "waiting")
    assert parts.worker(study, lambda: False).run() == 4
    record = study.records()[0]
    trial = study.optuna.get_trials()[0]
    with study.engine.begin():
        assert list(trial.intermediate_values) == [2, 4, 6]
    assert (record.state, record.attempts) == ("complete", 2)


@pytest.mark.slow
def test_a_training_that_hangs_loses_its_lease_and_writes_nothing_afterwards(
    make_study: Make, tiny_space: Path, data: Recordings, tmp_path: Path
) -> None:
    tiny_space.write_text(TINY + "attempts: {lease_seconds: 5, checkpoint_seconds: 0}")
    study = make_study(load_spec(tiny_space))
    taken: list[int] = []
    looks = iter(range(100))

    def stop() -> bool:
        """After step 2 it hangs, until another worker has its trial."""
        if next(looks) == 1:
            until(lambda: bool(checkpoints(tmp_path / "trial-0")))
            until(lambda: state_after_sweep(study) == "waiting")
            other = study.claim(Process("another-host", "1:1"), RECORD)
            assert other is not None
            taken.append(other.number)
        return False

    worker = Worker(study, data, tmp_path, RECORD, stop)
    trial = claim(study, worker.process)
    assert worker.run_trial(trial) is None
    assert taken == [0]
    assert [int(path.name.split("-")[1]) for path in checkpoints(tmp_path / "trial-0")] == [2]
    assert [step for step, _, _ in curve(study, trial)] == [2]
    assert study.records()[0].state == "running"


def test_a_worker_leaves_a_host_on_which_everything_fails(
    make_study: Make, tiny_space: Path, data: Recordings, tmp_path: Path
) -> None:
    study = make_study(load_spec(tiny_space))
    good = Process("good", "1:1")
    first, held = study.claim(good, RECORD), study.claim(good, RECORD)
    assert first and held
    assert Worker(study, data, tmp_path, RECORD, process=good).run_trial(first)
    # The model is built for other features than the batches have.
    data.data.n_features = 7
    bad_host = r"the last trials failed on this host \(RuntimeError: .*while other hosts"
    with pytest.raises(BadNodeError, match=bad_host) as raised:
        Worker(study, data, tmp_path, RECORD).run()
    assert raised.value.exit_code == 4
    states = [record.state for record in study.records()]
    assert states == ["complete", "running", "waiting", "waiting"]


def test_a_budget_that_is_spent_ends_trials_with_a_checkpoint(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hpo.worker.reporter.LOOK_SECONDS", 0.0)
    monkeypatch.setattr("hpo.worker.reporter.RENEW_SECONDS", 0.05)
    # 0.18 s.
    budget = "trials: 4, gpu_hours: 0.00005"
    parts.space.write_text(long(100_000, 2).replace("trials: 4", budget))
    study = parts.study()
    worker = parts.worker(study, lambda: False)
    trial = claim(study, worker.process)
    outcome = worker.run_trial(trial)
    assert isinstance(outcome, Interrupted)
    assert "worker-hours are spent" in outcome.reason
    assert study.records()[0].state == "waiting"
    assert checkpoints(parts.folder / "trial-0")
    assert worker.run() == 0


def test_a_worker_with_other_code_is_refused(
    make_study: Make, tiny_space: Path, tiny_data: Path
) -> None:
    study = make_study(load_spec(tiny_space), path=str(tiny_data))
    study.settle(None, "0.0 elsewhere")
    refused = (
        rf"made with hpo 0.0 elsewhere; here it is {code_version()}. "
        "Install that version, or take --allow-diff"
    )
    with pytest.raises(StudyError, match=refused):
        run_worker(study, tiny_data, torch.device("cpu"), None, lambda: True)


# ---- processes


class WorkerProcess:
    """`hpo worker` on a trial without end."""

    def __init__(self, study: Study, data: Path, log: Path):
        hpo = [sys.executable, "-m", "hpo.cli"]
        worker = ["worker", "--study", study.name, "--data", str(data), *ON_CPU, "--threads", "1"]
        self.log = log
        with log.open("w") as output:
            self.process = subprocess.Popen([*hpo, *worker], stdout=output, stderr=output)
        until(lambda: has_trained(study))


@pytest.fixture
def endless(make_study: Make, tiny_space: Path, tiny_data: Path) -> Study:
    tiny_space.write_text(long(1_000_000, 1_000))
    spec = load_spec(tiny_space)
    sentences = recordings(tiny_data, spec, 0.1)
    return make_study(spec, fingerprint=sentences.fingerprint, path=str(tiny_data))


@pytest.mark.slow
def test_a_launch_says_that_its_database_is_away_and_goes_on(
    database: Database, tiny_space: Path, tiny_data: Path, outage: Outage
) -> None:
    running = Running(database, tiny_space, tiny_data)
    assert running.process.stdout
    outage.begin()
    assert any(line.strip() == AWAY for line in running.process.stdout)
    outage.end()
    assert any(line.startswith("The database answers again") for line in running.process.stdout)
    # As a scheduler does, or the clock before a wall limit: no worker is started again.
    for pid in running.workers():
        os.kill(pid, signal.SIGTERM)
    _, err = running.process.communicate(timeout=60)
    assert (running.process.returncode, err.count("\n")) == (1, 1)
    assert "trials wait for a worker; run the same command to continue" in err


@pytest.mark.slow
def test_workers_that_trials_kill_are_started_again_and_those_that_never_begin_are_not(
    endless: Study, tiny_data: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such trials fail by themselves, and the study has room for some."""
    monkeypatch.setattr("hpo.launch.launcher.RESTARTS", 0)
    launcher = Launcher(endless, database, Plan(("cpu",), 1), tiny_data)
    attempts_at_kills: list[int] = []

    def kill() -> bool:
        """Kills a worker in its first and its second attempt, and the third at once."""
        kills = len(attempts_at_kills)
        attempts = endless.records()[0].attempts
        if attempts > kills or kills >= 2:
            attempts_at_kills.append(attempts)
            launcher.running[0].kill()
            launcher.running[0].wait()
        return True

    with pytest.raises(WorkerError, match="worker 0 ended with SIGKILL"):
        launcher.run(kill)
    assert attempts_at_kills == [1, 2, 2]


@pytest.mark.slow
def test_a_cluster_job_that_must_leave_while_its_database_is_away_has_work_left(
    endless: Study, tiny_data: Path, database: Database, outage: Outage
) -> None:
    """Then it is put back into the queue. A job that is not is lost to the study."""

    def leave() -> None:
        until(lambda: has_trained(endless))
        outage.begin()
        os.kill(os.getpid(), signal.SIGTERM)

    try:
        with meanwhile(leave):
            assert run_node(endless, database, Plan(("cpu",), 1), tiny_data, StopFlag(), False)
    finally:
        outage.end()


@pytest.mark.slow
def test_a_study_that_is_deleted_ends_its_workers_with_one_line(
    endless: Study, database: Database
) -> None:
    def delete() -> None:
        until(lambda: has_trained(endless))
        optuna.delete_study(study_name=endless.name, storage=database.url)

    with meanwhile(delete):
        done = run_hpo("worker", "--study", "s", *ON_CPU)
    assert done.returncode == 2
    deleted = "study s was deleted. Run the launch command again for a new one"
    assert done.stderr == f"hpo: {deleted}\n"
    # A launch reads the records.
    with pytest.raises(StudyError, match="was deleted"):
        endless.records()


@pytest.mark.slow
def test_sigusr1_hands_the_trial_back_and_ends_well(endless: Study) -> None:
    def send() -> None:
        until(lambda: has_trained(endless))
        os.kill(os.getpid(), signal.SIGUSR1)

    with meanwhile(send):
        done = run_hpo("worker", "--study", "s", *ON_CPU)
    assert done.returncode == 0, done.stderr
    assert_handed_back_by_a_signal(endless)


def assert_handed_back_by_a_signal(study: Study) -> None:
    record = study.records()[0]
    assert (record.state, record.cause, record.reason) == ("waiting", "interrupted", "a signal")
    checkpoint = checkpoints(study_folder(study) / "trial-0")[0]
    assert int(checkpoint.name.split("-")[1]) == record.step


@pytest.fixture
def connection(database: Database) -> Iterator[Any]:
    url = make_url(database.url).set(drivername="postgresql")
    connection = psycopg2.connect(url.render_as_string(hide_password=False))
    connection.autocommit = True
    yield connection
    connection.close()


def connections_of(worker: WorkerProcess, connection: Any) -> list[int]:
    """The processes of Postgres that serve the worker, which names its connections."""
    name = rf"^hpo \S+ {worker.process.pid}$"
    with connection.cursor() as cursor:
        cursor.execute("SELECT pid FROM pg_stat_activity WHERE application_name ~ %s", (name,))
        return [pid for (pid,) in cursor.fetchall()]


@pytest.mark.slow
def test_a_worker_obeys_a_signal_while_the_database_hangs(
    endless: Study, tiny_data: Path, tmp_path: Path, connection: Any
) -> None:
    """Its connections stand and no answer comes, as when the server's disk hangs.

    SLURM gives a job 30 s.
    """
    worker = WorkerProcess(endless, tiny_data, tmp_path / "log")
    halted = connections_of(worker, connection)
    try:
        for pid in halted:
            os.kill(pid, signal.SIGSTOP)
        worker.process.terminate()
        assert worker.process.wait(30) == 0
    finally:
        for pid in halted:
            os.kill(pid, signal.SIGCONT)
        worker.process.kill()
    # The trial goes on from it.
    assert checkpoints(study_folder(endless) / "trial-0")


@pytest.fixture
def work_at(
    endless: Study,
    database: Database,
    tiny_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[str], int]:
    """Runs a worker for some steps and returns the step at which it leaves.

    Another home stands for another machine.
    """

    def work(machine: str) -> int:
        monkeypatch.setenv("HPO_HOME", str(tmp_path / machine))
        looks = iter(range(100))
        study = Study.open(database, "s")
        done = run_worker(study, tiny_data, torch.device("cpu"), None, lambda: next(looks) > 30)
        assert done == 0
        return endless.records()[0].step

    return work


def test_with_a_shared_folder_a_trial_goes_on_elsewhere(
    endless: Study,
    tmp_path: Path,
    work_at: Callable[[str], int],
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "shared").mkdir()
    endless.settle(tmp_path / "shared", "")
    step = work_at("one")
    assert step > 20
    with caplog.at_level("INFO"):
        work_at("other")
    assert f"resumes after step {step}" in caplog.text
    assert "does not exist on this machine" not in caplog.text
    record = endless.records()[0]
    assert (record.number, record.attempts) == (0, 2)


def test_without_a_shared_folder_a_trial_starts_over_elsewhere(
    endless: Study,
    tmp_path: Path,
    work_at: Callable[[str], int],
    caplog: pytest.LogCaptureFixture,
) -> None:
    endless.optuna.set_user_attr("artifacts", str(tmp_path / "not-mounted"))
    assert work_at("one") > 20
    with caplog.at_level("INFO"):
        work_at("other")
    assert "restarts at step 0" in caplog.text
    assert "does not exist on this machine" in caplog.text
    record = endless.records()[0]
    assert (record.number, record.attempts) == (0, 2)


@pytest.mark.slow
def test_a_worker_needs_two_connections_and_hands_its_trial_back_at_ctrl_c(
    endless: Study, tiny_data: Path, tmp_path: Path, connection: Any
) -> None:
    worker = WorkerProcess(endless, tiny_data, tmp_path / "log")
    counts = []
    begin = time.monotonic()
    # Over some renewals of the lease.
    while time.monotonic() < begin + 5:
        counts.append(len(connections_of(worker, connection)))
    assert 1 <= max(counts) <= 2
    # The other signals have tests of their own.
    worker.process.send_signal(signal.SIGINT)
    assert worker.process.wait(30) == 0
    assert "Traceback" not in worker.log.read_text()
    assert_handed_back_by_a_signal(endless)
