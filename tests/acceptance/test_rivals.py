"""Ray Tune and Syne Tune in the search benchmark's simulator (`pip install -e .[rivals]`)."""

import sys
from typing import Any

import pytest
from helpers.paths import ROOT

sys.path.insert(0, str(ROOT / "benchmarks" / "search"))

from compare import training_seconds
from methods import Nothing
from rivals import METHODS, absent
from simulate import Limits, Surrogate, Trace, simulate, surrogate_of

from hpo.curve import Point
from hpo.space.stopping import not_finite_stop

# By default, one of so many trials continues at each rung.
FACTOR = {"ray": 4, "syne": 3}


def rivals(*names: str) -> list[Any]:
    """Parameters of a test, which is skipped for a rival that is not installed."""
    reason = "Ray Tune or Syne Tune is not installed: pip install -e .[rivals]"
    return [
        pytest.param(name, marks=pytest.mark.skipif(name in absent(), reason=reason))
        for name in names
    ]


@pytest.fixture(scope="module")
def surrogate() -> Surrogate:
    return surrogate_of("a")


@pytest.fixture(scope="module", params=rivals(*METHODS))
def simulated(request: pytest.FixtureRequest, surrogate: Surrogate) -> tuple[str, list[Trace]]:
    """The name of a rival, and the trials that it makes in a simulation."""
    return request.param, simulated_trials(surrogate, request.param)


def simulated_trials(surrogate: Surrogate, name: str) -> list[Trace]:
    search = METHODS[name].search(surrogate.spec, 3)
    limits = Limits(10 * training_seconds(surrogate))
    return simulate(surrogate, search, Nothing(), 3, limits)


def test_a_rival_repeats_its_trials_with_the_same_seed(
    surrogate: Surrogate, simulated: tuple[str, list[Trace]]
) -> None:
    name, traces = simulated
    again = simulated_trials(surrogate, name)
    assert [trace.values for trace in again] == [trace.values for trace in traces]
    assert [trace.state for trace in again] == [trace.state for trace in traces]


def test_a_rival_begins_with_the_starts_and_draws_valid_configurations(
    surrogate: Surrogate, simulated: tuple[str, list[Trace]]
) -> None:
    spec = surrogate.spec
    _, traces = simulated
    assert len({repr(trace.values) for trace in traces}) == len(traces)
    for trace, start in zip(traces, spec.starts, strict=False):
        assert spec.start_values(start).items() <= trace.values.items()
    for trace in traces:
        active = {name for name in spec.parameters if spec.active(name, trace.values)}
        assert set(trace.values) == active
        assert all(spec.parameters[name].contains(value) for name, value in trace.values.items())


def test_a_rival_stops_trials_at_its_rungs_but_never_the_best(
    surrogate: Surrogate, simulated: tuple[str, list[Trace]]
) -> None:
    spec = surrogate.spec
    name, traces = simulated
    factor = FACTOR[name.split("-")[0]]
    every = spec.base["evaluate_every"]
    steps = [every * factor**power for power in range(9)]
    rungs = [step for step in steps if step < spec.base["steps"]]
    stopped = {trace.number: trace.curve[-1].step for trace in traces if trace.state == "stopped"}
    assert set(stopped.values()) == set(rungs)
    assert 2 * len(stopped) > len(traces)
    for rung in rungs:
        evaluations = rung // every
        reached = [trace for trace in traces if len(trace.curve) >= evaluations]
        best = min(reached, key=lambda trace: trace.curve[evaluations - 1].value)
        assert stopped.get(best.number) != rung


@pytest.mark.parametrize("name", rivals("ray-optuna", "syne-bohb"))
def test_the_searcher_of_a_rival_learns(surrogate: Surrogate, name: str) -> None:
    """Although every tenth trial fails.

    With this many parameters the model of BOHB begins at 134 trials.
    """
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
