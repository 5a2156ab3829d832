"""Reads one finished log of a training script: its evaluations, and what is doubtful about them.

The reader is the one that follows a growing file while a trial runs. It fails where the steps go
back, which several starts in one file cause, and at lines that make no sense. Here reading starts
again at such a place, so that the whole file is read. The reader gets the file in pieces, and only
the evaluations are kept, because a log may be large.
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
from hpo.past.past_runs import printable, some
from hpo.past.rows import Row, keep_last_start

# Bytes that the reader gets at a time.
PIECE = 1 << 20
# Bytes; the reader takes a minute and a half for them where almost every line is a step.
LARGEST = 200_000_000
# A rule is replayed on every beginning of a curve, which takes minutes for longer ones.
MOST_EVALUATIONS = 5_000
# In one file. With more of them, the steps are those of something else, such as of an epoch.
MOST_STARTS = 20
# Places where reading starts again: other starts, and lines that make no sense.
MOST_PLACES = 100
# The last lines that a message shows, and how much of each.
LAST_LINES = 3
SHOWN = 160
# Before the line of an evaluation: 2025-01-03 12:34:56,789
_STAMP = re.compile(r"\W{0,2}(\d{4}-\d\d-\d\d)[ T](\d\d:\d\d:\d\d)(?:[.,](\d{1,6}))?")
# Names of the learning rate among the metrics of a step.
LR = ("lr", "learning_rate")


class StepReport(Protocol):
    """What a reader knows of one step."""

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

    def read(self, last: bool = False) -> Sequence[StepReport]:
        """What is new. last: the file is complete.

        Raises CallerError, and stays before the line that caused it.
        """

    def place(self) -> dict[str, Any]:
        """`offset`: of the first byte that is not read yet. `columns`: of a table."""

    def advice(self) -> str:
        """Why no step may have a value; empty if one has."""


@dataclass(frozen=True)
class Form:
    """How files of one kind are read."""

    follow: Callable[[Path], Reader]
    # Of a table, whose first line is needed wherever reading starts again; empty for other files.
    delimiter: str = ""
    # Whether the file is one document that is read as a whole.
    whole: bool = False


def read_log(path: Path, form: Form, warnings: list[str]) -> list[Row]:
    """The evaluations of the last start.

    Raises DataError, one line, for a file that holds none or cannot be read.
    """
    _check_file(path)
    reader = _LogReader(path, form)
    try:
        advice = reader.read_whole() if form.whole else reader.read()
    except OSError as error:
        raise DataError(os_error_text(error)) from None
    evaluations = reader.evaluations
    if not evaluations.rows:
        raise DataError(f"{path}: no evaluation found: {advice}. It ends with: {last_lines(path)}")
    warnings += evaluations.warnings()
    return _timed(keep_last_start(evaluations.rows, warnings), warnings)


def _check_file(path: Path) -> None:
    """Raises DataError for anything but a text of a sensible size."""
    try:
        if not path.is_file():
            fault = "is a folder" if path.is_dir() else "is not a regular file"
            raise DataError(f"{path}: {fault}. Valid: the log of a training")
        size = path.stat().st_size
        with path.open("rb") as file:
            beginning = file.read(1 << 16)
    except OSError as error:
        raise DataError(os_error_text(error)) from None
    if not size:
        raise DataError(f"{path}: is empty. Valid: the log of a training")
    if b"\0" in beginning:
        raise DataError(f"{path}: is binary, not text. Valid: the log of a training")
    if size > LARGEST:
        raise DataError(
            f"{path}: is larger than {LARGEST // 10**6} MB. Valid: a smaller one, such as its "
            "lines of evaluations alone"
        )


def last_lines(path: Path) -> str:
    """The last lines of a file, for messages."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - LAST_LINES * 1000))
        text = file.read().decode("utf-8", "replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " | ".join(printable(line[:SHOWN]) for line in lines[-LAST_LINES:])


# ---- what is kept


@dataclass(frozen=True)
class _FallBack:
    """A place where the step goes back."""

    last_step: int
    step: int
    # The number of evaluations before it.
    evaluations: int


@dataclass
class _Evaluations:
    """Collects evaluations, each with the mean training loss since the previous one."""

    path: Path
    rows: list[Row] = field(default_factory=list)
    # The number of lines that are left out, and why the first of them is.
    lines_left_out: int = 0
    why: str = ""
    last_step: int | None = None
    fall_backs: list[_FallBack] = field(default_factory=list)
    # Since the last evaluation: the sum over steps of their loss, and the number of these steps.
    loss_sum: float = 0.0
    loss_steps: int = 0
    # The step of the last evaluation or of the last loss; None where reading starts.
    loss_step: int | None = None

    def start_reading(self) -> None:
        """Call this where reading starts, for the first time or again."""
        self._forget_losses(None)

    def copy(self) -> "_Evaluations":
        return replace(self, rows=list(self.rows), fall_backs=list(self.fall_backs))

    def add(self, reports: Sequence[StepReport]) -> None:
        """Raises DataError if there are too many starts or evaluations."""
        for report in reports:
            if self.last_step is not None and report.step < self.last_step:
                self.fall_backs.append(_FallBack(self.last_step, report.step, len(self.rows)))
            self.last_step = report.step
            self._add_loss(report)
            if report.value is not None:
                self.rows.append(self._row(report, report.value))
                self._forget_losses(report.step)
            self._check_numbers()

    def _check_numbers(self) -> None:
        if len(self.fall_backs) > MOST_STARTS:
            last = self.fall_backs[-1]
            raise DataError(
                f"{self.path}: steps go backwards more than {MOST_STARTS} times, at last from "
                f"{last.last_step} to {last.step}. Valid: the step of a whole training"
            )
        if len(self.rows) > MOST_EVALUATIONS:
            raise DataError(
                f"{self.path}: has more than {MOST_EVALUATIONS:,} evaluations. Valid: a curve of "
                "evaluations, not of every batch"
            )

    def _add_loss(self, report: StepReport) -> None:
        if report.loss is None:
            return
        steps = 1 if self.loss_step is None else max(1, report.step - self.loss_step)
        self.loss_sum += report.loss * steps
        self.loss_steps += steps
        self.loss_step = report.step

    def _forget_losses(self, step: int | None) -> None:
        self.loss_sum = 0.0
        self.loss_steps = 0
        self.loss_step = step

    def _row(self, report: StepReport, value: float) -> Row:
        """The row of an evaluation. In addition to the numbers of any row it has `start`, the
        number of starts before it, and `stamp`, the time at the beginning of its line.
        """
        row: Row = {"step": report.step, "per": value, "start": len(self.fall_backs)}
        if report.validation_loss is not None:
            row["loss"] = report.validation_loss
        if self.loss_steps:
            row["train_loss"] = self.loss_sum / self.loss_steps
        for name in LR:
            if name in report.metrics:
                row["lr"] = report.metrics[name]
        if "seconds" in report.metrics:
            row["seconds"] = report.metrics["seconds"]
        stamp = _stamp(report.line)
        if stamp is not None:
            row["stamp"] = stamp
        return row

    def leave_out_line(self, why: str) -> None:
        self.lines_left_out += 1
        self.why = self.why or why

    def warnings(self) -> list[str]:
        warnings: list[str] = []
        if self.lines_left_out:
            lines = "1 line is" if self.lines_left_out == 1 else f"{self.lines_left_out} lines are"
            warnings.append(f"{lines} left out, the first because: {printable(self.why)}")
        if self.fall_backs and self.fall_backs[-1].evaluations == len(self.rows):
            last = self.fall_backs[-1]
            warnings.append(
                f"the step falls back from {last.last_step} to {last.step} after the last "
                "evaluation: another start, which ended before its first one"
            )
        not_finite = [
            f"{row['step']:g}" for row in self.rows if not math.isfinite(row.get("train_loss", 0))
        ]
        if not_finite:
            warnings.append(f"training loss is not finite at step {some(not_finite)}")
        return warnings


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
    """Reads a log from its first byte to its last, starting again wherever its reader fails."""

    def __init__(self, path: Path, form: Form):
        self.path = path
        self.form = form
        self.evaluations = _Evaluations(path)
        # The first line of a table, which comes before the part that is read.
        self._header = b""
        self._advice = ""

    def read(self) -> str:
        """Reads the log in pieces. Returns why there may be no evaluation."""
        size = self.path.stat().st_size
        begin = 0
        for _ in range(MOST_PLACES):
            before = self.evaluations.copy()
            stop, fault = self._read_part(begin, size)
            if not fault:
                return self._advice
            # The call in which the reader failed returned nothing, so read up to there again.
            self.evaluations = before
            self._read_part(begin, stop)
            if stop == begin:
                self.evaluations.leave_out_line(fault)
                stop = self._next_line(begin)
            begin = stop
        raise DataError(
            f"{self.path}: reading starts again more than {MOST_PLACES} times, because steps go "
            f"backwards or lines make no sense, last: {fault}"
        )

    def read_whole(self) -> str:
        """Reads one document. Returns why there may be no evaluation."""
        reader = self.form.follow(self.path)
        try:
            reports = reader.read(last=True)
        except CallerError as error:
            raise DataError(f"{self.path}: {error}") from None
        self.evaluations.start_reading()
        self.evaluations.add(reports)
        return reader.advice()

    def _read_part(self, begin: int, end: int) -> tuple[int, str]:
        """(where the reader failed, and why), or (`end`, "")."""
        self.evaluations.start_reading()
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
                        reports = reader.read(last=not piece)
                    except CallerError as error:
                        offset = reader.place()["offset"] - len(self._header)
                        self._note_header(reader)
                        return max(begin, begin + offset), str(error)
                    self.evaluations.add(reports)
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
        """The offset of the first line after `begin`, or of the end of the file."""
        with self.path.open("rb") as file:
            file.seek(begin)
            while piece := file.read(PIECE):
                end = piece.find(b"\n")
                if end >= 0:
                    return file.tell() - len(piece) + end + 1
            return file.tell()


# ---- time


def _timed(rows: Sequence[Row], warnings: list[str]) -> list[Row]:
    """The rows with `seconds` since the first evaluation, where they are known."""
    seconds = _seconds(rows, warnings)
    timed: list[Row] = []
    for number, row in enumerate(rows):
        kept = {
            name: value for name, value in row.items() if name not in ("stamp", "start", "seconds")
        }
        if seconds is not None:
            kept["seconds"] = seconds[number]
        timed.append(kept)
    return timed


def _seconds(rows: Sequence[Row], warnings: list[str]) -> list[float] | None:
    """Of each row, from the stamps before the lines or from what the script reports; None if they
    are not known.
    """
    clock = "stamp" if all("stamp" in row for row in rows) else "seconds"
    if not all(clock in row for row in rows):
        warnings.append("times are not recorded for every evaluation: GPU time is unknown")
        return None
    total = 0.0
    seconds = [total]
    for previous, row in pairwise(rows):
        # Nothing is trained between two starts.
        passed = row[clock] - previous[clock] if row["start"] == previous["start"] else 0.0
        # Not `passed < 0`, because a time may be NaN.
        if not passed >= 0:
            warnings.append(f"times go backwards before step {row['step']:g}: GPU time is unknown")
            return None
        total += passed
        seconds.append(total)
    return seconds
