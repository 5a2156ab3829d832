"""Past runs, and what stopping rules would have done with them, as tables."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Group
from rich.table import Column, Table
from rich.text import Text

from hpo.past.backtest import Backtest, RunOutcome, SafeRange, Tried
from hpo.past.labels import joined, labels, legend
from hpo.space.stopping import OWN_PAST
from hpo.terminal.status import shown_value
from hpo.trainer import Metric


def past_picture(
    runs: Sequence[Mapping[str, Any]], refused: Mapping[str, str], metric: Metric
) -> Group:
    """What `hpo import` shows: one row per run, and each warning with the runs that it is about.

    refused: reason by name, of runs that could not be read.
    """
    label_of = labels([run["name"] for run in runs])
    lines = [Text(f"refused {name}: {reason}", style="red") for name, reason in refused.items()]
    for run in runs:
        if run.get("why_not"):
            lines.append(Text(f"not added {label_of[run['name']]}: {run['why_not']}"))
    return Group(
        _run_table(runs, label_of, metric),
        *_legend(label_of),
        *lines,
        *_warnings(runs, label_of),
    )


def _run_table(
    runs: Sequence[Mapping[str, Any]], label_of: Mapping[str, str], metric: Metric
) -> Table:
    table = Table(Column("run", overflow="fold"), box=None, pad_edge=False)
    best = f"best {metric.name}"
    last = f"last {metric.name}"
    for title in ("evals", "step", "of", best, last, "split", "GPU-h"):
        table.add_column(title, justify="right", no_wrap=True)
    with_study = any("trial" in run for run in runs)
    if with_study:
        table.add_column("trial", justify="right")
    for run in runs:
        seconds = run["gpu_seconds"]
        cells = [
            label_of[run["name"]],
            str(run["evaluations"]),
            _or_blank(run["last_step"]),
            _or_blank(run["steps"]),
            shown_value(run["best_value"], metric),
            shown_value(run["last_value"], metric),
            run["split"] or "",
            "" if seconds is None else f"{seconds / 3600:.2f}",
        ]
        if with_study:
            cells.append("-" if run["trial"] is None else str(run["trial"]))
        table.add_row(*map(Text, cells))
    return table


def _or_blank(value: object) -> str:
    return "" if value is None else str(value)


def _warnings(runs: Sequence[Mapping[str, Any]], label_of: Mapping[str, str]) -> list[Text]:
    """Each warning with its runs, those of many runs first."""
    runs_of: dict[str, list[str]] = {}
    for run in runs:
        for warning in run["doubts"]:
            runs_of.setdefault(warning, []).append(run["name"])
    if not runs_of:
        return []
    lines = [Text("\nWarnings")]
    for warning, names in sorted(runs_of.items(), key=lambda item: -len(item[1])):
        is_about_all = len(names) == len(runs) > 1
        about = "all" if is_about_all else joined(names, label_of)
        lines.append(Text(f"  {about}: {warning}"))
    return lines


def _legend(label_of: Mapping[str, str]) -> list[Text | Table]:
    """Which run has which number; empty if runs are shown by their names."""
    rows = legend(label_of)
    if not rows:
        return []
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(overflow="fold")
    for number, name in rows:
        table.add_row(Text(number), Text(name))
    return [Text("\nRuns"), table]


# ---- backtest


def backtest_picture(
    backtest: Backtest,
    ranges: Sequence[SafeRange],
    not_replayable: Mapping[str, str],
    metric: Metric,
) -> Group:
    """What `hpo backtest` shows: one row per run, one column per rule, totals and notes.

    not_replayable: reason by name, of runs that have no curve to replay.
    """
    label_of = labels([run.run for run in backtest.runs])
    table = Table(Column("run", overflow="fold"), box=None, pad_edge=False)
    table.add_column(f"best {metric.name}", justify="right", no_wrap=True)
    table.add_column("ended")
    for rule in backtest.rules:
        table.add_column(rule.rule)
    for index, run in enumerate(backtest.runs):
        name = label_of[run.run]
        if run.run == backtest.best_run:
            name += " *"
        ended = Text(run.ended_badly or "well", style="red" if run.ended_badly else "green")
        fates = [_fate(rule.runs[index], bool(run.ended_badly), metric) for rule in backtest.rules]
        table.add_row(Text(name), shown_value(run.best_value, metric), ended, *fates)
    table.add_section()
    for title, cells in _totals(backtest, metric).items():
        table.add_row(title, "", "", *cells)
    notes = [Text(note) for note in _notes(backtest, not_replayable, label_of, metric)]
    return Group(table, *_legend(label_of), Text(), *notes, *_safe_ranges(ranges, label_of))


def _fate(outcome: RunOutcome, ended_badly: bool, metric: Metric) -> Text:
    """What a rule does with a run: nothing, or the step where it stops and what that costs."""
    if outcome.stopped_at is None:
        if ended_badly:
            return Text("missed", style="red")
        return Text("-", style="dim")
    text = str(outcome.stopped_at)
    lost = metric.scale * (outcome.value_forgone or 0)
    if lost:
        digits = f"{lost:.1f}" if metric.unit == "percent" else f"{lost:.3g}"
        text += f", -{digits}"
    return Text(text, style="green" if ended_badly else "red")


def _totals(backtest: Backtest, metric: Metric) -> dict[str, list[str]]:
    """A cell for each rule, by the title of the row."""
    rules = backtest.rules
    bad = sum(bool(run.ended_badly) for run in backtest.runs)
    healthy = len(backtest.runs) - bad
    return {
        "GPU-hours saved": [
            rule.saved if rule.gpu_hours_total else "not recorded" for rule in rules
        ],
        "healthy, but stopped": [f"{len(rule.healthy_stopped)} of {healthy}" for rule in rules],
        "bad, but missed": [f"{len(rule.bad_missed)} of {bad}" for rule in rules],
        f"best {metric.name} left": [shown_value(rule.best_value_left, metric) for rule in rules],
    }


def _notes(
    backtest: Backtest,
    not_replayable: Mapping[str, str],
    label_of: Mapping[str, str],
    metric: Metric,
) -> Iterable[str]:
    yield (
        f"* best run. Ended badly: {backtest.bad}. Cells: the step where the rule stops the run, "
        f"and the {metric.name} {metric.difference_unit} given up."
    )
    yield f"{backtest.order[0].upper()}{backtest.order[1:]}."
    for rule in backtest.rules:
        yield f"{rule.rule}: {rule.what}"
    for rule in backtest.rules:
        if rule.rule == OWN_PAST:
            for run in rule.runs:
                if run.reason:
                    yield f"  {label_of[run.run]}: {run.reason}"
    for replayed in backtest.runs:
        if replayed.remark:
            yield f"{label_of[replayed.run]}: {replayed.remark}"
    for name, reason in not_replayable.items():
        yield f"not replayed: {name}: {reason}"


# ---- how far the constants of own-past may move


def _safe_ranges(rows: Sequence[SafeRange], label_of: Mapping[str, str]) -> list[Text | Table]:
    """The range of each constant in which the rule makes no mistake, the others at defaults."""
    if not rows:
        return []
    head = ("own-past constant", "default", "safe from", "to", "below", "above")
    table = Table(*head, box=None, pad_edge=False)
    for row in rows:
        below, above = _neighbours(row)
        low, high = "-", "-"
        if row.safe:
            low, high = f"{row.safe[0]:g}", f"{row.safe[1]:g}"
        default = f"{row.default:g}"
        mistakes = [_mistakes(below, label_of), _mistakes(above, label_of)]
        table.add_row(row.constant, default, low, high, *mistakes)
    title = (
        "\nSafe: stops every run that ended badly and no other; one constant at a time, "
        "among the values tried"
    )
    return [Text(title), table]


def _neighbours(row: SafeRange) -> tuple[Tried | None, Tried | None]:
    """The values that were tried next below and next above the safe range, or the default."""
    tried = {entry.value: entry for entry in row.tried}
    values = list(tried)
    low, high = row.safe or (row.default, row.default)
    below = above = None
    if low != values[0]:
        below = tried[values[values.index(low) - 1]]
    if high != values[-1]:
        above = tried[values[values.index(high) + 1]]
    return below, above


def _mistakes(entry: Tried | None, label_of: Mapping[str, str]) -> str:
    """The value that was tried, and which runs the rule misjudges with it."""
    if entry is None:
        return "none tried"
    mistakes = []
    if entry.bad_missed:
        mistakes.append(f"misses {joined(entry.bad_missed, label_of)}")
    if entry.healthy_stopped:
        mistakes.append(f"stops {joined(entry.healthy_stopped, label_of)}")
    return f"{entry.value:g} {' and '.join(mistakes)}"
