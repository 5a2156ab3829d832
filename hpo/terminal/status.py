"""The trials of a study as a table."""

from collections.abc import Sequence
from datetime import UTC, datetime

from rich.console import Group
from rich.table import Table
from rich.text import Text

from hpo.space.budget import Budget, Pace, seconds_left
from hpo.study.pick import best_of
from hpo.study.trial import DONE, LEARNED_NOTHING, Record, State
from hpo.text import duration
from hpo.trainer import Metric

# Trials that are shown: all that are running, and the last of the others.
ROWS = 18
STYLES = {
    "running": "bold",
    "complete": "green",
    "stopped": "yellow",
    "failed": "red",
    "waiting": "dim",
}


def style_of(state: State, nothing: bool) -> str:
    """The style of a state. nothing: whether the training learned nothing."""
    return STYLES["stopped"] if nothing else STYLES[state]


def trial_table(records: Sequence[Record], budget: Budget, metric: Metric) -> Group:
    """A study's trials, one per row, and a line of totals."""
    table = Table(box=None, pad_edge=False)
    table.add_column("trial", justify="right", no_wrap=True)
    table.add_column("state", no_wrap=True)
    for title in ("step", metric.name, "best"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("")
    for record in _shown(records):
        table.add_row(
            str(record.number),
            Text(record.state, style=style_of(record.state, record.learned_nothing)),
            f"{record.step} of {record.steps}" if record.steps else "",
            shown_value(record.last_value, metric),
            shown_value(record.best_value, metric),
            # A Text, because brackets in a reason would be taken for markup.
            Text(_remark(record)),
        )
    return Group(table, Text(totals(records, budget, metric)))


def totals(records: Sequence[Record], budget: Budget, metric: Metric) -> str:
    done = sum(record.state in DONE for record in records)
    parts = [trials_done(done, budget.trials)]
    best = best_of(records, metric)
    if best is not None and best.value is not None:
        parts.append(f"best {metric.name} {metric.text(best.value)} (trial {best.number})")
    left = _seconds_left(records, budget)
    if left is not None:
        parts.append(f"about {duration(left)} to go")
    return ", ".join(parts)


def trials_done(done: int, budget: int) -> str:
    return f"{done}/{budget} trials done"


def _seconds_left(records: Sequence[Record], budget: Budget) -> float | None:
    running = [record for record in records if record.state == "running"]
    ended = [record for record in records if record.state in ("complete", "stopped")]
    typical = sum(record.step for record in ended) / len(ended) if ended else None
    pace = Pace(
        steps=sum(record.step for record in records),
        seconds=sum(record.seconds for record in records),
        gpu_seconds=sum(record.gpu_seconds for record in records),
        typical=typical,
        started=sum(record.state in (*DONE, "running") for record in records),
        running=len(running),
        steps_left=sum(record.steps - record.step for record in running),
    )
    return seconds_left(budget, pace, datetime.now(UTC))


def _shown(records: Sequence[Record]) -> list[Record]:
    """The trials that are shown, by number."""
    shown = [record for record in records if record.state == "running"]
    room = ROWS - len(shown)
    if room > 0:
        others = [record for record in records if record.state != "running"]
        shown += others[-room:]
    return sorted(shown, key=lambda record: record.number)


def shown_value(value: float | None, metric: Metric) -> str:
    """A value in a table; empty where it is not known."""
    return "" if value is None else metric.short(value)


def _remark(record: Record) -> str:
    start = f"start {record.start}" if record.start else ""
    mark = LEARNED_NOTHING if record.learned_nothing else ""
    return ": ".join(part for part in (start, record.label, record.reason, mark) if part)
