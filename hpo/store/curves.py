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
    """Those that are there are kept."""
    if not points:
        return
    rows = [
        {
            "trial_id": trial_id,
            "attempt": attempt,
            "step": point.step,
            "value": point.value,
            "loss": point.loss,
            "validation_loss": point.validation_loss,
            # JSON has no word for what is not finite.
            "metrics": {name: value for name, value in point.metrics.items() if isfinite(value)},
        }
        for point in points
    ]
    statement = insert(curve_table).values(rows)
    connection.execute(statement.on_conflict_do_nothing(index_elements=["trial_id", "step"]))


def add_imported(
    connection: Connection, trial_id: int, config: dict[str, Any], points: list[Point]
) -> None:
    """What a trial that was trained outside has: no attempt, no time. Told twice it is written once."""
    row = {"trial_id": trial_id, "config": config, "step": points[-1].step}
    connection.execute(
        insert(trial_table).values(row).on_conflict_do_nothing(index_elements=["trial_id"])
    )
    add_points(connection, trial_id, None, points)


def forget_curve_after(connection: Connection, trial_id: int, step: int) -> None:
    """A trial that goes on from `step` writes what comes after it again."""
    connection.execute(
        curve_table.delete().where(
            (curve_table.c.trial_id == trial_id) & (curve_table.c.step > step)
        )
    )


def curves_of(connection: Connection, trial_ids: list[int]) -> dict[int, list[Point]]:
    table = curve_table.c
    statement = select(
        table.trial_id, table.step, table.value, table.loss, table.validation_loss, table.metrics
    )
    statement = statement.where(table.trial_id.in_(trial_ids)).order_by(table.step)
    curves: dict[int, list[Point]] = {trial_id: [] for trial_id in trial_ids}
    for trial_id, *values in connection.execute(statement):
        curves[trial_id].append(Point(*values))
    return curves
