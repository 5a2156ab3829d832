"""Pictures for the report: values in, an SVG element out. A metric that is a fraction is drawn in percent.

They are drawn in placeholder colours that become CSS variables, so the page's own light, dark and print colours apply to
them, with text as text. Five inches wide, because a phone shows them at half the width of a page.
"""

import io
import math
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from hpo.report.heatmap import PLAIN, paint_heat_map, scaled
from hpo.trainer import Metric

INK, FAINT, GREY = "#010101", "#020202", "#030303"  # text; grid and frame; what is not highlighted
HIGHLIGHTS = tuple(f"#0401{number:02x}" for number in range(1, 9))
WORSE, BETTER = HIGHLIGHTS[1], HIGHLIGHTS[2]
VARIABLES = {INK: "ink", FAINT: "faint", GREY: "grey"} | {
    color: f"c{number}" for number, color in enumerate(HIGHLIGHTS, 1)
}
LINES = ("-", "--", "-.", ":")
POINTS = 25  # of a curve that are drawn
BARS = 20  # parameters
MARKERS = {"loss": "^", "non-finite": "s"}  # by what stopped a trial; the metric has a cross
CAUSES = {"loss": "loss rose", "non-finite": "not finite"}
STYLE: Any = {
    "font.size": 9, "axes.labelsize": 9, "xtick.labelsize": 8.5, "ytick.labelsize": 8.5, "legend.fontsize": 8.5,
    "font.family": "sans-serif", "text.parse_math": False, "axes.unicode_minus": False,
    "text.color": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK, "axes.edgecolor": FAINT,
    "grid.color": FAINT, "grid.linewidth": 0.5, "axes.grid": True, "axes.axisbelow": True, "axes.spines.top": False,
    "axes.spines.right": False, "legend.frameon": False, "lines.linewidth": 1.4, "lines.markersize": 4,
    "svg.fonttype": "none",
}  # fmt: skip


@dataclass(frozen=True)
class Curve:
    """A trial's metric over its steps."""

    steps: Sequence[float]
    values: Sequence[float]
    stopped: str = ""  # by which limit of the rule; its end is marked
    label: str = ""  # highlighted, and in the legend; empty: grey


def cause_text(cause: str, metric: Metric) -> str:
    """What stopped a trial."""
    if cause == metric.key:
        return f"{metric.name} {'rose' if metric.direction == 'minimize' else 'fell'}"
    return CAUSES.get(cause, cause)


def _marker(cause: str, metric: Metric) -> str:
    return "x" if cause == metric.key else MARKERS.get(cause, "D")


def _picture(description: str, paint: Callable[[Axes], None], height: float = 3.2) -> str:
    """Draw on axes of their own. Equal values give equal text: no date, ids from `description`."""
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": description}):
        figure = Figure(figsize=(5, height), layout="constrained")
        axes = figure.add_subplot()
        paint(axes)
        if handles := axes.get_legend_handles_labels()[0]:
            figure.legend(
                loc="outside lower center", ncols=1 if len(handles) == 1 else 2
            )  # below the axes: it covers no data
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, dpi=144)
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->|<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"', "", svg).replace(
        "xlink:href", "href"
    )  # in HTML the element needs no namespace
    svg = re.sub(
        r'<g id="[^"]*">', "<g>", svg
    )  # several pictures a page: no ids but those that are referred to
    svg = re.sub(
        r'<svg [^>]*?(viewBox="[^"]*")[^>]*>',
        f'<svg role="img" aria-label="{description}" \\1>',
        svg,
        count=1,
    )
    return re.sub(r"\s*\n\s*", " ", re.sub(r"<[^>]+>", lambda tag: _for_the_page(tag[0]), svg))


