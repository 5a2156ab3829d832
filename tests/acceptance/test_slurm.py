"""hpo launch --slurm: the batch script, refusals, and real jobs on a SLURM that the tests start."""

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
from helpers.commands import Done, launch, one_line, run_hpo, until
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
    """RENEW_GOLDEN=1 pytest tests/acceptance/test_slurm.py -k golden renews it; see `git diff`."""
    options = ("cpus-per-gpu=4", "exclusive", "comment=night run #2")
    job = Job(4, "a100:8", "gpu", "8:00:00", "lab", options)
    folder = Path("/home/ann/my studies/100%/lr-aug-0123abcd")
    command = ["/opt/venv/bin/python", "-m", "hpo.cli", "worker"]
    command += ["--study", "lr-aug", "--data", "/data/a b"]
    script = batch_script(job.directives("hpo-lr-aug-0123abcd", folder), command)
    if os.environ.get("RENEW_GOLDEN"):
        SCRIPT.write_text(script)
    assert script == SCRIPT.read_text()


def test_options_that_are_not_given_are_left_to_the_cluster() -> None:
    directives = Job(gpus_per_node="0").directives("name", Path("/f"))
    assert not {"partition", "time", "account", "gres"} & set(directives)
    assert directives["array"] == "0-0"


@pytest.mark.parametrize(
    "time", ["90", "90:30", "8:00:00", "2-12", "2-12:30", "2-12:30:00", "UNLIMITED"]
)
def test_every_format_of_a_time_limit_is_accepted(time: str) -> None:
    assert Job(time=time).directives("name", Path("/f"))["time"] == time


