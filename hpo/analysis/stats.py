"""How certain a score is, and a difference of two scores: intervals, a permutation test, Holm.

All functions take scores of the same items (such as sentences), one score per training seed.
Resampling uses fixed random numbers, so the same scores always give the same interval. The random
numbers are cached, because a report asks for many intervals on one partition.

The letters that end a name are the axes of its array: S seeds, N items, R resamples.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, t

from hpo.trainer import Metric, Score

RESAMPLES = 2000
# Together with the observed signs there are 5,000, so the smallest p is 0.0002.
FLIPS = 4999
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Comparison:
    """Value of a minus value of b. The interval covers seeds and items, p covers items alone."""

    difference: float
    interval: tuple[float, float]
    p: float

    @property
    def decided(self) -> bool:
        """Whether the interval excludes 0."""
        return self.interval[0] > 0 or self.interval[1] < 0


def score_interval(
    scores: Sequence[Score], metric: Metric, level: float = 0.95, seed: int = 0
) -> tuple[float, float] | None:
    """The interval of the mean value over seeds, or None for one score of one item.

    scores: one per training seed, on the same items. With several scores the interval covers new
    seeds and new items; with one score it covers new items only. Raises ValueError if the scores
    are on different items.

    The items are bootstrapped: the same items are drawn for all seeds, and a value is a ratio of
    sums. Then the variance over seeds is added, as a normal deviation with the standard error over
    seeds; it includes the factor S / (S - 1), which resampling S seeds would miss. The result is
    widened by the ratio of Student's t to the normal quantile, with Welch-Satterthwaite degrees of
    freedom. A percentile bootstrap of 3 to 5 seeds is far too narrow; both corrections are from
    Hesterberg 2015, "What teachers should know about the bootstrap", sections 3.2 and 4.1. Noise of
    one seed on one item counts in both parts, so the interval is too wide rather than too narrow.
    """
    errors_SN, lengths_N = _matrix(scores)
    value = float(errors_SN.sum() / (len(scores) * lengths_N.sum()))
    low, high = _interval(errors_SN.mean(axis=0), [errors_SN], lengths_N, level, seed)
    if len(scores) == len(lengths_N) == 1:
        return None
    return _within_bounds(metric, value + low, value + high)


def _within_bounds(metric: Metric, low: float, high: float) -> tuple[float, float]:
    """Clip at the metric's bounds. An error rate has no upper bound: insertions take it above 1."""
    if not metric.bounded:
        return low, high
    if metric.direction == "maximize":
        high = min(1.0, high)
    return max(0.0, low), high


def compare(
    a: Sequence[Score], b: Sequence[Score], level: float = 0.95, seed: int = 0
) -> Comparison:
    """Value of a minus value of b, each the mean over its seeds, paired over items.

    Raises ValueError if the scores are on different items.

    The interval is made like that of `score_interval`: the same items are drawn for both sides, and
    the seeds of each side add their variance. A side with one score adds none; the interval is then
    about that one trained model.

    p is from the two-sided paired permutation test over items. Under the null hypothesis an item's
    errors (averaged over seeds) could equally come from the other side, so the signs of the
    differences are flipped at random (FLIPS times; add-one, Phipson & Smyth 2010). It says whether
    THESE trained models differ on items like these. It does not account for the models that other
    seeds would give: where seeds matter p is too small, and the interval is the one to trust.
    With one item, as when a training reports a single number, p is from Welch's t test over seeds.
    """
    errors_a, lengths_N = _matrix(a)
    errors_b, lengths_b = _matrix(b)
    if not np.array_equal(lengths_N, lengths_b):
        raise ValueError("scores of different sentences cannot be compared")
    apart_N = errors_a.mean(axis=0) - errors_b.mean(axis=0)
    difference = float(apart_N.sum() / lengths_N.sum())
    low, high = _interval(apart_N, [errors_a, errors_b], lengths_N, level, seed)
    interval = (difference + low, difference + high)
    if len(lengths_N) == 1:
        return Comparison(difference, interval, _welch(errors_a[:, 0], errors_b[:, 0]))
    # Not divided by the numbers of seeds: sums of integers are exact, so ties stay ties.
    scaled_N = len(b) * errors_a.sum(axis=0) - len(a) * errors_b.sum(axis=0)
    p = (1 + _extreme_flips(scaled_N, seed)) / (1 + FLIPS)
    return Comparison(difference, interval, p)


