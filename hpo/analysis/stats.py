"""How sure a score and a difference of two scores are: intervals over training seeds and items, a permutation test, Holm.

Everything takes Scores of the same items (sentences), one per training seed. Resampling uses fixed random numbers, so the same
scores give the same interval. The resampling weights are kept, because a report asks for many intervals on one partition.
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
FLIPS = 4999  # with the observed one 5,000, so the smallest p is 0.0002
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Comparison:
    """Value of a minus value of b. The interval has seeds and sentences in it, p the sentences alone."""

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
    """The interval of the mean value over seeds, for new seeds and new sentences; of one score: for new sentences. None: of one
    score of one item nothing is known.

    scores: one per training seed, of the same sentences. A hierarchical bootstrap, of which the outer level is not resampled:
    sentences are drawn anew (the same for all seeds, ratio of sums), and a normal deviation with the standard error
    over seeds, which has the factor S / (S - 1) that resampling S seeds lacks, is added. All is widened by Student's t
    over the normal quantile with Welch-Satterthwaite's degrees of freedom. A percentile bootstrap of 3 to 5 seeds is far too narrow
    (Hesterberg 2015, "What teachers should know about the bootstrap", 3.2 and 4.1, has both corrections). The noise that is of
    one seed on one sentence is in both parts, so the interval is rather too wide than too narrow.
    """
    errors_SN, lengths_N = _matrix(scores)
    value = float(errors_SN.sum() / (len(scores) * lengths_N.sum()))
    low, high = _interval(errors_SN.mean(axis=0), [errors_SN], lengths_N, level, seed)
    if len(scores) == len(lengths_N) == 1:
        return None
    return _within(metric, value + low, value + high)


def _within(metric: Metric, low: float, high: float) -> tuple[float, float]:
    """Cut at the metric's bounds. An error rate has none above: with insertions it exceeds 1."""
    if not metric.bounded:
        return low, high
    return max(0.0, low), high if metric.direction == "minimize" else min(1.0, high)


def compare(
    a: Sequence[Score], b: Sequence[Score], level: float = 0.95, seed: int = 0
) -> Comparison:
    """Value of a minus value of b, each the mean over its seeds, paired over sentences.

    The interval is as score_interval's: the same sentences are drawn for both sides, and the seeds of each
    side add their deviations. With one score on a side its seeds are not in it: then it is about that trained decoder.

    p is of the two-sided paired permutation test over sentences: under the null a sentence's errors (averaged over seeds) may
    as well be of the other side, so the signs of the differences are flipped at random (FLIPS times; add-one, Phipson &
    Smyth 2010). It says whether THESE trained decoders differ on sentences like these. It does not know that
    other seeds would give other decoders: where seeds matter it is too small, and the interval is to be believed.
    Of one item, as where only a single number is known of a training, p is of Welch's t test over seeds.
    """
    errors_a, lengths_N = _matrix(a)
    errors_b, lengths_b = _matrix(b)
    if not np.array_equal(lengths_N, lengths_b):
        raise ValueError("scores of different sentences cannot be compared")
    apart_N = errors_a.mean(axis=0) - errors_b.mean(axis=0)
    difference = float(apart_N.sum() / lengths_N.sum())
    low, high = _interval(apart_N, [errors_a, errors_b], lengths_N, level, seed)
    if len(lengths_N) == 1:
        return Comparison(
            difference,
            (difference + low, difference + high),
            _welch(errors_a[:, 0], errors_b[:, 0]),
        )
    whole_N = len(b) * errors_a.sum(axis=0) - len(a) * errors_b.sum(
        axis=0
    )  # of integers sums are exact and ties are ties
    p = (1 + _as_far_apart(whole_N, seed)) / (1 + FLIPS)
    return Comparison(difference, (difference + low, difference + high), p)


def _welch(values_a: Array, values_b: Array) -> float:
    """p of Welch's t test, two-sided; 1 where a side has one seed, of which nothing is known."""
    if min(len(values_a), len(values_b)) < 2:
        return 1.0
    difference = abs(float(values_a.mean() - values_b.mean()))
    variances = [float(np.var(values, ddof=1)) / len(values) for values in (values_a, values_b)]
    if sum(variances) == 0:
        return 0.0 if difference else 1.0
    squares = sum(
        variance**2 / (len(values) - 1)
        for variance, values in zip(variances, (values_a, values_b), strict=True)
    )
    return 2 * float(t.sf(difference / math.sqrt(sum(variances)), sum(variances) ** 2 / squares))


def _as_far_apart(apart_N: Array, seed: int) -> int:
    """How many of FLIPS random choices of signs give a sum as far from 0 as the one observed."""
    signs = _signs(len(apart_N), seed)
    if np.array_equal(apart_N, np.round(apart_N)):
        flipped = np.abs(_times(signs, apart_N.astype(np.float32)))
        return int((flipped >= abs(apart_N.sum())).sum())
    flipped = np.abs(_times(signs, apart_N))
    observed = abs(float(apart_N.sum()))
    return int((flipped >= observed - 1e-9 * max(1.0, observed)).sum())


