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
    return [
        Point(100 * i, per, 1.0, loss)
        for i, (per, loss) in enumerate(zip(pers, losses or [1.0] * len(pers), strict=True), 1)
    ]


def first_stop(points: list[Point]) -> Stop | None:
    """As it goes live: the rule sees each prefix."""
    return next(
        (stop for n in range(len(points) + 1) if (stop := RULE.judge(points[:n], PER))), None
    )


def test_a_falling_curve_goes_on() -> None:
    assert first_stop(curve(FALLING)) is None
    assert RULE.judge([], PER) is None


def test_per_above_its_best_for_three_evaluations_stops() -> None:
    assert first_stop(curve([*FALLING, 0.26, 0.26])) is None
    stop = first_stop(curve([*FALLING, 0.26, 0.26, 0.26]))
    assert stop is not None
    assert (stop.rule, stop.cause) == ("own-past", "per")
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
def test_what_is_not_finite_stops_at_once(bad: float) -> None:
    stop = RULE.judge(curve([0.5, 0.5], [1.0, bad]), PER)
    assert stop is not None
    assert stop.cause == "non-finite"


def test_learning_to_say_nothing_first_is_no_divergence() -> None:
    """A CTC decoder often begins at 0.9, says nothing for a while (1.0), and then learns."""
    assert first_stop(curve([0.9, 1.0, 1.0, 1.0, 1.0, 0.8, 0.5])) is None


ACCURACY = Metric(name="accuracy", direction="maximize", bounded=True)
REWARD = Metric(name="reward", direction="maximize")


def test_a_metric_that_is_to_be_high_is_judged_the_other_way_round() -> None:
    rising = [1 - per for per in FALLING]
    assert RULE.judge(curve(rising), ACCURACY) is None
    stop = RULE.judge(curve([*rising, 0.74, 0.74, 0.74]), ACCURACY)
    assert stop is not None
    assert (stop.cause, stop.reason) == (
        "accuracy",
        "accuracy 0.740 at step 900, below its best 0.800 - 0.05 for 3 evaluations",
    )
    never_learned = curve([0.2, 0.1, 0.1, 0.1])
    assert RULE.judge(never_learned, ACCURACY) is None


def test_of_an_unbounded_metric_only_what_was_written_counts() -> None:
    falling = curve([100.0, 50.0, 50.0, 50.0])
    assert RULE.of(REWARD).judge(falling, REWARD) is None
    assert RULE.of(ACCURACY) == RULE
    written = OwnPast(margin=10).of(REWARD)
    stop = written.judge(falling, REWARD)
    assert stop is not None and stop.cause == "reward"
    assert written.judge(curve([100.0, 95.0, 95.0, 95.0]), REWARD) is None


def test_without_a_validation_loss_the_metric_alone_counts() -> None:
    points = [Point(step, per, 1.0) for step, per in enumerate([*FALLING, 0.26, 0.26, 0.26])]
    stop = RULE.judge(points, PER)
    assert stop is not None and stop.cause == "per"
    assert RULE.judge(points[:-1], PER) is None


def test_a_loss_below_0_that_falls_goes_on() -> None:
    """A negative log-likelihood, say."""
    assert first_stop(curve([0.5] * 4, [-0.9, -1.3, -1.7, -2.0])) is None
    stop = first_stop(curve([0.5] * 4, [-1.0, -2.0, 0.1, 0.1]))
    assert stop is not None and stop.cause == "loss"


def test_the_names_of_an_earlier_version_are_read() -> None:
    old = {"per_margin": 0.1, "per_patience": 4, "learned_per": 0.6}
    assert OwnPast.model_validate(old) == OwnPast(margin=0.1, patience=4, learned=0.6)


@given(st.lists(st.floats(0.01, 1.5), min_size=1, max_size=30), st.floats(0.01, 1.5))
def test_a_run_at_its_best_is_never_stopped(pers: list[float], loss: float) -> None:
    points = curve([*pers, min(pers)], [loss] * (len(pers) + 1))
    assert RULE.judge(points, PER) is None


# Labels from shared/data/lab_runs/README.md.
HEALTHY = {"gru_ctc_reg5", "gru_ctc_reg6", "run15_warmup_cosine_safe", "run16_3"}
DIVERGED = {"gru_ctc_reg2", "run12_baseline_hybrid", "run17_greedy_ema_fastcos"}


@pytest.mark.parametrize("run", sorted(HEALTHY | DIVERGED))
def test_real_runs_of_a_lab(shared_data: Path, run: str) -> None:
    """It stops the diverged and the degraded runs, and no healthy one."""
    rows = [
        json.loads(line)
        for line in (shared_data / "lab_runs" / run / "metrics.jsonl").read_text().splitlines()
    ]
    stop = first_stop([Point(row["step"], row["per"], 1.0, row["ctc_loss"]) for row in rows])
    assert (stop is not None) == (run in DIVERGED)
