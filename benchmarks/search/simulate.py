"""Simulate a search on a table's surrogate instead of on trainings.

    python benchmarks/search/simulate.py a [--fit]

Seconds are the table's; everything else is as in a real search. The surrogate is a Gaussian process
on the table, which gives a configuration's expected PER. The configuration's curve is the measured
one of a near configuration, bent so that it ends at that PER, with noise as large as between seeds.
--fit fits and stores the kernel's parameters. Trade-off: between the table's points a curve is a
guess. The script prints its error.
"""

import argparse
import heapq
import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel
from sklearn.model_selection import GroupKFold

from hpo.curve import Point
from hpo.decoder.trainer import PER
from hpo.space.cube import Cube
from hpo.space.parameter import Parameter
from hpo.space.policy import Model, Observation
from hpo.space.spec import DEFAULT_POLICY, StudySpec
from hpo.space.stopping import Stop, not_finite
from hpo.space.upgrade import upgraded_spec
from hpo.study.sampling import seed_of

HERE = Path(__file__).parent
# Of the demo's decoder on a quiet core: benchmarks/README.md, `train.py`.
STEP_SECONDS = 0.0166
EVALUATION_SECONDS = 0.064
# How many trainings may lend their curve.
NEAREST = 3
# Digits of a simulated PER. A study keeps it as errors over a length, and must come to the same.
DIGITS = 9
# PER at the end of a training that learned something, at most.
LEARNS = 0.7
Array = NDArray[np.float64]
# By the trial's number.
Curves = Mapping[int, Sequence[Point]]


@dataclass(frozen=True)
class Table:
    """Trainings to their end."""

    spec: StudySpec
    params: tuple[dict[str, Any], ...]
    parts: tuple[str, ...]
    # Of the points.
    steps: Array
    # (training, point); NaN after a loss that is not finite.
    per: Array
    # The same, on validation.
    loss: Array

    @property
    def groups(self) -> list[int]:
        """A number for each training, equal for equal configurations."""
        first_row: dict[str, int] = {}
        groups = []
        for row, params in enumerate(self.params):
            configuration = json.dumps(params, sort_keys=True)
            groups.append(first_row.setdefault(configuration, row))
        return groups

    @property
    def final(self) -> Array:
        """PER at the end; 1 if a loss was not finite."""
        return np.where(np.isfinite(self.per[:, -1]), self.per[:, -1], 1.0)


def load_table(name: str) -> Table:
    stored = np.load(HERE / f"table_{name}.npz")
    rows = json.loads(str(stored["rows"]))
    curves = stored["curves"].astype(float)
    fields = list(stored["fields"])
    # Two parts begin with the starts; each of their trainings counts once.
    last_index = {json.dumps([row["params"], row["seed"]]): index for index, row in enumerate(rows)}
    indices = list(last_index.values())
    rows = [rows[index] for index in indices]
    curves = curves[indices]
    # The stored tables are older than policies.
    values = {"policy": DEFAULT_POLICY} | json.loads(str(stored["spec"]))
    spec = StudySpec.model_validate(upgraded_spec(values))
    return Table(
        spec=spec,
        params=tuple(row["params"] for row in rows),
        parts=tuple(row["part"] for row in rows),
        steps=np.arange(1, curves.shape[1] + 1) * float(spec.base["evaluate_every"]),
        per=curves[..., fields.index("per")],
        loss=curves[..., fields.index("validation_loss")],
    )


def encode(spec: StudySpec, values: Mapping[str, Any]) -> Array:
    """A configuration as numbers.

    A number is its place in the range, a choice is a column each, and a parameter that does not
    exist is -0.5. The size of an optimizer step comes first, because lr and eps (or momentum) only
    make it together.
    """
    if "optimizer.eps" in values:
        divisor = math.log(values["optimizer.eps"] + 3e-3)
    else:
        divisor = math.log(1 - values["optimizer.momentum"])
    numbers = [(math.log(values["optimizer.lr"]) - divisor) / 5]
    for name, parameter in spec.parameters.items():
        if parameter.choices is not None:
            for choice in parameter.choices:
                numbers.append(float(name in values and values[name] == choice))
        elif values.get(name) is None:
            numbers.append(-0.5)
        else:
            numbers.append(_place_in_range(parameter, values[name]))
    return np.array(numbers)


def _place_in_range(parameter: Parameter, value: float) -> float:
    """0 at the low end, 1 at the high end."""
    low = parameter.low
    high = parameter.high
    assert low is not None and high is not None
    if parameter.log:
        low = math.log(low)
        high = math.log(high)
        value = math.log(value)
    return (value - low) / (high - low)


