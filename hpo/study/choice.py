"""Connects a study with its policy: shows it the trials as values, and draws configurations."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from optuna import Trial
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial

from hpo.settings import Config
from hpo.space import policy
from hpo.space.policy import Observation
from hpo.space.spec import Policy, StudySpec
from hpo.study import optuna_internals
from hpo.study.sampling import Proposed, distribution, sampler_of
from hpo.study.trial import BY_HAND, Cause, Record


def configure(
    spec: StudySpec,
    trial: FrozenTrial,
    records: Callable[[], Sequence[Record]],
    optuna_trial: Callable[[BaseSampler], Trial],
) -> tuple[Config, str | None]:
    """The trial's configuration, drawn now or earlier, and the name of the start if it is one.

    records: gives the records of all trials; called only if the policy learns from them.
    optuna_trial: gives Optuna's trial, which draws from the sampler.
    """
    fixed = trial.user_attrs.get("fixed")
    if fixed:
        return spec.config(fixed), None
    number = trial.number
    # Values that are set already.
    held = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
    sampler = sampler_of(spec, number)
    if spec.policy == Policy.GP and _is_open(spec, held):
        observations = _observations(records(), without=optuna_internals.id_of_trial(trial))
        values = policy.propose(spec, observations, spec.sampler.seed, number, held)
        sampler = Proposed(values)
    suggesting = optuna_trial(sampler)
    drawn: dict[str, Any] = {}
    for name in spec.parameters:
        if spec.active(name, drawn):
            drawn[name] = optuna_internals.suggest(suggesting, name, distribution(spec, name))
    config = spec.config(drawn | {"seed": spec.base["seed"] + number})
    return config, suggesting.user_attrs.get("start")


def _is_open(spec: StudySpec, held: Mapping[str, Any]) -> bool:
    """Whether the trial has parameters without a value."""
    return any(name not in held and spec.active(name, held) for name in spec.parameters)


def _observations(records: Sequence[Record], without: int) -> list[Observation]:
    """All informative trials, imported ones included.

    without: the id of a trial to leave out, the one that is about to be drawn.
    """
    return [
        _observation(record)
        for record in records
        if record.id != without and _is_informative(record)
    ]


def _is_informative(record: Record) -> bool:
    """Whether the trial says something about its configuration.

    Trials that were ended by hand or crashed say nothing about it. Trials without parameters have
    not been drawn yet.
    """
    has_crashed = record.state == "failed" and record.cause != Cause.BAD_CONFIGURATION
    if has_crashed or record.rule == BY_HAND:
        return False
    return bool(record.params)


def _observation(record: Record) -> Observation:
    diverged = record.state in ("stopped", "failed")
    return Observation(record.number, record.params, None if diverged else record.value, diverged)
