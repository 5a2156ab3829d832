"""A study's data: loaded by its trainer, checked, and compared with those it was made on."""

import json
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from hpo.errors import DataError, HpoError, MemoryShortError
from hpo.space.load import DEMO_PROFILE
from hpo.space.spec import StudySpec
from hpo.study.study import Study
from hpo.trainer import DataRequest, Dataset
from hpo.worker.device import first_line, is_memory_short

Result = TypeVar("Result")


@dataclass(frozen=True)
class DataSummary:
    """What a study keeps and shows of its data."""

    facts: dict[str, Any]
    """For the study to keep: `path` (None: the trainer's own data), `fingerprint`, and the facts of
    the dataset."""
    lines: list[str]
    """For people."""


def look_at_data(path: Path | None, spec: StudySpec) -> DataSummary:
    """Check that every trial of the space can train on the data. Raises DataError."""
    trainer = spec.load_trainer()
    dataset = load_dataset(spec, path, "cpu")
    base, *extremes = spec.extremes()
    described = call_trainer(spec, "describe", partial(dataset.describe, base))
    if not isinstance(described, list):
        described = [str(described)]
    # To describe a configuration checks it too.
    for config in extremes:
        call_trainer(spec, "describe", partial(dataset.describe, config))
    facts = {
        "path": str(path.absolute()) if path else None,
        "fingerprint": dataset.fingerprint,
        **dataset.facts,
    }
    # The warnings read the data once more: both copies need not be in memory.
    del dataset
    warn = trainer.offers.get("data_warnings")
    if warn is not None:
        cut = spec.validation
        described += call_trainer(
            spec, "data_warnings", partial(warn, path, cut.fraction, cut.seed)
        )
    chosen = f"profile {spec.profile} of the space" if spec.profile else "the space's base"
    if spec.profile == DEMO_PROFILE and not path:
        chosen += ": a small training, because no data are given"
    source = str(path) if path else f"no --data given: {trainer.bundled}"
    lines = [
        *_titled("data", [source, *described]),
        *_titled("training", [chosen, trainer.summary(base)]),
    ]
    return DataSummary(facts, lines)


def _titled(title: str, lines: list[str]) -> list[str]:
    """The lines in a column, with the title to the left of the first."""
    first, *others = lines
    return [f"{title:11}{first}", *(f"{'':11}{line}" for line in others)]


def load_dataset(
    spec: StudySpec, path: Path | None, device: str, partition: str = "train"
) -> Dataset:
    """Load one partition, ready for trainings on the device. path: None takes the trainer's own.

    Raises DataError, MemoryShortError.
    """
    trainer = spec.load_trainer()
    validation = spec.validation
    request = DataRequest(
        path, spec.config(), device, validation.fraction, validation.seed, partition
    )
    try:
        dataset: Dataset = call_trainer(spec, "load_data", partial(trainer.load_data, request))
    except (RuntimeError, MemoryError) as error:
        if is_memory_short(error):
            raise MemoryShortError(
                f"{path or trainer.bundled}: no memory for it on {device}. Use fewer workers there"
            ) from None
        raise
    _check_dataset(spec, dataset)
    return dataset


def _check_dataset(spec: StudySpec, dataset: Dataset) -> None:
    """Raises DataError if `load_data` did not return a Dataset."""
    kind = f"trainer {spec.trainer}: load_data gives a {type(dataset).__name__}"
    for name in ("fingerprint", "facts", "describe"):
        if not hasattr(dataset, name):
            raise DataError(
                f"{kind} without {name}. Valid: an object with fingerprint, facts and "
                f"describe(config), see hpo.trainer.Dataset"
            )
    if not isinstance(dataset.fingerprint, str):
        raise DataError(
            f"{kind} whose fingerprint is a {type(dataset.fingerprint).__name__}. Valid: a text, "
            f"equal for equal data"
        )
    try:
        json.dumps(dict(dataset.facts), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{kind} whose facts cannot be stored ({error}). Valid: a dict of numbers, text, lists "
            f"and dicts"
        ) from None


def load_study_data(study: Study, path: Path | None, device: str) -> Dataset:
    """Load the data that the study trains and validates on.

    path: their place on this machine; None: the path that the study was made with. Raises DataError
    if they differ from the study's, and MemoryShortError.
    """
    path = path or study.data_path
    dataset = load_dataset(study.spec, path, device)
    check_fingerprint(study, path, dataset.fingerprint)
    return dataset


def check_fingerprint(study: Study, path: Path | None, fingerprint: str) -> None:
    """Raises DataError if the data at `path` are not those that the study was made on."""
    if fingerprint != study.data["fingerprint"]:
        source = path or study.spec.load_trainer().bundled
        raise DataError(
            f"{source}: fingerprint {fingerprint}, but study {study.name} was made on "
            f"{study.data['fingerprint']}. Give --data with the study's data"
        )


def call_trainer(spec: StudySpec, what: str, ask: Callable[[], Result]) -> Result:
    """Call a function of the spec's trainer and return its result.

    what: the function's name, for messages. Raises DataError, with the place in the trainer's code,
    for any error that is neither hpo's own nor the system's: a fault in a lab's code needs its
    place more than a traceback through hpo.
    """
    try:
        return ask()
    except (HpoError, OSError, MemoryError):
        raise
    except Exception as error:
        if is_memory_short(error):
            raise
        frame = traceback.extract_tb(error.__traceback__)[-1]
        problem = f"{what} ended with {type(error).__name__}: {first_line(error)}"
        raise DataError(
            f"trainer {spec.trainer}: {problem} ({frame.filename}, line {frame.lineno})"
        ) from error