def _for_the_page(tag: str) -> str:
    """A tag with the page's colours and font, and numbers to a hundredth of a point."""
    tag = re.sub(r"(\d\.\d\d)\d+", r"\1", re.sub(r"font-family: [^;]*; ", "", tag))
    return re.sub(
        r"#0[0-9a-f]{5}",
        lambda color: f"var(--{VARIABLES[color[0]]})" if color[0] in VARIABLES else color[0],
        tag,
    )


def _thin(values: Sequence[float]) -> list[float]:
    """POINTS of them at most, evenly, the first and the last among them."""
    chosen = (
        np.unique(np.linspace(0, len(values) - 1, POINTS).round().astype(int))
        if len(values) > POINTS
        else range(len(values))
    )
    return [values[index] for index in chosen]


def _metric_axis(axes: Axes, values: Sequence[float], metric: Metric) -> None:
    """The metric upwards; one that is to be low is logarithmic if it spans much: near the floor is where trials differ."""
    finite = [value for value in values if math.isfinite(value)]
    axes.set_ylabel(metric.label)
    if (
        metric.direction == "minimize"
        and finite
        and min(finite) > 0
        and max(finite) > 3 * min(finite)
    ):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(PLAIN)


def curves(trials: Sequence[Curve], metric: Metric) -> str:
    """The metric over steps: highlighted trials over grey ones, and a mark where one was stopped."""
    trials = [
        Curve(_thin(trial.steps), _thin(scaled(trial.values, metric)), trial.stopped, trial.label)
        for trial in trials
    ]
    grey = [trial for trial in trials if not trial.label]
    marked = [trial for trial in trials if trial.label][: len(HIGHLIGHTS)]

    def paint(axes: Axes) -> None:
        if grey:  # one line with gaps is a tenth of the text of many
            xs = [step for trial in grey for step in (*trial.steps, math.nan)]
            ys = [value for trial in grey for value in (*trial.values, math.nan)]
            axes.plot(xs, ys, color=GREY, linewidth=0.7, label="other trials")
        for number, trial in enumerate(marked):
            axes.plot(trial.steps, trial.values, LINES[number % len(LINES)], color=HIGHLIGHTS[number], label=trial.label,
                      linewidth=2 if number == 0 else 1.4, zorder=3)  # fmt: skip
        for cause in sorted({trial.stopped for trial in trials} - {""}):
            ends = [
                (trial.steps[-1], trial.values[-1]) for trial in trials if trial.stopped == cause
            ]
            axes.plot(*zip(*ends, strict=True), linestyle="", marker=_marker(cause, metric), color=INK, fillstyle="none", zorder=4,
                      label=f"stopped: {cause_text(cause, metric)} ({len(ends)})")  # fmt: skip
        _metric_axis(axes, [value for trial in trials for value in trial.values], metric)
        axes.set_xlabel("step")

    return _picture(f"{metric.name} of each trial over its steps", paint, 3.6)


def history(
    xs: Sequence[float],
    values: Sequence[float],
    starts: Mapping[str, int],
    x_label: str,
    metric: Metric,
) -> str:
    """Final value of the complete trials in order, and the best so far. starts: which of them, by name."""
    ys = scaled(values, metric)
    best = np.minimum if metric.direction == "minimize" else np.maximum

    def paint(axes: Axes) -> None:
        axes.plot(xs, ys, "o", color=GREY, label="complete trial")
        axes.step(xs, best.accumulate(ys), where="post", color=HIGHLIGHTS[0], label="best so far")
        for color, (name, place) in zip(HIGHLIGHTS[1:], starts.items(), strict=False):
            axes.plot(xs[place], ys[place], "D", color=color, label=name)
        _metric_axis(axes, ys, metric)
        axes.set_xlabel(x_label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=x_label == "trial"))

    return _picture(f"Best {metric.name} so far, by {x_label}", paint)


