"""Steers a running study: pause, resume, stop, kill or enqueue a trial, leave a note.

Each function writes to the database and returns at once. Workers notice it within seconds, at
their next renewal of a lease, on a connection that they have anyway. There is no other channel
that a firewall could close.
"""

import getpass
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from html import escape
from typing import Any, Literal

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.samplers import RandomSampler
from optuna.trial import TrialState

from hpo import process
from hpo.errors import SpecError, StudyError
from hpo.space.parameter import Parameter
from hpo.space.spec import StudySpec
from hpo.store import leases, locks, standing
from hpo.study.reader import StudyReader
from hpo.study.record import STATES
from hpo.study.study import Study
from hpo.study.trial import BY_HAND, Halt


def current_user() -> str:
    """The user of this process as USER@HOST."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        # A container without an account of this number.
        user = str(os.getuid())
    return f"{user}@{process.this_host()}"


def halt(study: StudyReader, state: Literal["paused", "stopped"], why: str = "") -> Halt:
    """Pause or stop the study.

    Workers hand their trials back with a checkpoint. Those of a paused study wait, those of a
    stopped one leave.
    """
    since = datetime.now(UTC).isoformat(timespec="seconds")
    new = Halt(state, current_user(), since, why)
    study.set_attribute("halt", asdict(new))
    return new


def resume(study: StudyReader) -> Halt | None:
    """End a pause or a stop. Returns the one that ended; None if there was none."""
    ended = study.halt
    if ended:
        study.set_attribute("halt", None)
    return ended


def kill(study: Study, number: int, why: str = "") -> bool:
    """Stop a running or waiting trial by hand. Returns whether it was running.

    The trial counts against the budget, and the sampler sees it as stopped, not as diverged.
    Raises StudyError.
    """
    storage = study.storage
    reason = f"by hand, {current_user()}"
    if why:
        reason += f": {why}"
    trial_id = _trial_id(study, number)
    with locks.locked(study.engine, study.id):
        was_running = storage.get_trial(trial_id).state == TrialState.RUNNING
        try:
            _stop_by_hand(study, trial_id, reason)
        except UpdateFinishedTrialError:
            state = STATES[storage.get_trial(trial_id).state.name]
            raise StudyError(
                f"trial {number} of study {study.name} is over ({state}): nothing to kill. "
                f"{_unfinished(study)}"
            ) from None
    return was_running


def _stop_by_hand(study: Study, trial_id: int, reason: str) -> None:
    """Raises UpdateFinishedTrialError if the trial is over."""
    with study.engine.begin() as connection:
        has_configuration = leases.revoke(connection, trial_id, BY_HAND, reason)
    if has_configuration is None:
        raise UpdateFinishedTrialError
    if not has_configuration:
        # A stopped trial without parameters would hide those of all other trials from TPE.
        with suppress(SpecError, ValueError):
            study.configure(trial_id)
    attributes = {"rule": BY_HAND, "cause": BY_HAND, "reason": reason}
    study.end_trial(trial_id, TrialState.PRUNED, attributes)


def _trial_id(study: Study, number: int) -> int:
    try:
        return study.storage.get_trial_id_from_study_id_trial_number(study.id, number)
    except KeyError:
        raise StudyError(
            f"study {study.name}: there is no trial {number}. {_unfinished(study)}"
        ) from None


def _unfinished(study: Study) -> str:
    """The trials that can be killed, for a message."""
    trials = study.storage.get_all_trials(
        study.id, deepcopy=False, states=(TrialState.RUNNING, TrialState.WAITING)
    )
    numbers = ", ".join(str(trial.number) for trial in trials)
    return f"Running or waiting: {numbers or 'none'}"


def chosen_values(
    spec: StudySpec, given: Mapping[str, Any], like: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """Values for a trial to enqueue, and the names of the parameters that the sampler draws.

    given: fields of the configuration, which come before those of `like`. Where a given field
    exists only with a value of another that is not named, that one takes the base's value if it
    fits. Raises SpecError for values outside the space.
    """
    given = _implied(spec, given, like) | dict(given)
    for name in given:
        if name not in spec.parameters:
            fixed = spec.base[name]
            raise SpecError(
                f"hpo enqueue: {name} is not searched, it is {fixed!r}. "
                f"Valid: {', '.join(spec.parameters)}"
            )
    values: dict[str, Any] = {}
    sampled: list[str] = []
    for name, parameter in spec.parameters.items():
        depends_on_sampled = any(parent in sampled for parent in parameter.when)
        if depends_on_sampled or not spec.active(name, values):
            if name in given:
                raise _needs_parents(name, given[name], parameter)
            if depends_on_sampled:
                sampled.append(name)
        elif name in given:
            values[name] = _checked(spec, values, name, given[name])
        elif name in like:
            values[name] = _checked(spec, values, name, like[name])
        else:
            sampled.append(name)
    return values, sampled


def _implied(spec: StudySpec, given: Mapping[str, Any], like: Mapping[str, Any]) -> dict[str, Any]:
    """The base's values of parameters that nobody names but that given ones depend on."""
    base = spec.base
    implied: dict[str, Any] = {}
    # A parent stands before its children, so children come first here.
    for name, parameter in reversed(spec.parameters.items()):
        if name not in given and name not in implied:
            continue
        for parent, allowed in parameter.when.items():
            if parent not in given and parent not in like and base[parent] in allowed:
                implied[parent] = base[parent]
    return implied


def _needs_parents(name: str, value: Any, parameter: Parameter) -> SpecError:
    needs = ", ".join(f"{parent}={allowed[0]}" for parent, allowed in parameter.when.items())
    return SpecError(f"hpo enqueue {name}={value}: {name} exists only with {needs}. Give that too")


def _checked(spec: StudySpec, values: Mapping[str, Any], name: str, value: Any) -> Any:
    """The value as the type of its field. Raises SpecError if the space does not contain it."""
    config = spec.config({**values, name: value}, "hpo enqueue ")
    typed = config.flat()[name]
    parameter = spec.parameters[name]
    if not parameter.contains(typed):
        raise SpecError(f"hpo enqueue: {name} = {typed!r} is outside the space. Valid: {parameter}")
    return typed


def enqueue(study: Study, values: Mapping[str, Any]) -> int:
    """Let a trial with these values wait, before all others. Returns its number.

    Raises StudyError for a child study.
    """
    child = study.spec.child
    if child:
        raise StudyError(
            f"study {study.name} retrains configurations of {child.parent}: "
            f"no trial can be enqueued. Give --study {child.parent}"
        )
    with locks.locked(study.engine, study.id):
        study.optuna.enqueue_trial(dict(values), user_attrs={standing.ENQUEUED: current_user()})
        waiting = study.storage.get_all_trials(
            study.id, deepcopy=False, states=(TrialState.WAITING,)
        )
        return max(trial.number for trial in waiting)


def note(study: Study, text: str, number: int | None = None) -> None:
    """Add text to the note of the study, or of a trial, that optuna-dashboard shows.

    optuna-dashboard reads notes as Markdown with HTML, so the text is escaped. Raises StudyError.
    """
    # Slow to import.
    from optuna_dashboard import get_note, save_note

    annotated: optuna.Study | optuna.Trial = study.optuna
    if number is not None:
        annotated = study.optuna_trial(_trial_id(study, number), RandomSampler())
    before = get_note(annotated)
    signature = f"*{current_user()}, {datetime.now():%Y-%m-%d %H:%M}*"
    added = f"{escape(text, quote=False)}\n\n{signature}"
    save_note(annotated, f"{before}\n\n{added}" if before else added)
