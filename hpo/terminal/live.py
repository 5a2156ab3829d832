"""A study that runs: a picture on a terminal, or a line whenever something has changed where the output is no terminal.

`hpo launch` and `hpo status --watch` show the same, made of a `Snapshot`.
"""

import time
from collections.abc import Sequence
from datetime import datetime
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from hpo.errors import DatabaseError
from hpo.study.reader import StudyReader
from hpo.terminal.snapshot import Ended, Snapshot, snapshot
from hpo.terminal.status import STYLES, shown_value, trials_done
from hpo.text import duration
from hpo.trainer import Metric

LOOK_SECONDS = 2.0
BARS = "▁▂▃▄▅▆▇█"
AWAY = "The database does not answer. Workers train on, and tell everything when it does."
BACK = "The database answers again."


class LiveView:
    """Of one study, in a `with` block; `look` is called again and again."""

    def __init__(
        self, study: StudyReader, console: Console, screen: bool = False, tell_all: bool = True
    ):
        """screen: the picture fills the terminal. tell_all: lines begin with what had ended before."""
        self.study = study
        self.seen: Snapshot | None = None
        self._console, self._tell_all = console, tell_all
        self._live = (
            Live(console=console, screen=screen, auto_refresh=False)
            if console.is_terminal
            else None
        )
        self._looked = 0.0
        self._away: datetime | None = None

    def __enter__(self) -> Self:
        if not self._tell_all:
            self._read()
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.look(at_once=True)
        if self._live:
            self._live.stop()

    def look(self, at_once: bool = False) -> bool:
        """Show the study as it is, if the last look was LOOK_SECONDS ago. Returns whether the database answers."""
        if at_once or time.monotonic() - self._looked >= LOOK_SECONDS:
            before, was_away = self.seen, self._away
            self._read()
            self._looked = time.monotonic()
            try:
                self._show(before, was_away)
            except OSError:  # the terminal was closed; the study goes on
                self._live = None
        return self._away is None

    def _read(self) -> None:
        try:
            self.seen, self._away = snapshot(self.study), None
        except DatabaseError:
            self._away = self._away or datetime.now()

    def _show(self, before: Snapshot | None, was_away: datetime | None) -> None:
        if self._live:
            if self.seen:
                self._live.update(
                    watch_picture(self.seen, self._console.height, self._away), refresh=True
                )
            return
        if (self._away is None) != (was_away is None):
            self._print(AWAY if self._away else BACK)
        if self.seen and not self._away:
            for line in changes(before, self.seen):
                self._print(line)

    def _print(self, line: str) -> None:
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)


def sparkline(values: Sequence[float], width: int = 12) -> str:
    """The last `width` values, each as a bar between the lowest and the highest of them."""
    shown = values[-width:]
    low, high = min(shown, default=0.0), max(shown, default=0.0)
    return "".join(
        BARS[round((value - low) / ((high - low) or 1) * (len(BARS) - 1))] for value in shown
    )


def watch_picture(seen: Snapshot, height: int, away: datetime | None) -> Group:
    """A study on a screen of 80 columns and `height` rows. away: since when the database does not answer."""
    lines = [
        Text(f"{seen.name}: {', '.join(_counts(seen))}"),
        Text(
            f"budget {seen.budget}; spent {'; '.join([f'{seen.spent.gpu_seconds / 3600:.3g} GPU-hours', *_to_go(seen)])}",
            style="dim",
        ),
    ]
    starts = [f"{name} {seen.metric.text(start.value) if start.value is not None else start.state}{_behind(start.value, seen)}"
              for name, start in seen.starts.items()]  # fmt: skip
    lines.append(Text(f"starts: {', '.join(starts) or 'none'}", style="dim"))
    if seen.halt:
        lines.append(Text(f"{seen.halt}; hpo resume --study {seen.name} goes on", style="yellow"))
    if away:
        lines.append(
            Text(f"database away since {away:%H:%M:%S}; what is below is from before", style="red")
        )
    room = max(2, height - 2 - sum(1 + len(line) // 80 for line in lines))
    table = Table(box=None, pad_edge=False, collapse_padding=True)
    for title in ("trial", "worker", "step", "steps/s", "GiB", "lease", seen.metric.name, "curve"):
        table.add_column(
            title,
            justify="left" if title in ("worker", "curve") else "right",
            no_wrap=True,
            max_width=22,
        )
    shown = seen.running[: max(1, room * 2 // 3)]
    for trial in shown:
        rate = "" if trial.rate is None else f"{trial.rate:.2f}"
        memory = "" if trial.memory is None else f"{trial.memory / 2**30:.1f}"
        value = shown_value(trial.values[-1] if trial.values else None, seen.metric)
        table.add_row(str(trial.number), f"{trial.host} {trial.device}", f"{trial.step}/{trial.steps}", rate, memory,
                      f"{trial.lease_age:.0f} s", value, sparkline(trial.values))  # fmt: skip
    more = (
        [Text(f"and {len(seen.running) - len(shown)} more run", style="dim")]
        if len(seen.running) > len(shown)
        else []
    )
    left = max(0, room - len(shown) - len(more) - 2)
    ended = [Text(f"{trial.number:>5} {outcome(trial, seen.metric)}", style=STYLES[trial.state], no_wrap=True, overflow="ellipsis")
             for trial in seen.ended[:left]]  # fmt: skip
    return Group(
        *lines,
        Text(),
        table if seen.running else Text("no trial runs", style="dim"),
        *more,
        Text(),
        *ended,
    )


def _behind(value: float | None, seen: Snapshot) -> str:
    """Of a start: how far it lies behind the best trial."""
    if value is None or seen.best is None or not seen.metric.better(seen.best[1], value):
        return ""
    return f" ({seen.metric.difference(value - seen.best[1])})"


def _counts(seen: Snapshot) -> list[str]:
    spent = seen.spent
    parts = [
        trials_done(spent.ended, seen.budget.trials),
        f"{len(seen.running)} run",
        f"{seen.waiting} wait",
    ]
    parts += [f"{seen.spent.failed} failed"] if seen.spent.failed else []
    return (
        [*parts, f"best {seen.metric.name} {seen.metric.text(seen.best[1])} (trial {seen.best[0]})"]
        if seen.best
        else parts
    )


def _to_go(seen: Snapshot) -> list[str]:
    return [f"about {duration(seen.seconds_left)} to go"] if seen.seconds_left is not None else []


def watch_totals(seen: Snapshot) -> str:
    return ", ".join(_counts(seen) + _to_go(seen))


def _called(trial: Ended) -> str:
    return f" ({trial.name})" if trial.name else ""


def outcome(trial: Ended, metric: Metric) -> str:
    value = f" {metric.name} {metric.text(trial.value)}" if trial.value is not None else ""
    return f"{trial.state}{value}{f': {trial.reason}' if trial.reason else ''}"


def changes(before: Snapshot | None, now: Snapshot) -> list[str]:
    """What happened in between, a line each; all of it if there was no before."""
    old = {trial.number for trial in before.ended} if before else set()
    ran = {trial.number for trial in before.running} if before else set()
    ended = [trial for trial in reversed(now.ended) if trial.number not in old]
    lines = [
        f"trial {trial.number}{_called(trial)} {outcome(trial, now.metric)}; {watch_totals(now)}"
        for trial in ended
    ]
    lines += [
        f"trial {trial.number} runs on {trial.host} {trial.device}"
        for trial in now.running
        if trial.number not in ran
    ]
    if now.halt != (before.halt if before else None):
        lines.append(f"the study is {now.halt}" if now.halt else "the study goes on")
    return lines
