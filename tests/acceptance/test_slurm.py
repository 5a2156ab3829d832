"""hpo launch --slurm: the batch script, refusals, and real jobs on a SLURM of the tests' own (slurm_cluster.py)."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import slurm_cluster
from helpers.commands import Done, asked, one_line, until
from helpers.paths import GOLDEN, ROOT
from helpers.script_studies import scripts_running, study_file
from helpers.slurm_cluster import Cluster
from helpers.studies import LONG, TINY
from sqlalchemy import make_url

from hpo.errors import CallerError
from hpo.launch import slurm, slurm_element
from hpo.launch.launcher import Launcher, Plan
from hpo.launch.slurm import Element, Job, batch_script
from hpo.store.database import Database
from hpo.study.paths import study_folder
from hpo.study.study import Study
from hpo.study.trial import Record
from hpo.worker.signals import STOP_SIGNALS, StopFlag

SCRIPT = GOLDEN / "slurm.sh"


def test_the_batch_script_is_the_golden_file() -> None:
    """To renew it: RENEW_GOLDEN=1 pytest tests/acceptance/test_slurm.py -k golden, and look at what `git diff` shows."""
    job = Job(
        4,
        "a100:8",
        "gpu",
        "8:00:00",
        "lab",
        ("cpus-per-gpu=4", "exclusive", "comment=night run #2"),
    )
    folder = Path("/home/ann/my studies/100%/lr-aug-0123abcd")
    command = [
        "/opt/venv/bin/python",
        "-m",
        "hpo.cli",
        "worker",
        "--study",
        "lr-aug",
        "--data",
        "/data/a b",
    ]
    script = batch_script(job.directives("hpo-lr-aug-0123abcd", folder), command)
    if os.environ.get("RENEW_GOLDEN"):
        SCRIPT.write_text(script)
    assert script == SCRIPT.read_text()


def test_what_is_not_asked_is_left_to_the_cluster() -> None:
    directives = Job(gpus_per_node="0").directives("name", Path("/f"))
    assert not {"partition", "time", "account", "gres"} & set(directives)
    assert directives["array"] == "0-0"


@pytest.mark.parametrize(
    "time", ["90", "90:30", "8:00:00", "2-12", "2-12:30", "2-12:30:00", "UNLIMITED"]
)
def test_every_format_of_a_time_limit_is_taken(time: str) -> None:
    assert Job(time=time).directives("name", Path("/f"))["time"] == time


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"time": "8h"}, "--time 8h: valid is MINUTES"),
        ({"time": "1:2:3:4"}, "--time"),
        ({"time": "8:00:00\n#SBATCH --wrap=x"}, "--time"),
        ({"nodes": 0}, "--nodes 0: valid is 1 or more"),
        ({"gpus_per_node": "all"}, "--gpus-per-node all"),
        ({"partition": "a b"}, "--partition 'a b'"),
        ({"account": ""}, "--account ''"),
        ({"options": ("partition=gpu",)}, "give --partition instead"),
        ({"options": ("export=NONE",)}, "hpo sets this one itself"),
        ({"options": ("--mem=3",)}, "without its dashes"),
        ({"options": ("comment=a\nb",)}, "control character"),
        ({"options": ('comment="',)}, "a quote"),
    ],
)
def test_what_slurm_could_not_read_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(CallerError, match=re.escape(message)):
        Job(**given)


def test_the_users_defaults_for_sbatch_do_not_stand_above_what_was_asked() -> None:
    given = dict.fromkeys(
        ("SBATCH_TIMELIMIT", "SBATCH_ARRAY_INX", "SBATCH_EXPORT", "SBATCH_ACCOUNT", "PATH"), "x"
    )
    assert set(slurm._without_defaults(given, Job(time="1").directives("n", Path("/f")))) == {
        "SBATCH_ACCOUNT",
        "PATH",
    }


def test_squeue_is_read() -> None:
    printed = "12_0|RUNNING|gpu|n1|7:59:01\n12_1|PENDING|gpu|(Resources)|8:00:00\n\n"
    found = slurm.parse_elements(printed)
    assert found == [
        Element("12_0", "RUNNING", "gpu", "n1", "7:59:01"),
        Element("12_1", "PENDING", "gpu", "(Resources)", "8:00:00"),
    ]
    assert slurm.in_words(found) == "1 running, 1 pending"
    assert [str(element) for element in found] == [
        "12_0 running n1, 7:59:01 left",
        "12_1 pending (Resources)",
    ]


@pytest.mark.parametrize(
    ("left", "seconds"),
    [
        ("0:07", 7),
        ("1:02:03", 3723),
        ("2-00:00:01", 172801),
        ("UNLIMITED", None),
        ("INVALID", None),
        ("", None),
    ],
)
def test_the_time_left_is_read(left: str, seconds: int | None) -> None:
    assert slurm_element.seconds_of(left) == seconds


def in_job(monkeypatch: pytest.MonkeyPatch, **more: float | str) -> None:
    for key, value in {"SLURM_JOB_ID": 7, **more}.items():
        monkeypatch.setenv(key, str(value))


def test_when_to_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    assert slurm_element.leave_at() is None
    in_job(monkeypatch, SLURM_JOB_START_TIME=1000, SLURM_JOB_END_TIME=1000 + 8 * 3600)
    assert slurm_element.leave_at() == 1000 + 8 * 3600 - 120
    monkeypatch.setenv("SLURM_JOB_END_TIME", "1600")
    assert slurm_element.leave_at() == 1600 - 60
    monkeypatch.setenv("HPO_WALL_MARGIN", "5")
    assert slurm_element.leave_at() == 1595
    for wrong in ("5m", "600", "nan"):
        monkeypatch.setenv("HPO_WALL_MARGIN", wrong)
        with pytest.raises(
            CallerError,
            match=f"HPO_WALL_MARGIN={wrong}: valid is a number of seconds, less than the job's 600",
        ):
            slurm_element.leave_at()
    monkeypatch.setenv("HPO_LEAVE_AT", "1234.5")
    assert slurm_element.leave_at() == 1234.5


def test_a_limit_that_slurm_does_not_tell_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    in_job(monkeypatch, PATH="/nowhere")  # in a container without SLURM's commands
    assert slurm_element.leave_at() is None


def test_the_flag_is_raised_by_the_clock_and_by_a_schedulers_signals() -> None:
    assert not StopFlag(time.time() + 60)()
    assert StopFlag(time.time() - 1)()
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM):
        flag = StopFlag()
        flag.catch_signals()
        os.kill(os.getpid(), number)
        assert flag()
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_schedulers_second_signal_kills_no_worker_that_saves_its_state(
    database: Database,
) -> None:
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(60)"
    worker = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert worker.stdout and worker.stdout.readline()
    launcher = Launcher(Study.__new__(Study), database, Plan(("cpu",), 1), None)
    launcher.running[0] = worker
    for number in (signal.SIGUSR1, signal.SIGTERM):
        launcher._stop(number, None)
    with pytest.raises(subprocess.TimeoutExpired):
        worker.wait(0.3)
    launcher._stop(signal.SIGINT, None)
    assert worker.wait(10) == -signal.SIGKILL


def test_a_worker_leaves_before_the_wall_limit(
    database: Database, tiny_space: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this process, which has imported all that a start takes seconds for: the limit is 5 s away."""
    tiny_space.write_text(LONG)
    launch(tiny_space, tiny_data, "--trials", "0")
    asked("budget", "--study", "tiny", "--trials", "2")
    now = time.time()
    in_job(
        monkeypatch,
        SLURM_JOB_START_TIME=now - 3600,
        SLURM_JOB_END_TIME=now + 1000,
        HPO_WALL_MARGIN=995,
    )
    done = asked("worker", "--study", "tiny", "--device", "cpu")
    assert (done.returncode, done.stdout) == (
        0,
        "0 trials ended here; stopped by a signal or the wall limit\n",
    ), done.stderr
    record = Study.open(database, "tiny").records()[0]
    assert (record.state, record.step > 0) == ("waiting", True)


