import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpo.search.stopping import Evaluation, OwnPast, Stop

RULE = OwnPast()
FALLING = [1.0, 0.6, 0.4, 0.3, 0.25, 0.2]


def curve(pers: list[float], losses: list[float] | None = None) -> list[Evaluation]:
    return [Evaluation(100 * i, per, loss) for i, (per, loss) in enumerate(zip(pers, losses or [1.0] * len(pers), strict=True), 1)]


def first_stop(points: list[Evaluation]) -> Stop | None:
    """As it goes live: the rule sees each prefix."""
    return next((stop for n in range(len(points) + 1) if (stop := RULE.judge(points[:n]))), None)


def test_a_falling_curve_goes_on() -> None:
    assert first_stop(curve(FALLING)) is None
    assert RULE.judge([]) is None


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
    stop = RULE.judge(curve([0.5, 0.5], [1.0, bad]))
    assert stop is not None
    assert stop.cause == "non-finite"


def test_learning_to_say_nothing_first_is_no_divergence() -> None:
    """A CTC decoder often begins at 0.9, says nothing for a while (1.0), and then learns."""
    assert first_stop(curve([0.9, 1.0, 1.0, 1.0, 1.0, 0.8, 0.5])) is None


@given(st.lists(st.floats(0.01, 1.5), min_size=1, max_size=30), st.floats(0.01, 1.5))
def test_a_run_at_its_best_is_never_stopped(pers: list[float], loss: float) -> None:
    points = curve([*pers, min(pers)], [loss] * (len(pers) + 1))
    assert RULE.judge(points) is None


# Labels from shared/data/lab_runs/README.md.
HEALTHY = {"gru_ctc_reg5", "gru_ctc_reg6", "run15_warmup_cosine_safe", "run16_3"}
DIVERGED = {"gru_ctc_reg2", "run12_baseline_hybrid", "run17_greedy_ema_fastcos"}


@pytest.mark.parametrize("run", sorted(HEALTHY | DIVERGED))
def test_real_runs_of_a_lab(shared_data: Path, run: str) -> None:
    """It stops the diverged and the degraded runs, and no healthy one."""
    rows = [json.loads(line) for line in (shared_data / "lab_runs" / run / "metrics.jsonl").read_text().splitlines()]
    stop = first_stop([Evaluation(row["step"], row["per"], row["ctc_loss"]) for row in rows])
    assert (stop is not None) == (run in DIVERGED)