@pytest.mark.parametrize(
    ("options", "message"),
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
def test_an_option_that_slurm_cannot_read_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(CallerError, match=re.escape(message)):
        Job(**options)


def test_options_win_over_the_sbatch_variables_of_the_user() -> None:
    variables = ("SBATCH_TIMELIMIT", "SBATCH_ARRAY_INX", "SBATCH_EXPORT", "SBATCH_ACCOUNT", "PATH")
    environment = dict.fromkeys(variables, "x")
    directives = Job(time="1").directives("n", Path("/f"))
    remaining = slurm.without_defaults(environment, directives)
    assert set(remaining) == {"SBATCH_ACCOUNT", "PATH"}


@pytest.mark.parametrize(
    ("options", "removed"),
    [
        (("mem=8G",), {"MEM_PER_CPU", "MEM_PER_GPU", "MEM_PER_NODE"}),
        (("mem-per-gpu=8G",), {"MEM_PER_CPU", "MEM_PER_GPU", "MEM_PER_NODE"}),
        (("mem-per-c=8G",), {"MEM_PER_CPU", "MEM_PER_GPU", "MEM_PER_NODE"}),
        (("cpus-per-task=8",), {"CPUS_PER_TASK", "CPUS_PER_GPU"}),
        (("qos=low",), {"QOS"}),
        (("oversubscribe",), {"EXCLUSIVE"}),
        ((), set()),
    ],
)
def test_variables_of_options_that_exclude_each_other_are_removed_together(
    options: tuple[str, ...], removed: set[str]
) -> None:
    always = {"WAIT", "NO_REQUEUE", "GPUS", "GPUS_PER_NODE", "GPUS_PER_TASK", "GRES", "ERROR"}
    others = {"MEM_PER_CPU", "MEM_PER_GPU", "MEM_PER_NODE", "CPUS_PER_TASK", "CPUS_PER_GPU"}
    others |= {"QOS", "EXCLUSIVE", "MEM_BIND", "CONSTRAINT"}
    environment = {f"SBATCH_{name}": "x" for name in always | others}
    directives = Job(options=options).directives("n", Path("/f"))
    remaining = slurm.without_defaults(environment, directives)
    assert set(remaining) == {f"SBATCH_{name}" for name in others - removed}


@pytest.mark.parametrize(
    "option",
    [
        "expor=NONE",
        "wra=ls",
        "outpu=x",
        "arra=0-999",
        "n=4",
        "gpu=2",
        "gpus=2",
        "wai",
        "test",
        "job",
    ],
)
def test_abbreviations_of_what_hpo_sets_are_refused(option: str) -> None:
    with pytest.raises(CallerError, match=r"which hpo sets|instead|hpo sets this"):
        Job(options=(option,))


@pytest.mark.parametrize("option", ["gpus-per-task=1", "wait-all-nodes=1", "time-min=10", "mem=1"])
def test_longer_names_of_other_options_are_accepted(option: str) -> None:
    key, _, value = option.partition("=")
    assert Job(options=(option,)).directives("n", Path("/f"))[key] == value


def test_the_output_of_squeue_is_read() -> None:
    printed = "12_0|RUNNING|gpu|n1|7:59:01\n12_1|PENDING|gpu|(Resources)|8:00:00\n\n"
    elements = slurm.parse_elements(printed)
    assert elements == [
        Element("12_0", "RUNNING", "gpu", "n1", "7:59:01"),
        Element("12_1", "PENDING", "gpu", "(Resources)", "8:00:00"),
    ]
    assert slurm.count_by_state(elements) == "1 running, 1 pending"
    assert [str(element) for element in elements] == [
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


def in_job(monkeypatch: pytest.MonkeyPatch, **variables: float | str) -> None:
    """Set the environment of a job."""
    for name, value in {"SLURM_JOB_ID": 7, **variables}.items():
        monkeypatch.setenv(name, str(value))


def test_a_worker_leaves_a_margin_before_the_end_of_the_job(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert slurm_element.leave_at() is None
    start = int(time.time())
    in_job(monkeypatch, SLURM_JOB_START_TIME=start, SLURM_JOB_END_TIME=start + 8 * 3600)
    assert slurm_element.leave_at() == start + 8 * 3600 - 120
    monkeypatch.setenv("SLURM_JOB_END_TIME", f"{start + 600}")
    assert slurm_element.leave_at() == start + 600 - 60
    monkeypatch.setenv("HPO_WALL_MARGIN", "5")
    assert slurm_element.leave_at() == start + 595
    monkeypatch.setenv("HPO_LEAVE_AT", "1234.5")
    assert slurm_element.leave_at() == 1234.5


@pytest.mark.parametrize("margin", ["5m", "600", "nan"])
def test_an_invalid_margin_is_refused(monkeypatch: pytest.MonkeyPatch, margin: str) -> None:
    start = int(time.time())
    in_job(monkeypatch, SLURM_JOB_START_TIME=start, SLURM_JOB_END_TIME=start + 600)
    monkeypatch.setenv("HPO_WALL_MARGIN", margin)
    with pytest.raises(
        CallerError,
        match=f"HPO_WALL_MARGIN={margin}: valid is a number of seconds, less than the job's 600",
    ):
        slurm_element.leave_at()


def test_without_the_commands_of_slurm_a_job_has_no_known_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As in a container."""
    in_job(monkeypatch, PATH="/nowhere")
    assert slurm_element.leave_at() is None


# What squeue prints, and the seconds that are left.
SQUEUE = {"": None, "10:00\n": 600, "0:00\n": 0, "UNLIMITED\n": None, "10:00\n9:00\n": 600}


@pytest.mark.parametrize("end", ["", "Unknown", "1000", "nan", "0", "N/A", "-5", " "])
@pytest.mark.parametrize("printed", SQUEUE)
def test_a_variable_that_tells_no_end_or_a_past_one_is_not_believed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, end: str, printed: str
) -> None:
    """A shell that was opened in a job keeps its variables when the job has ended."""
    squeue = tmp_path / "squeue"
    squeue.write_text(f"#!/bin/sh\nprintf '{printed}'\n")
    squeue.chmod(0o755)
    in_job(monkeypatch, PATH=f"{tmp_path}:{os.environ['PATH']}", SLURM_JOB_END_TIME=end)
    monkeypatch.setenv("SLURM_JOB_START_TIME", end)
    before = time.time()
    leave = slurm_element.leave_at()
    left = SQUEUE[printed]
    if left is None:
        assert leave is None
    else:
        assert leave is not None
        assert before + left - 120 <= leave <= time.time() + left


@pytest.mark.parametrize(
    ("variables", "element"),
    [
        ({}, "7"),
        ({"SLURM_ARRAY_JOB_ID": "5", "SLURM_ARRAY_TASK_ID": "2"}, "5_2"),
        ({"SLURM_ARRAY_JOB_ID": "5"}, "7"),
        ({"SLURM_ARRAY_JOB_ID": "", "SLURM_ARRAY_TASK_ID": ""}, "7"),
        ({"SLURM_ARRAY_JOB_ID": "5", "SLURM_ARRAY_TASK_ID": "Unknown"}, "7"),
        ({"SLURM_JOB_ID": ""}, None),
        ({"SLURM_JOB_ID": "Unknown"}, None),
    ],
)
def test_an_element_is_known_by_numbers_alone(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], element: str | None
) -> None:
    in_job(monkeypatch, **variables)
    assert slurm_element.this_element() == element


def test_the_time_limit_raises_the_flag() -> None:
    assert not StopFlag(time.time() + 60)()
    assert StopFlag(time.time() - 1)()


def test_the_signals_of_a_scheduler_raise_the_flag() -> None:
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM):
        flag = StopFlag()
        flag.catch_signals()
        os.kill(os.getpid(), number)
        assert flag()
    for number, handler in before.items():
        signal.signal(number, handler)


# A worker that is slow to save its state.
IGNORES_SIGTERM = """
import signal
import time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print(flush=True)
time.sleep(60)
"""


def test_only_a_second_ctrl_c_kills_a_worker_that_saves_its_state(database: Database) -> None:
    """Other signals come from a scheduler, which repeats them."""
    worker = subprocess.Popen([sys.executable, "-c", IGNORES_SIGTERM], stdout=subprocess.PIPE)
    assert worker.stdout
    assert worker.stdout.readline()
    launcher = Launcher(Study.__new__(Study), database, Plan(("cpu",), 1), None)
    # The signal handler of a launcher that runs, without its other workers.
    launcher.running[0] = worker
    handle = launcher._stop  # noqa: SLF001
    for number in (signal.SIGUSR1, signal.SIGTERM):
        handle(number, None)
    with pytest.raises(subprocess.TimeoutExpired):
        worker.wait(0.3)
    handle(signal.SIGINT, None)
    assert worker.wait(10) == -signal.SIGKILL


@pytest.mark.slow
def test_a_worker_leaves_before_the_wall_limit(
    database: Database, tiny_space: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit is 5 s away, so the worker runs in this process, which has imported PyTorch."""
    tiny_space.write_text(LONG)
    launch(tiny_space, tiny_data, "--trials", "0")
    run_hpo("budget", "--study", "tiny", "--trials", "2")
    now = time.time()
    in_job(
        monkeypatch,
        SLURM_JOB_START_TIME=now - 3600,
        SLURM_JOB_END_TIME=now + 1000,
        HPO_WALL_MARGIN=995,
    )
    done = run_hpo("worker", "--study", "tiny", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "0 trials ended here; stopped by a signal or the wall limit\n"
    record = Study.open(database, "tiny").records()[0]
    assert record.state == "waiting"
    assert record.step > 0


# ---- refusals on the command line


@pytest.fixture
def sbatch_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An sbatch that prints the error of the real one, and a squeue that prints nothing."""
    folder = tmp_path / "bin"
    folder.mkdir()
    message = "sbatch: error: Batch job submission failed: Invalid partition name specified"
    scripts = {"sbatch": f"echo '{message}' >&2; exit 1", "squeue": "exit 0"}
    for name, body in scripts.items():
        (folder / name).write_text(f"#!/bin/sh\n{body}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def refused(arguments: tuple[str | Path, ...], code: int, *parts: str) -> None:
    one_line(run_hpo(*arguments), code, *parts)


@pytest.mark.usefixtures("database", "sbatch_refuses")
def test_a_mistake_in_an_option_is_one_line(
    tiny_space: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch
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
    all_gpus = ("worker", "--study", "s", "--all-gpus")
    refused((*all_gpus, "--threads", "2"), 2, "--threads 2 with --all-gpus")
    unknown_partition = (*submitted, "--partition", "gpo")
    refused(unknown_partition, 1, "submission failed: Invalid partition name specified")
    monkeypatch.setenv("HPO_HOME", f"{os.environ['HPO_HOME']}\\x")
    refused(submitted, 2, "see HPO_HOME", "backslash")
    monkeypatch.delenv("HPO_DATABASE_URL")
    refused(
        submitted,
        2,
        "the embedded Postgres answers on this machine only",
        "Set HPO_DATABASE_URL",
    )
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    refused(submitted, 1, "sbatch: no such program here", "login node")


def test_a_node_without_gpus_trains_on_its_cpu_only_if_told_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    refused(("worker", "--study", "s", "--all-gpus"), 1, "sees no CUDA device", "--device cpu")


# ---- real jobs


def skip_without_slurm() -> None:
    reason = slurm_cluster.missing()
    if reason:
        pytest.skip(reason)


def test_a_cluster_that_does_not_start_leaves_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    skip_without_slurm()
    without_n2 = slurm_cluster.CONFIGURATION.replace("NodeName=n2", "NodeName=n3")
    monkeypatch.setattr(slurm_cluster, "CONFIGURATION", without_n2)
    broken = Cluster()
    try:
        with pytest.raises(AssertionError):
            broken.start()
    finally:
        broken.stop()
    assert not broken.processes()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    skip_without_slurm()
    started = Cluster()
    try:
        started.start()
        yield started
    finally:
        started.stop()


@pytest.fixture
def slurm_here(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    monkeypatch.setenv("SLURM_CONF", str(cluster.configuration))
    yield cluster
    cluster.ask("scancel", "--user=root")
    until(lambda: not cluster.queue())


def log_texts() -> dict[str, str]:
    logs = Path(os.environ["HPO_HOME"]).glob("studies/tiny-*/logs/*")
    return {file.name: file.read_text() for file in logs}


@pytest.mark.slow
def test_two_nodes_run_the_budget_and_leave(
    slurm_here: Cluster, database: Database, tiny_space: Path, tiny_data: Path
) -> None:
    tiny_space.write_text(TINY.replace("trials: 4", "trials: 8"))
    nodes = ("--slurm", "--nodes", "2", "--gpus-per-node", "2", "--per-gpu", "1")
    line = (*nodes, "--time", "10", "--slurm-option", "comment=a b")
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
    status = run_hpo("status", "--study", "tiny").stdout
    assert "SLURM no job of this study is waiting or running" in status
    assert "Nothing is left to do" in launch(tiny_space, tiny_data, *line).stdout


@pytest.mark.slow
def test_a_script_is_trained_through_slurm(
    slurm_here: Cluster, database: Database, tmp_path: Path
) -> None:
    """A cancelled element ends its script, and another element resumes the trial."""
    space = study_file(tmp_path, {"fixed": {"seconds": 0.1}, "gpus": 2}, budget={"trials": 4})
    arguments = ("launch", "--study", space, "--name", "script", "--slurm", "--nodes", "2")
    one_line(run_hpo(*arguments), 2, "--gpus-per-node 1: a training of this study takes 2 GPUs")
    line = (*arguments, "--gpus-per-node", "2", "--device", "cpu", "--per-gpu", "1", "--time", "10")
    done = run_hpo(*line)
    assert done.returncode == 0, done.stderr
    study = Study.open(database, "script")
    until(lambda: any(record.step > 10 for record in study.records()), 90)
    slurm_here.ask("scancel", "--user=root")
    until(lambda: not slurm_here.queue(), 90)
    assert not any(record.state == "running" for record in study.records())
    assert scripts_running(study_folder(study)) == []
    done = run_hpo(*line)
    assert done.returncode == 0, done.stderr
    until(study.budget_spent, 120)
    until(lambda: not slurm_here.queue(), 90)
    records = study.records()
    assert [record.state for record in records].count("complete") == 4
    assert max(record.attempts for record in records) > 1
    assert scripts_running(study_folder(study)) == []


class Submissions:
    """Jobs of the study `tiny` in the partition `low`."""

    def __init__(self, cluster: Cluster, database: Database, space: Path, data: Path):
        self.cluster = cluster
        self.database = database
        self.space = space
        self.data = data

    def launch(self, *more: str) -> Done:
        options = ("--slurm", "--partition", "low", "--per-gpu", "1")
        return launch(self.space, self.data, *options, *more)

    def submit(self, *more: str) -> str:
        """The number of a new job."""
        done = self.launch(*more)
        assert done.returncode == 0, done.stderr
        return str(re.findall(r"submitted  job (\d+)", done.stdout)[0])

    def records(self) -> list[Record]:
        return Study.open(self.database, "tiny").records()

    def element(self, job: str) -> dict[str, str]:
        """What scontrol shows of the first element of a job."""
        shown = self.cluster.ask("scontrol", "show", "job", f"{job}_0")
        return dict(re.findall(r"(\w+)=(\S*)", shown))

    def preempt(self, node: str) -> None:
        options = ["--partition=high", "--exclusive", f"--nodelist={node}"]
        self.cluster.ask("sbatch", *options, "--output=/dev/null", "--wrap=true")


@pytest.fixture
def submissions(
    slurm_here: Cluster, database: Database, tiny_space: Path, tiny_data: Path
) -> Submissions:
    tiny_space.write_text(LONG.replace("trials: 2", "trials: 3"))
    return Submissions(slurm_here, database, tiny_space, tiny_data)


def worker_log(job: str) -> str:
    return log_texts().get(f"worker-slurm-{job}_0-0.log", "")


@pytest.mark.slow
def test_preemption_the_wall_limit_and_cancelling(
    submissions: Submissions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job is preempted, another one meets its wall limit, both resume and are cancelled.

    One study has all of it, because each start of a worker takes seconds.
    """
    cluster = submissions.cluster
    records = submissions.records
    preempted = submissions.submit("--time", "1:00:00")
    until(lambda: records() and records()[0].step > 20)
    again = submissions.launch()
    assert again.returncode == 0
    assert "Already in SLURM's queue: 1 running. Nothing was submitted" in again.stdout
    status = json.loads(run_hpo("status", "--study", "tiny", "--json").stdout)
    node = submissions.element(preempted)["NodeList"]
    jobs = [(job["id"], job["state"], job["where"]) for job in status["jobs"]]
    assert jobs == [(f"{preempted}_0", "RUNNING", node)]

    # The password is in the environment alone.
    password = make_url(submissions.database.url).password
    assert password
    job_details = cluster.ask("scontrol", "show", "job", "-dd")
    assert "JobId=" in job_details
    script = cluster.ask("scontrol", "write", "batch_script", f"{preempted}_0", "-")
    assert "exec " in script
    processes = cluster.ask("ps", "-eo", "args")
    for text in (script, job_details, processes, *log_texts().values()):
        assert password not in text

    # Another job, which will meet its wall limit meanwhile. The margin is 25 s of its 60 s, the
    # shortest limit: a worker starts within 35 s on a busy machine.
    monkeypatch.setenv("HPO_WALL_MARGIN", "25")
    limited = submissions.submit("--time", "1", "--slurm-more")

    # Preemption: the trial is handed back within the grace time, the element is requeued once.
    submissions.preempt(node)
    until(lambda: records()[0].state == "waiting", 8)
    step = records()[0].step
    assert step > 20

    # The wall limit. Both jobs come back.
    def has_begun_twice(job: str) -> bool:
        return worker_log(job).count("begins") >= 2

    until(lambda: has_begun_twice(limited) and has_begun_twice(preempted), 300)
    assert "stopped by a signal or the wall limit" in worker_log(limited)
    assert int(submissions.element(limited)["Restarts"]) >= 1
    assert submissions.element(preempted)["Restarts"] == "1"

    def resumed_after() -> list[int]:
        """Whichever job has which trial now."""
        logs = worker_log(preempted) + worker_log(limited)
        return [int(step) for step in re.findall(r"resumes after step (\d+)", logs)]

    until(lambda: len(resumed_after()) >= 2)
    assert step in resumed_after()
    until(lambda: records()[0].step > step)
    # No trial was lost, and none was added for it.
    assert {record.number for record in records() if record.attempts} <= {0, 1}

    # Cancelling: the trials are handed back, the jobs are not requeued.
    until(lambda: "COMPLETING" not in cluster.queue())
    cluster.ask("scancel", preempted, limited)
    until(lambda: not cluster.queue())
    for job in (preempted, limited):
        assert submissions.element(job)["JobState"] == "CANCELLED"
    assert {record.state for record in records()} == {"waiting"}


# ---- other schedulers


def test_the_kubernetes_manifest_of_the_readme_is_valid() -> None:
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    text = (ROOT / "README.md").read_text()
    blocks = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    manifests = [yaml.safe_load(block) for block in blocks if "apiVersion" in block]
    assert [manifest["kind"] for manifest in manifests] == ["Job"]
    kubernetes_validate.validate(manifests[0], "1.31", strict=True)
