"""Which key, column or group of a line is which field of a row."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from hpo.script.expression import Expression, name_of
from hpo.script.numerals import NOT_FINITE, as_list, as_number, as_step, number
from hpo.script.row import FIELDS, LISTS, shown, wrong
from hpo.script.settings import CurveSettings

MOST_KEYS = 100


@dataclass
class Found:
    """What one line says."""

    fields: dict[str, Any] = field(default_factory=dict)
    parts: dict[str, float] = field(default_factory=dict)
    """What the expression uses."""
    metrics: dict[str, float] = field(default_factory=dict)


class Names:
    """Which key, column or group is which field of a row."""

    def __init__(self, curve: CurveSettings, expression: Expression | None) -> None:
        self._name = curve.file
        self._parts = expression.names if expression else ()
        # Patterns may find errors and lengths in two lines.
        self._lists_come_alone = bool(curve.pattern)
        self.columns = dict(curve.names)
        taken = set(curve.names.values())
        for each in FIELDS:
            if each not in taken:
                self.columns.setdefault(each, each)
        # Keys in the order in which they were seen, for advice.
        self.keys: dict[str, None] = {}

    def found(self, entry: Mapping[str, Any], line: str) -> Found:
        """Raises RowsError for what should be a number and is none."""
        present = {key: given for key, given in entry.items() if not _is_missing(given)}
        self._remember(present)
        found = Found()
        for each, column in self.columns.items():
            if column in present:
                found.fields[each] = self._field(each, column, present[column], line)
        self._check_lists(found.fields, line)
        by_name = {name_of(column): column for column in present}
        for part in self._parts:
            column = by_name.get(part) or self.columns.get(part, "")
            if column in present:
                found.parts[part] = self._field("", column, present[column], line)
        core = set(self.columns.values())
        for key, given in present.items():
            metric = _metric(given)
            if key not in core and metric is not None:
                found.metrics[key] = metric
        return found

    def _remember(self, present: Iterable[str]) -> None:
        for key in present:
            if len(self.keys) < MOST_KEYS:
                self.keys.setdefault(key)

    def _field(self, each: str, column: str, given: Any, line: str) -> Any:
        read, valid = _READERS.get(each, (as_number, "a number"))
        try:
            return read(given)
        except ValueError:
            what = f"{column}: {shown(given)} is not {valid}"
            raise wrong(self._name, what, line) from None

    def _check_lists(self, fields: Mapping[str, Any], line: str) -> None:
        given = [name for name in LISTS if name in fields]
        if len(given) == 1 and not self._lists_come_alone:
            (missing,) = set(LISTS) - set(given)
            what = f"{given[0]} without {missing}. Valid: both, one of each per item"
            raise wrong(self._name, what, line)


_READERS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "step": (as_step, "a whole number from 0"),
    "errors": (as_list, "a list of numbers"),
    "lengths": (as_list, "a list of numbers"),
}


def _is_missing(given: Any) -> bool:
    return given is None or (isinstance(given, str) and not given.strip())


def _metric(given: Any) -> float | None:
    """Flags, lists and text are no metrics; a NaN may be written as text."""
    if isinstance(given, str):
        return number(given) if NOT_FINITE.fullmatch(given.strip()) else None
    if isinstance(given, (bool, list)):
        return None
    return as_number(given)
