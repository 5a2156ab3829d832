"""Runs a training script as a process: starts it, watches it, and ends all of its processes.

A keeper (`keeper.py`) stands between the worker and the script. It outlives a worker that is
killed, in order to end the script. A script does not outlive its keeper. `clear` ends whatever an
earlier attempt left.
"""

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

from hpo.process import host_identity, start_time
from hpo.script import keeper
from hpo.script.keeper import (
    END_FILE,
    KEEPER_FILE,
    READY,
    ROWS_FILE,
    STOP_FILE,
    End,
    Orders,
)

__all__ = [
    "END_FILE",
    "KEEPER_FILE",
    "ROWS_FILE",
    "STOP_FILE",
    "End",
    "Job",
    "ProcessError",
    "Running",
    "clear",
    "end_of",
    "script_environment",
]

# Names the attempt's folder in the environment of the script and of all processes that it starts.
FOLDER_VARIABLE = "HPO_FOLDER"
ATTEMPTS = "attempt-*"

START_SECONDS = 60.0
# Beyond the grace: the time in which a keeper kills what is left, or gives up.
MARGIN_SECONDS = keeper.GIVE_UP_SECONDS + 5
CLEAR_SECONDS = 20.0
PAUSE_SECONDS = 0.05
# One look is not enough: a process has no environment while it becomes another program.
EMPTY_LOOKS = 3
# What Python itself needs to start. Other variables may hold secrets.
KEEPER_VARIABLES = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "LD_LIBRARY_PATH")
SHORTEST_SECRET = 4


class ProcessError(Exception):
    """A keeper could not be started. The text is one line."""


@dataclass(frozen=True)
class Job:
    """A script to run."""

    command: tuple[str, ...]
    # The folder of the attempt, in which the script starts.
    folder: Path
    # All variables. HPO_FOLDER must name `folder`: `clear` finds the script's processes by it.
    environment: Mapping[str, str]
    log: Path
    # At most this much output goes to the log.
    log_bytes: int
    # From SIGTERM to SIGKILL.
    grace_seconds: float
    # Lines of the output that match one of these are added to `folder/output-rows`.
    patterns: tuple[str, ...] = ()

    def orders(self) -> Orders:
        return Orders(
            command=list(self.command),
            folder=str(self.folder),
            environment=dict(self.environment),
            grace_seconds=self.grace_seconds,
            log=str(self.log),
            log_bytes=self.log_bytes,
            patterns=list(self.patterns),
            worker=os.getpid(),
        )


class Running:
    """A script that was started."""

    def __init__(self, job: Job, process: subprocess.Popen[bytes]):
        self.job = job
        self._process = process
        self._end: End | None = None
        self._last_change = time.monotonic()
        # Watched file -> (time of modification, bytes), as last seen.
        self._seen: dict[Path, tuple[int, int]] = {}

    @classmethod
    def start(cls, job: Job) -> "Running":
        """Raises ProcessError for a keeper that does not start.

        A script that does not start has an `end` with an error.
        """
        try:
            process = _start_keeper(job)
        except OSError as error:
            raise ProcessError(f"{sys.executable}: cannot be started: {error.strerror}") from error
        try:
            _write_identity(job, process.pid)
            _send_orders(process, job.orders())
        except (OSError, ProcessError) as error:
            process.kill()
            _close(process)
            raise ProcessError(str(error)) from None
        return cls(job, process)

    @property
    def keeper_pid(self) -> int:
        return self._process.pid

    def end(self) -> End | None:
        """How it ended, or None while it runs."""
        if self._end is None and self._process.poll() is not None:
            self._end = self._read_end()
            _close(self._process)
        return self._end

    def stop(self) -> End:
        """Ask it to end, wait, then kill it. Returns when none of its processes is left."""
        end = self.end()
        if end is not None:
            return end
        self._process.terminate()
        self.wait(self.job.grace_seconds + MARGIN_SECONDS)
        # No effect on a keeper that has ended.
        self._process.kill()
        self._process.wait()
        end = self.end()
        assert end is not None
        return end

    def wait(self, seconds: float) -> End | None:
        """Wait for its end. Returns None if it still runs after `seconds`."""
        if self._end is None:
            assert self._process.stdout is not None
            # The pipe closes when the keeper ends.
            readable, _, _ = select.select([self._process.stdout], [], [], seconds)
            if readable:
                with suppress(subprocess.TimeoutExpired):
                    self._process.wait(MARGIN_SECONDS)
        return self.end()

    def written(self, files: Iterable[Path] = ()) -> float:
        """When the script last printed something or changed one of `files`.

        A time of the monotonic clock: that of the first call that noticed the change.
        """
        for path in (self.job.folder / KEEPER_FILE, *files):
            with suppress(OSError):
                status = path.stat()
                state = (status.st_mtime_ns, status.st_size)
                if self._seen.get(path) != state:
                    self._seen[path] = state
                    self._last_change = time.monotonic()
        return self._last_change

    def _read_end(self) -> End:
        assert self._process.stdout is not None
        try:
            return End(**json.loads(self._process.stdout.read()))
        except (ValueError, TypeError):
            cleared = _kill_marked(self.job.folder)
        text = (
            f"the process that keeps the script was ended ({_exit_text(self._process)}), "
            f"and the script with it"
        )
        if cleared:
            text += f"; {cleared} more processes were killed"
        return End(-signal.SIGKILL, text)


