"""SLURM: an array job of workers, one element per node, without a head node.

What an element does on its node is in slurm_element.py. The job is a plain batch script, and its
state is read from squeue. submitit does not fit: its USR2 handler would run in the middle of a
training step, and its job states need accounting.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from hpo.errors import CallerError, SlurmError
from hpo.launch.program import worker_program
from hpo.store.database import Database, home
from hpo.study.paths import study_folder
from hpo.study.reader import StudyReader
from hpo.text import plural

# While SLURM's controller is down, its commands hang.
CALL_SECONDS = 60
# The formats of --time in `man sbatch`.
TIME = re.compile(r"\d+(:\d+){0,2}|\d+-\d+(:\d+){0,2}|unlimited", re.IGNORECASE)
GPUS = re.compile(r"([\w.-]+:)?\d+")
OPTION = re.compile(r"([a-z][a-z0-9-]*)(?:=(.*))?", re.DOTALL)
# Values that a batch script can hold without quotes.
PLAIN = re.compile(r"[\w@%+:,./=-]*")
# Options of sbatch that the script sets, and the option of hpo that changes each; empty: none does.
RESERVED_OPTIONS = {
    "nodes": "--nodes",
    "array": "--nodes",
    "gres": "--gpus-per-node",
    "gpus-per-node": "--gpus-per-node",
    "partition": "--partition",
    "time": "--time",
    "account": "--account",
    "chdir": "",
    "export": "",
    "gpus": "--gpus-per-node",
    "job-name": "",
    "no-requeue": "",
    "ntasks": "",
    "open-mode": "",
    "output": "",
    "parsable": "",
    "requeue": "",
    "signal": "",
    "test-only": "",
    "wait": "",
    "wrap": "",
}
# SBATCH_* variables that would change what an option asks for: those whose name is not that of the
# option, and those of options that SLURM does not accept beside it.
MEMORY = ("MEM_PER_NODE", "MEM_PER_CPU", "MEM_PER_GPU")
GPU_COUNTS = ("GPUS", "GPUS_PER_NODE", "GPUS_PER_TASK", "GPUS_PER_SOCKET")
VARIABLES: dict[str, tuple[str, ...]] = {
    "array": ("ARRAY_INX",),
    "cpus-per-gpu": ("CPUS_PER_TASK",),
    "cpus-per-task": ("CPUS_PER_GPU",),
    "exclusive": ("OVERSUBSCRIBE",),
    "gres": GPU_COUNTS,
    "mem": MEMORY,
    "mem-per-cpu": MEMORY,
    "mem-per-gpu": MEMORY,
    "output": ("ERROR",),
    "oversubscribe": ("EXCLUSIVE",),
    "switches": ("REQ_SWITCH", "WAIT4SWITCH"),
    "time": ("TIMELIMIT",),
}
# The variables that would keep sbatch from submitting the job and returning at once.
ALWAYS_REMOVED = ("NO_REQUEUE", "WAIT")


@dataclass(frozen=True)
class Job:
    """An array job with one element per node.

    Raises CallerError for a value that sbatch does not accept.
    """

    nodes: int = 1
    # N or TYPE:N, as sbatch takes it; 0 requests no GPU.
    gpus_per_node: str = "1"
    partition: str | None = None
    # None leaves the limit to the partition.
    time: str | None = None
    account: str | None = None
    # Further options of sbatch, each KEY or KEY=VALUE.
    options: tuple[str, ...] = ()
    # Whether to submit even while elements of the study are in the queue.
    more: bool = False

    def __post_init__(self) -> None:
        if self.nodes < 1:
            raise CallerError(f"--nodes {self.nodes}: valid is 1 or more")
        if not GPUS.fullmatch(self.gpus_per_node):
            raise CallerError(
                f"--gpus-per-node {self.gpus_per_node}: valid is a number, or TYPE:NUMBER such as "
                f"a100:8"
            )
        if self.time is not None and not TIME.fullmatch(self.time):
            raise CallerError(
                f"--time {self.time}: valid is MINUTES, MINUTES:SECONDS, HOURS:MINUTES:SECONDS, "
                f"DAYS-HOURS, DAYS-HOURS:MINUTES or DAYS-HOURS:MINUTES:SECONDS, such as 8:00:00"
            )
        _check_name("--partition", self.partition)
        _check_name("--account", self.account)
        for option in self.options:
            _check_option(option)

    def check_gpus(self, needed: int) -> None:
        """Raises CallerError if a node has fewer GPUs than one training of the study needs."""
        count = int(self.gpus_per_node.rpartition(":")[2])
        if 0 < count < needed:
            raise CallerError(
                f"--gpus-per-node {self.gpus_per_node}: a training of this study takes {needed} "
                f"GPUs. Give {needed} or more"
            )

    def __str__(self) -> str:
        nodes = plural(self.nodes, "node")
        where = f" of partition {self.partition}" if self.partition else ""
        limit = f", time limit {self.time}" if self.time else ""
        return f"{nodes}{where} through SLURM, {self.gpus_per_node} GPUs per node{limit}"

    def directives(self, name: str, folder: Path) -> dict[str, str | None]:
        """The options of sbatch, in the order of the script; None is an option without a value.

        `--export` passes the database's URL, which is written nowhere, to the nodes.
        """
        directives: dict[str, str | None] = {
            "job-name": name,
            "array": f"0-{self.nodes - 1}",
            "nodes": "1",
            "ntasks": "1",
        }
        if self.gpus_per_node != "0":
            directives["gres"] = f"gpu:{self.gpus_per_node}"
        if self.partition is not None:
            directives["partition"] = self.partition
        if self.time is not None:
            directives["time"] = self.time
        if self.account is not None:
            directives["account"] = self.account
        logs = str(folder / "logs" / "slurm-").replace("%", "%%")
        directives["chdir"] = str(folder)
        directives["output"] = f"{logs}%A_%a.log"
        directives["open-mode"] = "append"
        directives["export"] = "ALL"
        directives["requeue"] = None
        # Tells preempt_send_user_signal which signal to send. The workers watch the wall limit
        # themselves.
        directives["signal"] = "B:USR1@1"
        for option in self.options:
            key, value = split_option(option)
            directives[key] = value
        return directives


def split_option(option: str) -> tuple[str, str | None]:
    """Split KEY=VALUE or KEY, whose value is None."""
    key, equals, value = option.partition("=")
    return key, value if equals else None


def _check_name(option: str, name: str | None) -> None:
    if name is not None and not (name and PLAIN.fullmatch(name)):
        raise CallerError(
            f"{option} {name!r}: valid are letters, digits and . _ - , as in SLURM's names"
        )


def _check_option(option: str) -> None:
    if not OPTION.fullmatch(option):
        raise CallerError(
            f"--slurm-option {option!r}: valid is an option of sbatch without its dashes, such as "
            f"cpus-per-gpu=4 or exclusive"
        )
    key, value = split_option(option)
    if key in RESERVED_OPTIONS:
        instead = RESERVED_OPTIONS[key]
        advice = f"give {instead} instead" if instead else "hpo sets this one itself"
        raise CallerError(f"--slurm-option {option}: {advice}")
    _refuse_abbreviation(option, key)
    _check_writable(f"--slurm-option {key}", value or "")


def _refuse_abbreviation(option: str, key: str) -> None:
    """Raises CallerError for what sbatch may read as one of RESERVED_OPTIONS: expor for export."""
    meant = [name for name in RESERVED_OPTIONS if name.startswith(key)]
    if meant:
        raise CallerError(
            f"--slurm-option {option}: sbatch may read it as {' or '.join(meant)}, which hpo sets. "
            f"Write the option's whole name"
        )


def _check_writable(what: str, value: str) -> None:
    """Raises CallerError for a value that no directive can hold.

    A line break would end the directive, and sbatch has no escape for a quote or a backslash.
    """
    if not value.isprintable() or '"' in value or "\\" in value:
        raise CallerError(
            f"{what}: {value!r} has a quote, a backslash or a control character, which a batch "
            f"script cannot hold"
        )


def batch_script(directives: Mapping[str, str | None], command: Sequence[str]) -> str:
    """The script for sbatch. A test compares it with a golden file."""
    lines = ["#!/bin/bash"]
    lines += [_directive(key, value) for key, value in directives.items()]
    lines += [
        "",
        "# By default these signals would end the job before Python can handle them.",
        "trap '' USR1 USR2",
        f"exec {shlex.join(command)}",
    ]
    return "\n".join(lines) + "\n"


def _directive(key: str, value: str | None) -> str:
    if value is None:
        return f"#SBATCH --{key}"
    if PLAIN.fullmatch(value):
        return f"#SBATCH --{key}={value}"
    return f'#SBATCH --{key}="{value}"'


def check_surroundings(url: str | None) -> None:
    """Raises SlurmError if sbatch is missing, and CallerError if no database URL is given.

    The nodes cannot reach the embedded database of this machine.
    """
    if not shutil.which("sbatch"):
        raise _no_program("sbatch")
    if not (url or os.environ.get("HPO_DATABASE_URL")):
        raise CallerError(
            "--slurm without a database: the embedded Postgres answers on this machine only. Set "
            "HPO_DATABASE_URL (or --database) to a Postgres that the nodes can reach: "
            "postgresql://USER:PASSWORD@HOST:PORT/DATABASE"
        )


def submit(job: Job, study: StudyReader, database: Database, worker_options: Sequence[str]) -> str:
    """Submit the array and return its job id. Raises SlurmError, CallerError."""
    folder = study_folder(study)
    _check_writable("the study's folder (see HPO_HOME)", str(folder))
    directives = job.directives(job_name(study), folder)
    command = [*worker_program(), "--study", study.name]
    command += ["--all-gpus", "--requeue", *worker_options]
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    script = script_of(folder)
    script.write_text(batch_script(directives, command))
    environment = without_defaults(os.environ, directives)
    environment["HPO_DATABASE_URL"] = database.url
    environment["HPO_HOME"] = str(home())
    printed = call_slurm(["sbatch", "--parsable", str(script)], environment)
    words = printed.split()
    if not words:
        raise SlurmError("sbatch: it printed no job id. Is the job in the queue? Try: squeue --me")
    # Some sites print ID;CLUSTER.
    return words[-1].partition(";")[0]


def without_defaults(
    environment: Mapping[str, str], directives: Mapping[str, str | None]
) -> dict[str, str]:
    """The environment without the SBATCH_* variables that would override these directives."""
    names = set(ALWAYS_REMOVED)
    for key in directives:
        names.add(key.upper().replace("-", "_"))
        for option, others in VARIABLES.items():
            # sbatch reads mem-per-c as mem-per-cpu.
            if option.startswith(key):
                names.update(others)
    overriding = {f"SBATCH_{name}" for name in names}
    return {name: value for name, value in environment.items() if name not in overriding}


def script_of(folder: Path) -> Path:
    """The path of the batch script in the study's folder."""
    return folder / "slurm.sh"


