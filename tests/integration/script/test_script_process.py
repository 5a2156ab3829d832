"""Real scripts are killed in many ways: no process remains, and the end says what happened."""

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from helpers.paths import ROOT

from hpo.process import start_time
from hpo.script.keeper import NOT_FINITE, TAIL_BYTES
from hpo.script.process import (
    END_FILE,
    ROWS_FILE,
    STOP_FILE,
    End,
    Job,
    Running,
    clear,
    script_environment,
)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's /proc and prctl")

PATIENCE = 60.0
PYTHON = (sys.executable, "-I", "-S", "-u", "-c")
# Ends by itself, should a test lose it.
SLEEP = "for _ in range(300): time.sleep(1)"
DEAF = "signal.signal(signal.SIGTERM, signal.SIG_IGN)"
# A process in a session of its own, whose parent has ended.
DAEMON = f"""
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        {DEAF}
        tell("daemon")
        {SLEEP}
    os._exit(0)
os.wait()
"""
PRELUDE = """
import os, signal, sys, time
def tell(name):
    with open(name + ".tmp", "w") as file:
        file.write(str(os.getpid()))
    os.rename(name + ".tmp", name)
def wait_for(name):
    while not os.path.exists(name):
        time.sleep(0.01)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """The folder of an attempt. Processes that a failed test has left in it are ended."""
    path = tmp_path / "trial-1" / "attempt-1"
    path.mkdir(parents=True)
    yield path
    clear(path.parent)


def python(code: str) -> tuple[str, ...]:
    return (*PYTHON, PRELUDE + textwrap.dedent(code))


def job(folder: Path, *command: str, grace_seconds: float = 30.0) -> Job:
    return Job(
        command=command,
        folder=folder,
        environment={"PATH": os.environ["PATH"], "HPO_FOLDER": str(folder)},
        log=folder.parent / "trial.log",
        log_bytes=1_000_000,
        grace_seconds=grace_seconds,
    )


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def end_of(job: Job) -> End:
    end = Running.start(job).wait(PATIENCE)
    assert end is not None
    return end


def pid_of(file: Path) -> int:
    """Waits until a script has written its process id there."""
    wait_until(file.exists)
    return int(file.read_text())


def is_gone(pid: int) -> bool:
    return start_time(pid) is None


def log_of(folder: Path) -> bytes:
    return (folder.parent / "trial.log").read_bytes()


def rows_of(folder: Path) -> list[bytes]:
    return (folder / ROWS_FILE).read_bytes().splitlines()


def test_a_script_ends_with_its_code_and_its_output_is_in_the_log(folder: Path) -> None:
    log = folder.parent / "trial.log"
    log.write_text("of the attempt before\n")
    code = "print('out'); print('err', file=sys.stderr); sys.stdout.write('half'); sys.exit(7)"
    end = end_of(job(folder, *python(code)))
    assert (end.code, end.signal, end.error) == (7, None, "")
    assert (end.stopped, end.killed, end.left_behind, end.surviving) == (False, False, 0, 0)
    assert end.last_lines(2) == "err / half"
    assert log.read_text() == "of the attempt before\nout\nerr\nhalf\n"
    assert json.loads((folder / END_FILE).read_text()) == asdict(end)
    assert not (folder / STOP_FILE).exists()


def test_the_end_names_the_signal(folder: Path) -> None:
    end = end_of(job(folder, *python("os.kill(os.getpid(), signal.SIGSEGV)")))
    assert (end.code, end.signal) == (-signal.SIGSEGV, "SIGSEGV")
    assert not end.stopped


def test_a_script_gets_its_environment_and_nothing_else(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OF_THE_WORKER", "secret")
    environment = {"HPO_FOLDER": str(folder), "EMPTY": "", "WORD": "ü = \udcff\n"}
    code = "import json; print(ascii(dict(os.environ)), os.getcwd(), sys.stdin.read() == '')"
    running = Running.start(replace(job(folder, *python(code)), environment=environment))
    environment_of_keeper = Path(f"/proc/{running.keeper_pid}/environ").read_bytes()
    end = running.wait(PATIENCE)
    assert end is not None
    # Python itself sets this one in the C locale.
    text = re.sub(r", 'LC_CTYPE': '[^']*'", "", end.tail.strip())
    assert text == f"{environment!a} {folder} True"
    assert b"secret" not in environment_of_keeper


def test_a_script_inherits_no_descriptor_and_no_ignored_signal(folder: Path) -> None:
    code = """
    print(sorted(os.listdir("/proc/self/fd"), key=int)[:4])
    print([signal.getsignal(number) == signal.SIG_DFL for number in (1, 10, 13, 15, 17)])
    print(signal.pthread_sigmask(signal.SIG_BLOCK, []), os.getsid(0) == os.getpid())
    """
    lines = end_of(job(folder, *python(code))).tail.splitlines()
    # The fourth descriptor is that of the folder that is listed.
    assert lines[0] == "['0', '1', '2', '3']"
    # Python ignores SIGPIPE, the third.
    assert lines[1] == "[True, True, False, True, True]"
    assert lines[2] == "set() True"


@pytest.mark.parametrize(
    ("program", "text"),
    [
        ("no-such-program", "no-such-program: no such program on PATH"),
        ("./missing", "./missing: No such file or directory"),
        ("./plain", "./plain: Permission denied"),
        ("./lost", "./lost: its interpreter (the line that begins with #!) was not found"),
        ("./empty", "./empty: is not a program: its first line does not begin with #!"),
    ],
)
def test_a_program_that_cannot_be_started_is_named(folder: Path, program: str, text: str) -> None:
    (folder / "plain").write_text("#!/bin/sh\n")
    for name, content in {"lost": "#!/no/such/interpreter\n", "empty": "words"}.items():
        (folder / name).write_text(content)
        (folder / name).chmod(0o755)
    end = end_of(job(folder, program))
    assert end.code is None
    assert end.error.startswith(text)


def test_a_script_that_obeys_ends_within_its_grace(folder: Path) -> None:
    code = f"""
    def leave(number, frame):
        print("saved", os.path.exists("{STOP_FILE}"))
        sys.exit(5)
    signal.signal(signal.SIGTERM, leave)
    tell("ready")
    {SLEEP}
    """
    running = Running.start(job(folder, *python(code)))
    pid_of(folder / "ready")
    assert running.end() is None
    end = running.stop()
    assert (end.code, end.stopped, end.killed) == (5, True, False)
    assert end.last_lines(1) == "saved True"
    assert running.end() is end
    assert running.stop() is end


def test_each_process_gets_one_sigterm_and_its_children_get_it_too(folder: Path) -> None:
    code = """
    def count(number, frame):
        with open(f"terms-{os.getpid()}", "a") as file:
            file.write("x")
    signal.signal(signal.SIGTERM, count)
    if os.fork() == 0:
        tell("child")
        while not os.path.exists(f"terms-{os.getpid()}"):
            time.sleep(0.01)
        os._exit(0)
    wait_for("child")
    tell("ready")
    os.wait()
    wait_for(f"terms-{os.getpid()}")
    """
    running = Running.start(job(folder, *python(code)))
    pid_of(folder / "ready")
    end = running.stop()
    assert (end.code, end.stopped, end.killed) == (0, True, False)
    assert [file.read_text() for file in folder.glob("terms-*")] == ["x", "x"]


def test_a_script_that_ignores_sigterm_is_killed_with_its_children_after_the_grace(
    folder: Path,
) -> None:
    code = f"""
    {DEAF}
    if os.fork() == 0:
        tell("child")
        {SLEEP}
    if os.fork() == 0:
        os.setsid()
        tell("other")
        {SLEEP}
    wait_for("child")
    wait_for("other")
    tell("ready")
    {SLEEP}
    """
    running = Running.start(job(folder, *python(code), grace_seconds=0.5))
    pids = [pid_of(folder / name) for name in ("ready", "child", "other")]
    begun = time.monotonic()
    end = running.stop()
    assert time.monotonic() - begun >= 0.5
    assert (end.code, end.signal) == (-signal.SIGKILL, "SIGKILL")
    assert (end.stopped, end.killed, end.surviving) == (True, True, 0)
    assert all(is_gone(pid) for pid in pids)


def test_the_children_of_a_wrapper_that_ends_at_once_keep_their_grace(folder: Path) -> None:
    """A shell script ends by SIGTERM before the training that it waits for."""
    code = """
    def save(number, frame):
        time.sleep(1)
        tell("saved")
        os._exit(0)
    if os.fork() == 0:
        signal.signal(signal.SIGTERM, save)
        tell("child")
        time.sleep(300)
    os.wait()
    """
    running = Running.start(job(folder, *python(code)))
    child = pid_of(folder / "child")
    end = running.stop()
    assert (end.code, end.killed) == (-signal.SIGTERM, False)
    assert (folder / "saved").exists()
    assert is_gone(child)


@pytest.mark.slow
def test_a_daemon_that_a_script_leaves_is_killed_at_its_end(folder: Path) -> None:
    code = DAEMON + 'wait_for("daemon")\nprint("done")'
    end = end_of(job(folder, *python(code)))
    assert (end.code, end.stopped, end.killed, end.left_behind) == (0, False, False, 1)
    assert end.tail == "done\n"
    assert is_gone(pid_of(folder / "daemon"))


def test_a_helper_that_leaves_soon_is_no_daemon(folder: Path) -> None:
    code = """
    reading, writing = os.pipe()
    if os.fork() == 0:
        os.close(writing)
        os.read(reading, 1)
        print("helper", flush=True)
        os._exit(0)
    """
    end = end_of(job(folder, *python(code)))
    assert (end.code, end.left_behind, end.tail) == (0, 0, "helper\n")


def test_a_daemon_is_killed_by_a_stop(folder: Path) -> None:
    code = DAEMON + SLEEP
    running = Running.start(job(folder, *python(code), grace_seconds=0.5))
    daemon = pid_of(folder / "daemon")
    end = running.stop()
    assert (end.code, end.stopped, end.killed) == (-signal.SIGTERM, True, True)
    assert is_gone(daemon)


def test_a_script_that_forks_all_the_time_is_ended(folder: Path) -> None:
    """Its processes live for a moment each; the next one begins a session of its own."""
    code = f"""
    {DEAF}
    def run(name):
        tell(name)
        for _ in range(100_000):
            if os.fork():
                os._exit(0)
            os.setsid()
            time.sleep(0.001)
    for name in ("first", "second", "third"):
        if os.fork() == 0:
            run(name)
    {SLEEP}
    """
    running = Running.start(job(folder, *python(code), grace_seconds=0.2))
    for name in ("first", "second", "third"):
        pid_of(folder / name)
    end = running.stop()
    assert (end.code, end.stopped, end.surviving) == (-signal.SIGKILL, True, 0)
    assert clear(folder.parent) == 0


def test_a_fork_bomb_is_ended(folder: Path) -> None:
    code = f"""
    {DEAF}
    tell("ready")
    while True:
        if os.fork() == 0 and len(os.listdir("/proc")) > 400:
            time.sleep(0.1)
            os._exit(0)
        time.sleep(0.02)
    """
    running = Running.start(job(folder, *python(code), grace_seconds=0.5))
    pid_of(folder / "ready")
    end = running.stop()
    assert (end.code, end.stopped, end.surviving) == (-signal.SIGKILL, True, 0)
    assert clear(folder.parent) == 0


WORKER = """
import json, sys, time
from pathlib import Path
from hpo.script.process import Job, Running
fields = json.loads(sys.argv[1])
folder = Path(fields["folder"])
fields |= {"command": tuple(fields["command"]), "folder": folder, "log": Path(fields["log"])}
running = Running.start(Job(**fields))
(folder / "keeper.tmp").write_text(str(running.keeper_pid))
(folder / "keeper.tmp").rename(folder / "keeper")
time.sleep(300)
"""


def worker_with(job: Job) -> subprocess.Popen[bytes]:
    fields = asdict(job) | {"folder": str(job.folder), "log": str(job.log)}
    return subprocess.Popen([sys.executable, "-c", WORKER, json.dumps(fields)], cwd=ROOT)


def test_nothing_outlives_a_worker_that_is_killed(folder: Path) -> None:
    code = DAEMON + 'tell("script")\n' + SLEEP
    worker = worker_with(job(folder, *python(code), grace_seconds=0.5))
    pids = [pid_of(folder / name) for name in ("keeper", "script", "daemon")]
    worker.kill()
    worker.wait()
    wait_until(lambda: all(is_gone(pid) for pid in pids))
    end = json.loads((folder / END_FILE).read_text())
    assert (end["stopped"], end["killed"]) == (True, True)
    assert (folder / STOP_FILE).exists()


def test_a_later_attempt_ends_the_keeper_of_a_worker_that_was_killed(folder: Path) -> None:
    code = f"""
    def leave(number, frame):
        time.sleep(0.5)
        tell("saved")
        sys.exit(0)
    signal.signal(signal.SIGTERM, leave)
    tell("script")
    {SLEEP}
    """
    worker = worker_with(job(folder, *python(code)))
    pids = [pid_of(folder / name) for name in ("keeper", "script")]
    worker.kill()
    worker.wait()
    assert clear(folder.parent) == 1
    assert all(is_gone(pid) for pid in pids)
    assert (folder / "saved").exists()
    assert clear(folder.parent) == 0


def test_the_script_does_not_outlive_a_keeper_that_is_killed(folder: Path) -> None:
    code = f"""
    if os.fork() == 0:
        os.setsid()
        tell("child")
        {SLEEP}
    wait_for("child")
    tell("script")
    {SLEEP}
    """
    running = Running.start(job(folder, *python(code)))
    script, child = (pid_of(folder / name) for name in ("script", "child"))
    os.kill(running.keeper_pid, signal.SIGKILL)
    wait_until(lambda: is_gone(script))
    # The child lives until the worker looks, or the next attempt begins.
    assert not is_gone(child)
    end = running.wait(PATIENCE)
    assert end is not None
    assert end.code == -signal.SIGKILL
    assert "the process that keeps the script was ended (SIGKILL)" in end.error
    wait_until(lambda: is_gone(child))


def test_processes_of_a_killed_worker_and_keeper_are_cleared(folder: Path) -> None:
    code = f"""
    if os.fork() == 0:
        os.setsid()
        tell("child")
        {SLEEP}
    {SLEEP}
    """
    worker = worker_with(job(folder, *python(code)))
    keeper, child = (pid_of(folder / name) for name in ("keeper", "child"))
    os.kill(keeper, signal.SIGKILL)
    worker.kill()
    worker.wait()
    wait_until(lambda: is_gone(keeper))
    assert not is_gone(child)
    assert clear(folder.parent.with_name("trial-10")) == 0
    assert not is_gone(child)
    assert clear(folder.parent) >= 1
    wait_until(lambda: is_gone(child))


def test_a_stopped_keeper_is_killed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpo.script.process.MARGIN_SECONDS", 0.5)
    running = Running.start(job(folder, *python('tell("script")\n' + SLEEP), grace_seconds=0.1))
    script = pid_of(folder / "script")
    os.kill(running.keeper_pid, signal.SIGSTOP)
    end = running.stop()
    assert end.code == -signal.SIGKILL
    wait_until(lambda: is_gone(script))


@pytest.mark.slow
def test_a_log_is_capped_and_has_the_end_of_the_output(folder: Path) -> None:
    code = """
    block = (b"x" * 99 + b"\\n") * 10_000
    for _ in range(200):
        sys.stdout.buffer.write(block)
    print("the last line", flush=True)
    print(next(line for line in open(f"/proc/{os.getppid()}/status") if line.startswith("VmHWM")))
    """
    end = end_of(job(folder, *python(code)))
    log = log_of(folder)
    line = b"hpo: this attempt has printed more than 1 MB; the rest is left out, except its end\n"
    before, _, after = log.partition(line)
    assert before == (b"x" * 99 + b"\n") * 10_000
    left_out, _, tail = after.partition(b"\n")
    pattern = rb"hpo: ([\d,]+) bytes were left out here; the end of the output:"
    count = re.fullmatch(pattern, left_out)
    assert count
    assert int(count[1].replace(b",", b"")) > 190_000_000
    assert b"the last line\n" in tail
    assert len(tail) <= 8 * 1024 + 1
    memory = re.search(r"VmHWM:\s+(\d+) kB", end.tail)
    assert memory
    assert int(memory[1]) < 60_000


def test_a_cap_that_is_just_met_leaves_nothing_out(folder: Path) -> None:
    end_of(replace(job(folder, *python("print('12345')")), log_bytes=6))
    assert log_of(folder) == b"12345\n"
    end_of(replace(job(folder, *python("print('abcdef')")), log_bytes=6))
    notice = b"hpo: this attempt has printed more than 6 bytes"
    assert log_of(folder).startswith(b"12345\nabcdef\n" + notice)


def test_a_full_disk_costs_the_log_and_not_the_script(folder: Path) -> None:
    code = "print('x' * 100_000); print('the end')"
    end = end_of(replace(job(folder, *python(code)), log=Path("/dev/full")))
    assert end.code == 0
    assert end.last_lines(1) == "the end"


def test_the_keeper_reports_an_end_that_it_cannot_write(folder: Path) -> None:
    """Here a folder is in the place of its file. The same happens on a full disk."""
    code = f"os.mkdir('{END_FILE}'); print('the end'); sys.exit(4)"
    end = end_of(job(folder, *python(code)))
    assert (end.code, end.last_lines(1)) == (4, "the end")


def test_the_end_says_why_matching_lines_could_not_be_kept(folder: Path) -> None:
    (folder / ROWS_FILE).mkdir()
    end = end_of(replace(job(folder, *python("print('loss 1')")), patterns=("loss",)))
    assert end.code == 0
    assert end.rows_error == f"{folder / ROWS_FILE}: Is a directory"


def test_binary_output_is_kept_as_it_is(folder: Path) -> None:
    code = "sys.stdout.buffer.write(bytes(range(256)) * 100)"
    end = end_of(replace(job(folder, *python(code)), patterns=(r"loss=(?P<value>\d)",)))
    assert log_of(folder) == bytes(range(256)) * 100 + b"\n"
    assert end.tail.replace("\n", "").replace("\t", "").isprintable()
    assert len(end.tail) <= TAIL_BYTES
    assert end.last_lines(3).isprintable()
    assert rows_of(folder) == []


def test_lines_that_match_are_kept_with_those_that_are_not_finite(folder: Path) -> None:
    lines = [
        "begins, with info",
        "step 1 loss=0.5",
        "step 2 loss=nan",
        "step 3 loss=-NaN acc=1",
        "step 4 loss=Infinity",
        "step 5 loss=1.#QNAN",
        "step 6 loss=null",
        "step 7 loss=nano",
        "best 8",
        "step 9 loss=-inf",
    ]
    code = f"print(*{lines}, sep='\\n', end='')"
    patterns = (r"step (?P<step>\d+) loss=(?P<value>[\d.]+)", r"^best (?P<step>\d)$")
    end_of(replace(job(folder, *python(code)), patterns=patterns))
    kept = [lines[number] for number in (1, 2, 3, 4, 5, 8, 9)]
    assert rows_of(folder) == [line.encode() for line in kept]
    assert log_of(folder).decode().splitlines() == lines


def test_progress_bars_and_half_lines_are_lines(folder: Path) -> None:
    code = r"""
    for step in range(3):
        sys.stdout.write(f"\rloss {step}")
        time.sleep(0.05)
    sys.stdout.write("\r\nlo")
    sys.stdout.flush()
    time.sleep(0.1)
    sys.stdout.write("ss 7\nö loss 8")
    """
    end = end_of(replace(job(folder, *python(code)), patterns=(r"loss (?P<value>\d)",)))
    assert rows_of(folder) == [b"loss 0", b"loss 1", b"loss 2", b"loss 7", "ö loss 8".encode()]
    assert end.last_lines(2) == "loss 7 / ö loss 8"


def test_a_line_without_end_costs_little_and_its_rest_is_no_line(folder: Path) -> None:
    """A pattern like this one takes quadratic time on a line without a match."""
    code = """
    for _ in range(40):
        sys.stdout.write("0123456789" * 10_000)
    sys.stdout.write("loss 1\\nloss 2\\n")
    """
    begun = time.monotonic()
    end_of(replace(job(folder, *python(code)), patterns=(r".*loss (?P<value>\d)",)))
    assert rows_of(folder) == [b"loss 2"]
    assert time.monotonic() - begun < 30


@pytest.mark.parametrize(
    ("line", "has_one"),
    [
        ("nan", True),
        ("-nan(ind)", True),
        ("x=+Inf,", True),
        ("tensor(NAN)", True),
        ("1.#INF00", True),
        ("-1.#IND", True),
        ("info", False),
        ("banana", False),
        ("nano", False),
        ("val_nan_count", False),
        ("null", False),
    ],
)
def test_numbers_that_are_not_finite_are_recognised(line: str, has_one: bool) -> None:
    assert bool(NOT_FINITE.search(line)) == has_one


def test_written_is_when_the_script_last_printed_or_changed_a_file(folder: Path) -> None:
    metrics = folder / "metrics"
    code = """
    wait_for("print")
    print("x")
    wait_for("write")
    with open("metrics", "w") as file:
        file.write("x")
    time.sleep(300)
    """
    running = Running.start(job(folder, *python(code)))
    begun = running.written([metrics])
    assert running.written([metrics]) == begun
    (folder / "print").touch()
    wait_until(lambda: running.written([metrics]) > begun)
    printed = running.written([metrics])
    assert running.written([metrics]) == printed
    (folder / "write").touch()
    wait_until(lambda: running.written([metrics]) > printed)
    assert running.written() <= time.monotonic()
    running.stop()


def test_log_lines_of_the_worker_are_no_sign_of_life(folder: Path) -> None:
    running = Running.start(job(folder, *python(SLEEP)))
    begun = running.written()
    with (folder.parent / "trial.log").open("a") as log:
        log.write("a line of the worker\n")
    assert running.written() == begun
    running.stop()
    assert log_of(folder) == b"a line of the worker\n"


def test_secrets_do_not_reach_the_script(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        monkeypatch.delenv(name)
    variables = {
        "PATH": "/bin",
        "HPO_STORAGE": "x",
        "PGPASSWORD": "x",
        "PGHOST": "x",
        "DATABASE": "postgresql://me:s3cret@host/db",
        "TOKEN": "prefix-s3cret-suffix",
        "ab": "ab",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    own = {"HPO_FOLDER": "/there", "PATH": "/other"}
    environment = script_environment(own, ["s3cret", "", "ab"])
    assert environment == {"PATH": "/other", "ab": "ab", "HPO_FOLDER": "/there"}
