"""What the service itself costs: many workers with trials of no steps, compared with plain Optuna.

    python benchmarks/trials.py [--workers 64] [--sizes 0 1000 10000] [--seconds 20] [--policy gp]

Both sides run on the same server with the lr-aug space (19 parameters), one report a trial, and the
same TPE sampler unless --policy names another one for hpo. hpo does claim, report and finish;
Optuna does ask and suggest, report and should_prune (with its default pruner), and tell, on its
RDBStorage with default settings. Workers are forked processes that have read the finished trials
before the clock starts. `size` is the number of finished trials of the study: 40 real ones,
multiplied in the database. The last table is for one worker alone: how much of a claim is the
sampler, and how much the rest. It uses the database of HPO_DATABASE_URL, else the embedded one; its
studies are named `bench-...` and are not deleted.
"""

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any
from uuid import uuid4

import optuna
from optuna.samplers import TPESampler
from sqlalchemy import create_engine, text

from hpo.curve import Point
from hpo.process import Process
from hpo.space.load import find_space, load_spec
from hpo.space.spec import StudySpec
from hpo.store.database import Database, open_database
from hpo.study import choice
from hpo.study.optuna_internals import cached_storage, id_of_study, suggest
from hpo.study.sampling import distribution
from hpo.study.study import Study
from hpo.study.trial import Completed
from hpo.trainer import Score

RECORD = {"device": "cpu", "code_version": "benchmark", "data": ""}
# What the built-in decoder reports in addition to the PER.
METRICS = {"grad_norm": 1.0, "lr": 0.1, "step_seconds": 0.1}
# Trials that are run, not copied.
REAL = 40
# Seconds by the name of what was timed.
Times = dict[str, list[float]]
MULTIPLY = """
INSERT INTO trials (number, study_id, state, datetime_start, datetime_complete)
SELECT t.number + :real * copy, t.study_id, t.state, t.datetime_start, t.datetime_complete
FROM generate_series(1, :copies) copy, trials t
WHERE t.study_id = :study AND t.number < :real ORDER BY 1;
INSERT INTO trial_params (trial_id, param_name, param_value, distribution_json)
SELECT n.trial_id, p.param_name, p.param_value, p.distribution_json
FROM twins n JOIN trial_params p ON p.trial_id = n.of;
INSERT INTO trial_values (trial_id, objective, value, value_type)
SELECT n.trial_id, v.objective, v.value, v.value_type
FROM twins n JOIN trial_values v ON v.trial_id = n.of;
INSERT INTO hpo_trial (trial_id, host, process, device, attempts, seconds, gpu_seconds)
SELECT n.trial_id, h.host, h.process, h.device, 1, 1, 1
FROM twins n JOIN hpo_trial h ON h.trial_id = n.of;
INSERT INTO hpo_curve (trial_id, step, attempt, value, validation_loss, loss, metrics)
SELECT n.trial_id, c.step, c.attempt, c.value, c.validation_loss, c.loss, c.metrics
FROM twins n JOIN hpo_curve c ON c.trial_id = n.of;
INSERT INTO hpo_attempt
  (trial_id, attempt, host, process, device, code_version, ended, outcome)
SELECT n.trial_id, 1, a.host, a.process, a.device, a.code_version, a.ended, a.outcome
FROM twins n JOIN hpo_attempt a ON a.trial_id = n.of;
ANALYZE;
"""
# Each copied trial with the real one that it is a copy of.
TWINS = """
CREATE TEMP VIEW twins AS SELECT n.trial_id, t.trial_id AS of FROM trials n
JOIN trials t ON t.study_id = n.study_id AND t.number = n.number % {real}
WHERE n.study_id = {study} AND n.number >= {real}
"""


class Timer:
    """Times calls by a name."""

    def __init__(self) -> None:
        self.times: Times = {}

    def __call__(self, name: str, call: Callable[..., Any], *arguments: Any) -> Any:
        begin = time.perf_counter()
        result = call(*arguments)
        self.times.setdefault(name, []).append(time.perf_counter() - begin)
        return result


def run_hpo_trial(study: Study, timer: Timer) -> None:
    trial = timer("claim", study.claim, Process.this(), RECORD)
    score = Score((1 + trial.number % 7,), (10,))
    point = Point(1, score.value, 1.0, 1.0, METRICS)
    timer("report", study.deliver, trial, [point], 1, 0.1)
    timer("finish", study.finish, trial, Completed(Score((trial.number % 7,), (10,))), 0.2)


def run_optuna_trial(study: optuna.Study, spec: StudySpec, timer: Timer) -> None:
    def ask() -> optuna.Trial:
        trial = study.ask()
        values: dict[str, Any] = {}
        for name in spec.parameters:
            if spec.active(name, values):
                values[name] = suggest(trial, name, distribution(spec, name))
        return trial

    def report() -> None:
        trial.report(0.1, 1)
        trial.should_prune()

    trial = timer("claim", ask)
    timer("report", report)
    timer("finish", study.tell, trial, 0.1 * (trial.number % 7))


