"""A training script as a process of its own: started, watched and ended with all that it started.

Between the worker and the script stands a keeper (`keeper.py`). It outlives a worker that is
killed, to end the script. A script does not outlive its keeper. `clear` ends what is left.
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

# Names that folder, in the environment of the script and of all that it starts.
FOLDER_VARIABLE = "HPO_FOLDER"
ATTEMPTS = "attempt-*"

START_SECONDS = 60.0
# Over the grace: what a keeper takes for SIGKILL, and until it gives up.
MARGIN_SECONDS = keeper.GIVE_UP_SECONDS + 5
CLEAR_SECONDS = 20.0
PAUSE_SECONDS = 0.05
# A process shows no environment while it becomes another program: one look is not enough.
EMPTY_LOOKS = 3
# What Python itself needs to start. The rest may be secret.
KEEPER_VARIABLES = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "LD_LIBRARY_PATH")
SHORTEST_SECRET = 4


class ProcessError(Exception):
    """A keeper could not be started. The text is one line."""


@dataclass(frozen=True)
class Job:
    command: tuple[str, ...]
    # Of the attempt. The script starts there.
    folder: Path
    # All of it. Without HPO_FOLDER, which names `folder`, `clear` finds no process of the script.
    environment: Mapping[str, str]
    log: Path
    # Of the output, that go to the log.
    log_bytes: int
    grace_seconds: float
    # Lines of the output that match one are added to `folder/output-rows`.
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
    """A script that was started, until its end is known."""

    def __init__(self, job: Job, process: subprocess.Popen[bytes]):
        self.job = job
        self._process = process
        self._end: End | None = None
        self._written = time.monotonic()
        # Of each watched file: (time, bytes), as last seen.
        self._seen: dict[Path, tuple[int, int]] = {}

    @classmethod
    def start(cls, job: Job) -> "Running":
        """Raises ProcessError. Of a program that cannot be started, `end` tells."""
        try:
            process = _started_keeper(job)
        except OSError as error:
            raise ProcessError(f"{sys.executable}: cannot be started: {error.strerror}") from error
        try:
            _sign(job, process.pid)
            _hand_over(process, job.orders())
        except (OSError, ProcessError) as error:
            process.kill()
            _close(process)
            raise ProcessError(str(error)) from None
        return cls(job, process)

    @property
    def keeper_pid(self) -> int:
        return self._process.pid

    def end(self) -> End | None:
        """None: it runs."""
        if self._end is None and self._process.poll() is not None:
            self._end = self._collected()
            _close(self._process)
        return self._end

    def stop(self) -> End:
        """Ask it to end, wait, then kill it. Returns when none of its processes is left."""
        if end := self.end():
            return end
        self._process.terminate()
        self.wait(self.job.grace_seconds + MARGIN_SECONDS)
        # Of one that has ended this does nothing.
        self._process.kill()
        self._process.wait()
        end = self.end()
        assert end is not None
        return end

    def wait(self, seconds: float) -> End | None:
        """Up to so long, for its end. None: it runs."""
        if self._end is None:
            assert self._process.stdout is not None
            # The keeper's end closes the pipe.
            readable, _, _ = select.select([self._process.stdout], [], [], seconds)
            if readable:
                with suppress(subprocess.TimeoutExpired):
                    self._process.wait(MARGIN_SECONDS)
        return self.end()

    def written(self, files: Iterable[Path] = ()) -> float:
        """When the script was last seen to have printed something or changed one of `files`.

        By the monotonic clock: of the first call that found the change.
        """
        for path in (self.job.folder / KEEPER_FILE, *files):
            with suppress(OSError):
                status = path.stat()
                state = (status.st_mtime_ns, status.st_size)
                if self._seen.get(path) != state:
                    self._seen[path] = state
                    self._written = time.monotonic()
        return self._written

    def _collected(self) -> End:
        assert self._process.stdout is not None
        try:
            return End(**json.loads(self._process.stdout.read()))
        except (ValueError, TypeError):
            cleared = _kill_marked(self.job.folder)
        text = f"the process that keeps the script was ended ({_fate(self._process)}), and the script with it"
        if cleared:
            text += f"; {cleared} more processes were killed"
        return End(-signal.SIGKILL, text)


def _started_keeper(job: Job) -> subprocess.Popen[bytes]:
    with suppress(OSError):
        job.log.parent.mkdir(parents=True, exist_ok=True)
    with _opened(job.log) as complaints:
        return subprocess.Popen(
            [sys.executable, "-I", "-S", str(Path(keeper.__file__).resolve())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=complaints,
            env={name: os.environ[name] for name in KEEPER_VARIABLES if name in os.environ},
            start_new_session=True,
            bufsize=0,
        )


def _opened(log: Path) -> BinaryIO:
    try:
        return log.open("ab", buffering=0)
    except OSError:
        return Path(os.devnull).open("wb", buffering=0)


def _sign(job: Job, pid: int) -> None:
    """Write down which keeper this is, for the worker that comes after."""
    identity = {
        "pid": pid,
        "start": start_time(pid),
        "host": host_identity(),
        "grace_seconds": job.grace_seconds,
    }
    (job.folder / KEEPER_FILE).write_text(json.dumps(identity))


def _hand_over(process: subprocess.Popen[bytes], orders: Orders) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    with suppress(BrokenPipeError):
        _write_all(process.stdin.fileno(), json.dumps(asdict(orders)).encode() + b"\n")
    if not select.select([process.stdout], [], [], START_SECONDS)[0]:
        raise ProcessError(f"the keeper did not start within {START_SECONDS:.0f} s")
    if process.stdout.readline().decode().strip() != READY:
        raise ProcessError(f"the keeper ended at once ({_fate(process)}): see {orders.log}")


def _write_all(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _fate(process: subprocess.Popen[bytes]) -> str:
    code = process.wait()
    return End(code).signal or f"exit code {code}"


def _close(process: subprocess.Popen[bytes]) -> None:
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe:
            pipe.close()


def end_of(folder: Path) -> End | None:
    """How the attempt in this folder ended, as its keeper wrote it; None: it runs, or nobody could write it."""
    try:
        return End(**json.loads((folder / END_FILE).read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def clear(folder: Path) -> int:
    """End what earlier attempts at a trial left on this host. Returns how many processes that were.

    folder: of the trial. A keeper that lives has its grace for the script and counts as one.
    """
    keepers = sorted(folder.glob(f"{ATTEMPTS}/{KEEPER_FILE}"))
    return sum(_end_keeper(file) for file in keepers) + _kill_marked(folder)


def _end_keeper(file: Path) -> bool:
    """Whether there was one."""
    try:
        identity = json.loads(file.read_bytes())
        pid, start, host = identity["pid"], identity["start"], identity["host"]
        grace = float(identity["grace_seconds"])
    except (OSError, ValueError, KeyError, TypeError):
        # Never written whole: such a keeper has started nothing.
        return False
    # Without /proc there is no start time, and the process may be another one.
    if not start or host != host_identity() or start_time(pid) != start:
        return False
    _signal(pid, signal.SIGTERM)
    if not _wait_for_end(pid, start, grace + MARGIN_SECONDS):
        _signal(pid, signal.SIGKILL)
        _wait_for_end(pid, start, MARGIN_SECONDS)
    return True


def _wait_for_end(pid: int, start: str, seconds: float) -> bool:
    give_up_at = time.monotonic() + seconds
    while start_time(pid) == start:
        if time.monotonic() >= give_up_at:
            return False
        time.sleep(PAUSE_SECONDS)
    return True


def _kill_marked(folder: Path) -> int:
    """Kill this user's processes whose environment names `folder` or one below as theirs."""
    root = folder.resolve()
    killed: set[int] = set()
    empty_looks = 0
    give_up_at = time.monotonic() + CLEAR_SECONDS
    while empty_looks < EMPTY_LOOKS and time.monotonic() < give_up_at:
        found = _marked(root) - {os.getpid()}
        for pid in found:
            _signal(pid, signal.SIGKILL)
        killed |= found
        empty_looks = 0 if found else empty_looks + 1
        time.sleep(PAUSE_SECONDS / 2)
    return len(killed)


def _marked(root: Path) -> set[int]:
    found = set()
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if entry.stat().st_uid == os.getuid() and _belongs(entry, root):
                found.add(int(entry.name))
    return found


def _belongs(process: Path, root: Path) -> bool:
    environment = (process / "environ").read_bytes()
    mark = f"{FOLDER_VARIABLE}=".encode()
    values = [part[len(mark) :] for part in environment.split(b"\0") if part.startswith(mark)]
    return any(Path(os.fsdecode(value)).resolve().is_relative_to(root) for value in values)


def _signal(pid: int, number: int) -> None:
    with suppress(OSError):
        os.kill(pid, number)


def script_environment(own: Mapping[str, str], secrets: Collection[str]) -> dict[str, str]:
    """This process's environment without HPO_*, PG* and variables that hold a secret; and `own`.

    secrets: the database's URL and its password. Those under 4 characters are not looked for.
    """
    sought = [secret.lower() for secret in secrets if len(secret) >= SHORTEST_SECRET]
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("HPO_", "PG"))
        and not any(secret in value.lower() for secret in sought)
    }
    return {**kept, **own}
