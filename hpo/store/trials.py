"""What our tables have of trials beside Optuna's."""

from collections.abc import Iterable
from typing import Any

from sqlalchemy import exists, select
from sqlalchemy.engine import Connection, Row

from hpo.store.findings import VALIDATION
from hpo.store.tables import LAST_ATTEMPT, attempt_table, optuna_trials, score_table, trial_table


def rows_of(connection: Connection, trial_ids: list[int]) -> dict[int, Row[Any]]:
    """Of hpo_trial, with outcome, reason and first step of the last attempt, and `scored`: whether it has a final score."""
    score = score_table.c
    scored = (
        exists()
        .where(score.trial_id == trial_table.c.trial_id, score.partition == VALIDATION)
        .label("scored")
    )
    statement = select(
        *trial_table.c,
        scored,
        attempt_table.c.outcome,
        attempt_table.c.reason,
        attempt_table.c.first_step,
    )
    statement = statement.select_from(trial_table.outerjoin(attempt_table, LAST_ATTEMPT))
    rows: Iterable[Row[Any]] = connection.execute(
        statement.where(trial_table.c.trial_id.in_(trial_ids))
    )
    return {row.trial_id: row for row in rows}


def attempts_of(connection: Connection, trial_ids: list[int]) -> dict[int, list[Row[Any]]]:
    """In order."""
    statement = select(attempt_table).where(attempt_table.c.trial_id.in_(trial_ids))
    found: dict[int, list[Row[Any]]] = {trial_id: [] for trial_id in trial_ids}
    for row in connection.execute(
        statement.order_by(attempt_table.c.trial_id, attempt_table.c.attempt)
    ):
        found[row.trial_id].append(row)
    return found


def place_of(connection: Connection, trial_id: int) -> tuple[int, int]:
    """Study and number of a trial. Raises KeyError."""
    trials = optuna_trials.c
    row = connection.execute(
        select(trials.study_id, trials.number).where(trials.trial_id == trial_id)
    ).first()
    if row is None:
        raise KeyError(trial_id)
    return row.study_id, row.number
