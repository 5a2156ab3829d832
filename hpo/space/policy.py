"""The configuration of a new trial by a Gaussian process of the metric over the space. Values in, values out.

`gp` draws the configuration with the largest expected improvement. A draw costs more than TPE's
(0.1 to 2 s of a CPU) and far less than a training. benchmarks/search compares the policies;
README, "Policies", has the outcome.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hpo.space.cube import Array, Cube
from hpo.space.spec import StudySpec
from hpo.trainer import Metric

CANDIDATES = 2000  # half of them anywhere, half near the best trials
CLIMBS = 3  # times that a quarter as many are drawn near the best of them
BEST = 5  # trials near which candidates are
SPREADS = (0.03, 0.1, 0.2)  # how near, as SD in the unit cube
JUMP = 0.06  # chance that a coordinate of such a candidate is anywhere
WORST = 0.6  # quantile of the trials: what is worse counts as that, for how bad a bad one is says nothing about the best
FITTED = 200  # trials that the kernel's parameters are fitted to, at most
KNOWN = 1000  # trials that the process knows, at most: it takes their number to the third power
ITERATIONS = 15  # of that fit
LOWEST = 1e-3  # distance from a perfect score, of a bounded metric, below which all are equal
# In units of the cube, and of the variance of the outcomes.
KERNEL = {"lengths": (0.2, 30.0), "scale": (0.1, 20.0), "noise": (5e-3, 0.5)}


@dataclass(frozen=True)
class Seen:
    """A trial as a policy sees it: its number, its values and the metric's value at the end.

    diverged: or cannot be trained; it counts as the worst there is. None and not diverged: it has not ended.
    """

    number: int
    values: Mapping[str, Any]
    value: float | None
    diverged: bool = False

    @property
    def ended(self) -> bool:
        return self.value is not None or self.diverged


def propose(
    spec: StudySpec,
    seen: Sequence[Seen],
    seed: int,
    number: int,
    fixed: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The parameters of trial `number`. fixed: those that it has in any case.

    Before `startup_trials` have ended it is a point of a scrambled Sobol sequence, the same for the
    same seed.
    """
    cube = Cube(spec)
    held = fixed or {}
    ended = sum(trial.ended for trial in seen)
    if ended < spec.sampler.startup_trials:
        point_P = sobol(len(cube.names), seed, number)
        return cube.values(_with(cube, point_P[None], held)[0])
    generator = np.random.default_rng([seed, number])
    model = Model(cube, seen)
    points_NP = _with(cube, model.candidates(CANDIDATES, generator), held)
    gains_N = model.gains(points_NP)
    for _ in range(CLIMBS):
        best_NP = points_NP[np.argsort(-gains_N)[:BEST]]
        near_NP = _with(cube, model.near(best_NP, CANDIDATES // 4, generator), held)
        points_NP = np.concatenate([best_NP, near_NP])
        gains_N = model.gains(points_NP)
    return cube.values(points_NP[int(np.argmax(gains_N))])


def sobol(dimensions: int, seed: int, number: int) -> Array:
    from scipy.stats import qmc

    sequence = qmc.Sobol(dimensions, rng=np.random.default_rng(seed))
    point: Array = (sequence.fast_forward(number) if number else sequence).random(1)[0]
    return point


def _with(cube: Cube, points_NP: Array, fixed: Mapping[str, Any]) -> Array:
    held_P = cube.point(fixed)
    for index, name in enumerate(cube.names):
        if name in fixed:
            points_NP[:, index] = held_P[index]
    return points_NP


def costs(seen: Sequence[Seen], metric: Metric) -> list[float]:
    """What is to be made small, of trials that have ended: of a bounded metric the distance from a perfect score, of another
    the value itself or its negative. A diverged trial costs as much as the worst there is.
    """
    known = [_cost(trial.value, metric) for trial in seen if trial.value is not None]
    worst = 1.0 if metric.bounded else max(known, default=0.0)
    return [worst if trial.value is None else _cost(trial.value, metric) for trial in seen]


def _cost(value: float, metric: Metric) -> float:
    if metric.bounded and metric.direction == "maximize":
        return 1 - value
    return metric.sign * value


class Model:
    """A Gaussian process of what trials cost: of a bounded metric the logarithm of its distance from a perfect score.

    Trials that run are believed to end where it expects them to.
    """

    def __init__(self, cube: Cube, seen: Sequence[Seen]):
        metric = cube.spec.metric
        self._logarithmic = metric.bounded
        ended = [trial for trial in seen if trial.ended]
        ranked = sorted(
            zip(costs(ended, metric), ended, strict=True),
            key=lambda pair: (pair[0], pair[1].number),
        )
        if len(ranked) > KNOWN:  # the best half of them, and evenly what is left
            rest = ranked[KNOWN // 2 :]
            ranked = ranked[: KNOWN // 2] + rest[:: -(-len(rest) // (KNOWN // 2))]
        ended = [trial for _, trial in ranked]
        self.cube = cube
        self._points_NP = np.array([cube.point(trial.values) for trial in ended])
        outcomes_N = np.array([cost for cost, _ in ranked])
        if self._logarithmic:
            outcomes_N = np.log(np.maximum(outcomes_N, LOWEST))
        outcomes_N = np.minimum(outcomes_N, np.quantile(outcomes_N, WORST))
        self._mean, self._scale = float(outcomes_N.mean()), float(outcomes_N.std()) or 1.0
        y_N = (outcomes_N - self._mean) / self._scale
        x_NF = cube.features(self._points_NP)
        few = np.unique(np.linspace(0, len(ended) - 1, min(FITTED, len(ended))).astype(int))
        kernel = _process(None, x_NF[few], y_N[few]).kernel_
        self._process = _process(kernel, x_NF, y_N)
        self.noise = float(kernel.k2.noise_level)
        self._lowest = float(np.min(self._process.predict(x_NF)))
        if running := sorted(
            (trial for trial in seen if not trial.ended), key=lambda trial: trial.number
        ):
            new_NF = cube.features(np.array([cube.point(trial.values) for trial in running]))
            believed_N = np.concatenate([y_N, self._process.predict(new_NF)])
            self._process = _process(kernel, np.concatenate([x_NF, new_NF]), believed_N)

    def candidates(self, count: int, generator: np.random.Generator) -> Array:
        """Points that may be good: anywhere, and near the best trials."""
        anywhere_NP = generator.random((count // 2, len(self.cube.names)))
        return np.concatenate(
            [anywhere_NP, self.near(self._points_NP[:BEST], count - count // 2, generator)]
        )

    def near(self, points_NP: Array, count: int, generator: np.random.Generator) -> Array:
        """Points near these, each in turn."""
        index_N = np.arange(count)
        near_NP = points_NP[index_N % len(points_NP)]
        spread_N1 = np.array(SPREADS)[index_N // BEST % len(SPREADS)][:, None]
        moves_NP = (generator.random(near_NP.shape) < 0.5) & self.cube.ranges_P
        near_NP = np.clip(
            np.where(moves_NP, near_NP + spread_N1 * generator.normal(size=near_NP.shape), near_NP),
            0,
            1,
        )
        jumps_NP: Array = np.where(
            generator.random(near_NP.shape) < JUMP, generator.random(near_NP.shape), near_NP
        )
        return jumps_NP

    def gains(self, points_NP: Array) -> Array:
        """Expected improvement: by how much the cost is expected to fall below the lowest expected one of the trials."""
        from scipy.stats import norm

        mean_N, sd_N = self._process.predict(self.cube.features(points_NP), return_std=True)
        sd_N = np.sqrt(
            np.maximum(sd_N**2 - self.noise, 1e-10)
        )  # of the expected cost: a seed's luck is no improvement
        below_N = (self._lowest - mean_N) / sd_N
        gains_N: Array = sd_N * (below_N * norm.cdf(below_N) + norm.pdf(below_N)) * self._scale
        return gains_N * self.lowest if self._logarithmic else gains_N

    def expected(self, points_NP: Array) -> Array:
        """The cost, its median."""
        expected_N: Array = (
            self._process.predict(self.cube.features(points_NP)) * self._scale + self._mean
        )
        return np.exp(np.minimum(expected_N, 0.0)) if self._logarithmic else expected_N

    @property
    def lowest(self) -> float:
        """The lowest expected cost of the trials."""
        lowest = self._lowest * self._scale + self._mean
        return math.exp(lowest) if self._logarithmic else lowest


def _process(kernel: Any, x_NF: Array, y_N: Array) -> Any:
    """Fitted to the values; None: with its kernel's parameters fitted first."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

    optimizer = _optimize if kernel is None else None
    if kernel is None:
        lengths = Matern(np.full(x_NF.shape[1], 1.5), KERNEL["lengths"], nu=2.5)
        kernel = ConstantKernel(1.0, KERNEL["scale"]) * lengths + WhiteKernel(0.05, KERNEL["noise"])
    with warnings.catch_warnings():  # of what does not matter the length goes to its bound
        warnings.simplefilter("ignore", ConvergenceWarning)
        return GaussianProcessRegressor(kernel, optimizer=optimizer).fit(x_NF, y_N)


def _optimize(objective: Any, theta: Array, bounds: Array) -> tuple[Array, float]:
    from scipy.optimize import minimize

    found = minimize(
        objective,
        theta,
        method="L-BFGS-B",
        jac=True,
        bounds=bounds,
        options={"maxiter": ITERATIONS},
    )
    return found.x, found.fun