# ---- refusals on the command line


@pytest.fixture
def sbatch_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An sbatch that says what the real one says, a squeue that shows nothing."""
    folder = tmp_path / "bin"
    folder.mkdir()
    message = "sbatch: error: Batch job submission failed: Invalid partition name specified"
    for name, body in {"sbatch": f"echo '{message}' >&2; exit 1", "squeue": "exit 0"}.items():
        (folder / name).write_text(f"#!/bin/sh\n{body}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def launch(space: Path, data: Path, *more: str) -> Done:
    return asked("launch", "--study", space, "--data", data, "--device", "cpu", *more)


def refused(arguments: tuple[str | Path, ...], code: int, *parts: str) -> None:
    one_line(asked(*arguments), code, *parts)


def test_mistakes_on_the_command_line(
    database: Database,
    tiny_space: Path,
    tiny_data: Path,
    monkeypatch: pytest.MonkeyPatch,
    sbatch_refuses: None,
) -> None:
    line = ("launch", "--study", tiny_space, "--data", tiny_data)
    submitted = (*line, "--slurm")
    refused((*line, "--nodes", "2"), 2, "--nodes without --slurm")
    refused((*line, "--slurm-option", "mem=3"), 2, "--slurm-option without --slurm")
    refused((*submitted, "--nodes", "0"), 2, "--nodes 0: valid is 1 or more")
    refused((*submitted, "--workers", "2"), 2, "--workers 2 with --slurm")
    refused((*submitted, "--device", "cuda:1"), 2, "--device cuda:1", "Valid here: cpu, cuda")
    refused((*submitted, "--per-gpu", "x"), 2, "--per-gpu x")
    refused(("worker", "--study", "s", "--requeue"), 2, "add --all-gpus")
    refused(
        ("worker", "--study", "s", "--all-gpus", "--threads", "2"), 2, "--threads 2 with --all-gpus"
    )
    refused(
        (*submitted, "--partition", "gpo"), 1, "submission failed: Invalid partition name specified"
    )
    monkeypatch.setenv("HPO_HOME", f"{os.environ['HPO_HOME']}\\x")
    refused(submitted, 2, "see HPO_HOME", "backslash")
    monkeypatch.delenv("HPO_DATABASE_URL")
    refused(
        submitted, 2, "the embedded Postgres answers on this machine only", "Set HPO_DATABASE_URL"
    )
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    refused(submitted, 1, "sbatch: no such program here", "login node")


def test_a_node_without_gpus_does_not_train_on_its_cpu_unasked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    refused(("worker", "--study", "s", "--all-gpus"), 1, "sees no CUDA device", "--device cpu")


# ---- real jobs


def test_a_cluster_that_does_not_start_leaves_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    if reason := slurm_cluster.missing():
        pytest.skip(reason)
    monkeypatch.setattr(
        slurm_cluster,
        "CONFIGURATION",
        slurm_cluster.CONFIGURATION.replace("NodeName=n2", "NodeName=n3"),
    )
    broken = Cluster()
    try:
        with pytest.raises(AssertionError):
            broken.start()
    finally:
        broken.stop()
    assert not broken._processes()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    if reason := slurm_cluster.missing():
        pytest.skip(reason)
    found = Cluster()
    try:
        found.start()
        yield found
    finally:
        found.stop()


@pytest.fixture
def slurm_here(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    monkeypatch.setenv("SLURM_CONF", str(cluster.configuration))
    yield cluster
    cluster.ask("scancel", "--user=root")
    until(lambda: not cluster.queue())


def log_texts() -> dict[str, str]:
    return {
        file.name: file.read_text()
        for file in Path(os.environ["HPO_HOME"]).glob("studies/tiny-*/logs/*")
    }


def test_two_nodes_run_the_budget_and_leave(
    slurm_here: Cluster, database: Database, tiny_space: Path, tiny_data: Path
) -> None:
    tiny_space.write_text(TINY.replace("trials: 4", "trials: 8"))
    line = (
        "--slurm",
        "--nodes",
        "2",
        "--gpus-per-node",
        "2",
        "--time",
        "10",
        "--per-gpu",
        "1",
        "--slurm-option",
        "comment=a b",
    )
    done = launch(tiny_space, tiny_data, *line)
    assert done.returncode == 0, done.stderr
    number = re.findall(r"cancel     scancel (\d+)", done.stdout)[0]
    assert "watch      hpo status --study tiny\n" in done.stdout
    assert "2 nodes through SLURM, 2 GPUs per node, time limit 10" in done.stdout
    until(lambda: not slurm_here.queue(), 90)
    records = Study.open(database, "tiny").records()
    assert sum(record.state in ("complete", "stopped") for record in records) == 8
    assert {record.attempts for record in records} == {1}
    shown = slurm_here.ask("scontrol", "show", "job", number)
    assert re.findall(r"JobState=(\w+)", shown) == ["COMPLETED", "COMPLETED"], log_texts()
    assert re.findall(r"Restarts=(\d)", shown) == ["0", "0"]
    assert {f"slurm-{number}_0.log", f"worker-slurm-{number}_1-0.log"} <= set(log_texts())
    assert (
        "SLURM no job of this study is waiting or running" in asked("status", "--study", "tiny").stdout
    )
    assert "Nothing is left to do" in launch(tiny_space, tiny_data, *line).stdout


def test_a_script_is_trained_through_slurm(
    slurm_here: Cluster, database: Database, tmp_path: Path
) -> None:
    """A cancelled element ends its script, and another one goes on with the trial."""
    space = study_file(tmp_path, {"fixed": {"seconds": 0.1}, "gpus": 2}, budget={"trials": 4})
    arguments = ("launch", "--study", space, "--name", "script", "--slurm", "--nodes", "2")
    one_line(asked(*arguments), 2, "--gpus-per-node 1: a training of this study takes 2 GPUs")
    line = (*arguments, "--gpus-per-node", "2", "--device", "cpu", "--per-gpu", "1", "--time", "10")
    done = asked(*line)
    assert done.returncode == 0, done.stderr
    study = Study.open(database, "script")
    until(lambda: any(record.step > 10 for record in study.records()), 90)
    slurm_here.ask("scancel", "--user=root")
    until(lambda: not slurm_here.queue(), 90)
    assert not any(record.state == "running" for record in study.records())
    assert scripts_running(study_folder(study)) == []
    done = asked(*line)
    assert done.returncode == 0, done.stderr
    until(study.budget_spent, 120)
    until(lambda: not slurm_here.queue(), 90)
    records = study.records()
    assert [record.state for record in records].count("complete") == 4
    assert max(record.attempts for record in records) > 1
    assert scripts_running(study_folder(study)) == []


def test_preemption_the_wall_limit_and_cancelling(
    slurm_here: Cluster,
    database: Database,
    tiny_space: Path,
    tiny_data: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One study, because each start of a worker takes seconds: a job is pre-empted, one meets its wall limit, both go on."""
    tiny_space.write_text(LONG.replace("trials: 2", "trials: 3"))
    line = ("--slurm", "--partition", "low", "--per-gpu", "1")

    def submitted(*more: str) -> str:
        done = launch(tiny_space, tiny_data, *line, *more)
        assert done.returncode == 0, done.stderr
        return str(re.findall(r"submitted  job (\d+)", done.stdout)[0])

    def records() -> list[Record]:
        return Study.open(database, "tiny").records()

    def element(job: str) -> dict[str, str]:
        return dict(
            re.findall(r"(\w+)=(\S*)", slurm_here.ask("scontrol", "show", "job", f"{job}_0"))
        )

    def worker_log(job: str) -> str:
        return log_texts().get(f"worker-slurm-{job}_0-0.log", "")

    preempted = submitted("--time", "1:00:00")
    until(lambda: [r.step > 20 for r in records()][:1] == [True])
    again = launch(tiny_space, tiny_data, *line)
    assert (
        again.returncode,
        "Already in SLURM's queue: 1 running. Nothing was submitted" in again.stdout,
    ) == (0, True)
    status = json.loads(asked("status", "--study", "tiny", "--json").stdout)
    node = element(preempted)["NodeList"]
    assert [(job["id"], job["state"], job["where"]) for job in status["jobs"]] == [
        (f"{preempted}_0", "RUNNING", node)
    ]

    # the password is in the environment alone
    password = make_url(database.url).password
    assert password and slurm_here.ask("scontrol", "show", "job", "-dd").count("JobId=") >= 1
    script = slurm_here.ask("scontrol", "write", "batch_script", f"{preempted}_0", "-")
    assert "exec " in script
    for shown in (
        script,
        slurm_here.ask("scontrol", "show", "job", "-dd"),
        slurm_here.ask("ps", "-eo", "args"),
        *log_texts().values(),
    ):
        assert password not in shown

    # another job, which will meet its wall limit meanwhile
    monkeypatch.setenv(
        "HPO_WALL_MARGIN", "25"
    )  # of its 60 s, the shortest limit: a worker starts within 35 s on a busy machine
    limited = submitted("--time", "1", "--slurm-more")

    # pre-emption: the trial is handed back within the grace time, the element is requeued once
    slurm_here.ask(
        "sbatch",
        "--partition=high",
        "--exclusive",
        f"--nodelist={node}",
        "--output=/dev/null",
        "--wrap=true",
    )
    until(lambda: records()[0].state == "waiting", 8)
    step = records()[0].step
    assert step > 20

    # the wall limit
    until(
        lambda: min(worker_log(job).count("begins") for job in (limited, preempted)) >= 2, 300
    )  # both are back
    assert "stopped by a signal or the wall limit" in worker_log(limited)
    assert int(element(limited)["Restarts"]) >= 1
    assert element(preempted)["Restarts"] == "1"

    def resumed() -> list[int]:
        return [
            int(found)
            for found in re.findall(
                r"resumes after step (\d+)", worker_log(preempted) + worker_log(limited)
            )
        ]

    until(lambda: len(resumed()) >= 2)  # whichever job has them now
    assert step in resumed()
    until(lambda: records()[0].step > step)
    assert {record.number for record in records() if record.attempts} <= {
        0,
        1,
    }  # no trial was lost, none came for it

    # cancelling: handed back, not requeued
    until(lambda: "COMPLETING" not in slurm_here.queue())
    slurm_here.ask("scancel", preempted, limited)
    until(lambda: not slurm_here.queue())
    assert {element(job)["JobState"] for job in (preempted, limited)} == {"CANCELLED"}
    assert {record.state for record in records()} == {"waiting"}


# ---- other schedulers


def test_the_kubernetes_manifest_of_the_readme_is_valid() -> None:
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    text = (ROOT / "README.md").read_text()
    manifests = [
        yaml.safe_load(block)
        for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
        if "apiVersion" in block
    ]
    assert [manifest["kind"] for manifest in manifests] == ["Job"]
    kubernetes_validate.validate(manifests[0], "1.31", strict=True)
