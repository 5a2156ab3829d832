"""The direct parent of a training script: keeps its output, and ends it with all that it started.

A worker runs this file by itself, as `python -I -S keeper.py`, so it imports the standard library
alone. One line of JSON on stdin holds the orders. The worker then keeps that pipe open: its end
means that the worker died, and the script is stopped as by SIGTERM to the keeper. Stdout says
`ready`, or in one line why nothing could be started.
"""

import ctypes
import errno
import fcntl
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

READY = "ready"
# Exit codes of the keeper itself.
REFUSED, END_NOT_WRITTEN = 2, 3

CHUNK_BYTES = 1 << 20
PIPE_BYTES = 1 << 18
# More than a pipe holds.
DRAINED_BYTES = 1 << 22
# After a read of less than this the output gathers for a moment: many short lines cost few reads.
SHORT_READ_BYTES = 1 << 16
GATHER_SECONDS = 0.02
TAIL_BYTES = 16 * 1024
# Of the output's end, added to a log that has left out what was before.
LOG_TAIL_BYTES = 8 * 1024
LINE_BYTES = 1 << 20
# Patterns see no more of a line: a pattern such as `.*loss` takes quadratic time.
PATTERN_CHARACTERS = 16 * 1024

# Without news the keeper wakes this often, and looks whether its parent is still the worker.
IDLE_SECONDS = 1.0
# When the script has ended by itself: its helpers may leave for so long, then get SIGTERM, and
# so much later SIGKILL.
SETTLE_SECONDS = 0.5
LEAVE_SECONDS = 2.0
# From the first SIGKILL on. A process that hangs within the kernel outlasts it.
GIVE_UP_SECONDS = 20.0
FIRST_KILL_PAUSE, LAST_KILL_PAUSE = 0.02, 0.5
LOCK_SECONDS = 2.0
REAPED_AT_ONCE = 1000

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36

NOT_FINITE = re.compile(
    r"(?<![\w.])[-+]?(?:nan|inf(?:inity)?|1\.#(?:qnan|snan|ind|inf)\d*)(?!\w)", re.IGNORECASE
)
SOME_NUMBER = "9.8765432198765"


@dataclass(frozen=True)
class Orders:
    """What the worker wants, as it comes over stdin."""

    command: list[str]
    cwd: str
    environment: dict[str, str]
    grace_seconds: float
    log: str
    log_bytes: int
    # Lines of the output go to the file `rows` that match a regular expression, or are JSON.
    patterns: list[str]
    json_lines: bool
    rows: str
    lock: str
    stop: str
    end: str
    # The parent, and this host as the worker calls it.
    worker: int
    host: str


@dataclass(frozen=True)
class End:
    """How a script ended."""

    # Exit code, or minus the number of a signal; None: it never started.
    code: int | None
    error: str = ""
    errno: int = 0
    # By us; `killed`: it took longer than the grace.
    stopped: bool = False
    killed: bool = False
    # The last 16 kB of its output, of `bytes` in all; `left_out` of them are not in the log.
    tail: str = ""
    bytes: int = 0
    left_out: int = 0
    # Processes that the script left when it ended by itself; those that outlived SIGKILL.
    left_behind: int = 0
    surviving: int = 0
    log_error: str = ""
    rows_error: str = ""
    seconds: float = 0.0

    @property
    def signal(self) -> str | None:
        """Name of the signal that ended it."""
        if self.code is None or self.code >= 0:
            return None
        try:
            return signal.Signals(-self.code).name
        except ValueError:
            return f"signal {-self.code}"

    def last_lines(self, count: int) -> str:
        """The last lines of its output that say something, in one line."""
        printable = "".join(mark if mark.isprintable() else "\n" for mark in self.tail)
        lines = [line.strip() for line in printable.split("\n")]
        return " / ".join([line for line in lines if line][-count:])


class AppendedFile:
    """Takes bytes until the disk refuses them once."""

    def __init__(self, path: str):
        self.path = path
        self.error = ""
        self.bytes = 0
        self._descriptor = -1
        try:
            self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        except OSError as error:
            self._lose(error)

    def write(self, data: bytes) -> None:
        rest = memoryview(data)
        try:
            while rest and not self.error:
                written = os.write(self._descriptor, rest)
                self.bytes += written
                rest = rest[written:]
        except OSError as error:
            self._lose(error)

    def _lose(self, error: OSError) -> None:
        self.error = f"{self.path}: {error.strerror}"


