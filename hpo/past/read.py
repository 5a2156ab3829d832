"""Past runs from a path: run folders of the lab's kind, runs of a training script, or anybody's
tables.
"""

from collections.abc import Mapping
from pathlib import Path

from hpo.errors import DataError
from hpo.past.past_runs import FILES, PastRun, is_run, no_run, read_lab_run
from hpo.past.past_tables import ENDINGS, read_tables
from hpo.past.script_runs import ScriptRuns, nothing_found, read_script_runs

Found = tuple[list[PastRun], dict[str, str]]


def read_runs(
    path: Path, maps: Mapping[str, str] | None = None, scripts: ScriptRuns | None = None
) -> Found:
    """(the runs at `path`, what was refused there and why). path: a run folder, a folder of them,
    or tables.

    maps: column of a table -> our name (past_tables.NAMES, or a dotted field); None: run folders
    are meant, unless `path` is a file. scripts: the runs of a training script that are known
    without a study. Raises DataError if there is no run at all.
    """
    if not path.exists():
        raise DataError(
            f"{path}: no such file or folder. Valid: a run folder ({', '.join(FILES)} or "
            "training_log), a folder of them, "
            f"a CSV or JSONL table"
        )
    if maps or (path.is_file() and not _is_log(path, scripts)):
        return read_tables(path, maps or {}), {}
    if path.is_dir() and is_run(path):
        return [read_lab_run(path)], {}
    runs, refused = _found_below(path, scripts)
    if not runs:
        raise DataError(
            _first(refused) or f"{path}: {no_run(path)}. Tables are read with --map COLUMN=FIELD"
        )
    return runs, refused


def read_study_runs(path: Path, scripts: ScriptRuns) -> Found:
    """The same of a study's script. Raises DataError."""
    if not path.exists():
        raise DataError(f"{path}: no such file or folder. Give the folder that holds the runs")
    runs, refused = read_script_runs(path, scripts)
    if not runs:
        raise DataError(_first(refused) or nothing_found(path, scripts))
    return runs, refused


def _first(refused: Mapping[str, str]) -> str:
    """Why nothing was read: the first of the reasons; empty: nothing was refused."""
    if not refused:
        return ""
    more = f" (and {len(refused) - 1} more were refused)" if len(refused) > 1 else ""
    return next(iter(refused.values())) + more


def _is_log(path: Path, scripts: ScriptRuns | None) -> bool:
    """Whether a file is the curve of a script rather than a table."""
    if scripts is None or path.suffix in ENDINGS:
        return False
    return path.name == scripts.curve_name or bool(read_script_runs(path, scripts)[0])


def _found_below(path: Path, scripts: ScriptRuns | None) -> Found:
    entries = sorted(path.iterdir()) if path.is_dir() else []
    folders = [entry for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
    of_lab = [folder for folder in folders if is_run(folder)]
    runs: list[PastRun] = []
    refused: dict[str, str] = {}
    if scripts is not None:
        runs, refused = read_script_runs(path, scripts, of_lab)
    named = {*(run.name for run in runs), *refused}
    if any(run.path == str(path) for run in runs):
        return runs, refused
    for folder in folders:
        if folder in of_lab:
            try:
                runs.append(read_lab_run(folder))
            except DataError as error:
                refused[folder.name] = str(error)
        elif not any(Path(name).parts[0] == folder.name for name in named):
            refused[folder.name] = f"{folder}: {no_run(folder)}"
    return sorted(runs, key=lambda run: run.name), refused
