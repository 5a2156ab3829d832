"""Past runs from anybody's CSV or JSONL: a row an evaluation, its columns named by the person
(`--map COLUMN=FIELD`).

One file may hold many runs, told apart by the column mapped to `name`; without one a file is a run.
"""

import csv
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from hpo.errors import DataError, SpecError
from hpo.past.past_runs import (
    CONFIG,
    PastRun,
    Row,
    check_step,
    checked_config,
    doubt_lines,
    finished,
    one_start,
    printable,
)
from hpo.settings import unknown
from hpo.space.spec import parse_settings

NUMBERS = (
    "step",
    "per",
    "loss",
    "seconds",
    "lr",
)  # of an evaluation; seconds since the start of the run
NAMES = ("name", "split", *NUMBERS)
FIELDS = CONFIG.names()
ENDINGS = (".csv", ".tsv", ".jsonl")


def parse_maps(maps: tuple[str, ...]) -> dict[str, str]:
    """`("val_per=per",)` -> {"val_per": "per"}. Raises SpecError."""
    found: dict[str, str] = {}
    for text in maps:
        column, equals, field = text.rpartition("=")
        if not equals or not column:
            raise SpecError(
                f"--map {text}: no field. Valid: --map COLUMN=FIELD, FIELD one of "
                f"{', '.join(NAMES)}, or such as optimizer.lr"
            )
        if field not in NAMES and field not in FIELDS:
            raise SpecError(unknown(field, (*NAMES, *FIELDS), f"--map {text}"))
        if field in found.values():
            raise SpecError(
                f"--map {text}: another column is {field} already. Valid: one column for each"
            )
        found[column] = field
    return found


def read_tables(path: Path, maps: Mapping[str, str]) -> list[PastRun]:
    """The runs of a table, or of every table of a folder. Columns that are named as our fields need
    no mapping. Raises DataError.
    """
    files = (
        [path]
        if path.is_file()
        else sorted(file for ending in ENDINGS for file in path.glob(f"*{ending}"))
    )
    if not files:
        raise DataError(
            f"{path}: no table there. Valid: a file or a folder of files that end with "
            f"{', '.join(ENDINGS)}"
        )
    runs = [run for file in files for run in _runs(file, maps)]
    again = {
        name for name, count in Counter(run.name for run in runs).items() if count > 1
    }  # in several files
    return [
        replace(run, name=f"{Path(run.path).stem}/{run.name}") if run.name in again else run
        for run in runs
    ]


def _runs(file: Path, maps: Mapping[str, str]) -> list[PastRun]:
    entries = _entries(file)
    columns = list(dict.fromkeys(column for _, entry in entries for column in entry))
    for column in maps:
        if column not in columns:
            raise DataError(
                unknown(column, tuple(columns), f"{file}: --map {column}={maps[column]}")
            )
    fields = {
        column: maps.get(column, column)
        for column in columns
        if maps.get(column, column) in (*NAMES, *FIELDS)
    }
    for needed in ("step", "per"):
        if needed not in fields.values():
            raise DataError(
                f"{file}: no column is {needed}. It has {', '.join(columns) or 'none'}; say "
                f"which: --map COLUMN={needed}"
            )
    runs: dict[str, list[tuple[int, dict[str, Any]]]] = {}
    for line, entry in entries:
        named = {
            fields[column]: value
            for column, value in entry.items()
            if column in fields and value not in ("", None)
        }
        runs.setdefault(str(named.get("name", file.stem)), []).append((line, named))
    return [_run(file, name, lines) for name, lines in runs.items()]


def _entries(file: Path) -> list[tuple[int, dict[str, Any]]]:
    """(line number, column -> value) of each row."""
    try:
        text = file.read_text(encoding="utf-8-sig")
        if file.suffix != ".jsonl":
            dialect = csv.excel_tab if file.suffix == ".tsv" else csv.excel
            reader = csv.DictReader(text.splitlines(), dialect=dialect, restkey="")
            return [
                (reader.line_num, {column: value for column, value in row.items() if column})
                for row in reader
            ]
        return [
            (number, dict(json.loads(line)))
            for number, line in enumerate(text.splitlines(), 1)
            if line.strip()
        ]
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror})") from None
    except (
        csv.Error,
        ValueError,
        TypeError,
        RecursionError,
    ) as error:  # a JSON or Unicode error is a ValueError
        raise DataError(
            f"{file}: not a table of {', '.join(ENDINGS)} ({error}). Valid: a row an evaluation"
        ) from None


def _run(file: Path, name: str, lines: list[tuple[int, dict[str, Any]]]) -> PastRun:
    doubts: list[str] = []
    rows: list[Row] = []
    unread: dict[int, str] = {}
    for line, entry in lines:
        try:
            row = {
                field: float(entry[field])
                for field in NUMBERS
                if field in entry or field in ("step", "per")
            }
            check_step(row["step"])
            rows.append(row)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            unread[line] = f"no evaluation ({type(error).__name__}: {error})"
    doubt_lines("line", unread, doubts)
    rows = one_start(rows, doubts)
    if any(
        b["seconds"] < a["seconds"] for a, b in pairwise(rows) if "seconds" in a and "seconds" in b
    ):
        doubts.append(
            "seconds go backwards, so they are not since the start of the run: GPU time is unknown"
        )
        rows = [
            {field: value for field, value in row.items() if field != "seconds"} for row in rows
        ]
    config: dict[str, Any] = {}
    for field in dict.fromkeys(field for _, entry in lines for field in entry if field in FIELDS):
        values = list(dict.fromkeys(str(entry[field]) for _, entry in lines if field in entry))
        if len(values) > 1:
            doubts.append(
                f"{field} changes along the run ({values[0]}, {values[1]}, ...): left out"
            )
            continue
        try:
            config |= parse_settings((f"{field}={values[0]}",))
        except SpecError as error:
            doubts.append(f"left out: {error}")
    split = next((str(entry["split"]) for _, entry in reversed(lines) if "split" in entry), None)
    if split is None:
        doubts.append("the split that it was scored on is not recorded")
    config = checked_config(config, doubts)
    return finished(
        PastRun(printable(name), str(file), config, (), config.get("steps"), split), rows, doubts
    )
