"""Trainings done outside, as finished trials of a study: the sampler learns from them; budget, best
and compute leave them out.

The mark is the user attribute IMPORTED, written in one transaction with Optuna's trial.
`Study.records` and the counts of standing.py look at it, and nothing else needs to. A run that
diverged comes in as a stopped trial does: PRUNED, with the constraint.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from optuna.trial import TrialState, create_trial

from hpo.curve import Point
from hpo.errors import StudyError
from hpo.space.spec import StudySpec
from hpo.space.stopping import Stop
from hpo.store import curves, locks
from hpo.store.tables import IMPORTED
from hpo.study.record import THIN_CURVE
from hpo.study.sampling import distribution
from hpo.study.study import Study

KEY = "imported_key"  # of name and content: the same run is imported once
FREE = {"seed", "evaluate_every"}  # may differ from the study's base, beside what its trainer says


def place(spec: StudySpec, known: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """(a value for each parameter that exists with them, the fields of the base that are not known
    of the run).

    known: dotted name -> value. Raises StudyError with the reason if the run does not lie in the
    space.
    """
    values: dict[str, Any] = {}
    for name, parameter in spec.parameters.items():
        if not spec.active(name, values):
            continue
        if name not in known:
            raise StudyError(
                f"{name} is searched and not known of the run; --set {name}=VALUE says it"
            )
        if not parameter.contains(known[name]):
            raise StudyError(f"{name} = {known[name]!r} is outside the space ({parameter})")
        values[name] = known[name]
    base = spec.base
    free = FREE.union(spec.load_trainer().free)
    fixed = [name for name in base if name not in spec.parameters and name not in free]
    for name in fixed:
        if known.get(name, base[name]) != base[name]:
            raise StudyError(f"{name} = {known[name]!r}, the study has {base[name]!r}")
    return values, [name for name in fixed if name not in known]


def trials_by_key(study: Study) -> dict[str, int]:
    """The numbers of the imported trials."""
    trials = study.storage.get_all_trials(study.id, deepcopy=False)
    return {trial.user_attrs[KEY]: trial.number for trial in trials if KEY in trial.user_attrs}


def add_trial(
    study: Study,
    key: str,
    name: str,
    values: Mapping[str, Any],
    curve: Sequence[Point],
    stop: Stop | None,
) -> int:
    """The number of the trial, which is there already if the key is. curve: without the points
    after `stop`; not empty.
    """
    config = study.spec.config(values).flat()
    attributes = {IMPORTED: name, KEY: key} | (
        {"rule": stop.rule, "cause": stop.cause, "reason": stop.reason} if stop else {}
    )
    every = -(-len(curve) // THIN_CURVE)
    thin = {point.step: point.value for point in [*curve[::every], curve[-1]]}
    value = curve[-1].value
    if study.spec.load_trainer().take == "best" and not stop:
        value = study.spec.metric.best([point.value for point in curve])
    with locks.locked(study.engine, study.id) as connection:
        number = trials_by_key(study).get(key)
        if number is None:
            trial_id = study.storage.create_new_trial(
                study.id,
                create_trial(
                    state=TrialState.PRUNED if stop else TrialState.COMPLETE,
                    value=None if stop else value,
                    params=dict(values),
                    distributions={
                        parameter: distribution(study.spec, parameter) for parameter in values
                    },
                    user_attrs=attributes,
                    intermediate_values=thin,
                    constraints={"diverged": 1.0} if stop else None,
                ),
            )
            number = study.storage.get_trial_number_from_id(trial_id)
        else:
            trial_id = study.storage.get_trial_id_from_study_id_trial_number(study.id, number)
        curves.add_imported(connection, trial_id, config, list(curve))
    return number
