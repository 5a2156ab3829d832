"""A search on a table's surrogate instead of on trainings: seconds are the table's, everything else is a real search's.

The surrogate is a random forest on the table. It gives a configuration's expected PER, and its curve is the measured one of
a configuration in the same leaves, shifted so that it ends where the forest says, with noise as large as between seeds.
Trade-off: between the table's points a curve is a guess; its error, cross-validated, is printed by `python simulate.py a`.
"""

import argparse
import heapq
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr
from sklearn.ensemble import RandomForestRegressor
from sklearn.model_selection import GroupKFold

from hpo.search.sampling import seed_of
from hpo.search.spec import StudySpec
from hpo.search.stopping import Evaluation, Stop, non_finite

HERE = Path(__file__).parent
STEP_SECONDS, EVALUATION_SECONDS = 0.0166, 0.064  # of the demo's decoder on a quiet core: benchmarks/README.md, `train.py`
TREES = 200
Array = NDArray[np.float64]


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
        return [first.setdefault(json.dumps(params, sort_keys=True), row) for row, params in enumerate(self.params)]

    @property
    def final(self) -> Array:
        """PER at the end; 1 if a loss was not finite."""
        return np.where(np.isfinite(self.per[:, -1]), self.per[:, -1], 1.0)


def load_table(name: str) -> Table:
    stored = np.load(HERE / f"table_{name}.npz")
    rows, curves, fields = json.loads(str(stored["rows"])), stored["curves"].astype(float), list(stored["fields"])
    spec = StudySpec.model_validate_json(str(stored["spec"]))
    steps = np.arange(1, curves.shape[1] + 1) * float(spec.base.evaluate_every)
    return Table(spec, tuple(row["params"] for row in rows), tuple(row["part"] for row in rows), steps,
                 curves[..., fields.index("per")], curves[..., fields.index("validation_loss")])  # fmt: skip


def encode(spec: StudySpec, values: Mapping[str, Any]) -> Array:
    """Numbers as their place in the range, choices one by one; what does not exist lies outside both."""
    found: list[float] = []
    for name, parameter in spec.parameters.items():
        value = values.get(name)
        if parameter.choices is not None:
            found += [float(name in values and value == choice) for choice in parameter.choices]
        elif value is None:
            found.append(-0.5)
        else:
            assert parameter.low is not None and parameter.high is not None
            low, high, value = (math.log(x) if parameter.log else x for x in (parameter.low, parameter.high, value))
            found.append((value - low) / (high - low))
    return np.array(found)


@dataclass(frozen=True)
class Training:
    """What a training of one configuration would give. NaN: not finite from there."""

    steps: Array
    per: Array
    loss: Array

    def evaluation(self, point: int) -> Evaluation:
        return Evaluation(int(self.steps[point]), float(self.per[point]), float(self.loss[point]))


