"""A worker whose database, GPU or allocation goes away. Real training, real Postgres, real signals."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import optuna
import psycopg2
import pytest
import torch
from helpers.commands import Running, asked, until
from helpers.data import recordings
from helpers.servers import execute
from helpers.studies import TINY, curve, decoder_config, long
from sqlalchemy import make_url

from hpo.decoder.training import GruTraining, Recordings
from hpo.errors import BadNodeError, StudyError, WorkerError
from hpo.launch.launcher import Launcher, Plan
from hpo.launch.slurm_element import run_node
from hpo.process import Process
from hpo.space.spec import load_spec
from hpo.store.database import Database
from hpo.store.embedded import EmbeddedServer
from hpo.study.paths import study_folder
from hpo.study.study import Study
from hpo.study.trial import Completed, Interrupted
from hpo.study.version import code_version
from hpo.terminal.live import AWAY
from hpo.worker.checkpoint import begin, checkpoints
from hpo.worker.signals import StopFlag
from hpo.worker.worker import Worker, run_worker

RECORD = {"device": "cpu", "code_version": "0", "data": "f"}
Make = Callable[..., Study]


@pytest.fixture
def data(tiny_data: Path, tiny_space: Path) -> Recordings:
    return recordings(tiny_data, load_spec(tiny_space), 0.2)


def state_after_sweep(study: Study) -> str:
    study.sweep()
    return study.records()[0].state


class Outage:
    """Nobody gets into the database, and who was in is thrown out."""

    def __init__(self, server: EmbeddedServer, study: Study):
        self.server, self.name = server, study.engine.url.database

    def begin(self) -> None:
        execute(self.server, f"ALTER DATABASE {self.name} ALLOW_CONNECTIONS false")
        execute(
            self.server,
            f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{self.name}'",
        )

    def end(self) -> None:
        execute(self.server, f"ALTER DATABASE {self.name} ALLOW_CONNECTIONS true")


def test_a_worker_trains_on_without_its_database_and_tells_everything_afterwards(
    make_study: Make,
    tiny_space: Path,
    data: Recordings,
    tmp_path: Path,
    server: EmbeddedServer,
    caplog: pytest.LogCaptureFixture,
) -> None:
    study = make_study(load_spec(tiny_space))
    outage, looks = Outage(server, study), iter(range(100))

    def stop() -> bool:
        if next(looks) == 1:
            outage.begin()
        return False

    def end_when_trained() -> None:
        until(lambda: bool(checkpoints(tmp_path / "trial-0")))  # the one of its last step
        begun = begin(partial(GruTraining, decoder_config(study.spec), data), tmp_path / "trial-0")
        reached.append(begun.training.step)
        until(lambda: "trying again" in caplog.text)
        outage.end()

    worker, reached = Worker(study, data, tmp_path, RECORD, stop), list[int]()
    trial = study.claim(worker.process, RECORD)
    assert trial is not None
    helper = threading.Thread(target=end_when_trained)
    helper.start()
    with caplog.at_level("WARNING"):
        outcome = worker.run_trial(trial)
    helper.join()
    assert reached == [6]
    assert isinstance(outcome, Completed)
    assert [step for step, _, _ in curve(study, trial)] == [2, 4, 6]
    record = study.records()[0]
    assert (record.state, record.step, record.last_value) == ("complete", 6, record.value)


def test_weights_of_a_worker_that_is_cut_off_beyond_its_lease_wait_for_the_answer(
    make_study: Make,
    tiny_space: Path,
    data: Recordings,
    tmp_path: Path,
    server: EmbeddedServer,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Another may hold the trial meanwhile, and write its weights into the folder that they share."""
    tiny_space.write_text(TINY + "attempts: {lease_seconds: 1}")
    study = make_study(load_spec(tiny_space))
    outage, looks = Outage(server, study), iter(range(100))
    folder, while_away = tmp_path / "trial-0", list[str]()

    def stop() -> bool:
        match next(looks):
            case 0:  # before anything was evaluated, and so before any weights
                outage.begin()
                end = time.monotonic() + 1
                until(lambda: time.monotonic() > end)
            case 1:  # evaluated, which the database is to be told
                until(lambda: "training continues" in caplog.text)
        return False

    def end_when_trained() -> None:
        until(
            lambda: any(path.name.startswith("checkpoint-00000006") for path in checkpoints(folder))
        )
        while_away.extend(path.name for path in folder.glob("*.safetensors"))
        outage.end()

    worker = Worker(study, data, tmp_path, RECORD, stop)
    trial = study.claim(worker.process, RECORD)
    assert trial is not None
    helper = threading.Thread(target=end_when_trained)
    helper.start()
    with caplog.at_level("WARNING"):
        assert isinstance(worker.run_trial(trial), Completed)
    helper.join()
    assert while_away == []
    assert sorted(path.name for path in folder.iterdir()) == [
        "best.safetensors",
        "last.safetensors",
    ]


