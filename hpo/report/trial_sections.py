"""The sections about the trials themselves: their curves, what was stopped, and a table of them."""

from itertools import accumulate

import numpy as np

from hpo.report import report_pictures as pictures
from hpo.report.blocks import see_status
from hpo.report.page import Block, Picture, Table, Text
from hpo.report.report import stopped_by_rule
from hpo.report.report_data import ReportData
from hpo.space.budget import hours_unit
from hpo.study.record import ran_on_cpus
from hpo.study.trial import LEARNED_NOTHING, Record
from hpo.text import duration, plural, value_text
from hpo.trainer import Metric

# Trials in the table.
ROWS = 200


def trials_over_time(data: ReportData) -> list[Block]:
    metric = data.metric
    curves = _curves(data)
    if not curves:
        return [see_status(data, "No trial has been evaluated yet.")]
    count = plural(len(curves), "trial")
    caption = f"Validation {metric.name} of {count}; marks show where one was stopped."
    blocks: list[Block] = [Picture(pictures.curves(curves, metric), caption)]
    blocks += _histories(data)
    blocks += [Text(line, "note") for line in _stopped_and_failed(data)]
    return blocks


def _curves(data: ReportData) -> list[pictures.Curve]:
    """The finite part of each trial's curve, the best trial first."""
    best = data.report["best"]
    best_number = best["trial"] if best else None
    labels = _labels(data)
    curves = []
    # Sorting keeps the order of trials whose keys are equal.
    for record in sorted(data.records, key=lambda record: record.number != best_number):
        points = [point for point in data.curves[record.number] if np.isfinite(point.value)]
        if not points:
            continue
        stopped = ""
        if record.state == "stopped":
            stopped = record.cause or record.rule
        curves.append(
            pictures.Curve(
                steps=[point.step for point in points],
                values=[point.value for point in points],
                stopped=stopped,
                label=labels.get(record.number, ""),
            )
        )
    return curves


def _labels(data: ReportData) -> dict[int, str]:
    """Names of the trials that are highlighted, by number: the starts and the best."""
    labels = {
        record.number: f"{record.start} (trial {record.number})"
        for record in data.records
        if record.start
    }
    best = data.report["best"]
    if best:
        number = best["trial"]
        labels[number] = f"trial {number}, best"
        for name, start in data.report["starts"].items():
            if start["trial"] == number:
                labels[number] += f" ({name})"
                break
    return labels


def _histories(data: ReportData) -> list[Block]:
    """The final values by trial number and by time; empty until a trial is complete."""
    metric = data.metric
    numbers: list[int] = []
    values: list[float] = []
    hours: list[float] = []
    starts: dict[str, int] = {}
    spent = accumulate(record.gpu_seconds for record in data.records)
    for record, seconds in zip(data.records, spent, strict=True):
        if record.value is None:
            continue
        if record.start:
            starts[record.start] = len(numbers)
        numbers.append(record.number)
        values.append(record.value)
        hours.append(seconds / 3600)
    if not numbers:
        return []
    by_number = pictures.history(numbers, values, starts, "trial", metric)
    unit = hours_unit(ran_on_cpus(data.records))
    by_hours = pictures.history(hours, values, starts, f"{unit} of all workers", metric)
    caption = (
        f"Final {metric.name} of each complete trial, in the order of trial numbers, "
        "and the best so far."
    )
    return [
        Picture(by_number, caption),
        Picture(by_hours, caption),
    ]


def _stopped_and_failed(data: ReportData) -> list[str]:
    report = data.report
    lines = []
    by_cause = stopped_by_rule(report)
    by_hand = report["stopped_by_hand"]
    if by_cause:
        causes = ", ".join(
            f"{count} {pictures.cause_text(cause, data.metric)}"
            for cause, count in by_cause.items()
        )
        saved = duration(report["gpu_seconds"]["saved"])
        lines.append(
            f"Stopped early: {report['trials']['stopped'] - by_hand} ({causes}), "
            f"which saved {saved} of worker time."
        )
    if by_hand:
        lines.append(f"Stopped by hand: {by_hand}.")
    lines += [f"Failed: {count} x {reason}" for reason, count in report["failed_because"].items()]
    return lines


def trial_list(data: ReportData) -> list[Block]:
    """A table of the trials, by number; of many trials, the starts and the best."""
    if not data.records:
        return []
    metric = data.metric
    ranked = sorted(data.records, key=lambda record: _rank(record, metric))
    kept = sorted(ranked[:ROWS], key=lambda record: record.number)
    rows = [_trial_row(record, data) for record in kept]
    head = ("trial", "start", "state", metric.name, "reason", "parameters", "ran on", "time")
    blocks: list[Block] = []
    if len(data.records) > ROWS:
        shown = f"The starts and the best of {len(data.records)} trials."
        command = f"`hpo status --study {data.study} --json`"
        blocks.append(Text(f"{shown} To see all of them, run {command}.", "note"))
    blocks.append(Table(head, rows, long=("reason", "parameters", "ran on")))
    return blocks


def _rank(record: Record, metric: Metric) -> tuple[bool, bool, float, int]:
    """Sorts the starts first, then the others, best first."""
    value = record.value
    return record.start is None, value is None, metric.sign * (value or 0.0), record.number


def _trial_row(record: Record, data: ReportData) -> tuple[str, ...]:
    best = data.report["best"]
    number = str(record.number)
    if best is not None and best["trial"] == record.number:
        number += ", best"
    state: str = record.state
    if record.learned_nothing:
        state += f", {LEARNED_NOTHING}"
    if record.state != "complete" and record.steps:
        state += f", {record.step} of {record.steps}"
    return (
        number,
        record.start or "",
        state,
        "" if record.value is None else data.metric.text(record.value),
        record.reason,
        ", ".join(f"{name} {value_text(value)}" for name, value in record.params.items()),
        " ".join(part for part in (record.host, record.device) if part),
        duration(record.seconds),
    )
