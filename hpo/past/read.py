"""Past runs from a path: the lab's run folders, or anybody's tables."""

from collections.abc import Mapping
from pathlib import Path

from hpo.errors import DataError
from hpo.past.past_runs import FILES, PastRun, is_run, no_run, read_lab_run
from hpo.past.past_tables import read_tables


def read_runs(
    path: Path, maps: Mapping[str, str] | None = None
) -> tuple[list[PastRun], dict[str, str]]:
    """(the runs at `path`, what was refused there and why). path: a run folder, a folder of them, or tables.

    maps: column of a table -> our name (past_tables.NAMES, or a dotted field); None: run folders are meant, unless `path` is
    a file. Raises DataError if there is no run at all.
    """
    if not path.exists():
        raise DataError(
            f"{path}: no such file or folder. Valid: a run folder ({', '.join(FILES)}), a folder of them, a CSV or JSONL table"
        )
    if maps or path.is_file():
        return read_tables(path, maps or {}), {}
    if is_run(path):
        return [read_lab_run(path)], {}
    runs, refused = [], {}
    for folder in sorted(entry for entry in path.iterdir() if entry.is_dir()):
        try:
            runs.append(read_lab_run(folder))
        except DataError as error:
            refused[folder.name] = str(error)
    if not runs:
        raise DataError(
            next(iter(refused.values()), "")
            or f"{path}: {no_run(path)}. Tables are read with --map COLUMN=FIELD"
        )
    return runs, refused