class Log:
    """The trial's log, to which an attempt adds so many bytes at most."""

    def __init__(self, path: str, limit: int):
        self._file = AppendedFile(path)
        self._limit = limit
        self._whole_line = True
        # Of the output, and how much of it is in the log.
        self._total = 0
        self._kept = 0

    @property
    def error(self) -> str:
        return self._file.error

    @property
    def left_out(self) -> int:
        return self._total - self._kept

    def add(self, chunk: bytes) -> None:
        room = max(0, self._limit - self._total)
        was_over = self._total > self._limit
        self._total += len(chunk)
        self._keep(chunk[:room])
        if self._total > self._limit and not was_over:
            self._say(
                f"this attempt has printed more than {size(self._limit)}; "
                "what follows is left out, but for its end"
            )

    def close(self, tail: bytes) -> None:
        """tail: the end of the whole output."""
        dropped = self._total - self._limit
        if dropped > 0:
            shown = tail[-min(dropped, LOG_TAIL_BYTES) :]
            self._say(f"{dropped - len(shown):,} bytes were left out here; the output ends so:")
            self._keep(shown)
        self._end_line()

    def _keep(self, output: bytes) -> None:
        before = self._file.bytes
        self._write(output)
        self._kept += self._file.bytes - before

    def _say(self, text: str) -> None:
        self._end_line()
        self._write(f"hpo: {text}\n".encode())

    def _end_line(self) -> None:
        if not self._whole_line:
            self._write(b"\n")

    def _write(self, data: bytes) -> None:
        if data:
            self._file.write(data)
            self._whole_line = data.endswith(b"\n")


def size(count: int) -> str:
    return f"{count / 1e6:.3g} MB" if count >= 1e6 else f"{count:,} bytes"


class Rows:
    """Keeps the lines of the output that the curve is read from.

    A line ends at a newline or a carriage return, as those of progress bars do.
    """

    def __init__(self, path: str, patterns: Sequence[str], json_lines: bool):
        self._patterns = [re.compile(pattern) for pattern in patterns]
        self._json_lines = json_lines
        self._file = AppendedFile(path) if patterns or json_lines else None
        self._rest = b""
        self._skipping = False

    @property
    def error(self) -> str:
        return self._file.error if self._file else ""

    def add(self, chunk: bytes) -> None:
        if self._file is None:
            return
        text = chunk.replace(b"\r", b"\n")
        if self._skipping:
            _, newline, text = text.partition(b"\n")
            self._skipping = not newline
        *lines, self._rest = (self._rest + text).split(b"\n")
        self._write(lines)
        if len(self._rest) > LINE_BYTES:
            self._write([self._rest])
            self._rest = b""
            self._skipping = True

    def close(self) -> None:
        self._write([self._rest])
        self._rest = b""

    def _write(self, lines: Sequence[bytes]) -> None:
        matching = [line + b"\n" for line in lines if self._matches(line)]
        if self._file and matching:
            self._file.write(b"".join(matching))

    def _matches(self, line: bytes) -> bool:
        if not line:
            return False
        if self._json_lines:
            return line.lstrip().startswith(b"{")
        text = line[:PATTERN_CHARACTERS].decode(errors="replace")
        if any(pattern.search(text) for pattern in self._patterns):
            return True
        # A pattern for digits does not match nan, which the curve must not miss.
        finite = made_finite(text)
        return finite != text and any(pattern.search(finite) for pattern in self._patterns)


def made_finite(text: str) -> str:
    """With some number for each nan and inf."""
    lowered = text.lower()
    # This costs a tenth of the regular expression.
    if not any(part in lowered for part in ("nan", "inf", "1.#")):
        return text
    return NOT_FINITE.sub(SOME_NUMBER, text)


