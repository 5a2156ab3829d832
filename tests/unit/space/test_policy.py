"""What a policy proposes, and the space as a cube."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.studies import TINY
from hypothesis import given
from hypothesis import strategies as st

from hpo.errors import SpecError
from hpo.space.cube import Cube
from hpo.space.load import find_space, load_spec
from hpo.space.policy import Model, Observation, propose
from hpo.space.spec import Policy, StudySpec

SPEC = load_spec(find_space("lr-aug"), "demo")
CUBE = Cube(SPEC)
DIMENSIONS = len(CUBE.names)


@given(st.lists(st.floats(0, 1), min_size=DIMENSIONS, max_size=DIMENSIONS))
def test_a_point_of_the_cube_is_a_configuration_and_back(coordinates: list[float]) -> None:
    values = CUBE.values(np.array(coordinates))
    assert all(SPEC.active(name, values) == (name in values) for name in CUBE.names)
    assert all(SPEC.parameters[name].contains(value) for name, value in values.items())
    again = CUBE.values(CUBE.point(values))
    assert again == pytest.approx(values)
    both = CUBE.features(np.array([coordinates, CUBE.point(values)]))
    assert np.isfinite(both).all()
    # Rounding to a whole number moves a point.
    if not any(isinstance(value, int) for value in values.values()):
        assert both[0] == pytest.approx(both[1])


def test_coordinates_of_inactive_parameters_change_nothing() -> None:
    points_NP = np.random.default_rng(0).random((40, DIMENSIONS))
    other_NP = points_NP.copy()
    for row, point in enumerate(points_NP):
        active = CUBE.values(point)
        for column, name in enumerate(CUBE.names):
            if name not in active:
                other_NP[row, column] = 1 - point[column]
    assert (points_NP != other_NP).any()
    assert np.array_equal(CUBE.features(points_NP), CUBE.features(other_NP))


def test_the_size_of_a_step_is_a_feature() -> None:
    """Ten times the learning rate with ten times eps is a step of the same size.

    Other optimizers have no eps.
    """

    def size(**values: float | str) -> float:
        named = {f"optimizer.{name}": value for name, value in values.items()}
        return float(CUBE.features(CUBE.point(named)[None])[0, -1])

    with_large_eps = size(name="adam", lr=0.0079, eps=0.0997)
    assert size(name="adam", lr=0.001, eps=0.01) == pytest.approx(with_large_eps, abs=0.02)
    assert size(name="adam", lr=0.01, eps=0.01) > size(name="adam", lr=0.001, eps=0.01)
    assert size(name="sgd", lr=0.01, momentum=0.9) > size(name="sgd", lr=0.01, momentum=0.5)


# ---- draws


def ended(numbers: Sequence[int], startup: int = 10) -> list[Observation]:
    """Ended trials with these numbers, the best of which have an lr near 0.003."""
    seen: list[Observation] = []
    for number in numbers:
        values = propose(SPEC, seen[: startup - 1], 1, number)
        seen.append(Observation(number, values, per_of(values["optimizer.lr"])))
    return seen


def per_of(lr: float) -> float:
    return min(1.0, 0.2 + 0.1 * abs(math.log(lr / 0.003)))


def test_the_first_draws_fill_the_space_and_repeat_with_their_seed() -> None:
    drawn = [propose(SPEC, [], 1, number) for number in range(32)]
    assert drawn == [propose(SPEC, [], 1, number) for number in range(32)]
    assert drawn != [propose(SPEC, [], 2, number) for number in range(32)]
    lr = CUBE.names.index("optimizer.lr")
    shares = np.sort([CUBE.point(values)[lr] for values in drawn])
    # One in each 32nd of the range, which random points would not reach.
    assert (np.floor(32 * shares) == np.arange(32)).all()


def test_draws_by_the_model_come_nearer_to_the_best_than_those_before() -> None:
    seen = ended(range(10))
    first = min(trial.value or 1.0 for trial in seen)
    for number in range(10, 22):
        values = propose(SPEC, seen, 1, number)
        seen.append(Observation(number, values, per_of(values["optimizer.lr"])))
    best = min(seen, key=lambda trial: trial.value or 1.0)
    assert best.number >= 10
    assert 0.2 <= (best.value or 1.0) < min(first, 0.23)


def test_a_draw_depends_only_on_the_trials_seen_and_its_number() -> None:
    seen = ended(range(12))
    assert propose(SPEC, seen, 1, 12) == propose(SPEC, list(reversed(seen)), 1, 12)
    assert propose(SPEC, seen, 1, 12) != propose(SPEC, seen, 1, 13)


@pytest.mark.parametrize("count", [0, 12])
def test_fixed_values_are_kept(count: int) -> None:
    fixed = {"optimizer.name": "sgd", "optimizer.lr": 0.02}
    values = propose(SPEC, ended(range(count)), 1, 40, fixed)
    assert values["optimizer.name"] == "sgd"
    assert "optimizer.momentum" in values
    assert values["optimizer.lr"] == pytest.approx(0.02)


def test_a_running_trial_makes_another_worker_draw_elsewhere() -> None:
    seen = ended(range(14))
    first = propose(SPEC, seen, 1, 14)
    second = propose(SPEC, [*seen, Observation(14, first, None)], 1, 14)
    assert second != first


def test_the_policy_proposes_even_if_all_trials_are_equal_or_diverged() -> None:
    equal = [replace(trial, value=1.0) for trial in ended(range(12))]
    assert set(propose(SPEC, equal, 1, 12)) <= set(SPEC.parameters)
    first, *others = equal
    diverged = [replace(trial, value=None, diverged=True) for trial in others]
    all_but_one_diverged = [replace(first, value=0.3, diverged=False), *diverged]
    assert set(propose(SPEC, all_but_one_diverged, 1, 12)) <= set(SPEC.parameters)


@pytest.mark.slow
def test_the_model_of_a_thousand_trials_keeps_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpo.space.policy.KNOWN", 40)
    seen = ended(range(60))
    model = Model(CUBE, seen)
    assert len(model.points_NP) <= 40
    best = min(seen, key=lambda trial: trial.value or 1.0)
    assert (model.points_NP[0] == CUBE.point(best.values)).all()


# ---- the study file


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("policy: tpe", "policy: gp-halvin", "'gp', 'tpe' or 'random'"),
        ("policy: tpe", "policy: gp-halving", "policy: gp-halving was removed. Use gp"),
        ("trials: 4", "trials: 4, min_gain: 0.1", "budget.*min_gain"),
    ],
)
def test_an_invalid_policy_in_a_file_is_one_line(
    tiny_space: Path, before: str, after: str, message: str
) -> None:
    tiny_space.write_text(TINY.replace(before, after))
    with pytest.raises(SpecError, match=message) as raised:
        load_spec(tiny_space)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ("bayes", "--policy: there is no 'bayes'. Valid: gp, tpe, random"),
        ("gp-halving", "--policy gp-halving: it was removed. Use gp"),
    ],
)
def test_an_invalid_policy_on_the_command_line_is_one_line(
    tiny_space: Path, policy: str, message: str
) -> None:
    with pytest.raises(SpecError, match=message) as raised:
        load_spec(tiny_space, policy=policy)
    assert "\n" not in str(raised.value)


def test_the_option_wins_over_the_file() -> None:
    spec: StudySpec = load_spec(find_space("lr-aug"), "demo", policy="random")
    assert spec.policy == Policy.RANDOM
    assert load_spec(find_space("lr-aug"), "demo").policy == Policy.GP
