"""Deletes a study, also one that hpo did not make."""

import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from hpo.errors import StudyError
from hpo.store import locks, optuna_rows
from hpo.store.database import Database
from hpo.store.storage import open_storage, ready_engine
from hpo.study.names import shown_name
from hpo.study.study import Study


def refuse_if_running(study: Study) -> None:
    """Raises StudyError while workers hold trials of the study."""
    if study.runs_elsewhere():
        running = study.standing().running
        raise StudyError(
            f"study {study.name}: {running} trials run. "
            f"First hpo stop --study {study.name}, or take --force"
        )


def remove(study: Study, folder: Path) -> None:
    """Delete the study with its trials, and then `folder`, which holds its files."""
    with locks.locked(study.engine, study.id):
        study.storage.delete_study(study.id)
    shutil.rmtree(folder, ignore_errors=True)


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
        if study_id is None or "spec" in optuna_rows.study_attributes(connection, study_id):
            return None
        states = Counter(optuna_rows.trial_states(connection, study_id).values())
    return ForeignStudy(study_id, shown_name(name), states.total(), states["RUNNING"])


def remove_foreign(database: Database, study: ForeignStudy) -> None:
    """Delete the study with its trials. Raises StudyError if hpo launch has taken it over."""
    storage = open_storage(database)
    # hpo launch makes its studies under this lock.
    with locks.locked(storage.engine, locks.LIST_OF_STUDIES):
        try:
            if "spec" in storage.get_study_user_attrs(study.id):
                raise StudyError(
                    f"study {study.name} is now one of hpo launch: look at it, and delete it again"
                )
            storage.delete_study(study.id)
        except KeyError:
            raise StudyError(f"study {study.name} was deleted meanwhile") from None
