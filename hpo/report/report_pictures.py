"""Pictures of the report: values in, an SVG element out. Fractions are drawn in percent.

They are drawn in placeholder colours that become CSS variables, so the page's light, dark and print
colours apply to them, and text stays text. They are five inches wide because a phone shows them at
half the width of a page.
"""

import html
import io
import math
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from hpo.report.heatmap import PLAIN, paint_heat_map, scaled
from hpo.trainer import Metric

# Text.
INK = "#010101"
# Grid and frame.
FAINT = "#020202"
# What is not highlighted.
GREY = "#030303"
HIGHLIGHTS = tuple(f"#0401{number:02x}" for number in range(1, 9))
WORSE = HIGHLIGHTS[1]
BETTER = HIGHLIGHTS[2]
# Placeholder colour -> name of the page's CSS variable.
VARIABLES = {INK: "ink", FAINT: "faint", GREY: "grey"} | {
    color: f"c{number}" for number, color in enumerate(HIGHLIGHTS, 1)
}
LINE_STYLES = ("-", "--", "-.", ":")
# Points that are drawn of a curve, at most.
POINTS = 25
# Parameters in the picture of their importance, at most.
BARS = 20
# By what stopped a trial; a trial that the metric stopped has a cross.
MARKERS = {"loss": "^", "non-finite": "s"}
CAUSES = {"loss": "loss rose", "non-finite": "not finite"}
# Characters in a line of a change's label.
LABEL_WIDTH = 66
STYLE: Any = {
    "font.size": 9,
    "axes.labelsize": 9,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.fontsize": 8.5,
    "font.family": "sans-serif",
    "axes.unicode_minus": False,
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.edgecolor": FAINT,
    "grid.color": FAINT,
    "grid.linewidth": 0.5,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "lines.markersize": 4,
    "svg.fonttype": "none",
    "text.parse_math": False,
}


@dataclass(frozen=True)
class Curve:
    """A trial's metric over its steps."""

    steps: Sequence[float]
    values: Sequence[float]
    # Which limit of the rule stopped the trial, so that its end is marked; empty if none did.
    stopped: str = ""
    # A curve with a label is highlighted and in the legend; the others are grey.
    label: str = ""


def curves(trials: Sequence[Curve], metric: Metric) -> str:
    """The metric over steps: highlighted trials over grey ones, with a mark where one stopped."""
    trials = [
        Curve(_thin(trial.steps), _thin(scaled(trial.values, metric)), trial.stopped, trial.label)
        for trial in trials
    ]
    grey = [trial for trial in trials if not trial.label]
    highlighted = [trial for trial in trials if trial.label][: len(HIGHLIGHTS)]

    def paint(axes: Axes) -> None:
        if grey:
            xs, ys = _one_line(grey)
            axes.plot(xs, ys, color=GREY, linewidth=0.7, label="other trials")
        for number, trial in enumerate(highlighted):
            axes.plot(
                trial.steps,
                trial.values,
                LINE_STYLES[number % len(LINE_STYLES)],
                color=HIGHLIGHTS[number],
                label=trial.label,
                linewidth=2 if number == 0 else 1.4,
                zorder=3,
            )
        for cause in sorted({trial.stopped for trial in trials} - {""}):
            _mark_ends(axes, [trial for trial in trials if trial.stopped == cause], metric)
        _set_metric_axis(axes, [value for trial in trials for value in trial.values], metric)
        axes.set_xlabel("step")

    return _picture(f"{metric.name} of each trial over its steps", paint, 3.6)


def _one_line(trials: Sequence[Curve]) -> tuple[list[float], list[float]]:
    """Several curves as one line with gaps, which takes a tenth of the text of many lines."""
    xs: list[float] = []
    ys: list[float] = []
    for trial in trials:
        xs += [*trial.steps, math.nan]
        ys += [*trial.values, math.nan]
    return xs, ys


def _mark_ends(axes: Axes, trials: Sequence[Curve], metric: Metric) -> None:
    """Mark where trials ended that were all stopped by the same cause."""
    cause = trials[0].stopped
    axes.plot(
        [trial.steps[-1] for trial in trials],
        [trial.values[-1] for trial in trials],
        linestyle="",
        marker="x" if cause == metric.key else MARKERS.get(cause, "D"),
        color=INK,
        fillstyle="none",
        zorder=4,
        label=f"stopped: {cause_text(cause, metric)} ({len(trials)})",
    )


