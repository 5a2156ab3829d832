"""The parent process of a training script: records its output and ends all of its processes.

A worker runs this file as a program, `python -I -S keeper.py`, so it imports nothing but the
standard library. It reads its orders from stdin, as one line of JSON. The worker then keeps that
pipe open. If the pipe closes, the worker has died, and the keeper stops the script as it does on
SIGTERM. On stdout it prints `ready`, and at the end a line of JSON: how the script ended.
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
# Files in the folder of an attempt. The keeper touches the first one when the script prints.
KEEPER_FILE = "keeper.json"
END_FILE = "end.json"
STOP_FILE = "stop"
ROWS_FILE = "output-rows"

CHUNK_BYTES = 1 << 20
# More than a pipe holds.
DRAINED_BYTES = 1 << 22
# After a shorter read the keeper waits for a moment, so that many short lines cost few reads.
SHORT_READ_BYTES = 1 << 16
GATHER_SECONDS = 0.02
# The tail travels through a pipe that holds 64 kB, and an undecodable byte becomes three.
TAIL_BYTES = 16 * 1024
# How much of the end of the output a log gets after its limit.
LOG_TAIL_BYTES = 8 * 1024
LINE_BYTES = 1 << 20
# Patterns search only the beginning of a line: one such as `.*loss` takes quadratic time.
PATTERN_CHARACTERS = 16 * 1024

# The keeper wakes at least this often, and checks that its parent is still the worker.
IDLE_SECONDS = 1.0
# When the script has ended by itself, the processes that it leaves get SIGTERM after SETTLE_SECONDS
# and SIGKILL after LEAVE_SECONDS more.
SETTLE_SECONDS = 0.5
LEAVE_SECONDS = 2.0
# How long after the first SIGKILL the keeper gives up: a process can hang within the kernel.
GIVE_UP_SECONDS = 20.0
KILL_PAUSE_SECONDS = 0.05
REAPED_AT_ONCE = 1000

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
# Loaded at import, because a child must not load a library between fork and exec.
LIBRARY = ctypes.CDLL(None) if sys.platform == "linux" else None

NOT_FINITE = re.compile(
    r"(?<![\w.])[-+]?(?:nan|inf(?:inity)?|1\.#(?:qnan|snan|ind|inf)\d*)(?!\w)", re.IGNORECASE
)
SOME_NUMBER = "9.8765432198765"


@dataclass(frozen=True)
class Orders:
    """What the worker asks for. It arrives as JSON on stdin."""

    command: list[str]
    folder: str
    environment: dict[str, str]
    grace_seconds: float
    log: str
    log_bytes: int
    # Lines of the output that match one of these are added to ROWS_FILE.
    patterns: list[str]
    # Process id of the worker, the keeper's parent.
    worker: int


@dataclass(frozen=True)
class End:
    """How a script ended."""

    # Exit code, or minus the number of the signal that ended it. None if it never started.
    code: int | None
    # Why it never started.
    error: str = ""
    # The keeper stopped it.
    stopped: bool = False
    # It did not end within the grace after SIGTERM.
    killed: bool = False
    # The end of its output.
    tail: str = ""
    # Number of processes that it left when it ended by itself.
    left_behind: int = 0
    # Number of processes that survived SIGKILL.
    surviving: int = 0
    # Why lines for the curve are lost.
    rows_error: str = ""

    @property
    def signal(self) -> str | None:
        """The name of the signal that ended it."""
        if self.code is None or self.code >= 0:
            return None
        try:
            return signal.Signals(-self.code).name
        except ValueError:
            return f"signal {-self.code}"

    def last_lines(self, count: int) -> str:
        """The last lines of its output that are not blank, joined into one line."""
        stripped = [line.strip() for line in self.tail.splitlines()]
        lines = [line for line in stripped if line]
        return " / ".join(lines[-count:])


class AppendedFile:
    """A file to append to. After the first error of the disk it ignores all further bytes.

    error: that error, or empty.
    """

    def __init__(self, path: str):
        self.path = path
        self.error = ""
        try:
            self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        except OSError as error:
            self._give_up(error)

    def write(self, data: bytes) -> None:
        rest = memoryview(data)
        try:
            while rest and not self.error:
                written = os.write(self._descriptor, rest)
                rest = rest[written:]
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self.error = f"{self.path}: {error.strerror}"


class Log:
    """The trial's log, to which one attempt adds at most `limit` bytes of output."""

    def __init__(self, path: str, limit: int):
        self._file = AppendedFile(path)
        self._limit = limit
        self._ends_with_newline = True
        # Bytes of output so far, including those beyond the limit.
        self._output_bytes = 0

    def add(self, chunk: bytes) -> None:
        room = max(0, self._limit - self._output_bytes)
        was_over = self._output_bytes > self._limit
        self._output_bytes += len(chunk)
        self._write(chunk[:room])
        if self._output_bytes > self._limit and not was_over:
            self._add_note(
                f"this attempt has printed more than {size(self._limit)}; "
                "the rest is left out, except its end"
            )

    def close(self, tail: bytes) -> None:
        """tail: the end of the whole output."""
        dropped = self._output_bytes - self._limit
        if dropped > 0:
            shown = tail[-min(dropped, LOG_TAIL_BYTES) :]
            left_out = dropped - len(shown)
            self._add_note(f"{left_out:,} bytes were left out here; the end of the output:")
            self._write(shown)
        self._end_line()

    def _add_note(self, text: str) -> None:
        self._end_line()
        self._write(f"hpo: {text}\n".encode())

    def _end_line(self) -> None:
        if not self._ends_with_newline:
            self._write(b"\n")

    def _write(self, data: bytes) -> None:
        if data:
            self._file.write(data)
            self._ends_with_newline = data.endswith(b"\n")