def make_hpo_study(database: Database, spec: StudySpec) -> Study:
    name = f"bench-{uuid4().hex[:8]}"
    return Study.create_or_open(database, name, spec, {"path": None, "fingerprint": ""})


def make_optuna_study(database: Database, spec: StudySpec) -> optuna.Study:
    sampler = TPESampler(
        n_startup_trials=spec.sampler.startup_trials, multivariate=True, constant_liar=True
    )
    return optuna.create_study(
        storage=database.url, study_name=f"bench-{uuid4().hex[:8]}", sampler=sampler
    )


def fill(database: Database, study_id: int, size: int) -> None:
    """Multiply the REAL trials to `size`."""
    parameters = {"real": REAL, "copies": size // REAL - 1, "study": study_id}
    with create_engine(database.url).begin() as connection:
        connection.execute(text(TWINS.format(real=REAL, study=study_id)))
        for statement in MULTIPLY.strip().split(";")[:-1]:
            used = {name: value for name, value in parameters.items() if f":{name}" in statement}
            connection.execute(text(statement), used)


def run_workers(
    workers: int, seconds: float, engine: Any, cycle: Callable[[Timer], None], database: Database
) -> tuple[Times, float, int]:
    """Let many workers repeat `cycle`, a trial, for so many seconds.

    engine: which the cycle uses. Returns (times of all workers, trials/s, connections at most).
    """
    context = multiprocessing.get_context("fork")
    begin = context.Barrier(workers + 1)
    results = context.SimpleQueue()

    def work() -> None:
        # Connections of the parent process must not be used here.
        engine.dispose(close=False)
        timer = Timer()
        begin.wait()
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            cycle(timer)
        results.put(timer.times)

    processes = [context.Process(target=work, daemon=True) for _ in range(workers)]
    for process in processes:
        process.start()
    watcher = create_engine(database.url)
    count = text(
        "SELECT count(*) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    with watcher.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        before = connection.execute(count).scalar_one()
        begin.wait()
        start = time.perf_counter()
        most = 0
        collected: list[Times] = []
        while len(collected) < workers:
            if results.empty():
                most = max(most, connection.execute(count).scalar_one() - before)
                time.sleep(0.05)
            else:
                collected.append(results.get())
        took = time.perf_counter() - start
    watcher.dispose()
    together: Times = {name: [] for name in collected[0]}
    for times in collected:
        for name, values in together.items():
            values += times[name]
    return together, len(together["finish"]) / took, most


def head(*titles: str) -> None:
    row(*titles)
    row(*["---" for _ in titles])


def row(*cells: object) -> None:
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def spread(values: list[float]) -> str:
    """Median / 95th percentile, in ms."""
    ordered = sorted(values)
    percentile = ordered[int(0.95 * len(ordered))]
    return f"{1000 * statistics.median(ordered):.0f} / {1000 * percentile:.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--sizes", type=int, nargs="*", default=[0, 1000, 10000])
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--policy", default="tpe")
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    database = open_database()
    spec = load_spec(find_space("lr-aug"), trials=10**6, policy=arguments.policy)
    alone = []
    print(f"{arguments.workers} workers, times in ms (median / 95th percentile)\n")
    head("size", "side", "trials/s", "claim", "report", "finish", "connections")
    for size in arguments.sizes:
        study = make_hpo_study(database, spec)
        optuna_study = make_optuna_study(database, spec)
        for _ in range(REAL):
            run_hpo_trial(study, Timer())
            run_optuna_trial(optuna_study, spec, Timer())
        if size > REAL:
            fill(database, study.id, size)
            fill(database, id_of_study(optuna_study), size)
        study.storage.get_all_trials(study.id, deepcopy=False)
        optuna_study.get_trials(deepcopy=False)
        alone.append((size, *parts_of_a_claim(study)))
        optuna_storage: Any = cached_storage(optuna_study)
        # The cache has no public way to the storage behind it.
        optuna_engine = optuna_storage._backend.engine  # noqa: SLF001
        sides = {
            "ours": (study.engine, partial(run_hpo_trial, study)),
            "optuna": (optuna_engine, partial(run_optuna_trial, optuna_study, spec)),
        }
        for side, (engine, cycle) in sides.items():
            times, pace, connections = run_workers(
                arguments.workers, arguments.seconds, engine, cycle, database
            )
            spreads = [spread(times[name]) for name in ("claim", "report", "finish")]
            row(size, side, f"{pace:.1f}", *spreads, connections)
    print("\nOne worker alone, medians in ms\n")
    head("size", "claim", "of it the sampler", "the rest")
    for size, claim, sampler in alone:
        milliseconds = [f"{1000 * seconds:.1f}" for seconds in (claim, sampler, claim - sampler)]
        row(size, *milliseconds)


def parts_of_a_claim(study: Study, count: int = 15) -> tuple[float, float]:
    """Median seconds of a claim, and of the sampling in it."""
    timer = Timer()
    configure = choice.configure
    choice.configure = partial(timer, "sampler", configure)
    for _ in range(count):
        run_hpo_trial(study, timer)
    choice.configure = configure
    return statistics.median(timer.times["claim"]), statistics.median(timer.times["sampler"])


if __name__ == "__main__":
    main()
