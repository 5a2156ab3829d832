"""The policy `gp`: a Gaussian process of the metric over the space proposes a new configuration.

Values go in and a configuration comes out: the one with the largest expected improvement. A
proposal costs more than TPE's (0.1 to 2 s of a CPU) and far less than a training.
benchmarks/search compares the policies; README, "Policies", has the outcome.
"""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hpo.space.cube import Array, Cube
from hpo.space.spec import StudySpec
from hpo.trainer import Metric

# Points among which the best is looked for: half of them anywhere, half near the best trials.
CANDIDATES = 2000
# How often a quarter as many are drawn again near the best points found so far.
CLIMBS = 3
# Trials or points that count as the best.
BEST = 5
# How near "near" is: standard deviations in the unit cube.
SPREADS = (0.03, 0.1, 0.2)
# The chance that a coordinate of a near point is drawn anywhere.
JUMP = 0.06
# Costs above this quantile are clipped to it: how bad a bad trial is says nothing about the best.
WORST = 0.6
# Trials that the parameters of the kernel are fitted to, at most, and iterations of that fit.
FITTED = 200
ITERATIONS = 15
# Trials that the process is conditioned on, at most: the time grows with their third power.
KNOWN = 1000
# For a bounded metric, distances from a perfect score below this one are not told apart.
LOWEST = 1e-3
# Bounds of the kernel's parameters, in units of the cube and of the variance of the outcomes.
KERNEL = {"lengths": (0.2, 30.0), "scale": (0.1, 20.0), "noise": (5e-3, 0.5)}