def _welch(values_a: Array, values_b: Array) -> float:
    """p of Welch's two-sided t test; 1 if a side has a single seed, whose variance is unknown."""
    seeds_a = len(values_a)
    seeds_b = len(values_b)
    if min(seeds_a, seeds_b) < 2:
        return 1.0
    difference = abs(float(values_a.mean() - values_b.mean()))
    variance_a = float(np.var(values_a, ddof=1)) / seeds_a
    variance_b = float(np.var(values_b, ddof=1)) / seeds_b
    variance = variance_a + variance_b
    if variance == 0:
        return 0.0 if difference else 1.0
    squares = variance_a**2 / (seeds_a - 1) + variance_b**2 / (seeds_b - 1)
    return 2 * float(t.sf(difference / math.sqrt(variance), variance**2 / squares))


def _extreme_flips(apart_N: Array, seed: int) -> int:
    """How many of FLIPS random choices of signs give a sum at least as far from 0 as observed."""
    signs = _signs(len(apart_N), seed)
    if np.array_equal(apart_N, np.round(apart_N)):
        flipped = np.abs(_times(signs, apart_N.astype(np.float32)))
        return int((flipped >= abs(apart_N.sum())).sum())
    flipped = np.abs(_times(signs, apart_N))
    observed = abs(float(apart_N.sum()))
    return int((flipped >= observed - 1e-9 * max(1.0, observed)).sum())


def holm(p: Sequence[float]) -> list[float]:
    """The p-values adjusted for their number (Holm 1979), in the order given."""
    adjusted = [0.0] * len(p)
    highest = 0.0
    smallest_first = sorted(range(len(p)), key=lambda index: p[index])
    for rank, index in enumerate(smallest_first):
        highest = max(highest, min(1.0, p[index] * (len(p) - rank)))
        adjusted[index] = highest
    return adjusted


def seeds_to_separate(a: Sequence[Score], b: Sequence[Score], level: float = 0.95) -> int | None:
    """Roughly how many seeds per side it takes until the interval of this difference excludes 0.

    By the normal approximation. Returns None if no number of seeds is enough, because there are too
    few items. Both sides need 2 scores or more.
    """
    errors_a, lengths_N = _matrix(a)
    errors_b, _ = _matrix(b)
    items = len(lengths_N)
    apart_N = errors_a.mean(axis=0) - errors_b.mean(axis=0)
    difference = float(apart_N.sum() / lengths_N.sum())
    of_seeds = _variance_over_seeds(errors_a, lengths_N) + _variance_over_seeds(errors_b, lengths_N)
    if items == 1:
        return _seeds_for(difference, of_seeds, 0.0, level)
    residuals_N = (apart_N - difference * lengths_N) / lengths_N.mean()
    # Seeds make the residuals vary too; that part must not count as a difference between items.
    noise = _noise_per_item(errors_a) + _noise_per_item(errors_b)
    between_items = float(np.var(residuals_N, ddof=1)) - noise / lengths_N.mean() ** 2
    of_items = max(0.0, between_items) / items
    return _seeds_for(difference, of_seeds, of_items, level)


def _variance_over_seeds(errors_SN: Array, lengths_N: Array) -> float:
    """The variance of one training's value."""
    return float(np.var(errors_SN.sum(axis=1) / lengths_N.sum(), ddof=1))