@dataclass(frozen=True)
class Training:
    """The curve of one configuration's training."""

    steps: Array
    # NaN after a loss that is not finite.
    per: Array
    # On the validation sentences.
    loss: Array

    def evaluation(self, point: int) -> Point:
        """The training loss is not known, and no rule looks at it."""
        step = int(self.steps[point])
        return Point(step, float(self.per[point]), math.nan, float(self.loss[point]))


class Surrogate:
    """A Gaussian process on a table."""

    def __init__(self, table: Table, theta: Array | None = None):
        """theta: logarithms of the kernel's parameters; None fits them, which takes a minute."""
        self.table = table
        self.spec = table.spec
        self._x = np.array([encode(self.spec, params) for params in table.params])
        y = np.log(np.maximum(table.final, 1e-3))
        dimensions = self._x.shape[1]
        matern = Matern(np.full(dimensions, 2.0), (0.1, 100.0), nu=2.5)
        kernel = ConstantKernel(1.0) * matern + WhiteKernel(0.05, (1e-4, 1.0))
        optimizer: str | None = "fmin_l_bfgs_b"
        if theta is not None:
            kernel = kernel.clone_with_theta(theta)
            optimizer = None
        process = GaussianProcessRegressor(kernel, normalize_y=True, optimizer=optimizer)
        with warnings.catch_warnings():
            # The length of a parameter that does not matter goes to its bound.
            warnings.simplefilter("ignore", ConvergenceWarning)
            process.fit(self._x, y)
        self.theta: Array = process.kernel_.theta
        self._scale = np.exp(self.theta[1 : 1 + dimensions])
        self._weights = np.exp(self.theta[0]) * process.alpha_ * np.std(y)
        self._middle = float(np.mean(y))
        self.noise = seed_noise(table)
        self.best = min(self.truth(params) for params in table.params)

    def _distances(self, values: Mapping[str, Any]) -> Array:
        """To each training of the table, in the kernel's lengths."""
        scaled = (self._x - encode(self.spec, values)) / self._scale
        distances: Array = np.sqrt((scaled**2).sum(axis=1))
        return distances

    def truth(self, values: Mapping[str, Any]) -> float:
        """The PER that a training of this configuration is expected to end with."""
        scaled = math.sqrt(5) * self._distances(values)
        similarity = (1 + scaled + scaled**2 / 3) * np.exp(-scaled)
        log_per = self._middle + similarity @ self._weights
        return float(np.exp(min(log_per, 0.05)))

    def training(self, values: Mapping[str, Any], seed: int) -> Training:
        """The curve of one of the nearest trainings.

        It is bent in log PER so that it ends at the truth plus a seed's noise.
        """
        generator = np.random.default_rng(seed)
        nearest = np.argsort(self._distances(values), kind="stable")[:NEAREST]
        lender = int(generator.choice(nearest))
        log_per = np.log(np.maximum(self.table.per[lender], 1e-3))
        loss = self.table.loss[lender]
        if not np.isfinite(log_per[-1]):
            return Training(self.table.steps, self.table.per[lender], loss)
        end = math.log(self.truth(values)) + self.noise * generator.normal()
        # The share of the way from PER 1 to its end that the curve has come.
        progress = np.clip(log_per / min(log_per[-1], -0.05), 0, 1)
        shift = (end - log_per[-1]) * progress
        per = np.round(np.exp(log_per + shift), DIGITS)
        return Training(self.table.steps, per, loss * np.exp(shift))


def surrogate_of(name: str) -> Surrogate:
    """The surrogate of a table, with the stored parameters of the kernel."""
    stored = json.loads((HERE / f"surrogate_{name}.json").read_text())
    return Surrogate(load_table(name), np.array(stored["theta"]))


def seed_noise(table: Table) -> float:
    """Standard deviation of log PER between the seeds of a configuration, over those that learn."""
    log_pers: dict[int, list[float]] = {}
    for group, per in zip(table.groups, table.final, strict=True):
        log_pers.setdefault(group, []).append(math.log(max(per, 1e-3)))
    variances = [
        np.var(values, ddof=1)
        for values in log_pers.values()
        if len(values) > 1 and min(values) < math.log(LEARNS)
    ]
    if not variances:
        return 0.05
    return float(np.sqrt(np.mean(variances)))


