"""Where a study stands: its trials by state, their cost, and which of them wait."""

from datetime import datetime
from typing import Any

from sqlalchemy import String, cast, exists, func, select
from sqlalchemy.engine import Connection, Row

from hpo.store.tables import (
    IMPORTED,
    LAST_ATTEMPT,
    attempt_table,
    optuna_attributes,
    optuna_trials,
    trial_table,
)

ENQUEUED = "enqueued"  # attribute of a trial that a person put into the queue: by whom


def not_imported() -> Any:
    """Of trials: that they were not trained outside."""
    attributes = optuna_attributes.c
    imported = select(attributes.trial_id).where(
        attributes.key == IMPORTED, attributes.trial_id == optuna_trials.c.trial_id
    )
    return ~imported.exists()


def own_trials(study_id: int) -> Any:
    """The study's trials, without imported ones."""
    return (optuna_trials.c.study_id == study_id) & not_imported()


def counts(connection: Connection, study_id: int) -> dict[str, int]:
    """Trials by Optuna's name of their state."""
    state = cast(optuna_trials.c.state, String)
    statement = select(state, func.count()).where(own_trials(study_id)).group_by(state)
    return {row[0]: row[1] for row in connection.execute(statement)}


def gpu_time(connection: Connection, study_id: int) -> tuple[float, float, float | None]:
    """GPU-seconds: of all trials; that the running ones will still take; of a complete trial on average (None: of none)."""
    table, state = trial_table.c, cast(optuna_trials.c.state, String)
    of_study = optuna_trials.join(trial_table, optuna_trials.c.trial_id == table.trial_id)
    mine = own_trials(study_id)
    complete = func.avg(table.gpu_seconds).filter(state == "COMPLETE")
    spent, typical = connection.execute(
        select(func.coalesce(func.sum(table.gpu_seconds), 0), complete)
        .select_from(of_study)
        .where(mine)
    ).one()
    left = func.sum(func.greatest(0, (typical or 0.0) - table.gpu_seconds))
    promised = connection.execute(
        select(func.coalesce(left, 0)).select_from(of_study).where(mine, state == "RUNNING")
    ).scalar_one()
    return spent, promised, typical


def now(connection: Connection) -> datetime:
    found: datetime = connection.execute(select(func.now())).scalar_one()
    return found


def waiting(connection: Connection, study_id: int) -> list[Row[Any]]:
    """Trials that wait, those that a person put in first: trial_id, number, gpu_seconds so far, and outcome and host of the last
    attempt (None: there was none).
    """
    table, trials, attempt = trial_table.c, optuna_trials.c, attempt_table.c
    joined = optuna_trials.outerjoin(trial_table, trials.trial_id == table.trial_id).outerjoin(
        attempt_table, LAST_ATTEMPT
    )
    seconds = func.coalesce(table.gpu_seconds, 0).label("gpu_seconds")
    statement = select(trials.trial_id, trials.number, seconds, attempt.outcome, attempt.host)
    statement = statement.select_from(joined).where(
        trials.study_id == study_id, cast(trials.state, String) == "WAITING"
    )
    by_hand = exists().where(
        optuna_attributes.c.trial_id == trials.trial_id, optuna_attributes.c.key == ENQUEUED
    )
    return list(connection.execute(statement.order_by(by_hand.desc(), trials.number)))


def works_elsewhere(connection: Connection, study_id: int, host: str) -> bool:
    """Whether another host holds a trial of the study now."""
    table, trials = trial_table.c, optuna_trials.c
    statement = select(table.trial_id).join(optuna_trials, trials.trial_id == table.trial_id)
    statement = statement.where(
        trials.study_id == study_id,
        table.host != host,
        table.lease.is_not(None),
        table.lease_until > func.now(),
    )
    return connection.execute(statement.limit(1)).first() is not None


def outcomes(connection: Connection, study_id: int, host: str, here: bool, limit: int) -> list[str]:
    """Of the last attempts that ended on `host`, or on all others; the newest first."""
    attempt, trials = attempt_table.c, optuna_trials.c
    place = attempt.host == host if here else attempt.host != host
    statement = select(attempt.outcome).join(optuna_trials, trials.trial_id == attempt.trial_id)
    statement = statement.where(
        trials.study_id == study_id, place, attempt.outcome.is_not(None)
    ).order_by(attempt.ended.desc())
    return list(connection.execute(statement.limit(limit)).scalars())
