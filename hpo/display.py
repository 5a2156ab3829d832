"""The trials of a study on a terminal: a live table, or a line per event where the output is no terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from hpo.decoder.phonemes import CLASSES
from hpo.evidence.report import best_of, duration, percent
from hpo.search.trial import Record

ROWS = 18  # trials shown: those that run, and the last of the others
AWAY = "The database does not answer. Workers train on, and tell everything when it does."
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

    def __init__(self, console: Console):
        self._console = console
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None
        self._seen: dict[int, str] | None = None
        self._away = False

    def __enter__(self) -> "Display":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def __call__(self, records: list[Record], budget: int, away: bool = False) -> None:
        """away: the database does not answer, and `records` are of before."""
        try:
            if self._live:
                picture = trial_table(records, budget)
                self._live.update(Group(picture, Text(AWAY, style="bold red")) if away else picture, refresh=True)
                return
            if away != self._away:
                self._console.print(AWAY if away else "The database answers again.", soft_wrap=True)
            self._away = away
            if not away:
                self._print_changes(records, budget)
        except OSError:
            self._live = None  # the terminal was closed; the study goes on

    def _print_changes(self, records: list[Record], budget: int) -> None:
        if self._seen is None:  # what had ended before is no news
            self._seen = {record.id: record.state for record in records if record.state not in ("running", "waiting")}
        for record in records:
            if record.state != self._seen.get(record.id) and record.state != "waiting":
                per = f", PER {percent(record.last_per)}" if record.last_per is not None and record.state != "running" else ""
                step = f" at step {record.step} of {record.steps}" if record.steps else ""
                remark = _remark(record)
                self._console.print(
                    f"trial {record.number} {record.state}{step}{per}{f' ({remark})' if remark else ''}; {totals(records, budget)}",
                    highlight=False, markup=False, soft_wrap=True,
                )  # fmt: skip
            self._seen[record.id] = record.state


def data_picture(facts: Mapping[str, Any]) -> Group:
    """What `hpo data check` shows: a table of the partitions, one of the days, and what is worth knowing, a line each."""
    parts = {name: part for name, part in facts["partitions"].items() if "sentences" in part}
    table = Table("", *parts, box=None, pad_edge=False)
    rows: dict[str, list[object]] = {
        "sentences": [part["sentences"] for part in parts.values()],
        "hours": [f"{part['hours']:.2f}" for part in parts.values()],
        "channels": [part["channels"] for part in parts.values()],
        "bins (min / mean / max)": [_spread(part["bins"]) for part in parts.values()],
        "labels": [part["labels"]["count"] for part in parts.values()],
        "labels a sentence": [_spread(part["labels"]) for part in parts.values()],
        "too short for CTC": [f"{part['too_short']} ({percent(part['too_short'] / part['sentences'])})" for part in parts.values()],
    }
    for title, cells in rows.items():
        table.add_row(title, *map(str, cells))
    notes = Table.grid(padding=(0, 2))
    for title, text in _data_notes(facts, parts):
        notes.add_row(title, Text(text))
    return Group(Text(f"{facts['path'] or facts['source']}\n"), table, Text(), _day_table(parts), Text(), notes)


def _day_table(parts: Mapping[str, Any]) -> Table:
    table = Table("day", box=None, pad_edge=False)
    for title in (*parts, "hours", "constant channels", "NaN or inf"):
        table.add_column(title, justify="right")
    for days in zip(*(part["days"] for part in parts.values()), strict=True):
        faulty = [len({channel for day in days for channel in day[kind]}) for kind in ("constant_channels", "not_finite_channels")]
        cells = [*(day["sentences"] for day in days), f"{sum(day['hours'] for day in days):.2f}", *faulty]
        table.add_row(days[0]["name"].removeprefix("day "), *map(str, cells))
    return table


def _data_notes(facts: Mapping[str, Any], parts: Mapping[str, Any]) -> list[tuple[str, str]]:
    notes = [("too short", f"more labels than output frames at kernel {facts['kernel']}, stride {facts['stride']} (--kernel, --stride): "
                           "CTC learns nothing there")]  # fmt: skip
    if train := parts.get("train"):
        ranked = sorted(train["classes"].items(), key=lambda item: -item[1])
        notes.append(("labels", "train has " + ", ".join(f"{_class(int(label))} {count}" for label, count in ranked)))
        if train["missing_classes"]:
            notes.append(("", "train lacks " + ", ".join(map(_class, train["missing_classes"]))))
    for kind, title in (("constant_channels", "constant"), ("not_finite_channels", "NaN or inf")):
        if channels := sorted({channel for part in parts.values() for day in part["days"] for channel in day[kind]}):
            notes.append((title, f"channels {_ranges(channels)}, counted from 0, on one day at least"))
    same = facts["duplicates"]
    if same:
        others = [name for name in parts if name != "train"]
        shared = [f"{same[f'{name}_in_train']} of {name} are in train too" for name in others]
        notes.append(("duplicates", "; ".join([f"{same['train']} of train are there twice", *shared]) + " (identical features)"))
        labels = [f"{same[f'{name}_labels_in_train']} of {name}" for name in others]
        if labels:
            notes.append(("same text", f"{', '.join(labels)} have the labels of a sentence of train: no fault, but good to know"))
    if words := facts["guessed_words"]:
        ranked = sorted(words.items(), key=lambda item: -item[1])
        shown = ", ".join(f"{word} {count}" for word, count in ranked[:ROWS]) + ", ..." * (len(words) > ROWS)
        notes.append(("words", f"{len(words)} are in no dictionary, their phonemes guessed from their letters: {shown}"))
    notes += [("left out", f"{name}: {reason}") for name, reason in facts["absent"].items()]
    return notes + [("fault", part["fault"]) for name, part in facts["partitions"].items() if part["fault"] and name != "train"]


def _spread(numbers: Mapping[str, float]) -> str:
    return f"{numbers['min']} / {numbers['mean']} / {numbers['max']}"


def _class(label: int) -> str:
    return CLASSES[label - 1] if 1 <= label <= len(CLASSES) else str(label)


def _ranges(numbers: Sequence[int]) -> str:
    """[1, 2, 3, 7] -> 1-3, 7"""
    starts = [number for number in numbers if number - 1 not in numbers]
    ends = [number for number in numbers if number + 1 not in numbers]
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True))
