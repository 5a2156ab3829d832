"""Reads past runs from the folders that neural_seq_decoder and its descendants write.

A folder may hold `args` (a pickled dict), `metrics.jsonl` (an evaluation a line) and
`trainingStats` (pickled arrays of the same evaluations).
"""

import json
import math
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from hpo.data.folders import contents_text
from hpo.errors import DataError
from hpo.past.past_runs import BUILT_IN, CONFIG, PastRun, some
from hpo.past.rows import (
    Row,
    check_step,
    checked_config,
    keep_last_start,
    warn_of_unread_lines,
    with_curve,
)
from hpo.trainer import DEFAULT_TRAINER, PastRuns, Translated, offered

# What the built-in trainer knows of such folders.
LAB: PastRuns = offered(BUILT_IN, DEFAULT_TRAINER, "past_runs", "reading of past runs")
FILES = ("args", "metrics.jsonl", "trainingStats")
VALID = f"a folder with {', '.join(FILES)} (one of them at least), or with a training_log"
# Batches between evaluations of neural_seq_decoder.
REFERENCE_INTERVAL = 100
# Seconds; no batch takes so long.
DAY = 86400.0
# Fields that decide how a training goes, so that their absence deserves a warning.
DECISIVE_FIELDS = (
    "optimizer.name",
    "optimizer.lr",
    "optimizer.grad_clip_norm",
    "schedule.name",
    "model.layer_norm",
    "model.input_dropout",
    "augment.time_masks",
    "augment.feature_masks",
    "augment.white_noise_sd",
)
# Optional fields of a line of metrics.jsonl -> their names in a row. `time` is seconds per batch.
OPTIONAL_NUMBERS = {"ctc_loss": "loss", "lr": "lr", "time_per_batch": "time"}
# What a line that is no evaluation may raise. A JSON error is a ValueError.
UNREADABLE = (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError)


def is_run(folder: Path) -> bool:
    return any((folder / name).is_file() for name in FILES)


def why_not_a_run(folder: Path) -> str:
    """What is wrong with a folder that is not a run."""
    return f"not a run: it contains {contents_text(folder)}. Valid: {VALID}"


