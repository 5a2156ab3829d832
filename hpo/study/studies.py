"""Deletes a study, also one that hpo did not make."""

import shutil
from pathlib import Path

from hpo.errors import StudyError
from hpo.space.upgrade import made_by_hpo
from hpo.store import locks
from hpo.store.database import Database
from hpo.store.storage import open_storage
from hpo.study.foreign import ForeignStudy
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


def remove_foreign(database: Database, study: ForeignStudy) -> None:
    """Delete the study with its trials. Raises StudyError if hpo launch has taken it over."""
    storage = open_storage(database)
    # hpo launch makes its studies under this lock.
    with locks.locked(storage.engine, locks.LIST_OF_STUDIES):
        try:
            if made_by_hpo(storage.get_study_user_attrs(study.id)):
                raise StudyError(
                    f"study {study.name} is now one of hpo launch: look at it, and delete it again"
                )
            storage.delete_study(study.id)
        except KeyError:
            raise StudyError(f"study {study.name} was deleted meanwhile") from None
