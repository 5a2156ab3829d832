"""Child studies: given configurations, retrained by the same workers under the same leases, budget and stopping rule.

A child is a study PARENT.KIND whose spec is the parent's and says that it draws nothing. Its trials have the whole
configuration, so one outside the space can be retrained too, and seeds that no trial of the parent had.
"""

from collections.abc import Sequence
from typing import Literal

from hpo.errors import StudyError
from hpo.space.spec import Child
from hpo.store.database import Database
from hpo.study.study import Study

Kind = Literal["confirm", "ablate"]
Use = Literal["confirm", "select", "measure"]
FRESH: dict[Use, int] = {
    "confirm": 1_000_000,
    "select": 2_000_000,
    "measure": 3_000_000,
}  # no search has so many trials


def open_child(
    database: Database, parent: Study, kind: Kind, score: tuple[Literal["test"], ...] = ()
) -> Study:
    """The parent's child of this kind, made if it is not there. Raises StudyError if that name is another study's."""
    name = f"{parent.name}.{kind}"
    if parent.spec.child:
        raise StudyError(
            f"study {parent.name} retrains configurations of {parent.spec.child.parent}. Give --study {parent.spec.child.parent}"
        )
    try:
        child = Study.open(database, name)
    except StudyError:  # none of this name, or one that is not ours: then this raises too
        mark = Child(parent=parent.name, unique=parent.unique, score=score)
        budget = parent.spec.budget.model_copy(
            update={"trials": 0, "gpu_hours": None, "deadline": None}
        )
        child = Study.create_or_open(
            database,
            name,
            parent.spec.model_copy(update={"starts": {}, "budget": budget, "child": mark}),
            parent.data,
        )
    if child.spec.child is None or child.spec.child.unique != parent.unique:
        raise StudyError(
            f"study {name} is there already and does not belong to this {parent.name}. Delete one of them in optuna-dashboard"
        )
    return child


def fresh_seeds(parent: Study, use: Use, count: int) -> Sequence[int]:
    """The same for every configuration, and none that a trial of the parent had (its base's seed + the trial's number)."""
    first = parent.spec.base["seed"] + FRESH[use]
    return range(first, first + count)
