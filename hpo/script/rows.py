"""The rows that a training script writes about its progress, read while it writes them.

A row is what is known of one step. `check_curve` finds the faults of the section when the study
file is loaded; `Rows` follows one file: lines that a pattern finds, a table, JSON lines, or a JSON
file that is written whole again and again.

A file grows, is cut, is written anew with further columns, or goes on in another process after the
script was started again. Through all of this the steps of the rows that are read never decrease,
and a step is given again only if more is known of it.
"""

import ast
import csv
import json
import math
import operator
import re
import stat
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from hpo.errors import CallerError, SpecError, os_error_text
from hpo.script.settings import OUTPUT, CurveSettings
from hpo.settings import guess

LISTS = ("errors", "lengths")
FIELDS = ("step", "value", "loss", "validation_loss", *LISTS)
MOST_METRICS = 32
LONGEST_LINE = 10_000_000
LARGEST_DOCUMENT = 200_000_000
LARGEST_STEP = 2**53
CHUNK = 1 << 20
# Bytes before the place in the file. Others there: the file was written anew.
TAIL = 64
# Lines of one row of a table: a quoted cell may hold line ends.
MOST_LINES = 200
QUOTED = 200
MOST_KEYS = 100
DEEPEST = 8
# Places in a torn line where another may begin.
MOST_TEARS = 100


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


# --- numbers

_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:e[+-]?[0-9]+)?", re.IGNORECASE)
_NOT_FINITE_TEXT = r"[+-]?(?:\.?(?:nan|inf(?:inity)?)(?:\([a-z0-9_]*\))?|1\.#[a-z]+[0-9]*)"
_NOT_FINITE = re.compile(_NOT_FINITE_TEXT, re.IGNORECASE)
_NOT_FINITE_ALONE = re.compile(rf"(?<!\w){_NOT_FINITE_TEXT}(?!\w)", re.IGNORECASE)
# What a group such as [\d.]+ does not match, or takes the beginning of: nan, -inf, 1e-05.
_SPECIAL = re.compile(
    rf"(?<!\w){_NOT_FINITE_TEXT}(?!\w)"
    r"|(?<![\w.])(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)e[+-]?[0-9]+(?!\w)",
    re.IGNORECASE,
)
# Stands for such a number where a pattern is tried once more.
_STAND_IN = "9.8765432198765"


def _number(text: str) -> float:
    """A number in any spelling of C, Python and JSON. Raises ValueError."""
    text = text.strip()
    if _NUMBER.fullmatch(text):
        return float(text)
    if not _NOT_FINITE.fullmatch(text):
        raise ValueError(text)
    if "inf" not in text.lower():
        return math.nan
    return -math.inf if text.startswith("-") else math.inf


def _as_number(given: Any) -> float:
    """Raises ValueError for flags, lists and text that is no number."""
    if isinstance(given, str):
        return _number(given)
    if isinstance(given, bool) or not isinstance(given, (int, float)):
        raise ValueError(given)
    try:
        return float(given)
    except OverflowError:
        return math.inf if given > 0 else -math.inf


def _as_step(given: Any) -> int:
    """Raises ValueError for what is no whole number from 0."""
    number = _as_number(given)
    if not 0 <= number <= LARGEST_STEP or number != int(number):
        raise ValueError(given)
    return int(number)


def _as_list(given: Any) -> tuple[float, ...]:
    """Of JSON a list; of text numbers between brackets, commas or blanks. Raises ValueError."""
    if isinstance(given, str):
        given = re.sub(r"[\[\](),;]", " ", given).split()
    if not isinstance(given, list):
        raise ValueError(given)
    return tuple(_as_number(item) for item in given)


def _printable(text: str) -> str:
    """Cut, and without what would steer the terminal that shows it."""
    return "".join(letter if letter.isprintable() else "?" for letter in text[:QUOTED])


def _wrong(name: str, what: str, line: str) -> RowsError:
    """name: of the file. what: with what is valid."""
    return RowsError(f"{name}: {what}. The line: {_printable(line)}")


def _shown(given: Any) -> str:
    """What was given, as JSON has it, cut."""
    return _printable(given if isinstance(given, str) else json.dumps(given, default=str))