def importance(rows: Sequence[tuple[str, float | None, float | None]]) -> str:
    """Bars of both methods. rows: (parameter, PED-ANOVA, fANOVA), most important first, shares of 1."""
    rows = rows[:BARS]
    places = np.arange(len(rows))

    def paint(axes: Axes) -> None:
        for offset, color, label, values in (
            (-0.19, HIGHLIGHTS[0], "PED-ANOVA", [row[1] for row in rows]),
            (0.19, HIGHLIGHTS[1], "fANOVA", [row[2] for row in rows]),
        ):
            if any(value is not None for value in values):
                axes.barh(
                    places + offset,
                    [value or 0.0 for value in values],
                    0.36,
                    color=color,
                    label=label,
                )
        axes.set_yticks(places, [row[0] for row in rows])
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("importance (share of the variance)")

    return _picture("Importance of each parameter", paint, 1.1 + 0.3 * len(rows))


def heat_map(found: Mapping[str, Any], metric: Metric) -> str:
    """The metric over two parameters, with the trials on it. found: an entry of `interactions` of the finding `effects`."""
    return _picture(
        f"{metric.name} over two parameters", lambda axes: paint_heat_map(axes, found, metric, INK)
    )


def waterfall(steps: Sequence[Mapping[str, Any]], metric: Metric) -> str:
    """The metric from one configuration to another, a change a row. steps: of the finding `ablation`."""
    values = scaled((step["value"] for step in steps), metric)
    labels = [
        "\n".join(
            textwrap.wrap(
                step["label"], 66, max_lines=3, placeholder=" ...", break_on_hyphens=False
            )
        )
        for step in steps
    ]
    places = np.cumsum(
        [2 + label.count("\n") for label in labels]
    )  # in lines of text: a label is above its bar

    def paint(axes: Axes) -> None:
        before, above = math.nan, 0
        for step, value, label, place in zip(steps, values, labels, places, strict=True):
            note = "" if math.isfinite(value) else ": diverged"
            axes.annotate(
                label + note, (0, place - 0.5), xycoords=("axes fraction", "data"), va="bottom"
            )
            if note:
                continue
            if math.isfinite(before):
                worse = metric.sign * value > metric.sign * before
                axes.barh(place, value - before, 0.6, before, color=WORSE if worse else BETTER)
                axes.plot([before, before], [above, place], color=GREY, linewidth=0.7)
            if step["interval"]:
                axes.plot(
                    scaled(step["interval"], metric),
                    [place, place],
                    color=INK,
                    linewidth=1,
                    zorder=3,
                )
            axes.plot(value, place, "o", color=INK, zorder=3)
            before, above = value, place
        axes.set_yticks([])
        axes.set_ylim(places[-1] + 0.6, 0)
        axes.set_xlabel(f"{metric.label} and its 95 % interval")

    return _picture(f"{metric.name} along the path of changes", paint, 0.6 + 0.19 * places[-1])


def ensemble(points: Sequence[Mapping[str, Any]], chosen: int, mean: str, metric: Metric) -> str:
    """The metric over the ensemble's size.

    points: `curve` of the finding `ensemble`; chosen, mean: the size and the mean that were taken.
    """
    means = sorted({point["mean"] for point in points}, key=lambda other: other != mean)

    def paint(axes: Axes) -> None:
        for (number, partition), other in product(enumerate(("validation", "test")), means):
            along = [point for point in points if point["mean"] == other]
            if any(point.get(f"{partition}_value") is not None for point in along):
                ys = scaled((point.get(f"{partition}_value") for point in along), metric)
                style: dict[str, Any] = (
                    {"marker": "o"} if other == mean else {"linewidth": 1, "alpha": 0.6}
                )
                axes.plot([point["size"] for point in along], ys, LINES[number], color=HIGHLIGHTS[number],
                          label=f"{partition}, {other}", **style)  # fmt: skip
        axes.axvline(chosen, color=GREY, linewidth=1, label=f"taken: {chosen}, {mean}")
        axes.set_xlabel("members, counted with their weights")
        axes.set_ylabel(metric.label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))

    return _picture(f"{metric.name} by the size of the ensemble, a line for each mean", paint)
