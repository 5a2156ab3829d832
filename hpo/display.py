"""The trials of a study on a terminal: a live table, or a line per event where the output is no terminal."""

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from hpo.evidence.report import best_of, duration, percent
from hpo.search.study import Record

ROWS = 18  # trials shown: those that run, and the last of the others
STYLES = {"running": "bold", "complete": "green", "stopped": "yellow", "failed": "red", "waiting": "dim"}


def trial_table(records: list[Record], budget: int) -> Group:
    """A picture of the study: one row a trial, and a line of totals."""
    table = Table(box=None, pad_edge=False)
    for title in ("trial", "state", "step", "PER", "best", ""):
        table.add_column(title, justify="left" if title in ("state", "") else "right", no_wrap=title != "")
    for record in _shown(records):
        table.add_row(
            str(record.number),
            Text(record.state, style=STYLES[record.state]),
            f"{record.step} of {record.steps}" if record.steps else "",
            _per(record.last_per),
            _per(record.best_per),
            Text(_remark(record)),  # not markup: reasons may have brackets
        )
    return Group(table, Text(totals(records, budget)))


def totals(records: list[Record], budget: int) -> str:
    ended = sum(record.state in ("complete", "stopped") for record in records)
    best, left = best_of(records), seconds_left(records, budget)
    parts = [f"{ended} of {budget} trials done"]
    if best is not None and best.per is not None:
        parts.append(f"best PER {percent(best.per)} (trial {best.number})")
    if left is not None:
        parts.append(f"about {duration(left)} to go")
    return ", ".join(parts)


def seconds_left(records: list[Record], budget: int) -> float | None:
    """An estimate of the time to the end of the study, from the pace so far; None before there is any."""
    steps = sum(record.step for record in records)
    running = [record for record in records if record.state == "running"]
    ended = [record for record in records if record.state in ("complete", "stopped")]
    if not steps or not running:
        return None
    typical = sum(record.step for record in ended) / len(ended) if ended else float(running[0].steps)
    to_come = max(0, budget - len(ended) - len(running)) * typical + sum(record.steps - record.step for record in running)
    pace = sum(record.seconds for record in records) / steps
    return to_come * pace / len(running)


def _shown(records: list[Record]) -> list[Record]:
    running = [record for record in records if record.state == "running"]
    others = [record for record in records if record.state != "running"]
    kept = others[-max(0, ROWS - len(running)) :] if len(running) < ROWS else []
    return sorted(kept + running, key=lambda record: record.number)


def _per(per: float | None) -> str:
    return "" if per is None else f"{100 * per:.1f} %"


def _remark(record: Record) -> str:
    return ": ".join(part for part in (f"start {record.start}" if record.start else "", record.reason) if part)


class Display:
    """Shows records again and again: a live table on a terminal, else a line whenever a trial's state changes."""

    def __init__(self, console: Console, budget: int):
        self._console = console
        self._budget = budget
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None
        self._seen: dict[int, str] | None = None

    def __enter__(self) -> "Display":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def __call__(self, records: list[Record]) -> None:
        try:
            if self._live:
                self._live.update(trial_table(records, self._budget), refresh=True)
            else:
                self._print_changes(records)
        except OSError:
            self._live = None  # the terminal was closed; the study goes on

    def _print_changes(self, records: list[Record]) -> None:
        if self._seen is None:  # what had ended before is no news
            self._seen = {record.id: record.state for record in records if record.state not in ("running", "waiting")}
        for record in records:
            if record.state != self._seen.get(record.id) and record.state != "waiting":
                per = f", PER {percent(record.last_per)}" if record.last_per is not None and record.state != "running" else ""
                step = f" at step {record.step} of {record.steps}" if record.steps else ""
                remark = _remark(record)
                self._console.print(
                    f"trial {record.number} {record.state}{step}{per}{f' ({remark})' if remark else ''}; {totals(records, self._budget)}",
                    highlight=False, markup=False, soft_wrap=True,
                )  # fmt: skip
            self._seen[record.id] = record.state
