"""From what lines say to rows: one a step, whose steps never decrease."""

import json
from collections.abc import Mapping
from typing import Any

from hpo.script.expression import Expression
from hpo.script.names import Found
from hpo.script.row import LISTS, QUOTED, Row, RowsError, printable, wrong

MOST_METRICS = 32


class Steps:
    """Makes one row of all that is said of a step.

    restarts: how often the script was started again, going on with its file: so often its steps may
    go back. What it says again of earlier steps is passed over.
    """

    def __init__(self, expression: Expression | None, name: str, restarts: int) -> None:
        self._expression = expression
        self._name = name
        self._restarts = restarts
        self._returns = 0
        # Where the file is, which may be before what was given.
        self._at: int | None = None
        self._at_line = ""
        self._step: int | None = None
        self._found = Found()
        self._line = ""
        # What was given of this step, as JSON: there NaN equals NaN.
        self._given = _known(self._found)
        self.has_value = False

    def begin_again(self) -> None:
        """The file is read from its first byte."""
        self._returns = 0
        self._at = None

    def forget(self) -> None:
        """What comes now is new, also of steps that were given before."""
        self._at = None
        self._step = None
        self._found = Found()
        self._given = _known(self._found)

    @property
    def has_step(self) -> bool:
        return self._step is not None

    def add(self, found: Found, line: str) -> list[Row]:
        """The row before, if this line begins another one. Raises RowsError."""
        step = found.fields.pop("step", self._at)
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
            self._given = _known(self._found)
        self._merge(found, line)
        return rows

    def _go_to(self, step: int, line: str) -> None:
        if self._at is not None and step < self._at:
            if self._returns >= self._restarts:
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
        if errors is None or lengths is None:
            return
        if len(errors) != len(lengths) or not sum(lengths):
            what = (
                f"step {self._step} has {len(errors)} errors and {len(lengths)} lengths that sum "
                f"up to {sum(lengths):g}. Valid: one of each per item, and a sum of the lengths "
                f"that is not 0"
            )
            raise wrong(self._name, what, self._line)

    def flush(self) -> list[Row]:
        """The row of the step, if more is known of it than was given."""
        known = _known(self._found)
        if known == self._given:
            return []
        self._given = known
        row = self._row()
        self.has_value = self.has_value or row.value is not None
        return [row]

    def _row(self) -> Row:
        assert self._step is not None
        fields = self._found.fields
        value = fields.get("value")
        if self._expression:
            value = self._expression.value(self._found.parts)
        has_items = all(name in fields for name in LISTS)
        return Row(
            step=self._step,
            value=value,
            loss=fields.get("loss"),
            validation_loss=fields.get("validation_loss"),
            errors=tuple(fields["errors"]) if has_items else None,
            lengths=tuple(fields["lengths"]) if has_items else None,
            metrics=dict(self._found.metrics),
            line=printable(self._line),
        )

    def place(self) -> dict[str, Any]:
        return {
            "returns": self._returns,
            "at": self._at,
            "at_line": self._at_line,
            "step": self._step,
            "known": _known(self._found),
            "line": self._line,
            "has_value": self.has_value,
        }

    def go_on(self, place: Mapping[str, Any]) -> None:
        self._returns = place["returns"]
        self._at = place["at"]
        self._at_line = place["at_line"]
        self._step = place["step"]
        self._found = Found(*json.loads(place["known"]))
        self._given = place["known"]
        self._line = place["line"]
        self.has_value = place["has_value"]


def _known(found: Found) -> str:
    return json.dumps([found.fields, found.parts, found.metrics])
