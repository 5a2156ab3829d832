"""One finished log of a training script: its evaluations, and what is doubtful about them.

A reader that follows growing files does the reading, as it does while a trial runs. It stumbles
where the steps go back, which several starts in one file cause, and at lines that make no sense.
Here it begins anew at such a place, so that the whole file is read. It is given the file in pieces,
and no more than the evaluations is kept: a log may be large.
"""

import csv
import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

from hpo.errors import CallerError, DataError, os_error_text
from hpo.past.past_runs import Row, one_start, printable, some

PIECE = 1 << 20
# Bytes; the reader takes a minute and a half for them where every line is about a step.
LARGEST = 200_000_000
# A rule is replayed on every beginning of a curve, which takes minutes for longer ones.
MOST_EVALUATIONS = 5_000
# Of a file. More mean that the steps are those of something else, such as of an epoch.
MOST_STARTS = 20
# Where reading begins anew: other starts, and lines that make no sense.
MOST_PLACES = 100
LAST_LINES = 3
SHOWN = 160
# Before the line of an evaluation: 2025-01-03 12:34:56,789
_STAMP = re.compile(r"\W{0,2}(\d{4}-\d\d-\d\d)[ T](\d\d:\d\d:\d\d)(?:[.,](\d{1,6}))?")
LR = ("lr", "learning_rate")


class Told(Protocol):
    """What a reader tells of one step."""

    @property
    def step(self) -> int: ...
    @property
    def value(self) -> float | None: ...
    @property
    def loss(self) -> float | None:
        """Of the training data."""

    @property
    def validation_loss(self) -> float | None: ...
    @property
    def metrics(self) -> Mapping[str, float]: ...
    @property
    def line(self) -> str: ...


class Reader(Protocol):
    """Follows one file."""

    def read(self, last: bool = False) -> Sequence[Told]:
        """What is new. last: the file is complete. Raises CallerError, and stays before the line
        that caused it.
        """

    def place(self) -> dict[str, Any]:
        """`offset`: of the first byte that is not read yet. `columns`: of a table."""

    def advice(self) -> str:
        """Why there may be nothing with a value; empty if there is."""


@dataclass(frozen=True)
class Form:
    """How the files of one kind are read."""

    follow: Callable[[Path], Reader]
    # Delimiter of a table, whose first line is needed wherever reading begins anew; empty: no
    # table.
    delimiter: str = ""
    # Whether the file is one document that is read whole.
    whole: bool = False


def read_log(path: Path, form: Form, doubts: list[str]) -> list[Row]:
    """The evaluations of the last start. Raises DataError, one line, for a file without any, or
    that cannot be read.
    """
    _check_file(path)
    reader = _LogReader(path, form)
    try:
        advice = reader.read_whole() if form.whole else reader.read()
    except OSError as error:
        raise DataError(os_error_text(error)) from None
    found = reader.found
    if not found.rows:
        raise DataError(
            f"{path}: no evaluation is found: {advice}. It ends with: {last_lines(path)}"
        )
    doubts += found.doubts()
    return _timed(one_start(found.rows, doubts), doubts)


def _check_file(path: Path) -> None:
    """Raises DataError for what is no text of a sensible size."""
    try:
        if not path.is_file():
            what = "is a folder" if path.is_dir() else "is not a regular file"
            raise DataError(f"{path}: {what}. Valid: the log of a training")
        size = path.stat().st_size
        with path.open("rb") as file:
            begin = file.read(1 << 16)
    except OSError as error:
        raise DataError(os_error_text(error)) from None
    if not size:
        raise DataError(f"{path}: is empty. Valid: the log of a training")
    if b"\0" in begin:
        raise DataError(f"{path}: is binary, not text. Valid: the log of a training")
    if size > LARGEST:
        raise DataError(
            f"{path}: is larger than {LARGEST // 10**6} MB. Valid: a smaller one, such as its "
            "lines of evaluations alone"
        )


