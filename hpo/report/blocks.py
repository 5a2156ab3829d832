"""Blocks and table cells that several sections of the report share."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hpo.report.page import Block, Table, Text
from hpo.report.report_data import ReportData
from hpo.trainer import Metric

# The command that makes each kind of finding.
COMMANDS = {
    "confirm": "hpo confirm",
    "effects": "hpo effects",
    "ablation": "hpo ablate --from START --to best",
    "questions": "hpo ablate --questions",
    "ensemble": "hpo ensemble",
}


def missing(data: ReportData, kind: str, what: str) -> Text:
    """Says what has not been measured, and which command measures it."""
    return Text(f"{what} Run `{COMMANDS[kind]} --study {data.study}`.", "missing")


def see_status(data: ReportData, what: str) -> Text:
    return Text(f"{what} See `hpo status --study {data.study}`.", "missing")


def no_complete_trial(data: ReportData) -> Text:
    return see_status(data, "No trial is complete yet.")


def notes_of(finding: Mapping[str, Any]) -> list[Block]:
    """The finding's own notes, and when it was made."""
    made = finding["made"][:16].replace("T", " ")
    notes = [*finding.get("notes", []), f"Recorded {made} UTC."]
    return [Text(note, "note") for note in notes]


def comparison_table(comparisons: Iterable[tuple[str, Mapping[str, Any]]], metric: Metric) -> Table:
    """A row for each pair of a title and a comparison."""
    rows = []
    for title, comparison in comparisons:
        undecided = comparison.get("decided") is False
        rows.append(
            (
                title,
                metric.difference(comparison["difference"]),
                differences_cell(comparison["interval"], metric),
                p_cell(comparison["p"]),
                p_cell(comparison.get("p_holm")),
                "not decided" if undecided else "",
            )
        )
    head = ("difference", metric.difference_unit, "95 % interval", "p", "p (Holm)", "")
    return Table(head, rows)


def value_cell(value: float | None, metric: Metric) -> str:
    return "-" if value is None else metric.text(value)


def trial_cell(number: int | None) -> str:
    return "-" if number is None else str(number)


def differences_cell(interval: Sequence[float] | None, metric: Metric) -> str:
    """The interval of a difference."""
    if interval is None:
        return "-"
    low, high = interval
    return f"{metric.difference(low)} to {metric.difference(high)}"


def p_cell(p: float | None) -> str:
    return "-" if p is None else f"{p:.2g}"