def _noise_per_item(errors_SN: Array) -> float:
    """The variance that seeds leave in an item's errors after averaging over them."""
    deviations_SN = errors_SN - errors_SN.mean(axis=0)
    return float(np.var(deviations_SN, axis=0, ddof=1).mean()) / len(errors_SN)


def _seeds_for(difference: float, of_seeds: float, of_items: float, level: float) -> int | None:
    """of_seeds, of_items: variances, of one training's value and of the mean over items."""
    variance_left: float = (difference / norm.ppf((1 + level) / 2)) ** 2 - of_items
    if variance_left <= 0:
        return None
    return max(2, math.ceil(of_seeds / variance_left))


def _matrix(scores: Sequence[Score]) -> tuple[Array, Array]:
    """(errors_SN, lengths_N). Raises ValueError if the scores are on different items."""
    if len({score.lengths for score in scores}) != 1:
        raise ValueError("scores of different sentences, or none")
    errors_SN = np.array([score.errors for score in scores], dtype=float)
    lengths_N = np.array(scores[0].lengths, dtype=float)
    return errors_SN, lengths_N


def _interval(
    errors_N: Array, sides: list[Array], lengths_N: Array, level: float, seed: int
) -> tuple[float, float]:
    """How far the interval reaches below and above a value, or a difference of values.

    errors_N: averaged over seeds. sides: the errors_SN behind them, one array per side.
    """
    items = len(lengths_N)
    weights_RN = _weights(items, seed)
    resampled_R = _times(weights_RN, errors_N) / _times(weights_RN, lengths_N)
    deviations_R = resampled_R - errors_N.sum() / lengths_N.sum()
    deviations_R = deviations_R * math.sqrt(items / max(1, items - 1))
    # Pairs of a variance and its degrees of freedom.
    variances = [(float(deviations_R.var()), max(1, items - 1))]
    for side, errors_SN in enumerate(sides):
        seeds = len(errors_SN)
        if seeds > 1:
            variance = _variance_over_seeds(errors_SN, lengths_N) / seeds
            deviations_R = deviations_R + math.sqrt(variance) * _normal(seed, side)
            variances.append((variance, seeds - 1))
    total = sum(variance for variance, _ in variances)
    squares = sum(variance**2 / freedom for variance, freedom in variances)
    tail = (1 + level) / 2
    widening = 1.0
    if squares:
        widening = float(t.ppf(tail, total**2 / squares) / norm.ppf(tail))
    low, high = np.quantile(deviations_R, [1 - tail, tail])
    return widening * float(low), widening * float(high)


def _times(matrix: NDArray[Any], vector: NDArray[Any]) -> NDArray[Any]:
    """matrix @ vector without BLAS, whose threads stall while trainings keep the cores busy."""
    return np.asarray(np.einsum("rn,n->r", matrix, vector))


@lru_cache(maxsize=2)
def _weights(items: int, seed: int) -> Array:
    """How often each resample holds each item: (RESAMPLES, items)."""
    drawn = np.random.default_rng([seed, 0]).integers(items, size=(RESAMPLES, items))
    # A range of numbers per resample, so that one call counts them all.
    drawn += items * np.arange(RESAMPLES)[:, None]
    counts = np.bincount(drawn.ravel(), minlength=RESAMPLES * items)
    return counts.reshape(RESAMPLES, items).astype(float)


@lru_cache(maxsize=2)
def _normal(seed: int, side: int) -> Array:
    """Evenly spaced normal quantiles in random order, which are less noisy than random draws."""
    quantiles = norm.ppf((np.arange(RESAMPLES) + 0.5) / RESAMPLES)
    return np.asarray(np.random.default_rng([seed, 1, side]).permutation(quantiles))


@lru_cache(maxsize=2)
def _signs(items: int, seed: int) -> NDArray[np.float32]:
    both = np.array([-1, 1], dtype=np.float32)
    return np.random.default_rng([seed, 2]).choice(both, size=(FLIPS, items))
