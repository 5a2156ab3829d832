"""The list of all the studies of a database."""

import json
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Column, Double, Integer, MetaData, String, Table, cast, func, inspect, select
from sqlalchemy.engine import Connection

from hpo.search import ledger
from hpo.search.database import Database, open_engine
from hpo.search.tables import (
    attempt_table,
    optuna_studies,
    optuna_trials,
    result_table,
    trial_table,
)

_values = Table("trial_values", MetaData(), Column("trial_id", Integer), Column("value", Double))
_attributes = Table("study_user_attributes", MetaData(), Column("study_id", Integer), Column("key", String), Column("value_json", String))


@dataclass(frozen=True)
class Line:
    """One study in the list."""

    name: str
    state: str  # running, paused, stopped, done, idle; foreign: not made by hpo
    ended: int  # trials: complete or stopped
    budget: int | None
    running: int
    failed: int
    best_per: float | None
    last: datetime | None  # an attempt began or ended, or a trial runs


def all_studies(database: Database) -> list[Line]:
    """By name. A few queries, however many studies there are."""
    engine = open_engine(database)
    with engine.connect() as connection:
        # All of our tables are made in one transaction.
        is_ready = inspect(connection).has_table(result_table.name)
    if not is_ready:
        # Optuna is slow to import, so it is asked only here.
        from hpo.search.storage import open_storage

        engine = open_storage(database).engine
    with engine.begin() as connection:
        trials = optuna_trials.c
        counts: dict[int, Counter[str]] = defaultdict(Counter)
        state = cast(trials.state, String)
        for row in connection.execute(
            select(trials.study_id, state.label("state"), func.count().label("n")).group_by(trials.study_id, state)
        ):
            counts[row.study_id][row.state] = row.n
        value = select(trials.study_id, func.min(_values.c.value)).join(_values, _values.c.trial_id == trials.trial_id)
        best = _pairs(connection, value.where(state == "COMPLETE").group_by(trials.study_id))
        moment = func.max(func.coalesce(attempt_table.c.ended, attempt_table.c.begun))
        last = _pairs(connection, select(trials.study_id, moment).join(attempt_table, attempt_table.c.trial_id == trials.trial_id)
                      .group_by(trials.study_id))  # fmt: skip
        attributes: dict[int, dict[str, Any]] = defaultdict(dict)
        for row in connection.execute(select(_attributes).where(_attributes.c.key.in_(["budget", "halt"]))):
            attributes[row.study_id][row.key] = json.loads(row.value_json)
        lease = select(trials.study_id, func.count()).join(trial_table, trial_table.c.trial_id == trials.trial_id)
        lease = lease.where(trial_table.c.lease.is_not(None), trial_table.c.lease_until > func.now())
        held, now = _pairs(connection, lease.group_by(trials.study_id)), ledger.now(connection)
        names = connection.execute(select(optuna_studies.c.study_id, optuna_studies.c.study_name).order_by(optuna_studies.c.study_name))
        return [_line(row.study_name, counts[row.study_id], attributes[row.study_id], best.get(row.study_id), held.get(row.study_id, 0),
                      now if held.get(row.study_id) else last.get(row.study_id)) for row in names]  # fmt: skip


def _pairs(connection: Connection, statement: Any) -> dict[int, Any]:
    return {row[0]: row[1] for row in connection.execute(statement)}


def _line(name: str, count: Counter[str], attributes: Mapping[str, Any], best: float | None, held: int, last: datetime | None) -> Line:
    budget, halt = attributes.get("budget"), attributes.get("halt")
    ended = count["COMPLETE"] + count["PRUNED"]
    state = "foreign" if budget is None else halt["state"] if halt else "running" if held else "idle"
    if state == "idle" and budget and ended >= budget["trials"]:
        state = "done"
    return Line(name, state, ended, budget["trials"] if budget else None, held, count["FAIL"], best, last)


def children(database: Database, name: str) -> list[str]:
    """Studies that were made from one, such as NAME.confirm."""
    return [line.name for line in all_studies(database) if line.name.startswith(f"{name}.")]
