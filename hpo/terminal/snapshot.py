"""A study at one moment, for a display that looks every two seconds: a few aggregates and the trials that run.

Study.records() reads every trial with its configuration and its errors per sentence, too much for that with thousands.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import String, and_, cast, func, select
from sqlalchemy.engine import Connection

from hpo.space.budget import Budget, Pace, Spent, seconds_left
from hpo.store.standing import own_trials
from hpo.store.tables import (
    curve_table,
    optuna_attributes,
    optuna_trials,
    optuna_values,
    trial_table,
)
from hpo.study.reader import StudyReader
from hpo.study.record import STATES
from hpo.study.trial import Halt, State
from hpo.trainer import Metric

OUTCOMES = 20  # of the trials that ended last


@dataclass(frozen=True)
class Running:
    number: int
    host: str
    device: str
    step: int
    steps: int
    lease_age: float  # seconds since it was renewed
    rate: float | None  # steps/s since the evaluation before, evaluation not included
    memory: int | None  # bytes that its process took at most
    values: tuple[float, ...]  # of the metric, along its curve


@dataclass(frozen=True)
class Ended:
    number: int
    name: str  # of the start that it is, or what a child's trial retrains; empty: neither
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
    ended: tuple[Ended, ...]  # the last one first
    best: tuple[int, float] | None  # number, and value of the metric
    starts: Mapping[str, Ended]
    seconds_left: float | None  # at the pace so far


def snapshot(study: StudyReader) -> Snapshot:
    """Raises DatabaseAwayError."""
    budget, halt = study.budget, study.halt
    with study.engine.begin() as connection:
        spent = study.spent_in(connection)
        running = _running(connection, study)
        waiting = select(func.count()).where(_of(study), _state() == "WAITING")
        joined = optuna_trials.join(
            optuna_values, optuna_values.c.trial_id == optuna_trials.c.trial_id
        )
        value = select(optuna_trials.c.number, optuna_values.c.value).select_from(joined)
        complete = value.where(_of(study), _state() == "COMPLETE")
        best_first = study.spec.metric.sign * optuna_values.c.value
        best = connection.execute(
            complete.order_by(best_first, optuna_trials.c.number).limit(1)
        ).first()
        return Snapshot(
            name=study.name,
            metric=study.spec.metric,
            budget=budget,
            spent=spent,
            halt=halt,
            waiting=connection.execute(waiting).scalar_one(),
            running=running,
            ended=tuple(ended for _, ended in _outcomes(connection, study)),
            best=(best.number, best.value) if best else None,
            starts=dict(_outcomes(connection, study, starts=True)),
            seconds_left=_seconds_left(connection, study, budget, spent, running),
        )


def _of(study: StudyReader) -> Any:
    return own_trials(study.id)


def _state() -> Any:
    return cast(optuna_trials.c.state, String)


def _running(connection: Connection, study: StudyReader) -> tuple[Running, ...]:
    table = trial_table.c
    age = study.spec.attempts.lease_seconds - func.extract("epoch", table.lease_until - func.now())
    statement = select(
        optuna_trials.c.trial_id,
        optuna_trials.c.number,
        table.host,
        table.device,
        table.step,
        table.memory,
        age.label("age"),
    )
    statement = statement.add_columns(table.config["steps"].as_integer().label("steps"))
    statement = statement.join(trial_table, table.trial_id == optuna_trials.c.trial_id).where(
        _of(study), _state() == "RUNNING"
    )
    rows = list(connection.execute(statement.order_by(optuna_trials.c.number)))
    pace = curve_table.c.metrics["step_seconds"].as_float().label("step_seconds")
    points = select(curve_table.c.trial_id, curve_table.c.value, pace)
    points = points.where(curve_table.c.trial_id.in_([row.trial_id for row in rows])).order_by(
        curve_table.c.step
    )
    curves: dict[int, list[Any]] = {row.trial_id: [] for row in rows}
    for point in connection.execute(points):
        curves[point.trial_id].append(point)

    def one(row: Any) -> Running:
        curve = curves[row.trial_id]
        rate = 1 / curve[-1].step_seconds if curve and curve[-1].step_seconds else None
        host, device = (row.host or "").split(" ")[0], (row.device or "").split(" ")[0]
        return Running(row.number, host, device, row.step, row.steps or 0, max(0.0, float(row.age or 0)), rate,
                       row.memory, tuple(point.value for point in curve))  # fmt: skip

    return tuple(one(row) for row in rows)


def _outcomes(
    connection: Connection, study: StudyReader, starts: bool = False
) -> list[tuple[str, Ended]]:
    """The last that ended; or all the starts, each with its name."""
    reason, start, label = (optuna_attributes.alias() for _ in range(3))
    trials = optuna_trials.c
    joined = optuna_trials.outerjoin(optuna_values, optuna_values.c.trial_id == trials.trial_id)
    joined = joined.outerjoin(
        reason, and_(reason.c.trial_id == trials.trial_id, reason.c.key == "reason")
    )
    joined = joined.outerjoin(
        label, and_(label.c.trial_id == trials.trial_id, label.c.key == "label")
    )
    joined = joined.join(
        start, and_(start.c.trial_id == trials.trial_id, start.c.key == "start"), isouter=not starts
    )
    statement = select(
        trials.number,
        _state().label("state"),
        optuna_values.c.value,
        reason.c.value_json,
        start.c.value_json.label("start"),
        label.c.value_json.label("label"),
    )
    statement = statement.select_from(joined).where(_of(study))
    if starts:
        statement = statement.order_by(trials.number)
    else:
        ended = statement.where(
            trials.datetime_complete.is_not(None), _state().in_(["COMPLETE", "PRUNED", "FAIL"])
        )
        statement = ended.order_by(trials.datetime_complete.desc()).limit(OUTCOMES)

    def one(row: Any) -> Ended:
        value = row.value if row.state == "COMPLETE" else None
        name, reason = (
            json.loads(text or '""') for text in (row.start or row.label, row.value_json)
        )
        return Ended(row.number, name, STATES[row.state], value, reason)

    return [(json.loads(row.start or '""'), one(row)) for row in connection.execute(statement)]


def _seconds_left(
    connection: Connection,
    study: StudyReader,
    budget: Budget,
    spent: Spent,
    running: tuple[Running, ...],
) -> float | None:
    table = trial_table.c
    ended = func.avg(table.step).filter(_state().in_(["COMPLETE", "PRUNED"]))
    statement = select(
        func.sum(table.step).label("steps"),
        func.sum(table.seconds).label("seconds"),
        ended.label("typical"),
    )
    row = connection.execute(
        statement.join(optuna_trials, optuna_trials.c.trial_id == table.trial_id).where(_of(study))
    ).one()
    pace = Pace(
        steps=row.steps or 0,
        seconds=float(row.seconds or 0),
        gpu_seconds=spent.gpu_seconds,
        typical=None if row.typical is None else float(row.typical),
        begun=spent.ended + len(running),
        running=len(running),
        to_come=sum(trial.steps - trial.step for trial in running),
    )
    return seconds_left(budget, pace, spent.now)
