"""Break things while a study runs, then count: were trials lost, run twice, repeated or changed?

    python benchmarks/chaos.py [--seconds 180] [--trials 40] [--workers 4] [--every 3] [--seed 0]

A Postgres of its own, workers, and every few seconds one of: SIGKILL, SIGTERM, SIGUSR1 or SIGSTOP (with SIGCONT after twice
the lease) of a worker, a fast or an immediate restart of Postgres. Workers that left are started again. Ends with exit code
1 if something is wrong. Resumed trials are trained again in this process, undisturbed, and must give the same errors.
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
from hpo.space.spec import StudySpec, load_spec
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
    def __init__(self, study: Study, server: EmbeddedServer, workers: int, seed: int):
        self.study, self.server = study, server
        self.random = random.Random(seed)
        self.processes: list[subprocess.Popen[bytes]] = [self.start() for _ in range(workers)]
        self.halted: list[tuple[float, subprocess.Popen[bytes]]] = []
        self.done: Counter[str] = Counter()

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
        """Wake those that were halted for long enough, start those again that left."""
        for until, process in list(self.halted):
            if time.monotonic() > until:
                process.send_signal(signal.SIGCONT)
                self.halted.remove((until, process))
        self.processes = [
            process if process.poll() is None else self.start() for process in self.processes
        ]

    def break_something(self) -> None:
        what = self.random.choice(BREAKS)
        self.done[what] += 1
        if what.startswith("restart"):
            self.server._run("pg_ctl", "-D", self.server.data, "-m", what.split()[1], "-w", "stop")
            self.server.start()
            return
        process = self.random.choice(self.processes)
        process.send_signal(signal.Signals[what])
        if what == "SIGSTOP":
            self.halted.append((time.monotonic() + 2 * LEASE, process))

    def over(self) -> bool:
        try:
            return self.study.budget_spent()
        except DatabaseError:
            return False

    def run(self, seconds: float, every: float) -> float:
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
    """PER along the curve, and the errors of each sentence at its end."""
    state = TrainState(config, data)
    pers: list[float] = []
    errors: list[float] = []
    for updates in train(state, data):
        if updates.score is not None:
            pers.append(updates.score.value)
            errors = list(updates.score.errors)
    return pers, errors


def measured_by(connection: Connection, trial_id: int) -> list[int]:
    """Of each point of the trial's curve, in order, the attempt that measured it."""
    table = curve_table.c
    statement = select(table.attempt).where(table.trial_id == trial_id).order_by(table.step)
    return list(connection.execute(statement).scalars())


def check(study: Study, data: Data, most_compared: int, most_repeated: float) -> dict[str, Any]:
    """What must hold, and what it took. Raises AssertionError."""
    records = study.records()
    ended = [record for record in records if record.state in ("complete", "stopped")]
    assert len(ended) == study.budget.trials, f"{len(ended)} of {study.budget.trials} trials"
    assert not [record for record in records if record.state == "running"]
    assert len({record.number for record in records}) == len(records)
    every, repeated, compared = study.spec.base["evaluate_every"], 0, 0
    with study.engine.begin() as connection:
        attempts = attempts_of(connection, [record.id for record in records])
        curves = curves_of(connection, [record.id for record in records])
        measured = {record.id: measured_by(connection, record.id) for record in ended}
    for record in ended:
        tries, points = attempts[record.id], curves[record.id]
        assert [point.step for point in points] == list(range(every, record.steps + 1, every)), (
            f"trial {record.number}: its curve"
        )
        by = measured[record.id]
        assert by == sorted(by), f"trial {record.number}: two at once"
        for earlier, later in pairwise(tries):
            assert earlier.ended <= later.begun, (
                f"trial {record.number}: attempts {earlier.attempt} and {later.attempt} at once"
            )
            if (
                earlier.outcome == "lost"
                and earlier.first_step is not None
                and later.first_step is not None
            ):
                repeated += (
                    max(0, earlier.last_step - later.first_step) + every
                )  # at most one evaluation was not told any more
        if record.attempts > 1 and compared < most_compared:
            compared += 1
            pers, errors = undisturbed(DecoderConfig().with_values(record.config), data)
            same = pers == [point.value for point in points]
            assert same, f"trial {record.number}: another curve than undisturbed"
            assert errors == list(study.scores([record.id])[record.id].errors)
    steps = sum(record.steps for record in ended)
    assert repeated <= most_repeated * steps, f"{repeated} of {steps} steps repeated"
    outcomes = Counter(row.outcome for rows in attempts.values() for row in rows)
    return {"trials": len(ended), "attempts": dict(outcomes), "compared with undisturbed": compared, "steps": steps,
            "repeated at most": f"{repeated} ({100 * repeated / steps:.1f} %)"}  # fmt: skip


def make_study(
    database: Database, folder: Path, trials: int, sizes: dict[str, float] = SIZES
) -> tuple[Study, Data]:
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
        help="of breaking things; afterwards the study ends in peace",
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
            print(f"{took:.0f} s, {sum(chaos.done.values())} breaks: {dict(chaos.done)}")
            print(check(study, data, arguments.compare, arguments.most_repeated))
        finally:
            server.stop()


if __name__ == "__main__":
    main()
