"""From a command typed in a shell until the workers have acted: pause, resume, kill, enqueue, budget, stop.

    python benchmarks/control.py [--times 10] [--workers 2]

A Postgres of its own, real workers on the bundled recordings with the demo's model, trainings without end, so that none
ends by itself. Each command is a process of its own, begun at a random moment; its start (Python, imports) is in the figures,
and alone in the column "command". When a worker acted is what the database's clock says of its attempts, and for the end
of a worker when its process is gone. An enqueued trial needs a worker that is free: `enqueue` is the command's time, then
the time from the end of another trial until this one begins. Ends with exit code 1 if something took more than 10 s.
"""

import argparse
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy import Row, select

from hpo.space.spec import DEMO_PROFILE, find_space, load_spec
from hpo.store.database import Database
from hpo.store.embedded import EmbeddedServer
from hpo.store.tables import attempt_table
from hpo.study.study import Study
from hpo.study.version import code_version
from hpo.worker.dataset import look_at_data

PROMISED_SECONDS = 10.0
GIVEN_UP_SECONDS = 120.0
NAME = "control"
ORDER = ("pause", "resume", "kill", "enqueue", "budget", "stop", "stop, process gone")


class Bench:
    def __init__(self, study: Study, workers: int, log: Path):
        self.study, self.number, self.log = study, workers, log
        self.processes: list[subprocess.Popen[bytes]] = []
        self.acted: dict[str, list[float]] = {}
        self.commands: list[float] = []

    def start(self) -> None:
        command = [
            sys.executable,
            "-m",
            "hpo.cli",
            "worker",
            "--study",
            NAME,
            "--device",
            "cpu",
            "--threads",
            "1",
        ]
        with self.log.open("ab") as log:
            self.processes = [
                subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
                for _ in range(self.number)
            ]

    def attempts(self) -> list[Row[Any]]:
        with self.study.engine.begin() as connection:
            return list(connection.execute(select(attempt_table)))

    def all_train(self) -> list[Row[Any]]:
        """The attempts, when each worker has one; then a random time, so that no look of a worker is in step with ours."""

        def found() -> list[Row[Any]]:
            rows = [
                row for row in self.attempts() if row.ended is None and row.first_step is not None
            ]
            return rows if len(rows) == self.number else []

        until(found)
        time.sleep(random.uniform(1, 4))
        return found()

    def typed(self, verb: str, *arguments: str) -> tuple[float, str]:
        """When it was begun, and what it said."""
        begin = time.time()
        done = subprocess.run(
            [sys.executable, "-m", "hpo.cli", verb, "--study", NAME, *arguments],
            capture_output=True,
            text=True,
        )
        self.commands.append(time.time() - begin)
        assert done.returncode == 0, done.stdout + done.stderr
        return begin, done.stdout

    def count(self, what: str, seconds: float) -> None:
        self.acted.setdefault(what, []).append(seconds)
        print(f"{what}: {seconds:.2f} s", file=sys.stderr)

    def handed_back(self, held: list[Row[Any]]) -> float:
        """When the last of them ended."""
        keys = {(row.trial_id, row.attempt) for row in held}
        ended = until(
            lambda: all_or_none(
                [row.ended for row in self.attempts() if (row.trial_id, row.attempt) in keys]
            )
        )
        return float(max(moment.timestamp() for moment in ended))

    def begun(
        self, since: float, process: str | None = None, trial_id: int | None = None
    ) -> list[float]:
        """When attempts after `since` began: of a process, of a trial."""
        return [row.begun.timestamp() for row in self.attempts() if row.begun.timestamp() > since
                and process in (None, row.process) and trial_id in (None, row.trial_id)]  # fmt: skip

    def pause_and_resume(self) -> None:
        held = self.all_train()
        begin, _ = self.typed("pause")
        self.count("pause", self.handed_back(held) - begin)
        time.sleep(random.uniform(0, 4))
        begin, _ = self.typed("resume")
        self.count("resume", max(until(lambda: every(self.begun(begin), self.number))) - begin)

    def kill(self) -> float:
        """When the trial ended."""
        victim = random.choice(self.all_train())
        begin, _ = self.typed(
            "kill", "--trial", str(self._number(victim.trial_id)), "--reason", "benchmark"
        )
        self.count("kill", until(lambda: self.begun(begin, victim.process))[0] - begin)
        return self.handed_back([victim])

    def enqueue(self) -> None:
        self.all_train()
        begin, said = self.typed("enqueue", "optimizer.lr=0.01", "--like", "baseline")
        returned = time.time()
        found = re.match(r"trial (\d+) begins next", said)
        assert found, said
        trial_id = self.study.storage.get_trial_id_from_study_id_trial_number(
            self.study.id, int(found[1])
        )
        ended = self.kill()
        self.count(
            "enqueue",
            returned - begin + until(lambda: self.begun(begin, trial_id=trial_id))[0] - ended,
        )

    def budget(self) -> None:
        held = self.all_train()
        begin, _ = self.typed("budget", "--gpu-hours", "1e-6")
        self.count("budget", self.handed_back(held) - begin)
        self.gone()
        self.typed("budget", "--gpu-hours", "none")
        self.start()

    def stop(self, again: bool) -> None:
        held = self.all_train()
        begin, _ = self.typed("stop")
        self.count("stop", self.handed_back(held) - begin)
        self.count("stop, process gone", self.gone() - begin)
        if again:
            self.typed("resume")
            self.start()

    def gone(self) -> float:
        until(lambda: all(process.poll() is not None for process in self.processes))
        assert all(process.returncode == 0 for process in self.processes), self.log.read_text()[
            -2000:
        ]
        return time.time()

    def _number(self, trial_id: int) -> int:
        return int(self.study.storage.get_trial(trial_id).number)

    def run(self, times: int) -> None:
        self.start()
        for time_ in range(times):
            self.pause_and_resume()
            self.kill()
            self.enqueue()
            self.budget()
            self.stop(again=time_ + 1 < times)

    def table(self) -> str:
        lines = ["| command | times | median s | worst s |", "|---|---|---|---|"]
        for what, seconds in [(what, self.acted[what]) for what in ORDER] + [
            ("the command alone", self.commands)
        ]:
            lines.append(
                f"| {what} | {len(seconds)} | {statistics.median(seconds):.1f} | {max(seconds):.1f} |"
            )
        return "\n".join(lines)


