"""A search on a table's surrogate instead of on trainings: seconds are the table's, everything else is a real search's.

The surrogate is a Gaussian process on the table. It gives a configuration's expected PER; its curve is the measured one of a
near configuration, bent so that it ends there, with noise as large as between seeds. `python simulate.py a --fit` fits and
stores the kernel's parameters. Trade-off: between the table's points a curve is a guess; without --fit its error is printed.
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
from hpo.space.policy import Model, Seen
from hpo.space.spec import DEFAULT_POLICY, StudySpec
from hpo.space.stopping import Stop, not_finite
from hpo.space.upgrade import upgraded_spec
from hpo.study.sampling import seed_of

HERE = Path(__file__).parent
STEP_SECONDS, EVALUATION_SECONDS = (
    0.0166,
    0.064,
)  # of the demo's decoder on a quiet core: benchmarks/README.md, `train.py`
NEAREST = 3  # trainings, one of which lends its curve
DIGITS = 9  # of a simulated PER: a study keeps it as errors over a length, and must find the same
LEARNS = 0.7  # PER at the end of a training that learned something
Array = NDArray[np.float64]
Curves = Mapping[int, Sequence[Point]]  # by the trial's number


@dataclass(frozen=True)
class Table:
    """Trainings to their end. curves: (trial, point); NaN after a loss that is not finite."""

    spec: StudySpec
    params: tuple[dict[str, Any], ...]
    parts: tuple[str, ...]
    steps: Array  # of the points
    per: Array
    loss: Array  # validation

    @property
    def groups(self) -> list[int]:
        """Equal for equal configurations."""
        first: dict[str, int] = {}
        return [
            first.setdefault(json.dumps(params, sort_keys=True), row)
            for row, params in enumerate(self.params)
        ]

    @property
    def final(self) -> Array:
        """PER at the end; 1 if a loss was not finite."""
        return np.where(np.isfinite(self.per[:, -1]), self.per[:, -1], 1.0)


def load_table(name: str) -> Table:
    stored = np.load(HERE / f"table_{name}.npz")
    rows, curves, fields = (
        json.loads(str(stored["rows"])),
        stored["curves"].astype(float),
        list(stored["fields"]),
    )
    once = {
        json.dumps([row["params"], row["seed"]]): index for index, row in enumerate(rows)
    }  # two parts begin with the starts
    rows, curves = [rows[index] for index in once.values()], curves[list(once.values())]
    # The stored tables are older than policies.
    values = {"policy": DEFAULT_POLICY} | json.loads(str(stored["spec"]))
    spec = StudySpec.model_validate(upgraded_spec(values))
    steps = np.arange(1, curves.shape[1] + 1) * float(spec.base["evaluate_every"])
    return Table(spec, tuple(row["params"] for row in rows), tuple(row["part"] for row in rows), steps,
                 curves[..., fields.index("per")], curves[..., fields.index("validation_loss")])  # fmt: skip


def encode(spec: StudySpec, values: Mapping[str, Any]) -> Array:
    """Numbers as their place in the range, choices one by one, what does not exist at -0.5; first the size of a step, because
    lr and eps (or momentum) make it together.
    """
    divided = (
        math.log(values["optimizer.eps"] + 3e-3)
        if "optimizer.eps" in values
        else math.log(1 - values["optimizer.momentum"])
    )
    found = [(math.log(values["optimizer.lr"]) - divided) / 5]
    for name, parameter in spec.parameters.items():
        value = values.get(name)
        if parameter.choices is not None:
            found += [float(name in values and value == choice) for choice in parameter.choices]
        elif value is None:
            found.append(-0.5)
        else:
            assert parameter.low is not None and parameter.high is not None
            low, high, value = (
                math.log(x) if parameter.log else x for x in (parameter.low, parameter.high, value)
            )
            found.append((value - low) / (high - low))
    return np.array(found)


@dataclass(frozen=True)
class Training:
    """What a training of one configuration would give. NaN: not finite from there."""

    steps: Array
    per: Array
    # On the validation sentences.
    loss: Array

    def evaluation(self, point: int) -> Point:
        """The loss of the training data is not known, and no rule looks at it."""
        step = int(self.steps[point])
        return Point(step, float(self.per[point]), math.nan, float(self.loss[point]))


class Surrogate:
    def __init__(self, table: Table, theta: Array | None = None):
        """theta: logarithms of the kernel's parameters; None fits them, which takes a minute."""
        self.table, self.spec = table, table.spec
        self._x = np.array([encode(self.spec, params) for params in table.params])
        y = np.log(np.maximum(table.final, 1e-3))
        dimensions = self._x.shape[1]
        kernel = ConstantKernel(1.0) * Matern(
            np.full(dimensions, 2.0), (0.1, 100.0), nu=2.5
        ) + WhiteKernel(0.05, (1e-4, 1.0))
        process = GaussianProcessRegressor(kernel if theta is None else kernel.clone_with_theta(theta), normalize_y=True,
                                           optimizer="fmin_l_bfgs_b" if theta is None else None)  # fmt: skip
        with warnings.catch_warnings():  # of what does not matter the length goes to its bound
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
        distances: Array = np.sqrt(
            (((self._x - encode(self.spec, values)) / self._scale) ** 2).sum(axis=1)
        )
        return distances

    def truth(self, values: Mapping[str, Any]) -> float:
        """The PER that a training of this configuration is expected to end with: the process's mean."""
        scaled = math.sqrt(5) * self._distances(values)
        return float(
            np.exp(
                min(
                    self._middle + (1 + scaled + scaled**2 / 3) * np.exp(-scaled) @ self._weights,
                    0.05,
                )
            )
        )

    def training(self, values: Mapping[str, Any], seed: int) -> Training:
        """The curve of one of the nearest trainings, bent in log PER so that it ends at the truth and a seed's noise."""
        generator = np.random.default_rng(seed)
        like = int(generator.choice(np.argsort(self._distances(values), kind="stable")[:NEAREST]))
        log_per, loss = np.log(np.maximum(self.table.per[like], 1e-3)), self.table.loss[like]
        if not np.isfinite(log_per[-1]):
            return Training(self.table.steps, self.table.per[like], loss)
        end = math.log(self.truth(values)) + self.noise * generator.normal()
        fallen = np.clip(
            log_per / min(log_per[-1], -0.05), 0, 1
        )  # how far it is on the way from PER 1 to its end
        shift = (end - log_per[-1]) * fallen
        per = np.round(np.exp(log_per + shift), DIGITS)
        return Training(self.table.steps, per, loss * np.exp(shift))


