"""Pictures of the report page, for metrics with unusual names."""

from html.parser import HTMLParser
from pathlib import Path

import pytest

from hpo.report.heatmap import draw
from hpo.report.report_pictures import Curve, curves
from hpo.trainer import Metric


class Tags(HTMLParser):
    """The names of all tags, and the label of the picture as a browser reads it."""

    def __init__(self, page: str):
        super().__init__()
        self.names: set[str] = set()
        self.label: str | None = None
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        if tag == "svg":
            self.label = dict(attrs)["aria-label"]


@pytest.mark.parametrize(
    "name",
    [
        'x"><script>alert(1)</script>',
        r"error \1 \g<0>",
        "a & b",
        "it's < 5 %",
        "Güte \u2603",
        "$^$",
    ],
)
def test_a_metric_with_any_name_stays_a_text(name: str) -> None:
    trials = [Curve([1, 2], [0.5, 0.4], "", ""), Curve([1, 2], [0.5, 0.3], "", "best")]
    drawn = Tags(curves(trials, Metric(name=name)))
    assert drawn.label == f"{name} of each trial over its steps"
    assert "script" not in drawn.names


@pytest.mark.parametrize("name", ["$^$", "cost in $ and $"])
def test_dollar_signs_make_no_formula(name: str, tmp_path: Path) -> None:
    pair = {
        "x": name,
        "y": "b",
        "x_values": [0.0, 1.0],
        "y_values": [0.0, 1.0],
        "x_log": False,
        "y_log": False,
        "value": [[0.1, 0.2], [0.3, 0.4]],
        "strength": 1.0,
        "p_holm": 0.5,
        "trials": [{"number": 0, "x": 0.5, "y": 0.5, "value": 0.2, "state": "complete"}],
    }
    draw({"interactions": [pair]}, tmp_path / "map.svg", Metric(name=name))
    assert (tmp_path / "map.svg").stat().st_size > 1000
