"""The search benchmark: its tables, the error of its surrogate, and a short comparison.

A simulated search is the search that a real study makes.
"""

import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from helpers.paths import ROOT
from helpers.studies import RECORD

FOLDER = ROOT / "benchmarks" / "search"
sys.path.insert(0, str(FOLDER))

from methods import Ours, Own, tpe  # noqa: E402
from simulate import (  # noqa: E402
    Curves,
    Limits,
    Rules,
    Search,
    Table,
    errors,
    load_table,
    simulate,
    surrogate_of,
)

from hpo.curve import Point  # noqa: E402
from hpo.process import Process  # noqa: E402
from hpo.space.spec import Policy  # noqa: E402
from hpo.space.stopping import OwnPast, Stop  # noqa: E402
from hpo.study.study import Study  # noqa: E402
from hpo.study.trial import Completed, Stopped, Trial  # noqa: E402
from hpo.trainer import Score  # noqa: E402

# The length of a Score that holds a PER with nine digits.
SCALE = 10**9


@pytest.fixture(scope="module", params=["a", "b"])
def table(request: pytest.FixtureRequest) -> tuple[str, Table]:
    return request.param, load_table(request.param)


def test_a_table_holds_whole_curves_of_valid_configurations(table: tuple[str, Table]) -> None:
    _, measured = table
    spec = measured.spec
    points = spec.base["steps"] // spec.base["evaluate_every"]
    assert measured.per.shape == (len(measured.params), points)
    assert measured.loss.shape == (len(measured.params), points)
    for params, per in zip(measured.params, measured.per, strict=True):
        assert all(spec.parameters[name].contains(value) for name, value in params.items())
        assert np.isfinite(per).all() or np.isnan(per[-1])
    for start in spec.starts:
        assert spec.start_values(start) in measured.params


def test_the_surrogate_errs_as_its_readme_says(table: tuple[str, Table]) -> None:
    name, measured = table
    text = (FOLDER / "README.md").read_text()
    for what, value in errors(measured, surrogate_of(name).theta).items():
        line = re.search(rf"\| {re.escape(what)} \| ([\d.]+) \| ([\d.]+) \|", text)
        assert line, what
        assert value == pytest.approx(float(line["ab".index(name) + 1]), abs=0.02), what


@pytest.mark.slow
def test_a_short_comparison_gives_a_table_and_a_figure(tmp_path: Path) -> None:
    command = [sys.executable, str(FOLDER / "compare.py"), "--tables", "a"]
    command += ["--methods", "random", "gp", "--repetitions", "2", "--trainings", "8"]
    command += ["--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "results.md").read_text().count("| 2 | >") == 2
    assert (tmp_path / "regret.svg").stat().st_size > 0


class RealStudy(Own):
    """A real study with the interface that the simulator expects of a search and its rules."""

    def __init__(self, study: Study):
        super().__init__()
        self.study = study
        self.trials: dict[int, Trial] = {}
        self.next: Trial | None = None

    def resume(self, paused: Curves, curves: Curves) -> int | None:
        self.next = self.study.claim(Process.this(), RECORD)
        assert self.next
        self.trials[self.next.number] = self.next
        return self.next.number if self.next.number in paused else None

    def ask(self, curves: Curves) -> tuple[int, dict[str, Any]]:
        assert self.next
        return self.next.number, self.study.records()[self.next.number].params

    def report(self, number: int, evaluation: Point) -> bool:
        assert self.study.deliver(self.trials[number], [evaluation], evaluation.step, 0.0)
        return False

    def judge(self, number: int, curves: Curves) -> Stop | str | None:
        return super().judge(number, curves)

    def end(self, number: int, per: float | None, stop: Stop | None) -> None:
        trial = self.trials[number]
        if stop:
            assert self.study.finish(trial, Stopped(stop))
            return
        assert per is not None
        score = Score((round(SCALE * per),), (SCALE,))
        assert self.study.finish(trial, Completed(score))


@pytest.mark.slow
@pytest.mark.parametrize("policy", [Policy.GP, Policy.TPE])
def test_a_simulated_search_is_the_search_of_a_real_study(
    make_study: Callable[..., Study], policy: Policy
) -> None:
    surrogate = surrogate_of("a")
    sampler = surrogate.spec.sampler.model_copy(update={"startup_trials": 6, "seed": 3})
    budget = surrogate.spec.budget.model_copy(update={"trials": 100})
    spec = surrogate.spec.model_copy(
        update={"sampler": sampler, "policy": policy, "stopping": OwnPast(), "budget": budget}
    )
    ours: Search = tpe(spec, 3, 6) if policy == Policy.TPE else Ours(policy, spec, 3, 6)
    rules: Rules = Own() if policy == Policy.TPE else cast(Ours, ours)
    real = RealStudy(make_study(spec))
    limits = Limits(110.0, workers=2)
    simulated = simulate(surrogate, ours, rules, seed=1, limits=limits)
    expected = simulate(surrogate, real, real, seed=1, limits=limits)
    assert [trace.values for trace in simulated] == [trace.values for trace in expected]
    assert [trace.state for trace in simulated] == [trace.state for trace in expected]
    assert [trace.ended for trace in simulated] == [trace.ended for trace in expected]
    # Trials after the sixth were drawn by the model.
    states = Counter(trace.state for trace in simulated)
    assert states["complete"] > 6