def read_lab_run(folder: Path) -> PastRun:
    """The run in a folder.

    Raises DataError for a folder that is not a run, for a pickle of anything but plain values and
    arrays, and for arguments that make no sense.
    """
    if not is_run(folder):
        raise DataError(f"{folder}: {why_not_a_run(folder)}")
    warnings: list[str] = []
    recorded = _read_arguments(folder / "args", warnings)
    arguments = _understood(recorded, folder / "args")
    config, faults = checked_config(arguments.translated.config)
    reasons = [argument.why for argument in arguments.translated.inexpressible]
    foreign = [*reasons, *faults.values(), *LAB.weight_faults(folder, warnings)]
    warnings += foreign
    warnings += _argument_warnings(recorded, folder.name, arguments.translated)
    rows, split = _read_curve(folder, arguments.interval, warnings)
    if arguments.accumulation > 1:
        warnings.append(
            f"gradient accumulation {arguments.accumulation}: steps are recorded in batches, here "
            f"divided by {arguments.accumulation} to updates"
        )
        rows = [row | {"step": row["step"] // arguments.accumulation} for row in rows]
    run = PastRun(
        name=folder.name,
        path=str(folder),
        config=config,
        curve=(),
        steps=config.get("steps"),
        split=split,
        foreign=tuple(foreign),
        unknown=arguments.translated.unknown,
        n_features=arguments.n_features,
        n_days=arguments.n_days,
    )
    run = with_curve(run, rows, warnings)
    return _with_lr_checked(run)


# ---- args


@dataclass(frozen=True)
class _Arguments:
    """What `args` says, in the names of hpo."""

    translated: Translated
    # Batches per optimizer update.
    accumulation: int
    # Batches between two evaluations.
    interval: int
    n_features: int | None
    n_days: int | None


def _read_arguments(path: Path, warnings: list[str]) -> dict[str, Any]:
    if not path.is_file():
        warnings.append("no args: its configuration is not recorded")
        return {}
    arguments = LAB.read(path)
    if not isinstance(arguments, dict):
        raise DataError(f"{path}: a pickled {type(arguments).__name__}. Valid: a dict of arguments")
    return arguments


def _understood(recorded: Mapping[str, Any], path: Path) -> _Arguments:
    """Raises DataError for a value that makes no sense. path: for the message."""
    try:
        translated = LAB.translate(recorded)
        accumulation = int(recorded.get("gradient_accumulation_steps") or 1)
        interval = int(recorded.get("eval_every") or REFERENCE_INTERVAL)
        check_step(accumulation)
        check_step(interval)
        n_features = _int_or_none(recorded.get("nInputFeatures"))
        n_days = _int_or_none(recorded.get("nDays"))
    except (TypeError, ValueError, ArithmeticError) as error:
        raise DataError(
            f"{path}: a value makes no sense ({error}). Valid: the numbers that the trainer was "
            "given"
        ) from None
    return _Arguments(translated, accumulation, interval, n_features, n_days)


def _int_or_none(value: Any) -> int | None:
    return None if value is None else int(value)


def _argument_warnings(
    recorded: Mapping[str, Any], folder: str, translated: Translated
) -> list[str]:
    """folder: its name."""
    if not recorded:
        return []
    config = translated.config
    warnings: list[str] = []
    if translated.unknown:
        unknown = [f"{name} = {_shown(recorded[name])}" for name in translated.unknown]
        warnings.append(f"args have words that hpo does not know: {some(unknown)}")
    run_name = recorded.get("run_name", folder)
    if run_name != folder:
        warnings.append(f"args call the run {run_name}: they may be those of another run")
    # Where args have unknown words, one of them may be the missing one.
    known = " under a name that hpo knows" if translated.unknown else ""
    if "optimizer.eps" not in config and config.get("optimizer.name") != "sgd":
        warnings.append(
            f"args do not record eps{known}: neural_seq_decoder's code has 0.1, its descendants' "
            "1e-8. It is left out"
        )
    said = {*config, *(argument.field for argument in translated.inexpressible)}
    missing = [name for name in DECISIVE_FIELDS if name not in said]
    if missing:
        warnings.append(f"args do not record {', '.join(missing)}{known}: left out")
    ema_decay = config.get("optimizer.ema_decay")
    if ema_decay:
        warnings.append(
            f"evaluated with averaged weights (EMA {ema_decay}), which look worst early"
        )
    return warnings


def _shown(value: Any) -> str:
    """A few letters of any value."""
    try:
        return reprlib.repr(value)
    # Python writes no number of more than 4,300 digits, such as one in a list.
    except ValueError:
        return f"a {type(value).__name__}"


def _with_lr_checked(run: PastRun) -> PastRun:
    """The run without its schedule, if the recorded learning rates are not those of the schedule in
    args: then the schedule is not known.
    """
    fault = _lr_fault(run)
    if not fault:
        return run
    config = {name: value for name, value in run.config.items() if not name.startswith("schedule.")}
    return replace(
        run, config=config, warnings=(*run.warnings, fault), foreign=(*run.foreign, fault)
    )


def _lr_fault(run: PastRun) -> str:
    """Where a recorded learning rate is not the scheduled one; empty if all are."""
    lr = run.config.get("optimizer.lr")
    schedule = run.config.get("schedule.name")
    if not run.curve or lr is None or schedule in (None, "plateau"):
        return ""
    fields = {
        name: value
        for name, value in run.config.items()
        if name.startswith("schedule.") or name == "steps"
    }
    config = CONFIG().with_values(fields)
    for point in run.curve:
        planned = lr * LAB.lr_factor(config, point.step)
        if point.lr is not None and abs(point.lr - planned) > 0.05 * lr:
            return (
                f"learning rate {point.lr:.3g} at step {point.step}, where args's {schedule} "
                f"schedule has {planned:.3g}: schedule left out"
            )
    return ""


# ---- the curve


def _read_curve(folder: Path, interval: int, warnings: list[str]) -> tuple[list[Row], str | None]:
    """(rows whose steps count batches, the split that they were scored on).

    interval: batches between two evaluations, for a curve that does not record its steps.
    """
    rows, split = _read_metrics(folder / "metrics.jsonl", warnings)
    rows = keep_last_start(rows, warnings)
    stats = _read_stats(folder / "trainingStats", warnings)
    if rows:
        warnings += _differences(rows, stats)
        return rows, split
    if not stats:
        warnings.append("never started: no evaluation is recorded")
        return [], split
    warnings.append(
        "no metrics.jsonl: the curve is trainingStats's, its steps are not recorded and counted as "
        f"every {interval} batches"
    )
    return [{"step": interval * number, **row} for number, row in enumerate(stats)], "test"


def _read_metrics(path: Path, warnings: list[str]) -> tuple[list[Row], str | None]:
    """(rows, the split that they were scored on; None if there are no rows)."""
    if not path.is_file():
        return [], None
    entries: list[dict[str, Any]] = []
    rows: list[Row] = []
    uses_cer = False
    # Line number -> why it is left out.
    unread: dict[int, str] = {}
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            row = _row(entry)
        except UNREADABLE as error:
            if number == len(lines) and isinstance(error, json.JSONDecodeError):
                unread[number] = "cut off in mid-line"
            else:
                unread[number] = f"no evaluation ({type(error).__name__}: {error})"
            continue
        uses_cer = uses_cer or "per" not in entry
        entries.append(entry)
        rows.append(row)
    warn_of_unread_lines("metrics.jsonl line", unread, warnings)
    warnings += _entry_warnings(entries, uses_cer)
    _add_seconds(rows, warnings)
    splits = [str(entry.get("eval_split") or "test") for entry in entries]
    return rows, _split(splits, warnings)


def _row(entry: Any) -> Row:
    """The evaluation of one line. Raises one of UNREADABLE for anything else."""
    name_of_per = "per" if "per" in entry else "cer"
    row = {"step": float(entry["step"]), "per": float(entry[name_of_per])}
    check_step(row["step"])
    for theirs, name in OPTIONAL_NUMBERS.items():
        if entry.get(theirs) is not None:
            row[name] = float(entry[theirs])
    return row


def _entry_warnings(entries: Iterable[Mapping[str, Any]], uses_cer: bool) -> list[str]:
    """Warnings about what lines say beyond the numbers of their evaluations."""
    # Name -> the steps where its value is not finite.
    not_finite: dict[str, list[Any]] = {}
    # Counted from the start of the run.
    skipped: Any = 0
    for entry in entries:
        skipped = entry.get("skipped_updates") or skipped
        for name, value in entry.items():
            if isinstance(value, float) and not math.isfinite(value):
                not_finite.setdefault(name, []).append(entry["step"])
    warnings = [
        f"{name} is NaN or Infinity at step {some(steps)}, tokens that JSON does not have"
        for name, steps in not_finite.items()
    ]
    if uses_cer:
        warnings.append("`cer` in place of `per`: taken as the phoneme error rate")
    if skipped:
        warnings.append(
            f"the trainer skipped {skipped} updates, whose gradients were not finite; its steps "
            "count them"
        )
    return warnings


def _add_seconds(rows: Sequence[Row], warnings: list[str]) -> None:
    """Adds `seconds` since the start, from `time` (seconds per batch, evaluation included)."""
    if not all(0 <= row.get("time", math.nan) < DAY for row in rows):
        warnings.append(
            "seconds are not recorded for every evaluation, or make no sense: GPU time is unknown"
        )
        return
    if not rows:
        return
    warnings.append(
        "the first row's time_per_batch covers one batch and an evaluation, not the batches that "
        "it claims: not counted"
    )
    total = 0.0
    rows[0]["seconds"] = total
    for previous, row in pairwise(rows):
        if row["step"] > previous["step"]:
            total += row["time"] * (row["step"] - previous["step"])
        elif row["step"] <= rows[0]["step"]:
            # Another start. After any other fall back, the time of the batches in between is not
            # known and adds nothing.
            total = 0.0
        row["seconds"] = total


def _split(splits: Sequence[str], warnings: list[str]) -> str | None:
    """The split of the last evaluation. splits: of each evaluation."""
    if not splits:
        return None
    split = splits[-1]
    if split in ("valid", "validation", "val"):
        split = "validation"
    if split != "test":
        warnings.append(
            f"scored on the split {split}, not on test: its PER is not comparable with that of "
            "runs scored on test"
        )
    distinct = sorted(set(splits))
    if len(distinct) > 1:
        warnings.append(f"scored on several splits: {', '.join(distinct)}; the last counts")
    return split


# ---- trainingStats


def _read_stats(path: Path, warnings: list[str]) -> list[Row]:
    """The rows of trainingStats, which have no steps."""
    if not path.is_file():
        return []
    arrays = _number_arrays(LAB.read(path))
    error_rates = arrays.get("testPER", arrays.get("testCER"))
    losses = arrays.get("testLoss")
    lengths_differ = (
        error_rates is not None and losses is not None and losses.shape != error_rates.shape
    )
    if error_rates is None or error_rates.ndim != 1 or lengths_differ:
        warnings.append(
            "trainingStats holds no testPER (or testCER) with a testLoss of its length: not used"
        )
        return []
    if "testPER" not in arrays:
        warnings.append(
            "`testCER` in place of `testPER` in trainingStats: taken as the phoneme error rate"
        )
    rows: list[Row] = [{"per": float(error_rate)} for error_rate in error_rates]
    if losses is not None:
        for row, loss in zip(rows, losses, strict=True):
            row["loss"] = float(loss)
    return rows


def _number_arrays(stats: Any) -> dict[str, np.ndarray]:
    """Those of the known entries that hold numbers."""
    if not isinstance(stats, dict):
        return {}
    arrays = {name: np.asarray(stats.get(name)) for name in ("testPER", "testCER", "testLoss")}
    return {name: array for name, array in arrays.items() if array.dtype.kind in "biuf"}


def _differences(rows: Sequence[Row], stats: Sequence[Row]) -> list[str]:
    """Warnings about where trainingStats says something else than metrics.jsonl."""
    if not stats:
        return []
    if len(stats) != len(rows):
        # Values of trainingStats have no steps, so nothing says which belong together.
        return [
            f"trainingStats has {len(stats)} values, metrics.jsonl {len(rows)}: not compared, "
            "metrics.jsonl counts"
        ]
    warnings: list[str] = []
    for name in ("per", "loss"):
        differing = [
            f"{row['step']:g}"
            for row, other in zip(rows, stats, strict=True)
            if name in row and name in other and not _are_close(row[name], other[name])
        ]
        if differing:
            warnings.append(
                f"trainingStats has another {name} than metrics.jsonl at step {some(differing)}: "
                "metrics.jsonl counts"
            )
    return warnings


def _are_close(value: float, other: float) -> bool:
    return bool(np.isclose(value, other, rtol=1e-6, equal_nan=True))
