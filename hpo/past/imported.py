"""Adds past runs to a study as finished trials. The sampler learns from them; the budget, the best
trial and the compute leave them out.

The mark of such a trial is the user attribute IMPORTED, written in one transaction with Optuna's
trial. Only `Study.records` and the counts of standing.py look at it. A run that diverged becomes
what a stopped trial is: PRUNED, with the constraint.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from optuna.trial import FrozenTrial, TrialState, create_trial

from hpo.curve import Point
from hpo.errors import StudyError
from hpo.past.past_runs import PastRun
from hpo.space.spec import StudySpec
from hpo.space.stopping import Stop
from hpo.store import curves, locks
from hpo.store.tables import IMPORTED
from hpo.study.record import THIN_CURVE
from hpo.study.sampling import distribution
from hpo.study.study import Study

# The user attribute with the run's digest of name and content, so that a run is imported once.
KEY = "imported_key"
# May differ from the study's base, in addition to the fields that its trainer names.
FREE = {"seed", "evaluate_every"}


@dataclass(frozen=True)
class ComparableRun:
    """A past run that a study can learn from."""

    run: PastRun
    # A value for each parameter of the study that exists with the others.
    values: dict[str, Any]
    # At least one point, none after `stop`.
    curve: list[Point]
    # Where the study's rule stops it; None if it does not.
    stop: Stop | None


def place(spec: StudySpec, known: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """(a value for each parameter that exists with the others, the fields of the base that are not
    known of the run).

    known: dotted name -> value. Raises StudyError with the reason if the run does not lie in the
    space.
    """
    values = _parameter_values(spec, known)
    base = spec.base
    free = FREE.union(spec.load_trainer().free)
    fixed = [name for name in base if name not in spec.parameters and name not in free]
    for name in fixed:
        if known.get(name, base[name]) != base[name]:
            raise StudyError(f"{name} = {known[name]!r}, the study has {base[name]!r}")
    return values, [name for name in fixed if name not in known]


def _parameter_values(spec: StudySpec, known: Mapping[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, parameter in spec.parameters.items():
        if not spec.active(name, values):
            continue
        if name not in known:
            raise StudyError(
                f"{name} is searched but not known of the run; give it with --set {name}=VALUE"
            )
        if not parameter.contains(known[name]):
            raise StudyError(f"{name} = {known[name]!r} is outside the space ({parameter})")
        values[name] = known[name]
    return values


def trials_by_key(study: Study) -> dict[str, int]:
    """Key of a past run -> number of its trial, of all imported trials."""
    trials = study.storage.get_all_trials(study.id, deepcopy=False)
    return {trial.user_attrs[KEY]: trial.number for trial in trials if KEY in trial.user_attrs}


def add_trial(study: Study, comparable: ComparableRun) -> int:
    """Adds the run as a trial, unless it has been imported before. Returns the trial's number."""
    config = study.spec.config(comparable.values).flat()
    with locks.locked(study.engine, study.id) as lock:
        number = trials_by_key(study).get(comparable.run.key)
        if number is None:
            trial_id = study.storage.create_new_trial(study.id, _optuna_trial(study, comparable))
            number = study.storage.get_trial_number_from_id(trial_id)
        else:
            trial_id = study.storage.get_trial_id_from_study_id_trial_number(study.id, number)
        curves.add_imported(lock.last_write(), trial_id, config, comparable.curve)
    return number


def _optuna_trial(study: Study, comparable: ComparableRun) -> FrozenTrial:
    stop = comparable.stop
    attributes = {IMPORTED: comparable.run.name, KEY: comparable.run.key}
    if stop:
        attributes |= {"rule": stop.rule, "cause": stop.cause, "reason": stop.reason}
    return create_trial(
        state=TrialState.PRUNED if stop else TrialState.COMPLETE,
        value=None if stop else _final_value(study.spec, comparable.curve),
        params=dict(comparable.values),
        distributions={name: distribution(study.spec, name) for name in comparable.values},
        user_attrs=attributes,
        intermediate_values=_thin_curve(comparable.curve),
        constraints={"diverged": 1.0} if stop else None,
    )


def _final_value(spec: StudySpec, curve: list[Point]) -> float:
    if spec.load_trainer().take == "best":
        return spec.metric.best([point.value for point in curve])
    return curve[-1].value


def _thin_curve(curve: list[Point]) -> dict[int, float]:
    """Step -> value of evenly spaced points and of the last one, few enough for Optuna."""
    spacing = math.ceil(len(curve) / THIN_CURVE)
    return {point.step: point.value for point in [*curve[::spacing], curve[-1]]}
