"""Runs that were trained outside, read from the folders of neural_seq_decoder and its descendants
(tables: past_tables.py).

What such files say is often not what happened. Nothing is repaired silently: everything that was
noticed is a doubt, in words, kept with the run. A step is an optimizer update here too, so steps
that count batches are converted.
"""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from hpo.curve import Point
from hpo.errors import DataError, SpecError
from hpo.trainer import DEFAULT_TRAINER, Metric, PastRuns, load_trainer, offered

# Such folders are of the built-in decoder's kin, which says what their arguments mean.
BUILT_IN = load_trainer(DEFAULT_TRAINER)
CONFIG = BUILT_IN.config
PER: Metric = BUILT_IN.metric
LAB: PastRuns = offered(BUILT_IN, DEFAULT_TRAINER, "past_runs", "reading of past runs")
FILES = ("args", "metrics.jsonl", "trainingStats")
VALID = f"a folder with {', '.join(FILES)} (one of them at least), or with a training_log"
# Above it a value that should be a fraction of 1 is surely percent.
SURELY_PERCENT = 20.0
REFERENCE_INTERVAL = 100  # batches between evaluations of neural_seq_decoder
DAY = 86400.0  # seconds; no batch takes so long
LISTED = 5  # of a longer list of steps or fields, in a doubt
# One evaluation as read: step, per (the value of the metric), and where they are recorded loss,
# train_loss, seconds (since the start), lr.
Row = dict[str, float]


@dataclass(frozen=True)
class PastPoint:
    step: int  # optimizer updates
    value: float  # of the metric
    loss: float | None  # on the same items
    seconds: float | None  # since the start of the run
    lr: float | None
    train_loss: float | None = None  # mean since the evaluation before


def _point(before: PastPoint | None, point: PastPoint) -> Point:
    metrics: dict[str, float] = {}
    if point.lr is not None:
        metrics["lr"] = point.lr
    if before is not None and before.seconds is not None and point.seconds is not None:
        metrics["step_seconds"] = (point.seconds - before.seconds) / (point.step - before.step)
    train_loss = math.nan if point.train_loss is None else point.train_loss
    return Point(point.step, point.value, train_loss, point.loss, metrics)


@dataclass(frozen=True)
class PastRun:
    name: str
    path: str
    config: dict[str, Any]  # dotted name -> value, as far as it is recorded
    curve: tuple[PastPoint, ...]
    steps: int | None  # planned
    split: str | None  # that it was scored on: test, validation or another name; None: not recorded
    doubts: tuple[str, ...] = ()
    foreign: tuple[
        str, ...
    ] = ()  # what of it our configuration cannot say; such a run lies in no space
    n_features: int | None = None
    n_days: int | None = None
    metric: Metric = PER
    # Whether values above 1 are known to be fractions all the same: an error rate counts insertions
    # too.
    tells_fractions: bool = False
    # How many steps before its plan the last evaluation of a whole run may lie; None: one and a
    # half intervals.
    steps_missing: int | None = None

    @property
    def key(self) -> str:
        """Of name and content, wherever the run lies and whatever is stated of it by hand."""
        points = [
            {
                "step": point.step,
                "per": point.value,
                "loss": point.loss,
                "seconds": point.seconds,
                "lr": point.lr,
            }
            for point in self.curve
        ]
        content = [self.name, points, self.steps, self.split]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def best_value(self) -> float | None:
        values = [point.value for point in self.curve if math.isfinite(point.value)]
        return self.metric.best(values) if values else None

    @property
    def points(self) -> list[Point]:
        """For a stopping rule: where no loss is recorded only the PER can stop the run. The
        training loss is not known.
        """
        return [
            _point(before, point)
            for before, point in zip((None, *self.curve), self.curve, strict=False)
        ]

    @property
    def interval(self) -> int:
        return _interval([point.step for point in self.curve])

    @property
    def no_error_rate(self) -> str:
        """Why its values cannot be the metric's; empty: they can. Such a run informs no sampler and
        judges no rule.
        """
        metric = self.metric
        if not metric.bounded:
            return ""
        if metric.direction == "maximize":
            outside = [point.step for point in self.curve if not 0 <= point.value <= 1]
            outside = [step for step in outside if step not in self._not_finite]
            return f"{metric.name} outside of 0 to 1 at step {some(outside)}" if outside else ""
        if negative := [point.step for point in self.curve if point.value < 0]:
            return f"negative {metric.name} at step {some(negative)}: no error rate"
        best = self.best_value or 0
        if best > (SURELY_PERCENT if self.tells_fractions else 1):
            return f"no {metric.name} at or below 1, the lowest is {best:.4g}: percent?"
        high = [point for point in self.curve if SURELY_PERCENT < point.value < math.inf]
        if high and self.tells_fractions:
            value, step = high[0].value, high[0].step
            return f"{metric.name} {value:.4g} at step {step} is no fraction of 1: percent?"
        return ""

    @property
    def _not_finite(self) -> set[int]:
        return {point.step for point in self.curve if not math.isfinite(point.value)}

    @property
    def high_points(self) -> list[PastPoint]:
        """Those above 1 that want a word. Where fractions are known it is usual for a training to
        begin above 1.
        """
        if not self.metric.bounded or self.metric.direction == "maximize":
            return []
        begun = [point for point in self.curve if not point.value > 1]
        if self.tells_fractions and not begun:
            return []
        first = begun[0].step if self.tells_fractions else 0
        return [point for point in self.curve if point.value > 1 and point.step >= first]

    @property
    def reached_its_plan(self) -> bool:
        """neural_seq_decoder evaluates for the last time one interval before its end."""
        if not self.curve or self.steps is None:
            return False
        missing = self.steps - self.curve[-1].step
        if self.steps_missing is None:
            return missing <= 1.5 * self.interval
        return missing <= self.steps_missing


