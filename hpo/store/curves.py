"""The fine curves of trials."""

from math import isfinite
from typing import Any

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.engine import Connection

from hpo.curve import Point
from hpo.store.tables import curve_table, trial_table


def add_points(
    connection: Connection, trial_id: int, attempt: int | None, points: list[Point]
) -> None:
    """Add points to a trial's curve. Steps that the curve already has keep their values."""
    if not points:
        return
    rows = [_row(trial_id, attempt, point) for point in points]
    statement = insert(curve_table).values(rows)
    connection.execute(statement.on_conflict_do_nothing(index_elements=["trial_id", "step"]))


def _row(trial_id: int, attempt: int | None, point: Point) -> dict[str, Any]:
    # JSON cannot hold infinities and NaN.
    metrics = {name: value for name, value in point.metrics.items() if isfinite(value)}
    return {
        "trial_id": trial_id,
        "attempt": attempt,
        "step": point.step,
        "value": point.value,
        "loss": point.loss,
        "validation_loss": point.validation_loss,
        "metrics": metrics,
    }


def add_imported(
    connection: Connection, trial_id: int, config: dict[str, Any], points: list[Point]
) -> None:
    """Store the configuration and curve of an imported trial, which has no attempt and no time.

    A second call changes nothing.
    """
    row = {"trial_id": trial_id, "config": config, "step": points[-1].step}
    statement = insert(trial_table).values(row)
    connection.execute(statement.on_conflict_do_nothing(index_elements=["trial_id"]))
    add_points(connection, trial_id, None, points)


def forget_curve_after(connection: Connection, trial_id: int, step: int) -> None:
    """Delete the points after `step`: a trial that resumes there measures them again."""
    curve = curve_table.c
    later = (curve.trial_id == trial_id) & (curve.step > step)
    connection.execute(curve_table.delete().where(later))


def curves_of(connection: Connection, trial_ids: list[int]) -> dict[int, list[Point]]:
    """The curve of each trial by trial id, in the order of steps; empty for a trial without one."""
    curve = curve_table.c
    statement = (
        select(
            curve.trial_id,
            curve.step,
            curve.value,
            curve.loss,
            curve.validation_loss,
            curve.metrics,
        )
        .where(curve.trial_id.in_(trial_ids))
        .order_by(curve.step)
    )
    curves: dict[int, list[Point]] = {trial_id: [] for trial_id in trial_ids}
    for row in connection.execute(statement):
        point = Point(row.step, row.value, row.loss, row.validation_loss, row.metrics)
        curves[row.trial_id].append(point)
    return curves