def errors(table: Table, theta: Array, folds: int = 10) -> dict[str, float]:
    """The surrogate's errors on configurations left out: of PER, of ranks, of a drawn curve.

    The kernel's parameters are from all configurations.
    """
    predicted = np.zeros(len(table.params))
    drawn = np.full_like(table.per, np.nan)
    for fit, held in GroupKFold(folds).split(table.per, groups=table.groups):
        part = Table(
            spec=table.spec,
            params=tuple(table.params[row] for row in fit),
            parts=tuple(table.parts[row] for row in fit),
            steps=table.steps,
            per=table.per[fit],
            loss=table.loss[fit],
        )
        surrogate = Surrogate(part, theta)
        for row in held:
            predicted[row] = surrogate.truth(table.params[row])
            drawn[row] = surrogate.training(table.params[row], int(row)).per
    learns = table.final < LEARNS
    best = table.final <= np.quantile(table.final, 0.25)
    error = np.expm1(np.abs(np.log(predicted) - np.log(table.final)))
    curve_error = np.abs(drawn - table.per)
    return {
        "median error of PER where it learns": float(np.median(error[learns])),
        "median error of PER, best quarter": float(np.median(error[best])),
        "rank correlation": rank_correlation(predicted, table.final),
        "rank correlation, best quarter": rank_correlation(predicted[best], table.final[best]),
        "median error of a curve's points": float(np.nanmedian(curve_error[learns])),
        "SD between seeds, of log PER": seed_noise(table),
    }


def rank_correlation(a: Array, b: Array) -> float:
    """Spearman's."""
    return float(spearmanr(a, b).statistic)


class _WithoutStepSize(Cube):
    """Without the last feature, the size of an optimizer step."""

    def features(self, points_NP: Array) -> Array:
        features_NF: Array = super().features(points_NP)[:, :-1]
        return features_NF


def policy_ranks(table: Table, shown: int = 45, times: int = 12) -> dict[str, float]:
    """How well the policy's own model ranks trainings that it has not seen, as correlations.

    It sees `shown` configurations, drawn anew each of the `times`. Measured on the table itself.
    """
    configurations = np.unique(table.groups)
    cubes = {"with": Cube(table.spec), "without": _WithoutStepSize(table.spec)}
    correlations: dict[str, list[float]] = {which: [] for which in cubes}
    for seed in range(times):
        chosen = np.random.default_rng(seed).choice(configurations, shown, replace=False)
        rest = np.setdiff1d(configurations, chosen)
        seen = [Observation(int(row), table.params[row], float(table.final[row])) for row in chosen]
        for which, cube in cubes.items():
            points = np.array([cube.point(table.params[row]) for row in rest])
            expected = Model(cube, seen).expected(points)
            correlations[which].append(rank_correlation(expected, table.final[rest]))
    return {
        f"rank correlation of the policy's model, {which} the size of a step": float(np.mean(ranks))
        for which, ranks in correlations.items()
    }


def early(table: Table) -> list[str]:
    """Lines on how well an early evaluation ranks trainings by their PER at the end.

    Rank correlations of PER and loss, over all trainings and the best third; a line for each share
    of the steps.
    """
    whole = np.isfinite(table.per).all(axis=1)
    best = whole & (table.final <= np.quantile(table.final[whole], 1 / 3))
    rows = ["share of the steps: PER of all, of the best third; loss of all, of the best third"]
    for share in (0.05, 0.1, 0.15, 0.3, 0.4, 0.5, 0.6, 0.75):
        point = math.ceil(share * table.per.shape[1]) - 1
        cells = []
        for values in (table.per, table.loss):
            for group in (whole, best):
                correlation = rank_correlation(values[group, point], table.final[group])
                cells.append(f"{correlation:.2f}")
        rows.append(f"{100 * share:.0f} %: {' '.join(cells)}")
    return rows


# ---- a search


class Search(Protocol):
    """What a worker asks of a study: of a real one, or of an Optuna study in memory."""

    def ask(self, curves: Curves) -> tuple[int, dict[str, Any]]:
        """A new trial: its number and values. curves: of the trials before it."""

    def report(self, number: int, evaluation: Point) -> bool:
        """Report an evaluation. Returns whether the study's own rule ends the trial."""

    def end(self, number: int, per: float | None, stop: Stop | None) -> None:
        """End a trial. per: of a complete one. stop: if a rule of hpo's stopped it."""


