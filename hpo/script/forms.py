"""The forms in which a script writes its progress: text with patterns, JSON lines, a table."""

import csv
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from hpo.script.numerals import NOT_FINITE, NOT_FINITE_ALONE, SPECIAL, number
from hpo.script.row import wrong
from hpo.script.settings import CurveSettings

DEEPEST = 8
# Positions in a torn line at which a complete object is looked for.
MOST_TEARS = 100
# Replaces a number such as nan or 1e-05 when a pattern is tried a second time.
_STAND_IN = "9.8765432198765"


def ending_of(curve: CurveSettings) -> str:
    """The ending of the file's name, which tells its form. Empty with a pattern."""
    if curve.pattern:
        return ""
    return Path(curve.file).suffix.lower()


class Form:
    """Reads the lines of a file. columns: those of a table, once its header was read."""

    columns: Sequence[str] = ()

    def entry(self, line: str, is_ended: bool) -> Mapping[str, Any] | None:
        """The values of a line by their keys, or None for a line without any.

        is_ended: a line end follows. Raises RowsError.
        """
        raise NotImplementedError


class Patterns(Form):
    """Text in which regular expressions match some of the lines."""

    def __init__(self, curve: CurveSettings) -> None:
        self._name = curve.file
        self._patterns = [re.compile(pattern) for pattern in curve.pattern]

    def entry(self, line: str, is_ended: bool) -> Mapping[str, Any] | None:
        special = list(SPECIAL.finditer(line))
        texts: dict[str, str] = {}
        for pattern in self._patterns:
            for group, text in self._groups(pattern, line, special).items():
                texts.setdefault(group, text)
        return texts or None

    def _groups(
        self, pattern: re.Pattern[str], line: str, special: list[re.Match[str]]
    ) -> dict[str, str]:
        """Group -> text. special: the numbers of the line such as nan and 1e-05.

        A pattern for ordinary numbers is tried again with ordinary numbers in their place.
        """
        match = pattern.search(line)
        cut_number = _cut_number(match, special) if match else ""
        if match and not cut_number:
            return _texts(match)
        not_finite = [token for token in special if NOT_FINITE.fullmatch(token.group())]
        for tokens in (not_finite, special):
            if not tokens:
                continue
            plain = _PlainLine(line, tokens)
            match = pattern.search(plain.text)
            if match and not _cut_number(match, list(SPECIAL.finditer(plain.text))):
                return {group: plain.original(*match.span(group)) for group in _texts(match)}
        if cut_number:
            what = (
                f"the pattern {pattern.pattern} matches only a part of {cut_number}. "
                f"Valid: a pattern that matches the whole number"
            )
            raise wrong(self._name, what, line)
        return {}


def _texts(match: re.Match[str]) -> dict[str, str]:
    """The texts of the groups that took part in the match."""
    return {group: text for group, text in match.groupdict().items() if text is not None}


def _cut_number(match: re.Match[str], special: Sequence[re.Match[str]]) -> str:
    """A number of which a group matches only the beginning, such as 1 of 1e-05; or empty."""
    for group in match.groupdict():
        end = match.end(group)
        for token in special:
            if token.start() < end < token.end():
                return token.group()
    return ""


@dataclass(frozen=True)
class _Replacement:
    """Where an ordinary number stands in the text, and the number it replaces in the line."""

    begin: int
    end: int
    line_begin: int
    line_end: int


class _PlainLine:
    """A line with an ordinary number in place of each special one, and the way back."""

    def __init__(self, line: str, special: Sequence[re.Match[str]]) -> None:
        self._line = line
        self._replacements: list[_Replacement] = []
        self.text = ""
        copied = 0
        for token in special:
            self.text += line[copied : token.start()]
            begin = len(self.text)
            self.text += _STAND_IN
            self._replacements.append(
                _Replacement(begin, len(self.text), token.start(), token.end())
            )
            copied = token.end()
        self.text += line[copied:]

    def original(self, start: int, end: int) -> str:
        """The text of the line for a span of `text`, with all of every number that it touches."""
        line_start = self._position_in_line(start, is_end=False)
        line_end = self._position_in_line(end, is_end=True)
        return self._line[line_start:line_end]

    def _position_in_line(self, position: int, is_end: bool) -> int:
        shift = 0
        for replacement in self._replacements:
            if position <= replacement.begin:
                break
            if position < replacement.end:
                return replacement.line_end if is_end else replacement.line_begin
            shift = replacement.line_end - replacement.end
        return position + shift


class JsonLines(Form):
    """One JSON object per line.

    is_inherited: an earlier attempt began the file, and may have been killed in mid-line.
    """

    def __init__(self, curve: CurveSettings, is_inherited: bool) -> None:
        self._name = curve.file
        self._is_inherited = is_inherited

    def entry(self, line: str, is_ended: bool) -> Mapping[str, Any] | None:
        if not line.strip():
            return None
        try:
            entry = parsed_json(line)
        except ValueError as error:
            if not is_ended:
                return None
            entry = self._after_tear(line, error)
        if not isinstance(entry, dict):
            raise wrong(self._name, f"a line is not an object. Valid: {EXAMPLE}", line)
        return flat(entry)

    def _after_tear(self, line: str, error: ValueError) -> Any:
        """The object after a torn one in the same line, or an empty one. Raises RowsError."""
        if not self._is_inherited:
            what = f"a line is not valid JSON ({error}). Valid: {EXAMPLE}"
            raise wrong(self._name, what, line) from None
        for match in islice(re.finditer("(?<!^){", line), MOST_TEARS):
            with suppress(ValueError):
                return parsed_json(line[match.start() :])
        return {}


EXAMPLE = '{"step": 100, "value": 0.21}'


def parsed_json(text: str) -> Any:
    """Parse JSON in which NaN and infinity may have any spelling. Raises ValueError."""
    try:
        return json.loads(text)
    except ValueError:
        plain = NOT_FINITE_ALONE.sub(_json_spelling, text)
        if plain == text:
            raise
        return json.loads(plain)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _json_spelling(match: re.Match[str]) -> str:
    return json.dumps(number(match.group()))


class Table(Form):
    """A header and one row per line. The header may be repeated, and with other columns."""

    def __init__(self, curve: CurveSettings, step: str | None) -> None:
        self._name = curve.file
        self._dialect = csv.excel_tab if ending_of(curve) == ".tsv" else csv.excel
        self._step = step

    def _cells(self, line: str) -> list[str]:
        try:
            (cells,) = csv.reader([line], dialect=self._dialect, skipinitialspace=True)
        except csv.Error as error:
            raise wrong(self._name, f"a line is not a row of a table ({error})", line) from None
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
        surplus = cells[len(self.columns) :]
        if any(surplus):
            what = (
                f"{len(cells)} cells, but the header has {len(self.columns)} columns. "
                f"Valid: one cell per column"
            )
            raise wrong(self._name, what, line)
        pairs = zip(self.columns, cells, strict=False)
        return {column: _cell(cell) for column, cell in pairs if column}


def _cell(text: str) -> float | str:
    try:
        return number(text)
    except ValueError:
        return text


def flat(entry: Mapping[str, Any], depth: int = DEEPEST, prefix: str = "") -> dict[str, Any]:
    """{"val": {"per": 0.1}} -> {"val/per": 0.1}. Groups below `depth` levels are left out."""
    values: dict[str, Any] = {}
    for key, value in entry.items():
        if not isinstance(value, dict):
            values[prefix + key] = value
        elif depth:
            values |= flat(value, depth - 1, f"{prefix}{key}/")
    return values


def decoded(data: bytes) -> str:
    return data.decode("utf-8", "replace")
