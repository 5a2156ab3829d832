"""A study's data: loaded by its trainer, looked at before any worker does, and compared with those that it was made on."""

import json
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from hpo.errors import DataError, HpoError, MemoryShortError
from hpo.space.spec import DEMO_PROFILE, StudySpec
from hpo.study.study import Study
from hpo.trainer import DataRequest, Dataset
from hpo.worker.device import first_line, is_memory_short

Made = TypeVar("Made")


@dataclass(frozen=True)
class Looked:
    """What a look at the data gave."""

    facts: dict[str, Any]
    """For the study to keep: `path` (None: the trainer's own), `fingerprint`, and what the trainer tells."""
    lines: list[str]
    """For people."""


def look_at_data(path: Path | None, spec: StudySpec) -> Looked:
    """Check once that every trial of the space could train on them. Raises DataError."""
    trainer = spec.load_trainer()
    dataset = load_dataset(spec, path, "cpu")
    base, *extremes = spec.extremes()
    described = asked(spec, "describe", partial(dataset.describe, base))
    if not isinstance(described, list):
        described = [str(described)]
    for config in extremes:
        asked(spec, "describe", partial(dataset.describe, config))
    chosen = f"profile {spec.profile} of the space" if spec.profile else "the space's base"
    if spec.profile == DEMO_PROFILE and not path:
        chosen += ": a small training, because no data are given"
    about = [
        str(path) if path else f"no --data given: {trainer.bundled}",
        *described,
    ]
    lines = [
        *_titled("data", about),
        *_titled("training", [chosen, trainer.summary(base)]),
    ]
    facts = {
        "path": str(path.absolute()) if path else None,
        "fingerprint": dataset.fingerprint,
        **dataset.facts,
    }
    return Looked(facts, lines)


def _titled(title: str, lines: list[str]) -> list[str]:
    return [f"{title if number == 0 else '':11}{line}" for number, line in enumerate(lines)]


def load_dataset(
    spec: StudySpec, path: Path | None, device: str, partition: str = "train"
) -> Dataset:
    """One partition, ready for trainings on the device. path: None takes the trainer's own.

    Raises DataError, MemoryShortError.
    """
    trainer = spec.load_trainer()
    validation = spec.validation
    request = DataRequest(
        path, spec.config(), device, validation.fraction, validation.seed, partition
    )
    try:
        dataset: Dataset = asked(spec, "load_data", partial(trainer.load_data, request))
    except (RuntimeError, MemoryError) as error:
        if is_memory_short(error):
            raise MemoryShortError(
                f"{path or trainer.bundled}: no room on {device} for it. Take fewer workers there"
            ) from None
        raise
    _check_dataset(spec, dataset)
    return dataset


def _check_dataset(spec: StudySpec, dataset: Dataset) -> None:
    """Raises DataError for what `load_data` gave that is no Dataset."""
    kind = f"trainer {spec.trainer}: load_data gives a {type(dataset).__name__}"
    for name in ("fingerprint", "facts", "describe"):
        if not hasattr(dataset, name):
            raise DataError(
                f"{kind} without {name}. Valid: what has fingerprint, facts and describe(config), see hpo.trainer.Dataset"
            )
    if not isinstance(dataset.fingerprint, str):
        raise DataError(
            f"{kind} whose fingerprint is a {type(dataset.fingerprint).__name__}. Valid: a text, equal for equal data"
        )
    try:
        json.dumps(dict(dataset.facts), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{kind} whose facts cannot be stored ({error}). Valid: a dict of numbers, text, lists and dicts"
        ) from None


def load_study_data(study: Study, path: Path | None, device: str) -> Dataset:
    """What the study trains and validates on. path: where it is on this machine; None: where it was.

    Raises DataError if it is other data than the study's, MemoryShortError.
    """
    path = path or study.data_path
    dataset = load_dataset(study.spec, path, device)
    check_fingerprint(study, path, dataset.fingerprint)
    return dataset


def check_fingerprint(study: Study, path: Path | None, fingerprint: str) -> None:
    """Raises DataError if data at `path` are not those that the study was made on."""
    if fingerprint != study.data["fingerprint"]:
        source = path or study.spec.load_trainer().bundled
        raise DataError(
            f"{source}: fingerprint {fingerprint}, but study {study.name} was made on "
            f"{study.data['fingerprint']}. Give --data with the study's data"
        )


def asked(spec: StudySpec, what: str, ask: Callable[[], Made]) -> Made:
    """What a trainer's function returns. Raises DataError in the place of what is no error of ours or of the system's.

    A fault in a lab's own code needs its place more than a traceback through ours.
    """
    try:
        return ask()
    except (HpoError, OSError, MemoryError):
        raise
    except Exception as error:
        if is_memory_short(error):
            raise
        frame = traceback.extract_tb(error.__traceback__)[-1]
        raise DataError(
            f"trainer {spec.trainer}: {what} ended with {type(error).__name__}: {first_line(error)} ({frame.filename}, line {frame.lineno})"
        ) from error