def is_run(folder: Path) -> bool:
    return any((folder / name).is_file() for name in FILES)


def no_run(folder: Path) -> str:
    """What is wrong with a folder that is no run."""
    there = sorted(entry.name for entry in folder.iterdir())
    shown = ", ".join(there[:3]) + ", ..." * (len(there) > 3)
    return f"no run: it has {shown or 'nothing'}. Valid: {VALID}"


def read_lab_run(folder: Path) -> PastRun:
    """Raises DataError for a folder that is no run, a pickle with anything but plain values and
    arrays, or values of no sense.
    """
    if not is_run(folder):
        raise DataError(f"{folder}: {no_run(folder)}")
    doubts: list[str] = []
    arguments = _arguments(folder / "args", doubts)
    try:
        config, foreign = LAB.translate(arguments)
        accumulation = int(arguments.get("gradient_accumulation_steps") or 1)
        interval = int(arguments.get("eval_every") or REFERENCE_INTERVAL)
        check_step(accumulation)
        check_step(interval)
        data = [
            None if arguments.get(name) is None else int(arguments[name])
            for name in ("nInputFeatures", "nDays")
        ]
    except (TypeError, ValueError, ArithmeticError) as error:
        raise DataError(
            f"{folder / 'args'}: a value of no sense ({error}). Valid: the numbers that the "
            "trainer was given"
        ) from None
    config = checked_config(config, doubts)
    doubts += foreign
    _doubt_arguments(arguments, folder.name, config, bool(foreign), doubts)
    rows, split = _metrics(folder / "metrics.jsonl", doubts)
    rows = one_start(rows, doubts)
    stats = _stats(folder / "trainingStats", doubts)
    if rows:
        _compare(rows, stats, doubts)
    elif stats:
        doubts.append(
            "no metrics.jsonl: the curve is trainingStats's, its steps are not recorded and "
            f"counted as every {interval} batches"
        )
        rows = [{"step": interval * number, **row} for number, row in enumerate(stats)]
        split = "test"
    else:
        doubts.append("never started: no evaluation is recorded")
    if accumulation > 1:
        doubts.append(
            f"gradient accumulation {accumulation}: steps are recorded in batches, here divided "
            f"by {accumulation} to updates"
        )
        rows = [row | {"step": row["step"] // accumulation} for row in rows]
    n_features, n_days = data
    steps = config.get("steps")
    read = PastRun(
        folder.name, str(folder), config, (), steps, split, (), tuple(foreign), n_features, n_days
    )
    run = finished(read, rows, doubts)
    return _with_lr_checked(run) if rows else run


def _arguments(path: Path, doubts: list[str]) -> dict[str, Any]:
    if not path.is_file():
        doubts.append("no args: its configuration is not recorded")
        return {}
    arguments = LAB.read(path)
    if not isinstance(arguments, dict):
        raise DataError(f"{path}: a pickled {type(arguments).__name__}. Valid: a dict of arguments")
    return arguments


def checked_config(config: Mapping[str, Any], doubts: list[str]) -> dict[str, Any]:
    """With the fields' types; a value that a field cannot have is left out, with a doubt."""
    valid: dict[str, Any] = {}
    for name, value in config.items():
        try:
            valid[name] = CONFIG().with_values({name: value}).flat()[name]
        except SpecError as error:
            doubts.append(f"left out: {error}")
    return valid


def _doubt_arguments(
    arguments: Mapping[str, Any],
    name: str,
    config: Mapping[str, Any],
    foreign: bool,
    doubts: list[str],
) -> None:
    if not arguments:
        return
    if (called := arguments.get("run_name", name)) != name:
        doubts.append(f"args call the run {called}: they may be another's")
    if "optimizer.eps" not in config and config.get("optimizer.name") != "sgd":
        doubts.append(
            "args do not record eps: neural_seq_decoder's code has 0.1, its descendants' 1e-8. "
            "It is left out"
        )
    groups = (
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
    if missing := [
        name for name in groups if name not in config and not (foreign and name == "schedule.name")
    ]:
        doubts.append(f"args do not record {', '.join(missing)}: left out")
    if config.get("optimizer.ema_decay"):
        doubts.append(
            f"evaluated with averaged weights (EMA {config['optimizer.ema_decay']}), which look "
            "worst early"
        )


def _metrics(path: Path, doubts: list[str]) -> tuple[list[Row], str | None]:
    """(rows, the split that they were scored on)."""
    if not path.is_file():
        return [], None
    tokens: dict[str, list[Any]] = {}
    entries, splits, old_name = [], [], False
    unread: dict[int, str] = {}
    skipped: Any = 0  # counted from the start
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            old_name = old_name or ("per" not in entry and "cer" in entry)
            row = {
                "step": float(entry["step"]),
                "per": float(entry["cer" if "per" not in entry else "per"]),
            }
            check_step(row["step"])
            row |= {
                ours: float(entry[theirs])
                for ours, theirs in (("loss", "ctc_loss"), ("lr", "lr"), ("time", "time_per_batch"))
                if entry.get(theirs) is not None
            }
        except (
            KeyError,
            TypeError,
            ValueError,
            AttributeError,
            OverflowError,
            RecursionError,
        ) as error:  # a JSON error is a ValueError
            cut = number == len(lines) and isinstance(error, json.JSONDecodeError)
            unread[number] = (
                "cut off in mid-line" if cut else f"no evaluation ({type(error).__name__}: {error})"
            )
            continue
        for name, value in entry.items():
            if isinstance(value, float) and not math.isfinite(value):
                tokens.setdefault(name, []).append(entry["step"])
        splits.append(entry.get("eval_split"))
        skipped = entry.get("skipped_updates") or skipped
        entries.append(row)
    doubt_lines("metrics.jsonl line", unread, doubts)
    for name, steps in tokens.items():
        doubts.append(
            f"{name} is NaN or Infinity at step {some(steps)}, tokens that JSON does not have"
        )
    if old_name:
        doubts.append("`cer` in place of `per`: taken as the phoneme error rate")
    if skipped:
        doubts.append(
            f"the trainer skipped {skipped} updates, whose gradients were not finite; its steps "
            "count them"
        )
    _times(entries, doubts)
    return entries, _split([str(split or "test") for split in splits], doubts)


def doubt_lines(what: str, unread: Mapping[int, str], doubts: list[str]) -> None:
    """Of lines that are left out: a doubt each, or one for all if they are many."""
    if len(unread) > LISTED:
        first = next(iter(unread.values()))
        doubts.append(f"{what}s {some(list(unread))}: left out, the first because: {first}")
        return
    doubts += [f"{what} {number}: {why}; left out" for number, why in unread.items()]


def _split(splits: list[str], doubts: list[str]) -> str | None:
    if not splits:
        return None
    split = "validation" if splits[-1] in ("valid", "validation", "val") else splits[-1]
    if split != "test":
        doubts.append(
            f"scored on the split {split}, not on test: its PER is not comparable with that of "
            "runs scored on test"
        )
    if len(set(splits)) > 1:
        doubts.append(
            f"scored on several splits: {', '.join(sorted(set(splits)))}; the last counts"
        )
    return split


def _times(rows: list[Row], doubts: list[str]) -> None:
    """`time` (seconds a batch, evaluation included) becomes `seconds` since the start."""
    if not all(0 <= row.get("time", math.nan) < DAY for row in rows):
        doubts.append(
            "seconds are not recorded for every evaluation, or are no seconds: GPU time is unknown"
        )
        return
    before, total = 0.0, 0.0
    for number, row in enumerate(rows):
        if (
            number == 0 or row["step"] <= before
        ):  # a start; after a fall back the batches in between are not known
            doubts += [
                "the first row's time_per_batch is of one batch and an evaluation, not of what "
                "it says: not counted"
            ] * (number == 0)
            total = 0.0 if row["step"] <= rows[0]["step"] else total
        else:
            total += row["time"] * (row["step"] - before)
        before, row["seconds"] = row["step"], total


def check_step(step: float) -> None:
    if not 0 <= step < 2**53:
        raise ValueError(f"step {step}")


def one_start(rows: list[Row], doubts: list[str]) -> list[Row]:
    """The rows of the last start. Where the step falls back to a later one than the first, the run
    went on from a checkpoint, and the rows after that step were written again.
    """
    kept: list[Row] = []
    for row in rows:
        if kept and row["step"] <= kept[-1]["step"]:
            behind = [old for old in kept if old["step"] >= row["step"]]
            if row["step"] <= kept[0]["step"]:
                doubts.append(
                    f"two runs in one file: the step falls back from {kept[-1]['step']:g} to "
                    f"{row['step']:g}. Kept is the last "
                    f"start alone, not the {len(kept)} evaluations before it; args may be of either"
                )
            else:
                doubts.append(
                    f"the step goes backwards from {kept[-1]['step']:g} to {row['step']:g}: the "
                    f"{len(behind)} evaluations "
                    f"from there on are replaced by the later ones"
                )
            kept = [old for old in kept if old["step"] < row["step"]]
        kept.append(row)
    return kept


def _stats(path: Path, doubts: list[str]) -> list[Row]:
    """trainingStats as rows without steps."""
    if not path.is_file():
        return []
    found = LAB.read(path)
    arrays = (
        {name: found.get(name) for name in ("testPER", "testCER", "testLoss")}
        if isinstance(found, dict)
        else {}
    )
    numbers = {
        name: array
        for name, given in arrays.items()
        if (array := np.asarray(given)).dtype.kind in "biuf"
    }
    per, loss = numbers.get("testPER", numbers.get("testCER")), numbers.get("testLoss")
    if per is None or per.ndim != 1 or (loss is not None and loss.shape != per.shape):
        doubts.append(
            "trainingStats holds no testPER (or testCER) with a testLoss of its length: not used"
        )
        return []
    if "testPER" not in numbers:
        doubts.append(
            "`testCER` in place of `testPER` in trainingStats: taken as the phoneme error rate"
        )
    return [
        {"per": float(per[n])} | ({} if loss is None else {"loss": float(loss[n])})
        for n in range(len(per))
    ]


def _compare(rows: Sequence[Row], stats: Sequence[Row], doubts: list[str]) -> None:
    if not stats:
        return
    if len(stats) != len(rows):
        doubts.append(
            f"trainingStats has {len(stats)} values, metrics.jsonl {len(rows)}: metrics.jsonl "
            "counts"
        )
    for name in ("per", "loss"):
        pairs = [
            (row[name], other[name])
            for row, other in zip(rows, stats, strict=False)
            if name in row and name in other
        ]
        if differing := [
            n for n, (a, b) in enumerate(pairs) if not np.isclose(a, b, rtol=1e-6, equal_nan=True)
        ]:
            where = some([f"{rows[n]['step']:g}" for n in differing])
            doubts.append(
                f"trainingStats has another {name} than metrics.jsonl at step {where}: "
                "metrics.jsonl counts"
            )


def finished(run: PastRun, rows: Sequence[Row], doubts: list[str]) -> PastRun:
    """The run with its curve, and the doubts that a curve can raise whatever it was read from."""
    curve = tuple(
        PastPoint(
            int(row["step"]),
            row["per"],
            row.get("loss"),
            row.get("seconds"),
            row.get("lr"),
            row.get("train_loss"),
        )
        for row in rows
    )
    name = run.metric.name
    if curve and any(point.seconds is None for point in curve):
        curve = tuple(replace(point, seconds=None) for point in curve)
    run = replace(run, curve=curve)
    if any(point.loss is None for point in curve):
        doubts.append(
            "no loss is recorded for some evaluations: a rule that looks at it does not see these"
        )
    if strange := [
        point.step
        for point in curve
        if not (math.isfinite(point.value) and math.isfinite(point.loss or 0))
    ]:
        doubts.append(f"{name} or loss is not finite at step {some(strange)}")
    if high := run.high_points:
        most = max(point.value for point in high)
        doubts.append(
            f"{name} above 1 at step {some([point.step for point in high])}, highest {most:.4g}: "
            "insertions, or percent"
        )
    if run.no_error_rate:
        doubts.append(run.no_error_rate)
    elif run.tells_fractions and run.metric.bounded and (run.best_value or 0) > 1:
        doubts.append(f"no {name} at or below 1: it has learned nothing yet, or they are percent")
    steps = [point.step for point in curve]
    if lost := [
        step for a, b in pairwise(steps) for step in range(a + run.interval, b, run.interval)
    ]:
        doubts.append(f"no evaluation at step {some(lost)}, every {run.interval} updates elsewhere")
    if curve and run.steps is None:
        doubts.append("its planned length is not recorded")
    elif curve and not run.reached_its_plan:
        doubts.append(
            f"ended at step {steps[-1]} of {run.steps} planned, by hand or dead: its last {name} "
            "is not a whole training's"
        )
    split = None if run.split is None else printable(run.split)
    return replace(
        run,
        split=split,
        doubts=tuple(map(printable, doubts)),
        foreign=tuple(map(printable, run.foreign)),
    )


def printable(text: str) -> str:
    """What a file says must not steer the terminal that shows it."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _interval(steps: Sequence[int]) -> int:
    """The most common distance between evaluations."""
    gaps = Counter(b - a for a, b in pairwise(steps) if b > a)
    return gaps.most_common(1)[0][0] if gaps else 1


def _with_lr_checked(run: PastRun) -> PastRun:
    """Whether the recorded learning rates are those of the schedule in args; if not, the schedule
    is not known.
    """
    lr, name = run.config.get("optimizer.lr"), run.config.get("schedule.name")
    if lr is None or name in (None, "plateau"):
        return run
    fields = {
        field: value
        for field, value in run.config.items()
        if field.startswith("schedule.") or field == "steps"
    }
    config = CONFIG().with_values(fields)
    for point in run.curve:
        planned = lr * LAB.lr_factor(config, point.step)
        if point.lr is not None and abs(point.lr - planned) > 0.05 * lr:
            what = (
                f"learning rate {point.lr:.3g} at step {point.step}, where args's {name} schedule "
                f"has {planned:.3g}: schedule left out"
            )
            known = {
                field: value
                for field, value in run.config.items()
                if not field.startswith("schedule.")
            }
            return replace(
                run, config=known, doubts=(*run.doubts, what), foreign=(*run.foreign, what)
            )
    return run


def some(items: Sequence[Any]) -> str:
    return ", ".join(map(str, items[:LISTED])) + (
        f" and {len(items) - LISTED} more" if len(items) > LISTED else ""
    )
