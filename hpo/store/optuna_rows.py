"""What we read of Optuna's tables, and the attributes of studies that we write, without Optuna, which is slow to import."""

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

NOT_FINITE = {"INF_POS": math.inf, "INF_NEG": -math.inf, "NAN": math.nan}


@dataclass(frozen=True)
class TrialRow:
    """A trial as Optuna has it."""

    id: int
    number: int
    state: str
    """Optuna's name of it: COMPLETE, PRUNED, ..."""
    value: float | None
    params: Mapping[str, Any]
    attributes: Mapping[str, Any]
    """The user's."""
    curve: Mapping[int, float]
    """Intermediate values by step."""


def study_names(connection: Connection) -> list[str]:
    statement = select(optuna_studies.c.study_name).order_by(optuna_studies.c.study_name)
    return list(connection.execute(statement).scalars())


def study_id_of(connection: Connection, name: str) -> int | None:
    found: int | None = connection.execute(
        select(optuna_studies.c.study_id).where(optuna_studies.c.study_name == name)
    ).scalar()
    return found


def study_attributes(connection: Connection, study_id: int) -> dict[str, Any]:
    """The user's. Raises KeyError if the study is not there any more."""
    attributes = optuna_study_attributes.c
    joined = optuna_studies.outerjoin(
        optuna_study_attributes, attributes.study_id == optuna_studies.c.study_id
    )
    statement = select(attributes.key, attributes.value_json).select_from(joined)
    rows = connection.execute(statement.where(optuna_studies.c.study_id == study_id)).all()
    if not rows:
        raise KeyError(study_id)
    return {row.key: json.loads(row.value_json) for row in rows if row.key is not None}


def set_study_attribute(connection: Connection, study_id: int, key: str, value: Any) -> None:
    """As Optuna's Study.set_user_attr does."""
    statement = insert(optuna_study_attributes).values(
        study_id=study_id, key=key, value_json=json.dumps(value)
    )
    again = {"value_json": statement.excluded.value_json}
    connection.execute(
        statement.on_conflict_do_update(index_elements=["study_id", "key"], set_=again)
    )


def trial_states(connection: Connection, study_id: int) -> dict[int, str]:
    """Optuna's name of each trial's state by trial id, in the order of the trials' numbers."""
    trials = optuna_trials.c
    statement = select(trials.trial_id, cast(trials.state, String).label("state")).where(
        trials.study_id == study_id
    )
    return {
        row.trial_id: row.state for row in connection.execute(statement.order_by(trials.number))
    }


def trial_rows(connection: Connection, trial_ids: Sequence[int]) -> dict[int, TrialRow]:
    """By trial id."""
    if not trial_ids:
        return {}
    trials = optuna_trials.c
    params, attributes, curves = (_by_trial(trial_ids) for _ in range(3))
    for row in _of_trials(connection, optuna_params, trial_ids):
        params[row.trial_id][row.param_name] = _external(
            row.param_value, json.loads(row.distribution_json)
        )
    for row in _of_trials(connection, optuna_attributes, trial_ids):
        attributes[row.trial_id][row.key] = json.loads(row.value_json)
    for row in _of_trials(connection, optuna_intermediates, trial_ids):
        curves[row.trial_id][row.step] = NOT_FINITE.get(
            row.intermediate_value_type, row.intermediate_value
        )
    joined = optuna_trials.outerjoin(optuna_values, optuna_values.c.trial_id == trials.trial_id)
    state, value = cast(trials.state, String).label("state"), optuna_values.c.value
    statement = select(trials.trial_id, trials.number, state, value).select_from(joined)
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
        for row in connection.execute(statement.where(trials.trial_id.in_(trial_ids)))
    }


def _of_trials(
    connection: Connection, table: Table, trial_ids: Sequence[int]
) -> Iterable[Row[Any]]:
    """In the order in which they were written. Types of Optuna's own are read as text."""
    columns = [
        cast(column, String).label(column.name) if isinstance(column.type, String) else column
        for column in table.columns
    ]
    (key,) = table.primary_key.columns
    statement = select(*columns).where(table.c.trial_id.in_(trial_ids)).order_by(key)
    return connection.execute(statement)


def _by_trial(trial_ids: Sequence[int]) -> dict[int, dict[Any, Any]]:
    return {trial_id: {} for trial_id in trial_ids}


def _external(stored: float, distribution: Mapping[str, Any]) -> Any:
    """A parameter as people write it. Optuna stores a choice as its place among the choices."""
    attributes = distribution["attributes"]
    if distribution["name"] == "CategoricalDistribution":
        return attributes["choices"][int(stored)]
    return int(stored) if distribution["name"] == "IntDistribution" else stored
