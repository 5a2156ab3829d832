"""Reads the runs of a training script: their folders, curves and configurations.

What a curve and a configuration file look like is known to `hpo.script`, which this room does not
import. It comes here as values and functions.
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from hpo.data.folders import is_stray
from hpo.errors import DataError, SpecError
from hpo.past.logs import Form, read_log
from hpo.past.past_runs import PER, PastRun, printable, some
from hpo.past.rows import with_curve
from hpo.settings import Config
from hpo.trainer import Metric

# The value of `curve.file` that stands for what the script prints.
OUTPUT = "log"
OUTPUT_ENDINGS = (".log", ".out", ".txt")
# What trainers and hpo call the configuration of a run.
CONFIG_FILES = ("args.yaml", "hpo-config.json")
CONFIG_ENDINGS = (".yaml", ".yml", ".json", ".toml")
# A folder within that of a run.
CHECKPOINT = "checkpoint"
MOST_FILES = 200_000
# Where no name says which file is the output: how many files of a folder are tried, up to what
# size in bytes.
MOST_TRIED = 20
LARGEST_TRIED = 20_000_000
_REFERENCE = re.compile(r"\$\{([\w.]+)\}")


@dataclass(frozen=True)
class Fields:
    """How the fields of a run's configuration file become those of a study."""

    # Name in the study -> fields of the script that take its value, where their names differ.
    targets: Mapping[str, Sequence[str]] = field(default_factory=dict)
    # Fields that no configuration has, because the study gives every training the same.
    fixed: frozenset[str] = frozenset()
    # Of the study's trainer; without it no study says which fields exist, so all are kept.
    config: type[Config] | None = None
    # The field that says how many steps a training has, or their number.
    steps: str | int = ""

    def targets_of(self, name: str) -> Sequence[str]:
        """The fields of the script that take the value of a field of the study."""
        return self.targets.get(name, (name,))


@dataclass(frozen=True)
class ScriptRuns:
    """How the runs of a script are found and read."""

    # Relative to a run's folder, perhaps with * in it; `log` stands for what the script prints.
    curve_file: str
    form: Form
    # Whether a pattern finds the lines of the curve among others.
    has_pattern: bool
    # Reads a configuration file: dotted name -> value. Raises SpecError.
    read_config: Callable[[Path], Mapping[str, Any]]
    config_files: tuple[str, ...] = CONFIG_FILES
    fields: Fields = field(default_factory=Fields)
    metric: Metric = PER
    split: str = "validation"
    # How many steps before its planned end the last evaluation of a whole run may lie; None means
    # one and a half intervals.
    steps_missing: int | None = None
    # Why no space contains such runs; empty if the space of their own study may.
    foreign: str = ""

    @property
    def curve_name(self) -> str:
        return Path(self.curve_file).name


@dataclass(frozen=True)
class _CurveFile:
    """A file with the curve of a run."""

    # Of the run.
    name: str
    file: Path
    # Of the run; None if several runs share it.
    folder: Path | None


def read_script_runs(
    path: Path, runs: ScriptRuns, skip: Iterable[Path] = ()
) -> tuple[list[PastRun], dict[str, str]]:
    """(the runs at `path`, what was refused and why). Both are empty where nothing looks like a
    run.

    path: a run's folder, a folder of such folders, or a file with a curve. skip: folders that are
    not searched. Raises DataError if there are too many files.
    """
    read: list[PastRun] = []
    refused: dict[str, str] = {}
    for curve_file in _curve_files(path, runs, set(skip)):
        try:
            read.append(_read_run(curve_file, runs))
        except DataError as error:
            refused[curve_file.name] = str(error)
    return read, refused


