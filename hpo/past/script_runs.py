"""Runs of a training script: their folders, their curves as the script's study reads them, and
their configurations.

What a curve and a configuration file look like is known to the room of the scripts. Here it comes
as values and functions.
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from hpo.errors import DataError, SpecError
from hpo.past.logs import Form, read_log
from hpo.past.past_runs import PER, PastRun, finished, printable, some
from hpo.settings import Config
from hpo.trainer import Metric

# Of `curve.file`: what the script prints.
OUTPUT = "log"
OUTPUT_ENDINGS = (".log", ".out", ".txt")
# What trainers and we call the configuration that a run had.
CONFIG_FILES = ("args.yaml", "hpo-config.json")
CONFIG_ENDINGS = (".yaml", ".yml", ".json", ".toml")
# A folder within a run's.
CHECKPOINT = "checkpoint"
MOST_FILES = 200_000
# Of a folder, where no name says which file is the output, and the bytes of each.
MOST_TRIED = 20
LARGEST_TRIED = 20_000_000
_REFERENCE = re.compile(r"\$\{([\w.]+)\}")


@dataclass(frozen=True)
class Fields:
    """How the fields of a run's configuration file become those of a study."""

    # Name in the study -> fields of the script that take its value, where they are called
    # otherwise.
    targets: Mapping[str, Sequence[str]] = field(default_factory=dict)
    # Fields that no configuration has, because the study gives every training the same.
    fixed: frozenset[str] = frozenset()
    # Of the study's trainer; None: no study says which fields there are, so all are kept.
    config: type[Config] | None = None
    # The field that says how many steps a training has, or their number.
    steps: str | int = ""

    def of(self, name: str) -> Sequence[str]:
        return self.targets.get(name, (name,))


@dataclass(frozen=True)
class ScriptRuns:
    """How the runs of a script are found and read."""

    # As seen from a run's folder, with * in it perhaps; `log`: what the script prints.
    curve_file: str
    form: Form
    # Whether the curve's lines stand among others.
    has_pattern: bool
    # Dotted name -> value, of a configuration file. Raises SpecError.
    read_config: Callable[[Path], Mapping[str, Any]]
    config_files: tuple[str, ...] = CONFIG_FILES
    fields: Fields = field(default_factory=Fields)
    metric: Metric = PER
    split: str = "validation"
    # How many steps before its plan the last evaluation of a whole run may lie; None: one and a
    # half intervals.
    steps_missing: int | None = None
    # Why no space contains such runs; empty: that of their own study may.
    foreign: str = ""

    @property
    def curve_name(self) -> str:
        return Path(self.curve_file).name


@dataclass(frozen=True)
class _Found:
    """A file with a curve."""

    name: str
    file: Path
    # Of the run; None: the folder is not of this run alone.
    folder: Path | None


def read_script_runs(
    path: Path, runs: ScriptRuns, besides: Iterable[Path] = ()
) -> tuple[list[PastRun], dict[str, str]]:
    """(the runs at `path`, what was refused there and why). path: a run's folder, one of such
    folders, or a file with a curve.

    besides: folders that are not looked into. Both are empty where nothing looks like a run. Raises
    DataError.
    """
    found: list[PastRun] = []
    refused: dict[str, str] = {}
    for each in _found(path, runs, set(besides)):
        try:
            found.append(read_script_run(each.name, each.file, each.folder, runs))
        except DataError as error:
            refused[each.name] = str(error)
    return found, refused


def nothing_found(path: Path, runs: ScriptRuns) -> str:
    """What was looked for, in vain."""
    if runs.curve_file == OUTPUT:
        endings = ", ".join(f"*{ending}" for ending in OUTPUT_ENDINGS)
        looked = f"{endings}, or a folder with a single text file that the pattern matches"
    elif runs.curve_file == runs.curve_name:
        looked = runs.curve_file
    else:
        looked = f"{runs.curve_file}, or {runs.curve_name} in any folder"
    return (
        f"{path}: no run: looked for {looked} in it and below. Give the folder that holds the runs"
    )


# ---- which files are curves


def _found(path: Path, runs: ScriptRuns, besides: set[Path]) -> list[_Found]:
    if path.is_file():
        is_own = fnmatch(path.name, runs.curve_name)
        name = path.absolute().parent.name if is_own else path.name
        return [_Found(printable(name), path, path.parent if is_own else None)]
    files = sorted(_files(path, besides))
    curves = [file for file in files if fnmatch(file.name, runs.curve_name)]
    if runs.curve_file != OUTPUT and curves:
        return _by_folder(path, curves, runs)
    if runs.curve_file == OUTPUT or (runs.has_pattern and not besides):
        return _outputs(path, files, runs)
    return []


