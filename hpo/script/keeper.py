"""The direct parent of a training script: keeps its output, and ends it with all that it started.

A worker runs this file by itself, as `python -I -S keeper.py`, so it imports the standard library
alone. One line of JSON on stdin holds the orders. The worker then keeps that pipe open: its end
means that the worker died, and the script is stopped as by SIGTERM to the keeper. Stdout says
`ready`, and at last in a line of JSON how the script ended.
"""

import ctypes
import errno
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
from dataclasses import asdict, dataclass
from pathlib import Path

READY = "ready"
# In the folder of an attempt. The time of the first says when the script has last printed something.
KEEPER_FILE = "keeper.json"
END_FILE = "end.json"
STOP_FILE = "stop"
ROWS_FILE = "output-rows"

CHUNK_BYTES = 1 << 20
# More than a pipe holds.
DRAINED_BYTES = 1 << 22
# After a read of less than this the output gathers for a moment: many short lines cost few reads.
SHORT_READ_BYTES = 1 << 16
GATHER_SECONDS = 0.02
# The end is told through a pipe, which holds 64 kB without a reader, and a broken byte takes three.
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
KILL_PAUSE_SECONDS = 0.05
REAPED_AT_ONCE = 1000

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
# Loaded here, as a child must not do so between fork and exec.
LIBRARY = ctypes.CDLL(None) if sys.platform == "linux" else None

NOT_FINITE = re.compile(
    r"(?<![\w.])[-+]?(?:nan|inf(?:inity)?|1\.#(?:qnan|snan|ind|inf)\d*)(?!\w)", re.IGNORECASE
)
SOME_NUMBER = "9.8765432198765"


@dataclass(frozen=True)
class Orders:
    """What the worker wants, as it comes over stdin."""

    command: list[str]
    folder: str
    environment: dict[str, str]
    grace_seconds: float
    log: str
    log_bytes: int
    # Lines of the output that match one go to ROWS_FILE.
    patterns: list[str]
    # The parent.
    worker: int


@dataclass(frozen=True)
class End:
    """How a script ended."""

    # Exit code, or minus the number of a signal; None: it never started.
    code: int | None
    error: str = ""
    # By us; `killed`: it took longer than the grace.
    stopped: bool = False
    killed: bool = False
    # The end of its output.
    tail: str = ""
    # Processes that the script left when it ended by itself; those that outlived SIGKILL.
    left_behind: int = 0
    surviving: int = 0
    # Why lines for the curve are lost.
    rows_error: str = ""

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
        lines = [line.strip() for line in self.tail.splitlines()]
        return " / ".join([line for line in lines if line][-count:])


class AppendedFile:
    """Takes bytes until the disk refuses them once."""

    def __init__(self, path: str):
        self.path = path
        self.error = ""
        try:
            self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        except OSError as error:
            self._lose(error)

    def write(self, data: bytes) -> None:
        rest = memoryview(data)
        try:
            while rest and not self.error:
                rest = rest[os.write(self._descriptor, rest) :]
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
        # Of the output.
        self._total = 0

    def add(self, chunk: bytes) -> None:
        room = max(0, self._limit - self._total)
        was_over = self._total > self._limit
        self._total += len(chunk)
        self._write(chunk[:room])
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
            self._write(shown)
        self._end_line()

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

    def __init__(self, path: str, patterns: Sequence[str]):
        self._patterns = [re.compile(pattern) for pattern in patterns]
        self._file = AppendedFile(path)
        self._rest = b""
        self._skipping = False

    @property
    def error(self) -> str:
        return self._file.error

    def add(self, chunk: bytes) -> None:
        text = chunk.replace(b"\r", b"\n")
        if self._skipping:
            _, newline, text = text.partition(b"\n")
            self._skipping = not newline
        *lines, self._rest = (self._rest + text).split(b"\n")
        self._write(lines)
        if len(self._rest) > LINE_BYTES:
            self.close()
            self._skipping = True

    def close(self) -> None:
        self._write([self._rest])
        self._rest = b""

    def _write(self, lines: Sequence[bytes]) -> None:
        self._file.write(b"".join(line + b"\n" for line in lines if self._matches(line)))

    def _matches(self, line: bytes) -> bool:
        text = line[:PATTERN_CHARACTERS].decode(errors="replace")
        # A pattern for digits does not match nan, which the curve must not miss.
        texts = {text, made_finite(text)}
        return any(pattern.search(text) for pattern in self._patterns for text in texts)


def made_finite(text: str) -> str:
    """With some number for each nan and inf."""
    lowered = text.lower()
    # This costs a tenth of the regular expression.
    if not any(part in lowered for part in ("nan", "inf", "1.#")):
        return text
    return NOT_FINITE.sub(SOME_NUMBER, text)


class Output:
    """What the script prints: its end in memory, the log, and the lines for the curve."""

    def __init__(self, log: Log, rows: Rows | None, sign_of_life: str):
        """sign_of_life: the file whose time says when the script has last printed something."""
        self.log = log
        self.rows = rows
        self.bytes = 0
        self.tail = b""
        self._sign_of_life = sign_of_life
        self._next_sign = 0.0

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
        if self.rows:
            self.rows.add(chunk)
        now = time.time()
        if now >= self._next_sign:
            self._next_sign = now + 1
            with suppress(OSError):
                os.utime(self._sign_of_life, (now, now))

    def drain(self, pipe: int) -> None:
        """What processes printed that have ended. Those that have not do not keep us here."""
        most = self.bytes + DRAINED_BYTES
        while self.bytes < most and self.read(pipe):
            pass

    def close(self) -> None:
        if self.rows:
            self.rows.close()
        self.log.close(self.tail)

    def text(self) -> str:
        """The tail, without what steers terminals, and without NUL, which no database takes."""
        text = self.tail.decode(errors="replace").replace("\r\n", "\n").replace("\r", "\n")
        return "".join(mark if mark.isprintable() or mark in "\n\t" else "\ufffd" for mark in text)


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