def nothing_found(path: Path, runs: ScriptRuns) -> str:
    """The message for a path where no run was found: what was looked for."""
    if runs.curve_file == OUTPUT:
        endings = ", ".join(f"*{ending}" for ending in OUTPUT_ENDINGS)
        looked_for = f"{endings}, or a folder with a single text file that the pattern matches"
    elif runs.curve_file == runs.curve_name:
        looked_for = runs.curve_file
    else:
        looked_for = f"{runs.curve_file}, or {runs.curve_name} in any folder"
    return (
        f"{path}: no run found: looked for {looked_for}, in it and below. Give the folder that "
        "holds the runs"
    )


# ---- which files are curves


def _curve_files(path: Path, runs: ScriptRuns, skip: set[Path]) -> list[_CurveFile]:
    if path.is_file():
        return [_single_curve_file(path, runs)]
    files = sorted(_files(path, skip, runs.curve_name))
    if runs.curve_file == OUTPUT:
        return _outputs(path, files, runs)
    curves = [file for file in files if fnmatch(file.name, runs.curve_name)]
    if curves:
        return _one_per_folder(path, curves, runs)
    if runs.has_pattern and not skip:
        return _outputs(path, files, runs)
    return []


def _single_curve_file(path: Path, runs: ScriptRuns) -> _CurveFile:
    if fnmatch(path.name, runs.curve_name):
        return _CurveFile(printable(path.absolute().parent.name), path, path.parent)
    return _CurveFile(printable(path.name), path, None)


def _files(path: Path, skip: set[Path], curve_name: str) -> Iterator[Path]:
    """All files below a folder, without what systems and editors leave. Raises DataError if there
    are too many.

    curve_name: a file that is called just so is a curve, even if it is hidden.
    """
    count = 0
    for folder, subfolders, names in os.walk(path):
        parent = Path(folder)
        # os.walk descends into what is left in this list.
        subfolders[:] = [
            name for name in subfolders if not is_stray(name) and parent / name not in skip
        ]
        count += len(names)
        if count > MOST_FILES:
            raise DataError(
                f"{path}: has more than {MOST_FILES:,} files. Give a folder that holds the runs "
                "alone"
            )
        for name in names:
            if name == curve_name or not is_stray(name):
                yield parent / name


def _one_per_folder(root: Path, curves: Sequence[Path], runs: ScriptRuns) -> list[_CurveFile]:
    """One run per folder.

    Of several curves in a folder, one at the place that the study expects is preferred, then the
    newest one.
    """
    folders = {file: _run_folder(root, file, runs) for file in curves}
    has_several_runs = len(set(folders.values())) > 1
    best: dict[Path, Path] = {}
    for file, folder in folders.items():
        # A root that holds several runs is no run itself.
        if has_several_runs and folder == root:
            folder = file.parent
        previous = best.get(folder)
        if previous is None or _preference(root, file, runs) > _preference(root, previous, runs):
            best[folder] = file
    return [_CurveFile(_name(root, folder), file, folder) for folder, file in best.items()]


def _preference(root: Path, file: Path, runs: ScriptRuns) -> tuple[bool, float]:
    return _is_at_expected_place(root, file, runs), file.stat().st_mtime


def _is_at_expected_place(root: Path, file: Path, runs: ScriptRuns) -> bool:
    """Whether the end of the file's path is the study's `curve.file`."""
    expected = Path(runs.curve_file).parts
    actual = file.relative_to(root).parts[-len(expected) :]
    return len(actual) == len(expected) and all(map(fnmatch, actual, expected))


def _run_folder(root: Path, file: Path, runs: ScriptRuns) -> Path:
    folder = file.parent
    if _is_at_expected_place(root, file, runs):
        folder = file.parents[len(Path(runs.curve_file).parts) - 1]
    if folder.name == CHECKPOINT and folder != root:
        return folder.parent
    return folder


def _name(root: Path, folder: Path) -> str:
    """The name of a run: its path below the root, or the name of the root itself."""
    name = folder.relative_to(root).as_posix()
    return printable(root.absolute().name if name == "." else name)


