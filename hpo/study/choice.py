"""A study's side of its policy: shows it the trials as values, and draws a trial's configuration."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from optuna import Trial
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial

from hpo.settings import Config
from hpo.space import policy
from hpo.space.policy import Seen
from hpo.space.spec import Policy, StudySpec
from hpo.study.sampling import Proposed, distribution, sampler_of
from hpo.study.trial import BY_HAND, Cause, Record


def seen_in(records: Sequence[Record], without: int) -> list[Seen]:
    """The trials, imported ones included, that tell something about the space.

    without: the id of the trial that is about to be drawn.
    """
    return [_seen(record) for record in records if record.id != without and _is_informative(record)]


def _is_informative(record: Record) -> bool:
    """Trials that a person ended or that crashed tell nothing about their configuration.

    A trial without parameters has not been drawn yet.
    """
    crashed = record.state == "failed" and record.cause != Cause.BAD_CONFIGURATION
    return not crashed and record.rule != BY_HAND and bool(record.params)


def _seen(record: Record) -> Seen:
    diverged = record.state in ("stopped", "failed")
    return Seen(record.number, record.params, None if diverged else record.value, diverged)


def configure(
    spec: StudySpec,
    trial: FrozenTrial,
    records: Callable[[], Sequence[Record]],
    asked_of: Callable[[BaseSampler], Trial],
) -> tuple[Config, str | None]:
    """The trial's configuration, drawn or as it was, and the name of the start that it is.

    records: of all trials, asked for if the policy learns from them. asked_of: makes Optuna's trial, which asks the sampler.
    """
    if fixed := trial.user_attrs.get("fixed"):
        return spec.config(fixed), None
    number = trial.number
    held = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
    sampler = sampler_of(spec, number)
    if spec.policy == Policy.GP and _is_open(spec, held):
        seen = seen_in(records(), without=trial._trial_id)
        values = policy.propose(spec, seen, spec.sampler.seed, number, held)
        sampler = Proposed(values)
    asked = asked_of(sampler)
    drawn: dict[str, Any] = {}
    for name in spec.parameters:
        if spec.active(name, drawn):
            drawn[name] = asked._suggest(name, distribution(spec, name))
    return spec.config(drawn | {"seed": spec.base["seed"] + number}), asked.user_attrs.get("start")


def _is_open(spec: StudySpec, held: Mapping[str, Any]) -> bool:
    """Whether anything is left to draw."""
    return any(name not in held and spec.active(name, held) for name in spec.parameters)
