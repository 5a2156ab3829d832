"""Reads past runs from a path: run folders of the lab's kind, runs of a script, or tables."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from hpo.data.folders import is_backup, without_stray
from hpo.errors import DataError
from hpo.past.lab_runs import FILES, is_run, read_lab_run, why_not_a_run
from hpo.past.past_runs import PastRun
from hpo.past.past_tables import ENDINGS, read_tables
from hpo.past.script_runs import ScriptRuns, nothing_found, read_script_runs

# (the runs, what was refused -> why).
RunsAndRefused = tuple[list[PastRun], dict[str, str]]


def read_runs(
    path: Path, maps: Mapping[str, str] | None = None, scripts: ScriptRuns | None = None
) -> RunsAndRefused:
    """(the runs at `path`, what was refused and why). Raises DataError if there is no run at all.

    path: a run folder, a folder of them, or tables. maps: column of a table -> name
    (past_tables.NAMES) or dotted field; without it run folders are meant, unless `path` is a file.
    scripts: how to read the runs of a training script that is known without a study.
    """
    if not path.exists():
        raise DataError(
            f"{path}: no such file or folder. Valid: a run folder ({', '.join(FILES)} or "
            "training_log), a folder of them, a CSV or JSONL table"
        )
    if maps or (path.is_file() and not _is_log(path, scripts)):
        return read_tables(path, maps or {}), {}
    if path.is_dir() and is_run(path):
        return [read_lab_run(path)], {}
    runs, refused = _runs_below(path, scripts)
    if runs:
        return runs, refused
    if refused:
        raise DataError(_why_nothing_was_read(refused))
    raise DataError(f"{path}: {why_not_a_run(path)}. Tables are read with --map COLUMN=FIELD")


def read_study_runs(path: Path, scripts: ScriptRuns) -> RunsAndRefused:
    """(the runs at `path` of a study's script, what was refused and why). Raises DataError if there
    is no run at all.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file or folder. Give the folder that holds the runs")
    runs, refused = read_script_runs(path, scripts)
    if runs:
        return runs, refused
    if refused:
        raise DataError(_why_nothing_was_read(refused))
    raise DataError(nothing_found(path, scripts))


def _why_nothing_was_read(refused: Mapping[str, str]) -> str:
    """The first of the reasons, and how many more there are."""
    first = next(iter(refused.values()))
    more = len(refused) - 1
    return f"{first} (and {more} more were refused)" if more else first


def _is_log(path: Path, scripts: ScriptRuns | None) -> bool:
    """Whether a file is the curve of a script rather than a table."""
    if scripts is None or path.suffix in ENDINGS:
        return False
    if path.name == scripts.curve_name:
        return True
    runs, _ = read_script_runs(path, scripts)
    return bool(runs)


def _runs_below(path: Path, scripts: ScriptRuns | None) -> RunsAndRefused:
    """The runs in a folder, and those folders in it that hold none."""
    folders = _folders(path)
    lab_folders = [folder for folder in folders if is_run(folder)]
    runs: list[PastRun] = []
    refused: dict[str, str] = {}
    if scripts is not None:
        runs, refused = read_script_runs(path, scripts, skip=lab_folders)
    if any(run.path == str(path) for run in runs):
        # The folder itself is a run.
        return runs, refused
    names = [*(run.name for run in runs), *refused]
    script_folders = {Path(name).parts[0] for name in names}
    for folder in folders:
        if folder in lab_folders:
            try:
                runs.append(read_lab_run(folder))
            except DataError as error:
                refused[folder.name] = str(error)
        elif folder.name not in script_folders:
            refused[folder.name] = f"{folder}: {why_not_a_run(folder)}"
    return sorted(runs, key=lambda run: run.name), refused | _backups(path)


def _folders(path: Path) -> Sequence[Path]:
    """The folders in a folder, without what systems and editors leave."""
    if not path.is_dir():
        return []
    return [entry for entry in without_stray(path, path.iterdir()) if entry.is_dir()]


def _backups(path: Path) -> dict[str, str]:
    """The runs in a folder that are not read because of their names -> why."""
    if not path.is_dir():
        return {}
    return {
        entry.name: f"{entry}: named as a backup, so it is not read. Rename it if it is a run"
        for entry in sorted(path.iterdir())
        if is_backup(entry.name) and not entry.name.startswith(".") and is_run(entry)
    }
