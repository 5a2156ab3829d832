"""Reads past runs from any CSV, TSV or JSONL table: one evaluation per row, columns named by the
user (`--map COLUMN=FIELD`).

One file may hold many runs, told apart by the column that is mapped to `name`. Without such a
column a file is a run.
"""

import csv
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from hpo.data.folders import without_stray
from hpo.errors import DataError, SpecError
from hpo.past.past_runs import CONFIG, PastRun, printable
from hpo.past.rows import (
    Row,
    check_step,
    checked_config,
    keep_last_start,
    warn_of_unread_lines,
    with_curve,
)
from hpo.settings import unknown
from hpo.space.load import parse_settings

NEEDED_NUMBERS = ("step", "per")
# `seconds` since the start of the run.
OPTIONAL_NUMBERS = ("loss", "seconds", "lr")
NAMES = ("name", "split", *NEEDED_NUMBERS, *OPTIONAL_NUMBERS)
FIELDS = CONFIG.names()
ENDINGS = (".csv", ".tsv", ".jsonl")
# (line number, name -> value) of an evaluation.
Line = tuple[int, dict[str, Any]]


def parse_maps(maps: tuple[str, ...]) -> dict[str, str]:
    """`("val_per=per",)` -> {"val_per": "per"}. Raises SpecError."""
    fields: dict[str, str] = {}
    for text in maps:
        column, equals, field = text.rpartition("=")
        if not equals or not column:
            raise SpecError(
                f"--map {text}: no field. Valid: --map COLUMN=FIELD, where FIELD is one of "
                f"{', '.join(NAMES)}, or a field such as optimizer.lr"
            )
        if field not in NAMES and field not in FIELDS:
            raise SpecError(unknown(field, (*NAMES, *FIELDS), f"--map {text}"))
        if field in fields.values():
            raise SpecError(
                f"--map {text}: another column is {field} already. Valid: one column for each"
            )
        fields[column] = field
    return fields


def read_tables(path: Path, maps: Mapping[str, str]) -> list[PastRun]:
    """The runs of a table, or of every table in a folder.

    maps: column -> name or field. Columns that are called like one need no mapping. Raises
    DataError.
    """
    runs: list[PastRun] = []
    for file in _table_files(path):
        runs += _runs(file, maps)
    counts = Counter(run.name for run in runs)
    return [_with_unique_name(run, counts[run.name]) for run in runs]


def _with_unique_name(run: PastRun, count: int) -> PastRun:
    """The run, named after its file too if several files hold a run of its name."""
    if count == 1:
        return run
    return replace(run, name=f"{Path(run.path).stem}/{run.name}")


def _table_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    files: list[Path] = []
    for ending in ENDINGS:
        files += path.glob(f"*{ending}")
    files = without_stray(path, files)
    if not files:
        raise DataError(
            f"{path}: holds no table. Valid: a file or a folder of files that end with "
            f"{', '.join(ENDINGS)}"
        )
    return files


def _runs(file: Path, maps: Mapping[str, str]) -> list[PastRun]:
    entries = _entries(file)
    fields = _fields_of_columns(file, entries, maps)
    # Name of a run -> its lines.
    runs: dict[str, list[Line]] = {}
    for number, entry in entries:
        evaluation = {
            fields[column]: value
            for column, value in entry.items()
            if column in fields and value not in ("", None)
        }
        name = str(evaluation.get("name", file.stem))
        runs.setdefault(name, []).append((number, evaluation))
    return [_run(file, name, lines) for name, lines in runs.items()]


def _fields_of_columns(
    file: Path, entries: Sequence[Line], maps: Mapping[str, str]
) -> dict[str, str]:
    """Column -> name or field, of the columns that mean something."""
    columns = list(dict.fromkeys(column for _, entry in entries for column in entry))
    for column, field in maps.items():
        if column not in columns:
            raise DataError(unknown(column, tuple(columns), f"{file}: --map {column}={field}"))
    fields: dict[str, str] = {}
    for column in columns:
        field = maps.get(column, column)
        if field in NAMES or field in FIELDS:
            fields[column] = field
    for needed in NEEDED_NUMBERS:
        if needed not in fields.values():
            raise DataError(
                f"{file}: no column is {needed}. It has {', '.join(columns) or 'none'}; say "
                f"which: --map COLUMN={needed}"
            )
    return fields


