"""The trials of a study as a table."""

from datetime import UTC, datetime

from rich.console import Group
from rich.table import Table
from rich.text import Text

from hpo.space.budget import Budget, Pace, seconds_left
from hpo.study.pick import best_of
from hpo.study.trial import DONE, Record
from hpo.text import duration
from hpo.trainer import Metric

ROWS = 18  # trials shown: those that run, and the last of the others
STYLES = {
    "running": "bold",
    "complete": "green",
    "stopped": "yellow",
    "failed": "red",
    "waiting": "dim",
}


def trial_table(records: list[Record], budget: Budget, metric: Metric) -> Group:
    """A picture of the study: one row a trial, and a line of totals."""
    table = Table(box=None, pad_edge=False)
    for title in ("trial", "state", "step", metric.name, "best", ""):
        table.add_column(
            title, justify="left" if title in ("state", "") else "right", no_wrap=title != ""
        )
    for record in _shown(records):
        table.add_row(
            str(record.number),
            Text(record.state, style=STYLES[record.state]),
            f"{record.step} of {record.steps}" if record.steps else "",
            shown_value(record.last_value, metric),
            shown_value(record.best_value, metric),
            Text(_remark(record)),  # not markup: reasons may have brackets
        )
    return Group(table, Text(totals(records, budget, metric)))


def totals(records: list[Record], budget: Budget, metric: Metric) -> str:
    done = sum(record.state in DONE for record in records)
    best, left = best_of(records, metric), _seconds_left(records, budget)
    parts = [trials_done(done, budget.trials)]
    if best is not None and best.value is not None:
        parts.append(f"best {metric.name} {metric.text(best.value)} (trial {best.number})")
    if left is not None:
        parts.append(f"about {duration(left)} to go")
    return ", ".join(parts)


def trials_done(done: int, budget: int) -> str:
    return f"{done} of {budget} trials done"


def _seconds_left(records: list[Record], budget: Budget) -> float | None:
    running = [record for record in records if record.state == "running"]
    ended = [record for record in records if record.state in ("complete", "stopped")]
    pace = Pace(
        steps=sum(record.step for record in records),
        seconds=sum(record.seconds for record in records),
        gpu_seconds=sum(record.gpu_seconds for record in records),
        typical=sum(record.step for record in ended) / len(ended) if ended else None,
        begun=sum(record.state in (*DONE, "running") for record in records),
        running=len(running),
        to_come=sum(record.steps - record.step for record in running),
    )
    return seconds_left(budget, pace, datetime.now(UTC))


def _shown(records: list[Record]) -> list[Record]:
    running = [record for record in records if record.state == "running"]
    others = [record for record in records if record.state != "running"]
    kept = others[-max(0, ROWS - len(running)) :] if len(running) < ROWS else []
    return sorted(kept + running, key=lambda record: record.number)


def shown_value(value: float | None, metric: Metric) -> str:
    return "" if value is None else metric.short(value)


def _remark(record: Record) -> str:
    return ": ".join(
        part
        for part in (f"start {record.start}" if record.start else "", record.label, record.reason)
        if part
    )
