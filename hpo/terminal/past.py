"""Past runs, and what stopping rules would have done with them, as tables."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group
from rich.table import Column, Table
from rich.text import Text

from hpo.past.backtest import Backtest, RunOutcome, SafeRange, Tried
from hpo.past.labels import joined, labels, legend
from hpo.terminal.status import shown_value
from hpo.trainer import Metric


def past_picture(
    runs: Sequence[Mapping[str, Any]], refused: Mapping[str, str], metric: Metric
) -> Group:
    """What `hpo import` shows: a row a run, then every doubt with the runs that it is about."""
    called = labels([run["name"] for run in runs])
    table = Table(Column("run", overflow="fold"), box=None, pad_edge=False)
    for title in (
        "evals",
        "step",
        "of",
        f"best {metric.name}",
        f"last {metric.name}",
        "split",
        "GPU-h",
    ):
        table.add_column(title, justify="right", no_wrap=True)
    with_study = any("trial" in run for run in runs)
    if with_study:
        table.add_column("trial", justify="right")
    doubts: dict[str, list[str]] = {}
    for run in runs:
        hours = "" if run["gpu_seconds"] is None else f"{run['gpu_seconds'] / 3600:.2f}"
        numbers = [run["evaluations"], _or_blank(run["last_step"]), _or_blank(run["steps"])]
        cells = [
            *numbers,
            shown_value(run["best_value"], metric),
            shown_value(run["last_value"], metric),
            run["split"] or "",
            hours,
        ]
        if with_study:
            cells.append("-" if run["trial"] is None else run["trial"])
        table.add_row(Text(called[run["name"]]), *(Text(str(cell)) for cell in cells))
        for doubt in run["doubts"]:
            doubts.setdefault(doubt, []).append(run["name"])
    lines = [Text(f"refused {name}: {reason}", style="red") for name, reason in refused.items()]
    lines += [
        Text(f"not added {called[run['name']]}: {run['why_not']}")
        for run in runs
        if run.get("why_not")
    ]
    lines += [Text("\nDoubts")] if doubts else []
    for doubt, names in sorted(doubts.items(), key=lambda item: -len(item[1])):
        about = "all" if len(names) == len(runs) > 1 else joined(names, called)
        lines.append(Text(f"  {about}: {doubt}"))
    return Group(table, *_legend(called), *lines)


def _legend(called: Mapping[str, str]) -> list[Text | Table]:
    """Which run has which number, where they have numbers."""
    rows = legend(called)
    if not rows:
        return []
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(overflow="fold")
    for number, name in rows:
        table.add_row(Text(number), Text(name))
    return [Text("\nRuns"), table]


def _or_blank(value: object) -> str:
    return "" if value is None else str(value)


def backtest_picture(
    found: Backtest, ranges: Sequence[SafeRange], not_replayable: Mapping[str, str], metric: Metric
) -> Group:
    """What `hpo backtest` shows: a row a run and a column a rule, the totals of each rule, and why
    own-past stopped what.
    """
    called = labels([run.run for run in found.runs])
    table = Table(Column("run", overflow="fold"), box=None, pad_edge=False)
    table.add_column(f"best {metric.name}", justify="right", no_wrap=True)
    table.add_column("ended")
    for rule in found.rules:
        table.add_column(rule.rule)
    for number, run in enumerate(found.runs):
        best = " *" * (run.run == found.best_run)
        ended = Text(run.ended_badly or "well", style="red" if run.ended_badly else "green")
        fates = [_fate(rule.runs[number], bool(run.ended_badly), metric) for rule in found.rules]
        table.add_row(
            Text(called[run.run] + best), shown_value(run.best_value, metric), ended, *fates
        )
    table.add_section()
    bad = sum(bool(run.ended_badly) for run in found.runs)
    totals: dict[str, list[str]] = {
        "GPU-hours saved": [
            rule.saved if rule.gpu_hours_total else "not recorded" for rule in found.rules
        ],
        "stopped, though well": [
            f"{len(rule.healthy_stopped)} of {len(found.runs) - bad}" for rule in found.rules
        ],
        "missed, though bad": [f"{len(rule.bad_missed)} of {bad}" for rule in found.rules],
        f"best {metric.name} left": [
            shown_value(rule.best_value_left, metric) for rule in found.rules
        ],
    }
    for title, cells in totals.items():
        table.add_row(title, "", "", *cells)
    notes = [
        f"* best run. Ended badly: {found.bad}. A cell: the step where the rule stops the run, "
        "and the "
        f"{metric.name} {metric.difference_unit} given up.",
        f"{found.order[0].upper()}{found.order[1:]}.",
        *(f"{rule.rule}: {rule.what}" for rule in found.rules),
    ]
    notes += [
        f"  {called[run.run]}: {run.reason}"
        for rule in found.rules
        if rule.rule == "own-past"
        for run in rule.runs
        if run.reason
    ]
    notes += [f"{called[run.run]}: {run.remark}" for run in found.runs if run.remark]
    notes += [f"not replayed: {name}: {why}" for name, why in not_replayable.items()]
    lines = [Text(note) for note in notes]
    return Group(table, *_legend(called), Text(), *lines, *_sweep(ranges, called))


def _fate(run: RunOutcome, bad: bool, metric: Metric) -> Text:
    if run.stopped_at is None:
        return Text("missed" if bad else "-", style="red" if bad else "dim")
    lost = metric.scale * (run.value_forgone or 0)
    shown = f"{lost:.1f}" if metric.unit == "percent" else f"{lost:.3g}"
    return Text(
        f"{run.stopped_at}" + (f", -{shown}" if lost else ""), style="green" if bad else "red"
    )


def _sweep(rows: Sequence[SafeRange], called: Mapping[str, str]) -> list[Text | Table]:
    """How far each constant of own-past may move, the others at their defaults."""
    if not rows:
        return []
    table = Table(
        "own-past's", "default", "safe from", "to", "below", "above", box=None, pad_edge=False
    )
    for row in rows:
        tried = {entry.value: entry for entry in row.tried}
        values = list(tried)
        low, high = row.safe or (row.default, row.default)
        edges = [
            values[values.index(low) - 1] if low != values[0] else None,
            values[values.index(high) + 1] if high != values[-1] else None,
        ]
        table.add_row(
            row.constant,
            f"{row.default:g}",
            *([f"{low:g}", f"{high:g}"] if row.safe else ["-", "-"]),
            *("none tried" if edge is None else _errs(tried[edge], called) for edge in edges),
        )
    return [
        Text(
            "\nSafe: stops every run that ended badly and no other; one constant at a time, "
            "among the values tried"
        ),
        table,
    ]


def _errs(entry: Tried, called: Mapping[str, str]) -> str:
    parts = [f"misses {joined(entry.bad_missed, called)}"] if entry.bad_missed else []
    parts += [f"stops {joined(entry.healthy_stopped, called)}"] if entry.healthy_stopped else []
    return f"{entry.value:g} " + " and ".join(parts)
