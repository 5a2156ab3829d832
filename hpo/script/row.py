"""A row: one step of a script's progress; and the error for a line that cannot be read as one."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hpo.errors import CallerError

LISTS = ("errors", "lengths")
FIELDS = ("step", "value", "loss", "validation_loss", *LISTS)
QUOTED = 200


class RowsError(CallerError):
    """The output of a script cannot be read as progress."""


@dataclass(frozen=True)
class Row:
    """What is known about one step."""

    # Optimizer updates done, or whatever the script counts.
    step: int
    # Of the metric. None if the step was not evaluated.
    value: float | None
    # On the training data.
    loss: float | None
    validation_loss: float | None
    # One per item, if the script reports them.
    errors: tuple[float, ...] | None
    lengths: tuple[float, ...] | None
    # Other numbers: learning rate, gradient norm, ...
    metrics: Mapping[str, float]
    # The last line about this step, shortened, for messages.
    line: str


def printable(text: str) -> str:
    """The beginning of a text, without characters that would control a terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in text[:QUOTED])


def wrong(name: str, what: str, line: str) -> RowsError:
    """The error for a line. name: the file. what: the fault, and what is valid."""
    return RowsError(f"{name}: {what}. The line: {printable(line)}")


def shown(value: Any) -> str:
    """A value as JSON, shortened; text as it is."""
    if isinstance(value, str):
        return printable(value)
    return printable(json.dumps(value, default=str))