class Output:
    """What the script prints: its end in memory, the log, and the lines for the curve."""

    def __init__(self, log: Log, rows: Rows, lock: int):
        """lock: the file whose time says when the script has last printed something."""
        self.log = log
        self.rows = rows
        self.bytes = 0
        self.tail = b""
        self._lock = lock
        self._next_touch = 0.0

    def read(self, pipe: int) -> int | None:
        """How many bytes came, 0: no more will; None: none now."""
        try:
            chunk = os.read(pipe, CHUNK_BYTES)
        except BlockingIOError:
            return None
        if chunk:
            self._add(chunk)
        return len(chunk)

    def _add(self, chunk: bytes) -> None:
        self.bytes += len(chunk)
        self.tail = (self.tail + chunk[-TAIL_BYTES:])[-TAIL_BYTES:]
        self.log.add(chunk)
        self.rows.add(chunk)
        now = time.time()
        if now >= self._next_touch:
            self._next_touch = now + 1
            with suppress(OSError):
                os.utime(self._lock, (now, now))

    def drain(self, pipe: int) -> None:
        """What processes printed that have ended. Those that have not do not keep us here."""
        most = self.bytes + DRAINED_BYTES
        while self.bytes < most and self.read(pipe):
            pass

    def close(self) -> None:
        self.rows.close()
        self.log.close(self.tail)

    def text(self) -> str:
        """The tail. NUL does not go into a database."""
        text = self.tail.decode(errors="replace")
        return text.replace("\r\n", "\n").replace("\r", "\n").replace("\0", "\ufffd")


@dataclass(frozen=True)
class Descendant:
    pid: int
    group: int
    is_zombie: bool


def descendants() -> list[Descendant]:
    """The processes below this one, where there is /proc.

    As this one adopts orphans, none escapes by a fork or a session of its own.
    """
    children: dict[int, list[Descendant]] = defaultdict(list)
    for parent, process in _processes():
        children[parent].append(process)
    found: list[Descendant] = []
    parents = [os.getpid()]
    while parents:
        below = children.pop(parents.pop(), [])
        found += below
        parents += [process.pid for process in below]
    return found


def _processes() -> list[tuple[int, Descendant]]:
    """(parent, process)"""
    found = []
    for pid in _process_ids():
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123 Path costs as much as the read
                state, parent, group, _ = file.read().rpartition(b") ")[2].split(b" ", 3)
        except OSError:
            continue
        found.append((int(parent), Descendant(pid, int(group), state in b"ZX")))
    return found


def _process_ids() -> list[int]:
    try:
        return [int(name) for name in os.listdir("/proc") if name.isdigit()]  # noqa: PTH208
    except OSError:
        return []


def signal_groups(processes: Sequence[Descendant], number: int) -> None:
    """By group, so that each process gets it once, and none escapes by a fork meanwhile."""
    own = os.getpgrp()
    for group in {process.group for process in processes}:
        if group > 1 and group != own:
            with suppress(OSError):
                os.killpg(group, number)


class Signals:
    """Handlers that only wake the loop. They are no SIG_IGN, which the script would inherit."""

    CAUGHT = (
        signal.SIGTERM,
        signal.SIGCHLD,
        signal.SIGINT,
        signal.SIGHUP,
        signal.SIGUSR1,
        signal.SIGUSR2,
    )

    def __init__(self) -> None:
        self.terminate = False
        self.pipe, wakeup = os.pipe()
        os.set_blocking(self.pipe, False)
        os.set_blocking(wakeup, False)
        signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
        for number in self.CAUGHT:
            signal.signal(number, self._note)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])

    def _note(self, number: int, frame: object) -> None:
        if number == signal.SIGTERM:
            self.terminate = True

    def read(self) -> None:
        with suppress(BlockingIOError):
            os.read(self.pipe, CHUNK_BYTES)


