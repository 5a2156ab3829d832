"""Scores per item, and the findings about a study."""

from collections.abc import Mapping
from datetime import UTC
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.engine import Connection

from hpo.store.tables import result_table, score_table
from hpo.trainer import Score

# The partition that a search scores on.
VALIDATION = "validation"


def put_scores(connection: Connection, trial_id: int, scores: Mapping[str, Score]) -> None:
    """Store a trial's scores by partition. They replace those of an earlier attempt."""
    if not scores:
        return
    rows = [
        {
            "trial_id": trial_id,
            "partition": partition,
            "errors": list(score.errors),
            "lengths": list(score.lengths),
        }
        for partition, score in scores.items()
    ]
    statement = insert(score_table).values(rows)
    replaced = {"errors": statement.excluded.errors, "lengths": statement.excluded.lengths}
    connection.execute(
        statement.on_conflict_do_update(index_elements=["trial_id", "partition"], set_=replaced)
    )


def scores_of(connection: Connection, trial_ids: list[int], partition: str) -> dict[int, Score]:
    """The scores on a partition by trial id, without the trials that have none there."""
    table = score_table.c
    statement = select(table.trial_id, table.errors, table.lengths)
    statement = statement.where(table.partition == partition, table.trial_id.in_(trial_ids))
    rows = connection.execute(statement)
    return {row.trial_id: Score(tuple(row.errors), tuple(row.lengths)) for row in rows}


def put_result(connection: Connection, study_id: int, kind: str, content: dict[str, Any]) -> None:
    """Store a finding (JSON-ready). It replaces an earlier one of the same kind."""
    statement = insert(result_table).values(study_id=study_id, kind=kind, content=content)
    replaced = {"content": statement.excluded.content, "made": func.now()}
    connection.execute(
        statement.on_conflict_do_update(index_elements=["study_id", "kind"], set_=replaced)
    )


def results_of(connection: Connection, study_id: int) -> dict[str, dict[str, Any]]:
    """The study's findings by kind. Each has its time under `made` (ISO 8601, UTC)."""
    rows = connection.execute(select(result_table).where(result_table.c.study_id == study_id))
    results: dict[str, dict[str, Any]] = {}
    for row in rows:
        made = row.made.astimezone(UTC).isoformat(timespec="seconds")
        results[row.kind] = {**row.content, "made": made}
    return results