# --- the expression


def _divide(one: float, other: float) -> float:
    return one / other if other else math.nan


def _least(values: Sequence[float]) -> float:
    return math.nan if any(math.isnan(value) for value in values) else min(values)


def _largest(values: Sequence[float]) -> float:
    return math.nan if any(math.isnan(value) for value in values) else max(values)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


_OPERATORS: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: _divide,
}
_FUNCTIONS: dict[str, Callable[[Sequence[float]], float]] = {
    "mean": _mean,
    "min": _least,
    "max": _largest,
    "sum": sum,
}
_VALID_EXPRESSION = (
    "Valid: numbers, names, + - * / ( ) and mean, min, max, sum, as in mean(per_0, per_1)"
)
_LONGEST_EXPRESSION = 10_000
_DEEPEST_EXPRESSION = 100


@dataclass(frozen=True)
class Expression:
    """The value, computed of a row's numbers."""

    text: str
    tree: ast.expr
    names: tuple[str, ...]

    @classmethod
    def of(cls, text: str) -> "Expression":
        """Raises ValueError, which says what is wrong."""
        tree = _parsed(text)
        names: dict[str, None] = {}
        _check_node(tree, names, _DEEPEST_EXPRESSION)
        if not names:
            raise ValueError("it uses no name, so its value is always the same")
        return cls(text, tree, tuple(names))

    def value(self, numbers: Mapping[str, float]) -> float | None:
        """None: a name is missing."""
        if any(name not in numbers for name in self.names):
            return None
        return _evaluated(self.tree, numbers)


def _parsed(text: str) -> ast.expr:
    if len(text) > _LONGEST_EXPRESSION:
        raise ValueError(f"it is longer than {_LONGEST_EXPRESSION} letters")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(text.strip(), mode="eval").body
    except SyntaxError as error:
        raise ValueError(f"it cannot be read ({error.msg} at position {error.offset})") from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"it cannot be read ({str(error) or 'too deep'})") from None


def _check_node(node: ast.expr, names: dict[str, None], depth: int) -> None:
    """Collects the names. Raises ValueError for anything but arithmetic."""
    if not depth:
        raise ValueError(f"it is deeper than {_DEEPEST_EXPRESSION}")
    if isinstance(node, ast.Name):
        names[node.id] = None
    for part in _parts(node):
        _check_node(part, names, depth - 1)


def _parts(node: ast.expr) -> list[ast.expr]:
    """The operands. Raises ValueError for anything but arithmetic."""
    if isinstance(node, ast.Name) or _is_number(node):
        return []
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
        return [node.operand]
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return [node.left, node.right]
    if isinstance(node, ast.Call):
        return _arguments(node)
    raise ValueError(f"it uses {_printable(ast.unparse(node))}")


