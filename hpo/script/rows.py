"""Follows the file to which a training script writes its progress.

The file may grow, be truncated, be rewritten with further columns, or be continued by another
process after a restart of the script. Through all of this the steps of the returned rows never
decrease, and a step comes again only if more is known about it.
"""

import json
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from hpo.errors import os_error_text
from hpo.script.expression import Expression, name_of
from hpo.script.forms import (
    EXAMPLE,
    Form,
    JsonLines,
    Patterns,
    Table,
    decoded,
    ending_of,
    flat,
    parsed_json,
)
from hpo.script.names import MOST_KEYS, Names
from hpo.script.row import QUOTED, Row, RowsError, wrong
from hpo.script.settings import CurveSettings
from hpo.script.steps import Steps
from hpo.settings import guess
from hpo.text import plural

LONGEST_LINE = 10_000_000
LARGEST_DOCUMENT = 200_000_000
CHUNK = 1 << 20
# Bytes before the current offset that are compared, to notice a file that was rewritten.
TAIL = 64


class Rows:
    """Follows the file in which a script reports its progress.

    path: the file; the path of a .json file may contain *. place: where another process stopped
    reading. restarts: how often the script was restarted and continued the file.
    """

    def __init__(
        self,
        curve: CurveSettings,
        path: Path,
        place: Mapping[str, Any] | None = None,
        restarts: int = 0,
    ) -> None:
        self._curve = curve
        self._path = path
        self._expression: Expression | None = None
        if curve.expression.strip():
            self._expression = Expression.of(curve.expression)
        self._names = Names(curve, self._expression)
        self._steps = Steps(self._expression, curve.file, restarts)
        self._form = self._chosen_form(restarts > 0)
        self._offset = 0
        self._tail = b""
        self._lines = 0
        self._signature: tuple[Any, ...] | None = None
        # The keys that a JSON document has where `curve.rows` names no list.
        self._keys_without_list: tuple[str, ...] | None = None
        # The entries of a JSON document as text, and those that an earlier attempt has read.
        self._entries: list[str] = []
        self._skipped_entries: list[str] = []
        if place:
            self._continue_at(place)

    def _chosen_form(self, is_inherited: bool) -> Form:
        if self._curve.pattern:
            return Patterns(self._curve)
        if ending_of(self._curve) in (".csv", ".tsv"):
            return Table(self._curve, self._names.columns.get("step"))
        return JsonLines(self._curve, is_inherited)

    def place(self) -> dict[str, Any]:
        """Where another process continues to read, JSON-ready."""
        return {
            "offset": self._offset,
            "tail": self._tail.hex(),
            "lines": self._lines,
            "columns": list(self._form.columns),
            "keys": list(self._names.keys),
            "steps": self._steps.place(),
        }

    def _continue_at(self, place: Mapping[str, Any]) -> None:
        self._offset = place["offset"]
        self._tail = bytes.fromhex(place["tail"])
        self._lines = place["lines"]
        self._names.keys = dict.fromkeys(place["keys"])
        self._steps.continue_at(place["steps"])
        self._form.columns = place["columns"]

    def pass_over(self) -> None:
        """Skip all rows so far, which an earlier attempt has read. Raises RowsError.

        All rows that follow are new, whatever their steps.
        """
        self.read()
        self._skipped_entries = self._entries
        self._steps.forget()

    def read(self, last: bool = False) -> list[Row]:
        """The rows that are new, or whose steps more is known about. Raises RowsError.

        last: the file is complete, so a last line without a line end counts.
        """
        try:
            path = self._newest()
            status = path.stat()
            signature = (str(path), status.st_ino, status.st_size, status.st_mtime_ns)
            if signature == self._signature and not last:
                return []
            if not stat.S_ISREG(status.st_mode):
                raise RowsError(
                    f"{path}: is not a regular file. Valid: curve.file names the file that the "
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

    def changed(self) -> float:
        """When the file was last changed, in seconds since the epoch; 0 if it does not exist."""
        try:
            return self._newest().stat().st_mtime
        except OSError:
            return 0.0

    def _newest(self) -> Path:
        """The file, or the newest one that its path with * matches. Raises FileNotFoundError."""
        parts = self._path.parts
        with_star = [index for index, part in enumerate(parts) if "*" in part]
        if not with_star:
            return self._path
        folder = Path(*parts[: with_star[0]])
        pattern = str(Path(*parts[with_star[0] :])).replace("[", "[[]").replace("?", "[?]")
        matches = list(folder.glob(pattern))
        if not matches:
            raise FileNotFoundError(self._path)
        return max(matches, key=_age)

    def _read(self, file: BinaryIO, last: bool) -> list[Row]:
        if ending_of(self._curve) == ".json":
            rows = self._read_document(file, last)
        else:
            rows = self._read_lines(file, last)
        return rows + self._steps.flush()

    # ---- a JSON document, which is always rewritten as a whole

    def _read_document(self, file: BinaryIO, last: bool) -> list[Row]:
        data = file.read(LARGEST_DOCUMENT + 1)
        if len(data) > LARGEST_DOCUMENT:
            size = f"more than {LARGEST_DOCUMENT // 10**6} MB"
            raise RowsError(f"{self._curve.file}: {size}. Valid: a shorter file, or JSON lines")
        try:
            document = parsed_json(data.decode("utf-8-sig", "replace"))
        except ValueError as error:
            # The script may have written only a part of it so far.
            if not last or not data.strip():
                return []
            end = decoded(data[-QUOTED:])
            raise wrong(self._curve.file, f"is not valid JSON ({error})", end) from None
        self._steps.begin_again()
        lines = [json.dumps(entry) for entry in self._list_of_rows(document)]
        self._entries = lines
        skipped = _common_length(lines, self._skipped_entries)
        rows: list[Row] = []
        for line in lines[skipped:]:
            entry = json.loads(line)
            if not isinstance(entry, dict):
                raise wrong(self._curve.file, f"a row is not an object. Valid: {EXAMPLE}", line)
            rows += self._steps.add(self._names.read(flat(entry), line), line)
        return rows

    def _list_of_rows(self, document: Any) -> list[Any]:
        """The list that `curve.rows` names. It is empty while the document has no such key."""
        self._keys_without_list = None
        self._names.keys = {}
        value = document
        path = self._curve.rows.split(".") if self._curve.rows else []
        for key in path:
            keys = tuple(value) if isinstance(value, dict) else ()
            if key not in keys:
                self._keys_without_list = keys[:MOST_KEYS]
                return []
            value = value[key]
        if isinstance(value, list):
            return value
        lists = []
        if isinstance(value, dict):
            lists = [key for key, item in value.items() if isinstance(item, list)]
        raise RowsError(
            f"{self._curve.file}: {self._curve.rows or 'it'} is not a list of rows. Name the list "
            f"in curve.rows. Lists in the file: {', '.join(lists) or 'none'}"
        )

    # ---- files that grow line by line

    def _read_lines(self, file: BinaryIO, last: bool) -> list[Row]:
        if not self._continues(file):
            self._offset = 0
            self._tail = b""
            self._lines = 0
            self._form.columns = ()
            self._steps.begin_again()
        file.seek(self._offset)
        rows: list[Row] = []
        for data, is_ended in self._split(file, last):
            line = decoded(data).removeprefix("\ufeff").rstrip("\r\n")
            entry = self._form.entry(line, is_ended)
            if entry is not None:
                rows += self._steps.add(self._names.read(entry, line), line)
            if line.strip():
                self._lines += 1
            self._offset += len(data)
            self._tail = (self._tail + data[-TAIL:])[-TAIL:]
        return rows

    def _continues(self, file: BinaryIO) -> bool:
        """Whether the bytes before the offset are still the same."""
        file.seek(self._offset - len(self._tail))
        return file.read(len(self._tail)) == self._tail

    def _split(self, file: BinaryIO, last: bool) -> Iterator[tuple[bytes, bool]]:
        """Yield the lines, and whether each has its line end."""
        rest = b""
        while chunk := file.read(CHUNK):
            lines = (rest + chunk).splitlines(keepends=True)
            rest = b""
            if not lines[-1].endswith((b"\n", b"\r")):
                rest = lines.pop()
            for line in lines:
                self._check_length(line)
                yield line, True
            self._check_length(rest)
        if rest and last:
            yield rest, False

    def _check_length(self, line: bytes) -> None:
        if len(line) > LONGEST_LINE:
            what = f"a line is longer than {LONGEST_LINE // 10**6} MB. Valid: one line per step"
            raise wrong(self._curve.file, what, decoded(line[:QUOTED]))

    # ---- when no value was found

    def advice(self) -> str:
        """Why no row has a value, and what to do. Empty if a row has one."""
        if self._steps.has_value:
            return ""
        if self._curve.pattern:
            return self._pattern_advice()
        if self._keys_without_list is not None:
            return self._list_advice(self._keys_without_list)
        if not self._names.keys:
            return f"{self._curve.file} does not exist, or has no rows"
        if not self._steps.has_step:
            return self._key_advice("step")
        if self._expression is None:
            return self._key_advice("value")
        return self._expression_advice(self._expression)

    def _expression_advice(self, expression: Expression) -> str:
        known = tuple(dict.fromkeys(name_of(key) for key in self._names.keys))
        missing = [name for name in expression.names if name not in known]
        if not missing:
            missing = list(expression.names)
        return (
            f"no row of {self._curve.file} has all names of the expression: {', '.join(missing)}."
            f"{guess(missing[0], known)} They have {', '.join(known)}"
        )

    def _pattern_advice(self) -> str:
        patterns = " | ".join(self._curve.pattern)
        if not self._lines:
            return f"{self._curve.file} does not exist, or is empty. The pattern: {patterns}"
        lines = plural(self._lines, "line")
        if not self._names.keys:
            return f"none of {lines} in {self._curve.file} matches the pattern {patterns}"
        groups = ", ".join(self._names.keys)
        missing = "value" if self._steps.has_step else "step"
        return (
            f"{lines} of {self._curve.file} gave {groups}, but no {missing}. "
            f"The pattern: {patterns}"
        )

    def _list_advice(self, keys: Sequence[str]) -> str:
        rows = self._curve.rows
        has = ", ".join(keys) or "no keys"
        return f"{self._curve.file} has no list {rows}.{guess(rows, keys)} It has {has}"

    def _key_advice(self, missing: str) -> str:
        keys = tuple(self._names.keys)
        column = self._names.columns.get(missing, missing)
        return (
            f"no row of {self._curve.file} has {column!r} as its {missing}.{guess(column, keys)} "
            f"They have {', '.join(keys)}. Name it in curve.names: {{{missing}: ...}}"
        )


def _age(path: Path) -> tuple[int, int, str]:
    """A sort key, the oldest first; checkpoint-900 precedes an equally old checkpoint-1000."""
    try:
        changed = path.stat().st_mtime_ns
    except OSError:
        changed = -1
    return changed, len(str(path)), str(path)


def _common_length(one: Sequence[str], other: Sequence[str]) -> int:
    """The number of entries at the beginning that are equal."""
    length = 0
    for entry, other_entry in zip(one, other, strict=False):
        if entry != other_entry:
            break
        length += 1
    return length
