"""What the service itself costs: 200 trials of no steps through 2 workers, and one claim, report and finish.

    python benchmarks/trials.py [--trials 200] [--workers 2]

Uses the database of HPO_DATABASE_URL, else the embedded one; its studies are named `bench-...` and stay there.
"""

import argparse
import pickle
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np

from hpo.decoder.formats import read_sentences
from hpo.decoder.metric import Score
from hpo.decoder.train import Progress
from hpo.search.database import open_database
from hpo.search.ledger import Process, point_of
from hpo.search.spec import find_space, load_spec
from hpo.search.study import Study
from hpo.search.trial import Completed

SIZES = {"model.layers": 1, "model.units": 4, "model.kernel": 4, "model.stride": 2, "steps": 0}
RECORD = {"device": "cpu", "code_version": "benchmark", "data": ""}


def tiny_data(folder: Path) -> Path:
    """Four sentences: scoring them costs nothing."""
    bins = [np.random.default_rng(i).normal(size=(20, 2)).astype(np.float32) for i in range(4)]
    day = {"sentenceDat": bins, "phonemes": [np.ones(3, dtype=np.int32)] * 4, "phoneLens": [3] * 4}
    path = folder / "data"
    path.write_bytes(pickle.dumps({"train": [day], "test": [], "competition": []}))
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = tiny_data(Path(folder))
        fingerprint = read_sentences(path, "train").fingerprint()
        database = open_database()

        def make(trials: int) -> Study:
            spec = load_spec(find_space("lr-aug"), settings=SIZES, trials=trials)
            data = {"path": str(path), "fingerprint": fingerprint, "n_features": 2, "n_days": 1}
            return Study.create_or_open(database, f"bench-{uuid4().hex[:8]}", spec, data)

        study = make(arguments.trials)
        through_workers(study, arguments.workers, arguments.trials)
        by_hand(make(10**6))


def through_workers(study: Study, workers: int, trials: int) -> None:
    command = [sys.executable, "-m", "hpo.cli", "worker", "--study", study.name, "--device", "cpu", "--threads", "1"]
    begin = time.perf_counter()
    processes = [subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for _ in range(workers)]
    while study.records()[-1].state != "complete" and any(process.poll() is None for process in processes):
        time.sleep(0.01)
    first = time.perf_counter()
    for process in processes:
        process.wait()
    end = time.perf_counter()
    done = sum(record.state == "complete" for record in study.records())
    assert done == trials, f"{done} of {trials} complete"
    print(f"{trials} trials of no steps, {workers} workers: {trials / (end - first):.1f} trials/s once running, "
          f"{trials / (end - begin):.1f} trials/s with the start of the workers ({first - begin:.1f} s)")  # fmt: skip


def by_hand(study: Study, count: int = 100) -> None:
    """One worker's calls, timed one by one; the last ones after `count` trials, with TPE at work."""
    process, score = Process.this(), Score((1,), (10,))
    times: dict[str, list[float]] = {"claim": [], "report": [], "renew": [], "finish": []}

    def timed(name: str, call: Callable[..., Any], *arguments: Any) -> Any:
        begin = time.perf_counter()
        result = call(*arguments)
        times[name].append(1000 * (time.perf_counter() - begin))
        return result

    for _ in range(count):
        trial = timed("claim", study.claim, process, RECORD)
        timed("report", study.deliver, trial, [point_of([Progress(1, 1, 1.0, 1.0, 0.1, 0.1, score, 0.1, 1.0)])], 1, 0.1)
        timed("renew", study.deliver, trial, [], 1, 0.2)
        timed("finish", study.finish, trial, Completed(score))
    for name, values in times.items():
        print(f"{name:7} median {statistics.median(values):6.1f} ms, 95th percentile {sorted(values)[int(0.95 * count)]:6.1f} ms")


if __name__ == "__main__":
    main()
