"""The interactions of a study as heat maps in one picture."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hpo.errors import CallerError
from hpo.text import value_text
from hpo.trainer import Metric

FORMATS = (".svg", ".png")
matplotlib.rcParams["svg.hashsalt"] = "hpo"  # the same picture is the same file


def check_plot(path: Path) -> None:
    """Raises CallerError, before anything is computed."""
    if path.suffix.lower() not in FORMATS:
        raise CallerError(f"--plot {path}: not a picture that can be drawn. Valid: a name that ends with {' or '.join(FORMATS)}")


def draw(found: Mapping[str, Any], path: Path, metric: Metric) -> None:
    """Draw the heat maps of `effects` and the trials on them, stopped ones as crosses. Raises CallerError, OSError."""
    check_plot(path)
    maps = found["interactions"]
    if not maps:
        raise CallerError(f"--plot {path}: no two parameters have enough trials in common for a heat map. Run more trials")
    columns = min(3, len(maps))
    rows = -(-len(maps) // columns)
    figure = Figure(figsize=(4.6 * columns, 3.9 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    low = min(min(map(min, pair["value"])) for pair in maps)
    high = max(max(map(max, pair["value"])) for pair in maps)
    for axis, pair in zip(axes, maps, strict=False):
        mesh = _draw(axis, pair, low, high, _colours(metric))
    for axis in axes[len(maps) :]:
        axis.set_axis_off()
    figure.colorbar(mesh, ax=axes, label=f"{metric.name}, mean of the surrogate", format="{x:.0%}" if metric.unit == "percent" else None)
    figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix.lower() == ".svg" else None)


def _colours(metric: Metric) -> str:
    """The best is bright."""
    return "viridis_r" if metric.direction == "minimize" else "viridis"


def _draw(axis: Axes, pair: Mapping[str, Any], low: float, high: float, cmap: str) -> Any:
    mesh = axis.pcolormesh(_edges(pair, "x"), _edges(pair, "y"), pair["value"], cmap=cmap, vmin=low, vmax=high)
    for state, marker in (("complete", "o"), ("stopped", "X")):
        shown = [trial for trial in pair["trials"] if trial["state"] == state]
        x, y = ([pair[f"{side}_values"].index(trial[side]) if pair[f"{side}_choices"] else trial[side] for trial in shown] for side in "xy")
        colours: dict[str, Any] = {"c": [trial["value"] for trial in shown], "cmap": cmap, "vmin": low, "vmax": high}
        axis.scatter(x, y, **colours, marker=marker, s=36, edgecolors="white", linewidths=0.8)
    axis.set(xlabel=pair["x"], ylabel=pair["y"], title=f"strength {pair['strength']:.2f}, p {pair['p_holm']:.2g} (Holm)")
    for side, ruler, scale in (("x", axis.xaxis, axis.set_xscale), ("y", axis.yaxis, axis.set_yscale)):
        if pair[f"{side}_choices"]:
            ruler.set_ticks(range(len(pair[f"{side}_values"])), [value_text(value) for value in pair[f"{side}_values"]])
        elif pair[f"{side}_log"]:
            scale("log")
    return mesh


def _edges(pair: Mapping[str, Any], side: str) -> Any:
    """Of the cells around the grid's values."""
    values = pair[f"{side}_values"]
    if pair[f"{side}_choices"]:
        return np.arange(len(values) + 1) - 0.5
    at = np.log(values) if pair[f"{side}_log"] else np.array(values, dtype=float)
    middle = (at[1:] + at[:-1]) / 2
    edges = np.array([2 * at[0] - middle[0], *middle, 2 * at[-1] - middle[-1]])
    return np.exp(edges) if pair[f"{side}_log"] else edges
