"""What a policy decides, as values: the space as a cube, draws, and who is parked and goes on."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from conftest import TINY
from hypothesis import given
from hypothesis import strategies as st

from hpo.search.policy import RUNGS, Model, Proposal, Seen, due, expected_ends, propose, rung_steps, why_park
from hpo.search.space import Cube
from hpo.search.spec import Policy, StudySpec, find_space, load_spec
from hpo.search.stopping import Evaluation

SPEC = load_spec(find_space("lr-aug"), "demo", policy="gp-halving")
CUBE = Cube(SPEC)
DIMENSIONS = len(CUBE.names)
FIRST, SECOND = rung_steps(SPEC)


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

    assert size(name="adam", lr=0.001, eps=0.01) == pytest.approx(size(name="adam", lr=0.0079, eps=0.0997), abs=0.02)
    assert size(name="adam", lr=0.01, eps=0.01) > size(name="adam", lr=0.001, eps=0.01)
    assert size(name="sgd", lr=0.01, momentum=0.9) > size(name="sgd", lr=0.01, momentum=0.5)


# ---- draws


def ended(numbers: Sequence[int], startup: int = 10) -> list[Seen]:
    """Their PER has its lowest where lr is 0.003."""
    seen: list[Seen] = []
    for number in numbers:
        values = propose(SPEC, seen[: startup - 1], 1, number).values
        seen.append(Seen(number, values, per_of(values["optimizer.lr"])))
    return seen


def per_of(lr: float) -> float:
    return min(1.0, 0.2 + 0.1 * abs(math.log(lr / 0.003)))


def test_the_first_draws_fill_the_space_and_repeat_with_their_seed() -> None:
    drawn = [propose(SPEC, [], 1, number) for number in range(32)]
    assert drawn == [propose(SPEC, [], 1, number) for number in range(32)]
    assert drawn != [propose(SPEC, [], 2, number) for number in range(32)]
    assert all(proposal.gain is None for proposal in drawn)
    shares = np.sort([CUBE.point(proposal.values)[CUBE.names.index("optimizer.lr")] for proposal in drawn])
    assert (np.floor(32 * shares) == np.arange(32)).all()  # one in each 32nd of the range, which points at random do not do


def test_draws_by_the_model_come_nearer_to_the_best_than_those_before() -> None:
    seen = ended(range(10))
    first = min(trial.per or 1.0 for trial in seen)
    for number in range(10, 22):
        proposal = propose(SPEC, seen, 1, number)
        assert proposal.gain is not None and proposal.gain >= 0
        seen.append(Seen(number, proposal.values, per_of(proposal.values["optimizer.lr"])))
    best = min(seen, key=lambda trial: trial.per or 1.0)
    assert best.number >= 10
    assert 0.2 <= (best.per or 1.0) < min(first, 0.23)


def test_a_draw_depends_on_what_is_seen_and_on_its_number_only() -> None:
    seen = ended(range(12))
    assert propose(SPEC, seen, 1, 12) == propose(SPEC, list(reversed(seen)), 1, 12)
    assert propose(SPEC, seen, 1, 12) != propose(SPEC, seen, 1, 13)


@pytest.mark.parametrize("count", [0, 12])
def test_what_a_person_fixed_stays(count: int) -> None:
    fixed = {"optimizer.name": "sgd", "optimizer.lr": 0.02}
    values = propose(SPEC, ended(range(count)), 1, 40, fixed).values
    assert values["optimizer.name"] == "sgd" and "optimizer.momentum" in values
    assert values["optimizer.lr"] == pytest.approx(0.02)


def test_a_running_trial_is_believed_so_that_another_worker_draws_elsewhere() -> None:
    seen = ended(range(14))
    first = propose(SPEC, seen, 1, 14)
    beside = propose(SPEC, [*seen, Seen(14, first.values, None)], 1, 14)
    assert beside.values != first.values
    assert (beside.gain or 0) <= (first.gain or 0)


def test_all_trials_equal_or_diverged_still_draw() -> None:
    alike = [replace(trial, per=1.0) for trial in ended(range(12))]
    assert isinstance(propose(SPEC, alike, 1, 12), Proposal)
    broken = [replace(trial, per=1.0 if trial.number else 0.3) for trial in alike]
    assert isinstance(propose(SPEC, broken, 1, 12), Proposal)


def test_the_model_of_a_thousand_trials_keeps_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpo.search.policy.KNOWN", 40)
    seen = ended(range(60))
    model = Model(CUBE, seen)
    assert len(model._points_NP) <= 40
    best = min(seen, key=lambda trial: trial.per or 1.0)
    assert (model._points_NP[0] == CUBE.point(best.values)).all()


# ---- rungs


def at(step: int, per: float, loss: float | None = None) -> Evaluation:
    return Evaluation(step, per, per if loss is None else loss)


def came_to(count: int, number: int, score: float, per: float | None = None, parked: bool = False) -> Seen:
    return Seen(number, {}, per, tuple(at(step, score) for step in (FIRST, SECOND)[:count]), parked)


def test_rungs_are_evaluations_before_the_end() -> None:
    assert (FIRST, SECOND) == (40, 240)
    assert rung_steps(SPEC.model_copy(update={"policy": Policy.GP})) == ()
    rare = SPEC.base.with_values({"evaluate_every": 200})
    assert rung_steps(SPEC.model_copy(update={"base": rare})) == (200,)
    never = SPEC.base.with_values({"evaluate_every": 400})
    assert rung_steps(SPEC.model_copy(update={"base": never})) == ()


def test_the_first_to_come_goes_on_and_the_worse_waits() -> None:
    assert why_park(SPEC, came_to(1, 4, 0.5), []) is None
    assert why_park(SPEC, came_to(1, 5, 0.4), [came_to(1, 4, 0.5)]) is None
    reason = why_park(SPEC, came_to(1, 5, 0.6), [came_to(1, 4, 0.5)])
    assert reason == "2 of 2 at step 40; goes on when it is among the best 60 % there"


def test_the_first_rung_looks_at_loss_and_the_second_at_per() -> None:
    """A CTC decoder is silent at first: its PER says nothing then."""
    good, bad = at(FIRST, 1.0, loss=2.0), at(FIRST, 0.9, loss=3.0)
    assert why_park(SPEC, Seen(1, {}, None, (bad,)), [Seen(0, {}, None, (good,))])
    assert why_park(SPEC, Seen(1, {}, None, (good,)), [Seen(0, {}, None, (bad,))]) is None
    later = Seen(1, {}, None, (good, at(SECOND, 0.3, loss=9.0)))
    assert why_park(SPEC, later, [Seen(0, {}, None, (good, at(SECOND, 0.4, loss=2.0)))]) is None


def test_those_that_diverged_hold_no_place() -> None:
    diverged = came_to(1, 0, 0.1, per=1.0)
    assert due(SPEC, [diverged, came_to(1, 1, 0.9, parked=True)]) == [1]


def test_of_a_higher_rung_first_and_of_a_rung_the_best() -> None:
    low = [came_to(1, number, 0.9 - number / 100, parked=number >= 4) for number in range(6)]
    high = [came_to(2, 6, 0.4, parked=True), came_to(2, 7, 0.3, parked=True), came_to(2, 8, 0.2)]
    assert due(SPEC, [*low, *high]) == [5, 4]
    more = [came_to(2, 9, 0.5), came_to(2, 10, 0.6), came_to(2, 11, 0.7, per=1.0)]
    assert due(SPEC, [*low, *high, *more]) == [7, 6, 5, 4]


@given(st.lists(st.tuples(st.floats(0.01, 2), st.booleans()), min_size=1, max_size=20))
def test_who_would_be_parked_is_never_due_and_somebody_always_goes_on(trials: list[tuple[float, bool]]) -> None:
    seen = [came_to(1, number, score, parked=parked) for number, (score, parked) in enumerate(trials)]
    for trial in seen:
        others = [other for other in seen if other is not trial]
        assert (why_park(SPEC, trial, others) is None) == (trial.number in due(SPEC, [*others, replace(trial, parked=True)]))
    leading = [trial for trial in seen if why_park(SPEC, trial, [other for other in seen if other is not trial]) is None]
    assert len(leading) == max(1, int(len(seen) * RUNGS[SPEC.policy][0].keep))


def test_the_end_is_expected_from_the_rung_once_enough_have_ended() -> None:
    known = [came_to(2, number, score, per=score / 2) for number, score in enumerate((0.2, 0.4, 0.6, 0.8, 0.9))]
    asked = [came_to(2, 10, 0.3), came_to(2, 11, 0.7)]
    assert expected_ends(SPEC, [*known[:3], *asked]) == {}
    ends = expected_ends(SPEC, [*known, *asked])
    assert ends[10] == pytest.approx(0.15, rel=0.2) and ends[11] == pytest.approx(0.35, rel=0.2)
    assert expected_ends(SPEC.model_copy(update={"policy": Policy.GP}), [*known, *asked]) == {}


# ---- the study file


@pytest.mark.parametrize(("text", "policy", "said"), [
    (TINY.replace("policy: tpe", "policy: gp-halvin"), None, "policy"),
    (TINY, "bayes", "--policy: there is no 'bayes'"),
    (TINY.replace("tpe", "gp-halving").replace("starts:", "  steps: {choices: [6, 8]}\nstarts:"), None, "steps is searched"),
])  # fmt: skip
def test_a_policy_that_cannot_be(tmp_path_factory: pytest.TempPathFactory, text: str, policy: str | None, said: str) -> None:
    from hpo.errors import SpecError

    path = tmp_path_factory.mktemp("space") / "tiny.yaml"
    path.write_text(text)
    with pytest.raises(SpecError, match=said) as raised:
        load_spec(path, policy=policy)
    assert "gp-halving" in str(raised.value) or "gp, tpe, random" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_the_option_wins_over_the_file() -> None:
    spec: StudySpec = load_spec(find_space("lr-aug"), "demo", policy="random")
    assert spec.policy == Policy.RANDOM
    assert load_spec(find_space("lr-aug"), "demo").policy == Policy.GP