def _outputs(root: Path, files: Sequence[Path], runs: ScriptRuns) -> list[_CurveFile]:
    """The files that hold what scripts have printed."""
    files_of_folders: dict[Path, list[Path]] = {}
    for file in files:
        files_of_folders.setdefault(file.parent, []).append(file)
    curve_files: list[_CurveFile] = []
    for folder, files_of_folder in files_of_folders.items():
        outputs = _outputs_among(files_of_folder, runs)
        if len(outputs) == 1:
            curve_files.append(_CurveFile(_name(root, folder), outputs[0], folder))
            continue
        for file in outputs:
            curve_files.append(_CurveFile(_name(root, file), file, None))
    return curve_files


def _outputs_among(files: Sequence[Path], runs: ScriptRuns) -> list[Path]:
    """Those of a folder's files."""
    outputs = [file for file in files if file.suffix in OUTPUT_ENDINGS]
    if runs.curve_file != OUTPUT:
        # The study does not say that these are curves.
        return [file for file in outputs if _has_curve(file, runs)]
    if outputs:
        return outputs
    return [file for file in files[:MOST_TRIED] if _has_curve(file, runs)]


def _has_curve(file: Path, runs: ScriptRuns) -> bool:
    try:
        if file.stat().st_size > LARGEST_TRIED:
            return False
        return bool(read_log(file, runs.form, []))
    except (DataError, OSError):
        return False


# ---- one run


def _read_run(curve_file: _CurveFile, runs: ScriptRuns) -> PastRun:
    """Raises DataError for a curve that has no evaluation or cannot be read."""
    warnings: list[str] = []
    rows = read_log(curve_file.file, runs.form, warnings)
    values = _configuration(curve_file, runs, warnings)
    config, foreign = _translated(values, runs.fields)
    warnings += foreign
    unknown = _unknown_fields(values, runs.fields)
    if unknown:
        warnings.append(f"fields that the study does not have: {some(unknown)}")
    if runs.foreign:
        foreign = [runs.foreign, *foreign]
    run = PastRun(
        name=curve_file.name,
        path=str(curve_file.folder or curve_file.file),
        config=config,
        curve=(),
        steps=_planned_steps(values, runs.fields, warnings),
        split=runs.split,
        foreign=tuple(foreign),
        unknown=tuple(unknown),
        metric=runs.metric,
        values_are_fractions=True,
        steps_missing=runs.steps_missing,
    )
    return _with_early_end_noted(with_curve(run, rows, warnings))


def _with_early_end_noted(run: PastRun) -> PastRun:
    """The run with a warning, if it is taken as whole though its last evaluation is not at its
    planned end.
    """
    missing = (run.steps or 0) - run.curve[-1].step
    if run.steps_missing is not None or not run.reached_its_plan or missing <= 1:
        return run
    early = (
        f"its last evaluation is {missing} steps before its planned end, and taken as that of a "
        "whole training"
    )
    return replace(run, warnings=(*run.warnings, early))


def _configuration(
    curve_file: _CurveFile, runs: ScriptRuns, warnings: list[str]
) -> Mapping[str, Any]:
    """What the run's configuration file says; empty if there is none that can be read."""
    for path in _config_places(curve_file, runs):
        if not path.is_file():
            continue
        try:
            return runs.read_config(path)
        except SpecError as error:
            warnings.append(f"its configuration cannot be read: {error}")
            return {}
    names = ", ".join(runs.config_files)
    warnings.append(f"its configuration is not recorded: no {names} next to its curve")
    return {}


def _config_places(curve_file: _CurveFile, runs: ScriptRuns) -> Iterator[Path]:
    """Where the run's configuration file may lie, the likeliest place first."""
    if curve_file.folder is None:
        # Several runs share the folder, so the file that belongs to one is called like its curve.
        for ending in CONFIG_ENDINGS:
            yield curve_file.file.with_suffix(ending)
        return
    folders = dict.fromkeys((curve_file.folder, curve_file.file.parent))
    for name in runs.config_files:
        for folder in folders:
            yield folder / name
            yield folder / CHECKPOINT / name


