"""Plots of a study that optuna-dashboard does not have, as plotly.js figures.

They are kept small, because a page reads them again after every change.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from typing import Any

from hpo.space.spec import StudySpec
from hpo.study.pick import best_of
from hpo.study.trial import Record
from hpo.trainer import Metric

# How many of the newest trials are drawn, in grey and as points of the map.
CURVES = 40
MAP_POINTS = 500
GREY, BEST, STOPPED = "#b0b0b0", "#1f5fbf", "#c0392b"
STARTS = ("#d4691e", "#2b8a3e", "#8e44ad", "#5d4037")
# Each trial with its thin curve: the value at each evaluated step.
Curves = Sequence[tuple[Record, Mapping[int, float]]]
Points = Iterable[tuple[float | None, float | None]]


def figures(trials: Curves, spec: StudySpec) -> dict[str, str]:
    """The plots that have something to show, as JSON by their ids."""
    records = [record for record, _ in trials]
    pictures = {
        "hpo-curves": _curves(trials, spec.metric),
        "hpo-map": _map(records, spec),
        "hpo-starts": _starts(records, spec.metric),
    }
    return {
        name: json.dumps(picture, separators=(",", ":"))
        for name, picture in pictures.items()
        if picture
    }


def _picture(
    traces: list[dict[str, Any]], title: str, x: str, y: str, **axes: Any
) -> dict[str, Any]:
    """A figure. `axes`: more settings of `xaxis` and `yaxis`."""
    layout = {
        "title": {"text": title, "x": 0.02},
        "margin": {"l": 60, "r": 20, "t": 50, "b": 50},
        "legend": {"orientation": "h", "y": -0.2},
        "xaxis": {"title": {"text": x}, **axes.get("xaxis", {})},
        "yaxis": {"title": {"text": y}, **axes.get("yaxis", {})},
    }
    return {"data": traces, "layout": layout}


def _trace(points: Points, name: str, mode: str = "lines", **settings: Any) -> dict[str, Any]:
    points = list(points)
    return {
        "x": [_rounded(x) for x, _ in points],
        "y": [_rounded(y) for _, y in points],
        "name": name,
        "mode": mode,
        **settings,
    }


def _rounded(value: float | None) -> float | None:
    """Four significant digits; None, a gap in the line, for anything that is not finite."""
    if isinstance(value, float):
        return float(f"{value:.4g}") if math.isfinite(value) else None
    return value if isinstance(value, int) else None


def _curves(trials: Curves, metric: Metric) -> dict[str, Any] | None:
    """The metric over steps.

    The best trial and the starts have a colour; the last other trials are grey, in one line with
    gaps. A cross marks where a trial was stopped.
    """
    drawn = {record.number: (record, curve) for record, curve in trials if curve}
    if not drawn:
        return None
    names = _names_of_highlighted([record for record, _ in drawn.values()], metric)
    grey = [number for number in drawn if number not in names][-CURVES:]

    grey_points: list[tuple[float | None, float | None]] = []
    for number in grey:
        _, curve = drawn[number]
        grey_points += sorted(curve.items())
        grey_points.append((None, None))
    grey_line = {"color": GREY, "width": 1}
    traces = [_trace(grey_points, f"the last {len(grey)} others", line=grey_line)]

    start_colors = cycle(STARTS)
    for number, name in names.items():
        _, curve = drawn[number]
        color = BEST if name.startswith("best: ") else next(start_colors)
        traces.append(_trace(sorted(curve.items()), name, line={"color": color}))

    ends = []
    causes = []
    for number in (*grey, *names):
        record, curve = drawn[number]
        if record.state == "stopped":
            ends.append(max(curve.items()))
            causes.append(f"trial {record.number}: {record.cause}")
    cross = {"symbol": "x", "color": STOPPED}
    traces.append(_trace(ends, "stopped", "markers", marker=cross, hovertext=causes))
    return _picture(traces, f"{metric.name} over steps", "step", metric.name)


def _names_of_highlighted(records: Sequence[Record], metric: Metric) -> dict[int, str]:
    """The legend of the starts and of the best trial, by number."""
    names = {record.number: f"start {record.start}" for record in records if record.start}
    best = best_of(records, metric)
    if best:
        name = names.get(best.number, f"trial {best.number}")
        names[best.number] = f"best: {name}"
    return names


def _map(records: Sequence[Record], spec: StudySpec) -> dict[str, Any] | None:
    """The metric over two numeric parameters.

    The first pair that the trainer recommends is taken, or else the first two that are searched.
    """
    metric = spec.metric
    numbers = [name for name, parameter in spec.parameters.items() if parameter.choices is None]
    pairs = [list(pair) for pair in spec.load_trainer().pairs if set(pair) <= set(numbers)]
    names = pairs[0] if pairs else numbers[:2]
    if len(names) < 2:
        return None
    x_name, y_name = names
    sampled = [record for record in records if x_name in record.params and y_name in record.params]
    newest = sampled[-MAP_POINTS:]
    complete = [record for record in newest if record.state == "complete"]
    stopped = [record for record in newest if record.state == "stopped"]

    by_value = {
        "size": 9,
        "color": [_rounded(record.value) for record in complete],
        "colorscale": "Viridis",
        "showscale": True,
        "colorbar": {"title": {"text": metric.name}},
    }
    cross = {"size": 9, "symbol": "x", "color": STOPPED}
    traces = []
    for state, group, marker in (("complete", complete, by_value), ("stopped", stopped, cross)):
        points = [(record.params[x_name], record.params[y_name]) for record in group]
        texts = [_map_text(record, metric) for record in group]
        traces.append(_trace(points, state, "markers", marker=marker, hovertext=texts))

    def axis(name: str) -> dict[str, str]:
        return {"type": "log" if spec.parameters[name].log else "linear"}

    return _picture(
        traces,
        "Where the trials lie",
        x_name,
        y_name,
        xaxis=axis(x_name),
        yaxis=axis(y_name),
    )


def _map_text(record: Record, metric: Metric) -> str:
    if record.value is None:
        return f"trial {record.number}"
    return f"trial {record.number}, {metric.name} {record.value:.4f}"


def _starts(records: Sequence[Record], metric: Metric) -> dict[str, Any] | None:
    """The best value so far, by trial, with the values of the starts as dashed lines."""
    complete = [(record, record.value) for record in records if record.value is not None]
    if not complete:
        return None
    first = complete[0][0].number
    last = complete[-1][0].number
    best_so_far: list[tuple[int, float]] = []
    for record, value in complete:
        if not best_so_far or metric.better(value, best_so_far[-1][1]):
            best_so_far.append((record.number, value))
    best_so_far.append((last, best_so_far[-1][1]))
    traces = [_trace(best_so_far, "best so far", line={"shape": "hv", "color": BEST})]
    starts = [(record.start, value) for record, value in complete if record.start]
    for color, (start, value) in zip(STARTS, starts, strict=False):
        line = {"dash": "dash", "color": color}
        traces.append(_trace([(first, value), (last, value)], f"start {start}", line=line))
    return _picture(traces, f"Best {metric.name} so far, and the starts", "trial", metric.name)
