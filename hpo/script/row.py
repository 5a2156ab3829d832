"""One step of a script's progress, and the error that quotes the line that says otherwise."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hpo.errors import CallerError

LISTS = ("errors", "lengths")
FIELDS = ("step", "value", "loss", "validation_loss", *LISTS)
QUOTED = 200


class RowsError(CallerError):
    """What a script wrote cannot be read as its progress."""


@dataclass(frozen=True)
class Row:
    """What is known of one step."""

    step: int
    """Optimizer updates done, or what the script counts."""
    value: float | None
    """Of the metric; None: the step was not evaluated."""
    loss: float | None
    """Of the training data."""
    validation_loss: float | None
    errors: tuple[float, ...] | None
    """One per item, where the script tells them."""
    lengths: tuple[float, ...] | None
    metrics: Mapping[str, float]
    """Other numbers: learning rate, gradient norm."""
    line: str
    """The last line about this step, cut, for messages."""


def printable(text: str) -> str:
    """Cut, and without what would steer the terminal that shows it."""
    return "".join(letter if letter.isprintable() else "?" for letter in text[:QUOTED])


def wrong(name: str, what: str, line: str) -> RowsError:
    """name: of the file. what: with what is valid."""
    return RowsError(f"{name}: {what}. The line: {printable(line)}")


def shown(given: Any) -> str:
    """What was given, as JSON has it, cut."""
    return printable(given if isinstance(given, str) else json.dumps(given, default=str))