def job_name(study: StudyReader) -> str:
    return f"hpo-{study.name}-{study.unique}"


def after_submission(
    number: str, study: StudyReader, database: Database, data: Path | None
) -> list[str]:
    """Lines for the user: what was submitted, what all nodes must see, how to watch and cancel."""
    needed = [f"{study_folder(study)} (logs, checkpoints, weights)", f"{sys.prefix} (Python)"]
    data_path = data or study.data_path
    if data_path:
        needed.append(f"{data_path} (data)")
    lines = [f"submitted  job {number}", f"shared     every node must see {', '.join(needed)}"]
    host = urlsplit(database.url).hostname or ""
    if host in ("localhost", "::1") or host.startswith("127."):
        lines.append(f"           the database is at {host}, which no other node can reach")
    option = "" if os.environ.get("HPO_DATABASE_URL") else " --database URL"
    lines.append(f"watch      hpo status --study {study.name}{option}")
    lines.append(f"cancel     scancel {number}")
    return lines


# ---- the queue


@dataclass(frozen=True)
class Element:
    """One element of an array, as squeue shows it."""

    # ARRAY_INDEX
    id: str
    # In SLURM's words: PENDING, RUNNING, COMPLETING, ...
    state: str
    partition: str
    # The node, or in parentheses why the element waits.
    where: str
    # The time left, as [DAYS-]HOURS:MINUTES:SECONDS.
    left: str

    def __str__(self) -> str:
        text = f"{self.id} {self.state.lower()} {self.where}"
        if self.state == "RUNNING":
            text += f", {self.left} left"
        return text