class Rules(Protocol):
    """What decides while trials run: hpo's stopping rule and policy, or nothing.

    Optuna's pruners are part of the search.
    """

    def judge(self, number: int, curves: Curves) -> Stop | str | None:
        """Judge a trial after an evaluation.

        Returns a Stop to end it, "pause" to perhaps continue it later, or None to continue it.
        """

    def resume(self, paused: Curves, curves: Curves) -> int | None:
        """The number of the paused trial to continue, or None to take a new one."""


@dataclass
class Trace:
    """A trial of a simulated search."""

    number: int
    values: dict[str, Any]
    training: Training
    truth: float
    curve: list[Point] = field(default_factory=list)
    seconds: float = 0.0
    # In GPU-seconds of the search.
    ended: float = math.inf
    state: str = "running"


@dataclass(frozen=True)
class Limits:
    """How long a search is simulated, in GPU-seconds, and with how many workers."""

    horizon: float
    workers: int = 4
    # After the horizon the search continues until `longest`, while the expected PER of the
    # configuration that it would name is above `goal`.
    goal: float = 0.0
    longest: float = 0.0


def simulate(
    surrogate: Surrogate, search: Search, rules: Rules, seed: int, limits: Limits
) -> list[Trace]:
    """All trials begun before the limits.

    A worker takes its next trial when its last one ends or is paused.
    """
    traces: dict[int, Trace] = {}
    # Each entry: when in GPU-seconds, the trial, its next point.
    queue: list[tuple[float, int, int]] = []
    every = surrogate.spec.base["evaluate_every"]
    workers = limits.workers
    cost = workers * (STEP_SECONDS * every + EVALUATION_SECONDS)

    def begin(now: float) -> None:
        curves = {number: trace.curve for number, trace in traces.items()}
        paused = {
            number: trace.curve for number, trace in traces.items() if trace.state == "paused"
        }
        number = rules.resume(paused, curves)
        if number is None:
            number, values = search.ask(curves)
            training = surrogate.training(values, seed_of(seed, number))
            traces[number] = Trace(number, values, training, surrogate.truth(values))
        traces[number].state = "running"
        heapq.heappush(queue, (now + cost, number, len(traces[number].curve)))

    for _ in range(workers):
        begin(0.0)
    lowest = math.inf
    # The expected PER of the configuration with the lowest measured PER.
    named = math.inf
    while queue:
        end = limits.horizon
        if named > limits.goal:
            end = max(limits.horizon, limits.longest)
        now, number, point = heapq.heappop(queue)
        if now > end:
            break
        trace = traces[number]
        trace.seconds += cost / workers
        state = _advance(search, rules, traces, trace, point)
        if state == "running":
            heapq.heappush(queue, (now + cost, number, point + 1))
            continue
        trace.state = state
        trace.ended = now
        if state == "complete" and trace.curve[-1].value < lowest:
            lowest = trace.curve[-1].value
            named = trace.truth
        begin(now)
    return list(traces.values())


def _advance(
    search: Search, rules: Rules, traces: Mapping[int, Trace], trace: Trace, point: int
) -> str:
    """The trial's state after its next evaluation."""
    evaluation = trace.training.evaluation(point)
    stop = not_finite(evaluation, PER)
    if stop:
        search.end(trace.number, None, stop)
        return "stopped"
    trace.curve.append(evaluation)
    ended = search.report(trace.number, evaluation)
    if point + 1 == len(trace.training.steps):
        search.end(trace.number, evaluation.value, None)
        return "complete"
    verdict = rules.judge(trace.number, {number: other.curve for number, other in traces.items()})
    if isinstance(verdict, Stop) or ended:
        search.end(trace.number, None, verdict if isinstance(verdict, Stop) else None)
        return "stopped"
    return "paused" if verdict else "running"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table")
    parser.add_argument("--fit", action="store_true")
    arguments = parser.parse_args()
    table = load_table(arguments.table)
    if arguments.fit:
        theta = [round(float(value), 4) for value in Surrogate(table).theta]
        (HERE / f"surrogate_{arguments.table}.json").write_text(json.dumps({"theta": theta}) + "\n")
    surrogate = surrogate_of(arguments.table)
    print(
        f"{len(table.params)} trainings of {len(set(table.groups))} configurations; "
        f"best measured {table.final.min():.3f}, expected {surrogate.best:.3f}"
    )
    for name, value in (errors(table, surrogate.theta) | policy_ranks(table)).items():
        print(f"{name:72} {value:.3f}")
    print("\n".join(early(table)))


if __name__ == "__main__":
    main()
