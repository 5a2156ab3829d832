"""Pictures with matplotlib, drawn without a screen."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hpo.errors import CallerError
from hpo.past.backtest import Backtest, Curve, RuleOutcome

ENDINGS = (".svg", ".png", ".pdf")
WELL, BADLY, REST = "#2166ac", "#c0392b", "#b8b8b8"
LABELLED = 12  # runs; more names could not be read


def backtest_picture(found: Backtest, curves: Sequence[Curve], path: Path) -> None:
    """A panel a rule: each curve in colour up to where the rule stops it, its rest in grey. Raises CallerError for the path."""
    if path.suffix not in ENDINGS:
        raise CallerError(
            f"--plot {path}: ends with {path.suffix or 'nothing'}. Valid: {', '.join(ENDINGS)}"
        )
    rules = found.rules
    columns = min(3, len(rules))
    rows = -(-len(rules) // columns)
    figure = Figure(figsize=(4.6 * columns + 0.6, 3.9 * rows + 0.5), layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for panel, rule in zip(panels.flat, rules, strict=False):
        _panel(panel, rule, curves)
    for panel in panels.flat[len(rules) :]:
        panel.set_axis_off()
    for panel in panels[:, 0]:
        panel.set_ylabel(curves[0].metric.label)
    for panel in panels[-1]:
        panel.set_xlabel("optimizer updates (square-root scale)")
    ended = [("ended well", WELL), ("ended badly", BADLY), ("after the stop", REST)]
    lines = [mpl.lines.Line2D([], [], color=color, lw=2, label=label) for label, color in ended]
    cross = mpl.lines.Line2D([], [], color="black", marker="X", ls="", label="stopped")
    figure.legend(handles=[*lines, cross], loc="outside upper center", ncols=4, frameon=False)
    with mpl.rc_context({"svg.hashsalt": "hpo"}):  # the same picture, the same file
        try:
            figure.savefig(
                path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None
            )
        except OSError as error:
            raise CallerError(f"--plot {path}: cannot be written ({error.strerror})") from None


def _panel(panel: Axes, rule: RuleOutcome, curves: Sequence[Curve]) -> None:
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
        if len(curves) <= LABELLED:
            panel.annotate(
                curve.name,
                (steps[-1], values[-1]),
                xytext=(3, 0),
                textcoords="offset points",
                fontsize=6,
                va="center",
                color="#555555",
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
    bad = sum(bool(curve.ended_badly) for curve in curves)
    good, missed = len(rule.healthy_stopped), len(rule.bad_missed)
    saved = f"{rule.gpu_hours_saved:.2g} of {rule.gpu_hours_total:.2g} GPU-hours saved"
    panel.set_title(
        f"{rule.rule} stops {good} of {len(curves) - bad} good and {bad - missed} of {bad} bad runs\n{saved}",
        fontsize=9,
    )
