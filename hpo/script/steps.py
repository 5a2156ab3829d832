"""From what lines say to rows: one a step, whose steps never decrease."""

import math
from collections.abc import Mapping
from typing import Any

from hpo.script.expression import Expression
from hpo.script.names import Found
from hpo.script.numerals import number
from hpo.script.row import LISTS, QUOTED, Row, RowsError, printable, wrong

MOST_METRICS = 32


class Steps:
    """Makes one row of all that is said of a step.

    restarts: how often the script was started again, going on with its file: so often its steps may
    go back. What it says again of earlier steps is passed over.
    """

    def __init__(self, expression: Expression | None, name: str) -> None:
        self._expression = expression
        self._name = name
        self.restarts = 0
        self._returns = 0
        # Where the file is, which may be before what was given.
        self._at: int | None = None
        self._at_line = ""
        self._step: int | None = None
        self._found = Found()
        self._line = ""
        self._given: Any = None
        self.seen = 0
        self.values = 0

    def begin_again(self) -> None:
        """The file is read from its first byte."""
        self._returns = 0
        self._at = None
        self._at_line = ""

    @property
    def has_step(self) -> bool:
        return self._step is not None

    def add(self, found: Found, line: str) -> list[Row]:
        """The row before, if this line begins another one. Raises RowsError."""
        step = found.fields.get("step", self._at)
        if step is None:
            return []
        self._go_to(step, line)
        if self._step is not None and step < self._step:
            return []
        rows: list[Row] = []
        if step != self._step:
            rows = self.flush()
            self._step = step
            self._found = Found()
            self._given = None
        self._merge(found, line)
        return rows

    def _go_to(self, step: int, line: str) -> None:
        if self._at is not None and step < self._at:
            if self._returns >= self.restarts:
                raise RowsError(
                    f"{self._name}: steps go backwards, from {self._at} to {step}. Valid: steps "
                    f"that increase. The lines: {printable(self._at_line)} | {printable(line)}"
                )
            self._returns += 1
        self._at = step
        self._at_line = line[:QUOTED]

    def _merge(self, found: Found, line: str) -> None:
        self._line = line[:QUOTED]
        self._found.fields |= found.fields
        self._found.parts |= found.parts
        for name, given in found.metrics.items():
            if name in self._found.metrics or len(self._found.metrics) < MOST_METRICS:
                self._found.metrics[name] = given
        self._check_lists()

    def _check_lists(self) -> None:
        errors, lengths = (self._found.fields.get(name) for name in LISTS)
        if errors is not None and lengths is not None and len(errors) != len(lengths):
            counts = f"{len(errors)} errors and {len(lengths)} lengths"
            what = f"step {self._step} has {counts}. Valid: one of each per item"
            raise wrong(self._name, what, self._line)

    def flush(self) -> list[Row]:
        """The row of the step, if more is known of it than was given."""
        plain = self._plain()
        if plain == self._given or not any(plain):
            return []
        if self._given is None:
            self.seen += 1
        self._given = plain
        row = self._row()
        self.values += row.value is not None
        return [row]

    def _plain(self) -> list[dict[str, Any]]:
        """JSON-ready, and equal where equal things are known."""
        found = self._found
        fields = {name: given for name, given in found.fields.items() if name != "step"}
        return [_stored(fields), _stored(found.parts), _stored(found.metrics)]

    def _row(self) -> Row:
        assert self._step is not None
        fields = self._found.fields
        lists: list[tuple[float, ...] | None] = [fields.get(name) for name in LISTS]
        errors, lengths = lists if None not in lists else (None, None)
        value = (
            self._expression.value(self._found.parts) if self._expression else fields.get("value")
        )
        return Row(
            step=self._step,
            value=value,
            loss=fields.get("loss"),
            validation_loss=fields.get("validation_loss"),
            errors=errors,
            lengths=lengths,
            metrics=dict(self._found.metrics),
            line=printable(self._line),
        )

    def place(self) -> dict[str, Any]:
        return {
            "restarts": self.restarts,
            "returns": self._returns,
            "at": self._at,
            "at_line": self._at_line,
            "step": self._step,
            "known": self._plain(),
            "line": self._line,
            "seen": self.seen,
            "values": self.values,
        }

    def go_on(self, place: Mapping[str, Any]) -> None:
        self.restarts = place["restarts"] + 1
        self._returns = place["returns"]
        self._at = place["at"]
        self._at_line = place["at_line"]
        self._step = place["step"]
        fields, parts, metrics = (_restored(stored) for stored in place["known"])
        self._found = Found(fields, parts, metrics)
        self._line = place["line"]
        self.seen = place["seen"]
        self.values = place["values"]
        plain = self._plain()
        self._given = plain if any(plain) else None


def _stored(numbers: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has no NaN and no infinity: they become text."""
    return {name: _stored_one(given) for name, given in numbers.items()}


def _stored_one(given: Any) -> Any:
    if isinstance(given, tuple):
        return [_stored_one(item) for item in given]
    return given if math.isfinite(given) else str(given)


def _restored(stored: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _restored_one(given) for name, given in stored.items()}


def _restored_one(given: Any) -> Any:
    if isinstance(given, list):
        return tuple(_restored_one(item) for item in given)
    return number(given) if isinstance(given, str) else given
