"""Maps the keys, columns or groups of a line to the fields of a row."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from hpo.script.expression import Expression, name_of
from hpo.script.numerals import NOT_FINITE, as_list, as_number, as_step, number
from hpo.script.row import FIELDS, LISTS, shown, wrong
from hpo.script.settings import CurveSettings

MOST_KEYS = 100


@dataclass
class Content:
    """What one line says about a step, or what several lines say about the same step."""

    # Field of a row -> value.
    fields: dict[str, Any] = field(default_factory=dict)
    # Name in the expression -> value.
    parts: dict[str, float] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)


class Names:
    """Knows which key, column or group holds which field of a row.

    columns: field -> its key, column or group. keys: all keys so far, in order, for advice.
    """

    def __init__(self, curve: CurveSettings, expression: Expression | None) -> None:
        self._name = curve.file
        self._parts = expression.names if expression else ()
        # Two patterns may find errors and lengths in two lines.
        self._lists_may_come_alone = bool(curve.pattern)
        self.columns = dict(curve.names)
        taken = set(curve.names.values())
        for name in FIELDS:
            if name not in taken:
                self.columns.setdefault(name, name)
        self.keys: dict[str, None] = {}

    def read(self, entry: Mapping[str, Any], line: str) -> Content:
        """The content of an entry. Raises RowsError for text where a number is expected.

        entry: key -> value. line: the line of the entry, for messages.
        """
        present = {key: value for key, value in entry.items() if not _is_missing(value)}
        self._remember(present)
        content = Content()
        for name, column in self.columns.items():
            if column in present:
                content.fields[name] = self._field(name, column, present[column], line)
        self._check_lists(content.fields, line)
        column_by_part = {name_of(column): column for column in present}
        for part in self._parts:
            column = column_by_part.get(part) or self.columns.get(part, "")
            if column in present:
                content.parts[part] = self._field("", column, present[column], line)
        columns_of_fields = set(self.columns.values())
        for key, value in present.items():
            metric = _metric(value)
            if key not in columns_of_fields and metric is not None:
                content.metrics[key] = metric
        return content

    def _remember(self, present: Iterable[str]) -> None:
        for key in present:
            if len(self.keys) < MOST_KEYS:
                self.keys.setdefault(key)

    def _field(self, name: str, column: str, value: Any, line: str) -> Any:
        read, valid = _READERS.get(name, (as_number, "a number"))
        try:
            return read(value)
        except ValueError:
            what = f"{column}: {shown(value)} is not {valid}"
            raise wrong(self._name, what, line) from None

    def _check_lists(self, fields: Mapping[str, Any], line: str) -> None:
        present = [name for name in LISTS if name in fields]
        if len(present) == 1 and not self._lists_may_come_alone:
            (missing,) = set(LISTS) - set(present)
            what = f"{present[0]} without {missing}. Valid: both, one of each per item"
            raise wrong(self._name, what, line)


_READERS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "step": (as_step, "a whole number from 0"),
    "errors": (as_list, "a list of numbers"),
    "lengths": (as_list, "a list of numbers"),
}


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def _metric(value: Any) -> float | None:
    """A metric is a number, or the text of a NaN or infinity; None for anything else."""
    if isinstance(value, str):
        return number(value) if NOT_FINITE.fullmatch(value.strip()) else None
    if isinstance(value, (bool, list)):
        return None
    return as_number(value)