class Surrogate:
    def __init__(self, table: Table, seed: int = 0):
        self.table, self.spec = table, table.spec
        x = np.array([encode(self.spec, params) for params in table.params])
        self._y = np.log(np.maximum(table.final, 1e-3))
        forest = RandomForestRegressor(TREES, min_samples_leaf=2, max_features=0.5, oob_score=True, random_state=seed, n_jobs=1)
        forest.fit(x, self._y)
        self._trees = [tree.tree_ for tree in forest.estimators_]
        self._flatten()
        self._leaves = np.array([self._leaves_of(row) for row in x])
        counts = np.array([np.bincount(leaves, minlength=len(self._feature)) for leaves in self._leaves.T])
        self._leaf_size = counts.sum(axis=0)
        means = np.zeros(len(self._feature))
        for leaves in self._leaves.T:
            means += np.bincount(leaves, weights=self._y, minlength=len(means))
        self._leaf_mean = means / np.maximum(self._leaf_size, 1)
        self._residual = self._y - forest.oob_prediction_
        self.noise_share = seed_noise(table) / float(np.std(self._residual[table.final < 0.7]))
        self.best = min(self.truth(params) for params in table.params)

    def _flatten(self) -> None:
        """All trees in one set of arrays, so that a single configuration goes down all of them at once."""
        sizes = [tree.node_count for tree in self._trees]
        self._roots = np.cumsum([0, *sizes[:-1]])
        self._feature = np.concatenate([tree.feature for tree in self._trees])
        self._threshold = np.concatenate([tree.threshold for tree in self._trees])
        self._children = np.concatenate([
            np.stack([tree.children_left, tree.children_right], axis=1) + root
            for tree, root in zip(self._trees, self._roots, strict=True)
        ])  # fmt: skip

    def _leaves_of(self, x: Array) -> NDArray[np.int64]:
        node = self._roots.copy()
        while (inner := self._feature[node] >= 0).any():
            right = x[np.where(inner, self._feature[node], 0)].astype(np.float32) > self._threshold[node]
            node = np.where(inner, self._children[node, right.astype(int)], node)
        return node

    def truth(self, values: Mapping[str, Any]) -> float:
        """The PER that a training of this configuration is expected to end with."""
        return float(np.exp(self._leaf_mean[self._leaves_of(encode(self.spec, values))].mean()))

    def training(self, values: Mapping[str, Any], seed: int) -> Training:
        """A neighbour's curve, drawn by how often it shares a leaf, bent in log PER so that it ends where it should."""
        leaves = self._leaves_of(encode(self.spec, values))
        weight = ((self._leaves == leaves) / self._leaf_size[leaves]).mean(axis=1)
        like = int(np.random.default_rng(seed).choice(len(weight), p=weight / weight.sum()))
        log_per, loss = np.log(np.maximum(self.table.per[like], 1e-3)), self.table.loss[like]
        if not np.isfinite(log_per[-1]):
            return Training(self.table.steps, self.table.per[like], loss)
        end = float(self._leaf_mean[leaves].mean()) + self.noise_share * self._residual[like]
        fallen = np.clip(log_per / min(log_per[-1], -0.05), 0, 1)  # how far it is on the way from PER 1 to its end
        shift = (end - log_per[-1]) * fallen
        return Training(self.table.steps, np.exp(log_per + shift), loss * np.exp(shift))


def seed_noise(table: Table) -> float:
    """Standard deviation of log PER between seeds of one configuration, of those that learn."""
    found: dict[int, list[float]] = {}
    for group, per in zip(table.groups, table.final, strict=True):
        found.setdefault(group, []).append(math.log(max(per, 1e-3)))
    pairs = [values for values in found.values() if len(values) > 1 and min(values) < math.log(0.7)]
    return float(np.sqrt(np.mean([np.var(values, ddof=1) for values in pairs]))) if pairs else 0.03


def errors(table: Table, folds: int = 5) -> dict[str, float]:
    """Cross-validated: the forest's error of log PER, its rank correlation, and the error of a drawn curve at each point."""
    predicted, drawn = np.zeros(len(table.params)), np.full_like(table.per, np.nan)
    for fit, held in GroupKFold(folds).split(table.per, groups=table.groups):
        part = Table(table.spec, *(tuple(what[row] for row in fit) for what in (table.params, table.parts)), table.steps,
                     table.per[fit], table.loss[fit])  # fmt: skip
        surrogate = Surrogate(part)
        for row in held:
            predicted[row] = surrogate.truth(table.params[row])
            drawn[row] = surrogate.training(table.params[row], row).per
    learns = table.final < 0.7
    good = table.final <= np.quantile(table.final, 0.25)
    error = np.abs(np.log(predicted) - np.log(table.final))
    curve = np.abs(drawn - table.per)[learns]
    return {
        "median error of PER, learning": float(np.median(np.expm1(error[learns]))),
        "median error of PER, best quarter": float(np.median(np.expm1(error[good]))),
        "rank correlation": float(spearmanr(predicted, table.final).statistic),
        "rank correlation, best quarter": float(spearmanr(predicted[good], table.final[good]).statistic),
        "median error of a curve's points": float(np.nanmedian(curve)),
        "SD between seeds": seed_noise(table),
    }


# ---- a search


