"""Scores per item, and what was found out about a study."""

from collections.abc import Mapping
from datetime import UTC
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.engine import Connection

from hpo.store.tables import result_table, score_table
from hpo.trainer import Score

VALIDATION = "validation"  # the partition that a search scores on


def put_scores(connection: Connection, trial_id: int, scores: Mapping[str, Score]) -> None:
    """By partition, in the place of those that an attempt before has written."""
    if not scores:
        return
    rows = [
        {
            "trial_id": trial_id,
            "partition": name,
            "errors": list(score.errors),
            "lengths": list(score.lengths),
        }
        for name, score in scores.items()
    ]
    statement = insert(score_table).values(rows)
    again = {"errors": statement.excluded.errors, "lengths": statement.excluded.lengths}
    connection.execute(
        statement.on_conflict_do_update(index_elements=["trial_id", "partition"], set_=again)
    )


def scores_of(connection: Connection, trial_ids: list[int], partition: str) -> dict[int, Score]:
    """By trial id, of those that have a score on the partition."""
    table = score_table.c
    statement = select(table.trial_id, table.errors, table.lengths)
    statement = statement.where(table.partition == partition, table.trial_id.in_(trial_ids))
    rows = connection.execute(statement)
    return {row.trial_id: Score(tuple(row.errors), tuple(row.lengths)) for row in rows}


def put_result(connection: Connection, study_id: int, kind: str, content: dict[str, Any]) -> None:
    """Instead of the one of this kind that is there."""
    statement = insert(result_table).values(study_id=study_id, kind=kind, content=content)
    again = {"content": statement.excluded.content, "made": func.now()}
    connection.execute(
        statement.on_conflict_do_update(index_elements=["study_id", "kind"], set_=again)
    )


def results_of(connection: Connection, study_id: int) -> dict[str, dict[str, Any]]:
    """By kind, each with `made`."""
    rows = connection.execute(select(result_table).where(result_table.c.study_id == study_id))
    return {
        row.kind: {**row.content, "made": row.made.astimezone(UTC).isoformat(timespec="seconds")}
        for row in rows
    }