def queued_elements(study: StudyReader) -> list[Element]:
    """The study's elements that wait or run. Raises SlurmError.

    They are read from squeue, because sacct needs accounting.
    """
    command = [
        "squeue",
        "--noheader",
        "--array",
        f"--name={job_name(study)}",
        "--format=%i|%T|%P|%R|%L",
    ]
    return parse_elements(call_slurm(command))


def parse_elements(printed: str) -> list[Element]:
    """The elements in the output of squeue, one per line. Lines with fewer fields are skipped."""
    parsed = []
    for line in printed.splitlines():
        fields = line.strip().split("|")
        if len(fields) < 5:
            continue
        element_id, state, partition, *where, left = fields
        parsed.append(Element(element_id, state, partition, "|".join(where), left))
    return parsed


def known_elements(study: StudyReader) -> list[Element] | None:
    """Like `queued_elements`, but None if the study was not submitted from this machine."""
    if not script_of(study_folder(study)).exists():
        return None
    return queued_elements(study)


def count_by_state(found: Sequence[Element]) -> str:
    """Count the elements by state: 3 running, 1 pending."""
    counts = Counter(element.state for element in found)
    return ", ".join(f"{count} {state.lower()}" for state, count in counts.items())


def call_slurm(command: Sequence[str], environment: Mapping[str, str] | None = None) -> str:
    """Run a SLURM command and return its output. Raises SlurmError with the command's message."""
    program = command[0]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=CALL_SECONDS,
            env=environment,
        )
    except FileNotFoundError:
        raise _no_program(program) from None
    except subprocess.TimeoutExpired:
        raise SlurmError(
            f"{program}: no answer for {CALL_SECONDS} s. Is SLURM's controller running? Try: sinfo"
        ) from None
    if done.returncode:
        prefix = re.compile(rf"^{program}: (error: |fatal: )?")
        lines = [prefix.sub("", line) for line in done.stderr.strip().splitlines()]
        problem = "; ".join(lines) or f"exit code {done.returncode}"
        raise SlurmError(f"{program}: {problem}. Valid partitions and limits: sinfo")
    return done.stdout


def _no_program(program: str) -> SlurmError:
    return SlurmError(
        f"{program}: no such program here. Run this where SLURM's commands are installed, such as "
        f"a login node of the cluster"
    )