def _start_keeper(job: Job) -> subprocess.Popen[bytes]:
    with suppress(OSError):
        job.log.parent.mkdir(parents=True, exist_ok=True)
    with _open_log(job.log) as log:
        return subprocess.Popen(
            [sys.executable, "-I", "-S", str(Path(keeper.__file__).resolve())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env={name: os.environ[name] for name in KEEPER_VARIABLES if name in os.environ},
            start_new_session=True,
            bufsize=0,
        )


def _open_log(log: Path) -> BinaryIO:
    """The log, or /dev/null if it cannot be written."""
    try:
        return log.open("ab", buffering=0)
    except OSError:
        return Path(os.devnull).open("wb", buffering=0)


def _write_identity(job: Job, pid: int) -> None:
    """Record which process the keeper is, so that a later worker can end it."""
    identity = {
        "pid": pid,
        "start": start_time(pid),
        "host": host_identity(),
        "grace_seconds": job.grace_seconds,
    }
    (job.folder / KEEPER_FILE).write_text(json.dumps(identity))


def _send_orders(process: subprocess.Popen[bytes], orders: Orders) -> None:
    """Raises ProcessError for a keeper that does not answer."""
    assert process.stdin is not None
    assert process.stdout is not None
    with suppress(BrokenPipeError):
        _write_all(process.stdin.fileno(), json.dumps(asdict(orders)).encode() + b"\n")
    readable, _, _ = select.select([process.stdout], [], [], START_SECONDS)
    if not readable:
        raise ProcessError(f"the keeper did not start within {START_SECONDS:.0f} s")
    if process.stdout.readline().decode().strip() != READY:
        raise ProcessError(f"the keeper ended at once ({_exit_text(process)}): see {orders.log}")


def _write_all(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        written = os.write(descriptor, rest)
        rest = rest[written:]


def _exit_text(process: subprocess.Popen[bytes]) -> str:
    """The signal that ended a process, or its exit code."""
    code = process.wait()
    return End(code).signal or f"exit code {code}"


def _close(process: subprocess.Popen[bytes]) -> None:
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe:
            pipe.close()


def end_of(folder: Path) -> End | None:
    """How the attempt in this folder ended, as its keeper wrote it.

    None if it still runs, or if the keeper could not write.
    """
    try:
        return End(**json.loads((folder / END_FILE).read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def clear(folder: Path) -> int:
    """End all processes that earlier attempts at a trial left on this host.

    folder: of the trial. A running keeper gives its script the usual grace. Returns the number of
    processes ended here; a keeper with its script counts as one.
    """
    ended = 0
    for file in sorted(folder.glob(f"{ATTEMPTS}/{KEEPER_FILE}")):
        if _end_keeper(file):
            ended += 1
    return ended + _kill_marked(folder)


def _end_keeper(file: Path) -> bool:
    """End the keeper that a file names. Returns whether it was running."""
    try:
        identity = json.loads(file.read_bytes())
        pid = identity["pid"]
        start = identity["start"]
        host = identity["host"]
        grace = float(identity["grace_seconds"])
    except (OSError, ValueError, KeyError, TypeError):
        # A keeper whose file is incomplete has started nothing.
        return False
    # Without /proc there is no start time, and the process may be a different one.
    if not start or host != host_identity() or start_time(pid) != start:
        return False
    _signal(pid, signal.SIGTERM)
    if not _wait_for_end(pid, start, grace + MARGIN_SECONDS):
        _signal(pid, signal.SIGKILL)
        _wait_for_end(pid, start, MARGIN_SECONDS)
    return True


def _wait_for_end(pid: int, start: str, seconds: float) -> bool:
    """Returns whether the process has ended. start: its start time."""
    give_up_at = time.monotonic() + seconds
    while start_time(pid) == start:
        if time.monotonic() >= give_up_at:
            return False
        time.sleep(PAUSE_SECONDS)
    return True


def _kill_marked(folder: Path) -> int:
    """Kill this user's processes whose environment names `folder` or a folder in it.

    Returns their number.
    """
    root = folder.resolve()
    killed: set[int] = set()
    empty_looks = 0
    give_up_at = time.monotonic() + CLEAR_SECONDS
    while empty_looks < EMPTY_LOOKS and time.monotonic() < give_up_at:
        marked = _marked(root) - {os.getpid()}
        for pid in marked:
            _signal(pid, signal.SIGKILL)
        killed |= marked
        empty_looks = 0 if marked else empty_looks + 1
        time.sleep(PAUSE_SECONDS / 2)
    return len(killed)


def _marked(root: Path) -> set[int]:
    pids = set()
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if entry.stat().st_uid == os.getuid() and _belongs(entry, root):
                pids.add(int(entry.name))
    return pids


def _belongs(process: Path, root: Path) -> bool:
    environment = (process / "environ").read_bytes()
    mark = f"{FOLDER_VARIABLE}=".encode()
    for variable in environment.split(b"\0"):
        if variable.startswith(mark):
            folder = Path(os.fsdecode(variable.removeprefix(mark)))
            if folder.resolve().is_relative_to(root):
                return True
    return False


def _signal(pid: int, number: int) -> None:
    with suppress(OSError):
        os.kill(pid, number)


def script_environment(own: Mapping[str, str], secrets: Collection[str]) -> dict[str, str]:
    """The environment of a script: that of this process, without secrets, and `own`.

    Variables that begin with HPO_ or PG are left out too. secrets: the database's URL and its
    password. Those under 4 characters are ignored.
    """
    lowered = [secret.lower() for secret in secrets if len(secret) >= SHORTEST_SECRET]
    inherited = {}
    for name, value in os.environ.items():
        is_own = name.startswith(("HPO_", "PG"))
        has_secret = any(secret in value.lower() for secret in lowered)
        if not is_own and not has_secret:
            inherited[name] = value
    return {**inherited, **own}