class Linux:
    """What Linux alone offers. Elsewhere nothing happens."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(None) if sys.platform == "linux" else None

    def adopt_orphans(self) -> bool:
        """Whether processes below this one become its children when their parent ends."""
        return self._prctl(PR_SET_CHILD_SUBREAPER, 1)

    def die_with(self, parent: int) -> None:
        """In the child, before it becomes the script."""
        self._prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)

    def _prctl(self, option: int, value: int) -> bool:
        return self._library is not None and self._library.prctl(option, value, 0, 0, 0) == 0


class Keeper:
    """Runs the script to its end. `plan`: which signals go when to all that is left of it."""

    def __init__(self, orders: Orders, signals: Signals, linux: Linux, output: Output):
        self.orders = orders
        self.signals = signals
        self.linux = linux
        self.output = output
        self.adopts = linux.adopt_orphans()
        self.script = -1
        self.pipe = -1
        self.code: int | None = None
        self.no_child_left = False
        self.stopped = False
        self.killed = False
        self.left_behind = 0
        self.surviving = 0
        self.worker_left = False
        self.plan: list[tuple[float, int]] = []
        self.kill_pause = FIRST_KILL_PAUSE
        self.give_up_at: float | None = None
        self.poll = select.poll()
        self.readers: dict[int, Callable[[], None]] = {}

    def run(self) -> End:
        begun = time.monotonic()
        try:
            self._start()
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            code = error.errno if isinstance(error, OSError) else None
            self.output.close()
            return End(
                None,
                why_not_started(error, self.orders),
                code or 0,
                log_error=self.output.log.error,
            )
        self._watch(sys.stdin.fileno(), self._read_stdin)
        self._watch(self.signals.pipe, self.signals.read)
        self._watch(self.pipe, self._read_output)
        while not self._is_over():
            self._wait()
            self._advance()
        if not self.adopts:
            with suppress(OSError):
                os.killpg(self.script, signal.SIGKILL)
        self.output.drain(self.pipe)
        self.output.close()
        return self._end(time.monotonic() - begun)

    def _start(self) -> None:
        reading, writing = os.pipe()
        self.pipe = reading
        try:
            with suppress(OSError, AttributeError):
                fcntl.fcntl(reading, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
            os.set_blocking(reading, False)
            keeper = os.getpid()
            script = subprocess.Popen(
                self.orders.command,
                cwd=self.orders.cwd,
                env=self.orders.environment,
                stdin=subprocess.DEVNULL,
                stdout=writing,
                stderr=writing,
                start_new_session=True,
                preexec_fn=lambda: self.linux.die_with(keeper),
            )
        finally:
            os.close(writing)
        self.script = script.pid
        # It is waited for here, with all others, not by Popen.
        script.returncode = 0

    def _watch(self, descriptor: int, read: Callable[[], None]) -> None:
        self.poll.register(descriptor, select.POLLIN)
        self.readers[descriptor] = read

    def _wait(self) -> None:
        """For something to read, a signal, or the time of the next signal of the plan."""
        seconds = IDLE_SECONDS
        if self.plan:
            seconds = min(seconds, max(0.0, self.plan[0][0] - time.monotonic()))
        for descriptor, _ in self.poll.poll(seconds * 1000):
            self.readers[descriptor]()

    def _read_stdin(self) -> None:
        if not os.read(sys.stdin.fileno(), CHUNK_BYTES):
            self.poll.unregister(sys.stdin.fileno())
            self.worker_left = True

    def _read_output(self) -> None:
        count = self.output.read(self.pipe)
        if count == 0:
            self.poll.unregister(self.pipe)
        elif count and count < SHORT_READ_BYTES and not self.plan:
            time.sleep(GATHER_SECONDS)

    def _advance(self) -> None:
        self._reap()
        if self.no_child_left:
            return
        if not self.plan:
            self._make_plan()
        elif time.monotonic() >= self.plan[0][0]:
            self._send(self.plan.pop(0)[1])

    def _reap(self) -> None:
        for _ in range(REAPED_AT_ONCE):
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                self.no_child_left = True
                return
            if pid == 0:
                return
            if pid == self.script:
                self.code = os.waitstatus_to_exitcode(status)

    def _make_plan(self) -> None:
        now = time.monotonic()
        if self.code is not None:
            self.plan = [
                (now + SETTLE_SECONDS, signal.SIGTERM),
                (now + SETTLE_SECONDS + LEAVE_SECONDS, signal.SIGKILL),
            ]
        elif self._should_stop():
            self.stopped = True
            with suppress(OSError):
                Path(self.orders.stop).touch()
            self.plan = [(now + self.orders.grace_seconds, signal.SIGKILL)]
            self._send(signal.SIGTERM)

    def _should_stop(self) -> bool:
        worker_died = self.worker_left or os.getppid() != self.orders.worker
        return self.signals.terminate or worker_died

    def _send(self, number: int) -> None:
        left = [process for process in descendants() if not process.is_zombie]
        signal_groups(left or self._script_alone(), number)
        if number == signal.SIGKILL:
            self._kill_again(len(left))
        elif not self.stopped:
            self.left_behind = len(left)

    def _script_alone(self) -> list[Descendant]:
        """Where there is no /proc."""
        return [Descendant(self.script, self.script, False)]

    def _kill_again(self, left: int) -> None:
        """A fork may have escaped, and the kernel takes its time: until none is left."""
        now = time.monotonic()
        self.killed = self.stopped
        self.give_up_at = self.give_up_at or now + GIVE_UP_SECONDS
        self.surviving = left if now >= self.give_up_at else 0
        self.plan = [(now + self.kill_pause, signal.SIGKILL)]
        self.kill_pause = min(2 * self.kill_pause, LAST_KILL_PAUSE)

    def _is_over(self) -> bool:
        """No child left means no process left, as orphans are adopted."""
        return self.no_child_left or self.surviving > 0

    def _end(self, seconds: float) -> End:
        return End(
            code=self.code,
            stopped=self.stopped,
            killed=self.killed,
            tail=self.output.text(),
            bytes=self.output.bytes,
            left_out=self.output.log.left_out,
            left_behind=self.left_behind,
            surviving=self.surviving,
            log_error=self.output.log.error,
            rows_error=self.output.rows.error,
            seconds=round(seconds, 3),
        )


def why_not_started(error: Exception, orders: Orders) -> str:
    program = orders.command[0]
    if not isinstance(error, OSError):
        return f"{program}: cannot be started: {error}"
    if error.filename == orders.cwd and not os.access(orders.cwd, os.X_OK):
        return f"{orders.cwd}: {error.strerror}, so {program} cannot be started there"
    path = Path(orders.cwd, program)
    if error.errno == errno.ENOENT and "/" in program and path.exists():
        return f"{program}: its interpreter (the line that begins with #!) was not found"
    if error.errno == errno.ENOENT and "/" not in program:
        return f"{program}: no such program on PATH ({orders.environment.get('PATH', 'not set')})"
    if error.errno == errno.ENOEXEC:
        return f"{program}: is no program: it lacks a first line that begins with #!"
    return f"{program}: {error.strerror}"


def take_lock(orders: Orders) -> int:
    """Held as long as this process lives. Within: who it is, for the worker that comes after."""
    lock = os.open(orders.lock, os.O_RDWR | os.O_CREAT, 0o644)
    give_up_at = time.monotonic() + LOCK_SECONDS
    while not _locked(lock):
        if time.monotonic() >= give_up_at:
            raise OSError(errno.EAGAIN, "held by the keeper of another attempt", orders.lock)
        time.sleep(0.05)
    identity = {
        "pid": os.getpid(),
        "start": _own_start(),
        "host": orders.host,
        "grace_seconds": orders.grace_seconds,
    }
    os.truncate(lock, 0)
    os.pwrite(lock, json.dumps(identity).encode(), 0)
    return lock


def _locked(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        # A file system without locks: process id and start time must do.
        return True
    return True


def _own_start() -> str:
    """As hpo.process.start_time tells it."""
    try:
        return Path("/proc/self/stat").read_text().rpartition(") ")[2].split()[19]
    except OSError:
        return ""


def write_end(path: str, end: End) -> int:
    """The keeper's exit code."""
    draft = Path(f"{path}.tmp")
    try:
        draft.write_text(json.dumps(asdict(end)))
        draft.replace(path)
    except OSError as error:
        # No more than a pipe takes without a reader.
        kept = replace(end, tail=end.tail[-2000:], log_error=f"{path}: {error.strerror}")
        _say(json.dumps(asdict(kept)))
        return END_NOT_WRITTEN
    return 0


def _say(line: str) -> None:
    """To the worker, if it is still there."""
    with suppress(OSError):
        os.write(sys.stdout.fileno(), f"{line}\n".encode())


def main() -> int:
    signals = Signals()
    linux = Linux()
    line = sys.stdin.buffer.readline()
    if not line.endswith(b"\n"):
        return REFUSED
    orders = Orders(**json.loads(line))
    try:
        lock = take_lock(orders)
        rows = Rows(orders.rows, orders.patterns, orders.json_lines)
    except (OSError, re.error) as error:
        _say(str(error))
        return REFUSED
    output = Output(Log(orders.log, orders.log_bytes), rows, lock)
    _say(READY)
    return write_end(orders.end, Keeper(orders, signals, linux, output).run())


if __name__ == "__main__":
    sys.exit(main())
