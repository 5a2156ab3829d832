"""What the service itself costs: trials of no steps by many workers, beside plain Optuna in the same run on the same server.

    python benchmarks/trials.py [--workers 64] [--sizes 0 1000 10000] [--seconds 20] [--policy gp]

Both sides: the lr-aug space (19 parameters), Postgres, one report a trial, the same TPE sampler unless --policy says another for
ours. Ours: claim, report, finish. Optuna: ask and suggest, report and should_prune (its
default pruner), tell; its RDBStorage as it comes. Workers are forked processes that have read the finished trials before the
clock starts. `size`: finished trials of the study, 40 real ones multiplied in the database. The last table is one worker alone:
what of a claim is the sampler, and what is ours. Uses the database of HPO_DATABASE_URL, else the embedded one; its studies
are named `bench-...` and stay there.
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
from hpo.space.spec import StudySpec, find_space, load_spec
from hpo.store.database import Database, open_database
from hpo.study import choice
from hpo.study.sampling import distribution
from hpo.study.study import Study
from hpo.study.trial import Completed
from hpo.trainer import Score

RECORD = {"device": "cpu", "code_version": "benchmark", "data": ""}
# What the built-in decoder tells beside.
METRICS = {"grad_norm": 1.0, "lr": 0.1, "step_seconds": 0.1}
REAL = 40
Times = dict[str, list[float]]
MULTIPLY = """
INSERT INTO trials (number, study_id, state, datetime_start, datetime_complete)
SELECT t.number + :real * copy, t.study_id, t.state, t.datetime_start, t.datetime_complete
FROM generate_series(1, :copies) copy, trials t WHERE t.study_id = :study AND t.number < :real ORDER BY 1;
INSERT INTO trial_params (trial_id, param_name, param_value, distribution_json)
SELECT n.trial_id, p.param_name, p.param_value, p.distribution_json FROM twins n JOIN trial_params p ON p.trial_id = n.of;
INSERT INTO trial_values (trial_id, objective, value, value_type)
SELECT n.trial_id, v.objective, v.value, v.value_type FROM twins n JOIN trial_values v ON v.trial_id = n.of;
INSERT INTO hpo_trial (trial_id, host, process, device, attempts, seconds, gpu_seconds)
SELECT n.trial_id, h.host, h.process, h.device, 1, 1, 1 FROM twins n JOIN hpo_trial h ON h.trial_id = n.of;
INSERT INTO hpo_curve (trial_id, step, attempt, value, validation_loss, loss, metrics)
SELECT n.trial_id, c.step, c.attempt, c.value, c.validation_loss, c.loss, c.metrics
FROM twins n JOIN hpo_curve c ON c.trial_id = n.of;
INSERT INTO hpo_attempt (trial_id, attempt, host, process, device, code_version, ended, outcome)
SELECT n.trial_id, 1, a.host, a.process, a.device, a.code_version, a.ended, a.outcome FROM twins n JOIN hpo_attempt a ON a.trial_id = n.of;
ANALYZE;
"""
TWINS = """CREATE TEMP VIEW twins AS SELECT n.trial_id, t.trial_id AS of FROM trials n JOIN trials t
ON t.study_id = n.study_id AND t.number = n.number % {real} WHERE n.study_id = {study} AND n.number >= {real}"""


class Timer:
    def __init__(self) -> None:
        self.times: Times = {}

    def __call__(self, name: str, call: Callable[..., Any], *arguments: Any) -> Any:
        begin = time.perf_counter()
        result = call(*arguments)
        self.times.setdefault(name, []).append(time.perf_counter() - begin)
        return result


def ours(study: Study, timer: Timer) -> None:
    trial = timer("claim", study.claim, Process.this(), RECORD)
    score = Score((1 + trial.number % 7,), (10,))
    point = Point(1, score.value, 1.0, 1.0, METRICS)
    timer("report", study.deliver, trial, [point], 1, 0.1)
    timer("finish", study.finish, trial, Completed(Score((trial.number % 7,), (10,))), 0.2)


def plain(study: optuna.Study, spec: StudySpec, timer: Timer) -> None:
    def ask() -> optuna.Trial:
        trial, values = study.ask(), dict[str, Any]()
        for name in spec.parameters:
            if spec.active(name, values):
                values[name] = trial._suggest(name, distribution(spec, name))
        return trial

    def report() -> None:
        trial.report(0.1, 1)
        trial.should_prune()

    trial = timer("claim", ask)
    timer("report", report)
    timer("finish", study.tell, trial, 0.1 * (trial.number % 7))


def make_ours(database: Database, spec: StudySpec) -> Study:
    return Study.create_or_open(
        database, f"bench-{uuid4().hex[:8]}", spec, {"path": None, "fingerprint": ""}
    )


def make_plain(database: Database, spec: StudySpec) -> optuna.Study:
    sampler = TPESampler(
        n_startup_trials=spec.sampler.startup_trials, multivariate=True, constant_liar=True
    )
    return optuna.create_study(
        storage=database.url, study_name=f"bench-{uuid4().hex[:8]}", sampler=sampler
    )


def fill(database: Database, study_id: int, size: int) -> None:
    """Multiply the REAL trials to `size`."""
    with create_engine(database.url).begin() as connection:
        connection.execute(text(TWINS.format(real=REAL, study=study_id)))
        for statement in MULTIPLY.strip().split(";")[:-1]:
            values = {"real": REAL, "copies": size // REAL - 1, "study": study_id}
            connection.execute(
                text(statement),
                {name: value for name, value in values.items() if f":{name}" in statement},
            )


def many(
    workers: int, seconds: float, engine: Any, cycle: Callable[[Timer], None], database: Database
) -> tuple[Times, float, int]:
    """(times of all workers, trials/s, connections at most)."""
    context = multiprocessing.get_context("fork")
    begin, found = context.Barrier(workers + 1), context.SimpleQueue()

    def work() -> None:
        engine.dispose(close=False)  # the parent's connections are not ours
        timer = Timer()
        begin.wait()
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            cycle(timer)
        found.put(timer.times)

    processes = [context.Process(target=work, daemon=True) for _ in range(workers)]
    for process in processes:
        process.start()
    watcher = create_engine(database.url)
    count = text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    with watcher.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        before = connection.execute(count).scalar_one()
        begin.wait()
        start, most = time.perf_counter(), 0
        collected: list[Times] = []
        while len(collected) < workers:
            if found.empty():
                most = max(most, connection.execute(count).scalar_one() - before)
                time.sleep(0.05)
            else:
                collected.append(found.get())
        took = time.perf_counter() - start
    watcher.dispose()
    together = {
        name: [value for times in collected for value in times[name]] for name in collected[0]
    }
    return together, len(together["finish"]) / took, most


def row(*cells: object) -> None:
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def spread(values: list[float]) -> str:
    ordered = sorted(values)
    return (
        f"{1000 * statistics.median(ordered):.0f} / {1000 * ordered[int(0.95 * len(ordered))]:.0f}"
    )


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
    database, spec = (
        open_database(),
        load_spec(find_space("lr-aug"), trials=10**6, policy=arguments.policy),
    )
    alone = []
    print(f"{arguments.workers} workers, times in ms (median / 95th percentile)\n")
    row("size", "side", "trials/s", "claim", "report", "finish", "connections")
    row(*["---"] * 7)
    for size in arguments.sizes:
        study, other = make_ours(database, spec), make_plain(database, spec)
        for _ in range(REAL):
            ours(study, Timer())
            plain(other, spec, Timer())
        if size > REAL:
            fill(database, study.id, size)
            fill(database, other._study_id, size)
        study.storage.get_all_trials(study.id, deepcopy=False)
        other.get_trials(deepcopy=False)
        alone.append((size, *parts_of_a_claim(study)))
        engines: dict[str, Any] = {"ours": study.engine, "optuna": other.storage._backend.engine}  # type: ignore[attr-defined]
        cycles = {"ours": partial(ours, study), "optuna": partial(plain, other, spec)}
        for side, cycle in cycles.items():
            times, pace, connections = many(
                arguments.workers, arguments.seconds, engines[side], cycle, database
            )
            row(
                size,
                side,
                f"{pace:.1f}",
                *(spread(times[name]) for name in ("claim", "report", "finish")),
                connections,
            )
    print("\nOne worker alone, medians in ms\n")
    row("size", "claim", "of it the sampler", "the rest")
    row(*["---"] * 5)
    for size, claim, sampler in alone:
        row(size, *(f"{1000 * value:.1f}" for value in (claim, sampler, claim - sampler)))


def parts_of_a_claim(study: Study, count: int = 15) -> tuple[float, float]:
    """Seconds, medians: of a claim, and of the sampling in it."""
    timer, configure = Timer(), choice.configure
    choice.configure = lambda *arguments: timer("sampler", configure, *arguments)
    for _ in range(count):
        ours(study, timer)
    choice.configure = configure
    return statistics.median(timer.times["claim"]), statistics.median(timer.times["sampler"])


if __name__ == "__main__":
    main()