def surrogate_of(name: str) -> Surrogate:
    """With the stored parameters of the kernel."""
    stored = json.loads((HERE / f"surrogate_{name}.json").read_text())
    return Surrogate(load_table(name), np.array(stored["theta"]))


def seed_noise(table: Table) -> float:
    """Standard deviation of log PER between seeds of one configuration, of those that learn."""
    found: dict[int, list[float]] = {}
    for group, per in zip(table.groups, table.final, strict=True):
        found.setdefault(group, []).append(math.log(max(per, 1e-3)))
    pairs = [
        values for values in found.values() if len(values) > 1 and min(values) < math.log(LEARNS)
    ]
    return float(np.sqrt(np.mean([np.var(values, ddof=1) for values in pairs]))) if pairs else 0.05


def errors(table: Table, theta: Array, folds: int = 10) -> dict[str, float]:
    """Of configurations left out (the kernel's parameters are from all): the error of PER, ranks, the error of a drawn curve."""
    predicted, drawn = np.zeros(len(table.params)), np.full_like(table.per, np.nan)
    for fit, held in GroupKFold(folds).split(table.per, groups=table.groups):
        part = Table(table.spec, tuple(table.params[row] for row in fit), tuple(table.parts[row] for row in fit), table.steps,
                     table.per[fit], table.loss[fit])  # fmt: skip
        surrogate = Surrogate(part, theta)
        for row in held:
            predicted[row] = surrogate.truth(table.params[row])
            drawn[row] = surrogate.training(table.params[row], int(row)).per
    learns, good = table.final < LEARNS, table.final <= np.quantile(table.final, 0.25)
    error = np.expm1(np.abs(np.log(predicted) - np.log(table.final)))
    return {
        "median error of PER where it learns": float(np.median(error[learns])),
        "median error of PER, best quarter": float(np.median(error[good])),
        "rank correlation": float(spearmanr(predicted, table.final).statistic),
        "rank correlation, best quarter": float(
            spearmanr(predicted[good], table.final[good]).statistic
        ),
        "median error of a curve's points": float(np.nanmedian(np.abs(drawn - table.per)[learns])),
        "SD between seeds, of log PER": seed_noise(table),
    }


class _Apart(Cube):
    """Without the last feature, the size of a step."""

    def features(self, points_NP: Array) -> Array:
        features_NF: Array = super().features(points_NP)[:, :-1]
        return features_NF