def test_a_signal_while_the_database_is_away_keeps_the_work(
    make_study: Make,
    tiny_space: Path,
    data: Recordings,
    tmp_path: Path,
    server: EmbeddedServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The next attempt brings the curve of the steps that the first one could not tell."""
    monkeypatch.setattr("hpo.worker.worker.HAND_BACK_SECONDS", 1.0)
    tiny_space.write_text(TINY + "attempts: {lease_seconds: 1}")
    study = make_study(load_spec(tiny_space))
    outage, looks = Outage(server, study), iter(range(100))

    def stop() -> bool:
        look = next(looks)
        if look == 1:
            outage.begin()
        return look >= 5

    worker = Worker(study, data, tmp_path, RECORD, stop)
    assert worker.run() == 0  # and no error: a signal ends a worker well
    outage.end()
    assert study.records()[0].state == "running"
    until(lambda: state_after_sweep(study) == "waiting")
    assert Worker(study, data, tmp_path, RECORD).run() == 4
    record = study.records()[0]
    trial = study.optuna.get_trials()[0]
    with study.engine.begin():
        assert list(trial.intermediate_values) == [2, 4, 6]
    assert (record.state, record.attempts) == ("complete", 2)


def test_a_training_that_hangs_loses_its_lease_and_writes_nothing_afterwards(
    make_study: Make, tiny_space: Path, data: Recordings, tmp_path: Path
) -> None:
    tiny_space.write_text(TINY + "attempts: {lease_seconds: 5, checkpoint_seconds: 0}")
    study = make_study(load_spec(tiny_space))
    taken, looks = list[int](), iter(range(100))

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
    trial = study.claim(worker.process, RECORD)
    assert trial is not None
    assert worker.run_trial(trial) is None
    assert taken == [0]
    assert [int(path.name.split("-")[1]) for path in checkpoints(tmp_path / "trial-0")] == [2]
    assert [step for step, _, _ in curve(study, trial)] == [2]
    assert study.records()[0].state == "running"


def test_a_worker_leaves_a_host_on_which_everything_fails(
    make_study: Make, tiny_space: Path, data: Recordings, tmp_path: Path
) -> None:
    study, good = make_study(load_spec(tiny_space)), Process("good", "1:1")
    first, held = study.claim(good, RECORD), study.claim(good, RECORD)
    assert first and held
    assert Worker(study, data, tmp_path, RECORD, process=good).run_trial(first)
    data.data.n_features = 7  # the model is built for other features than the batches have
    with pytest.raises(
        BadNodeError,
        match=r"the last trials failed on this host \(RuntimeError: .*while other hosts",
    ) as raised:
        Worker(study, data, tmp_path, RECORD).run()
    assert raised.value.exit_code == 4
    assert [record.state for record in study.records()] == [
        "complete",
        "running",
        "waiting",
        "waiting",
    ]


def test_a_budget_that_is_spent_ends_trials_with_a_checkpoint(
    make_study: Make,
    tiny_space: Path,
    data: Recordings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("hpo.worker.reporter.LOOK_SECONDS", 0.0)
    monkeypatch.setattr("hpo.worker.reporter.RENEW_SECONDS", 0.05)
    tiny_space.write_text(
        long(100_000, 2).replace("trials: 4", "trials: 4, gpu_hours: 0.00005")
    )  # 0.18 s
    study = make_study(load_spec(tiny_space))
    worker = Worker(study, data, tmp_path, RECORD)
    trial = study.claim(worker.process, RECORD)
    assert trial is not None
    outcome = worker.run_trial(trial)
    assert isinstance(outcome, Interrupted) and "GPU-hours are spent" in outcome.reason
    assert study.records()[0].state == "waiting"
    assert checkpoints(tmp_path / "trial-0")
    assert worker.run() == 0


def test_a_worker_with_other_code_is_refused(
    make_study: Make, tiny_space: Path, tiny_data: Path
) -> None:
    study = make_study(load_spec(tiny_space), path=str(tiny_data))
    study.settle(None, "0.0 elsewhere")
    with pytest.raises(
        StudyError,
        match=rf"made with hpo 0.0 elsewhere; here it is {code_version()}. Install that version, or take --allow-diff",
    ):
        run_worker(study, tiny_data, torch.device("cpu"), None, lambda: True)


# ---- processes


class WorkerProcess:
    """`hpo worker` on a trial without end."""

    def __init__(self, study: Study, data: Path, log: Path):
        command = [
            sys.executable,
            "-m",
            "hpo.cli",
            "worker",
            "--study",
            study.name,
            "--data",
            str(data),
            "--device",
            "cpu",
        ]
        self.log = log
        with log.open("w") as output:
            self.process = subprocess.Popen(
                [*command, "--threads", "1"], stdout=output, stderr=output
            )
        until(lambda: study.records()[0].step > 20)


@pytest.fixture
def endless(make_study: Make, tiny_space: Path, tiny_data: Path) -> Study:
    tiny_space.write_text(long(1_000_000, 1_000))
    spec = load_spec(tiny_space)
    sentences = recordings(tiny_data, spec, 0.1)
    return make_study(spec, fingerprint=sentences.fingerprint, path=str(tiny_data))


def test_a_launch_says_that_its_database_is_away_and_goes_on(
    database: Database, tiny_space: Path, tiny_data: Path, server: EmbeddedServer
) -> None:
    running = Running(database, tiny_space, tiny_data)
    outage = Outage(server, Study.open(database, "tiny"))
    assert running.process.stdout
    outage.begin()
    assert any(line.strip() == AWAY for line in running.process.stdout)
    outage.end()
    assert any(line.startswith("The database answers again") for line in running.process.stdout)
    for pid in running.workers():
        os.kill(
            pid, signal.SIGTERM
        )  # as its scheduler does, or the clock before a wall limit: none is started again
    _, err = running.process.communicate(timeout=60)
    assert (running.process.returncode, err.count("\n")) == (1, 1)
    assert "trials wait for a worker; run the same command to continue" in err


def test_workers_that_trials_kill_are_started_again_and_those_that_never_begin_are_not(
    endless: Study, tiny_data: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such trials fail by themselves, and the study has room for some."""
    monkeypatch.setattr("hpo.launch.launcher.RESTARTS", 0)
    launcher = Launcher(endless, database, Plan(("cpu",), 1), tiny_data)
    launcher._start(launcher._new("cpu"))

    def kill() -> None:
        launcher._running[0].kill()
        launcher._running[0].wait()
        launcher._look_after()

    for attempts in (1, 2):
        until(lambda attempts=attempts: endless.records()[0].attempts == attempts)  # type: ignore[misc]
        kill()
    with pytest.raises(WorkerError, match="worker 0 ended with SIGKILL"):
        kill()


def test_a_cluster_job_that_must_leave_while_its_database_is_away_has_work_left(
    endless: Study, tiny_data: Path, database: Database, server: EmbeddedServer
) -> None:
    """It is put back into the queue then: one that is not is lost to the study."""
    outage = Outage(server, endless)

    def leave() -> None:
        until(lambda: endless.records()[0].step > 20)
        outage.begin()
        os.kill(os.getpid(), signal.SIGTERM)

    helper = threading.Thread(target=leave)
    helper.start()
    try:
        assert run_node(endless, database, Plan(("cpu",), 1), tiny_data, StopFlag(), False)
    finally:
        helper.join()
        outage.end()


def test_a_study_that_is_deleted_ends_its_workers_with_one_line(
    endless: Study, database: Database
) -> None:
    def delete() -> None:
        until(lambda: endless.records()[0].step > 20)
        optuna.delete_study(study_name=endless.name, storage=database.url)

    helper = threading.Thread(target=delete)
    helper.start()
    done = asked("worker", "--study", "s", "--device", "cpu")
    helper.join()
    assert (done.returncode, done.stderr) == (
        2,
        "hpo: study s was deleted. Run the launch command again for a new one\n",
    )
    with pytest.raises(StudyError, match="was deleted"):  # what a launch asks for
        endless.records()


def test_sigusr1_hands_the_trial_back_and_ends_well(endless: Study) -> None:
    def send() -> None:
        until(lambda: endless.records()[0].step > 20)
        os.kill(os.getpid(), signal.SIGUSR1)

    helper = threading.Thread(target=send)
    helper.start()
    done = asked("worker", "--study", "s", "--device", "cpu")
    helper.join()
    assert done.returncode == 0, done.stderr
    handed_back_by_a_signal(endless)


def handed_back_by_a_signal(study: Study) -> None:
    record = study.records()[0]
    assert (record.state, record.cause, record.reason) == ("waiting", "interrupted", "a signal")
    assert int(checkpoints(study_folder(study) / "trial-0")[0].name.split("-")[1]) == record.step


def test_a_signal_is_heard_while_the_database_hangs(
    endless: Study, tiny_data: Path, tmp_path: Path, database: Database
) -> None:
    """Its connections stand, and no answer comes, as when the disk of its machine hangs. 30 s are what SLURM gives."""
    running = WorkerProcess(endless, tiny_data, tmp_path / "log")
    connection = psycopg2.connect(
        make_url(database.url).set(drivername="postgresql").render_as_string(hide_password=False)
    )
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT pid FROM pg_stat_activity WHERE application_name ~ %s",
            (rf"^hpo \S+ {running.process.pid}$",),
        )
        halted = [pid for (pid,) in cursor.fetchall()]
    connection.close()
    try:
        for pid in halted:
            os.kill(pid, signal.SIGSTOP)
        running.process.terminate()
        assert running.process.wait(30) == 0
    finally:
        for pid in halted:
            os.kill(pid, signal.SIGCONT)
        running.process.kill()
    assert checkpoints(study_folder(endless) / "trial-0")  # from which the trial goes on


