"""Intervals and tests on simulated scores whose true PER is known.

An interval must cover the truth as often as it says.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import pytest

from hpo.analysis.stats import compare, holm, score_interval, seeds_to_separate
from hpo.trainer import Metric, Score

DRAWS = 1000
MEAN_LENGTH = 30.0
PER = 0.2


class Simulated:
    """Sentences that differ in difficulty, seeds that differ in skill, and chance.

    The mean difficulty and the mean skill are 1.
    """

    def __init__(
        self,
        generator: np.random.Generator,
        sentences: int,
        difficulty_sd: float,
        longer_is_harder: bool = False,
    ):
        self.generator = generator
        self.lengths = generator.integers(10, 51, size=sentences)
        self.difficulty = generator.gamma(difficulty_sd**-2, difficulty_sd**2, size=sentences)
        if longer_is_harder:
            self.difficulty = self.difficulty * self.lengths / MEAN_LENGTH

    def scores(self, seeds: int, skill_sd: float, per: float = PER) -> list[Score]:
        skills = np.maximum(0, 1 + skill_sd * self.generator.standard_normal(seeds))
        errors = self.generator.poisson(per * skills[:, None] * self.difficulty * self.lengths)
        return [Score(tuple(row), tuple(self.lengths.tolist())) for row in errors.tolist()]


ERROR_RATE = Metric(name="PER", unit="percent", bounded=True)
ACCURACY = Metric(name="accuracy", direction="maximize", bounded=True)
REWARD = Metric(name="reward", direction="maximize")


def interval_of(scores: Sequence[Score], level: float = 0.95) -> tuple[float, float]:
    interval = score_interval(scores, ERROR_RATE, level)
    assert interval is not None
    return interval


def share(outcomes: Iterable[bool]) -> float:
    return float(np.mean(list(outcomes)))


def covers(interval: tuple[float, float], truth: float) -> bool:
    low, high = interval
    return low <= truth <= high


# Seeds, sentences, and the standard deviations of a sentence's difficulty and of a seed's skill.
# A skill of 0.04 with a PER of 20 % is 0.8 points.
SETTINGS = [
    (5, 240, 0.8, 0.04),
    (5, 240, 0.8, 0.15),
    (3, 100, 0.5, 0.08),
    (2, 240, 0.8, 0.05),
    (1, 240, 0.8, 0.0),
]


@pytest.mark.slow
@pytest.mark.parametrize(("seeds", "sentences", "difficulty_sd", "skill_sd"), SETTINGS)
def test_the_interval_covers_the_true_per_as_often_as_it_says(
    seeds: int, sentences: int, difficulty_sd: float, skill_sd: float
) -> None:
    generator = np.random.default_rng(1)
    intervals = []
    for _ in range(DRAWS):
        simulated = Simulated(generator, sentences, difficulty_sd)
        intervals.append(interval_of(simulated.scores(seeds, skill_sd)))
    assert 0.92 <= share(covers(interval, PER) for interval in intervals) <= 0.98


def test_per_is_a_ratio_of_sums_where_longer_sentences_are_harder() -> None:
    """The truth is E[errors] / E[length] = PER x E[length^2] / E[length]^2.

    The mean of the sentences' ratios is PER, far below it.
    """
    lengths = np.arange(10, 51)
    truth = PER * (lengths**2).mean() / lengths.mean() ** 2
    generator = np.random.default_rng(2)
    intervals = []
    for _ in range(DRAWS):
        simulated = Simulated(generator, 240, 0.5, longer_is_harder=True)
        intervals.append(interval_of(simulated.scores(5, 0.05)))
    assert 0.92 <= share(covers(interval, truth) for interval in intervals) <= 0.98
    assert share(covers(interval, PER) for interval in intervals) < 0.5


def percentile_bootstrap(
    scores: Sequence[Score], generator: np.random.Generator
) -> tuple[float, float]:
    """An interval by resampling the seeds, which score_interval does not do."""
    errors = np.array([score.errors for score in scores], dtype=float)
    per_seed = errors.sum(axis=1) / sum(scores[0].lengths)
    means = per_seed[generator.integers(len(scores), size=(500, len(scores)))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def test_a_percentile_bootstrap_of_seeds_would_be_too_narrow() -> None:
    """Which is why score_interval uses Student's t.

    Where only the seeds vary, resampling 3 of them covers the truth far too seldom.
    """
    generator = np.random.default_rng(3)
    draws = [Simulated(generator, 100, 0.01).scores(3, 0.3) for _ in range(DRAWS)]
    bootstraps = [percentile_bootstrap(scores, generator) for scores in draws]
    assert share(covers(interval, PER) for interval in bootstraps) < 0.85
    assert 0.92 <= share(covers(interval_of(scores), PER) for scores in draws) <= 0.98


@pytest.mark.slow
@pytest.mark.parametrize(("seeds_a", "seeds_b"), [(5, 5), (1, 1)])
def test_the_difference_is_covered_and_the_permutation_test_holds_its_level(
    seeds_a: int, seeds_b: int
) -> None:
    """The null hypothesis: the sides differ by chance alone, and no seed has a skill of its own."""
    generator = np.random.default_rng(4)
    comparisons = []
    for _ in range(DRAWS):
        simulated = Simulated(generator, 240, 0.8)
        comparisons.append(compare(simulated.scores(seeds_a, 0.0), simulated.scores(seeds_b, 0.0)))
    assert 0.03 <= share(comparison.p <= 0.05 for comparison in comparisons) <= 0.07
    assert share(comparison.decided for comparison in comparisons) <= 0.07


def test_the_interval_of_a_difference_includes_the_seeds_and_p_does_not() -> None:
    """With seeds that differ by 10 %, p rejects far too often and the interval does not."""
    generator = np.random.default_rng(5)
    comparisons = []
    for _ in range(300):
        simulated = Simulated(generator, 240, 0.8)
        comparisons.append(compare(simulated.scores(3, 0.1), simulated.scores(3, 0.1)))
    assert share(comparison.p <= 0.05 for comparison in comparisons) > 0.15
    assert share(comparison.decided for comparison in comparisons) <= 0.07


def test_a_real_difference_is_found_and_its_interval_covers_it() -> None:
    generator = np.random.default_rng(6)
    comparisons = []
    for _ in range(300):
        simulated = Simulated(generator, 240, 0.5)
        worse = simulated.scores(5, 0.03, per=0.25)
        better = simulated.scores(5, 0.03, per=0.2)
        comparisons.append(compare(worse, better))
    decided = [comparison for comparison in comparisons if comparison.decided]
    assert sum(comparison.difference > 0 for comparison in decided) / len(comparisons) > 0.95
    assert share(comparison.p < 0.01 for comparison in comparisons) > 0.95
    assert 0.92 <= share(covers(comparison.interval, 0.05) for comparison in comparisons) <= 0.99


def test_equal_scores_do_not_differ() -> None:
    scores = Simulated(np.random.default_rng(7), 50, 0.5).scores(2, 0.1)
    comparison = compare(scores, scores)
    assert comparison.difference == 0.0
    assert comparison.p == 1.0
    assert comparison.decided is False


def test_the_same_scores_give_the_same_numbers() -> None:
    scores = Simulated(np.random.default_rng(7), 50, 0.5).scores(2, 0.1)
    assert interval_of(scores) == interval_of(scores)
    difference = scores[0].value - scores[1].value
    assert compare(scores[:1], scores[1:]).difference == pytest.approx(difference)


def test_an_interval_of_a_lower_level_is_narrower() -> None:
    scores = Simulated(np.random.default_rng(7), 50, 0.5).scores(2, 0.1)
    outer_low, outer_high = interval_of(scores)
    low, high = interval_of(scores, level=0.5)
    assert outer_low < low < high < outer_high


def test_scores_of_different_sentences_are_refused() -> None:
    a, b = Score((1, 2), (5, 6)), Score((1, 2), (5, 7))
    with pytest.raises(ValueError, match="different sentences"):
        compare([a], [b])
    with pytest.raises(ValueError, match="different sentences"):
        interval_of([a, b])


def test_holm_adjusts_for_the_number_of_comparisons() -> None:
    """The example of R's p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm"): 0.03 0.06 0.06 0.02."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_the_number_of_seeds_that_separate_two_configurations() -> None:
    generator = np.random.default_rng(8)
    simulated = Simulated(generator, 2000, 0.1)
    needed = seeds_to_separate(simulated.scores(40, 0.1), simulated.scores(40, 0.1, per=0.23))
    # About 4, from the standard deviations of the seeds and the difference of the PERs.
    expected = 1.96**2 * (0.02**2 + 0.023**2) / 0.03**2
    assert needed is not None
    assert 0.3 * expected < needed < 3 * expected


