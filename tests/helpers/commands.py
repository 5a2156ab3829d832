"""Commands as a person types them, for tests."""

import json
import os
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

Done = subprocess.CompletedProcess[str]


def start(*arguments: str | Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "hpo.cli", *map(str, arguments)]
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def asked(*arguments: str | Path) -> Done:
    """In this process, which has imported PyTorch already. Its signal handlers are its own again afterwards."""
    handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    try:
        result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return subprocess.CompletedProcess(arguments, result.exit_code, result.stdout, result.stderr)


def one_line(done: Done, code: int, *parts: str) -> None:
    assert done.returncode == code, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert done.stderr.startswith("hpo: ")
    for part in parts:
        assert part in done.stderr


def report_of(study: str) -> Any:
    return json.loads(asked("report", "--study", study, "--json").stdout)


def until(condition: Callable[[], Any], seconds: float = 150) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


class Running:
    """A launch of two long trials, caught when both have steps behind them."""

    def __init__(self, database: Database, space: Path, data: Path):
        space.write_text(LONG)
        self.line = (
            "launch",
            "--study",
            space,
            "--data",
            data,
            "--workers",
            "2",
            "--device",
            "cpu",
        )
        self.process = start(*self.line)
        self.database = database
        until(lambda: len([r for r in self.records() if r.state == "running" and r.step > 20]) == 2)

    def records(self) -> list[Record]:
        try:
            return Study.open(self.database, "tiny").records()
        except Exception:  # not made yet
            return []

    def workers(self) -> list[int]:
        children = subprocess.run(
            ["ps", "-o", "pid=", "--ppid", str(self.process.pid)], capture_output=True, text=True
        ).stdout
        return [int(pid) for pid in children.split()]

    def end(self) -> None:
        self.process.kill()
        for pid in self.workers():
            os.kill(pid, signal.SIGKILL)


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])
