"""A study at one moment, cheap enough for a display that looks every two seconds.

It reads a few aggregates and the running trials. `StudyReader.records` would read every trial with
its configuration and its errors per sentence, which is too much for studies of thousands of trials.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Row, Select, String, and_, cast, func, select
from sqlalchemy.engine import Connection

from hpo.space.budget import Budget, Pace, Spent, seconds_left
from hpo.store.standing import own_trials, scored
from hpo.store.tables import (
    curve_table,
    optuna_attributes,
    optuna_trials,
    optuna_values,
    trial_table,
)
from hpo.study.reader import StudyReader
from hpo.study.record import ENDED_BY_HAND, FINISHED, STATES
from hpo.study.trial import Halt, State
from hpo.trainer import Metric

# How many of the trials that ended last a snapshot has.
OUTCOMES = 20

# The attributes of a trial that a snapshot shows, each a table of its own in a query.
REASON = optuna_attributes.alias("reason")
START = optuna_attributes.alias("start")
LABEL = optuna_attributes.alias("label")


@dataclass(frozen=True)
class Running:
    """A running trial."""

    number: int
    host: str
    device: str
    step: int
    steps: int
    # Seconds since the lease was renewed.
    lease_age: float
    # Steps per second since the previous evaluation, without the evaluations themselves.
    rate: float | None
    # The most memory that its process took, in bytes.
    memory: int | None
    # The metric along the curve.
    values: tuple[float, ...]


@dataclass(frozen=True)
class Ended:
    """A trial that ended, or a start in any state."""

    number: int
    # Name of the start, or what a child's trial retrains; empty for other trials.
    name: str
    state: State
    value: float | None
    reason: str


@dataclass(frozen=True)
class Snapshot:
    name: str
    metric: Metric
    budget: Budget
    spent: Spent
    halt: Halt | None
    waiting: int
    running: tuple[Running, ...]
    # The last one first, OUTCOMES at most.
    ended: tuple[Ended, ...]
    # Number and value of the best trial.
    best: tuple[int, float] | None
    # By name.
    starts: Mapping[str, Ended]
    # Until the budget is spent, at the pace so far; None if that is not known.
    seconds_left: float | None


def snapshot(study: StudyReader) -> Snapshot:
    """Raises DatabaseAwayError."""
    budget = study.budget
    halt = study.halt
    with study.engine.begin() as connection:
        spent = study.spent_in(connection)
        running = _running(connection, study)
        return Snapshot(
            name=study.name,
            metric=study.spec.metric,
            budget=budget,
            spent=spent,
            halt=halt,
            waiting=_count_waiting(connection, study),
            running=running,
            ended=_ended(connection, study),
            best=_best(connection, study),
            starts=_starts(connection, study),
            seconds_left=seconds_left(budget, _pace(connection, study, spent, running), spent.now),
        )


def _state() -> ColumnElement[str]:
    """Optuna's name of a trial's state."""
    return cast(optuna_trials.c.state, String)


def _count_waiting(connection: Connection, study: StudyReader) -> int:
    waiting = select(func.count()).where(own_trials(study.id), _state() == "WAITING")
    return connection.execute(waiting).scalar_one()


def _best(connection: Connection, study: StudyReader) -> tuple[int, float] | None:
    """Number and value of the best complete trial, the first one of equal trials."""
    same_trial = optuna_values.c.trial_id == optuna_trials.c.trial_id
    best_first = study.spec.metric.sign * optuna_values.c.value
    statement = (
        select(optuna_trials.c.number, optuna_values.c.value)
        .select_from(optuna_trials.join(optuna_values, same_trial))
        .where(own_trials(study.id), _state() == "COMPLETE", scored())
        .order_by(best_first, optuna_trials.c.number)
        .limit(1)
    )
    row = connection.execute(statement).first()
    return None if row is None else (row.number, row.value)


# ---- running trials


def _running(connection: Connection, study: StudyReader) -> tuple[Running, ...]:
    trial = trial_table.c
    until_expiry = func.extract("epoch", trial.lease_until - func.now())
    statement = (
        select(
            optuna_trials.c.trial_id,
            optuna_trials.c.number,
            trial.host,
            trial.device,
            trial.step,
            trial.memory,
            (study.spec.attempts.lease_seconds - until_expiry).label("lease_age"),
            trial.config["steps"].as_integer().label("steps"),
        )
        .join(trial_table, trial.trial_id == optuna_trials.c.trial_id)
        .where(own_trials(study.id), _state() == "RUNNING")
        .order_by(optuna_trials.c.number)
    )
    rows = list(connection.execute(statement))
    curves = _curves(connection, [row.trial_id for row in rows])
    return tuple(_running_trial(row, curves[row.trial_id]) for row in rows)


def _curves(connection: Connection, trial_ids: list[int]) -> dict[int, list[Row[Any]]]:
    """The points of each trial's curve, with `value` and `step_seconds`, in the order of steps."""
    point = curve_table.c
    step_seconds = point.metrics["step_seconds"].as_float().label("step_seconds")
    statement = (
        select(point.trial_id, point.value, step_seconds)
        .where(point.trial_id.in_(trial_ids))
        .order_by(point.step)
    )
    curves: dict[int, list[Row[Any]]] = {trial_id: [] for trial_id in trial_ids}
    for row in connection.execute(statement):
        curves[row.trial_id].append(row)
    return curves


