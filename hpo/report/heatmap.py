"""The metric over two parameters that act together, as a heat map.

The report's page shows such maps one by one; `hpo effects --plot` draws all of them into one file.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from hpo.errors import CallerError
from hpo.text import PICTURE_STYLE
from hpo.trainer import Metric

FORMATS = (".svg", ".png")
PLAIN = FuncFormatter(lambda value, _: f"{value:g}")
PANELS_PER_ROW = 3


def check_plot(path: Path) -> None:
    """Raises CallerError if no picture can be written under this name."""
    if path.suffix.lower() not in FORMATS:
        raise CallerError(
            f"--plot {path}: not a picture that can be drawn. "
            f"Valid: a name that ends with {' or '.join(FORMATS)}"
        )


def draw(effects: Mapping[str, Any], path: Path, metric: Metric) -> None:
    """Draw the heat maps of the finding `effects`, one panel each. Raises CallerError, OSError."""
    check_plot(path)
    pairs = effects["interactions"]
    if not pairs:
        raise CallerError(
            f"--plot {path}: no two parameters have enough trials in common for a heat map. "
            "Run more trials"
        )
    with matplotlib.rc_context(PICTURE_STYLE):
        _draw_panels(pairs, path, metric)


def _draw_panels(pairs: Sequence[Mapping[str, Any]], path: Path, metric: Metric) -> None:
    columns = min(PANELS_PER_ROW, len(pairs))
    rows = math.ceil(len(pairs) / columns)
    figure = Figure(figsize=(4.6 * columns, 3.9 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    # The last row may have more panels than pairs.
    for panel, pair in zip(panels, pairs, strict=False):
        paint_heat_map(panel, pair, metric, "black")
        panel.set_title(f"strength {pair['strength']:.2f}, p {pair['p_holm']:.2g} (Holm)")
    for panel in panels[len(pairs) :]:
        panel.set_axis_off()
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2)
    # Without a date, an SVG of equal values is the same file. A PNG has none.
    metadata = {"Date": None} if path.suffix.lower() == ".svg" else None
    figure.savefig(path, dpi=150, metadata=metadata)


@dataclass(frozen=True)
class _Side:
    """One axis of a heat map."""

    name: str
    # Cell borders along the axis: one more than the grid has values.
    edges: Sequence[float]
    # Position of each choice, by its label; empty for an axis of numbers.
    positions: Mapping[str, int]

    def position(self, trial: Mapping[str, Any]) -> float:
        """Where a trial is drawn.

        Trials of the same choice are spread around it, so that they do not hide each other.
        """
        value = trial[self.name]
        if not self.positions:
            return float(value)
        # Multiples of an irrational number fill an interval evenly.
        irrational = 0.618 if self.name == "x" else 0.755
        spread = 0.6 * (irrational * trial["number"] % 1 - 0.5)
        return float(self.positions[_choice_label(value)] + spread)


def paint_heat_map(axes: Axes, pair: Mapping[str, Any], metric: Metric, ink: str) -> None:
    """Paint the estimated metric as colours, the best bright, and the trials on top of it.

    Trials that are not complete are crosses. pair: an entry of `interactions` of the finding
    `effects`. ink: colour of the marks in the legend.
    """
    cells = np.array([scaled(row, metric) for row in pair["value"]])
    finite = cells[np.isfinite(cells)]
    scale: dict[str, Any] = {"cmap": "viridis_r" if metric.direction == "minimize" else "viridis"}
    if finite.size:
        scale["vmin"] = finite.min()
        scale["vmax"] = finite.max()

    x = _prepare_side(axes, axes.xaxis, "x", pair)
    y = _prepare_side(axes, axes.yaxis, "y", pair)
    mesh = axes.pcolormesh(x.edges, y.edges, cells, rasterized=True, **scale)
    axes.grid(visible=False)
    figure = axes.figure
    solids = figure.colorbar(mesh, ax=axes, label=f"{metric.label}, estimated").solids
    assert solids is not None
    solids.set_rasterized(True)

    complete = [trial for trial in pair["trials"] if trial["state"] == "complete"]
    if complete:
        xs = [x.position(trial) for trial in complete]
        ys = [y.position(trial) for trial in complete]
        values = scaled((trial["value"] for trial in complete), metric)
        # The black edge is seen on bright cells, the white one on dark cells.
        axes.plot(xs, ys, "o", color="black", markersize=6.5, linestyle="")
        axes.scatter(xs, ys, 22, values, edgecolors="white", linewidths=1, zorder=3, **scale)
        axes.plot([], [], "o", color=ink, fillstyle="none", linestyle="", label="trial")
    others = [trial for trial in pair["trials"] if trial["state"] != "complete"]
    if others:
        xs = [x.position(trial) for trial in others]
        ys = [y.position(trial) for trial in others]
        axes.plot(xs, ys, "x", color="white", markeredgewidth=2.6, linestyle="")
        axes.plot(xs, ys, "x", color="black", markeredgewidth=1.2, linestyle="")
        axes.plot([], [], "x", color=ink, linestyle="", label="not complete")


def _prepare_side(axes: Axes, axis: Axis, name: str, pair: Mapping[str, Any]) -> _Side:
    """Set up the label, the scale and the ticks of one axis. name: `x` or `y`."""
    axis.set_label_text(pair[name])
    values = pair[f"{name}_values"]
    if pair.get(f"{name}_choices") or not all(_is_number(value) for value in values):
        positions = {_choice_label(value): index for index, value in enumerate(values)}
        axis.set_ticks(range(len(values)), list(positions))
        return _Side(name, _cell_edges(range(len(values)), log=False), positions)
    log = pair[f"{name}_log"]
    if log:
        set_scale = axes.set_xscale if name == "x" else axes.set_yscale
        set_scale("log")
        axis.set_major_formatter(PLAIN)
        axis.set_minor_formatter(NullFormatter())
    return _Side(name, _cell_edges(values, log), {})


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _cell_edges(values: Sequence[float], log: bool) -> list[float]:
    """The borders of the cells around a grid's values, half way between neighbours."""
    centers = np.log(values) if log else np.array(values, dtype=float)
    middles = (centers[1:] + centers[:-1]) / 2
    first_half = last_half = 0.5
    if len(centers) > 1:
        first_half = (centers[1] - centers[0]) / 2
        last_half = centers[-1] - middles[-1]
    edges = np.array([centers[0] - first_half, *middles, centers[-1] + last_half])
    return [float(edge) for edge in (np.exp(edges) if log else edges)]


def _choice_label(value: Any) -> str:
    return "off" if value is None else str(value)


def scaled(values: Iterable[float | None], metric: Metric) -> list[float]:
    """Values as they are drawn; NaN for those that are unknown or not finite."""
    return [
        math.nan if value is None or not math.isfinite(value) else metric.scale * value
        for value in values
    ]
