"""Ray Tune and Syne Tune in the search benchmark's simulator (`pip install -e .[rivals]`)."""

import sys
from typing import Any

import pytest
from helpers.paths import ROOT

sys.path.insert(0, str(ROOT / "benchmarks" / "search"))

from compare import training_seconds
from methods import Nothing
from rivals import METHODS, absent
from simulate import Limits, Surrogate, simulate, surrogate_of

from hpo.curve import Point
from hpo.space.stopping import not_finite_stop

FACTOR = {"ray": 4, "syne": 3}  # their defaults: the best of so many go on


def rivals(*names: str) -> list[Any]:
    reason = "Ray Tune or Syne Tune is not installed: pip install -e .[rivals]"
    return [
        pytest.param(name, marks=pytest.mark.skipif(name in absent(), reason=reason))
        for name in names
    ]


@pytest.fixture(scope="module")
def surrogate() -> Surrogate:
    return surrogate_of("a")


@pytest.mark.parametrize("name", rivals(*METHODS))
def test_a_rival_begins_with_the_starts_and_stops_at_its_rungs(
    surrogate: Surrogate, name: str
) -> None:
    spec, search = surrogate.spec, METHODS[name].search
    limits = Limits(10 * training_seconds(surrogate))
    one = simulate(surrogate, search(surrogate.spec, 3), Nothing(), 3, limits)
    two = simulate(surrogate, search(surrogate.spec, 3), Nothing(), 3, limits)
    assert [(trace.values, trace.state) for trace in one] == [
        (trace.values, trace.state) for trace in two
    ]
    assert len({repr(trace.values) for trace in one}) == len(one)
    for trace, start in zip(one, spec.starts, strict=False):
        assert spec.start_values(start).items() <= trace.values.items()
    for trace in one:
        assert set(trace.values) == {
            name for name in spec.parameters if spec.active(name, trace.values)
        }
        assert all(spec.parameters[name].contains(value) for name, value in trace.values.items())
    factor, every = FACTOR[name.split("-")[0]], spec.base["evaluate_every"]
    rungs = [every * factor**k for k in range(9) if every * factor**k < spec.base["steps"]]
    stopped = {trace.number: trace.curve[-1].step for trace in one if trace.state == "stopped"}
    assert set(stopped.values()) == set(rungs)
    assert 2 * len(stopped) > len(one)
    for rung in rungs:
        place = rung // every
        came = [trace for trace in one if len(trace.curve) >= place]
        there = {trace.number: trace.curve[place - 1].value for trace in came}
        assert stopped.get(min(there, key=lambda number: there[number])) != rung


@pytest.mark.parametrize("name", rivals("ray-optuna", "syne-bohb"))
def test_the_searcher_of_a_rival_learns(surrogate: Surrogate, name: str) -> None:
    """Though every tenth trial fails. BOHB's model begins at 134 trials with this many parameters."""
    spec, search = surrogate.spec, METHODS[name].search(surrogate.spec, 1)
    noise: list[float] = []
    for _ in range(160):
        number, values = search.ask({})
        noise.append(values["augment.white_noise_sd"])
        if number % 10 == 9:
            search.end(number, None, not_finite_stop(1, "loss"))
            continue
        search.report(number, Point(spec.base["evaluate_every"], noise[-1], 1.0))
        search.end(number, None, None)
    assert sum(noise[-20:]) < 0.8 * sum(noise[10:30])