def _files(path: Path, besides: set[Path]) -> Iterator[Path]:
    """Raises DataError for too many."""
    count = 0
    for folder, folders, names in os.walk(path):
        here = Path(folder)
        folders[:] = [
            name for name in folders if not name.startswith(".") and here / name not in besides
        ]
        count += len(names)
        if count > MOST_FILES:
            raise DataError(
                f"{path}: has more than {MOST_FILES:,} files. Give a folder that holds the runs "
                "alone"
            )
        yield from (here / name for name in names)


def _by_folder(root: Path, curves: Sequence[Path], runs: ScriptRuns) -> list[_Found]:
    """A run a folder; of several curves in one the one where the study has it, then the newest."""
    folders = {file: _run_folder(root, file, runs) for file in curves}
    if len(set(folders.values())) > 1:
        folders = {
            file: file.parent if folder == root else folder for file, folder in folders.items()
        }
    best: dict[Path, Path] = {}
    for file, folder in folders.items():
        before = best.get(folder)
        if before is None or _rank(root, file, runs) > _rank(root, before, runs):
            best[folder] = file
    return [_Found(_name(root, folder), file, folder) for folder, file in best.items()]


def _is_where_the_study_has_it(root: Path, file: Path, runs: ScriptRuns) -> bool:
    parts = Path(runs.curve_file).parts
    there = file.relative_to(root).parts[-len(parts) :]
    return len(there) == len(parts) and all(map(fnmatch, there, parts))


def _rank(root: Path, file: Path, runs: ScriptRuns) -> tuple[bool, float]:
    return _is_where_the_study_has_it(root, file, runs), file.stat().st_mtime


def _run_folder(root: Path, file: Path, runs: ScriptRuns) -> Path:
    above = 0
    if _is_where_the_study_has_it(root, file, runs):
        above = len(Path(runs.curve_file).parts) - 1
    folder = file.parents[above]
    is_within_a_run = folder.name == CHECKPOINT and folder != root
    return folder.parent if is_within_a_run else folder


def _name(root: Path, folder: Path) -> str:
    name = folder.relative_to(root).as_posix()
    return printable(root.absolute().name if name == "." else name)


def _outputs(root: Path, files: Sequence[Path], runs: ScriptRuns) -> list[_Found]:
    """Files of what scripts have printed."""
    by_folder: dict[Path, list[Path]] = {}
    for file in files:
        by_folder.setdefault(file.parent, []).append(file)
    found: list[_Found] = []
    for folder, within in by_folder.items():
        outputs = [file for file in within if file.suffix in OUTPUT_ENDINGS]
        if runs.curve_file != OUTPUT:
            # Nobody said that these are curves.
            outputs = [file for file in outputs if _has_curve(file, runs)]
        elif not outputs:
            outputs = [file for file in within[:MOST_TRIED] if _has_curve(file, runs)]
        if len(outputs) == 1:
            found.append(_Found(_name(root, folder), outputs[0], folder))
        else:
            found += [_Found(_name(root, file), file, None) for file in outputs]
    return found


def _has_curve(file: Path, runs: ScriptRuns) -> bool:
    try:
        is_small = file.stat().st_size <= LARGEST_TRIED
        return is_small and bool(read_log(file, runs.form, []))
    except (DataError, OSError):
        return False


# ---- one run


def read_script_run(name: str, file: Path, folder: Path | None, runs: ScriptRuns) -> PastRun:
    """Raises DataError for a curve without evaluations, or that cannot be read."""
    doubts: list[str] = []
    rows = read_log(file, runs.form, doubts)
    values = _configuration(file, folder, runs, doubts)
    config, foreign = _translated(values, runs.fields, doubts)
    doubts += foreign
    if runs.foreign:
        foreign = [runs.foreign, *foreign]
    run = PastRun(
        name,
        str(folder or file),
        config,
        (),
        _planned(values, runs.fields, doubts),
        runs.split,
        foreign=tuple(foreign),
        metric=runs.metric,
        tells_fractions=True,
        steps_missing=runs.steps_missing,
    )
    run = finished(run, rows, doubts)
    missing = (run.steps or 0) - run.curve[-1].step
    if runs.steps_missing is None and run.reached_its_plan and missing > 1:
        early = (
            f"its last evaluation is {missing} steps before its planned end, and taken as a whole "
            f"training's"
        )
        run = replace(run, doubts=(*run.doubts, early))
    return run