def cause_text(cause: str, metric: Metric) -> str:
    """What stopped a trial, in words."""
    if cause == metric.key:
        change = "rose" if metric.direction == "minimize" else "fell"
        return f"{metric.name} {change}"
    return CAUSES.get(cause, cause)


def history(
    xs: Sequence[float],
    values: Sequence[float],
    starts: Mapping[str, int],
    x_label: str,
    metric: Metric,
) -> str:
    """The final values of the complete trials in order, and the best so far.

    xs, values: one per trial. starts: index of each start among them, by its name.
    """
    ys = scaled(values, metric)
    best = np.minimum if metric.direction == "minimize" else np.maximum

    def paint(axes: Axes) -> None:
        axes.plot(xs, ys, "o", color=GREY, label="complete trial")
        axes.step(xs, best.accumulate(ys), where="post", color=HIGHLIGHTS[0], label="best so far")
        # Starts beyond the colours are not highlighted.
        for color, (name, index) in zip(HIGHLIGHTS[1:], starts.items(), strict=False):
            axes.plot(xs[index], ys[index], "D", color=color, label=name)
        _set_metric_axis(axes, ys, metric)
        axes.set_xlabel(x_label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=x_label == "trial"))

    return _picture(f"Best {metric.name} so far, by {x_label}", paint)


def importance(rows: Sequence[tuple[str, float | None, float | None]]) -> str:
    """Bars of both methods.

    rows: (parameter, PED-ANOVA, fANOVA) as shares of 1, the most important parameter first.
    """
    rows = rows[:BARS]
    places = np.arange(len(rows))
    ped_anova = [row[1] for row in rows]
    fanova = [row[2] for row in rows]

    def paint_bars(
        axes: Axes, offset: float, color: str, label: str, shares: Sequence[float | None]
    ) -> None:
        if all(share is None for share in shares):
            return
        widths = [share or 0.0 for share in shares]
        axes.barh(places + offset, widths, 0.36, color=color, label=label)

    def paint(axes: Axes) -> None:
        paint_bars(axes, -0.19, HIGHLIGHTS[0], "PED-ANOVA", ped_anova)
        paint_bars(axes, 0.19, HIGHLIGHTS[1], "fANOVA", fanova)
        axes.set_yticks(places, [row[0] for row in rows])
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("importance (share of the variance)")

    return _picture("Importance of each parameter", paint, 1.1 + 0.3 * len(rows))


def heat_map(pair: Mapping[str, Any], metric: Metric) -> str:
    """The metric over two parameters, with the trials on it.

    pair: an entry of `interactions` of the finding `effects`.
    """

    def paint(axes: Axes) -> None:
        paint_heat_map(axes, pair, metric, INK)

    return _picture(f"{metric.name} over two parameters", paint)


def waterfall(steps: Sequence[Mapping[str, Any]], metric: Metric) -> str:
    """The metric on the way from one configuration to another, one row per change.

    steps: those of the finding `ablation`.
    """
    values = scaled((step["value"] for step in steps), metric)
    labels = [_wrapped(step["label"]) for step in steps]
    # In lines of text: a label is above its bar.
    places = np.cumsum([2 + label.count("\n") for label in labels])

    def paint(axes: Axes) -> None:
        previous_value = math.nan
        previous_place = 0
        for step, value, label, place in zip(steps, values, labels, places, strict=True):
            diverged = not math.isfinite(value)
            axes.annotate(
                f"{label}: diverged" if diverged else label,
                (0, place - 0.5),
                xycoords=("axes fraction", "data"),
                va="bottom",
            )
            if diverged:
                continue
            if math.isfinite(previous_value):
                worse = metric.sign * value > metric.sign * previous_value
                color = WORSE if worse else BETTER
                axes.barh(place, value - previous_value, 0.6, previous_value, color=color)
                axes.plot(
                    [previous_value, previous_value],
                    [previous_place, place],
                    color=GREY,
                    linewidth=0.7,
                )
            if step["interval"]:
                ends = scaled(step["interval"], metric)
                axes.plot(ends, [place, place], color=INK, linewidth=1, zorder=3)
            axes.plot(value, place, "o", color=INK, zorder=3)
            previous_value = value
            previous_place = place
        axes.set_yticks([])
        axes.set_ylim(places[-1] + 0.6, 0)
        axes.set_xlabel(f"{metric.label} and its 95 % interval")

    return _picture(f"{metric.name} along the path of changes", paint, 0.6 + 0.19 * places[-1])


