"""What all readers of past runs share: from the rows of a file to a run with its warnings."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from hpo.errors import SpecError
from hpo.past.past_runs import CONFIG, LISTED, PastPoint, PastRun, printable, some

# One evaluation as read: step, per (the value of the metric) and, where they are recorded, loss,
# train_loss, seconds (since the start of the run) and lr.
Row = dict[str, float]


def check_step(step: float) -> None:
    """Raises ValueError for a number that cannot be a step."""
    if not 0 <= step < 2**53:
        raise ValueError(f"step {step}")


def checked_config(config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """(the configuration with the types of its fields, the fields that are left out because they
    cannot have the recorded value -> why).
    """
    valid: dict[str, Any] = {}
    left_out: dict[str, str] = {}
    for name, value in config.items():
        try:
            valid[name] = CONFIG().with_values({name: value}).flat()[name]
        except SpecError as error:
            left_out[name] = f"left out: {error}"
    return valid, left_out


def warn_of_unread_lines(what: str, unread: Mapping[int, str], warnings: list[str]) -> None:
    """Adds a warning for each line that is left out, or one for all of them if they are many.

    unread: line number -> why it is left out.
    """
    if len(unread) > LISTED:
        first = next(iter(unread.values()))
        warnings.append(f"{what}s {some(list(unread))}: left out, the first because: {first}")
        return
    warnings += [f"{what} {number}: {why}; left out" for number, why in unread.items()]


def keep_last_start(rows: Sequence[Row], warnings: list[str]) -> list[Row]:
    """The rows of the last start, without those that were written again.

    Where the step falls back, but not to the first one, the run was resumed from a checkpoint: the
    rows from that step on are replaced by the later ones.
    """
    kept: list[Row] = []
    for row in rows:
        if kept and row["step"] <= kept[-1]["step"]:
            warnings.append(_fallen_back(kept, row["step"]))
            kept = [old for old in kept if old["step"] < row["step"]]
        kept.append(row)
    return kept


def _fallen_back(kept: Sequence[Row], step: float) -> str:
    last = kept[-1]["step"]
    if step <= kept[0]["step"]:
        return (
            f"two runs in one file: the step falls back from {last:g} to {step:g}. Only the last "
            f"start is kept, without the {len(kept)} evaluations before it; args may belong to "
            "either"
        )
    replaced = [old for old in kept if old["step"] >= step]
    return (
        f"the step goes backwards from {last:g} to {step:g}: the {len(replaced)} evaluations "
        "from there on are replaced by the later ones"
    )


def with_curve(run: PastRun, rows: Sequence[Row], warnings: Sequence[str]) -> PastRun:
    """The run with the curve of these rows. Its warnings are those given and those that any curve
    can raise, whatever it was read from.
    """
    run = replace(run, curve=_curve(rows))
    all_warnings = [
        *warnings,
        *_merged_warnings(rows, run.curve),
        *_value_warnings(run),
        *_step_warnings(run),
    ]
    return replace(
        run,
        split=None if run.split is None else printable(run.split),
        warnings=tuple(printable(warning) for warning in all_warnings),
        foreign=tuple(printable(reason) for reason in run.foreign),
        unknown=tuple(printable(name) for name in run.unknown),
    )


def _curve(rows: Sequence[Row]) -> tuple[PastPoint, ...]:
    """A point for each step: the last one, where several rows have the same."""
    are_timed = all("seconds" in row for row in rows)
    last_rows = {int(row["step"]): row for row in rows}
    return tuple(
        PastPoint(
            step=step,
            value=row["per"],
            loss=row.get("loss"),
            seconds=row["seconds"] if are_timed else None,
            lr=row.get("lr"),
            train_loss=row.get("train_loss"),
        )
        for step, row in last_rows.items()
    )


def _merged_warnings(rows: Sequence[Row], curve: Sequence[PastPoint]) -> list[str]:
    if len(curve) == len(rows):
        return []
    counts = Counter(int(row["step"]) for row in rows)
    steps = [step for step, count in counts.items() if count > 1]
    return [f"several evaluations at step {some(steps)}: the last of each counts"]


def _value_warnings(run: PastRun) -> list[str]:
    """Warnings about values and losses."""
    warnings: list[str] = []
    name = run.metric.name
    if any(point.loss is None for point in run.curve):
        warnings.append(
            "no loss is recorded for some evaluations: a rule that judges the loss ignores them"
        )
    not_finite = [point.step for point in run.curve if not _is_finite(point)]
    if not_finite:
        warnings.append(f"{name} or loss is not finite at step {some(not_finite)}")
    suspicious = run.suspicious_points
    if suspicious:
        steps = [point.step for point in suspicious]
        highest = max(point.value for point in suspicious)
        warnings.append(
            f"{name} above 1 at step {some(steps)}, highest {highest:.4g}: insertions, or percent"
        )
    if run.metric_fault:
        warnings.append(run.metric_fault)
    elif run.values_are_fractions and run.metric.bounded and (run.best_value or 0) > 1:
        warnings.append(
            f"no {name} at or below 1: it has learned nothing yet, or the values are percent"
        )
    return warnings


def _is_finite(point: PastPoint) -> bool:
    return math.isfinite(point.value) and math.isfinite(point.loss or 0)


def _step_warnings(run: PastRun) -> list[str]:
    """Warnings about missing evaluations and about the planned end."""
    if not run.curve:
        return []
    warnings: list[str] = []
    interval = run.interval
    steps = [point.step for point in run.curve]
    missing: list[int] = []
    for before, after in pairwise(steps):
        missing += range(before + interval, after, interval)
    if missing:
        warnings.append(
            f"no evaluation at step {some(missing)}, every {interval} updates elsewhere"
        )
    if run.steps is None:
        warnings.append("its planned length is not recorded")
    elif not run.reached_its_plan:
        warnings.append(
            f"ended at step {steps[-1]} of {run.steps} planned, stopped by hand or crashed: its "
            f"last {run.metric.name} is not that of a whole training"
        )
    return warnings
