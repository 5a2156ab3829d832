"""The end of a study."""

import shutil
from pathlib import Path

from hpo.errors import StudyError
from hpo.store import locks
from hpo.study.study import Study


def refuse_if_running(study: Study) -> None:
    """Raises StudyError while workers hold trials of it."""
    if study.runs_elsewhere():
        raise StudyError(
            f"study {study.name}: {study.standing().running} trials run. First hpo stop --study {study.name}, or take --force"
        )


def remove(study: Study, folder: Path) -> None:
    """The study with its trials, and then `folder`, its files."""
    with locks.locked(study.engine, study.id):
        study.storage.delete_study(study.id)
    shutil.rmtree(folder, ignore_errors=True)