@pytest.mark.parametrize(
    ("shared", "says"), [(True, "resumes after step {}"), (False, "restarts at step 0")]
)
def test_a_trial_goes_on_elsewhere_from_the_shared_folder_only(
    endless: Study,
    tiny_data: Path,
    tmp_path: Path,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    shared: bool,
    says: str,
) -> None:
    """Two homes stand for two machines."""
    if shared:
        (tmp_path / "shared").mkdir()
        endless.settle(tmp_path / "shared", "")
    else:
        endless.optuna.set_user_attr("artifacts", str(tmp_path / "not-mounted"))

    def work_at(machine: str) -> int:
        """Returns the step at which it left."""
        monkeypatch.setenv("HPO_HOME", str(tmp_path / machine))
        looks = iter(range(100))
        assert (
            run_worker(
                Study.open(database, "s"),
                tiny_data,
                torch.device("cpu"),
                None,
                lambda: next(looks) > 30,
            )
            == 0
        )
        return endless.records()[0].step

    left = work_at("one")
    assert left > 20
    with caplog.at_level("INFO"):
        work_at("other")
    assert says.format(left) in caplog.text
    assert ("does not exist on this machine" in caplog.text) == (not shared)
    assert (endless.records()[0].number, endless.records()[0].attempts) == (0, 2)


def test_a_worker_needs_two_connections_says_whose_they_are_and_hands_back_at_ctrl_c(
    endless: Study, tiny_data: Path, tmp_path: Path, database: Database
) -> None:
    running = WorkerProcess(endless, tiny_data, tmp_path / "log")
    url = make_url(database.url)
    counts = []
    connection = psycopg2.connect(
        url.set(drivername="postgresql").render_as_string(hide_password=False)
    )
    begin = time.monotonic()
    with connection.cursor() as cursor:
        while time.monotonic() < begin + 5:  # over some renewals of the lease
            cursor.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE application_name ~ %s",
                (rf"^hpo \S+ {running.process.pid}$",),
            )
            counts.append(cursor.fetchone()[0])
            connection.rollback()
    connection.close()
    assert 1 <= max(counts) <= 2
    running.process.send_signal(signal.SIGINT)  # the other signals have tests of their own
    assert running.process.wait(30) == 0
    assert "Traceback" not in running.log.read_text()
    handed_back_by_a_signal(endless)
