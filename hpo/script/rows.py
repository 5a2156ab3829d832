"""Follows the file in which a training script writes its progress, while it writes it.

A file grows, is cut, is written anew with further columns, or goes on in another process after the
script was started again. Through all of this the steps of the rows that are read never decrease,
and a step is given again only if more is known of it.
"""

import json
import stat
from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile
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

LONGEST_LINE = 10_000_000
LARGEST_DOCUMENT = 200_000_000
CHUNK = 1 << 20
# Bytes before the place in the file. Others there: the file was written anew.
TAIL = 64


class Rows:
    """Follows the file in which a script tells its progress.

    path: the file; of a .json file it may hold *. place: where another process has left off.
    restarts: how often the script was started again and went on with the file.
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
        self._expression = Expression.of(curve.expression) if curve.expression.strip() else None
        self._names = Names(curve, self._expression)
        self._steps = Steps(self._expression, curve.file, restarts)
        self._form = self._chosen_form(restarts > 0)
        self._offset = 0
        self._tail = b""
        self._lines = 0
        self._signature: tuple[Any, ...] | None = None
        # Of a file that is written whole: what it has in the place of the list of rows.
        self._instead: tuple[str, ...] | None = None
        # As JSON, and those of them that another attempt has read.
        self._entries: list[str] = []
        self._passed: list[str] = []
        if place:
            self._go_on(place)

    def _chosen_form(self, is_taken_over: bool) -> Form:
        if self._curve.pattern:
            return Patterns(self._curve)
        if ending_of(self._curve) in (".csv", ".tsv"):
            return Table(self._curve, self._names.columns.get("step"))
        return JsonLines(self._curve, is_taken_over)

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
        self._form.columns = place["columns"]

    def pass_over(self) -> None:
        """What is there was read before, by another attempt: what comes is new, of whatever steps. Raises RowsError."""
        self.read()
        self._passed = self._entries
        self._steps.forget()

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

    def changed(self) -> float:
        """When the file was changed last, in seconds since the epoch; 0: it is not there."""
        try:
            return self._newest().stat().st_mtime
        except OSError:
            return 0.0

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
        is_document = ending_of(self._curve) == ".json"
        read = self._read_document if is_document else self._read_lines
        return read(file, last) + self._steps.flush()

    # A JSON file that is written whole.

    def _read_document(self, file: BinaryIO, last: bool) -> list[Row]:
        data = file.read(LARGEST_DOCUMENT + 1)
        if len(data) > LARGEST_DOCUMENT:
            size = f"more than {LARGEST_DOCUMENT // 10**6} MB"
            raise RowsError(f"{self._curve.file}: {size}. Valid: a shorter file, or JSON lines")
        try:
            found = parsed_json(data.decode("utf-8-sig", "replace"))
        except ValueError as error:
            # Half of it may be written yet.
            if not last or not data.strip():
                return []
            end = decoded(data[-QUOTED:])
            raise wrong(self._curve.file, f"it is no JSON ({error})", end) from None
        self._steps.begin_again()
        rows: list[Row] = []
        lines = [json.dumps(entry) for entry in self._list(found)]
        pairs = zip(lines, self._passed, strict=False)
        passed = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        self._entries = lines
        for line in lines[passed:]:
            entry = json.loads(line)
            if not isinstance(entry, dict):
                raise wrong(self._curve.file, f"a row is no object. Valid: {EXAMPLE}", line)
            rows += self._steps.add(self._names.found(flat(entry), line), line)
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
            self._form.columns = ()
            self._steps.begin_again()
        file.seek(self._offset)
        rows: list[Row] = []
        for data, is_ended in self._split(file, last):
            line = decoded(data).removeprefix("\ufeff").rstrip("\r\n")
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
            raise wrong(self._curve.file, what, decoded(line[:QUOTED]))
        return line

    # Where nothing was found.

    def advice(self) -> str:
        """Why there may be no rows, or none with a value, and what to do; empty if all is well."""
        if self._steps.has_value:
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
        known = tuple(dict.fromkeys(name_of(key) for key in self._names.keys))
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
