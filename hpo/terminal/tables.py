"""The trials of a study on a terminal: a live table, or a line per event where the output is no terminal."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Column, Table
from rich.text import Text

from hpo.data.phonemes import CLASSES
from hpo.space.budget import Budget, Pace, seconds_left
from hpo.study.pick import best_of
from hpo.study.snapshot import Ended, Snapshot
from hpo.study.trial import DONE, Record
from hpo.text import duration, percent
from hpo.trainer import Metric

ROWS = 18  # trials shown: those that run, and the last of the others
BARS = "▁▂▃▄▅▆▇█"
AWAY = "The database does not answer. Workers train on, and tell everything when it does."
STYLES = {"running": "bold", "complete": "green", "stopped": "yellow", "failed": "red", "waiting": "dim"}


def trial_table(records: list[Record], budget: Budget, metric: Metric) -> Group:
    """A picture of the study: one row a trial, and a line of totals."""
    table = Table(box=None, pad_edge=False)
    for title in ("trial", "state", "step", metric.name, "best", ""):
        table.add_column(title, justify="left" if title in ("state", "") else "right", no_wrap=title != "")
    for record in _shown(records):
        table.add_row(
            str(record.number),
            Text(record.state, style=STYLES[record.state]),
            f"{record.step} of {record.steps}" if record.steps else "",
            _value(record.last_value, metric),
            _value(record.best_value, metric),
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


def _value(value: float | None, metric: Metric) -> str:
    return "" if value is None else metric.short(value)


def _remark(record: Record) -> str:
    return ": ".join(part for part in (f"start {record.start}" if record.start else "", record.label, record.reason) if part)


class Display:
    """Shows records again and again: a live table on a terminal, else a line whenever a trial's state changes."""

    def __init__(self, console: Console, metric: Metric):
        self._console, self._metric = console, metric
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

    def __call__(self, records: list[Record], budget: Budget, away: bool = False) -> None:
        """away: the database does not answer, and `records` are of before."""
        try:
            if self._live:
                picture = trial_table(records, budget, self._metric)
                self._live.update(Group(picture, Text(AWAY, style="bold red")) if away else picture, refresh=True)
                return
            if away != self._away:
                self._console.print(AWAY if away else "The database answers again.", soft_wrap=True)
            self._away = away
            if not away:
                self._print_changes(records, budget)
        except OSError:
            self._live = None  # the terminal was closed; the study goes on

    def _print_changes(self, records: list[Record], budget: Budget) -> None:
        if self._seen is None:  # what had ended before is no news
            self._seen = {record.id: record.state for record in records if record.state not in ("running", "waiting")}
        for record in records:
            if record.state != self._seen.get(record.id) and record.state != "waiting":
                value = ""
                if record.last_value is not None and record.state != "running":
                    value = f", {self._metric.name} {self._metric.text(record.last_value)}"
                step = f" at step {record.step} of {record.steps}" if record.steps else ""
                remark = _remark(record)
                self._console.print(
                    f"trial {record.number} {record.state}{step}{value}{f' ({remark})' if remark else ''}; "
                    f"{totals(records, budget, self._metric)}",
                    highlight=False, markup=False, soft_wrap=True,
                )  # fmt: skip
            self._seen[record.id] = record.state


def sparkline(values: Sequence[float], width: int = 12) -> str:
    """The last `width` values, each as a bar between the lowest and the highest of them."""
    shown = values[-width:]
    low, high = min(shown, default=0.0), max(shown, default=0.0)
    return "".join(BARS[round((value - low) / ((high - low) or 1) * (len(BARS) - 1))] for value in shown)


