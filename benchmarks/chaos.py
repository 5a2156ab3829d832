"""Break things while a study runs, then count: were trials lost, run twice, repeated or changed?

    python benchmarks/chaos.py [--seconds 180] [--trials 40] [--workers 4] [--every 3] [--seed 0]

It runs workers on a Postgres server of its own. Every few seconds it breaks something: it sends
SIGKILL, SIGTERM, SIGUSR1 or SIGSTOP (with SIGCONT after twice the lease) to a worker, or restarts
Postgres, fast or immediately. Workers that have left are started again. Resumed trials are trained
again in this process, undisturbed, and must give the same errors. The exit code is 1 if something
is wrong.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from sqlalchemy import select
from sqlalchemy.engine import Connection

from hpo.decoder.config import DecoderConfig
from hpo.decoder.data import Data
from hpo.decoder.train import TrainState, train
from hpo.decoder.training import Recordings
from hpo.errors import DatabaseError
from hpo.space.load import load_spec
from hpo.space.spec import StudySpec
from hpo.store.curves import curves_of
from hpo.store.database import Database
from hpo.store.embedded import EmbeddedServer
from hpo.store.tables import curve_table
from hpo.store.trials import attempts_of
from hpo.study.study import Study
from hpo.study.version import code_version
from hpo.worker.dataset import load_dataset, look_at_data

LEASE = 4.0
SIZES = {"steps": 300, "evaluate_every": 10, "lease": LEASE}
SPACE = """
base: {{model.layers: 1, model.units: 16, model.kernel: 8, model.stride: 3, batch_size: 8,
        steps: {steps}, evaluate_every: {evaluate_every}}}
parameters:
  optimizer.lr: {{low: 1e-4, high: 5e-2, log: true}}
  model.layer_norm: {{choices: [false, true]}}
stopping: null
sampler: {{startup_trials: 1000}}
attempts: {{max_attempts: 1000, lease_seconds: {lease}, checkpoint_seconds: 0}}
"""
BREAKS = ("SIGKILL", "SIGTERM", "SIGUSR1", "SIGSTOP", "restart fast", "restart immediate")


class Chaos:
    """Workers of a study, their Postgres server, and what breaks them."""

    def __init__(self, study: Study, server: EmbeddedServer, workers: int, seed: int):
        self.study = study
        self.server = server
        self.random = random.Random(seed)
        self.processes: list[subprocess.Popen[bytes]] = [self.start() for _ in range(workers)]
        # Halted processes, each with the time at which it is woken.
        self.halted: list[tuple[float, subprocess.Popen[bytes]]] = []
        self.breaks: Counter[str] = Counter()

    def start(self) -> "subprocess.Popen[bytes]":
        command = [
            sys.executable,
            "-m",
            "hpo.cli",
            "worker",
            "--study",
            self.study.name,
            "--device",
            "cpu",
            "--threads",
            "1",
        ]
        with (self.server.home / "worker.log").open("ab") as log:
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def look_after(self) -> None:
        """Wake workers that were halted for long enough, and replace those that have left."""
        for wake_at, process in list(self.halted):
            if time.monotonic() > wake_at:
                process.send_signal(signal.SIGCONT)
                self.halted.remove((wake_at, process))
        self.processes = [
            process if process.poll() is None else self.start() for process in self.processes
        ]

    def break_something(self) -> None:
        what = self.random.choice(BREAKS)
        self.breaks[what] += 1
        if what.startswith("restart"):
            _, mode = what.split()
            # The server's own stop() is always a fast one.
            stop = ("-D", self.server.data, "-m", mode, "-w", "stop")
            self.server._run("pg_ctl", *stop)  # noqa: SLF001
            self.server.start()
            return
        process = self.random.choice(self.processes)
        process.send_signal(signal.Signals[what])
        if what == "SIGSTOP":
            self.halted.append((time.monotonic() + 2 * LEASE, process))

    def over(self) -> bool:
        """Whether the study is done; False while the database cannot be asked."""
        try:
            return self.study.budget_spent()
        except DatabaseError:
            return False

    def run(self, seconds: float, every: float) -> float:
        """Break something about every `every` seconds, for `seconds`, and wait for the study's end.

        Returns how many seconds that took.
        """
        begin = time.monotonic()
        next_break = begin + every
        while not self.over():
            self.look_after()
            if next_break < time.monotonic() < begin + seconds:
                self.break_something()
                next_break = time.monotonic() + every * self.random.uniform(0.5, 1.5)
            time.sleep(0.1)
        for _, process in self.halted:
            process.send_signal(signal.SIGCONT)
        for process in self.processes:
            process.wait(60)
        return time.monotonic() - begin


def undisturbed(config: DecoderConfig, data: Data) -> tuple[list[float], list[float]]:
    """Train without breaks. Returns PER along the curve, and the errors per sentence at its end."""
    state = TrainState(config, data)
    pers: list[float] = []
    errors: list[float] = []
    for updates in train(state, data):
        if updates.score is not None:
            pers.append(updates.score.value)
            errors = list(updates.score.errors)
    return pers, errors


def measured_by(connection: Connection, trial_id: int) -> list[int]:
    """The attempt that measured each point of the trial's curve, in the order of the steps."""
    table = curve_table.c
    statement = select(table.attempt).where(table.trial_id == trial_id).order_by(table.step)
    return list(connection.execute(statement).scalars())


