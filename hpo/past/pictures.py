"""Pictures with matplotlib, drawn without a screen."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hpo.errors import CallerError
from hpo.past.backtest import Backtest, Curve, RuleOutcome
from hpo.past.labels import labels, legend

ENDINGS = (".svg", ".png", ".pdf")
WELL, BADLY, REST = "#2166ac", "#c0392b", "#b8b8b8"
# Runs; more names could not be read. Numbers are shorter.
LABELLED = 12
NUMBERED = 20
SMALL = 6
# Inches of a line and of a letter of that size.
LINE, LETTER = 0.13, 0.055
# Between two names, of the height of a panel.
GAP = 0.028


def backtest_picture(found: Backtest, curves: Sequence[Curve], path: Path) -> None:
    """A panel a rule: each curve in colour up to where the rule stops it, its rest in grey. Raises
    CallerError for the path.
    """
    if path.suffix not in ENDINGS:
        raise CallerError(
            f"--plot {path}: ends with {path.suffix or 'nothing'}. Valid: {', '.join(ENDINGS)}"
        )
    rules = found.rules
    columns = min(3, len(rules))
    rows = -(-len(rules) // columns)
    called = _called(curves)
    names = [f"{number}  {name}" for number, name in legend(called)]
    width = 4.6 * columns + 0.6
    beside = _columns_of_names(names, width)
    below = LINE * -(-len(names) // beside)
    figure = Figure(figsize=(width, 3.9 * rows + 0.5 + below), layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for panel, rule in zip(panels.flat, rules, strict=False):
        _panel(panel, rule, curves, called)
    for panel in panels.flat[len(rules) :]:
        panel.set_axis_off()
    for panel in panels[:, 0]:
        panel.set_ylabel(curves[0].metric.label)
    for panel in panels[-1]:
        panel.set_xlabel("optimizer updates (square-root scale)")
    ended = [("ended well", WELL), ("ended badly", BADLY), ("after the stop", REST)]
    strokes = [mpl.lines.Line2D([], [], color=color, lw=2, label=label) for label, color in ended]
    cross = mpl.lines.Line2D([], [], color="black", marker="X", ls="", label="stopped")
    figure.legend(handles=[*strokes, cross], loc="outside upper center", ncols=4, frameon=False)
    if names:
        nothing = [mpl.lines.Line2D([], [], ls="") for _ in names]
        figure.legend(
            nothing,
            names,
            loc="outside lower left",
            ncols=beside,
            frameon=False,
            fontsize=SMALL,
            handlelength=0,
        )
    with mpl.rc_context({"svg.hashsalt": "hpo"}):  # the same picture, the same file
        try:
            figure.savefig(
                path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None
            )
        except OSError as error:
            raise CallerError(f"--plot {path}: cannot be written ({error.strerror})") from None


def _called(curves: Sequence[Curve]) -> dict[str, str]:
    """What runs are called in the picture; empty: they are too many."""
    called = labels([curve.name for curve in curves])
    most = NUMBERED if legend(called) else LABELLED
    return called if len(curves) <= most else {}


def _name_ends(panel: Axes, curves: Sequence[Curve], called: Mapping[str, str]) -> None:
    """Each curve's name at its end; where ends are close, above each other in their order."""
    bottom, top = panel.get_ylim()
    ends = [
        (curve.metric.scale * curve.points[-1].value, curve.points[-1].step, called[curve.name])
        for curve in curves
        if called and math.isfinite(curve.points[-1].value)
    ]
    ends.sort()
    heights = _apart([min(value, top) for value, _, _ in ends], GAP * (top - bottom))
    for (_, step, name), height in zip(ends, heights, strict=True):
        panel.annotate(
            name,
            (step, height),
            xytext=(3, 0),
            textcoords="offset points",
            fontsize=SMALL,
            va="center",
            color="#555555",
            annotation_clip=False,
        )


def _apart(heights: Sequence[float], gap: float) -> list[float]:
    """Sorted heights, moved as little as it takes to lie a gap apart: those that touch lie around
    their mean.
    """
    groups: list[list[float]] = []
    for number, height in enumerate(heights):
        groups.append([height - number * gap])
        while len(groups) > 1 and fmean(groups[-2]) > fmean(groups[-1]):
            last = groups.pop()
            groups[-1] += last
    level = [fmean(group) for group in groups for _ in group]
    return [height + number * gap for number, height in enumerate(level)]


def _columns_of_names(names: Sequence[str], width: float) -> int:
    """How many names stand beside each other in so many inches."""
    longest = max(map(len, names), default=0)
    return max(1, int(width / (LETTER * (longest + 6))))


def _panel(
    panel: Axes, rule: RuleOutcome, curves: Sequence[Curve], called: Mapping[str, str]
) -> None:
    for curve, run in zip(curves, rule.runs, strict=True):
        color = BADLY if curve.ended_badly else WELL
        steps = [point.step for point in curve.points]
        values = [curve.metric.scale * point.value for point in curve.points]
        at = len(steps) if run.stopped_at is None else steps.index(run.stopped_at) + 1
        panel.plot(steps[at - 1 :], values[at - 1 :], color=REST, lw=1, zorder=1)
        panel.plot(steps[:at], values[:at], color=color, lw=1.3, zorder=2)
        if run.stopped_at is not None:
            panel.plot(
                steps[at - 1], values[at - 1], marker="X", ms=8, color=color, mec="white", zorder=3
            )
    panel.set_xscale("function", functions=(lambda x: abs(x) ** 0.5, lambda x: x**2))
    longest = max(1, *(curve.points[-1].step for curve in curves))
    panel.set_xlim(0, 1.5 * longest)
    panel.set_xticks(
        sorted({float(f"{longest * part**2:.1g}") for part in (0, 0.2, 0.4, 0.6, 0.8, 1)})
    )
    if curves[0].metric.bounded:
        panel.set_ylim(0, 1.05 * curves[0].metric.scale)
    panel.spines[["top", "right"]].set_visible(False)
    _name_ends(panel, curves, called)
    bad = sum(bool(curve.ended_badly) for curve in curves)
    good, missed = len(rule.healthy_stopped), len(rule.bad_missed)
    saved = f"{rule.saved} GPU-hours saved"
    panel.set_title(
        f"{rule.rule} stops {good} of {len(curves) - bad} good and {bad - missed} of {bad} bad "
        f"runs\n{saved}",
        fontsize=9,
    )