def watch_picture(seen: Snapshot, height: int, away: datetime | None) -> Group:
    """A study on a screen of 80 columns and `height` rows. away: since when the database does not answer."""
    lines = [
        Text(f"{seen.name}: {', '.join(_counts(seen))}"),
        Text(f"budget {seen.budget}; spent {'; '.join([f'{seen.spent.gpu_seconds / 3600:.3g} GPU-hours', *_to_go(seen)])}", style="dim"),
    ]
    starts = [f"{name} {seen.metric.text(start.value) if start.value is not None else start.state}{_behind(start.value, seen)}"
              for name, start in seen.starts.items()]  # fmt: skip
    lines.append(Text(f"starts: {', '.join(starts) or 'none'}", style="dim"))
    if seen.halt:
        lines.append(Text(f"{seen.halt}; hpo resume --study {seen.name} goes on", style="yellow"))
    if away:
        lines.append(Text(f"database away since {away:%H:%M:%S}; what is below is from before", style="red"))
    room = max(2, height - 2 - sum(1 + len(line) // 80 for line in lines))
    table = Table(box=None, pad_edge=False, collapse_padding=True)
    for title in ("trial", "worker", "step", "steps/s", "GiB", "lease", seen.metric.name, "curve"):
        table.add_column(title, justify="left" if title in ("worker", "curve") else "right", no_wrap=True, max_width=22)
    shown = seen.running[: max(1, room * 2 // 3)]
    for trial in shown:
        rate = "" if trial.rate is None else f"{trial.rate:.2f}"
        memory = "" if trial.memory is None else f"{trial.memory / 2**30:.1f}"
        value = _value(trial.values[-1] if trial.values else None, seen.metric)
        table.add_row(str(trial.number), f"{trial.host} {trial.device}", f"{trial.step}/{trial.steps}", rate, memory,
                      f"{trial.lease_age:.0f} s", value, sparkline(trial.values))  # fmt: skip
    more = [Text(f"and {len(seen.running) - len(shown)} more run", style="dim")] if len(seen.running) > len(shown) else []
    left = max(0, room - len(shown) - len(more) - 2)
    ended = [Text(f"{trial.number:>5} {outcome(trial, seen.metric)}", style=STYLES[trial.state], no_wrap=True, overflow="ellipsis")
             for trial in seen.ended[:left]]  # fmt: skip
    return Group(*lines, Text(), table if seen.running else Text("no trial runs", style="dim"), *more, Text(), *ended)


def _behind(value: float | None, seen: Snapshot) -> str:
    """Of a start: how far it lies behind the best trial."""
    if value is None or seen.best is None or not seen.metric.better(seen.best[1], value):
        return ""
    return f" ({seen.metric.difference(value - seen.best[1])})"


def _counts(seen: Snapshot) -> list[str]:
    spent = seen.spent
    parts = [trials_done(spent.ended, seen.budget.trials), f"{len(seen.running)} run", f"{seen.waiting} wait"]
    parts += [f"{seen.spent.failed} failed"] if seen.spent.failed else []
    return [*parts, f"best {seen.metric.name} {seen.metric.text(seen.best[1])} (trial {seen.best[0]})"] if seen.best else parts


def _to_go(seen: Snapshot) -> list[str]:
    return [f"about {duration(seen.seconds_left)} to go"] if seen.seconds_left is not None else []


def watch_totals(seen: Snapshot) -> str:
    return ", ".join(_counts(seen) + _to_go(seen))


def outcome(trial: Ended, metric: Metric) -> str:
    value = f" {metric.name} {metric.text(trial.value)}" if trial.value is not None else ""
    return f"{trial.state}{value}{f': {trial.reason}' if trial.reason else ''}"


def changes(before: Snapshot | None, now: Snapshot) -> list[str]:
    """What happened in between, a line each; all of it if there was no before."""
    old = {trial.number for trial in before.ended} if before else set()
    ran = {trial.number for trial in before.running} if before else set()
    ended = [trial for trial in reversed(now.ended) if trial.number not in old]
    lines = [f"trial {trial.number} {outcome(trial, now.metric)}; {watch_totals(now)}" for trial in ended]
    lines += [f"trial {trial.number} runs on {trial.host} {trial.device}" for trial in now.running if trial.number not in ran]
    if now.halt != (before.halt if before else None):
        lines.append(f"the study is {now.halt}" if now.halt else "the study goes on")
    return lines


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


def past_picture(runs: Sequence[Mapping[str, Any]], refused: Mapping[str, str], metric: Metric) -> Group:
    """What `hpo import` shows: a row a run, then every doubt with the runs that it is about."""
    table = Table(Column("run", overflow="fold"), box=None, pad_edge=False)
    for title in ("evals", "step", "of", f"best {metric.name}", f"last {metric.name}", "split", "GPU-h"):
        table.add_column(title, justify="right", no_wrap=True)
    with_study = any("trial" in run for run in runs)
    if with_study:
        table.add_column("trial", justify="right")
    doubts: dict[str, list[str]] = {}
    for run in runs:
        hours = "" if run["gpu_seconds"] is None else f"{run['gpu_seconds'] / 3600:.2f}"
        numbers = [run["evaluations"], _or_blank(run["last_step"]), _or_blank(run["steps"])]
        cells = [*numbers, _value(run["best_value"], metric), _value(run["last_value"], metric), run["split"] or "", hours]
        if with_study:
            cells.append("-" if run["trial"] is None else run["trial"])
        table.add_row(Text(run["name"]), *(Text(str(cell)) for cell in cells))
        for doubt in run["doubts"]:
            doubts.setdefault(doubt, []).append(run["name"])
    lines = [Text(f"refused {name}: {reason}", style="red") for name, reason in refused.items()]
    lines += [Text(f"not added {run['name']}: {run['why_not']}") for run in runs if run.get("why_not")]
    lines += [Text("\nDoubts")] if doubts else []
    for doubt, names in sorted(doubts.items(), key=lambda item: -len(item[1])):
        lines.append(Text(f"  {'all' if len(names) == len(runs) > 1 else ', '.join(names)}: {doubt}"))
    return Group(table, *lines)


def _or_blank(value: object) -> str:
    return "" if value is None else str(value)


def backtest_picture(found: Mapping[str, Any], metric: Metric) -> Group:
    """What `hpo backtest` shows: a row a run and a column a rule, the totals of each rule, and why own-past stopped what."""
    table = Table(Column("run", overflow="fold"), box=None, pad_edge=False)
    table.add_column(f"best {metric.name}", justify="right", no_wrap=True)
    table.add_column("ended")
    for rule in found["rules"]:
        table.add_column(rule["rule"])
    for number, run in enumerate(found["runs"]):
        best = " *" * (run["run"] == found["best_run"])
        ended = Text(run["ended_badly"] or "well", style="red" if run["ended_badly"] else "green")
        fates = [_fate(rule["runs"][number], bool(run["ended_badly"]), metric) for rule in found["rules"]]
        table.add_row(Text(run["run"] + best), _value(run["best_value"], metric), ended, *fates)
    table.add_section()
    bad = sum(bool(run["ended_badly"]) for run in found["runs"])
    totals: dict[str, list[str]] = {
        "GPU-hours saved": [
            f"{rule['gpu_hours_saved']:.2g} of {rule['gpu_hours_total']:.2g}" if rule["gpu_hours_total"] else "not recorded"
            for rule in found["rules"]
        ],
        "stopped, though well": [f"{len(rule['healthy_stopped'])} of {len(found['runs']) - bad}" for rule in found["rules"]],
        "missed, though bad": [f"{len(rule['bad_missed'])} of {bad}" for rule in found["rules"]],
        f"best {metric.name} left": [_value(rule["best_value_left"], metric) for rule in found["rules"]],
    }
    for title, cells in totals.items():
        table.add_row(title, "", "", *cells)
    notes = [
        f"* best run. Ended badly: {found['bad']}. A cell: the step where the rule stops the run, and the "
        f"{metric.name} {metric.difference_unit} given up.",
        f"{found['order'][0].upper()}{found['order'][1:]}.",
        *(f"{rule['rule']}: {rule['what']}" for rule in found["rules"]),
    ]
    notes += [
        f"  {run['run']}: {run['reason']}" for rule in found["rules"] if rule["rule"] == "own-past" for run in rule["runs"] if run["reason"]
    ]
    notes += [f"{run['run']}: {run['remark']}" for run in found["runs"] if run["remark"]]
    notes += [f"not replayed: {name}: {why}" for name, why in found["not_replayable"].items()]
    return Group(table, Text(), *(Text(note) for note in notes), *_sweep(found.get("sweep", [])))


def _fate(run: Mapping[str, Any], bad: bool, metric: Metric) -> Text:
    if run["stopped_at"] is None:
        return Text("missed" if bad else "-", style="red" if bad else "dim")
    lost = metric.scale * (run["value_forgone"] or 0)
    shown = f"{lost:.1f}" if metric.unit == "percent" else f"{lost:.3g}"
    return Text(f"{run['stopped_at']}" + (f", -{shown}" if lost else ""), style="green" if bad else "red")


def _sweep(rows: Sequence[Mapping[str, Any]]) -> list[Text | Table]:
    """How far each constant of own-past may move, the others at their defaults."""
    if not rows:
        return []
    table = Table("own-past's", "default", "safe from", "to", "below", "above", box=None, pad_edge=False)
    for row in rows:
        tried = {entry["value"]: entry for entry in row["tried"]}
        values = list(tried)
        low, high = row["safe"] or (row["default"], row["default"])
        edges = [
            values[values.index(low) - 1] if low != values[0] else None,
            values[values.index(high) + 1] if high != values[-1] else None,
        ]
        table.add_row(row["constant"], f"{row['default']:g}", *([f"{low:g}", f"{high:g}"] if row["safe"] else ["-", "-"]),
                      *("none tried" if edge is None else _errs(tried[edge]) for edge in edges))  # fmt: skip
    return [Text("\nSafe: stops every run that ended badly and no other; one constant at a time, among the values tried"), table]


def _errs(entry: Mapping[str, Any]) -> str:
    parts = [f"misses {', '.join(entry['bad_missed'])}"] if entry["bad_missed"] else []
    parts += [f"stops {', '.join(entry['healthy_stopped'])}"] if entry["healthy_stopped"] else []
    return f"{entry['value']:g} " + " and ".join(parts)