def _wrapped(label: str) -> str:
    lines = textwrap.wrap(
        label, LABEL_WIDTH, max_lines=3, placeholder=" ...", break_on_hyphens=False
    )
    return "\n".join(lines)


def ensemble(points: Sequence[Mapping[str, Any]], chosen: int, mean: str, metric: Metric) -> str:
    """The metric over the size of the ensemble, a line for each mean and partition.

    points: `curve` of the finding `ensemble`. chosen, mean: the size and the mean that were chosen.
    """
    # The chosen mean comes first.
    means = sorted({point["mean"] for point in points}, key=lambda name: name != mean)

    def paint_partition(axes: Axes, number: int, partition: str) -> None:
        key = f"{partition}_value"
        for name in means:
            of_mean = [point for point in points if point["mean"] == name]
            values = [point.get(key) for point in of_mean]
            if all(value is None for value in values):
                continue
            style: dict[str, Any] = {"linewidth": 1, "alpha": 0.6}
            if name == mean:
                style = {"marker": "o"}
            axes.plot(
                [point["size"] for point in of_mean],
                scaled(values, metric),
                LINE_STYLES[number],
                color=HIGHLIGHTS[number],
                label=f"{partition}, {name}",
                **style,
            )

    def paint(axes: Axes) -> None:
        paint_partition(axes, 0, "validation")
        paint_partition(axes, 1, "test")
        axes.axvline(chosen, color=GREY, linewidth=1, label=f"chosen: {chosen}, {mean}")
        axes.set_xlabel("members, counted with their weights")
        axes.set_ylabel(metric.label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))

    return _picture(f"{metric.name} by the size of the ensemble, a line for each mean", paint)


def _thin(values: Sequence[float]) -> list[float]:
    """At most POINTS of the values, evenly spaced, the first and the last among them."""
    if len(values) <= POINTS:
        return list(values)
    indices = np.unique(np.linspace(0, len(values) - 1, POINTS).round().astype(int))
    return [values[index] for index in indices]


def _set_metric_axis(axes: Axes, values: Sequence[float], metric: Metric) -> None:
    """Label the vertical axis, and make it logarithmic if that shows more.

    A metric that is minimized and spans much differs between good trials near its floor.
    """
    axes.set_ylabel(metric.label)
    finite = [value for value in values if math.isfinite(value)]
    if metric.direction != "minimize" or not finite or min(finite) <= 0:
        return
    if max(finite) > 3 * min(finite):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(PLAIN)


def _picture(description: str, paint: Callable[[Axes], None], height: float = 3.2) -> str:
    """Draw a picture of its own, `height` inches high.

    Equal values give equal text: there is no date, and ids come from `description`.
    """
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": description}):
        figure = Figure(figsize=(5, height), layout="constrained")
        axes = figure.add_subplot()
        paint(axes)
        handles = axes.get_legend_handles_labels()[0]
        if handles:
            # Below the axes, where it covers no data.
            figure.legend(loc="outside lower center", ncols=min(len(handles), 2))
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, dpi=144)
    return _for_the_page(out.getvalue(), description)


def _for_the_page(document: str, description: str) -> str:
    """An SVG document as an element of an HTML page."""
    svg = document[document.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->|<style.*?</style>", "", svg, flags=re.DOTALL)
    # Within HTML the element needs no namespace.
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"', "", svg).replace("xlink:href", "href")
    # A page has several pictures, so only ids that are referred to stay.
    svg = re.sub(r'<g id="[^"]*">', "<g>", svg)
    # The description may contain a metric's name, which is a text of the user.
    label = f'<svg role="img" aria-label="{html.escape(description)}"'
    svg = re.sub(
        r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', lambda match: f"{label} {match[1]}>", svg, count=1
    )
    svg = re.sub(r"<[^>]+>", lambda match: _tag_for_the_page(match[0]), svg)
    return re.sub(r"\s*\n\s*", " ", svg)


def _tag_for_the_page(tag: str) -> str:
    """A tag with the page's colours and font, and numbers rounded to a hundredth of a point."""
    tag = re.sub(r"font-family: [^;]*; ", "", tag)
    tag = re.sub(r"(\d\.\d\d)\d+", r"\1", tag)
    return re.sub(r"#0[0-9a-f]{5}", lambda match: _css_color(match[0]), tag)


def _css_color(color: str) -> str:
    if color not in VARIABLES:
        return color
    return f"var(--{VARIABLES[color]})"
