"""What people do to a study that runs: pause, resume, stop, kill a trial, put one in, leave a note.

Each is a write to the database and returns at once. Workers learn of it with their next renewal of a lease, within
seconds, on the connection that they have anyway; there is no other channel that a firewall could close.
"""

import getpass
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from html import escape
from typing import Any, Literal

from optuna.exceptions import UpdateFinishedTrialError
from optuna.samplers import RandomSampler
from optuna.trial import TrialState

from hpo import process
from hpo.errors import SpecError, StudyError
from hpo.space.spec import StudySpec
from hpo.store import leases, locks, standing
from hpo.study.reader import StudyReader
from hpo.study.record import STATES
from hpo.study.study import Study
from hpo.study.trial import BY_HAND, Halt


def person() -> str:
    """USER@HOST of whoever asks."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container without the account
        user = str(os.getuid())
    return f"{user}@{process.this_host()}"


def halt(study: StudyReader, state: Literal["paused", "stopped"], why: str = "") -> Halt:
    """Trials that run are handed back with a checkpoint; workers of a paused study wait, of a stopped one leave."""
    found = Halt(state, person(), datetime.now(UTC).isoformat(timespec="seconds"), why)
    study.set_attribute("halt", asdict(found))
    return found


def resume(study: StudyReader) -> Halt | None:
    """End a pause or a stop. Returns what it was; None: there was none."""
    found = study.halt
    if found:
        study.set_attribute("halt", None)
    return found


def kill(study: Study, number: int, why: str = "") -> bool:
    """End a trial that runs or waits: it stays as stopped by hand. It counts as one of the budget's, and the sampler sees it as
    stopped, not as diverged. Returns whether it ran. Raises StudyError.
    """
    storage, reason = study.storage, f"by hand, {person()}" + (f": {why}" if why else "")
    trial_id = _trial_id(study, number)
    with locks.locked(study.engine, study.id):
        before = storage.get_trial(trial_id)
        try:
            with study.engine.begin() as connection:
                configured = leases.take_away(connection, trial_id, BY_HAND, reason)
            if configured is None:
                raise UpdateFinishedTrialError
            if not configured:
                with suppress(
                    SpecError, ValueError
                ):  # a stopped trial without parameters would blind TPE to those of all others
                    study.configure(trial_id)
            study.end_trial(
                trial_id, TrialState.PRUNED, {"rule": BY_HAND, "cause": BY_HAND, "reason": reason}
            )
        except UpdateFinishedTrialError:
            state = STATES[storage.get_trial(trial_id).state.name]
            raise StudyError(
                f"trial {number} of study {study.name} is over ({state}): nothing to kill. {_open(study)}"
            ) from None
    return before.state == TrialState.RUNNING


def _trial_id(study: Study, number: int) -> int:
    try:
        return study.storage.get_trial_id_from_study_id_trial_number(study.id, number)
    except KeyError:
        raise StudyError(
            f"study {study.name}: there is no trial {number}. {_open(study)}"
        ) from None


def _open(study: Study) -> str:
    """What may be killed."""
    trials = study.storage.get_all_trials(
        study.id, deepcopy=False, states=(TrialState.RUNNING, TrialState.WAITING)
    )
    return f"Running or waiting: {', '.join(str(trial.number) for trial in trials) or 'none'}"


def chosen_values(
    spec: StudySpec, given: Mapping[str, Any], like: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """A value for each parameter that is `given` or in `like`, and the names of those that the sampler is to choose.

    given: fields of the configuration. What one of them exists only with, and nothing names, is the base's if that fits.
    Raises SpecError for what the space does not contain.
    """
    given = _parents(spec, given, like) | dict(given)
    for name in given:
        if name not in spec.parameters:
            fixed = spec.base[name]
            raise SpecError(
                f"hpo enqueue: {name} is not searched, it is {fixed!r}. Valid: {', '.join(spec.parameters)}"
            )
    values: dict[str, Any] = {}
    sampled: list[str] = []
    for name, parameter in spec.parameters.items():
        open_parents = [parent for parent in parameter.when if parent in sampled]
        if open_parents or not spec.active(name, values):
            if name in given:
                needs = ", ".join(
                    f"{parent}={allowed[0]}" for parent, allowed in parameter.when.items()
                )
                raise SpecError(
                    f"hpo enqueue {name}={given[name]}: {name} exists only with {needs}. Give that too"
                )
            if open_parents:
                sampled.append(name)
        elif name in given or name in like:
            value = (given if name in given else like)[name]
            value = spec.config({**values, name: value}, "hpo enqueue ").flat()[name]
            if not parameter.contains(value):
                raise SpecError(
                    f"hpo enqueue: {name} = {value!r} is outside the space. Valid: {parameter}"
                )
            values[name] = value
        else:
            sampled.append(name)
    return values, sampled


def _parents(spec: StudySpec, given: Mapping[str, Any], like: Mapping[str, Any]) -> dict[str, Any]:
    """The base's values of parameters that nothing names and without which a given one would not exist."""
    base, found = spec.base, dict[str, Any]()
    for name, parameter in reversed(spec.parameters.items()):  # a parent stands before its children
        for parent, allowed in parameter.when.items() if name in given or name in found else ():
            if parent not in given and parent not in like and base[parent] in allowed:
                found[parent] = base[parent]
    return found


def enqueue(study: Study, values: Mapping[str, Any]) -> int:
    """Let a trial with these values wait, before all others that do. Returns its number. Raises StudyError."""
    if child := study.spec.child:
        parent = child.parent
        raise StudyError(
            f"study {study.name} retrains configurations of {parent}: nothing can be put in. Give --study {parent}"
        )
    with locks.locked(study.engine, study.id):
        study.optuna.enqueue_trial(dict(values), user_attrs={standing.ENQUEUED: person()})
        waiting = study.storage.get_all_trials(
            study.id, deepcopy=False, states=(TrialState.WAITING,)
        )
        return max(trial.number for trial in waiting)


def note(study: Study, text: str, number: int | None = None) -> None:
    """Add to the note of the study, or of a trial, that optuna-dashboard shows. It reads Markdown with HTML; ours is text.

    Raises StudyError.
    """
    from optuna_dashboard import get_note, save_note  # takes seconds

    of = (
        study.optuna
        if number is None
        else study.optuna_trial(_trial_id(study, number), RandomSampler())
    )
    before = get_note(of)
    said = f"{escape(text, quote=False)}\n\n*{person()}, {datetime.now():%Y-%m-%d %H:%M}*"
    save_note(of, f"{before}\n\n{said}" if before else said)
