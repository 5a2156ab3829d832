"""Where a study stands: its trials by state, their cost, and which of them wait."""

from datetime import datetime
from typing import Any

from sqlalchemy import String, cast, exists, func, select
from sqlalchemy.engine import Connection, Row

from hpo.store.findings import VALIDATION
from hpo.store.tables import (
    IMPORTED,
    LAST_ATTEMPT,
    attempt_table,
    optuna_attributes,
    optuna_trials,
    score_table,
    trial_table,
)

# The device of a worker without a GPU.
CPU = "cpu"
# The attribute of a trial that someone put into the queue. Its value is who did.
ENQUEUED = "enqueued"


def not_imported() -> Any:
    """The condition that a trial was not trained outside."""
    attributes = optuna_attributes.c
    imported = select(attributes.trial_id).where(
        attributes.key == IMPORTED, attributes.trial_id == optuna_trials.c.trial_id
    )
    return ~imported.exists()


def scored() -> Any:
    """The condition that a training has scored the trial: its value was not typed in by hand."""
    score = score_table.c
    of_trial = score.trial_id == optuna_trials.c.trial_id
    return exists().where(of_trial, score.partition == VALIDATION)


def own_trials(study_id: int) -> Any:
    """The condition that a trial belongs to the study and was not imported."""
    return (optuna_trials.c.study_id == study_id) & not_imported()


def counts(connection: Connection, study_id: int) -> dict[str, int]:
    """The number of trials by Optuna's name of their state."""
    state = cast(optuna_trials.c.state, String)
    statement = select(state, func.count()).where(own_trials(study_id)).group_by(state)
    return {row[0]: row[1] for row in connection.execute(statement)}


def gpu_time(connection: Connection, study_id: int) -> tuple[float, float, float | None]:
    """GPU-seconds: spent by all trials, still needed by the running ones, and typical of a trial.

    Typical is the mean over complete trials, or None if there are none. A running trial is
    expected to need the typical time.
    """
    table = trial_table.c
    state = cast(optuna_trials.c.state, String)
    joined = optuna_trials.join(trial_table, optuna_trials.c.trial_id == table.trial_id)
    own = own_trials(study_id)

    total = func.coalesce(func.sum(table.gpu_seconds), 0)
    mean_complete = func.avg(table.gpu_seconds).filter((state == "COMPLETE") & scored())
    statement = select(total, mean_complete).select_from(joined).where(own)
    spent, typical = connection.execute(statement).one()

    left = func.sum(func.greatest(0, (typical or 0.0) - table.gpu_seconds))
    statement = select(func.coalesce(left, 0)).select_from(joined).where(own, state == "RUNNING")
    promised = connection.execute(statement).scalar_one()
    return spent, promised, typical


def on_cpus(connection: Connection, study_id: int) -> bool:
    """Whether workers have claimed trials of the study, and none of them with a GPU."""
    devices = (
        select(trial_table.c.device)
        .join(optuna_trials, optuna_trials.c.trial_id == trial_table.c.trial_id)
        .where(own_trials(study_id), trial_table.c.device.is_not(None))
        .distinct()
    )
    return set(connection.execute(devices).scalars()) == {CPU}


def now(connection: Connection) -> datetime:
    """The time by the database's clock."""
    time: datetime = connection.execute(select(func.now())).scalar_one()
    return time


def waiting(connection: Connection, study_id: int) -> list[Row[Any]]:
    """The trials that wait, those that someone enqueued first, each group by number.

    Each row has trial_id, number, gpu_seconds so far, and outcome and host of the last attempt,
    which are None if there was no attempt.
    """
    table = trial_table.c
    trials = optuna_trials.c
    attempt = attempt_table.c
    joined = optuna_trials.outerjoin(trial_table, trials.trial_id == table.trial_id).outerjoin(
        attempt_table, LAST_ATTEMPT
    )
    gpu_seconds = func.coalesce(table.gpu_seconds, 0).label("gpu_seconds")
    enqueued = exists().where(
        optuna_attributes.c.trial_id == trials.trial_id, optuna_attributes.c.key == ENQUEUED
    )
    statement = (
        select(trials.trial_id, trials.number, gpu_seconds, attempt.outcome, attempt.host)
        .select_from(joined)
        .where(trials.study_id == study_id, cast(trials.state, String) == "WAITING")
        .order_by(enqueued.desc(), trials.number)
    )
    return list(connection.execute(statement))


def works_elsewhere(connection: Connection, study_id: int, host: str) -> bool:
    """Whether a worker on another host holds a trial of the study now."""
    table = trial_table.c
    trials = optuna_trials.c
    statement = (
        select(table.trial_id)
        .join(optuna_trials, trials.trial_id == table.trial_id)
        .where(
            trials.study_id == study_id,
            table.host != host,
            table.lease.is_not(None),
            table.lease_until > func.now(),
        )
        .limit(1)
    )
    return connection.execute(statement).first() is not None


def outcomes_on(connection: Connection, study_id: int, host: str, limit: int) -> list[str]:
    """The outcomes of the last attempts that ended on the host, the newest first."""
    return _outcomes(connection, study_id, attempt_table.c.host == host, limit)


def outcomes_elsewhere(connection: Connection, study_id: int, host: str, limit: int) -> list[str]:
    """The outcomes of the last attempts that ended on all other hosts, the newest first."""
    return _outcomes(connection, study_id, attempt_table.c.host != host, limit)


def _outcomes(connection: Connection, study_id: int, on_host: Any, limit: int) -> list[str]:
    attempt = attempt_table.c
    trials = optuna_trials.c
    statement = (
        select(attempt.outcome)
        .join(optuna_trials, trials.trial_id == attempt.trial_id)
        .where(trials.study_id == study_id, on_host, attempt.outcome.is_not(None))
        .order_by(attempt.ended.desc())
        .limit(limit)
    )
    return list(connection.execute(statement).scalars())
