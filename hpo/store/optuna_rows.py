"""Reads Optuna's tables, and writes attributes of studies, without Optuna: it is slow to import."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import String, Table, cast, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.engine import Connection, Row

from hpo.store.tables import (
    optuna_attributes,
    optuna_intermediates,
    optuna_params,
    optuna_studies,
    optuna_study_attributes,
    optuna_trials,
    optuna_values,
)

# Optuna's names of the values that a column of numbers does not hold.
NOT_FINITE = {"INF_POS": math.inf, "INF_NEG": -math.inf, "NAN": math.nan}


@dataclass(frozen=True)
class TrialRow:
    """A trial as Optuna's tables have it."""

    id: int
    number: int
    # Optuna's name of it: COMPLETE, PRUNED, ...
    state: str
    value: float | None
    params: Mapping[str, Any]
    # User attributes.
    attributes: Mapping[str, Any]
    # Intermediate values by step.
    curve: Mapping[int, float]


def study_names(connection: Connection) -> list[str]:
    """The names of all studies, sorted."""
    statement = select(optuna_studies.c.study_name).order_by(optuna_studies.c.study_name)
    return list(connection.execute(statement).scalars())


def study_id_of(connection: Connection, name: str) -> int | None:
    """The id of the study of this name; None if there is none."""
    statement = select(optuna_studies.c.study_id).where(optuna_studies.c.study_name == name)
    study_id: int | None = connection.execute(statement).scalar()
    return study_id


def study_attributes(connection: Connection, study_id: int) -> dict[str, Any]:
    """The study's user attributes. Raises KeyError if the study was deleted."""
    attributes = optuna_study_attributes.c
    joined = optuna_studies.outerjoin(
        optuna_study_attributes, attributes.study_id == optuna_studies.c.study_id
    )
    statement = (
        select(attributes.key, attributes.value_json)
        .select_from(joined)
        .where(optuna_studies.c.study_id == study_id)
    )
    rows = connection.execute(statement).all()
    if not rows:
        raise KeyError(study_id)
    # A study without attributes has one row, of nulls.
    return {row.key: json.loads(row.value_json) for row in rows if row.key is not None}


def set_study_attribute(connection: Connection, study_id: int, key: str, value: Any) -> None:
    """Write a user attribute as Optuna's Study.set_user_attr does."""
    statement = insert(optuna_study_attributes).values(
        study_id=study_id, key=key, value_json=json.dumps(value)
    )
    replaced = {"value_json": statement.excluded.value_json}
    connection.execute(
        statement.on_conflict_do_update(index_elements=["study_id", "key"], set_=replaced)
    )


def trial_states(connection: Connection, study_id: int) -> dict[int, str]:
    """Optuna's name of each trial's state by trial id, in the order of the trials' numbers."""
    trials = optuna_trials.c
    statement = (
        select(trials.trial_id, cast(trials.state, String).label("state"))
        .where(trials.study_id == study_id)
        .order_by(trials.number)
    )
    return {row.trial_id: row.state for row in connection.execute(statement)}


def trial_rows(connection: Connection, trial_ids: Sequence[int]) -> dict[int, TrialRow]:
    """The trials by trial id."""
    if not trial_ids:
        return {}
    params = _params(connection, trial_ids)
    attributes = _attributes(connection, trial_ids)
    curves = _curves(connection, trial_ids)
    trials = optuna_trials.c
    statement = (
        select(
            trials.trial_id,
            trials.number,
            cast(trials.state, String).label("state"),
            optuna_values.c.value,
        )
        .select_from(
            optuna_trials.outerjoin(optuna_values, optuna_values.c.trial_id == trials.trial_id)
        )
        .where(trials.trial_id.in_(trial_ids))
    )
    return {
        row.trial_id: TrialRow(
            id=row.trial_id,
            number=row.number,
            state=row.state,
            value=row.value,
            params=params[row.trial_id],
            attributes=attributes[row.trial_id],
            curve=curves[row.trial_id],
        )
        for row in connection.execute(statement)
    }


def _params(connection: Connection, trial_ids: Sequence[int]) -> dict[int, dict[str, Any]]:
    params: dict[int, dict[str, Any]] = {trial_id: {} for trial_id in trial_ids}
    for row in _rows_of_trials(connection, optuna_params, trial_ids):
        value = _external(row.param_value, json.loads(row.distribution_json))
        params[row.trial_id][row.param_name] = value
    return params


def _attributes(connection: Connection, trial_ids: Sequence[int]) -> dict[int, dict[str, Any]]:
    attributes: dict[int, dict[str, Any]] = {trial_id: {} for trial_id in trial_ids}
    for row in _rows_of_trials(connection, optuna_attributes, trial_ids):
        attributes[row.trial_id][row.key] = json.loads(row.value_json)
    return attributes


def _curves(connection: Connection, trial_ids: Sequence[int]) -> dict[int, dict[int, float]]:
    curves: dict[int, dict[int, float]] = {trial_id: {} for trial_id in trial_ids}
    for row in _rows_of_trials(connection, optuna_intermediates, trial_ids):
        value = NOT_FINITE.get(row.intermediate_value_type, row.intermediate_value)
        curves[row.trial_id][row.step] = value
    return curves


def _rows_of_trials(
    connection: Connection, table: Table, trial_ids: Sequence[int]
) -> Iterable[Row[Any]]:
    """The table's rows of these trials in the order in which they were written.

    Columns of types that Optuna has defined in the database are read as text.
    """
    columns = [
        cast(column, String).label(column.name) if isinstance(column.type, String) else column
        for column in table.columns
    ]
    (key,) = table.primary_key.columns
    statement = select(*columns).where(table.c.trial_id.in_(trial_ids)).order_by(key)
    return connection.execute(statement)


def _external(stored: float, distribution: Mapping[str, Any]) -> Any:
    """A parameter's value as people write it. Optuna stores a choice as its index."""
    kind = distribution["name"]
    if kind == "CategoricalDistribution":
        return distribution["attributes"]["choices"][int(stored)]
    if kind == "IntDistribution":
        return int(stored)
    return stored
