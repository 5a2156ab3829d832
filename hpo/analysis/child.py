"""Child studies: given configurations, retrained with the parent's workers, leases and rules.

A child is a study PARENT.KIND with the parent's spec, marked so that it draws no configurations of
its own. Its trials keep whole configurations, so configurations outside the space can be retrained
too, with seeds that no trial of the parent had.
"""

from collections.abc import Sequence
from typing import Literal

from hpo.errors import StudyError
from hpo.space.spec import Child
from hpo.store.database import Database
from hpo.study.study import Study

Kind = Literal["confirm", "ablate"]
Use = Literal["confirm", "select", "measure"]
# Added to the base's seed. No search has this many trials.
FRESH: dict[Use, int] = {
    "confirm": 1_000_000,
    "select": 2_000_000,
    "measure": 3_000_000,
}


def open_child(
    database: Database, parent: Study, kind: Kind, score: tuple[Literal["test"], ...] = ()
) -> Study:
    """Open the parent's child study of this kind; create it if it does not exist.

    score: partitions that its trials are scored on, in addition to validation. Raises StudyError if
    the name belongs to another study.
    """
    name = f"{parent.name}.{kind}"
    if parent.spec.child:
        grandparent = parent.spec.child.parent
        raise StudyError(
            f"study {parent.name} retrains configurations of {grandparent}. "
            f"Give --study {grandparent}"
        )
    try:
        child = Study.open(database, name)
    except StudyError:
        # If the name is taken by a study that hpo did not make, this raises too.
        child = _create_child(database, parent, name, score)
    if child.spec.child is None or child.spec.child.unique != parent.unique:
        raise StudyError(
            f"study {name} already exists and does not belong to this {parent.name}. "
            f"Delete one of them in optuna-dashboard"
        )
    return child


def _create_child(
    database: Database, parent: Study, name: str, score: tuple[Literal["test"], ...]
) -> Study:
    # `Study.enqueue` raises the number of trials to what it is given.
    limits = {"trials": 0, "gpu_hours": None, "deadline": None}
    changes = {
        "starts": {},
        "budget": parent.spec.budget.model_copy(update=limits),
        "child": Child(parent=parent.name, unique=parent.unique, score=score),
    }
    spec = parent.spec.model_copy(update=changes)
    return Study.create_or_open(database, name, spec, parent.data)


def fresh_seeds(parent: Study, use: Use, count: int) -> Sequence[int]:
    """`count` seeds that no trial of the parent had; the same ones for every configuration.

    A trial's seed is its base's seed plus the trial's number.
    """
    first = parent.spec.base["seed"] + FRESH[use]
    return range(first, first + count)