@dataclass(frozen=True)
class Observation:
    """A trial as a policy sees it: its number, its parameters and the metric's value at its end.

    diverged: the training diverged or cannot be done; it counts as the worst trial of all.
    A trial with no value that has not diverged is still running.
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
    observations: Sequence[Observation],
    seed: int,
    number: int,
    fixed: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The parameters of trial `number`.

    fixed: parameters whose values are given.
    Until `startup_trials` have ended, the proposal is a point of a scrambled Sobol sequence, which
    depends on the seed alone.
    """
    cube = Cube(spec)
    held = fixed or {}
    ended = sum(trial.ended for trial in observations)
    if ended < spec.sampler.startup_trials:
        point_P = sobol(len(cube.names), seed, number)
        return cube.values(_with_fixed(cube, point_P[None], held)[0])
    generator = np.random.default_rng([seed, number])
    model = Model(cube, observations)
    points_NP = _with_fixed(cube, model.candidates(CANDIDATES, generator), held)
    improvement_N = model.expected_improvement(points_NP)
    for _ in range(CLIMBS):
        best_NP = points_NP[np.argsort(-improvement_N)[:BEST]]
        near_NP = _with_fixed(cube, model.near(best_NP, CANDIDATES // 4, generator), held)
        points_NP = np.concatenate([best_NP, near_NP])
        improvement_N = model.expected_improvement(points_NP)
    return cube.values(points_NP[int(np.argmax(improvement_N))])


def sobol(dimensions: int, seed: int, number: int) -> Array:
    """Point `number` of the scrambled Sobol sequence of a seed."""
    from scipy.stats import qmc

    sequence = qmc.Sobol(dimensions, rng=np.random.default_rng(seed))
    if number:
        sequence.fast_forward(number)
    point_P: Array = sequence.random(1)[0]
    return point_P


def _with_fixed(cube: Cube, points_NP: Array, fixed: Mapping[str, Any]) -> Array:
    """The points, changed in place to have the fixed values."""
    fixed_P = cube.point(fixed)
    for index, name in enumerate(cube.names):
        if name in fixed:
            points_NP[:, index] = fixed_P[index]
    return points_NP


def costs(observations: Sequence[Observation], metric: Metric) -> list[float]:
    """The costs of trials that have ended, which the search makes small.

    For a bounded metric a cost is the distance from a perfect score, otherwise it is the value or,
    where higher is better, its negative. A diverged trial costs as much as the worst trial.
    """
    known = [_cost(trial.value, metric) for trial in observations if trial.value is not None]
    worst = 1.0 if metric.bounded else max(known, default=0.0)
    return [worst if trial.value is None else _cost(trial.value, metric) for trial in observations]


def _cost(value: float, metric: Metric) -> float:
    if metric.bounded and metric.direction == "maximize":
        return 1 - value
    return metric.sign * value


def _ranked(observations: Sequence[Observation], metric: Metric) -> list[tuple[float, Observation]]:
    """(cost, trial) of the trials that have ended, the cheapest first.

    More than KNOWN are thinned out: the best KNOWN / 2 stay, and of the others evenly as many.
    """
    ended = [trial for trial in observations if trial.ended]
    ranked = sorted(
        zip(costs(ended, metric), ended, strict=True),
        key=lambda pair: (pair[0], pair[1].number),
    )
    if len(ranked) <= KNOWN:
        return ranked
    half = KNOWN // 2
    others = ranked[half:]
    stride = math.ceil(len(others) / half)
    return ranked[:half] + others[::stride]


class Model:
    """A Gaussian process of the costs of trials; for a bounded metric, of their logarithms.

    Running trials are imputed with the cost that the process expects (kriging believer).
    points_NP: the trials that have ended, the best first.
    """

    def __init__(self, cube: Cube, observations: Sequence[Observation]):
        self.cube = cube
        metric = cube.spec.metric
        self._logarithmic = metric.bounded
        ranked = _ranked(observations, metric)
        self.points_NP = np.array([cube.point(trial.values) for _, trial in ranked])
        outcomes_N = np.array([cost for cost, _ in ranked])
        if self._logarithmic:
            outcomes_N = np.log(np.maximum(outcomes_N, LOWEST))
        outcomes_N = np.minimum(outcomes_N, np.quantile(outcomes_N, WORST))
        self._mean = float(outcomes_N.mean())
        self._scale = float(outcomes_N.std()) or 1.0
        y_N = (outcomes_N - self._mean) / self._scale
        x_NF = cube.features(self.points_NP)
        kernel = _fitted_kernel(x_NF, y_N)
        self.noise = float(kernel.k2.noise_level)
        self._process = _process(kernel, x_NF, y_N)
        self._lowest = float(np.min(self._process.predict(x_NF)))
        running = [trial for trial in observations if not trial.ended]
        if running:
            running.sort(key=lambda trial: trial.number)
            running_NP = np.array([cube.point(trial.values) for trial in running])
            running_NF = cube.features(running_NP)
            y_N = np.concatenate([y_N, self._process.predict(running_NF)])
            x_NF = np.concatenate([x_NF, running_NF])
            self._process = _process(kernel, x_NF, y_N)

    def candidates(self, count: int, generator: np.random.Generator) -> Array:
        """Points that may be good: half of them anywhere, half near the best trials."""
        anywhere_NP = generator.random((count // 2, len(self.cube.names)))
        near_NP = self.near(self.points_NP[:BEST], count - count // 2, generator)
        return np.concatenate([anywhere_NP, near_NP])

    def near(self, points_NP: Array, count: int, generator: np.random.Generator) -> Array:
        """`count` points near the given ones, each of which is used in turn."""
        index_N = np.arange(count)
        origin_NP = points_NP[index_N % len(points_NP)]
        spread_N1 = np.array(SPREADS)[index_N // BEST % len(SPREADS)][:, None]
        moves_NP = (generator.random(origin_NP.shape) < 0.5) & self.cube.ranges_P
        moved_NP = origin_NP + spread_N1 * generator.normal(size=origin_NP.shape)
        near_NP = np.clip(np.where(moves_NP, moved_NP, origin_NP), 0, 1)
        jumps_NP = generator.random(near_NP.shape) < JUMP
        anywhere_NP = generator.random(near_NP.shape)
        drawn_NP: Array = np.where(jumps_NP, anywhere_NP, near_NP)
        return drawn_NP

    def expected_improvement(self, points_NP: Array) -> Array:
        """By how much the cost is expected to fall below the trials' lowest expected cost."""
        from scipy.stats import norm

        mean_N, sd_N = self._process.predict(self.cube.features(points_NP), return_std=True)
        # Of the expected cost, without the noise: a lucky seed is no improvement.
        sd_N = np.sqrt(np.maximum(sd_N**2 - self.noise, 1e-10))
        below_N = (self._lowest - mean_N) / sd_N
        standardized_N = sd_N * (below_N * norm.cdf(below_N) + norm.pdf(below_N))
        improvement_N: Array = standardized_N * self._scale
        return improvement_N * self.lowest if self._logarithmic else improvement_N

    def expected(self, points_NP: Array) -> Array:
        """The expected cost at each point; for a bounded metric its median."""
        standardized_N = self._process.predict(self.cube.features(points_NP))
        expected_N: Array = standardized_N * self._scale + self._mean
        return np.exp(np.minimum(expected_N, 0.0)) if self._logarithmic else expected_N

    @property
    def lowest(self) -> float:
        """The lowest expected cost of the trials."""
        lowest = self._lowest * self._scale + self._mean
        return math.exp(lowest) if self._logarithmic else lowest


def _fitted_kernel(x_NF: Array, y_N: Array) -> Any:
    """A kernel whose parameters are fitted to at most FITTED of the trials, evenly chosen."""
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

    chosen = np.linspace(0, len(y_N) - 1, min(FITTED, len(y_N)))
    chosen_N = np.unique(chosen.astype(int))
    lengths = Matern(np.full(x_NF.shape[1], 1.5), KERNEL["lengths"], nu=2.5)
    kernel = ConstantKernel(1.0, KERNEL["scale"]) * lengths + WhiteKernel(0.05, KERNEL["noise"])
    return _process(kernel, x_NF[chosen_N], y_N[chosen_N], _optimize).kernel_


def _process(
    kernel: Any, x_NF: Array, y_N: Array, optimizer: Callable[..., Any] | None = None
) -> Any:
    """A Gaussian process of these values. optimizer: fits the parameters of the kernel first."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.gaussian_process import GaussianProcessRegressor

    with warnings.catch_warnings():
        # The length of a feature that does not matter goes to its bound.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return GaussianProcessRegressor(kernel, optimizer=optimizer).fit(x_NF, y_N)


def _optimize(objective: Any, theta: Array, bounds: Array) -> tuple[Array, float]:
    from scipy.optimize import minimize

    result = minimize(
        objective,
        theta,
        method="L-BFGS-B",
        jac=True,
        bounds=bounds,
        options={"maxiter": ITERATIONS},
    )
    return result.x, result.fun
