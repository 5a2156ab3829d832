"""SLURM: an array of claimers, one element a node with a worker per GPU, no head node. What an element does is in slurm_element.py.

A plain batch script and squeue, not submitit: its USR2 handler would run in the middle of a training step, and its job states
need accounting.
"""

import logging
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
from hpo.store.database import Database, home
from hpo.study.paths import study_folder
from hpo.study.reader import StudyReader

NO_PROGRAM = "{}: no such program here. Type the line where SLURM's commands are, such as a login node of the cluster"
CALL_SECONDS = 60  # a controller that is down makes the commands wait
TIME = re.compile(
    r"\d+(:\d+){0,2}|\d+-\d+(:\d+){0,2}|unlimited", re.IGNORECASE
)  # man sbatch, --time
GPUS = re.compile(r"([\w.-]+:)?\d+")
OPTION = re.compile(r"([a-z][a-z0-9-]*)(?:=(.*))?", re.DOTALL)
PLAIN = re.compile(r"[\w@%+:,./=-]*")
OURS = {  # options that the script sets: what to say to somebody who gives one
    "nodes": "--nodes", "array": "--nodes", "gres": "--gpus-per-node", "gpus-per-node": "--gpus-per-node", "partition": "--partition",
    "time": "--time", "account": "--account",
    **dict.fromkeys(("chdir", "export", "job-name", "no-requeue", "ntasks", "open-mode", "output", "parsable", "requeue", "signal",
                     "wrap"), ""),
}  # fmt: skip
VARIABLES = {
    "array": "ARRAY_INX",
    "time": "TIMELIMIT",
}  # SBATCH_*, where it is not the option's name
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """What is asked of SLURM: an array with one element a node. Raises CallerError where SLURM could not read it."""

    nodes: int = 1
    gpus_per_node: str = "1"  # N or TYPE:N, as sbatch takes it; 0: none
    partition: str | None = None
    time: str | None = None  # None: the partition's own limit
    account: str | None = None
    options: tuple[str, ...] = ()  # K=V or K, of sbatch
    more: bool = False  # also while elements of the study are in the queue

    def __post_init__(self) -> None:
        if self.nodes < 1:
            raise CallerError(f"--nodes {self.nodes}: valid is 1 or more")
        if not GPUS.fullmatch(self.gpus_per_node):
            raise CallerError(
                f"--gpus-per-node {self.gpus_per_node}: valid is a number, or TYPE:NUMBER such as a100:8"
            )
        if self.time is not None and not TIME.fullmatch(self.time):
            raise CallerError(f"--time {self.time}: valid is MINUTES, MINUTES:SECONDS, HOURS:MINUTES:SECONDS, DAYS-HOURS, "
                              f"DAYS-HOURS:MINUTES or DAYS-HOURS:MINUTES:SECONDS, such as 8:00:00")  # fmt: skip
        for name, value in (("--partition", self.partition), ("--account", self.account)):
            if value is not None and not (value and PLAIN.fullmatch(value)):
                raise CallerError(
                    f"{name} {value!r}: valid are letters, digits and . _ - , as SLURM's names have them"
                )
        for option in self.options:
            _check_option(option)

    def check_gpus(self, needed: int) -> None:
        """Raises CallerError for a node that has too few GPUs for one training of a study."""
        count = int(self.gpus_per_node.rpartition(":")[2])
        if 0 < count < needed:
            raise CallerError(
                f"--gpus-per-node {self.gpus_per_node}: a training of this study takes {needed} GPUs. Give {needed} or more"
            )

    def __str__(self) -> str:
        where = f" of partition {self.partition}" if self.partition else ""
        limit = f", {self.time} each" if self.time else ""
        return f"{self.nodes} node{'s' * (self.nodes != 1)}{where} through SLURM, {self.gpus_per_node} GPUs a node{limit}"

    def directives(self, name: str, folder: Path) -> dict[str, str | None]:
        """sbatch's options. `--export` brings the database's URL, which stands nowhere else, to the nodes."""
        logs = str(folder / "logs" / "slurm-").replace("%", "%%")
        asked = {"partition": self.partition, "time": self.time, "account": self.account}
        return {
            "job-name": name,
            "array": f"0-{self.nodes - 1}",
            "nodes": "1",
            "ntasks": "1",
            **({} if self.gpus_per_node == "0" else {"gres": f"gpu:{self.gpus_per_node}"}),
            **{key: value for key, value in asked.items() if value is not None},
            "chdir": str(folder),
            "output": f"{logs}%A_%a.log",
            "open-mode": "append",
            "export": "ALL",
            "requeue": None,
            "signal": "B:USR1@1",  # names what preempt_send_user_signal sends; the wall limit is watched by the workers themselves
            **dict(split_option(option) for option in self.options),
        }