def holm(p: Sequence[float]) -> list[float]:
    """The p-values adjusted for their number (Holm 1979), in their order."""
    adjusted = [0.0] * len(p)
    highest = 0.0
    for rank, index in enumerate(sorted(range(len(p)), key=lambda index: p[index])):
        highest = max(highest, min(1.0, p[index] * (len(p) - rank)))
        adjusted[index] = highest
    return adjusted


def seeds_to_separate(a: Sequence[Score], b: Sequence[Score], level: float = 0.95) -> int | None:
    """Roughly how many seeds a side would bring 0 out of the interval of a difference as large as this one.

    By the normal approximation. None: no number would, because the sentences are too few. Both sides need 2 scores or more.
    """
    errors_a, lengths_N = _matrix(a)
    errors_b, _ = _matrix(b)
    apart_N = errors_a.mean(axis=0) - errors_b.mean(axis=0)
    difference = float(apart_N.sum() / lengths_N.sum())
    of_seeds = sum(
        float(np.var(errors.sum(axis=1) / lengths_N.sum(), ddof=1))
        for errors in (errors_a, errors_b)
    )
    if len(lengths_N) == 1:
        return _seeds_for(difference, of_seeds, 0.0, level)
    residuals_N = (apart_N - difference * lengths_N) / lengths_N.mean()
    noise_N = sum(
        float(np.var(errors - errors.mean(axis=0), axis=0, ddof=1).mean()) / len(errors)
        for errors in (errors_a, errors_b)
    )
    of_sentences = max(
        0.0, float(np.var(residuals_N, ddof=1)) - noise_N / lengths_N.mean() ** 2
    ) / len(lengths_N)
    return _seeds_for(difference, of_seeds, of_sentences, level)


def _seeds_for(difference: float, of_seeds: float, of_sentences: float, level: float) -> int | None:
    left = (difference / norm.ppf((1 + level) / 2)) ** 2 - of_sentences
    return None if left <= 0 else max(2, math.ceil(of_seeds / left))


def _matrix(scores: Sequence[Score]) -> tuple[Array, Array]:
    """(errors_SN: a row per seed, lengths_N)."""
    if len({score.lengths for score in scores}) != 1:
        raise ValueError("scores of different sentences, or none")
    return np.array([score.errors for score in scores], dtype=float), np.array(
        scores[0].lengths, dtype=float
    )


def _interval(
    errors_N: Array, sides: list[Array], lengths_N: Array, level: float, seed: int
) -> tuple[float, float]:
    """Below and above a value or a difference of values. errors_N: seed-averaged; sides: the errors_SN that it is made of."""
    sentences = len(lengths_N)
    weights_RN = _weights(sentences, seed)
    deviations_R = (
        _times(weights_RN, errors_N) / _times(weights_RN, lengths_N)
        - errors_N.sum() / lengths_N.sum()
    )
    deviations_R = deviations_R * math.sqrt(sentences / max(1, sentences - 1))
    variances = [
        (float(deviations_R.var()), max(1, sentences - 1))
    ]  # with their degrees of freedom
    for side, errors_SN in enumerate(sides):
        if len(errors_SN) > 1:  # of one seed nothing is known
            variance = float(np.var(errors_SN.sum(axis=1) / lengths_N.sum(), ddof=1)) / len(
                errors_SN
            )
            deviations_R = deviations_R + math.sqrt(variance) * _normal(seed, side)
            variances.append((variance, len(errors_SN) - 1))
    total, squares = (
        sum(variance for variance, _ in variances),
        sum(variance**2 / freedom for variance, freedom in variances),
    )
    tail = (1 + level) / 2
    widened = float(t.ppf(tail, total**2 / squares) / norm.ppf(tail)) if squares else 1.0
    low, high = np.quantile(deviations_R, [1 - tail, tail])
    return widened * float(low), widened * float(high)


def _times(matrix: NDArray[Any], vector: NDArray[Any]) -> NDArray[Any]:
    """matrix @ vector without BLAS, whose threads wait for each other for long where trainings keep the cores busy."""
    return np.asarray(np.einsum("rn,n->r", matrix, vector))


@lru_cache(maxsize=2)
def _weights(sentences: int, seed: int) -> Array:
    """How often each sentence is in each resample."""
    drawn = np.random.default_rng([seed, 0]).integers(sentences, size=(RESAMPLES, sentences))
    drawn += sentences * np.arange(RESAMPLES)[:, None]
    return (
        np.bincount(drawn.ravel(), minlength=RESAMPLES * sentences)
        .reshape(RESAMPLES, sentences)
        .astype(float)
    )


@lru_cache(maxsize=2)
def _normal(seed: int, side: int) -> Array:
    """Evenly spaced quantiles in random order: less noise than draws."""
    quantiles = norm.ppf((np.arange(RESAMPLES) + 0.5) / RESAMPLES)
    return np.asarray(np.random.default_rng([seed, 1, side]).permutation(quantiles))


@lru_cache(maxsize=2)
def _signs(sentences: int, seed: int) -> NDArray[np.float32]:
    return np.random.default_rng([seed, 2]).choice(
        np.array([-1, 1], dtype=np.float32), size=(FLIPS, sentences)
    )
