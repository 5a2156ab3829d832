"""Where the files of a study are: checkpoints, weights and logs."""

import logging
from pathlib import Path

from hpo.store.database import home
from hpo.study.reader import StudyReader

log = logging.getLogger(__name__)


def study_folder(study: StudyReader, artifacts: Path | None = None) -> Path:
    """The folder of the study's files: in its shared folder, else in HPO_HOME of this machine.

    The unique part of its name separates studies of the same name in two databases.
    """
    shared = artifacts or study.artifacts
    if shared and not shared.is_dir():
        log.warning(
            "%s: does not exist on this machine. Checkpoints stay here, "
            "and trials that resume elsewhere begin again",
            shared,
        )
        shared = None
    parent = shared or home() / "studies"
    return parent / f"{study.name}-{study.unique}"


def trial_folder(folder: Path, number: int) -> Path:
    """The folder of trial `number` in the folder of the study's files."""
    return folder / f"trial-{number}"
