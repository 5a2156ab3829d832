"""The search benchmark: its tables, its surrogate's error as its README says it, a short comparison, and that a simulated
search is the search that a real Study makes.
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

SCALE = 10**9  # reference length of a Score that holds a PER with nine digits


@pytest.fixture(scope="module", params=["a", "b"])
def table(request: pytest.FixtureRequest) -> tuple[str, Table]:
    return request.param, load_table(request.param)


def test_a_table_holds_whole_curves_of_valid_configurations(table: tuple[str, Table]) -> None:
    _, found = table
    spec = found.spec
    points = spec.base["steps"] // spec.base["evaluate_every"]
    assert found.per.shape == found.loss.shape == (len(found.params), points)
    for params, per in zip(found.params, found.per, strict=True):
        assert all(spec.parameters[name].contains(value) for name, value in params.items())
        assert np.isfinite(per).all() or np.isnan(per[-1])
    for start in spec.starts:
        assert spec.start_values(start) in found.params


def test_the_surrogate_errs_as_its_readme_says(table: tuple[str, Table]) -> None:
    name, found = table
    text = (FOLDER / "README.md").read_text()
    for what, value in errors(found, surrogate_of(name).theta).items():
        line = re.search(rf"\| {re.escape(what)} \| ([\d.]+) \| ([\d.]+) \|", text)
        assert line, what
        assert value == pytest.approx(float(line["ab".index(name) + 1]), abs=0.02), what


def test_a_short_comparison_gives_a_table_and_a_figure(tmp_path: Path) -> None:
    short = [
        "--tables",
        "a",
        "--methods",
        "random",
        "gp",
        "--repetitions",
        "2",
        "--trainings",
        "8",
        "--out",
        str(tmp_path),
    ]
    done = subprocess.run(
        [sys.executable, FOLDER / "compare.py", *short], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "results.md").read_text().count("| 2 | >") == 2
    assert (tmp_path / "regret.svg").stat().st_size > 0


class Real(Own):
    """The real Study as the simulator asks a search and its rules."""

    def __init__(self, study: Study):
        super().__init__()
        self.study, self.trials = study, dict[int, Trial]()
        self.next: Trial | None = None

    def resume(self, paused: Curves, curves: Curves) -> int | None:
        self.next = self.study.claim(
            Process.this(), {"device": "cpu", "code_version": "", "data": ""}
        )
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
        assert stop or per is not None
        outcome = (
            Stopped(stop) if stop else Completed(Score((round(SCALE * (per or 0.0)),), (SCALE,)))
        )
        assert self.study.finish(self.trials[number], outcome)


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
    real = Real(make_study(spec))
    simulated, done = (
        simulate(surrogate, *both, seed=1, limits=Limits(110.0, workers=2))
        for both in ((ours, rules), (real, real))
    )
    assert [(trace.values, trace.state, trace.ended) for trace in simulated] == [
        (trace.values, trace.state, trace.ended) for trace in done
    ]
    states = Counter(trace.state for trace in simulated)
    assert states["complete"] > 6  # later ones were drawn by the model