def until(condition: Callable[[], Any]) -> Any:
    """What it gives, once that is true."""
    begin = time.monotonic()
    while not (found := condition()):
        assert time.monotonic() - begin < GIVEN_UP_SECONDS, "a worker does not act"
        time.sleep(0.05)
    return found


def every(moments: list[float], number: int) -> list[float]:
    return moments if len(moments) == number else []


def all_or_none(moments: list[Any]) -> list[Any]:
    return [] if None in moments else moments


def make_study(database: Database) -> Study:
    spec = load_spec(find_space("lr-aug"), DEMO_PROFILE, {"steps": 10**6}, trials=10**5)
    spec = spec.model_copy(update={"stopping": None})
    study = Study.create_or_open(database, NAME, spec, look_at_data(None, spec).facts)
    study.settle(None, code_version())
    return study


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM")
    )  # with what it has started
    with tempfile.TemporaryDirectory(prefix="hpo-control-") as folder:
        home = Path(folder)
        home.chmod(0o711)
        server = EmbeddedServer(home)
        bench = None
        try:
            url = server.start()
            os.environ |= {"HPO_HOME": folder, "HPO_DATABASE_URL": url}
            bench = Bench(make_study(Database(url, None)), arguments.workers, home / "worker.log")
            bench.run(arguments.times)
            print(bench.table())
        finally:
            for process in bench.processes if bench else ():
                process.kill()
                process.wait()
            server.stop()
    return int(max(max(bench.acted[what]) for what in ORDER) > PROMISED_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
