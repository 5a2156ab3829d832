"""Merges what lines say into rows: one per step, with steps that never decrease."""

import json
from collections.abc import Mapping
from typing import Any

from hpo.script.expression import Expression
from hpo.script.names import Content
from hpo.script.row import LISTS, QUOTED, Row, RowsError, printable, wrong

MOST_METRICS = 32


class Steps:
    """Merges everything that is said about a step into one row.

    restarts: how often the script was restarted and continued its file. The steps may go back that
    often; what the script repeats about earlier steps is skipped.
    """

    def __init__(self, expression: Expression | None, name: str, restarts: int) -> None:
        self._expression = expression
        self._name = name
        self._restarts = restarts
        # How often the steps have gone back so far.
        self._returns = 0
        # The step of the last line in the file. After a return it is before `_step`.
        self._at: int | None = None
        self._at_line = ""
        # The latest step, and what is known about it.
        self._step: int | None = None
        self._content = Content()
        self._line = ""
        # What the last returned row had of this step. As JSON, because there NaN equals NaN.
        self._returned = _as_json(self._content)
        self.has_value = False

    def begin_again(self) -> None:
        """Prepare to read the file from its first byte."""
        self._returns = 0
        self._at = None

    def forget(self) -> None:
        """Forget all steps, so that a repeated step counts as new."""
        self._at = None
        self._step = None
        self._content = Content()
        self._returned = _as_json(self._content)

    @property
    def has_step(self) -> bool:
        return self._step is not None

    def add(self, content: Content, line: str) -> list[Row]:
        """Add what a line says. Returns the row of the step before if this line begins a new step.

        Raises RowsError for steps that go back too often.
        """
        step = content.fields.pop("step", self._at)
        if step is None:
            return []
        self._go_to(step, line)
        if self._step is not None and step < self._step:
            return []
        rows: list[Row] = []
        if step != self._step:
            rows = self.flush()
            self._step = step
            self._content = Content()
            self._returned = _as_json(self._content)
        self._merge(content, line)
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

    def _merge(self, content: Content, line: str) -> None:
        self._line = line[:QUOTED]
        self._content.fields |= content.fields
        self._content.parts |= content.parts
        metrics = self._content.metrics
        for name, value in content.metrics.items():
            if name in metrics or len(metrics) < MOST_METRICS:
                metrics[name] = value
        self._check_lists()

    def _check_lists(self) -> None:
        errors = self._content.fields.get("errors")
        lengths = self._content.fields.get("lengths")
        if errors is None or lengths is None:
            return
        if len(errors) != len(lengths) or not sum(lengths):
            what = (
                f"step {self._step} has {len(errors)} errors and {len(lengths)} lengths with the "
                f"sum {sum(lengths):g}. Valid: one of each per item, and lengths with a sum other "
                f"than 0"
            )
            raise wrong(self._name, what, self._line)

    def flush(self) -> list[Row]:
        """The row of the latest step, if more is known about it than was returned before."""
        known = _as_json(self._content)
        if known == self._returned:
            return []
        self._returned = known
        row = self._row()
        if row.value is not None:
            self.has_value = True
        return [row]

    def _row(self) -> Row:
        assert self._step is not None
        fields = self._content.fields
        value = fields.get("value")
        if self._expression:
            value = self._expression.value(self._content.parts)
        errors = lengths = None
        if all(name in fields for name in LISTS):
            errors = tuple(fields["errors"])
            lengths = tuple(fields["lengths"])
        return Row(
            step=self._step,
            value=value,
            loss=fields.get("loss"),
            validation_loss=fields.get("validation_loss"),
            errors=errors,
            lengths=lengths,
            metrics=dict(self._content.metrics),
            line=printable(self._line),
        )

    def place(self) -> dict[str, Any]:
        """Where another process continues, JSON-ready."""
        return {
            "returns": self._returns,
            "at": self._at,
            "at_line": self._at_line,
            "step": self._step,
            "known": _as_json(self._content),
            "line": self._line,
            "has_value": self.has_value,
        }

    def continue_at(self, place: Mapping[str, Any]) -> None:
        self._returns = place["returns"]
        self._at = place["at"]
        self._at_line = place["at_line"]
        self._step = place["step"]
        self._content = Content(*json.loads(place["known"]))
        self._returned = place["known"]
        self._line = place["line"]
        self.has_value = place["has_value"]


def _as_json(content: Content) -> str:
    return json.dumps([content.fields, content.parts, content.metrics])
