"""The divergence rule: which curves it stops, and which it lets go on."""

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpo.curve import Point
from hpo.decoder.trainer import PER
from hpo.space.stopping import OwnPast, Stop
from hpo.trainer import Metric

RULE = OwnPast()
FALLING = [1.0, 0.6, 0.4, 0.3, 0.25, 0.2]


def curve(pers: list[float], losses: list[float] | None = None) -> list[Point]:
    """An evaluation every 100 steps, with a constant validation loss unless losses are given."""
    losses = losses or [1.0] * len(pers)
    evaluations = enumerate(zip(pers, losses, strict=True), 1)
    return [Point(100 * number, per, 1.0, loss) for number, (per, loss) in evaluations]


def first_stop(points: list[Point]) -> Stop | None:
    """What the rule decides during a training, in which it sees each prefix of the curve."""
    for count in range(len(points) + 1):
        stop = RULE.judge(points[:count], PER)
        if stop:
            return stop
    return None


def test_a_falling_curve_goes_on() -> None:
    assert first_stop(curve(FALLING)) is None
    assert RULE.judge([], PER) is None


def test_per_above_its_best_for_three_evaluations_stops() -> None:
    assert first_stop(curve([*FALLING, 0.26, 0.26])) is None
    stop = first_stop(curve([*FALLING, 0.26, 0.26, 0.26]))
    assert stop is not None
    assert stop.rule == "own-past"
    assert stop.cause == "per"
    assert "0.260 at step 900" in stop.reason
    assert "best 0.200" in stop.reason


def test_per_that_comes_back_in_between_goes_on() -> None:
    assert first_stop(curve([*FALLING, 0.26, 0.26, 0.24, 0.26, 0.26])) is None


def test_loss_above_twice_its_best_twice_in_a_row_stops() -> None:
    assert first_stop(curve([0.5] * 4, [1.0, 2.1, 2.0, 2.1])) is None
    stop = first_stop(curve([0.5] * 4, [1.0, 1.0, 2.1, 2.1]))
    assert stop is not None
    assert stop.cause == "loss"


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_at_once(bad: float) -> None:
    stop = RULE.judge(curve([0.5, 0.5], [1.0, bad]), PER)
    assert stop is not None
    assert stop.cause == "non-finite"


def test_learning_to_output_nothing_first_is_not_divergence() -> None:
    """A CTC decoder often begins at 0.9, outputs nothing for a while (1.0), and then learns."""
    assert first_stop(curve([0.9, 1.0, 1.0, 1.0, 1.0, 0.8, 0.5])) is None


ACCURACY = Metric(name="accuracy", direction="maximize", bounded=True)
REWARD = Metric(name="reward", direction="maximize")


def test_a_metric_to_maximize_is_judged_the_other_way_round() -> None:
    rising = [1 - per for per in FALLING]
    assert RULE.judge(curve(rising), ACCURACY) is None
    stop = RULE.judge(curve([*rising, 0.74, 0.74, 0.74]), ACCURACY)
    assert stop is not None
    assert stop.cause == "accuracy"
    reason = "accuracy 0.740 at step 900, below its best 0.800 - 0.05 for 3 evaluations"
    assert stop.reason == reason
    never_learned = curve([0.2, 0.1, 0.1, 0.1])
    assert RULE.judge(never_learned, ACCURACY) is None


def test_for_an_unbounded_metric_only_a_written_margin_counts() -> None:
    falling = curve([100.0, 50.0, 50.0, 50.0])
    assert RULE.of(REWARD).judge(falling, REWARD) is None
    assert RULE.of(ACCURACY) == RULE
    written = OwnPast(margin=10).of(REWARD)
    stop = written.judge(falling, REWARD)
    assert stop is not None
    assert stop.cause == "reward"
    assert written.judge(curve([100.0, 95.0, 95.0, 95.0]), REWARD) is None


def test_without_a_validation_loss_the_metric_alone_counts() -> None:
    points = [Point(step, per, 1.0) for step, per in enumerate([*FALLING, 0.26, 0.26, 0.26])]
    stop = RULE.judge(points, PER)
    assert stop is not None
    assert stop.cause == "per"
    assert RULE.judge(points[:-1], PER) is None


def test_a_loss_below_0_that_falls_goes_on() -> None:
    """Such as a negative log-likelihood."""
    assert first_stop(curve([0.5] * 4, [-0.9, -1.3, -1.7, -2.0])) is None
    stop = first_stop(curve([0.5] * 4, [-1.0, -2.0, 0.1, 0.1]))
    assert stop is not None
    assert stop.cause == "loss"


def test_the_field_names_of_an_earlier_version_are_read() -> None:
    old = {"per_margin": 0.1, "per_patience": 4, "learned_per": 0.6}
    assert OwnPast.model_validate(old) == OwnPast(margin=0.1, patience=4, learned=0.6)


@given(st.lists(st.floats(0.01, 1.5), min_size=1, max_size=30), st.floats(0.01, 1.5))
def test_a_run_at_its_best_is_never_stopped(pers: list[float], loss: float) -> None:
    points = curve([*pers, min(pers)], [loss] * (len(pers) + 1))
    assert RULE.judge(points, PER) is None


# As shared/data/lab_runs/README.md labels them.
HEALTHY = {"gru_ctc_reg5", "gru_ctc_reg6", "run15_warmup_cosine_safe", "run16_3"}
DIVERGED = {"gru_ctc_reg2", "run12_baseline_hybrid", "run17_greedy_ema_fastcos"}


@pytest.mark.parametrize("run", sorted(HEALTHY | DIVERGED))
def test_real_runs_of_a_lab(shared_data: Path, run: str) -> None:
    """The rule stops the diverged and the degraded runs, and no healthy one."""
    lines = (shared_data / "lab_runs" / run / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    stop = first_stop([Point(row["step"], row["per"], 1.0, row["ctc_loss"]) for row in rows])
    assert (stop is not None) == (run in DIVERGED)