class Search(Protocol):
    """What a worker asks of a study. The real Study and Optuna's memory both give it."""

    def ask(self) -> tuple[int, dict[str, Any]]:
        """A new trial: its number and values."""

    def report(self, number: int, evaluation: Evaluation) -> bool:
        """True: the study's own rule ends the trial."""

    def end(self, number: int, per: float | None, stop: Stop | None) -> None:
        """per: complete. stop: a rule of ours."""


class Rules(Protocol):
    """What decides while trials run; `stopping` and `policy` of ours, or nothing (Optuna's pruners are in the search)."""

    def judge(self, curve: Sequence[Evaluation], others: Mapping[int, Sequence[Evaluation]]) -> Stop | str | None:
        """Stop: for good. "pause": perhaps to go on later."""

    def resume(self, paused: Mapping[int, Sequence[Evaluation]], others: Mapping[int, Sequence[Evaluation]]) -> int | None:
        """Which paused trial goes on; None: take a new one."""


@dataclass
class Trace:
    """A trial of a simulated search."""

    number: int
    values: dict[str, Any]
    training: Training
    truth: float
    curve: list[Evaluation] = field(default_factory=list)
    seconds: float = 0.0
    ended: float = math.inf  # GPU-seconds of the search
    state: str = "running"


def simulate(surrogate: Surrogate, search: Search, rules: Rules, seed: int, horizon: float, workers: int = 4) -> list[Trace]:
    """All trials begun before `horizon` GPU-seconds. A worker takes its next trial when its last one ends or is paused."""
    traces: dict[int, Trace] = {}
    queue: list[tuple[float, int, int]] = []  # when (GPU-seconds), the trial, its next point
    every = surrogate.spec.base.evaluate_every
    cost = workers * (STEP_SECONDS * every + EVALUATION_SECONDS)

    def begin(now: float) -> None:
        others = {number: trace.curve for number, trace in traces.items()}
        paused = {number: trace.curve for number, trace in traces.items() if trace.state == "paused"}
        number = rules.resume(paused, others)
        if number is None:
            number, values = search.ask()
            training = surrogate.training(values, seed_of(seed, number))
            traces[number] = Trace(number, values, training, surrogate.truth(values))
        traces[number].state = "running"
        heapq.heappush(queue, (now + cost, number, len(traces[number].curve)))

    for _ in range(workers):
        begin(0.0)
    while queue and queue[0][0] <= horizon:
        now, number, point = heapq.heappop(queue)
        trace = traces[number]
        trace.seconds += cost / workers
        state = _advance(search, rules, traces, trace, point)
        if state == "running":
            heapq.heappush(queue, (now + cost, number, point + 1))
            continue
        trace.state, trace.ended = state, now
        begin(now)
    return list(traces.values())


def _advance(search: Search, rules: Rules, traces: Mapping[int, Trace], trace: Trace, point: int) -> str:
    """The trial's state after its next evaluation."""
    evaluation = trace.training.evaluation(point)
    if not (math.isfinite(evaluation.per) and math.isfinite(evaluation.loss)):
        search.end(trace.number, None, non_finite(evaluation.step, "loss"))
        return "stopped"
    trace.curve.append(evaluation)
    ended = search.report(trace.number, evaluation)
    if point + 1 == len(trace.training.steps):
        search.end(trace.number, evaluation.per, None)
        return "complete"
    verdict = rules.judge(trace.curve, {number: other.curve for number, other in traces.items() if number != trace.number})
    if isinstance(verdict, Stop) or ended:
        search.end(trace.number, None, verdict if isinstance(verdict, Stop) else None)
        return "stopped"
    return "paused" if verdict else "running"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table")
    table = load_table(parser.parse_args().table)
    surrogate = Surrogate(table)
    print(f"{len(table.params)} trainings of {len(set(table.groups))} configurations; best measured {table.final.min():.3f}, "
          f"expected {surrogate.best:.3f}; noise as large as {surrogate.noise_share:.2f} of the forest's residuals")  # fmt: skip
    for name, value in errors(table).items():
        print(f"{name:36} {value:.3f}")


if __name__ == "__main__":
    _: Callable[..., None] = main
    main()