def last_lines(path: Path) -> str:
    """Of a file, for messages."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - LAST_LINES * 1000))
        text = file.read().decode("utf-8", "replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " | ".join(printable(line[:SHOWN]) for line in lines[-LAST_LINES:])


# ---- what is kept


@dataclass
class _Evaluations:
    """Collects evaluations, with the mean training loss since the one before."""

    path: Path
    rows: list[Row] = field(default_factory=list)
    # Lines that are left out, and why the first of them is.
    left_out: int = 0
    why: str = ""
    _last_step: int | None = None
    # (from which step, to which step, number of evaluations before).
    _falls: list[tuple[int, int, int]] = field(default_factory=list)
    _sum: float = 0.0
    _steps: int = 0
    _since: int | None = None

    def begin(self) -> None:
        """Reading begins, perhaps anew."""
        self._forget_losses(None)

    def copy(self) -> "_Evaluations":
        return replace(self, rows=list(self.rows), _falls=list(self._falls))

    def add(self, told: Sequence[Told]) -> None:
        """Raises DataError if there are too many."""
        for each in told:
            if self._last_step is not None and each.step < self._last_step:
                self._falls.append((self._last_step, each.step, len(self.rows)))
            self._last_step = each.step
            self._add_loss(each)
            if each.value is not None:
                self.rows.append(self._row(each, each.value))
                self._forget_losses(each.step)
            if len(self._falls) > MOST_STARTS:
                raise DataError(
                    f"{self.path}: steps go backwards more than {MOST_STARTS} times, at last from "
                    f"{self._falls[-1][0]} to {self._falls[-1][1]}. Valid: the step of a whole "
                    "training"
                )
            if len(self.rows) > MOST_EVALUATIONS:
                raise DataError(
                    f"{self.path}: has more than {MOST_EVALUATIONS:,} evaluations. Valid: a "
                    "curve of evaluations, "
                    f"not of every batch"
                )

    def _add_loss(self, told: Told) -> None:
        if told.loss is None:
            return
        steps = 1 if self._since is None else max(1, told.step - self._since)
        self._sum += told.loss * steps
        self._steps += steps
        self._since = told.step

    def _forget_losses(self, step: int | None) -> None:
        self._sum = 0.0
        self._steps = 0
        self._since = step

    def _row(self, told: Told, value: float) -> Row:
        row: Row = {"step": told.step, "per": value, "start": len(self._falls)}
        if told.validation_loss is not None:
            row["loss"] = told.validation_loss
        if self._steps:
            row["train_loss"] = self._sum / self._steps
        for name in LR:
            if name in told.metrics:
                row["lr"] = told.metrics[name]
        if "seconds" in told.metrics:
            row["seconds"] = told.metrics["seconds"]
        stamp = _stamp(told.line)
        if stamp is not None:
            row["stamp"] = stamp
        return row

    def leave_out(self, why: str) -> None:
        """A line."""
        self.left_out += 1
        self.why = self.why or why

    def doubts(self) -> list[str]:
        found: list[str] = []
        if self.left_out:
            lines = "1 line is" if self.left_out == 1 else f"{self.left_out} lines are"
            found.append(f"{lines} left out, the first because: {printable(self.why)}")
        if self._falls and self._falls[-1][2] == len(self.rows):
            before, after, _ = self._falls[-1]
            found.append(
                f"the step falls back from {before} to {after} behind the last evaluation: "
                "another start, which "
                f"ended before its first one"
            )
        lost = [row["step"] for row in self.rows if not math.isfinite(row.get("train_loss", 0))]
        if lost:
            found.append(
                f"training loss is not finite at step {some([f'{step:g}' for step in lost])}"
            )
        return found


def _stamp(line: str) -> float | None:
    """The time at the beginning of a line, in seconds."""
    match = _STAMP.match(line)
    if not match:
        return None
    day, time, fraction = match.groups()
    with suppress(ValueError):
        moment = datetime.fromisoformat(f"{day}T{time}+00:00").timestamp()
        return moment + float(f"0.{fraction or 0}")
    return None


# ---- reading in pieces


class _LogReader:
    """Reads a log from its first byte to its last, beginning anew wherever its reader stumbles."""

    def __init__(self, path: Path, form: Form):
        self.path = path
        self.form = form
        self.found = _Evaluations(path)
        # Of a table: what it is read with where it does not begin at its first line.
        self._header = b""
        self._advice = ""

    def read(self) -> str:
        """Why there may be no evaluation."""
        size = self.path.stat().st_size
        begin = 0
        for _ in range(MOST_PLACES):
            before = self.found.copy()
            stop, fault = self._read_part(begin, size)
            if not fault:
                return self._advice
            # What is told in the call in which the reader stumbles is lost.
            self.found = before
            self._read_part(begin, stop)
            if stop == begin:
                self.found.leave_out(fault)
                stop = self._next_line(begin)
            begin = stop
        raise DataError(
            f"{self.path}: reading begins anew more than {MOST_PLACES} times, because steps go "
            "backwards or lines "
            f"make no sense, last: {fault}"
        )

    def read_whole(self) -> str:
        """The same of one document."""
        reader = self.form.follow(self.path)
        try:
            told = reader.read(last=True)
        except CallerError as error:
            raise DataError(f"{self.path}: {error}") from None
        self.found.begin()
        self.found.add(told)
        return reader.advice()

    def _read_part(self, begin: int, end: int) -> tuple[int, str]:
        """(where the reader stumbled, and why), or (`end`, "")."""
        self.found.begin()
        with TemporaryDirectory(prefix="hpo-log-") as folder, self.path.open("rb") as source:
            copy = Path(folder) / "log"
            source.seek(begin)
            with copy.open("wb") as target:
                target.write(self._header)
                reader = self.form.follow(copy)
                while True:
                    piece = source.read(min(PIECE, end - source.tell()))
                    target.write(piece)
                    target.flush()
                    try:
                        told = reader.read(last=not piece)
                    except CallerError as error:
                        stop = max(begin, begin + reader.place()["offset"] - len(self._header))
                        self._note_header(reader)
                        return stop, str(error)
                    self.found.add(told)
                    if not piece:
                        self._advice = reader.advice()
                        return end, ""

    def _note_header(self, reader: Reader) -> None:
        columns = reader.place()["columns"]
        if self.form.delimiter and columns:
            line = io.StringIO()
            csv.writer(line, delimiter=self.form.delimiter).writerow(columns)
            self._header = line.getvalue().encode()

    def _next_line(self, begin: int) -> int:
        with self.path.open("rb") as file:
            file.seek(begin)
            while piece := file.read(PIECE):
                end = piece.find(b"\n")
                if end >= 0:
                    return file.tell() - len(piece) + end + 1
            return file.tell()


# ---- time


def _timed(rows: list[Row], doubts: list[str]) -> list[Row]:
    """With `seconds` since the first evaluation, from what stands before the lines, or as the
    script tells them.
    """
    bare = [
        {name: number for name, number in row.items() if name not in ("stamp", "start", "seconds")}
        for row in rows
    ]
    seconds = _seconds(rows, doubts)
    return [
        row | ({} if at is None else {"seconds": at}) for row, at in zip(bare, seconds, strict=True)
    ]


def _seconds(rows: Sequence[Row], doubts: list[str]) -> list[float | None]:
    unknown: list[float | None] = [None] * len(rows)
    clock = "stamp" if all("stamp" in row for row in rows) else "seconds"
    if not all(clock in row for row in rows):
        doubts.append("times are not recorded for every evaluation: GPU time is unknown")
        return unknown
    total = 0.0
    found: list[float | None] = [total]
    for before, row in pairwise(rows):
        # Between two starts nothing was trained.
        passed = row[clock] - before[clock] if row["start"] == before["start"] else 0.0
        if not passed >= 0:
            doubts.append(f"times go backwards before step {row['step']:g}: GPU time is unknown")
            return unknown
        total += passed
        found.append(total)
    return found