def _planned_steps(values: Mapping[str, Any], fields: Fields, warnings: list[str]) -> int | None:
    """How many steps the run was to have; None if that is not recorded."""
    if isinstance(fields.steps, int):
        warnings.append(f"its planned length is taken as the study's: {fields.steps} steps")
        return fields.steps
    value = _resolved(values, fields.steps)
    if value is None:
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        warnings.append(f"{fields.steps} = {value!r} is not a number of steps")
        return None
    return value


# ---- from a run's fields to those of a study


def _translated(values: Mapping[str, Any], fields: Fields) -> tuple[dict[str, Any], list[str]]:
    """(name in the study -> value, as far as it is recorded; what the study's configuration cannot
    express).
    """
    if fields.config is None:
        return _renamed(values, fields)
    config: dict[str, Any] = {}
    foreign: list[str] = []
    base = fields.config().flat()
    for name in base:
        recorded = [target for target in fields.targets_of(name) if target in values]
        if not recorded:
            continue
        disagreement = _disagreement(values, recorded, name)
        if disagreement:
            foreign.append(disagreement)
            continue
        value = _value_or_reference(values, recorded[0], base[name])
        try:
            config[name] = fields.config().with_values({name: value}).flat()[name]
        except SpecError as error:
            foreign.append(f"not of the study: {error}")
    return config, foreign


def _unknown_fields(values: Mapping[str, Any], fields: Fields) -> list[str]:
    """The recorded fields that no configuration of the study has."""
    if fields.config is None:
        return []
    known = set(fields.fixed)
    for name in fields.config.names():
        known.update(fields.targets_of(name))
    return [name for name in values if name not in known]


def _renamed(values: Mapping[str, Any], fields: Fields) -> tuple[dict[str, Any], list[str]]:
    """(all that is recorded, where fields of the script that take one value differ). What several
    fields take has its one name in the study.
    """
    dropped = set(fields.fixed)
    for targets in fields.targets.values():
        dropped.update(targets)
    config = {name: value for name, value in values.items() if name not in dropped}
    disagreements: list[str] = []
    for name, targets in fields.targets.items():
        recorded = [target for target in targets if target in values]
        if not recorded:
            continue
        disagreement = _disagreement(values, recorded, name)
        if disagreement:
            disagreements.append(disagreement)
        else:
            config[name] = _resolved(values, recorded[0])
    return config, disagreements


def _disagreement(values: Mapping[str, Any], recorded: Sequence[str], name: str) -> str:
    """Why the fields of the script that take one value differ; empty if they agree."""
    first = _resolved(values, recorded[0])
    for target in recorded:
        value = _resolved(values, target)
        if value != first:
            fields = " and ".join(recorded)
            return f"{name} writes {fields}, which differ in the run: {first!r} and {value!r}"
    return ""


def _value_or_reference(values: Mapping[str, Any], target: str, base: Any) -> Any:
    """The run's value of a field, or the base's reference if the value is what it refers to.

    The base may have `${num_training_batches}` where the run has the number.
    """
    value = _resolved(values, target)
    reference = _reference(base)
    if reference and value == _resolved(values, reference):
        return base
    return value


def _resolved(values: Mapping[str, Any], name: str) -> Any:
    """The value of a field, or of the one that it refers to; None where it is not recorded."""
    value = values.get(name)
    # At most as many references as fields, so that a circle ends.
    for _ in range(len(values)):
        reference = _reference(value)
        if not reference or reference not in values:
            break
        value = values[reference]
    return value


def _reference(value: Any) -> str:
    """The field that a value such as `${lr_max}` refers to; empty if it refers to none."""
    match = _REFERENCE.fullmatch(value) if isinstance(value, str) else None
    return match.group(1) if match else ""
