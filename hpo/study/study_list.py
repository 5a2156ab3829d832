"""The list of all the studies of a database."""

import json
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import String, cast, func, select
from sqlalchemy.engine import Connection

from hpo.space.upgrade import made_by_hpo, metric_of
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
class StudySummary:
    """One study in the list."""

    name: str
    # running, paused, stopped, done, idle, or foreign if hpo did not create it.
    state: str
    # Numbers of trials. Ended ones are complete or stopped; the budget is None in foreign studies.
    ended: int
    budget: int | None
    running: int
    failed: int
    # None in foreign studies.
    metric: Metric | None
    best_value: float | None
    # When an attempt last began or ended; now, if a trial runs.
    last: datetime | None


def all_studies(database: Database) -> list[StudySummary]:
    """The studies by name. It takes a few queries, however many studies exist."""
    engine = ready_engine(database)
    with engine.begin() as connection:
        counts = _trials_by_state(connection)
        ranges = _value_ranges(connection)
        last_activity = _last_activity(connection)
        attributes = _attributes(connection)
        running = _running_trials(connection)
        now = standing.now(connection)
        statement = select(optuna_studies.c.study_id, optuna_studies.c.study_name).order_by(
            optuna_studies.c.study_name
        )
        studies = connection.execute(statement).all()
    summaries: list[StudySummary] = []
    for study_id, name in studies:
        facts = _Facts(
            counts[study_id],
            running.get(study_id, 0),
            ranges.get(study_id),
            attributes[study_id],
            last_activity.get(study_id),
        )
        summaries.append(_summary(name, facts, now))
    return summaries


@dataclass(frozen=True)
class _Facts:
    """The rows about one study."""

    # By Optuna's name of the trials' state.
    trials: Counter[str]
    running: int
    # The lowest and the highest value of scored trials.
    value_range: tuple[float, float] | None
    attributes: Mapping[str, Any]
    last_activity: datetime | None

    @property
    def budget(self) -> Mapping[str, Any] | None:
        """None in a study that hpo did not make, whatever attributes it has."""
        return self.attributes["budget"] if made_by_hpo(self.attributes) else None


def _trials_by_state(connection: Connection) -> dict[int, Counter[str]]:
    state = cast(optuna_trials.c.state, String)
    statement = (
        select(optuna_trials.c.study_id, state.label("state"), func.count().label("n"))
        .where(standing.not_imported())
        .group_by(optuna_trials.c.study_id, state)
    )
    counts: dict[int, Counter[str]] = defaultdict(Counter)
    for row in connection.execute(statement):
        counts[row.study_id][row.state] = row.n
    return counts


def _value_ranges(connection: Connection) -> dict[int, tuple[float, float]]:
    """The lowest and the highest value that a training of each study has scored."""
    trials = optuna_trials.c
    value = optuna_values.c.value
    statement = (
        select(trials.study_id, func.min(value), func.max(value))
        .join(optuna_values, optuna_values.c.trial_id == trials.trial_id)
        .where(cast(trials.state, String) == "COMPLETE", standing.not_imported(), standing.scored())
        .group_by(trials.study_id)
    )
    rows = connection.execute(statement)
    return {study_id: (lowest, highest) for study_id, lowest, highest in rows}


def _last_activity(connection: Connection) -> dict[int, datetime]:
    """When an attempt at a trial of each study last began or ended."""
    trials = optuna_trials.c
    moment = func.max(func.coalesce(attempt_table.c.ended, attempt_table.c.begun))
    statement = (
        select(trials.study_id, moment)
        .join(attempt_table, attempt_table.c.trial_id == trials.trial_id)
        .group_by(trials.study_id)
    )
    return dict(connection.execute(statement).all())


def _attributes(connection: Connection) -> dict[int, dict[str, Any]]:
    """The attributes of each study that the list shows."""
    shown = optuna_study_attributes.c.key.in_(["budget", "halt", "metric", "spec", "unique"])
    statement = select(optuna_study_attributes).where(shown)
    attributes: dict[int, dict[str, Any]] = defaultdict(dict)
    for row in connection.execute(statement):
        attributes[row.study_id][row.key] = json.loads(row.value_json)
    return attributes


def _running_trials(connection: Connection) -> dict[int, int]:
    """How many trials of each study a worker holds."""
    trials = optuna_trials.c
    statement = (
        select(trials.study_id, func.count())
        .join(trial_table, trial_table.c.trial_id == trials.trial_id)
        .where(trial_table.c.lease.is_not(None), trial_table.c.lease_until > func.now())
        .group_by(trials.study_id)
    )
    return dict(connection.execute(statement).all())


def _summary(name: str, facts: _Facts, now: datetime) -> StudySummary:
    budget = facts.budget
    ended = facts.trials["COMPLETE"] + facts.trials["PRUNED"]
    metric = metric_of(facts.attributes) if budget else None
    best = None
    if metric and facts.value_range:
        best = metric.best(facts.value_range)
    return StudySummary(
        name=name,
        state=_state(facts, ended),
        ended=ended,
        budget=budget["trials"] if budget else None,
        running=facts.running,
        failed=facts.trials["FAIL"],
        metric=metric,
        best_value=best,
        last=now if facts.running else facts.last_activity,
    )


def _state(facts: _Facts, ended: int) -> str:
    budget = facts.budget
    if budget is None:
        return "foreign"
    halt = facts.attributes.get("halt")
    if halt:
        return str(halt["state"])
    if facts.running:
        return "running"
    if ended >= budget["trials"]:
        return "done"
    return "idle"


def children(database: Database, name: str) -> list[str]:
    """The names of studies that were made from this one, such as NAME.confirm."""
    prefix = f"{name}."
    return [study.name for study in all_studies(database) if study.name.startswith(prefix)]
