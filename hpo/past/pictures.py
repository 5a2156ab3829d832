"""Draws backtests with matplotlib, which needs no screen."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from hpo.errors import CallerError
from hpo.past.backtest import Backtest, Curve, RuleOutcome
from hpo.past.labels import labels, legend
from hpo.text import PICTURE_STYLE

Numbers = NDArray[np.float64]
ENDINGS = (".svg", ".png", ".pdf")
WELL = "#2166ac"
BADLY = "#c0392b"
REST = "#b8b8b8"
MOST_COLUMNS = 3
# Inches of a panel, and of the figure's margin.
PANEL_WIDTH = 4.6
PANEL_HEIGHT = 3.9
MARGIN_WIDTH = 0.6
MARGIN_HEIGHT = 0.5
# The largest numbers of runs whose labels can still be read. Numbers are shorter than names.
MOST_NAMES = 12
MOST_NUMBERS = 20
# Of labels, in points.
FONT_SIZE = 6
# Inches of a line and of a letter in that size.
LINE_HEIGHT = 0.13
LETTER_WIDTH = 0.055
# Letters between two columns of names.
COLUMN_GAP = 6
# Between two labels, as a fraction of a panel's height.
LABEL_GAP = 0.028


def backtest_picture(backtest: Backtest, curves: Sequence[Curve], path: Path) -> None:
    """Draws a panel for each rule: each curve in colour up to where the rule stops it, its rest in
    grey.

    Raises CallerError for a path that is no picture or cannot be written.
    """
    if path.suffix not in ENDINGS:
        raise CallerError(
            f"--plot {path}: ends with {path.suffix or 'nothing'}. Valid: {', '.join(ENDINGS)}"
        )
    # The same picture always gives the same file.
    metadata = {"Date": None} if path.suffix == ".svg" else None
    with mpl.rc_context(PICTURE_STYLE):
        figure = _figure(backtest.rules, curves)
        try:
            figure.savefig(path, dpi=150, metadata=metadata)
        except OSError as error:
            raise CallerError(f"--plot {path}: cannot be written ({error.strerror})") from None


def _figure(rules: Sequence[RuleOutcome], curves: Sequence[Curve]) -> Figure:
    run_labels = _readable_labels(curves)
    names = [f"{number}  {name}" for number, name in legend(run_labels)]
    columns = min(MOST_COLUMNS, len(rules))
    rows = math.ceil(len(rules) / columns)
    width = PANEL_WIDTH * columns + MARGIN_WIDTH
    name_columns = _columns_of_names(names, width)
    names_height = LINE_HEIGHT * math.ceil(len(names) / name_columns)
    height = PANEL_HEIGHT * rows + MARGIN_HEIGHT + names_height
    figure = Figure(figsize=(width, height), layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for panel, rule in zip(panels.flat, rules, strict=False):
        _draw_panel(panel, rule, curves, run_labels)
    unused_panels = panels.flat[len(rules) :]
    for panel in unused_panels:
        panel.set_axis_off()
    for panel in panels[:, 0]:
        panel.set_ylabel(curves[0].metric.label)
    for panel in panels[-1]:
        panel.set_xlabel("optimizer updates (square-root scale)")
    _add_legend_of_colors(figure)
    if names:
        _add_legend_of_names(figure, names, name_columns)
    return figure


def _add_legend_of_colors(figure: Figure) -> None:
    handles = [
        Line2D([], [], color=WELL, lw=2, label="ended well"),
        Line2D([], [], color=BADLY, lw=2, label="ended badly"),
        Line2D([], [], color=REST, lw=2, label="after the stop"),
        Line2D([], [], color="black", marker="X", ls="", label="stopped"),
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=4, frameon=False)


def _add_legend_of_names(figure: Figure, names: Sequence[str], columns: int) -> None:
    invisible = [Line2D([], [], ls="") for _ in names]
    figure.legend(
        invisible,
        names,
        loc="outside lower left",
        ncols=columns,
        frameon=False,
        fontsize=FONT_SIZE,
        handlelength=0,
    )


def _readable_labels(curves: Sequence[Curve]) -> dict[str, str]:
    """Name -> label of the runs in the picture; empty if there are too many to read."""
    run_labels = labels([curve.name for curve in curves])
    most = MOST_NUMBERS if legend(run_labels) else MOST_NAMES
    return run_labels if len(curves) <= most else {}


def _columns_of_names(names: Sequence[str], width: float) -> int:
    """How many names fit next to each other into so many inches."""
    longest = max((len(name) for name in names), default=0)
    return max(1, int(width / (LETTER_WIDTH * (longest + COLUMN_GAP))))


# ---- a panel


def _draw_panel(
    panel: Axes, rule: RuleOutcome, curves: Sequence[Curve], run_labels: Mapping[str, str]
) -> None:
    for curve, run in zip(curves, rule.runs, strict=True):
        _draw_curve(panel, curve, run.stopped_at)
    panel.set_xscale("function", functions=(_square_root, _square))
    longest = max(1, *(curve.points[-1].step for curve in curves))
    panel.set_xlim(0, 1.5 * longest)
    panel.set_xticks(_ticks(longest))
    if curves[0].metric.bounded:
        panel.set_ylim(0, 1.05 * curves[0].metric.scale)
    panel.spines[["top", "right"]].set_visible(False)
    if run_labels:
        _label_ends(panel, curves, run_labels)
    bad = sum(bool(curve.ended_badly) for curve in curves)
    good = len(curves) - bad
    bad_stopped = bad - len(rule.bad_missed)
    panel.set_title(
        f"{rule.rule} stops {len(rule.healthy_stopped)} of {good} good and {bad_stopped} of {bad} "
        f"bad runs\n{rule.saved} GPU-hours saved",
        fontsize=9,
    )


def _draw_curve(panel: Axes, curve: Curve, stopped_at: int | None) -> None:
    color = BADLY if curve.ended_badly else WELL
    steps = [point.step for point in curve.points]
    values = [curve.metric.scale * point.value for point in curve.points]
    last = len(steps) - 1 if stopped_at is None else steps.index(stopped_at)
    panel.plot(steps[last:], values[last:], color=REST, lw=1, zorder=1)
    panel.plot(steps[: last + 1], values[: last + 1], color=color, lw=1.3, zorder=2)
    if stopped_at is not None:
        panel.plot(steps[last], values[last], marker="X", ms=8, color=color, mec="white", zorder=3)


def _square_root(steps: Numbers) -> Numbers:
    return abs(steps) ** 0.5


def _square(roots: Numbers) -> Numbers:
    return roots**2


def _ticks(longest: int) -> list[float]:
    """Steps with one significant digit, spread evenly over a square-root scale."""
    ticks = {float(f"{longest * part**2:.1g}") for part in (0, 0.2, 0.4, 0.6, 0.8, 1)}
    return sorted(ticks)


def _label_ends(panel: Axes, curves: Sequence[Curve], run_labels: Mapping[str, str]) -> None:
    """Each curve's label at its end; where ends are close, one above the other in their order."""
    bottom, top = panel.get_ylim()
    # (value, step, label) of each curve that can be drawn to its end.
    ends: list[tuple[float, int, str]] = []
    for curve in curves:
        last = curve.points[-1]
        if math.isfinite(last.value):
            ends.append((curve.metric.scale * last.value, last.step, run_labels[curve.name]))
    ends.sort()
    heights = _apart([min(value, top) for value, _, _ in ends], LABEL_GAP * (top - bottom))
    for (_, step, label), height in zip(ends, heights, strict=True):
        panel.annotate(
            label,
            (step, height),
            xytext=(3, 0),
            textcoords="offset points",
            fontsize=FONT_SIZE,
            va="center",
            color="#555555",
            annotation_clip=False,
        )


def _apart(heights: Sequence[float], gap: float) -> list[float]:
    """Sorted heights, moved as little as it takes to lie a gap apart: those that touch are spread
    around their mean.
    """
    # Heights that touch, each less the gaps below it: what they have in common is their mean.
    groups: list[list[float]] = []
    for number, height in enumerate(heights):
        groups.append([height - number * gap])
        while len(groups) > 1 and fmean(groups[-2]) > fmean(groups[-1]):
            last = groups.pop()
            groups[-1] += last
    levels: list[float] = []
    for group in groups:
        levels += [fmean(group)] * len(group)
    return [level + number * gap for number, level in enumerate(levels)]