def size(count: int) -> str:
    return f"{count / 1e6:.3g} MB" if count >= 1e6 else f"{count:,} bytes"


class Rows:
    """Copies the lines that a pattern matches from the output to a file: the curve's rows.

    A line ends at a newline, or at a carriage return, as in progress bars.
    """

    def __init__(self, path: str, patterns: Sequence[str]):
        self._patterns = [re.compile(pattern) for pattern in patterns]
        self._file = AppendedFile(path)
        self._unfinished_line = b""
        # Within a line that is too long, whose rest is dropped.
        self._skips_line = False

    @property
    def error(self) -> str:
        return self._file.error

    def add(self, chunk: bytes) -> None:
        text = chunk.replace(b"\r", b"\n")
        if self._skips_line:
            _, newline, text = text.partition(b"\n")
            self._skips_line = not newline
        *lines, self._unfinished_line = (self._unfinished_line + text).split(b"\n")
        self._write(lines)
        if len(self._unfinished_line) > LINE_BYTES:
            self.close()
            self._skips_line = True

    def close(self) -> None:
        self._write([self._unfinished_line])
        self._unfinished_line = b""

    def _write(self, lines: Sequence[bytes]) -> None:
        matching = [line + b"\n" for line in lines if self._matches(line)]
        self._file.write(b"".join(matching))

    def _matches(self, line: bytes) -> bool:
        text = line[:PATTERN_CHARACTERS].decode(errors="replace")
        # A pattern for digits does not match nan, but the curve needs that line too.
        variants = {text, with_finite_numbers(text)}
        return any(pattern.search(variant) for pattern in self._patterns for variant in variants)


def with_finite_numbers(text: str) -> str:
    """The text with an ordinary number in place of each nan and inf."""
    lowered = text.lower()
    # This test takes a tenth of the time of the regular expression.
    if not any(part in lowered for part in ("nan", "inf", "1.#")):
        return text
    return NOT_FINITE.sub(SOME_NUMBER, text)


