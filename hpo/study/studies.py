"""Deletes a study."""

import shutil
from pathlib import Path

from hpo.errors import StudyError
from hpo.store import locks
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
