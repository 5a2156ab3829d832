"""What a policy decides, as values: the space as a cube, and draws."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from helpers.studies import TINY
from hypothesis import given
from hypothesis import strategies as st

from hpo.space.cube import Cube
from hpo.space.policy import Model, Observation, propose
from hpo.space.spec import Policy, StudySpec, find_space, load_spec

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
    numbers_N = [isinstance(value, int) for value in values.values()]
    assert any(numbers_N) or both[0] == pytest.approx(both[1])


def test_what_does_not_exist_changes_nothing() -> None:
    points_NP = np.random.default_rng(0).random((40, DIMENSIONS))
    other_NP = points_NP.copy()
    for row, point in enumerate(points_NP):
        there = CUBE.values(point)
        for column, name in enumerate(CUBE.names):
            if name not in there:
                other_NP[row, column] = 1 - point[column]
    assert (points_NP != other_NP).any()
    assert np.array_equal(CUBE.features(points_NP), CUBE.features(other_NP))


def test_the_size_of_a_step_is_seen() -> None:
    """Ten times the learning rate over ten times eps goes as far; with another optimizer eps says nothing."""

    def size(**values: float | str) -> float:
        named = {f"optimizer.{name}": value for name, value in values.items()}
        return float(CUBE.features(CUBE.point(named)[None])[0, -1])

    assert size(name="adam", lr=0.001, eps=0.01) == pytest.approx(
        size(name="adam", lr=0.0079, eps=0.0997), abs=0.02
    )
    assert size(name="adam", lr=0.01, eps=0.01) > size(name="adam", lr=0.001, eps=0.01)
    assert size(name="sgd", lr=0.01, momentum=0.9) > size(name="sgd", lr=0.01, momentum=0.5)


# ---- draws


def ended(numbers: Sequence[int], startup: int = 10) -> list[Observation]:
    """Their PER has its lowest where lr is 0.003."""
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
    shares = np.sort([CUBE.point(values)[CUBE.names.index("optimizer.lr")] for values in drawn])
    assert (
        np.floor(32 * shares) == np.arange(32)
    ).all()  # one in each 32nd of the range, which points at random do not do


def test_draws_by_the_model_come_nearer_to_the_best_than_those_before() -> None:
    seen = ended(range(10))
    first = min(trial.value or 1.0 for trial in seen)
    for number in range(10, 22):
        values = propose(SPEC, seen, 1, number)
        seen.append(Observation(number, values, per_of(values["optimizer.lr"])))
    best = min(seen, key=lambda trial: trial.value or 1.0)
    assert best.number >= 10
    assert 0.2 <= (best.value or 1.0) < min(first, 0.23)


def test_a_draw_depends_on_what_is_seen_and_on_its_number_only() -> None:
    seen = ended(range(12))
    assert propose(SPEC, seen, 1, 12) == propose(SPEC, list(reversed(seen)), 1, 12)
    assert propose(SPEC, seen, 1, 12) != propose(SPEC, seen, 1, 13)


@pytest.mark.parametrize("count", [0, 12])
def test_what_a_person_fixed_stays(count: int) -> None:
    fixed = {"optimizer.name": "sgd", "optimizer.lr": 0.02}
    values = propose(SPEC, ended(range(count)), 1, 40, fixed)
    assert values["optimizer.name"] == "sgd" and "optimizer.momentum" in values
    assert values["optimizer.lr"] == pytest.approx(0.02)


def test_a_running_trial_is_believed_so_that_another_worker_draws_elsewhere() -> None:
    seen = ended(range(14))
    first = propose(SPEC, seen, 1, 14)
    second = propose(SPEC, [*seen, Observation(14, first, None)], 1, 14)
    assert second != first


def test_all_trials_equal_or_diverged_still_draw() -> None:
    alike = [replace(trial, value=1.0) for trial in ended(range(12))]
    assert set(propose(SPEC, alike, 1, 12)) <= set(SPEC.parameters)
    broken = [
        replace(trial, value=None if trial.number else 0.3, diverged=bool(trial.number))
        for trial in alike
    ]
    assert set(propose(SPEC, broken, 1, 12)) <= set(SPEC.parameters)


def test_the_model_of_a_thousand_trials_keeps_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpo.space.policy.KNOWN", 40)
    seen = ended(range(60))
    model = Model(CUBE, seen)
    assert len(model.points_NP) <= 40
    best = min(seen, key=lambda trial: trial.value or 1.0)
    assert (model.points_NP[0] == CUBE.point(best.values)).all()


# ---- the study file


@pytest.mark.parametrize(("text", "policy", "said"), [
    (TINY.replace("policy: tpe", "policy: gp-halvin"), None, "'gp', 'tpe' or 'random'"),
    (TINY, "bayes", "--policy: there is no 'bayes'. Valid: gp, tpe, random"),
    (TINY.replace("policy: tpe", "policy: gp-halving"), None, "policy: gp-halving was removed. Use gp"),
    (TINY, "gp-halving", "--policy gp-halving: it was removed. Use gp"),
    (TINY.replace("trials: 4", "trials: 4, min_gain: 0.1"), None, "budget.*min_gain"),
])  # fmt: skip
def test_a_policy_that_cannot_be(
    tmp_path_factory: pytest.TempPathFactory, text: str, policy: str | None, said: str
) -> None:
    from hpo.errors import SpecError

    path = tmp_path_factory.mktemp("space") / "tiny.yaml"
    path.write_text(text)
    with pytest.raises(SpecError, match=said) as raised:
        load_spec(path, policy=policy)
    assert "\n" not in str(raised.value)


def test_the_option_wins_over_the_file() -> None:
    spec: StudySpec = load_spec(find_space("lr-aug"), "demo", policy="random")
    assert spec.policy == Policy.RANDOM
    assert load_spec(find_space("lr-aug"), "demo").policy == Policy.GP