def check(study: Study, data: Data, most_compared: int, most_repeated: float) -> dict[str, Any]:
    """Check that no trial was lost, run twice, repeated or changed. Returns what was counted.

    most_compared: resumed trials to train again. most_repeated: share of all steps.
    Raises AssertionError.
    """
    records = study.records()
    ended = [record for record in records if record.state in ("complete", "stopped")]
    assert len(ended) == study.budget.trials, f"{len(ended)} of {study.budget.trials} trials"
    assert not [record for record in records if record.state == "running"]
    assert len({record.number for record in records}) == len(records)
    every = study.spec.base["evaluate_every"]
    with study.engine.begin() as connection:
        attempts = attempts_of(connection, [record.id for record in records])
        curves = curves_of(connection, [record.id for record in records])
        measured = {record.id: measured_by(connection, record.id) for record in ended}
    repeated = 0
    compared = 0
    outcomes: Counter[str] = Counter()
    for record in ended:
        points = curves[record.id]
        steps = [point.step for point in points]
        whole = list(range(every, record.steps + 1, every))
        assert steps == whole, f"trial {record.number}: its curve"
        measured_by_attempt = measured[record.id]
        in_order = measured_by_attempt == sorted(measured_by_attempt)
        assert in_order, f"trial {record.number}: two at once"
        repeated += repeated_steps(record.number, attempts[record.id], every)
        if record.attempts > 1 and compared < most_compared:
            compared += 1
            pers, errors = undisturbed(DecoderConfig().with_values(record.config), data)
            same = pers == [point.value for point in points]
            assert same, f"trial {record.number}: another curve than undisturbed"
            assert errors == list(study.scores([record.id])[record.id].errors)
    for tries in attempts.values():
        outcomes.update(attempt.outcome for attempt in tries)
    all_steps = sum(record.steps for record in ended)
    assert repeated <= most_repeated * all_steps, f"{repeated} of {all_steps} steps repeated"
    return {
        "trials": len(ended),
        "attempts": dict(outcomes),
        "compared with undisturbed": compared,
        "steps": all_steps,
        "repeated at most": f"{repeated} ({100 * repeated / all_steps:.1f} %)",
    }


def repeated_steps(number: int, attempts: Sequence[Any], every: int) -> int:
    """How many steps of a trial were trained twice, at most.

    Raises AssertionError if two of its attempts overlap in time.
    """
    repeated = 0
    for earlier, later in pairwise(attempts):
        assert earlier.ended <= later.begun, (
            f"trial {number}: attempts {earlier.attempt} and {later.attempt} at once"
        )
        if earlier.outcome != "lost" or earlier.first_step is None or later.first_step is None:
            continue
        # Up to one more evaluation was trained but could not be reported.
        repeated += max(0, earlier.last_step - later.first_step) + every
    return repeated


def make_study(
    database: Database, folder: Path, trials: int, sizes: dict[str, float] = SIZES
) -> tuple[Study, Data]:
    """A study on the bundled recordings, and its data. folder: for its space file."""
    (folder / "space.yaml").write_text(SPACE.format(**sizes))
    spec: StudySpec = load_spec(folder / "space.yaml", trials=trials)
    study = Study.create_or_open(database, "chaos", spec, look_at_data(None, spec).facts)
    study.settle(None, code_version())
    recordings = load_dataset(spec, None, "cpu")
    assert isinstance(recordings, Recordings)
    return study, recordings.data


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=180,
        help="how long to break things; afterwards the study ends undisturbed",
    )
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument(
        "--every", type=float, default=3, help="seconds between two breaks, on average"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--most-repeated",
        type=float,
        default=0.05,
        help="share of all steps; short runs have few steps to count by",
    )
    parser.add_argument(
        "--compare", type=int, default=1000, help="resumed trials to train again, at most"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="hpo-chaos-") as folder:
        home = Path(folder)
        home.chmod(0o711)
        server = EmbeddedServer(home)
        try:
            url = server.start()
            os.environ |= {"HPO_HOME": folder, "HPO_DATABASE_URL": url}
            study, data = make_study(Database(url, None), home, arguments.trials)
            chaos = Chaos(study, server, arguments.workers, arguments.seed)
            took = chaos.run(arguments.seconds, arguments.every)
            print(f"{took:.0f} s, {sum(chaos.breaks.values())} breaks: {dict(chaos.breaks)}")
            print(check(study, data, arguments.compare, arguments.most_repeated))
        finally:
            server.stop()


if __name__ == "__main__":
    main()
