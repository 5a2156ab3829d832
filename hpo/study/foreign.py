"""Studies in the database that hpo did not make, read without Optuna."""

from collections import Counter
from dataclasses import dataclass

from hpo.space.upgrade import made_by_hpo
from hpo.store import optuna_rows
from hpo.store.database import Database
from hpo.store.storage import ready_engine
from hpo.study.names import shown_name


@dataclass(frozen=True)
class ForeignStudy:
    """A study that hpo did not make, or did not finish making. hpo has no files of it."""

    id: int
    # As it is shown: its own name may be any text.
    name: str
    # Numbers of trials.
    trials: int
    running: int


def find_foreign(database: Database, name: str) -> ForeignStudy | None:
    """The foreign study of this name, or of a name that is shown like this; None if there is none.

    Raises DatabaseError.
    """
    engine = ready_engine(database)
    with engine.begin() as connection:
        names = optuna_rows.study_names(connection)
        if name not in names:
            alike = [other for other in names if shown_name(other) == name]
            if len(alike) != 1:
                return None
            (name,) = alike
        study_id = optuna_rows.study_id_of(connection, name)
        if study_id is None or made_by_hpo(optuna_rows.study_attributes(connection, study_id)):
            return None
        states = Counter(optuna_rows.trial_states(connection, study_id).values())
    return ForeignStudy(study_id, shown_name(name), states.total(), states["RUNNING"])