def _entries(file: Path) -> list[Line]:
    """(line number, column -> value) of each row."""
    try:
        text = file.read_text(encoding="utf-8-sig")
        if file.suffix == ".jsonl":
            return _json_entries(text)
        return _csv_entries(text, csv.excel_tab if file.suffix == ".tsv" else csv.excel)
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror})") from None
    # An error of JSON or of Unicode is a ValueError.
    except (csv.Error, ValueError, TypeError, RecursionError) as error:
        raise DataError(
            f"{file}: not a table of {', '.join(ENDINGS)} ({error}). Valid: one evaluation per row"
        ) from None


def _json_entries(text: str) -> list[Line]:
    return [
        (number, dict(json.loads(line)))
        for number, line in enumerate(text.splitlines(), 1)
        if line.strip()
    ]


def _csv_entries(text: str, dialect: type[csv.Dialect]) -> list[Line]:
    # Cells beyond the last column have the name "".
    reader = csv.DictReader(text.splitlines(), dialect=dialect, restkey="")
    entries: list[Line] = []
    for row in reader:
        named = {column: value for column, value in row.items() if column}
        entries.append((reader.line_num, named))
    return entries


def _run(file: Path, name: str, lines: Sequence[Line]) -> PastRun:
    warnings: list[str] = []
    rows = _rows(lines, warnings)
    recorded, foreign = _recorded_config(lines)
    splits = [str(entry["split"]) for _, entry in lines if "split" in entry]
    if not splits:
        warnings.append("the split that it was scored on is not recorded")
    config, faults = checked_config(recorded)
    foreign += faults.values()
    warnings += foreign
    run = PastRun(
        name=printable(name),
        path=str(file),
        config=config,
        curve=(),
        steps=config.get("steps"),
        split=splits[-1] if splits else None,
        foreign=tuple(foreign),
    )
    return with_curve(run, rows, warnings)


def _rows(lines: Sequence[Line], warnings: list[str]) -> list[Row]:
    """The evaluations of the last start; without seconds if these cannot be right."""
    rows: list[Row] = []
    # Line number -> why it is left out.
    unread: dict[int, str] = {}
    for number, entry in lines:
        try:
            rows.append(_row(entry))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            unread[number] = f"no evaluation ({type(error).__name__}: {error})"
    warn_of_unread_lines("line", unread, warnings)
    rows = keep_last_start(rows, warnings)
    if not any(_goes_back_in_time(previous, row) for previous, row in pairwise(rows)):
        return rows
    warnings.append(
        "seconds go backwards, so they are not since the start of the run: GPU time is unknown"
    )
    for row in rows:
        row.pop("seconds", None)
    return rows


def _row(entry: Mapping[str, Any]) -> Row:
    """Raises KeyError, TypeError, ValueError or OverflowError for a line that is no evaluation."""
    row = {name: float(entry[name]) for name in NEEDED_NUMBERS}
    for name in OPTIONAL_NUMBERS:
        if name in entry:
            row[name] = float(entry[name])
    check_step(row["step"])
    return row


def _goes_back_in_time(previous: Row, row: Row) -> bool:
    return "seconds" in previous and "seconds" in row and row["seconds"] < previous["seconds"]


def _recorded_config(lines: Sequence[Line]) -> tuple[dict[str, Any], list[str]]:
    """(the fields of the configuration that have one value along the run, why others are left
    out).
    """
    # Field -> its distinct values, in the order of the lines. The inner dict serves as a set.
    values: dict[str, dict[str, None]] = {}
    for _, entry in lines:
        for field, value in entry.items():
            if field in FIELDS:
                values.setdefault(field, {})[str(value)] = None
    config: dict[str, Any] = {}
    left_out: list[str] = []
    for field, distinct in values.items():
        first, *others = distinct
        if others:
            left_out.append(f"{field} changes along the run ({first}, {others[0]}, ...): left out")
            continue
        try:
            config |= parse_settings((f"{field}={first}",))
        except SpecError as error:
            left_out.append(f"left out: {error}")
    return config, left_out
