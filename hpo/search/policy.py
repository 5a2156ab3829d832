"""Which trial a free worker trains on: a parked one, or a new one and of which configuration. Values in, values out.

`gp` draws by a Gaussian process of log PER over the space: the configuration with the largest expected improvement. A draw costs
more than TPE's (0.1 to 2 s of a CPU) and far less than a training. `gp-halving`, besides, parks a trial at a rung (a share of its
steps) unless it is among the best there; it goes on from its checkpoint if it becomes one of them. So nothing that may still
win is lost, and few steps go into what does not lead. Trials are compared at equal shares of their schedules only.
benchmarks/search compares all of them; README, "Policies", has the outcome.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hpo.search.space import Array, Cube
from hpo.search.spec import Policy, StudySpec
from hpo.search.stopping import Evaluation

CANDIDATES = 2000  # half of them anywhere, half near the best trials
CLIMBS = 3  # times that a quarter as many are drawn near the best of them
BEST = 5  # trials near which candidates are
SPREADS = (0.03, 0.1, 0.2)  # how near, as SD in the unit cube
JUMP = 0.06  # chance that a coordinate of such a candidate is anywhere
WORST = 0.6  # quantile of PER: what is worse counts as that, for how bad a bad one is says nothing about the best
FITTED = 200  # trials that the kernel's parameters are fitted to, at most
KNOWN = 1000  # trials that the process knows, at most: it takes their number to the third power
ITERATIONS = 15  # of that fit
ENOUGH = 4  # trials that ended, to expect the end of another
RIDGE = 0.5
LOWEST_PER = 1e-3
KERNEL = {"lengths": (0.2, 30.0), "scale": (0.1, 20.0), "noise": (5e-3, 0.5)}  # in units of the cube, and of the variance of log PER


@dataclass(frozen=True)
class Rung:
    share: float  # of the steps
    keep: float  # share of the trials that came here and go on
    by_loss: bool  # ranked by validation loss: a CTC decoder is silent at first, so its early PER says nothing


RUNGS = {Policy.GP_HALVING: (Rung(0.1, 0.6, by_loss=True), Rung(0.6, 0.5, by_loss=False))}


@dataclass(frozen=True)
class Seen:
    """A trial as a policy sees it. per: at its end, 1 if it diverged or cannot be; None: it has not ended. rungs: its evaluation at each
    rung that it has reached.
    """

    number: int
    values: Mapping[str, Any]
    per: float | None
    rungs: tuple[Evaluation, ...] = ()
    parked: bool = False


# ---- rungs


def rung_steps(spec: StudySpec) -> tuple[int, ...]:
    """The steps of the evaluations at which trials may be parked: the first ones at or after each rung."""
    every, steps = spec.base.evaluate_every, spec.base.steps
    at = sorted({math.ceil(rung.share * steps / every) * every for rung in RUNGS.get(spec.policy, ())})
    return tuple(step for step in at if step < steps)


def why_park(spec: StudySpec, trial: Seen, others: Sequence[Seen]) -> str | None:
    """Why the trial, which has just been evaluated at the last of its rungs, should make room for another; None: it should not."""
    at = len(trial.rungs) - 1
    ranked, leading = _ranked(spec, at, [trial, *others])
    if trial.number in ranked[:leading]:
        return None
    place, share = ranked.index(trial.number) + 1, f"{100 * RUNGS[spec.policy][at].keep:.0f} %"
    return f"{place} of {len(ranked)} at step {trial.rungs[at].step}; goes on when it is among the best {share} there"


def due(spec: StudySpec, seen: Sequence[Seen]) -> list[int]:
    """The parked trials that should go on, those of the highest rung first, and of a rung the best."""
    parked = {trial.number: len(trial.rungs) - 1 for trial in seen if trial.parked}
    found: list[int] = []
    for at in reversed(range(len(RUNGS.get(spec.policy, ())))):
        ranked, leading = _ranked(spec, at, seen)
        found += [number for number in ranked[:leading] if parked.get(number) == at]
    return found


def _ranked(spec: StudySpec, at: int, seen: Sequence[Seen]) -> tuple[list[int], int]:
    """The trials that reached a rung, the best first, and how many of them may go on: one at least. Those that diverged since are
    the last, or they would hold the places of others for ever.
    """
    rung = RUNGS[spec.policy][at]
    reached = [trial for trial in seen if len(trial.rungs) > at]
    scores = sorted((trial.per == 1.0, trial.rungs[at].loss if rung.by_loss else trial.rungs[at].per, trial.number) for trial in reached)
    return [number for *_, number in scores], max(1, int(len(scores) * rung.keep))


def expected_ends(spec: StudySpec, seen: Sequence[Seen]) -> dict[int, float]:
    """PER at the end that the evaluation at its last rung lets expect, of each trial that has not ended: a ridge regression of
    log PER on the logarithms of loss and PER there, of the trials that have.
    """
    found: dict[int, float] = {}
    for at in range(len(RUNGS.get(spec.policy, ()))):
        known = [trial for trial in seen if trial.per is not None and len(trial.rungs) > at]
        asked = [trial for trial in seen if trial.per is None and len(trial.rungs) == at + 1]
        if len(known) < ENOUGH or not asked:
            continue
        ends_K = np.log([max(trial.per or 0.0, LOWEST_PER) for trial in known])
        x_K2, x_A2 = (np.log([[max(trial.rungs[at].loss, LOWEST_PER), max(trial.rungs[at].per, LOWEST_PER)] for trial in trials])
                      for trials in (known, asked))  # fmt: skip
        middle_2, spread_2 = x_K2.mean(axis=0), x_K2.std(axis=0) + LOWEST_PER
        design_K2 = (x_K2 - middle_2) / spread_2
        slope_2 = np.linalg.solve(design_K2.T @ design_K2 + RIDGE * np.eye(2), design_K2.T @ (ends_K - ends_K.mean()))
        ends_A = (x_A2 - middle_2) / spread_2 @ slope_2 + ends_K.mean()
        found |= {trial.number: math.exp(end) for trial, end in zip(asked, np.clip(ends_A, ends_K.min(), 0), strict=True)}
    return found


def with_expected(spec: StudySpec, seen: Sequence[Seen]) -> list[Seen]:
    """The trials, those that have not ended with the PER that is expected of them."""
    expected = expected_ends(spec, seen)
    return [replace(trial, per=expected.get(trial.number)) if trial.per is None else trial for trial in seen]


# ---- draws


@dataclass(frozen=True)
class Proposal:
    values: dict[str, Any]
    gain: float | None  # by how much PER is expected to fall below the best by it; None: drawn without a model


def propose(spec: StudySpec, seen: Sequence[Seen], seed: int, number: int, fixed: Mapping[str, Any] | None = None) -> Proposal:
    """The configuration of trial `number`. fixed: parameters that it has in any case.

    Before `startup_trials` have ended it is a point of a scrambled Sobol sequence, the same for the same seed.
    """
    cube, held = Cube(spec), fixed or {}
    seen = with_expected(spec, seen)
    if sum(trial.per is not None for trial in seen) < spec.sampler.startup_trials:
        return Proposal(cube.values(_with(cube, sobol(len(cube.names), seed, number)[None], held)[0]), None)
    generator = np.random.default_rng([seed, number])
    model = Model(cube, seen)
    points_NP = _with(cube, model.candidates(CANDIDATES, generator), held)
    gains_N = model.gains(points_NP)
    for _ in range(CLIMBS):
        best_NP = points_NP[np.argsort(-gains_N)[:BEST]]
        points_NP = np.concatenate([best_NP, _with(cube, model.near(best_NP, CANDIDATES // 4, generator), held)])
        gains_N = model.gains(points_NP)
    best = int(np.argmax(gains_N))
    return Proposal(cube.values(points_NP[best]), float(gains_N[best]))


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


class Model:
    """A Gaussian process of log PER. Trials that run are believed to end where it expects them to."""

    def __init__(self, cube: Cube, seen: Sequence[Seen]):
        ended = sorted((trial for trial in seen if trial.per is not None), key=lambda trial: (trial.per or 0.0, trial.number))
        if len(ended) > KNOWN:  # the best half of them, and evenly what is left
            rest = ended[KNOWN // 2 :]
            ended = ended[: KNOWN // 2] + rest[:: -(-len(rest) // (KNOWN // 2))]
        self.cube = cube
        self._points_NP = np.array([cube.point(trial.values) for trial in ended])
        log_per_N = np.log([max(trial.per or 0.0, LOWEST_PER) for trial in ended])
        log_per_N = np.minimum(log_per_N, np.quantile(log_per_N, WORST))
        self._mean, self._scale = float(log_per_N.mean()), float(log_per_N.std()) or 1.0
        y_N = (log_per_N - self._mean) / self._scale
        x_NF = cube.features(self._points_NP)
        few = np.unique(np.linspace(0, len(ended) - 1, min(FITTED, len(ended))).astype(int))
        kernel = _process(None, x_NF[few], y_N[few]).kernel_
        self._process = _process(kernel, x_NF, y_N)
        self.noise = float(kernel.k2.noise_level)
        self._lowest = float(np.min(self._process.predict(x_NF)))
        if running := sorted((trial for trial in seen if trial.per is None), key=lambda trial: trial.number):
            new_NF = cube.features(np.array([cube.point(trial.values) for trial in running]))
            believed_N = np.concatenate([y_N, self._process.predict(new_NF)])
            self._process = _process(kernel, np.concatenate([x_NF, new_NF]), believed_N)

    def candidates(self, count: int, generator: np.random.Generator) -> Array:
        """Points that may be good: anywhere, and near the best trials."""
        anywhere_NP = generator.random((count // 2, len(self.cube.names)))
        return np.concatenate([anywhere_NP, self.near(self._points_NP[:BEST], count - count // 2, generator)])

    def near(self, points_NP: Array, count: int, generator: np.random.Generator) -> Array:
        """Points near these, each in turn."""
        index_N = np.arange(count)
        near_NP = points_NP[index_N % len(points_NP)]
        spread_N1 = np.array(SPREADS)[index_N // BEST % len(SPREADS)][:, None]
        moves_NP = (generator.random(near_NP.shape) < 0.5) & self.cube.ranges_P
        near_NP = np.clip(np.where(moves_NP, near_NP + spread_N1 * generator.normal(size=near_NP.shape), near_NP), 0, 1)
        jumps_NP: Array = np.where(generator.random(near_NP.shape) < JUMP, generator.random(near_NP.shape), near_NP)
        return jumps_NP

    def gains(self, points_NP: Array) -> Array:
        """Expected improvement: by how much PER is expected to fall below the lowest expected one of the trials."""
        from scipy.stats import norm

        mean_N, sd_N = self._process.predict(self.cube.features(points_NP), return_std=True)
        sd_N = np.sqrt(np.maximum(sd_N**2 - self.noise, 1e-10))  # of the expected PER: a seed's luck is no improvement
        below_N = (self._lowest - mean_N) / sd_N
        gains_N: Array = sd_N * (below_N * norm.cdf(below_N) + norm.pdf(below_N)) * self._scale * self.best_per
        return gains_N

    def expected(self, points_NP: Array) -> Array:
        """PER, its median."""
        pers_N: Array = np.exp(np.minimum(self._process.predict(self.cube.features(points_NP)) * self._scale + self._mean, 0.0))
        return pers_N

    @property
    def best_per(self) -> float:
        """The lowest expected PER of the trials."""
        return math.exp(self._lowest * self._scale + self._mean)

    def draws(self, points_NP: Array, count: int, seed: int) -> Array:
        """(draw, point): the expected PER of each point, without a seed's luck, as `count` possible worlds have it."""
        mean_N, cov_NN = self._process.predict(self.cube.features(points_NP), return_cov=True)
        cov_NN -= self.noise * np.eye(len(points_NP))
        drawn_DN = np.random.default_rng(seed).multivariate_normal(mean_N, cov_NN, count, method="eigh", check_valid="ignore")
        pers_DN: Array = np.exp(np.minimum(drawn_DN * self._scale + self._mean, 0.0))
        return pers_DN


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

    found = minimize(objective, theta, method="L-BFGS-B", jac=True, bounds=bounds, options={"maxiter": ITERATIONS})
    return found.x, found.fun
