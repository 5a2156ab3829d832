"""How Optuna draws a trial's parameters from a space."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from hpo.settings import Config
from hpo.space.spec import Policy, StudySpec


class Proposed(BaseSampler):
    """A sampler that returns the values that a policy has chosen."""

    def __init__(self, values: Mapping[str, Any]):
        self._values = values

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, BaseDistribution]:
        return {}

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        return self._values[param_name]


def sampler_of(spec: StudySpec, number: int) -> BaseSampler:
    """Optuna's sampler that draws trial `number`."""
    if spec.policy == Policy.RANDOM:
        return RandomSampler(seed=seed_of(spec.sampler.seed, number))
    return TPESampler(
        n_startup_trials=spec.sampler.startup_trials,
        multivariate=True,
        constant_liar=True,
        seed=seed_of(spec.sampler.seed, number),
    )


def seed_of(seed: int, number: int) -> int:
    """The seed of one trial's sampler, the same for any worker and independent of other trials."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])


def fixed_trial(spec: StudySpec, config: Config, label: str) -> FrozenTrial:
    """A waiting trial of a given configuration, which may lie outside the space.

    Its parameters are those of its values that the space contains.
    """
    flat = config.flat()
    values = {
        name: value
        for name, value in spec.existing(flat).items()
        if spec.parameters[name].contains(value)
    }
    distributions = {name: distribution(spec, name) for name in values}
    attributes = {"fixed": flat, "label": label}
    return create_trial(
        state=TrialState.WAITING, params=values, distributions=distributions, user_attrs=attributes
    )


def distribution(spec: StudySpec, name: str) -> BaseDistribution:
    """Optuna's distribution of a parameter of the space."""
    parameter = spec.parameters[name]
    if parameter.choices is not None:
        return CategoricalDistribution(parameter.choices)
    assert parameter.low is not None and parameter.high is not None
    if isinstance(spec.base[name], int):
        return IntDistribution(int(parameter.low), int(parameter.high), log=parameter.log)
    return FloatDistribution(parameter.low, parameter.high, log=parameter.log)


def fixed_key(flat: Mapping[str, Any]) -> str:
    """A text that is equal for equal configurations, which are values by dotted name."""
    return json.dumps(flat, sort_keys=True)