def prctl(option: int, value: int) -> bool:
    """Whether it was done. Linux alone offers this."""
    return LIBRARY is not None and LIBRARY.prctl(option, value, 0, 0, 0) == 0


def die_with(parent: int) -> None:
    """In the child, before it becomes the script."""
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


class Keeper:
    """Runs the script to its end. `plan`: which signals go when to all that is left of it."""

    def __init__(self, orders: Orders, signals: Signals, output: Output):
        self.orders = orders
        self.signals = signals
        self.output = output
        # Processes below this one become its children when their parent ends.
        self.adopts = prctl(PR_SET_CHILD_SUBREAPER, 1)
        self.script = -1
        self.code: int | None = None
        self.no_child_left = False
        self.stopped = False
        self.killed = False
        self.left_behind = 0
        self.surviving = 0
        self.worker_left = False
        self.plan: list[tuple[float, int]] = []
        self.give_up_at: float | None = None
        self.poll = select.poll()
        self.readers: dict[int, Callable[[], None]] = {}

    def run(self) -> End:
        try:
            script = self._started()
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            self.output.close()
            return End(None, why_not_started(error, self.orders))
        assert script.stdout is not None
        self.script = script.pid
        self.pipe = script.stdout.fileno()
        os.set_blocking(self.pipe, False)
        self._watch(sys.stdin.fileno(), self._read_stdin)
        self._watch(self.signals.pipe, self.signals.read)
        self._watch(self.pipe, self._read_output)
        while not self._is_over():
            self._wait()
            self._advance()
        # It is waited for here, with all others, not by Popen.
        script.returncode = 0
        if not self.adopts:
            with suppress(OSError):
                os.killpg(self.script, signal.SIGKILL)
        self.output.drain(self.pipe)
        self.output.close()
        return End(
            code=self.code,
            stopped=self.stopped,
            killed=self.killed,
            tail=self.output.text(),
            left_behind=self.left_behind,
            surviving=self.surviving,
            rows_error=self.output.rows.error if self.output.rows else "",
        )

    def _started(self) -> "subprocess.Popen[bytes]":
        keeper = os.getpid()
        return subprocess.Popen(
            self.orders.command,
            cwd=self.orders.folder,
            env=self.orders.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=lambda: die_with(keeper),
        )

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
                Path(self.orders.folder, STOP_FILE).touch()
            self.plan = [(now + self.orders.grace_seconds, signal.SIGKILL)]
            self._send(signal.SIGTERM)

    def _should_stop(self) -> bool:
        worker_died = self.worker_left or os.getppid() != self.orders.worker
        return self.signals.terminate or worker_died

    def _send(self, number: int) -> None:
        left = [process for process in descendants() if not process.is_zombie]
        # Where there is no /proc, the script alone.
        signal_groups(left or [Descendant(self.script, self.script, False)], number)
        if number == signal.SIGKILL:
            self._kill_again(len(left))
        elif not self.stopped:
            self.left_behind = len(left)

    def _kill_again(self, left: int) -> None:
        """A fork may have escaped, and the kernel takes its time: until none is left."""
        now = time.monotonic()
        self.killed = self.stopped
        self.give_up_at = self.give_up_at or now + GIVE_UP_SECONDS
        self.surviving = left if now >= self.give_up_at else 0
        self.plan = [(now + KILL_PAUSE_SECONDS, signal.SIGKILL)]

    def _is_over(self) -> bool:
        """No child left means no process left, as orphans are adopted."""
        return self.no_child_left or self.surviving > 0


def why_not_started(error: Exception, orders: Orders) -> str:
    program = orders.command[0]
    if not isinstance(error, OSError):
        return f"{program}: cannot be started: {error}"
    if error.errno == errno.ENOENT and "/" not in program:
        return f"{program}: no such program on PATH ({orders.environment.get('PATH', 'not set')})"
    if error.errno == errno.ENOENT and Path(orders.folder, program).exists():
        return f"{program}: its interpreter (the line that begins with #!) was not found"
    if error.errno == errno.ENOEXEC:
        return f"{program}: is no program: it lacks a first line that begins with #!"
    return f"{program}: {error.strerror}"


def tell(end: End, file: Path) -> None:
    """The worker, if it is still there, and whoever looks after the attempt later."""
    line = json.dumps(asdict(end), ensure_ascii=False).encode(errors="surrogatepass")
    draft = file.with_suffix(".tmp")
    with suppress(OSError):
        draft.write_bytes(line)
        draft.replace(file)
    say(line)


def say(line: bytes) -> None:
    with suppress(OSError):
        os.write(sys.stdout.fileno(), line + b"\n")


def main() -> None:
    signals = Signals()
    line = sys.stdin.buffer.readline()
    if not line.endswith(b"\n"):
        return
    orders = Orders(**json.loads(line))
    folder = Path(orders.folder)
    rows = Rows(str(folder / ROWS_FILE), orders.patterns) if orders.patterns else None
    output = Output(Log(orders.log, orders.log_bytes), rows, str(folder / KEEPER_FILE))
    say(READY.encode())
    tell(Keeper(orders, signals, output).run(), folder / END_FILE)


if __name__ == "__main__":
    main()
