"""Where the files of a study lie: checkpoints, weights and logs."""

import logging
from pathlib import Path

from hpo.store.database import home
from hpo.study.reader import StudyReader

log = logging.getLogger(__name__)


def study_folder(study: StudyReader, artifacts: Path | None = None) -> Path:
    """Checkpoints, weights and logs: in the study's shared folder, else on this machine.

    The unique part keeps studies of one name in two databases apart.
    """
    shared = artifacts or study.artifacts
    if shared and not shared.is_dir():
        log.warning(
            "%s: not there on this machine. Checkpoints stay here, and trials that go on elsewhere begin again",
            shared,
        )
        shared = None
    return (shared or home() / "studies") / f"{study.name}-{study.unique}"


def trial_folder(folder: Path, number: int) -> Path:
    return folder / f"trial-{number}"