def split_option(option: str) -> tuple[str, str | None]:
    key, equals, value = option.partition("=")
    return key, value if equals else None


def _check_option(option: str) -> None:
    if not OPTION.fullmatch(option):
        raise CallerError(
            f"--slurm-option {option!r}: valid is an option of sbatch without its dashes, such as cpus-per-gpu=4 or exclusive"
        )
    key, value = split_option(option)
    if key in OURS:
        raise CallerError(
            f"--slurm-option {option}: {f'give {OURS[key]} instead' if OURS[key] else 'hpo sets this one itself'}"
        )
    _check_writable(f"--slurm-option {key}", value or "")


def _check_writable(what: str, value: str) -> None:
    """Line breaks would begin a line of their own; sbatch knows no way to write the other two."""
    if not value.isprintable() or '"' in value or "\\" in value:
        raise CallerError(
            f"{what}: {value!r} has a quote, a backslash or a control character, which a batch script cannot hold"
        )


def batch_script(directives: Mapping[str, str | None], command: Sequence[str]) -> str:
    """What sbatch gets. A test compares it with a golden file."""
    lines = ["#!/bin/bash"]
    for key, value in directives.items():
        lines.append(
            f"#SBATCH --{key}"
            + ("" if value is None else f"={value}" if PLAIN.fullmatch(value) else f'="{value}"')
        )
    lines += [
        "trap '' USR1 USR2  # until Python catches them: by default they would end the job",
        f"exec {shlex.join(command)}",
    ]
    return "\n".join(lines) + "\n"


def check_surroundings(url: str | None) -> None:
    """Raises SlurmError without sbatch, and CallerError for the embedded database, which other machines do not reach."""
    if not shutil.which("sbatch"):
        raise SlurmError(NO_PROGRAM.format("sbatch"))
    if not (url or os.environ.get("HPO_DATABASE_URL")):
        raise CallerError("--slurm without a database: the embedded Postgres answers on this machine only. Set HPO_DATABASE_URL (or "
                          "--database) to a Postgres that the nodes reach: postgresql://USER:PASSWORD@HOST:PORT/DATABASE")  # fmt: skip


def submit(job: Job, study: StudyReader, database: Database, worker_options: Sequence[str]) -> str:
    """Submit the array. Returns its job id. Raises SlurmError, CallerError."""
    folder = study_folder(study)
    _check_writable("the study's folder (see HPO_HOME)", str(folder))
    directives = job.directives(job_name(study), folder)
    command = [
        sys.executable,
        "-m",
        "hpo.cli",
        "worker",
        "--study",
        study.name,
        "--all-gpus",
        "--requeue",
        *worker_options,
    ]
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    script = script_of(folder)
    script.write_text(batch_script(directives, command))
    environment = {"HPO_DATABASE_URL": database.url, "HPO_HOME": str(home())}
    printed = call_slurm(
        ["sbatch", "--parsable", str(script)],
        _without_defaults(os.environ, directives) | environment,
    )
    return printed.split()[-1].partition(";")[0]  # ID;CLUSTER on some sites


