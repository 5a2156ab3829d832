"""What workers have written about trials, in hpo's tables next to Optuna's."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import exists, select
from sqlalchemy.engine import Connection, Row

from hpo.store.findings import VALIDATION
from hpo.store.tables import LAST_ATTEMPT, attempt_table, optuna_trials, score_table, trial_table


@dataclass(frozen=True)
class WorkRow:
    """A trial's row of hpo_trial and the end of its last attempt.

    The defaults are those of a trial that no worker has claimed.
    """

    trial_id: int
    lease: str | None = None
    lease_until: datetime | None = None
    host: str | None = None
    process: str | None = None
    device: str | None = None
    code_version: str | None = None
    data: str | None = None
    # By dotted name.
    config: dict[str, Any] | None = None
    attempts: int = 0
    step: int = 0
    seconds: float = 0.0
    seconds_before: float = 0.0
    gpu_seconds: float = 0.0
    memory: int | None = None
    # Whether the trial has a final score.
    scored: bool = False
    # Of the last attempt.
    outcome: str | None = None
    reason: str | None = None
    first_step: int | None = None


def rows_of(connection: Connection, trial_ids: list[int]) -> dict[int, WorkRow]:
    """The rows by trial id, without the trials that no worker has claimed."""
    score = score_table.c
    scored = (
        exists()
        .where(score.trial_id == trial_table.c.trial_id, score.partition == VALIDATION)
        .label("scored")
    )
    statement = (
        select(
            *trial_table.c,
            scored,
            attempt_table.c.outcome,
            attempt_table.c.reason,
            attempt_table.c.first_step,
        )
        .select_from(trial_table.outerjoin(attempt_table, LAST_ATTEMPT))
        .where(trial_table.c.trial_id.in_(trial_ids))
    )
    rows = [WorkRow(**row) for row in connection.execute(statement).mappings()]
    return {row.trial_id: row for row in rows}


def attempts_of(connection: Connection, trial_ids: list[int]) -> dict[int, list[Row[Any]]]:
    """The rows of each trial's attempts by trial id, the first attempt first."""
    statement = (
        select(attempt_table)
        .where(attempt_table.c.trial_id.in_(trial_ids))
        .order_by(attempt_table.c.trial_id, attempt_table.c.attempt)
    )
    attempts: dict[int, list[Row[Any]]] = {trial_id: [] for trial_id in trial_ids}
    for row in connection.execute(statement):
        attempts[row.trial_id].append(row)
    return attempts


def study_and_number_of(connection: Connection, trial_id: int) -> tuple[int, int]:
    """The id of a trial's study, and the trial's number in it. Raises KeyError."""
    trials = optuna_trials.c
    statement = select(trials.study_id, trials.number).where(trials.trial_id == trial_id)
    row = connection.execute(statement).first()
    if row is None:
        raise KeyError(trial_id)
    return row.study_id, row.number
