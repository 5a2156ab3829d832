"""Ray Tune and Syne Tune as searches of the simulator.

Their own schedulers and searchers, unmodified, are called as their tuners would call them. Neither
Ray nor any process of theirs is started.

Neither knows conditions, except Ray's OptunaSearch: they draw a value for every parameter, and
those that do not exist are dropped. Their rungs begin at one evaluation, which is their default if
time is counted in evaluations; other settings are their defaults. Syne Tune's CQR and BORE, which
fit their models anew for each trial, are left out (README.md).

Trade-off: the two packages are imported only when one of their methods runs, so that the other
methods can be compared without them.
"""

import logging
import os
import sys
import warnings
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import partial
from importlib.util import find_spec
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

import numpy as np
from methods import Method, drawn
from optuna.distributions import CategoricalDistribution, IntDistribution
from simulate import Curves

from hpo.curve import Point
from hpo.space.spec import StudySpec
from hpo.space.stopping import Stop
from hpo.study.sampling import distribution, seed_of


def flat(spec: StudySpec, language: ModuleType, beyond: int) -> dict[str, Any]:
    """The space without conditions, in the functions of `language`, which are named as Ray's.

    A choice is its place in the list, because Syne Tune wants values of one type.
    beyond: 1 if the language excludes the upper end of integers, else 0.
    """
    space: dict[str, Any] = {}
    for name in spec.parameters:
        values: Any = distribution(spec, name)
        if isinstance(values, CategoricalDistribution):
            space[name] = language.choice(list(range(len(values.choices))))
        elif isinstance(values, IntDistribution):
            integers = language.lograndint if values.log else language.randint
            space[name] = integers(values.low, values.high + beyond)
        else:
            numbers = language.loguniform if values.log else language.uniform
            space[name] = numbers(values.low, values.high)
    return space


def encoded(spec: StudySpec, values: Mapping[str, Any]) -> dict[str, Any]:
    """Values as a point of the flat space, without parameters that do not exist."""
    point: dict[str, Any] = {}
    for name, value in values.items():
        possible = distribution(spec, name)
        if isinstance(possible, CategoricalDistribution):
            point[name] = int(possible.to_internal_repr(value))
        else:
            point[name] = value
    return point


def decoded(spec: StudySpec, point: Mapping[str, Any]) -> dict[str, Any]:
    """A point of the flat space as values, without parameters that do not exist."""
    values: dict[str, Any] = {}
    for name in spec.parameters:
        if spec.active(name, values):
            values[name] = distribution(spec, name).to_external_repr(point[name])
    return values


def starts(spec: StudySpec) -> list[dict[str, Any]]:
    return [spec.start_values(start) for start in spec.starts]


def _report(spec: StudySpec, evaluation: Point) -> dict[str, Any]:
    iteration = evaluation.step // spec.base["evaluate_every"]
    return {"step": evaluation.step, "per": evaluation.value, "training_iteration": iteration}


def _rungs(spec: StudySpec) -> dict[str, Any]:
    """Arguments of a scheduler, named alike in both packages."""
    return {
        "metric": "per",
        "time_attr": "step",
        "max_t": spec.base["steps"],
        "grace_period": spec.base["evaluate_every"],
    }


def ray_random(spec: StudySpec, seed: int) -> tuple[Any, dict[str, Any]]:
    """Ray's default search algorithm, and the space that it draws from.

    It draws what a start leaves open.
    """
    from ray import tune
    from ray.tune.search.basic_variant import BasicVariantGenerator

    points = [encoded(spec, start) for start in starts(spec)]
    algorithm = BasicVariantGenerator(points_to_evaluate=points, random_state=seed)
    return algorithm, flat(spec, tune, beyond=1)


def ray_optuna(spec: StudySpec, seed: int) -> tuple[Any, dict[str, Any]]:
    """Optuna's TPE as Ray runs it. Its space is a function of a trial and knows the conditions."""
    from ray.tune.search import SearchGenerator
    from ray.tune.search.optuna import OptunaSearch

    def space(trial: Any) -> dict[str, Any]:
        return encoded(spec, drawn(spec, trial))

    search = OptunaSearch(
        space, metric="per", mode="min", points_to_evaluate=starts(spec), seed=seed
    )
    return SearchGenerator(search), {}


