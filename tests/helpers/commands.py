"""Commands as a person types them, for tests."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from helpers.studies import LONG
from hpo.cli import main
from hpo.store.database import Database
from hpo.study.study import Study
from hpo.study.trial import Record
from hpo.worker.signals import STOP_SIGNALS

Arguments = tuple[str | Path, ...]
Done = subprocess.CompletedProcess[str]


def start(*arguments: str | Path) -> "subprocess.Popen[str]":
    """Start `hpo ARGUMENTS` in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "hpo.cli", *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run_hpo(*arguments: str | Path) -> Done:
    """Run `hpo ARGUMENTS` in this process, which has already imported PyTorch.

    The signal handlers of this process are restored afterwards.
    """
    handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    try:
        result = invoke(*arguments)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return subprocess.CompletedProcess(arguments, result.exit_code, result.stdout, result.stderr)


def invoke(*arguments: object) -> Result:
    """Run `hpo ARGUMENTS` in this process and keep whatever it raises in the result."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def one_line(done: Done, code: int, *parts: str) -> None:
    """Assert that a command ended with this code and one line on stderr that has all parts."""
    assert done.returncode == code, done.stderr
    assert re.fullmatch(r"hpo: .*\n", done.stderr), done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    for part in parts:
        assert part in done.stderr


def launch_arguments(space: str | Path, data: Path, *more: str | Path) -> Arguments:
    """`hpo launch` of a space on data, trained on the CPU."""
    return ("launch", "--study", space, "--data", data, "--device", "cpu", *more)


def launch(space: str | Path, data: Path, *more: str | Path) -> Done:
    return run_hpo(*launch_arguments(space, data, *more))


def report_of(study: str) -> Any:
    return json.loads(run_hpo("report", "--study", study, "--json").stdout)


def until(condition: Callable[[], Any], seconds: float = 150) -> None:
    """Wait until the condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


class Running:
    """A launch of two long trials; both have taken more than 20 steps."""

    def __init__(self, database: Database, space: Path, data: Path):
        space.write_text(LONG)
        self.line = launch_arguments(space, data, "--workers", "2")
        self.process = start(*self.line)
        self.database = database
        until(lambda: len(self.trials_under_way()) == 2)

    def trials_under_way(self) -> list[Record]:
        return [
            record for record in self.records() if record.state == "running" and record.step > 20
        ]

    def records(self) -> list[Record]:
        try:
            return Study.open(self.database, "tiny").records()
        except Exception:
            # The launch has not created the study yet.
            return []

    def workers(self) -> list[int]:
        """The process ids of the launch's workers."""
        children = subprocess.run(
            ["ps", "-o", "pid=", "--ppid", str(self.process.pid)], capture_output=True, text=True
        ).stdout
        return [int(pid) for pid in children.split()]

    def end(self) -> None:
        self.process.kill()
        for pid in self.workers():
            os.kill(pid, signal.SIGKILL)
