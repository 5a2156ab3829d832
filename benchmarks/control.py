"""From a command typed in a shell until the workers have acted on it.

    python benchmarks/control.py [--times 10] [--workers 2]

It measures pause, resume, kill, enqueue, budget and stop. A Postgres server of its own, real
workers on the bundled recordings with the demo's model; trainings do not end by themselves. Each
command is a process of its own, begun at a random moment; its start (Python, imports) is included,
and shown in the row "the command alone". When a worker acted is read from the database's times of
its attempts; a worker has ended when its process is gone. An enqueued trial needs a free worker:
`enqueue` is the command's time plus the time from the end of another trial until this one begins.
The exit code is 1 if something took more than 10 s.
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

from hpo.space.load import DEMO_PROFILE, find_space, load_spec
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
    """The workers of a study, and how long they took to act on each command."""

    def __init__(self, study: Study, workers: int, log: Path):
        self.study = study
        self.workers = workers
        self.log = log
        self.processes: list[subprocess.Popen[bytes]] = []
        # Seconds by command.
        self.acted: dict[str, list[float]] = {}
        self.commands: list[float] = []

    def run(self, times: int) -> None:
        """Measure each command `times` times."""
        self.start()
        for number in range(1, times + 1):
            self.pause_and_resume()
            self.kill()
            self.enqueue()
            self.budget()
            self.stop(again=number < times)

    def pause_and_resume(self) -> None:
        held = self.all_train()
        begin, _ = self.type("pause")
        self.count("pause", self.handed_back(held) - begin)
        time.sleep(random.uniform(0, 4))
        begin, _ = self.type("resume")

        def all_resumed() -> list[float]:
            moments = self.begun(begin)
            return moments if len(moments) == self.workers else []

        self.count("resume", max(until(all_resumed)) - begin)

    def kill(self) -> float:
        """Kill a trial. Returns when it ended."""
        victim = random.choice(self.all_train())
        number = int(self.study.storage.get_trial(victim.trial_id).number)
        begin, _ = self.type("kill", "--trial", str(number), "--reason", "benchmark")
        next_attempts = until(lambda: self.begun(begin, process=victim.process))
        self.count("kill", next_attempts[0] - begin)
        return self.handed_back([victim])

    def enqueue(self) -> None:
        self.all_train()
        begin, output = self.type("enqueue", "optimizer.lr=0.01", "--like", "baseline")
        returned = time.time()
        answer = re.match(r"trial (\d+) begins next", output)
        assert answer, output
        trial_id = self.study.storage.get_trial_id_from_study_id_trial_number(
            self.study.id, int(answer[1])
        )
        ended = self.kill()
        attempts = until(lambda: self.begun(begin, trial_id=trial_id))
        self.count("enqueue", returned - begin + attempts[0] - ended)

    def budget(self) -> None:
        held = self.all_train()
        begin, _ = self.type("budget", "--gpu-hours", "1e-6")
        self.count("budget", self.handed_back(held) - begin)
        self.wait_for_exit()
        self.type("budget", "--gpu-hours", "none")
        self.start()

    def stop(self, again: bool) -> None:
        """again: resume the study afterwards."""
        held = self.all_train()
        begin, _ = self.type("stop")
        self.count("stop", self.handed_back(held) - begin)
        self.count("stop, process gone", self.wait_for_exit() - begin)
        if again:
            self.type("resume")
            self.start()

    # ---- what the measurements are made of

    def start(self) -> None:
        """Start the workers."""
        hpo = [sys.executable, "-m", "hpo.cli"]
        command = [*hpo, "worker", "--study", NAME, "--device", "cpu", "--threads", "1"]
        with self.log.open("ab") as log:
            self.processes = [
                subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
                for _ in range(self.workers)
            ]

    def wait_for_exit(self) -> float:
        """Wait until all workers have ended without an error. Returns when."""
        until(lambda: all(process.poll() is not None for process in self.processes))
        failed = [process for process in self.processes if process.returncode != 0]
        assert not failed, self.log.read_text()[-2000:]
        return time.time()

    def type(self, verb: str, *arguments: str) -> tuple[float, str]:
        """Run a command of hpo. Returns when it was begun, and its output."""
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

    def attempts(self) -> list[Row[Any]]:
        with self.study.engine.begin() as connection:
            return list(connection.execute(select(attempt_table)))

    def all_train(self) -> list[Row[Any]]:
        """Wait until every worker trains, then for a random time. Returns their attempts.

        The random time keeps the commands out of step with the workers' checks.
        """

        def training() -> list[Row[Any]]:
            rows = [
                row for row in self.attempts() if row.ended is None and row.first_step is not None
            ]
            return rows if len(rows) == self.workers else []

        until(training)
        time.sleep(random.uniform(1, 4))
        return training()

    def handed_back(self, held: list[Row[Any]]) -> float:
        """Wait until all of these attempts have ended. Returns when the last one did."""
        keys = {(row.trial_id, row.attempt) for row in held}

        def all_ended() -> list[Any]:
            ends = [row.ended for row in self.attempts() if (row.trial_id, row.attempt) in keys]
            return [] if None in ends else ends

        return float(max(moment.timestamp() for moment in until(all_ended)))

    def begun(
        self, since: float, process: str | None = None, trial_id: int | None = None
    ) -> list[float]:
        """When attempts began after `since`; only those of a process or of a trial, if given."""
        moments = []
        for row in self.attempts():
            moment = row.begun.timestamp()
            of_process = process in (None, row.process)
            of_trial = trial_id in (None, row.trial_id)
            if moment > since and of_process and of_trial:
                moments.append(moment)
        return moments

    def table(self) -> str:
        lines = ["| command | times | median s | worst s |", "|---|---|---|---|"]
        rows = {what: self.acted[what] for what in ORDER}
        rows["the command alone"] = self.commands
        for what, seconds in rows.items():
            median = statistics.median(seconds)
            lines.append(f"| {what} | {len(seconds)} | {median:.1f} | {max(seconds):.1f} |")
        return "\n".join(lines)


def until(condition: Callable[[], Any]) -> Any:
    """Wait until the condition returns something true. Returns that."""
    begin = time.monotonic()
    while True:
        result = condition()
        if result:
            return result
        assert time.monotonic() - begin < GIVEN_UP_SECONDS, "a worker does not act"
        time.sleep(0.05)


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
    # Leaves through the `finally` below, so that what was started ends too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))
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
            if bench is not None:
                for process in bench.processes:
                    process.kill()
                    process.wait()
            server.stop()
    worst = max(max(bench.acted[what]) for what in ORDER)
    return int(worst > PROMISED_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