class RayTune:
    """Ray Tune's ASHA, called as its TuneController calls it.

    A trial whose loss is not finite counts as failed.
    """

    def __init__(
        self,
        algorithm: Callable[[StudySpec, int], tuple[Any, dict[str, Any]]],
        spec: StudySpec,
        seed: int,
    ):
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        from ray.tune.schedulers import AsyncHyperBandScheduler

        self.spec = spec
        self._scheduler = AsyncHyperBandScheduler(mode="min", **_rungs(spec))
        self._algorithm, space = algorithm(spec, seed)
        # Ray checks that it can write to a folder, by default one under the home folder.
        with TemporaryDirectory() as folder:
            experiment = {
                "run": _not_run,
                "config": space,
                "num_samples": sys.maxsize,
                "storage_path": folder,
            }
            self._algorithm.add_configurations({"search": experiment})
        self._trials: list[Any] = []
        self._results: dict[int, dict[str, Any]] = {}
        self._waiting = self._draw()

    def _draw(self) -> Any:
        trial = self._algorithm.next_trial()
        self._scheduler.on_trial_add(None, trial)
        return trial

    def ask(self, curves: Curves) -> tuple[int, dict[str, Any]]:
        """Ray has the next trial drawn and waiting when one begins."""
        self._trials.append(self._waiting)
        self._waiting = self._draw()
        return len(self._trials) - 1, decoded(self.spec, self._trials[-1].config)

    def report(self, number: int, evaluation: Point) -> bool:
        trial = self._trials[number]
        result = _report(self.spec, evaluation)
        self._results[number] = result
        decision = self._scheduler.on_trial_result(None, trial, result)
        if decision == self._scheduler.STOP:
            return True
        self._algorithm.on_trial_result(trial.trial_id, result)
        return False

    def end(self, number: int, per: float | None, stop: Stop | None) -> None:
        trial = self._trials[number]
        if stop is not None:
            self._scheduler.on_trial_error(None, trial)
            self._algorithm.on_trial_complete(trial.trial_id, error=True)
        else:
            self._scheduler.on_trial_complete(None, trial, self._results[number])
            self._algorithm.on_trial_complete(trial.trial_id, result=self._results[number])


def _not_run(config: dict[str, Any]) -> None:
    """Ray needs a training function."""


class SyneTune:
    """A scheduler of Syne Tune's `baselines`, called as its Tuner calls it.

    A trial whose loss is not finite counts as failed.
    """

    def __init__(self, baseline: str, spec: StudySpec, seed: int):
        from syne_tune import config_space
        from syne_tune.optimizer import baselines

        # ASHA warns of its own arguments.
        logging.getLogger("syne_tune").setLevel(logging.ERROR)
        # statsmodels warns of how Syne Tune uses it.
        warnings.filterwarnings("ignore", "After 0.17", FutureWarning)
        # Some draws come from NumPy's global generator, whatever Syne Tune's own seed. It gets a
        # different seed, so that the two do not draw the same numbers.
        np.random.seed(seed_of(seed, 0))
        self.spec = spec
        space = flat(spec, config_space, beyond=0)
        # A point needs a value for every parameter.
        drawn_values = {name: domain.sample() for name, domain in space.items()}
        points = [drawn_values | encoded(spec, start) for start in starts(spec)]
        scheduler = getattr(baselines, baseline)
        self._scheduler = scheduler(
            space, random_seed=seed, points_to_evaluate=points, **_rungs(spec)
        )
        self._trials: list[Any] = []

    def ask(self, curves: Curves) -> tuple[int, dict[str, Any]]:
        from syne_tune.backend.trial_status import Trial

        config = self._scheduler.suggest().config
        self._trials.append(Trial(len(self._trials), config, datetime.now()))
        self._scheduler.on_trial_add(self._trials[-1])
        return len(self._trials) - 1, decoded(self.spec, config)

    def report(self, number: int, evaluation: Point) -> bool:
        from syne_tune.optimizer.scheduler import SchedulerDecision

        result = _report(self.spec, evaluation)
        decision = self._scheduler.on_trial_result(self._trials[number], result)
        return bool(decision == SchedulerDecision.STOP)

    def end(self, number: int, per: float | None, stop: Stop | None) -> None:
        """The scheduler says STOP at max_t too, after which Syne Tune's Tuner removes the trial."""
        if stop is not None:
            self._scheduler.on_trial_error(self._trials[number])
        else:
            self._scheduler.on_trial_remove(self._trials[number])


METHODS = {
    "ray-asha": Method("Ray Tune ASHA", partial(RayTune, ray_random)),
    "ray-optuna": Method("Ray Tune ASHA + OptunaSearch", partial(RayTune, ray_optuna)),
    "syne-asha": Method("Syne Tune ASHA", partial(SyneTune, "ASHA")),
    "syne-bohb": Method("Syne Tune BOHB", partial(SyneTune, "BOHB"), share=0.03),
}


def absent() -> list[str]:
    """Methods whose package is not installed."""
    packages = {name: "ray" if name.startswith("ray") else "syne_tune" for name in METHODS}
    return [name for name, package in packages.items() if find_spec(package) is None]
