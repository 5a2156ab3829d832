"""Plots of a study that optuna-dashboard does not have, as plotly.js descriptions.

They are kept small: with every change a page reads them again.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hpo.space.spec import StudySpec
from hpo.study.pick import best_of
from hpo.study.trial import Record
from hpo.trainer import Metric

CURVES = 40  # grey ones, the last
MAP_POINTS = 500  # the last
GREY, BEST, STOPPED = "#b0b0b0", "#1f5fbf", "#c0392b"
STARTS = ("#d4691e", "#2b8a3e", "#8e44ad", "#5d4037")
Curves = Sequence[
    tuple[Record, Mapping[int, float]]
]  # each trial with its thin curve, value by step
Points = Iterable[tuple[float | None, float | None]]


def figures(trials: Curves, spec: StudySpec) -> dict[str, str]:
    """By id, each as JSON."""
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
    layout = {
        "title": {"text": title, "x": 0.02},
        "margin": {"l": 60, "r": 20, "t": 50, "b": 50},
        "legend": {"orientation": "h", "y": -0.2},
    }
    named = {
        axis: {"title": {"text": text}, **axes.get(axis, {})}
        for axis, text in (("xaxis", x), ("yaxis", y))
    }
    return {"data": traces, "layout": layout | named}


def _trace(points: Points, name: str, mode: str = "lines", **more: Any) -> dict[str, Any]:
    xs, ys = zip(*points, strict=True) if (points := list(points)) else ((), ())
    return {
        "x": [_short(x) for x in xs],
        "y": [_short(y) for y in ys],
        "name": name,
        "mode": mode,
        **more,
    }


def _short(value: float | None) -> float | None:
    """None is a gap."""
    return (
        float(f"{value:.4g}")
        if isinstance(value, float) and math.isfinite(value)
        else value
        if isinstance(value, int)
        else None
    )


def _curves(trials: Curves, metric: Metric) -> dict[str, Any] | None:
    """The metric over steps: best and starts in colour, the last others grey in one line with gaps, a cross where one was stopped."""
    drawn = {record.number: (record, curve) for record, curve in trials if curve}
    if not drawn:
        return None
    named = {
        number: f"start {record.start}" for number, (record, _) in drawn.items() if record.start
    }
    if best := best_of([record for record, _ in drawn.values()], metric):
        named[best.number] = f"best: {named.get(best.number, f'trial {best.number}')}"
    grey = [number for number in drawn if number not in named][-CURVES:]
    lines = [
        point for number in grey for point in (*sorted(drawn[number][1].items()), (None, None))
    ]
    traces = [_trace(lines, f"the last {len(grey)} others", line={"color": GREY, "width": 1})]
    colors = iter(STARTS * (1 + len(named)))
    for number, name in named.items():
        color = BEST if best and number == best.number else next(colors)
        traces.append(_trace(sorted(drawn[number][1].items()), name, line={"color": color}))
    ended = [drawn[number] for number in (*grey, *named) if drawn[number][0].state == "stopped"]
    traces.append(_trace([max(curve.items()) for _, curve in ended], "stopped", "markers", marker={"symbol": "x", "color": STOPPED},
                         hovertext=[f"trial {record.number}: {record.cause}" for record, _ in ended]))  # fmt: skip
    return _picture(traces, f"{metric.name} over steps", "step", metric.name)


def _map(records: Sequence[Record], spec: StudySpec) -> dict[str, Any] | None:
    """The metric over the first pair of numbers that the trainer names, else over the first two that are searched."""
    metric = spec.metric
    numbers = [name for name, parameter in spec.parameters.items() if parameter.choices is None]
    pairs = [list(pair) for pair in spec.load_trainer().pairs if set(pair) <= set(numbers)]
    names = pairs[0] if pairs else numbers[:2]
    if len(names) < 2:
        return None
    there = [record for record in records if all(name in record.params for name in names)]
    traces = []
    for state in ("complete", "stopped"):
        found = [record for record in there[-MAP_POINTS:] if record.state == state]
        look: dict[str, Any] = {"symbol": "x", "color": STOPPED}
        if state == "complete":
            values = [_short(record.value) for record in found]
            colorbar = {"title": {"text": metric.name}}
            look = {
                "color": values,
                "colorscale": "Viridis",
                "showscale": True,
                "colorbar": colorbar,
            }
        points = [(record.params[names[0]], record.params[names[1]]) for record in found]
        hover = [
            f"trial {record.number}"
            + (f", {metric.name} {record.value:.4f}" if record.value is not None else "")
            for record in found
        ]
        traces.append(_trace(points, state, "markers", marker={"size": 9, **look}, hovertext=hover))
    kinds = [{"type": "log" if spec.parameters[name].log else "linear"} for name in names]
    return _picture(traces, "Where the trials lie", *names, xaxis=kinds[0], yaxis=kinds[1])


def _starts(records: Sequence[Record], metric: Metric) -> dict[str, Any] | None:
    """The best value so far, by trial, beside the starts'."""
    complete = [(record, record.value) for record in records if record.value is not None]
    if not complete:
        return None
    first, last = complete[0][0].number, complete[-1][0].number
    line: list[tuple[int, float]] = []
    for record, value in complete:
        if not line or metric.better(value, line[-1][1]):
            line.append((record.number, value))
    traces = [
        _trace([*line, (last, line[-1][1])], "best so far", line={"shape": "hv", "color": BEST})
    ]
    starts = [(record.start, value) for record, value in complete if record.start]
    for color, (start, value) in zip(STARTS, starts, strict=False):
        ends = [(first, value), (last, value)]
        traces.append(_trace(ends, f"start {start}", line={"dash": "dash", "color": color}))
    return _picture(traces, f"Best {metric.name} so far, against the starts", "trial", metric.name)
