"""The metric over two parameters that act together: for the report's page, and for `hpo effects --plot`."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from hpo.errors import CallerError
from hpo.trainer import Metric

FORMATS = (".svg", ".png")
PLAIN = FuncFormatter(lambda value, _: f"{value:g}")
matplotlib.rcParams["svg.hashsalt"] = "hpo"  # the same picture is the same file


def check_plot(path: Path) -> None:
    """Raises CallerError, before anything is computed."""
    if path.suffix.lower() not in FORMATS:
        raise CallerError(
            f"--plot {path}: not a picture that can be drawn. Valid: a name that ends with {' or '.join(FORMATS)}"
        )


def draw(found: Mapping[str, Any], path: Path, metric: Metric) -> None:
    """Draw the heat maps of `effects`, a panel each. Raises CallerError, OSError."""
    check_plot(path)
    maps = found["interactions"]
    if not maps:
        raise CallerError(
            f"--plot {path}: no two parameters have enough trials in common for a heat map. Run more trials"
        )
    columns = min(3, len(maps))
    rows = -(-len(maps) // columns)
    figure = Figure(figsize=(4.6 * columns, 3.9 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for panel, pair in zip(panels, maps, strict=False):
        paint_heat_map(panel, pair, metric, "black")
        panel.set_title(f"strength {pair['strength']:.2f}, p {pair['p_holm']:.2g} (Holm)")
    for panel in panels[len(maps) :]:
        panel.set_axis_off()
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2)
    figure.savefig(
        path, dpi=150, metadata={"Date": None} if path.suffix.lower() == ".svg" else None
    )


def paint_heat_map(axes: Axes, found: Mapping[str, Any], metric: Metric, ink: str) -> None:
    """The estimated metric as colours, the best bright, and the trials on it; those that are not complete as crosses.

    found: an entry of `interactions` of the finding `effects`. ink: colour of the legend's marks.
    """
    cells = np.array([scaled(row, metric) for row in found["value"]])
    finite = cells[np.isfinite(cells)]
    scale: dict[str, Any] = {"cmap": "viridis_r" if metric.direction == "minimize" else "viridis"}
    if finite.size:
        scale |= {"vmin": finite.min(), "vmax": finite.max()}

    places: dict[str, dict[str, int]] = {}
    edges: dict[str, Sequence[float]] = {}
    for side, axis, set_scale in (
        ("x", axes.xaxis, axes.set_xscale),
        ("y", axes.yaxis, axes.set_yscale),
    ):
        values = found[f"{side}_values"]
        axis.set_label_text(found[side])
        numbers = all(
            isinstance(value, int | float) and not isinstance(value, bool) for value in values
        )
        if numbers and not found.get(f"{side}_choices"):
            places[side], edges[side] = {}, _edges(values, found[f"{side}_log"])
            if found[f"{side}_log"]:
                set_scale("log")
                axis.set_major_formatter(PLAIN)
                axis.set_minor_formatter(NullFormatter())
        else:
            places[side] = {_name(value): place for place, value in enumerate(values)}
            edges[side] = _edges(range(len(values)), False)
            axis.set_ticks(range(len(values)), list(places[side]))
    mesh = axes.pcolormesh(edges["x"], edges["y"], cells, rasterized=True, **scale)
    axes.grid(visible=False)
    solids = axes.figure.colorbar(mesh, ax=axes, label=f"{metric.label}, estimated").solids
    assert solids is not None
    solids.set_rasterized(True)
    for complete, marker in ((True, "o"), (False, "x")):
        trials = [trial for trial in found["trials"] if (trial["state"] == "complete") == complete]
        xs, ys = ([_place(places[side], trial, side) for trial in trials] for side in "xy")
        if complete and trials:
            values = scaled((trial["value"] for trial in trials), metric)
            axes.plot(
                xs, ys, marker, color="black", markersize=6.5, linestyle=""
            )  # seen on bright cells, the white edge on dark ones
            axes.scatter(xs, ys, 22, values, edgecolors="white", linewidths=1, zorder=3, **scale)
            axes.plot([], [], marker, color=ink, fillstyle="none", linestyle="", label="trial")
        elif trials:
            axes.plot(xs, ys, marker, color="white", markeredgewidth=2.6, linestyle="")
            axes.plot(xs, ys, marker, color="black", markeredgewidth=1.2, linestyle="")
            axes.plot([], [], marker, color=ink, linestyle="", label="not complete")


def scaled(values: Iterable[float | None], metric: Metric) -> list[float]:
    """As they are drawn; what is not known or not finite is NaN."""
    return [
        math.nan if value is None or not math.isfinite(value) else metric.scale * value
        for value in values
    ]


def _edges(values: Sequence[float], log: bool) -> list[float]:
    """Of the cells around a grid's values."""
    at = np.log(values) if log else np.array(values, dtype=float)
    middle = (at[1:] + at[:-1]) / 2
    half = (at[1] - at[0]) / 2 if len(at) > 1 else 0.5
    edges = np.array(
        [at[0] - half, *middle, at[-1] + (at[-1] - middle[-1] if len(at) > 1 else half)]
    )
    return list(map(float, np.exp(edges) if log else edges))


def _name(value: Any) -> str:
    return "off" if value is None else str(value)


def _place(places: Mapping[str, int], trial: Mapping[str, Any], side: str) -> float:
    """Where a trial is on an axis; beside its choice, so that trials of one choice do not hide each other."""
    if not places:
        return float(trial[side])
    turn = {"x": 0.618, "y": 0.755}[side]  # multiples of an irrational number fill the place evenly
    return float(places[_name(trial[side])] + 0.6 * (turn * trial["number"] % 1 - 0.5))