def _is_number(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and type(node.value) in (int, float)


def _arguments(call: ast.Call) -> list[ast.expr]:
    if not isinstance(call.func, ast.Name) or call.func.id not in _FUNCTIONS:
        name = _printable(ast.unparse(call.func))
        raise ValueError(f"it uses {name}(...).{guess(name, tuple(_FUNCTIONS))}")
    if not call.args or call.keywords:
        text = _printable(ast.unparse(call))
        raise ValueError(f"it uses {text}, and {call.func.id} takes one number or more")
    return call.args


def _evaluated(node: ast.expr, numbers: Mapping[str, float]) -> float:
    if isinstance(node, ast.Name):
        return numbers[node.id]
    if isinstance(node, ast.Constant):
        return _as_number(node.value)
    parts = [_evaluated(part, numbers) for part in _parts(node)]
    if isinstance(node, ast.UnaryOp):
        return -parts[0] if isinstance(node.op, ast.USub) else parts[0]
    if isinstance(node, ast.BinOp):
        return _OPERATORS[type(node.op)](*parts)
    assert isinstance(node, ast.Call)
    assert isinstance(node.func, ast.Name)
    return float(_FUNCTIONS[node.func.id](parts))


def _name(column: str) -> str:
    """As an expression writes it: `val/per` is val_per."""
    return re.sub(r"\W", "_", column)


# --- the section of the study file


def check_curve(curve: CurveSettings, place: str) -> None:
    """Raises SpecError for the first fault. place: the study file, for the message."""
    where = f"{place}: script.curve" if place else "script.curve"
    _check_file(curve, where)
    expression = _checked_expression(curve, where)
    if curve.pattern:
        _check_patterns(curve, expression, where)
    else:
        _check_names(curve, expression, where)


def _ending(curve: CurveSettings) -> str:
    """Of the file's name, where it says how the file is read."""
    return "" if curve.pattern else Path(curve.file).suffix.lower()


def _no(what: str, name: str, valid: Sequence[str], place: str) -> str:
    return f"{place}: there is no {what} {name!r}.{guess(name, valid)} Valid: {', '.join(valid)}"


def _check_file(curve: CurveSettings, where: str) -> None:
    is_document = _ending(curve) == ".json"
    if not curve.file.strip():
        raise SpecError(
            f"{where}.file: it is empty. Valid: a file in the attempt's folder, or {OUTPUT}"
        )
    if "*" in curve.file and not is_document:
        raise SpecError(
            f"{where}.file: {curve.file} has a *. Valid: * in the name of a .json file, without a "
            f"pattern"
        )
    if curve.rows and not is_document:
        raise SpecError(
            f"{where}.rows: {curve.rows!r} is given for {curve.file}. Valid: rows of a .json file "
            f"that is written whole, without a pattern"
        )
    if curve.file == OUTPUT and not curve.pattern:
        raise SpecError(
            f"{where}.pattern: what a script prints is read with a pattern. Give one, or another "
            f"file"
        )


def _checked_expression(curve: CurveSettings, where: str) -> Expression | None:
    if not curve.expression.strip():
        return None
    try:
        return Expression.of(curve.expression)
    except ValueError as error:
        given = _printable(curve.expression)
        raise SpecError(f"{where}.expression: {given!r}: {error}. {_VALID_EXPRESSION}") from None


def _check_patterns(curve: CurveSettings, expression: Expression | None, where: str) -> None:
    where_names = f"{where}.names"
    if curve.names:
        raise SpecError(
            f"{where_names}: a pattern names its groups itself. Leave out names or pattern"
        )
    place = f"{where}.pattern"
    groups: dict[str, None] = {}
    for pattern in curve.pattern:
        groups |= dict.fromkeys(_groups(pattern, place))
    parts = expression.names if expression else ()
    valid = (*FIELDS, *(name for name in parts if name not in FIELDS))
    for group in groups:
        if group not in valid:
            raise SpecError(_no("group", group, valid, place))
    if "step" not in groups:
        raise SpecError(
            f"{place}: no group `step`. Valid: one such as (?P<step>\\d+), in a pattern of its own "
            f"if need be"
        )
    if expression is None and "value" not in groups:
        raise SpecError(
            f"{place}: no group `value`. Valid: one such as (?P<value>[\\d.]+), or an expression"
        )
    for name in parts:
        if name not in groups:
            raise SpecError(_no("group", name, tuple(groups), f"{where}.expression"))
    _check_one_value("value" in groups, expression, where)


def _groups(pattern: str, place: str) -> list[str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            groups = re.compile(pattern).groupindex
    except re.error as error:
        at = "" if error.pos is None else f" at position {error.pos}"
        raise SpecError(
            f"{place}: {pattern!r}: {error.msg}{at}. Valid: a regular expression of Python"
        ) from None
    except (OverflowError, RecursionError) as error:
        raise SpecError(
            f"{place}: {_printable(pattern)!r}: {error}. Valid: a shorter one"
        ) from None
    if not groups:
        raise SpecError(
            f"{place}: {pattern!r} has no named group. Valid: such as (?P<value>[\\d.]+)"
        )
    return list(groups)


def _check_names(curve: CurveSettings, expression: Expression | None, where: str) -> None:
    for name, column in curve.names.items():
        if name not in FIELDS:
            raise SpecError(_no("field", name, FIELDS, f"{where}.names"))
        if not column.strip():
            raise SpecError(
                f"{where}.names.{name}: it is empty. Valid: what JSON or a column calls it"
            )
    _check_one_value("value" in curve.names, expression, where)


def _check_one_value(is_named: bool, expression: Expression | None, where: str) -> None:
    if is_named and expression is not None and "value" not in expression.names:
        raise SpecError(
            f"{where}.expression: it does not use `value`, which is read too. Valid: one of the two"
        )


# --- from a line to numbers


@dataclass
class _Found:
    """What one line says."""

    fields: dict[str, Any] = field(default_factory=dict)
    parts: dict[str, float] = field(default_factory=dict)
    """What the expression uses."""
    metrics: dict[str, float] = field(default_factory=dict)


class _Names:
    """Which key, column or group is which field of a row."""

    def __init__(self, curve: CurveSettings, expression: Expression | None, name: str) -> None:
        self._name = name
        self._parts = expression.names if expression else ()
        # Patterns may find them in two lines.
        self._lists_come_alone = bool(curve.pattern)
        self.columns = dict(curve.names)
        taken = set(curve.names.values())
        for each in FIELDS:
            if each not in taken:
                self.columns.setdefault(each, each)
        # Keys in the order in which they were seen, for advice.
        self.keys: dict[str, None] = {}

    def found(self, entry: Mapping[str, Any], line: str) -> _Found:
        """Raises RowsError for what should be a number and is none."""
        present = {key: given for key, given in entry.items() if not _is_missing(given)}
        self._remember(present)
        found = _Found()
        for each, column in self.columns.items():
            if column in present:
                found.fields[each] = self._field(each, column, present[column], line)
        self._check_lists(found.fields, line)
        by_name = {_name(column): column for column in present}
        for part in self._parts:
            column = by_name.get(part) or self.columns.get(part, "")
            if column in present:
                found.parts[part] = self._field("", column, present[column], line)
        core = set(self.columns.values())
        for key, given in present.items():
            number = _metric(given)
            if key not in core and number is not None:
                found.metrics[key] = number
        return found

    def _remember(self, present: Iterable[str]) -> None:
        for key in present:
            if len(self.keys) < MOST_KEYS:
                self.keys.setdefault(key)

    def _field(self, each: str, column: str, given: Any, line: str) -> Any:
        read, valid = _READERS.get(each, (_as_number, "a number"))
        try:
            return read(given)
        except ValueError:
            what = f"{column}: {_shown(given)} is not {valid}"
            raise _wrong(self._name, what, line) from None

    def _check_lists(self, fields: Mapping[str, Any], line: str) -> None:
        errors, lengths = fields.get("errors"), fields.get("lengths")
        if errors is None and lengths is None:
            return
        if errors is None or lengths is None:
            if self._lists_come_alone:
                return
            given, other = LISTS if lengths is None else reversed(LISTS)
            what = f"{given} without {other}. Valid: both, one of each per item"
            raise _wrong(self._name, what, line)
        if len(errors) != len(lengths) or not sum(lengths):
            what = (
                f"{len(errors)} errors and {len(lengths)} lengths that sum up to {sum(lengths):g}. "
                f"Valid: one of each per item, and a sum of the lengths that is not 0"
            )
            raise _wrong(self._name, what, line)


_READERS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "step": (_as_step, "a whole number from 0"),
    "errors": (_as_list, "a list of numbers"),
    "lengths": (_as_list, "a list of numbers"),
}


def _is_missing(given: Any) -> bool:
    return given is None or (isinstance(given, str) and not given.strip())


def _metric(given: Any) -> float | None:
    """Flags, lists and text are no metrics; a NaN may be written as text."""
    if isinstance(given, str):
        return _number(given) if _NOT_FINITE.fullmatch(given.strip()) else None
    if isinstance(given, (bool, list)):
        return None
    return _as_number(given)


def _flat(entry: Mapping[str, Any], depth: int = DEEPEST, prefix: str = "") -> dict[str, Any]:
    """{"val": {"per": 0.1}} -> {"val/per": 0.1}"""
    flat: dict[str, Any] = {}
    for key, given in entry.items():
        if not isinstance(given, dict):
            flat[prefix + key] = given
        elif depth:
            flat |= _flat(given, depth - 1, f"{prefix}{key}/")
    return flat


# --- the forms of a file


class _Form:
    """How the lines of a file are read."""

    columns: Sequence[str] = ()
    """Of a table, as far as it is read."""

    def go_on(self, columns: Sequence[str], restarts: int) -> None:
        """In another process. restarts: how often the script was started again."""

    def begin_again(self) -> None:
        """The file is read from its first byte."""

    def is_whole(self, data: bytes) -> bool:
        """Whether the row ends where these lines end."""
        return True

    def entry(self, line: str, is_ended: bool) -> Mapping[str, Any] | None:
        """Key -> what is given; None: a line that says nothing. is_ended: a line end follows.

        Raises RowsError.
        """
        raise NotImplementedError


class _Patterns(_Form):
    """Lines that regular expressions find, among others."""

    def __init__(self, curve: CurveSettings, name: str) -> None:
        self._name = name
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._patterns = [re.compile(pattern) for pattern in curve.pattern]

    def entry(self, line: str, is_ended: bool) -> Mapping[str, Any] | None:
        special = list(_SPECIAL.finditer(line))
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
        not_finite = [token for token in special if _NOT_FINITE.fullmatch(token.group())]
        for tokens in (not_finite, special):
            plain = _Plain(line, tokens)
            again = pattern.search(plain.text) if tokens else None
            if again and not _cut(again, list(_SPECIAL.finditer(plain.text))):
                return {group: plain.original(*again.span(group)) for group in _texts(again)}
        if cut:
            what = f"the pattern {pattern.pattern} takes a part of {cut}. Valid: the whole number"
            raise _wrong(self._name, what, line)
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


class _JsonLines(_Form):
    """An object a line.

    As often as the script was started again, a line may be torn: it was killed in the middle of a
    write, and went on with the file.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._restarts = 0
        self._left = 0

    def go_on(self, columns: Sequence[str], restarts: int) -> None:
        self._restarts = restarts
        self._left = restarts

    def begin_again(self) -> None:
        self._left = self._restarts

    def entry(self, line: str, is_ended: bool) -> Mapping[str, Any] | None:
        if not line.strip():
            return None
        try:
            found = _json(line)
        except ValueError as error:
            if not is_ended:
                return None
            found = self._after_the_tear(line, error)
        if not isinstance(found, dict):
            raise _wrong(self._name, f"a line is no object. Valid: {_EXAMPLE}", line)
        return _flat(found)

    def _after_the_tear(self, line: str, error: ValueError) -> Any:
        """What was written behind half a line; nothing if that is all. Raises RowsError."""
        if not self._left:
            what = f"a line is no JSON ({error}). Valid: {_EXAMPLE}"
            raise _wrong(self._name, what, line) from None
        self._left -= 1
        starts = [match.start() for match in islice(re.finditer("{", line[1:]), MOST_TEARS)]
        for start in starts:
            try:
                return _json(line[1 + start :])
            except ValueError:
                continue
        return {}


_EXAMPLE = '{"step": 100, "value": 0.21}'


def _json(text: str) -> Any:
    """NaN and infinity in any spelling. Raises ValueError."""
    try:
        return json.loads(text)
    except ValueError:
        plain = _NOT_FINITE_ALONE.sub(lambda match: json.dumps(_number(match.group())), text)
        if plain == text:
            raise
        return json.loads(plain)
    except RecursionError:
        raise ValueError("too deep") from None


class _Table(_Form):
    """A row a line below a header. The header may come again, also with other columns."""

    def __init__(self, curve: CurveSettings, name: str, step: str | None) -> None:
        self._name = name
        self._dialect = csv.excel_tab if Path(curve.file).suffix.lower() == ".tsv" else csv.excel
        self._step = step

    def go_on(self, columns: Sequence[str], restarts: int) -> None:
        self.columns = list(columns)

    def begin_again(self) -> None:
        self.columns = ()

    def is_whole(self, data: bytes) -> bool:
        """Whether a line behind them begins another row."""
        if b'"' not in data:
            return True
        text = _decoded(data)
        return len(self._rows([text, "end"], text)) > 1

    def _rows(self, lines: list[str], text: str) -> list[list[str]]:
        try:
            return list(csv.reader(lines, dialect=self._dialect, skipinitialspace=True))
        except csv.Error as error:
            raise RowsError(
                f"{self._name}: a line is no row of a table ({error}). The line: {_printable(text)}"
            ) from None

    def entry(self, line: str, is_ended: bool) -> Mapping[str, Any] | None:
        if not line.strip():
            return None
        cells = [cell.strip() for cell in self._rows([line], line)[0]]
        if not self.columns or self._step in cells or cells == self.columns:
            self.columns = cells
            return None
        if len(cells) < len(self.columns) and not is_ended:
            return None
        if any(cells[len(self.columns) :]):
            columns = f"the header has {len(self.columns)} columns"
            what = f"{len(cells)} cells, and {columns}. Valid: one cell a column"
            raise _wrong(self._name, what, line)
        pairs = zip(self.columns, cells, strict=False)
        return {column: _cell(cell) for column, cell in pairs if column}


def _cell(text: str) -> float | str:
    try:
        return _number(text)
    except ValueError:
        return text


# --- from lines to rows


class _Steps:
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
        self._found = _Found()
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

    def add(self, found: _Found, line: str) -> list[Row]:
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
            self._found = _Found()
            self._given = None
        self._merge(found, line)
        return rows

    def _go_to(self, step: int, line: str) -> None:
        if self._at is not None and step < self._at:
            if self._returns >= self.restarts:
                raise RowsError(
                    f"{self._name}: steps go backwards, from {self._at} to {step}. Valid: steps "
                    f"that increase. The lines: {_printable(self._at_line)} | {_printable(line)}"
                )
            self._returns += 1
        self._at = step
        self._at_line = line[:QUOTED]

    def _merge(self, found: _Found, line: str) -> None:
        self._line = line[:QUOTED]
        self._found.fields |= found.fields
        self._found.parts |= found.parts
        for name, number in found.metrics.items():
            if name in self._found.metrics or len(self._found.metrics) < MOST_METRICS:
                self._found.metrics[name] = number
        self._check_lists()

    def _check_lists(self) -> None:
        errors, lengths = (self._found.fields.get(name) for name in LISTS)
        if errors is not None and lengths is not None and len(errors) != len(lengths):
            counts = f"{len(errors)} errors and {len(lengths)} lengths"
            what = f"step {self._step} has {counts}. Valid: one of each per item"
            raise _wrong(self._name, what, self._line)

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
            line=_printable(self._line),
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
        self._found = _Found(fields, parts, metrics)
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
    return _number(given) if isinstance(given, str) else given


# --- the file


def _decoded(data: bytes) -> str:
    return data.decode("utf-8", "replace")


class Rows:
    """Follows the file in which a script tells its progress.

    path: the file; of a .json file it may hold *. place: where another process has left off.
    """

    def __init__(
        self, curve: CurveSettings, path: Path, place: Mapping[str, Any] | None = None
    ) -> None:
        self._curve = curve
        self._path = path
        name = curve.file
        self._expression = Expression.of(curve.expression) if curve.expression.strip() else None
        self._names = _Names(curve, self._expression, name)
        self._steps = _Steps(self._expression, name)
        self._form = self._chosen_form()
        self._offset = 0
        self._tail = b""
        self._lines = 0
        self._signature: tuple[Any, ...] | None = None
        # Of a file that is written whole: what it has in the place of the list of rows.
        self._instead: tuple[str, ...] | None = None
        if place:
            self._go_on(place)

    def _chosen_form(self) -> _Form:
        if self._curve.pattern:
            return _Patterns(self._curve, self._curve.file)
        if _ending(self._curve) in (".csv", ".tsv"):
            return _Table(self._curve, self._curve.file, self._names.columns.get("step"))
        return _JsonLines(self._curve.file)

    @property
    def seen(self) -> int:
        """Rows found so far, one a step."""
        return self._steps.seen

    def place(self) -> dict[str, Any]:
        """JSON-ready: where another process goes on."""
        return {
            "offset": self._offset,
            "tail": self._tail.hex(),
            "lines": self._lines,
            "columns": list(self._form.columns),
            "keys": list(self._names.keys),
            "steps": self._steps.place(),
        }

    def _go_on(self, place: Mapping[str, Any]) -> None:
        self._offset = place["offset"]
        self._tail = bytes.fromhex(place["tail"])
        self._lines = place["lines"]
        self._names.keys = dict.fromkeys(place["keys"])
        self._steps.go_on(place["steps"])
        self._form.go_on(place["columns"], self._steps.restarts)

    def read(self, last: bool = False) -> list[Row]:
        """The rows that are new, or of whose steps more is known. Raises RowsError.

        last: the file is complete, so that a last line without an end counts.
        """
        try:
            path = self._newest()
            found = path.stat()
            signature = (str(path), found.st_ino, found.st_size, found.st_mtime_ns)
            if signature == self._signature and not last:
                return []
            if not stat.S_ISREG(found.st_mode):
                raise RowsError(
                    f"{path}: it is not a regular file. Valid: curve.file names the file that the "
                    f"script writes"
                )
            with path.open("rb") as file:
                rows = self._read(file, last)
        except (FileNotFoundError, NotADirectoryError):
            return []
        except PermissionError as error:
            raise RowsError(os_error_text(error)) from None
        self._signature = signature
        return rows

    def _newest(self) -> Path:
        """The file, or the newest one that its name with * matches. Raises FileNotFoundError."""
        parts = self._path.parts
        first = next((index for index, part in enumerate(parts) if "*" in part), None)
        if first is None:
            return self._path
        pattern = str(Path(*parts[first:])).replace("[", "[[]").replace("?", "[?]")
        found = [(_age(path), path) for path in Path(*parts[:first]).glob(pattern)]
        if not found:
            raise FileNotFoundError(self._path)
        return max(found)[1]

    def _read(self, file: BinaryIO, last: bool) -> list[Row]:
        is_document = _ending(self._curve) == ".json"
        read = self._read_document if is_document else self._read_lines
        return read(file, last) + self._steps.flush()

    # A JSON file that is written whole.

    def _read_document(self, file: BinaryIO, last: bool) -> list[Row]:
        data = file.read(LARGEST_DOCUMENT + 1)
        if len(data) > LARGEST_DOCUMENT:
            size = f"more than {LARGEST_DOCUMENT // 10**6} MB"
            raise RowsError(f"{self._curve.file}: {size}. Valid: a shorter file, or JSON lines")
        try:
            found = _json(data.decode("utf-8-sig", "replace"))
        except ValueError as error:
            # Half of it may be written yet.
            if not last or not data.strip():
                return []
            end = _decoded(data[-QUOTED:])
            raise _wrong(self._curve.file, f"it is no JSON ({error})", end) from None
        self._steps.begin_again()
        rows: list[Row] = []
        for entry in self._list(found):
            line = json.dumps(entry)
            if not isinstance(entry, dict):
                raise _wrong(self._curve.file, f"a row is no object. Valid: {_EXAMPLE}", line)
            rows += self._steps.add(self._names.found(_flat(entry), line), line)
        return rows

    def _list(self, found: Any) -> list[Any]:
        """The rows. A list that is not there is not there yet."""
        self._instead = None
        self._names.keys = {}
        for key in self._curve.rows.split(".") if self._curve.rows else []:
            keys = tuple(found) if isinstance(found, dict) else ()
            if key not in keys:
                self._instead = keys[:MOST_KEYS]
                return []
            found = found[key]
        if isinstance(found, list):
            return found
        items = found.items() if isinstance(found, dict) else ()
        lists = [key for key, given in items if isinstance(given, list)]
        raise RowsError(
            f"{self._curve.file}: {self._curve.rows or 'it'} is no list of rows. Say which is: "
            f"curve.rows. Lists that are there: {', '.join(lists) or 'none'}"
        )

    # Files that grow by lines.

    def _read_lines(self, file: BinaryIO, last: bool) -> list[Row]:
        if not self._continues(file):
            self._offset = 0
            self._tail = b""
            self._lines = 0
            self._form.begin_again()
            self._steps.begin_again()
        file.seek(self._offset)
        rows: list[Row] = []
        for data, is_ended in self._whole(self._split(file, last)):
            line = _decoded(data).removeprefix("\ufeff").rstrip("\r\n")
            entry = self._form.entry(line, is_ended)
            if entry is not None:
                rows += self._steps.add(self._names.found(entry, line), line)
            self._lines += bool(line.strip())
            self._offset += len(data)
            self._tail = (self._tail + data[-TAIL:])[-TAIL:]
        return rows

    def _continues(self, file: BinaryIO) -> bool:
        """Whether the bytes before the place are still the same."""
        file.seek(self._offset - len(self._tail))
        return file.read(len(self._tail)) == self._tail

    def _split(self, file: BinaryIO, last: bool) -> Iterator[tuple[bytes, bool]]:
        """Lines with their ends, and whether there is an end."""
        rest = b""
        while chunk := file.read(CHUNK):
            lines = (rest + chunk).splitlines(keepends=True)
            has_end = lines[-1].endswith((b"\n", b"\r"))
            rest = b"" if has_end else lines.pop()
            for line in lines:
                yield self._checked(line), True
            self._checked(rest)
        if rest and last:
            yield rest, False

    def _checked(self, line: bytes) -> bytes:
        if len(line) > LONGEST_LINE:
            what = f"a line is longer than {LONGEST_LINE // 10**6} MB. Valid: a line a step"
            raise _wrong(self._curve.file, what, _decoded(line[:QUOTED]))
        return line

    def _whole(self, lines: Iterator[tuple[bytes, bool]]) -> Iterator[tuple[bytes, bool]]:
        """Whole rows, which in a table may go over several lines."""
        before: list[bytes] = []
        for line, is_ended in lines:
            before.append(line)
            data = b"".join(before)
            if not is_ended or self._form.is_whole(data):
                yield data, is_ended
                before = []
            elif len(before) >= MOST_LINES:
                what = f"a quote is not closed for {MOST_LINES} lines"
                raise _wrong(self._curve.file, what, _decoded(before[0]))

    # Where nothing was found.

    def advice(self) -> str:
        """Why there may be no rows, or none with a value, and what to do; empty if all is well."""
        if self._steps.values:
            return ""
        if self._curve.pattern:
            return self._pattern_advice()
        if self._instead is not None:
            return self._list_advice(self._instead)
        if not self._names.keys:
            return f"{self._curve.file} is not there, or has no rows"
        if not self._steps.has_step:
            return self._key_advice("step")
        if self._expression is None:
            return self._key_advice("value")
        known = tuple(dict.fromkeys(_name(key) for key in self._names.keys))
        names = self._expression.names
        missing = [name for name in names if name not in known] or list(names)
        return (
            f"no row of {self._curve.file} has all names of the expression: {', '.join(missing)}."
            f"{guess(missing[0], known)} They have {', '.join(known)}"
        )

    def _pattern_advice(self) -> str:
        patterns = " | ".join(self._curve.pattern)
        if not self._lines:
            return f"{self._curve.file} is not there, or is empty. The pattern: {patterns}"
        lines = f"{self._lines} lines of {self._curve.file}"
        if not self._names.keys:
            return f"none of the {lines} matches the pattern {patterns}"
        found = ", ".join(self._names.keys)
        missing = "step" if not self._steps.has_step else "value"
        return f"the {lines} have {found}, and no {missing}. The pattern: {patterns}"

    def _list_advice(self, keys: Sequence[str]) -> str:
        rows = self._curve.rows
        has = ", ".join(keys) or "no keys"
        return f"{self._curve.file} has no list {rows}.{guess(rows, keys)} It has {has}"

    def _key_advice(self, missing: str) -> str:
        keys = tuple(self._names.keys)
        column = self._names.columns.get(missing, missing)
        return (
            f"no row of {self._curve.file} has {column!r} as its {missing}.{guess(column, keys)} "
            f"They have {', '.join(keys)}. Say which it is: curve.names: {{{missing}: ...}}"
        )


def _age(path: Path) -> tuple[int, int, str]:
    """To sort by; of equally old files checkpoint-1000 comes behind checkpoint-900."""
    try:
        changed = path.stat().st_mtime_ns
    except OSError:
        changed = -1
    return changed, len(str(path)), str(path)