class Output:
    """What the script prints: goes to the log and the rows of the curve; its tail stays here."""

    def __init__(self, log: Log, rows: Rows | None, touched_file: str):
        """touched_file: gets a new modification time when the script prints."""
        self.log = log
        self.rows = rows
        self.bytes = 0
        self.tail = b""
        self._touched_file = touched_file
        self._next_touch = 0.0

    def read(self, pipe: int) -> int | None:
        """The number of bytes read: 0 at the end of the output, None if there are none yet."""
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
        if now >= self._next_touch:
            self._next_touch = now + 1
            with suppress(OSError):
                os.utime(self._touched_file, (now, now))

    def drain(self, pipe: int) -> None:
        """Read what is left in the pipe, up to a limit in case a process still prints."""
        most = self.bytes + DRAINED_BYTES
        while self.bytes < most:
            if not self.read(pipe):
                return

    def close(self) -> None:
        if self.rows:
            self.rows.close()
        self.log.close(self.tail)

    def text(self) -> str:
        """The tail without control characters: no terminal codes, and no NUL for the database."""
        text = self.tail.decode(errors="replace").replace("\r\n", "\n").replace("\r", "\n")
        return "".join(_visible(character) for character in text)


def _visible(character: str) -> str:
    if character.isprintable() or character in "\n\t":
        return character
    return "\ufffd"


@dataclass(frozen=True)
class Descendant:
    pid: int
    group: int
    is_zombie: bool


def descendants() -> list[Descendant]:
    """The processes below this one; none where there is no /proc.

    This process adopts orphans, so no process escapes by a fork or a session of its own.
    """
    children: dict[int, list[Descendant]] = defaultdict(list)
    for parent, process in _processes():
        children[parent].append(process)
    below: list[Descendant] = []
    parents = [os.getpid()]
    while parents:
        directly_below = children.pop(parents.pop(), [])
        below += directly_below
        parents += [process.pid for process in directly_below]
    return below


def _processes() -> list[tuple[int, Descendant]]:
    """All processes of this host, each with the process id of its parent."""
    processes = []
    for pid in _process_ids():
        try:
            # A Path would double the cost of this read.
            with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123
                stat = file.read()
        except OSError:
            continue
        # The name of the program stands before this, in parentheses, and may hold anything.
        state, parent, group, _ = stat.rpartition(b") ")[2].split(b" ", 3)
        processes.append((int(parent), Descendant(pid, int(group), state in b"ZX")))
    return processes


def _process_ids() -> list[int]:
    try:
        return [int(name) for name in os.listdir("/proc") if name.isdigit()]  # noqa: PTH208
    except OSError:
        return []


def signal_groups(processes: Sequence[Descendant], number: int) -> None:
    """Send a signal to the process groups of these processes.

    Thus each process gets it once, and none escapes by a fork at the same time.
    """
    own = os.getpgrp()
    for group in {process.group for process in processes}:
        if group > 1 and group != own:
            with suppress(OSError):
                os.killpg(group, number)


class Signals:
    """Signal handlers that only wake the loop; `terminate` says whether SIGTERM has come.

    Ignoring the signals (SIG_IGN) would do too, but the script would inherit that.
    """

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
    """Returns whether the call succeeded. Only Linux has it."""
    return LIBRARY is not None and LIBRARY.prctl(option, value, 0, 0, 0) == 0


def die_with(parent: int) -> None:
    """Tie this process to its parent. Runs in the child, before it becomes the script."""
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


@dataclass(frozen=True)
class PlannedSignal:
    # On the monotonic clock.
    due: float
    number: int


