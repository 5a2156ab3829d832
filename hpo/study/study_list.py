"""The list of all the studies of a database."""

import json
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import String, cast, func, select
from sqlalchemy.engine import Connection

from hpo.space.upgrade import metric_of
from hpo.store import standing
from hpo.store.database import Database
from hpo.store.storage import ready_engine
from hpo.store.tables import (
    attempt_table,
    optuna_studies,
    optuna_study_attributes,
    optuna_trials,
    optuna_values,
    trial_table,
)
from hpo.trainer import Metric


@dataclass(frozen=True)
class Line:
    """One study in the list."""

    name: str
    state: str  # running, paused, stopped, done, idle; foreign: not made by hpo
    ended: int  # trials: complete or stopped
    budget: int | None
    running: int
    failed: int
    metric: Metric | None  # None: foreign
    best_value: float | None
    last: datetime | None  # an attempt began or ended, or a trial runs


def all_studies(database: Database) -> list[Line]:
    """By name. A few queries, however many studies there are."""
    engine = ready_engine(database)
    with engine.begin() as connection:
        trials = optuna_trials.c
        counts: dict[int, Counter[str]] = defaultdict(Counter)
        state = cast(trials.state, String)
        for row in connection.execute(
            select(trials.study_id, state.label("state"), func.count().label("n"))
            .where(standing.not_imported())
            .group_by(trials.study_id, state)
        ):
            counts[row.study_id][row.state] = row.n
        values = select(
            trials.study_id, func.min(optuna_values.c.value), func.max(optuna_values.c.value)
        )
        values = values.join(optuna_values, optuna_values.c.trial_id == trials.trial_id).where(
            state == "COMPLETE", standing.not_imported()
        )
        ends = {
            row[0]: (row[1], row[2]) for row in connection.execute(values.group_by(trials.study_id))
        }
        moment = func.max(func.coalesce(attempt_table.c.ended, attempt_table.c.begun))
        last = _pairs(connection, select(trials.study_id, moment).join(attempt_table, attempt_table.c.trial_id == trials.trial_id)
                      .group_by(trials.study_id))  # fmt: skip
        attributes: dict[int, dict[str, Any]] = defaultdict(dict)
        shown = optuna_study_attributes.c.key.in_(["budget", "halt", "metric"])
        for row in connection.execute(select(optuna_study_attributes).where(shown)):
            attributes[row.study_id][row.key] = json.loads(row.value_json)
        lease = select(trials.study_id, func.count()).join(
            trial_table, trial_table.c.trial_id == trials.trial_id
        )
        lease = lease.where(
            trial_table.c.lease.is_not(None), trial_table.c.lease_until > func.now()
        )
        held, now = _pairs(connection, lease.group_by(trials.study_id)), standing.now(connection)
        names = connection.execute(
            select(optuna_studies.c.study_id, optuna_studies.c.study_name).order_by(
                optuna_studies.c.study_name
            )
        )
        return [_line(row.study_name, counts[row.study_id], attributes[row.study_id], ends.get(row.study_id), held.get(row.study_id, 0),
                      now if held.get(row.study_id) else last.get(row.study_id)) for row in names]  # fmt: skip


def _pairs(connection: Connection, statement: Any) -> dict[int, Any]:
    return {row[0]: row[1] for row in connection.execute(statement)}


def _line(
    name: str,
    count: Counter[str],
    attributes: Mapping[str, Any],
    ends: tuple[float, float] | None,
    held: int,
    last: datetime | None,
) -> Line:
    budget, halt = attributes.get("budget"), attributes.get("halt")
    ended = count["COMPLETE"] + count["PRUNED"]
    state = (
        "foreign" if budget is None else halt["state"] if halt else "running" if held else "idle"
    )
    if state == "idle" and budget and ended >= budget["trials"]:
        state = "done"
    metric = metric_of(attributes) if budget else None
    best = metric.best(ends) if metric and ends else None
    return Line(
        name,
        state,
        ended,
        budget["trials"] if budget else None,
        held,
        count["FAIL"],
        metric,
        best,
        last,
    )


def children(database: Database, name: str) -> list[str]:
    """Studies that were made from one, such as NAME.confirm."""
    return [line.name for line in all_studies(database) if line.name.startswith(f"{name}.")]
