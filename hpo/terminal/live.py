"""A running study on a terminal: a picture that renews itself, or one line per change in a pipe.

`hpo launch` and `hpo status --watch` show the same, made from a `Snapshot`.
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
from hpo.study.trial import LEARNED_NOTHING, learned_nothing
from hpo.terminal.snapshot import Ended, Running, Snapshot, snapshot
from hpo.terminal.status import shown_value, style_of, trials_done
from hpo.text import duration
from hpo.trainer import Metric

LOOK_SECONDS = 2.0
WIDTH = 80
BARS = "▁▂▃▄▅▆▇█"
AWAY = "The database does not answer. Workers keep training and report when it answers again."
BACK = "The database answers again."


class LiveView:
    """Shows one study within a `with` block, in which `look` is called again and again."""

    def __init__(
        self, study: StudyReader, console: Console, screen: bool = False, with_history: bool = True
    ):
        """screen: the picture fills the terminal.

        with_history: whether lines also tell what happened before the block began.
        """
        self.study = study
        self.latest: Snapshot | None = None
        self._console = console
        self._with_history = with_history
        self._live: Live | None = None
        if console.is_terminal:
            self._live = Live(console=console, screen=screen, auto_refresh=False)
        self._looked = 0.0
        # Since when the database does not answer; None while it does.
        self._away_since: datetime | None = None

    def __enter__(self) -> Self:
        if not self._with_history:
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
        """Show the study's current state, unless the last look is less than LOOK_SECONDS ago.

        Returns whether the database answers.
        """
        if at_once or time.monotonic() - self._looked >= LOOK_SECONDS:
            before = self.latest
            was_away = self._is_away
            self._read()
            self._looked = time.monotonic()
            try:
                self._show(before, was_away)
            except OSError:
                # The terminal was closed; the study continues without it.
                self._live = None
        return not self._is_away

    @property
    def _is_away(self) -> bool:
        return self._away_since is not None

    def _read(self) -> None:
        try:
            self.latest = snapshot(self.study)
        except DatabaseError:
            self._away_since = self._away_since or datetime.now()
        else:
            self._away_since = None

    def _show(self, before: Snapshot | None, was_away: bool) -> None:
        if self._live:
            if self.latest:
                picture = watch_picture(self.latest, self._console.height, self._away_since)
                self._live.update(picture, refresh=True)
            return
        if self._is_away != was_away:
            self._print(AWAY if self._is_away else BACK)
        if self.latest and not self._is_away:
            for line in changes(before, self.latest):
                self._print(line)

    def _print(self, line: str) -> None:
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)


# ---- the picture


def watch_picture(seen: Snapshot, height: int, away_since: datetime | None) -> Group:
    """A study on a screen of WIDTH columns and `height` rows.

    away_since: when the database stopped answering; None while it answers.
    """
    head = _head_lines(seen, away_since)
    # Long lines wrap. Two rows separate the head, the running trials and the ended ones.
    room = max(2, height - 2 - sum(1 + len(line) // WIDTH for line in head))
    running = seen.running[: max(1, room * 2 // 3)]
    hidden = len(seen.running) - len(running)
    parts: list[Text | Table] = [*head, Text()]
    if running:
        parts.append(_running_table(running, seen.metric))
    else:
        parts.append(Text("no trial is running", style="dim"))
    room -= len(running) + 2
    if hidden:
        parts.append(Text(f"and {hidden} more running", style="dim"))
        room -= 1
    parts.append(Text())
    for trial in seen.ended[: max(0, room)]:
        line = f"{trial.number:>5} {outcome(trial, seen.metric)}"
        style = style_of(trial.state, learned_nothing(trial.value, seen.metric))
        parts.append(Text(line, style=style, no_wrap=True, overflow="ellipsis"))
    return Group(*parts)


def _head_lines(seen: Snapshot, away_since: datetime | None) -> list[Text]:
    spent = "; ".join([f"{seen.spent.gpu_seconds / 3600:.3g} {seen.spent.unit}", *_time_left(seen)])
    starts = ", ".join(_start_text(name, start, seen) for name, start in seen.starts.items())
    lines = [
        Text(f"{seen.name}: {', '.join(_counts(seen))}"),
        Text(f"budget {seen.budget.in_words(seen.spent.unit)}; spent {spent}", style="dim"),
        Text(f"starts: {starts or 'none'}", style="dim"),
    ]
    if seen.halt:
        resume = f"hpo resume --study {seen.name} resumes it"
        lines.append(Text(f"{seen.halt}; {resume}", style="yellow"))
    if away_since:
        away = f"the database has not answered since {away_since:%H:%M:%S}"
        lines.append(Text(f"{away}; what follows is from before", style="red"))
    return lines


def _start_text(name: str, start: Ended, seen: Snapshot) -> str:
    """A start with its value, and how far that is behind the best trial."""
    if start.value is None:
        return f"{name} {start.state}"
    text = f"{name} {seen.metric.text(start.value)}"
    if seen.best is not None:
        best = seen.best[1]
        if seen.metric.better(best, start.value):
            text += f" ({seen.metric.difference(start.value - best)})"
    return text


def _running_table(running: Sequence[Running], metric: Metric) -> Table:
    table = Table(box=None, pad_edge=False, collapse_padding=True)
    for title in ("trial", "worker", "step", "steps/s", "GiB", "lease", metric.name, "curve"):
        is_text = title in ("worker", "curve")
        table.add_column(title, justify="left" if is_text else "right", no_wrap=True, max_width=22)
    for trial in running:
        last_value = trial.values[-1] if trial.values else None
        table.add_row(
            str(trial.number),
            f"{trial.host} {trial.device}",
            f"{trial.step}/{trial.steps}",
            "" if trial.rate is None else f"{trial.rate:.2f}",
            "" if trial.memory is None else f"{trial.memory / 2**30:.1f}",
            f"{trial.lease_age:.0f} s",
            shown_value(last_value, metric),
            sparkline(trial.values),
        )
    return table


def sparkline(values: Sequence[float], width: int = 12) -> str:
    """The last `width` values, each as a bar between the lowest and the highest of them."""
    shown = values[-width:]
    if not shown:
        return ""
    low = min(shown)
    # Equal values are drawn as the lowest bar.
    span = (max(shown) - low) or 1
    return "".join(BARS[round((value - low) / span * (len(BARS) - 1))] for value in shown)


# ---- the lines


def changes(before: Snapshot | None, now: Snapshot) -> list[str]:
    """What happened between two snapshots, one line each; everything if there was none before."""
    known_ended = {trial.number for trial in before.ended} if before else set()
    known_running = {trial.number for trial in before.running} if before else set()
    halt_before = before.halt if before else None
    lines = []
    # The last trial that ended comes first in a snapshot and last in the lines.
    for trial in reversed(now.ended):
        if trial.number not in known_ended:
            name = f" ({trial.name})" if trial.name else ""
            ending = f"trial {trial.number}{name} {outcome(trial, now.metric)}"
            lines.append(f"{ending}; {watch_totals(now)}")
    for running in now.running:
        if running.number not in known_running:
            lines.append(f"trial {running.number} is running on {running.host} {running.device}")
    if now.halt != halt_before:
        lines.append(f"the study is {now.halt}" if now.halt else "the study was resumed")
    return lines


def outcome(trial: Ended, metric: Metric) -> str:
    """How a trial ended: its state, its value and the reason."""
    text: str = trial.state
    if trial.value is not None:
        text += f" {metric.name} {metric.text(trial.value)}"
    if learned_nothing(trial.value, metric):
        text += f", {LEARNED_NOTHING}"
    if trial.reason:
        text += f": {trial.reason}"
    return text


def watch_totals(seen: Snapshot) -> str:
    return ", ".join(_counts(seen) + _time_left(seen))


def _counts(seen: Snapshot) -> list[str]:
    counts = [
        trials_done(seen.spent.ended, seen.budget.trials),
        f"{len(seen.running)} running",
        f"{seen.waiting} waiting",
    ]
    if seen.spent.failed:
        counts.append(f"{seen.spent.failed} failed")
    if seen.best:
        number, value = seen.best
        counts.append(f"best {seen.metric.name} {seen.metric.text(value)} (trial {number})")
    return counts


def _time_left(seen: Snapshot) -> list[str]:
    """Empty if the time is not known."""
    if seen.seconds_left is None:
        return []
    return [f"about {duration(seen.seconds_left)} to go"]