def _without_defaults(
    environment: Mapping[str, str], directives: Mapping[str, str | None]
) -> dict[str, str]:
    """SBATCH_* variables stand above what a script says: those of our options go."""
    ours = {f"SBATCH_{VARIABLES.get(key, key.upper().replace('-', '_'))}" for key in directives} | {
        "SBATCH_NO_REQUEUE"
    }
    return {key: value for key, value in environment.items() if key not in ours}


def script_of(folder: Path) -> Path:
    return folder / "slurm.sh"


def job_name(study: StudyReader) -> str:
    return f"hpo-{study.name}-{study.unique}"


def after_submission(
    number: str, study: StudyReader, database: Database, data: Path | None
) -> list[str]:
    """For people: what runs, what must be on all nodes, how to watch and how to end it."""
    path = data or study.data_path
    shared = [
        f"{study_folder(study)} (logs, checkpoints, weights)",
        f"{sys.prefix} (Python)",
        *([f"{path} (data)"] if path else []),
    ]
    lines = [f"submitted  job {number}", f"shared     every node must see {', '.join(shared)}"]
    host = urlsplit(database.url).hostname or ""
    if host in ("localhost", "::1") or host.startswith("127."):
        lines.append(
            f"           the database is at {host}: no other node than this one reaches it"
        )
    where = "" if os.environ.get("HPO_DATABASE_URL") else " --database URL"
    return [
        *lines,
        f"watch      hpo status --study {study.name}{where}",
        f"cancel     scancel {number}",
    ]


# ---- the queue


@dataclass(frozen=True)
class Element:
    """One element of an array, as squeue shows it."""

    id: str  # ARRAY_INDEX
    state: str  # SLURM's: PENDING, RUNNING, COMPLETING, ...
    partition: str
    where: str  # the node, or in parentheses why it waits
    left: str  # of its time, [DAYS-]HOURS:MINUTES:SECONDS

    def __str__(self) -> str:
        return f"{self.id} {self.state.lower()} {self.where}{f', {self.left} left' if self.state == 'RUNNING' else ''}"


def elements(study: StudyReader) -> list[Element]:
    """The study's elements that wait or run, read from squeue: sacct needs accounting. Raises SlurmError."""
    command = [
        "squeue",
        "--noheader",
        "--array",
        f"--name={job_name(study)}",
        "--format=%i|%T|%P|%R|%L",
    ]
    return parse_elements(call_slurm(command))


def parse_elements(printed: str) -> list[Element]:
    rows = [line.strip().split("|") for line in printed.splitlines()]
    return [
        Element(row[0], row[1], row[2], "|".join(row[3:-1]), row[-1])
        for row in rows
        if len(row) >= 5
    ]


def known_elements(study: StudyReader) -> list[Element] | None:
    """As `elements`; None if the study was not submitted from here."""
    return elements(study) if script_of(study_folder(study)).exists() else None


def in_words(found: Sequence[Element]) -> str:
    """3 running, 1 pending"""
    return ", ".join(
        f"{count} {state.lower()}"
        for state, count in Counter(element.state for element in found).items()
    )


def call_slurm(command: Sequence[str], environment: Mapping[str, str] | None = None) -> str:
    """What a SLURM command prints. Raises SlurmError with its message."""
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
        raise SlurmError(
            f"{program}: no such program. Type the line on a machine where SLURM's commands are, such as a login node"
        ) from None
    except subprocess.TimeoutExpired:
        raise SlurmError(
            f"{program}: no answer for {CALL_SECONDS} s. Does SLURM's controller run? Try again: sinfo"
        ) from None
    if done.returncode:
        lines = [
            re.sub(rf"^{program}: (error: |fatal: )?", "", line)
            for line in done.stderr.strip().splitlines()
        ]
        raise SlurmError(
            f"{program}: {'; '.join(lines) or f'exit code {done.returncode}'}. Valid partitions and limits: sinfo"
        )
    return done.stdout
