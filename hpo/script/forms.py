"""The forms of a file of progress: lines that a pattern finds, a table, JSON lines."""

import csv
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from hpo.script.numerals import NOT_FINITE, NOT_FINITE_ALONE, SPECIAL, number
from hpo.script.row import wrong
from hpo.script.settings import CurveSettings

DEEPEST = 8
# Places in a torn line where another may begin.
MOST_TEARS = 100
# Stands for a number like nan or 1e-05 where a pattern is tried once more.
_STAND_IN = "9.8765432198765"


def ending_of(curve: CurveSettings) -> str:
    """Of the file's name, where it says how the file is read."""
    return "" if curve.pattern else Path(curve.file).suffix.lower()


class Form:
    """How the lines of a file are read."""

    columns: Sequence[str] = ()
    """Of a table, as far as it is read."""

    def entry(self, line: str, is_ended: bool) -> Mapping[str, Any] | None:
        """Key -> what is given; None: a line that says nothing. is_ended: a line end follows.

        Raises RowsError.
        """
        raise NotImplementedError


class Patterns(Form):
    """Lines that regular expressions find, among others."""

    def __init__(self, curve: CurveSettings) -> None:
        self._name = curve.file
        self._patterns = [re.compile(pattern) for pattern in curve.pattern]

    def entry(self, line: str, is_ended: bool) -> Mapping[str, Any] | None:
        special = list(SPECIAL.finditer(line))
        found: dict[str, str] = {}
        for pattern in self._patterns:
            for group, text in self._groups(pattern, line, special).items():
                found.setdefault(group, text)
        return found or None

    def _groups(
        self, pattern: re.Pattern[str], line: str, special: list[re.Match[str]]
    ) -> dict[str, str]:
        match = pattern.search(line)
        cut = match and _cut(match, special)
        if match and not cut:
            return _texts(match)
        not_finite = [token for token in special if NOT_FINITE.fullmatch(token.group())]
        for tokens in filter(None, (not_finite, special)):
            plain = _Plain(line, tokens)
            again = pattern.search(plain.text)
            if again and not _cut(again, list(SPECIAL.finditer(plain.text))):
                return {group: plain.original(*again.span(group)) for group in _texts(again)}
        if cut:
            what = f"the pattern {pattern.pattern} takes a part of {cut}. Valid: the whole number"
            raise wrong(self._name, what, line)
        return {}


def _texts(match: re.Match[str]) -> dict[str, str]:
    """Of the groups that took part."""
    return {group: text for group, text in match.groupdict().items() if text is not None}


def _cut(match: re.Match[str], special: Sequence[re.Match[str]]) -> str:
    """The number of which a group takes the beginning alone: 1 of 1e-05."""
    for group in match.groupdict():
        end = match.end(group)
        for token in special:
            if token.start() < end < token.end():
                return token.group()
    return ""


class _Plain:
    """A line with a plain number in the place of each special one, and the way back."""

    def __init__(self, line: str, special: Sequence[re.Match[str]]) -> None:
        self._line = line
        # Begin and end here, begin and end in the line.
        self._places: list[tuple[int, int, int, int]] = []
        self.text = ""
        done = 0
        for token in special:
            self.text += line[done : token.start()]
            begin = len(self.text)
            self.text += _STAND_IN
            self._places.append((begin, len(self.text), token.start(), token.end()))
            done = token.end()
        self.text += line[done:]

    def original(self, start: int, end: int) -> str:
        """The line's text of this span; a special number that it touches is there whole."""
        return self._line[self._position(start, False) : self._position(end, True)]

    def _position(self, position: int, is_end: bool) -> int:
        shift = 0
        for begin, end, line_begin, line_end in self._places:
            if position <= begin:
                break
            if position < end:
                return line_end if is_end else line_begin
            shift = line_end - end
        return position + shift


class JsonLines(Form):
    """An object a line.

    is_taken_over: from a script that was killed, maybe in the middle of a line.
    """

    def __init__(self, curve: CurveSettings, is_taken_over: bool) -> None:
        self._name = curve.file
        self._is_taken_over = is_taken_over

    def entry(self, line: str, is_ended: bool) -> Mapping[str, Any] | None:
        if not line.strip():
            return None
        try:
            found = parsed_json(line)
        except ValueError as error:
            if not is_ended:
                return None
            found = self._after_the_tear(line, error)
        if not isinstance(found, dict):
            raise wrong(self._name, f"a line is no object. Valid: {EXAMPLE}", line)
        return flat(found)

    def _after_the_tear(self, line: str, error: ValueError) -> Any:
        """What was written behind half a line; nothing if that is all. Raises RowsError."""
        if not self._is_taken_over:
            what = f"a line is no JSON ({error}). Valid: {EXAMPLE}"
            raise wrong(self._name, what, line) from None
        for match in islice(re.finditer("(?<!^){", line), MOST_TEARS):
            with suppress(ValueError):
                return parsed_json(line[match.start() :])
        return {}


EXAMPLE = '{"step": 100, "value": 0.21}'


def parsed_json(text: str) -> Any:
    """NaN and infinity in any spelling. Raises ValueError."""
    try:
        return json.loads(text)
    except ValueError:
        plain = NOT_FINITE_ALONE.sub(lambda match: json.dumps(number(match.group())), text)
        if plain == text:
            raise
        return json.loads(plain)
    except RecursionError:
        raise ValueError("too deep") from None


class Table(Form):
    """A row a line below a header. The header may come again, also with other columns."""

    def __init__(self, curve: CurveSettings, step: str | None) -> None:
        self._name = curve.file
        self._dialect = csv.excel_tab if ending_of(curve) == ".tsv" else csv.excel
        self._step = step

    def _cells(self, line: str) -> list[str]:
        try:
            (cells,) = csv.reader([line], dialect=self._dialect, skipinitialspace=True)
        except csv.Error as error:
            raise wrong(self._name, f"a line is no row of a table ({error})", line) from None
        return [cell.strip() for cell in cells]

    def entry(self, line: str, is_ended: bool) -> Mapping[str, Any] | None:
        if not line.strip():
            return None
        cells = self._cells(line)
        if not self.columns or self._step in cells or cells == self.columns:
            self.columns = cells
            return None
        if len(cells) < len(self.columns) and not is_ended:
            return None
        if any(cells[len(self.columns) :]):
            columns = f"the header has {len(self.columns)} columns"
            what = f"{len(cells)} cells, and {columns}. Valid: one cell a column"
            raise wrong(self._name, what, line)
        pairs = zip(self.columns, cells, strict=False)
        return {column: _cell(cell) for column, cell in pairs if column}


def _cell(text: str) -> float | str:
    try:
        return number(text)
    except ValueError:
        return text


def flat(entry: Mapping[str, Any], depth: int = DEEPEST, prefix: str = "") -> dict[str, Any]:
    """{"val": {"per": 0.1}} -> {"val/per": 0.1}"""
    found: dict[str, Any] = {}
    for key, given in entry.items():
        if not isinstance(given, dict):
            found[prefix + key] = given
        elif depth:
            found |= flat(given, depth - 1, f"{prefix}{key}/")
    return found


def decoded(data: bytes) -> str:
    return data.decode("utf-8", "replace")