def test_no_number_of_seeds_helps_where_the_sentences_disagree() -> None:
    lengths = (10,) * 8
    a = [Score((1, 5, 1, 5, 1, 5, 1, 5), lengths), Score((1, 5, 1, 5, 1, 5, 1, 6), lengths)]
    b = [Score((5, 1, 5, 1, 5, 1, 5, 0), lengths), Score((5, 1, 5, 1, 5, 1, 5, 1), lengths)]
    assert seeds_to_separate(a, b) is None
    assert not compare(a, b).decided


def test_intervals_end_at_the_bounds_that_a_metric_has() -> None:
    right = Score((1,) * 19 + (0,), (1,) * 20)
    low, high = score_interval([right], ACCURACY) or (0, 0)
    assert low < 0.95 < high == 1.0
    around_0 = Score((3.0, -2.0, 1.0, -1.5), (1.0,) * 4)
    low, high = score_interval([around_0], REWARD) or (0, 0)
    assert low < 0 < around_0.value < high
    more_than_all = Score((4, 1, 3), (2, 2, 2))
    low, high = interval_of([more_than_all])
    assert low < more_than_all.value < high
    assert high > 1, "insertions take an error rate above 1"


def test_a_score_of_a_single_number_has_no_interval() -> None:
    assert score_interval([Score.of(0.9)], ACCURACY) is None
    apart = compare([Score.of(0.9)], [Score.of(0.7)])
    assert apart.difference == pytest.approx(0.2)
    assert apart.p == 1.0


@pytest.mark.parametrize("items", [2, 5, 8])
def test_the_p_of_fractional_scores_is_not_smaller_than_their_number_allows(items: int) -> None:
    generator = np.random.default_rng(items)
    lengths = (1.0,) * items
    worse = Score(tuple(generator.uniform(0.5, 1, items)), lengths)
    better = Score((0.1,) * items, lengths)
    assert compare([worse], [better]).p == pytest.approx(2 / 2**items, rel=0.2)