def _configuration(
    file: Path, folder: Path | None, runs: ScriptRuns, doubts: list[str]
) -> Mapping[str, Any]:
    for path in _config_places(file, folder, runs):
        if not path.is_file():
            continue
        try:
            return runs.read_config(path)
        except SpecError as error:
            doubts.append(f"its configuration cannot be read: {error}")
            return {}
    looked = ", ".join(runs.config_files)
    doubts.append(f"its configuration is not recorded: no {looked} beside its curve")
    return {}


def _config_places(file: Path, folder: Path | None, runs: ScriptRuns) -> Iterator[Path]:
    if folder is None:
        # Several runs share the folder: what belongs to one is called as its curve is.
        yield from (file.with_suffix(ending) for ending in CONFIG_ENDINGS)
        return
    for name in runs.config_files:
        for place in dict.fromkeys((folder, file.parent)):
            yield place / name
            yield place / CHECKPOINT / name


def _planned(values: Mapping[str, Any], fields: Fields, doubts: list[str]) -> int | None:
    """How many steps the run was to have."""
    if isinstance(fields.steps, int):
        doubts.append(f"its planned length is taken as the study's: {fields.steps} steps")
        return fields.steps
    found = _resolved(values, fields.steps)
    if isinstance(found, float) and found.is_integer():
        found = int(found)
    if isinstance(found, bool) or not isinstance(found, int) or found < 0:
        if found is not None:
            doubts.append(f"{fields.steps} = {found!r} is no number of steps")
        return None
    return found


# ---- from a run's fields to those of a study


def _translated(
    values: Mapping[str, Any], fields: Fields, doubts: list[str]
) -> tuple[dict[str, Any], list[str]]:
    """(name in the study -> value, as far as it is recorded; what the study's configuration cannot
    say).
    """
    if fields.config is None:
        return _renamed(values, fields), []
    config: dict[str, Any] = {}
    foreign: list[str] = []
    base = fields.config().flat()
    for name in base:
        recorded = [target for target in fields.of(name) if target in values]
        if not recorded:
            continue
        if fault := _disagreement(values, recorded, name):
            foreign.append(fault)
            continue
        value = _in_words_of(values, recorded[0], base[name])
        try:
            config[name] = fields.config().with_values({name: value}).flat()[name]
        except SpecError as error:
            foreign.append(f"not of the study: {error}")
    known = {target for name in base for target in fields.of(name)} | fields.fixed
    if values and (others := [name for name in values if name not in known]):
        doubts.append(
            f"fields that the study does not have, taken as without effect: {some(others)}"
        )
    return config, foreign


def _renamed(values: Mapping[str, Any], fields: Fields) -> dict[str, Any]:
    """All that is recorded, with what several fields say under its one name."""
    written = {target for targets in fields.targets.values() for target in targets}
    config = {
        name: value
        for name, value in values.items()
        if name not in written and name not in fields.fixed
    }
    for name, targets in fields.targets.items():
        recorded = [target for target in targets if target in values]
        if recorded:
            config[name] = _resolved(values, recorded[0])
    return config


def _disagreement(values: Mapping[str, Any], recorded: Sequence[str], name: str) -> str:
    found = {target: _resolved(values, target) for target in recorded}
    first = found[recorded[0]]
    for value in found.values():
        if value != first:
            fields = " and ".join(recorded)
            return f"{name} writes {fields}, which differ in the run: {first!r} and {value!r}"
    return ""


def _in_words_of(values: Mapping[str, Any], target: str, base: Any) -> Any:
    """The run's value; where it is what the base refers to, as the base has it:
    ${num_training_batches}.
    """
    value = _resolved(values, target)
    reference = _REFERENCE.fullmatch(base) if isinstance(base, str) else None
    if reference and value == _resolved(values, reference.group(1)):
        return base
    return value


def _resolved(values: Mapping[str, Any], name: str) -> Any:
    """The value of a field, or of the one that it refers to; None where it is not recorded."""
    value = values.get(name)
    for _ in range(len(values)):
        reference = _REFERENCE.fullmatch(value) if isinstance(value, str) else None
        if reference is None or reference.group(1) not in values:
            break
        value = values[reference.group(1)]
    return value