def policy_ranks(table: Table, shown: int = 45, times: int = 12) -> dict[str, float]:
    """Rank correlation, on the trainings themselves, of what the policy's own model expects of those it was not shown: it sees
    `shown` configurations, drawn anew each time.
    """
    first = np.unique(table.groups)
    found: dict[str, list[float]] = {}
    for seed in range(times):
        some = np.random.default_rng(seed).choice(first, shown, replace=False)
        rest = np.setdiff1d(first, some)
        seen = [Seen(int(row), table.params[row], float(table.final[row])) for row in some]
        for what, cube in (("with", Cube(table.spec)), ("without", _Apart(table.spec))):
            expected = Model(cube, seen).expected(
                np.array([cube.point(table.params[row]) for row in rest])
            )
            rank = spearmanr(expected, table.final[rest]).statistic
            found.setdefault(
                f"rank correlation of the policy's model, {what} the size of a step", []
            ).append(float(rank))
    return {what: float(np.mean(ranks)) for what, ranks in found.items()}


def early(table: Table) -> list[str]:
    """What an evaluation says of the PER at the end: rank correlation (Spearman) of PER and loss, over all trainings and the best
    third, a row a share of the steps.
    """
    whole = np.isfinite(table.per).all(axis=1)
    best = whole & (table.final <= np.quantile(table.final[whole], 1 / 3))
    rows = ["share of the steps: PER of all, of the best third; loss of all, of the best third"]
    for share in (0.05, 0.1, 0.15, 0.3, 0.4, 0.5, 0.6, 0.75):
        point = math.ceil(share * table.per.shape[1]) - 1
        ranks = [
            spearmanr(values[some, point], table.final[some]).statistic
            for values in (table.per, table.loss)
            for some in (whole, best)
        ]
        rows.append(f"{100 * share:.0f} %: {' '.join(f'{rank:.2f}' for rank in ranks)}")
    return rows


# ---- a search


class Search(Protocol):
    """What a worker asks of a study. The real Study and Optuna's memory both give it."""

    def ask(self, curves: Curves) -> tuple[int, dict[str, Any]]:
        """A new trial: its number and values. curves: of those before it."""

    def report(self, number: int, evaluation: Point) -> bool:
        """True: the study's own rule ends the trial."""

    def end(self, number: int, per: float | None, stop: Stop | None) -> None:
        """per: complete. stop: a rule of ours."""


class Rules(Protocol):
    """What decides while trials run: `stopping` and `policy` of ours, or nothing (Optuna's pruners are in the search)."""

    def judge(self, number: int, curves: Curves) -> Stop | str | None:
        """After an evaluation of a trial. Stop: for good. "pause": perhaps to go on later."""

    def resume(self, paused: Curves, curves: Curves) -> int | None:
        """Which paused trial goes on; None: take a new one."""


@dataclass
class Trace:
    """A trial of a simulated search."""

    number: int
    values: dict[str, Any]
    training: Training
    truth: float
    curve: list[Point] = field(default_factory=list)
    seconds: float = 0.0
    ended: float = math.inf  # GPU-seconds of the search
    state: str = "running"


def simulate(surrogate: Surrogate, search: Search, rules: Rules, seed: int, horizon: float, workers: int = 4,
             goal: float = 0.0, longest: float = 0.0) -> list[Trace]:  # fmt: skip
    """All trials begun before `horizon` GPU-seconds. A worker takes its next trial when its last one ends or is paused.

    After the horizon it goes on until `longest`, while the PER that is expected of the configuration it would name is above `goal`.
    """
    traces: dict[int, Trace] = {}
    queue: list[tuple[float, int, int]] = []  # when (GPU-seconds), the trial, its next point
    every = surrogate.spec.base["evaluate_every"]
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
    lowest, named = math.inf, math.inf
    while queue and queue[0][0] <= (horizon if named <= goal else max(horizon, longest)):
        now, number, point = heapq.heappop(queue)
        trace = traces[number]
        trace.seconds += cost / workers
        state = _advance(search, rules, traces, trace, point)
        if state == "running":
            heapq.heappush(queue, (now + cost, number, point + 1))
            continue
        trace.state, trace.ended = state, now
        if state == "complete" and trace.curve[-1].value < lowest:
            lowest, named = trace.curve[-1].value, trace.truth
        begin(now)
    return list(traces.values())


def _advance(
    search: Search, rules: Rules, traces: Mapping[int, Trace], trace: Trace, point: int
) -> str:
    """The trial's state after its next evaluation."""
    evaluation = trace.training.evaluation(point)
    if stop := not_finite(evaluation, PER):
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
    print(f"{len(table.params)} trainings of {len(set(table.groups))} configurations; best measured {table.final.min():.3f}, "
          f"expected {surrogate.best:.3f}")  # fmt: skip
    for name, value in (errors(table, surrogate.theta) | policy_ranks(table)).items():
        print(f"{name:72} {value:.3f}")
    print("\n".join(early(table)))


if __name__ == "__main__":
    main()