class Keeper:
    """Runs the script until none of its processes is left.

    plan: the signals that the remaining processes will get, in the order of their times.
    """

    def __init__(self, orders: Orders, signals: Signals, output: Output):
        self.orders = orders
        self.signals = signals
        self.output = output
        # Whether processes below this one become its children when their parent ends.
        self.adopts_orphans = prctl(PR_SET_CHILD_SUBREAPER, 1)
        self.script = -1
        self.code: int | None = None
        self.no_child_left = False
        self.stopped = False
        self.killed = False
        self.left_behind = 0
        self.surviving = 0
        self.worker_has_left = False
        self.plan: list[PlannedSignal] = []
        self.give_up_at: float | None = None
        self.poll = select.poll()
        self.readers: dict[int, Callable[[], None]] = {}

    def run(self) -> End:
        try:
            script = self._start()
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
        # `_reap` has waited for the script. This keeps Popen from waiting for it too.
        script.returncode = 0
        if not self.adopts_orphans:
            with suppress(OSError):
                os.killpg(self.script, signal.SIGKILL)
        self.output.drain(self.pipe)
        self.output.close()
        rows = self.output.rows
        return End(
            code=self.code,
            stopped=self.stopped,
            killed=self.killed,
            tail=self.output.text(),
            left_behind=self.left_behind,
            surviving=self.surviving,
            rows_error=rows.error if rows else "",
        )

    def _start(self) -> "subprocess.Popen[bytes]":
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
        """Wait for something to read, a signal, or the next planned signal; then read."""
        seconds = IDLE_SECONDS
        if self.plan:
            seconds = min(seconds, max(0.0, self.plan[0].due - time.monotonic()))
        for descriptor, _ in self.poll.poll(seconds * 1000):
            self.readers[descriptor]()

    def _read_stdin(self) -> None:
        if not os.read(sys.stdin.fileno(), CHUNK_BYTES):
            self.poll.unregister(sys.stdin.fileno())
            self.worker_has_left = True

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
        elif time.monotonic() >= self.plan[0].due:
            self._send(self.plan.pop(0).number)

    def _reap(self) -> None:
        """Collect the exit codes of children that have ended."""
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
        """Plan signals if the script has ended and left processes, or if it should stop."""
        now = time.monotonic()
        if self.code is not None:
            settled = now + SETTLE_SECONDS
            self.plan = [
                PlannedSignal(settled, signal.SIGTERM),
                PlannedSignal(settled + LEAVE_SECONDS, signal.SIGKILL),
            ]
        elif self._should_stop():
            self.stopped = True
            with suppress(OSError):
                Path(self.orders.folder, STOP_FILE).touch()
            self.plan = [PlannedSignal(now + self.orders.grace_seconds, signal.SIGKILL)]
            self._send(signal.SIGTERM)

    def _should_stop(self) -> bool:
        worker_died = self.worker_has_left or os.getppid() != self.orders.worker
        return self.signals.terminate or worker_died

    def _send(self, number: int) -> None:
        alive = [process for process in descendants() if not process.is_zombie]
        # Without /proc only the script itself is known.
        signal_groups(alive or [Descendant(self.script, self.script, False)], number)
        if number == signal.SIGKILL:
            self._plan_next_kill(len(alive))
        elif not self.stopped:
            self.left_behind = len(alive)

    def _plan_next_kill(self, alive: int) -> None:
        """Kill again until no process is left: a fork may have escaped, and the kernel is slow.

        alive: the number of processes that were alive before this kill.
        """
        now = time.monotonic()
        self.killed = self.stopped
        if self.give_up_at is None:
            self.give_up_at = now + GIVE_UP_SECONDS
        if now >= self.give_up_at:
            self.surviving = alive
        self.plan = [PlannedSignal(now + KILL_PAUSE_SECONDS, signal.SIGKILL)]

    def _is_over(self) -> bool:
        # No child left means no process left, because orphans are adopted.
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
        return f"{program}: is not a program: its first line does not begin with #!"
    return f"{program}: {error.strerror}"


def report_end(end: End, file: Path) -> None:
    """Write how the script ended to stdout for the worker, and to a file for later attempts."""
    line = json.dumps(asdict(end), ensure_ascii=False).encode(errors="surrogatepass")
    draft = file.with_suffix(".tmp")
    with suppress(OSError):
        draft.write_bytes(line)
        draft.replace(file)
    print_line(line)


def print_line(line: bytes) -> None:
    with suppress(OSError):
        os.write(sys.stdout.fileno(), line + b"\n")


def main() -> None:
    signals = Signals()
    line = sys.stdin.buffer.readline()
    if not line.endswith(b"\n"):
        return
    orders = Orders(**json.loads(line))
    folder = Path(orders.folder)
    rows = None
    if orders.patterns:
        rows = Rows(str(folder / ROWS_FILE), orders.patterns)
    output = Output(Log(orders.log, orders.log_bytes), rows, str(folder / KEEPER_FILE))
    print_line(READY.encode())
    end = Keeper(orders, signals, output).run()
    report_end(end, folder / END_FILE)


if __name__ == "__main__":
    main()