def _running_trial(row: Row[Any], curve: list[Row[Any]]) -> Running:
    rate = None
    if curve and curve[-1].step_seconds:
        rate = 1 / curve[-1].step_seconds
    return Running(
        number=row.number,
        host=_first_word(row.host),
        device=_first_word(row.device),
        step=row.step,
        steps=row.steps or 0,
        lease_age=max(0.0, float(row.lease_age or 0)),
        rate=rate,
        memory=row.memory,
        values=tuple(point.value for point in curve),
    )


def _first_word(text: str | None) -> str:
    """A device without its model, such as `cuda:0` of `cuda:0 (H200)`."""
    return (text or "").split(" ")[0]


# ---- trials that ended, and starts


def _ended(connection: Connection, study: StudyReader) -> tuple[Ended, ...]:
    ended_at = optuna_trials.c.datetime_complete
    statement = (
        _outcomes(study)
        .where(ended_at.is_not(None), _state().in_(FINISHED))
        .order_by(ended_at.desc())
        .limit(OUTCOMES)
    )
    return tuple(_outcome(row) for row in connection.execute(statement))


def _starts(connection: Connection, study: StudyReader) -> dict[str, Ended]:
    statement = (
        _outcomes(study).where(START.c.trial_id.is_not(None)).order_by(optuna_trials.c.number)
    )
    outcomes = [_outcome(row) for row in connection.execute(statement)]
    return {outcome.name: outcome for outcome in outcomes}


def _outcomes(study: StudyReader) -> Select[Any]:
    """The study's trials with their values and the attributes that `_outcome` reads."""
    trial = optuna_trials.c
    joined = optuna_trials.outerjoin(optuna_values, optuna_values.c.trial_id == trial.trial_id)
    for attribute, key in ((REASON, "reason"), (LABEL, "label"), (START, "start")):
        of_trial = and_(attribute.c.trial_id == trial.trial_id, attribute.c.key == key)
        joined = joined.outerjoin(attribute, of_trial)
    return (
        select(
            trial.number,
            _state().label("state"),
            optuna_values.c.value,
            REASON.c.value_json.label("reason"),
            START.c.value_json.label("start"),
            LABEL.c.value_json.label("label"),
            scored().label("scored"),
        )
        .select_from(joined)
        .where(own_trials(study.id))
    )


def _outcome(row: Row[Any]) -> Ended:
    ended_by_hand = row.state == "COMPLETE" and not row.scored
    state = "stopped" if ended_by_hand else STATES[row.state]
    return Ended(
        number=row.number,
        name=_plain_text(row.start or row.label),
        state=state,
        value=row.value if state == "complete" else None,
        reason=_plain_text(row.reason) or (ENDED_BY_HAND if ended_by_hand else ""),
    )


def _plain_text(value_json: str | None) -> str:
    """An attribute's value; empty if the trial does not have the attribute."""
    if not value_json:
        return ""
    text: str = json.loads(value_json)
    return text


# ---- time left


def _pace(
    connection: Connection, study: StudyReader, spent: Spent, running: tuple[Running, ...]
) -> Pace:
    trial = trial_table.c
    typical = func.avg(trial.step).filter(_state().in_(["COMPLETE", "PRUNED"]))
    statement = (
        select(
            func.sum(trial.step).label("steps"),
            func.sum(trial.seconds).label("seconds"),
            typical.label("typical"),
        )
        .join(optuna_trials, optuna_trials.c.trial_id == trial.trial_id)
        .where(own_trials(study.id))
    )
    row = connection.execute(statement).one()
    return Pace(
        steps=row.steps or 0,
        seconds=float(row.seconds or 0),
        gpu_seconds=spent.gpu_seconds,
        typical=None if row.typical is None else float(row.typical),
        started=spent.ended + len(running),
        running=len(running),
        steps_left=sum(each.steps - each.step for each in running),
    )
