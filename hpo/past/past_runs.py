"""Past runs as values: trainings that were done without hpo.

What the files of such a run say is often not what happened. Nothing is repaired silently: whatever
is doubtful becomes a warning in words, which is kept with the run. A step is an optimizer update
here too, so readers convert steps that count batches.
"""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import dropwhile, pairwise
from typing import Any

from hpo.curve import Point
from hpo.trainer import DEFAULT_TRAINER, Metric, load_trainer

# The trainer of run folders and tables that no study describes.
BUILT_IN = load_trainer(DEFAULT_TRAINER)
CONFIG = BUILT_IN.config
PER: Metric = BUILT_IN.metric
# A value above this cannot be a fraction of 1, so it is percent.
SURELY_PERCENT = 20.0
# The number of steps or fields that a warning names before it says how many more there are.
LISTED = 5


@dataclass(frozen=True)
class PastPoint:
    """One evaluation of a past run. What is not recorded is None."""

    # Optimizer updates.
    step: int
    # Of the metric.
    value: float
    # On the items that the metric is of.
    loss: float | None
    # Since the start of the run.
    seconds: float | None
    lr: float | None
    # Mean since the previous evaluation.
    train_loss: float | None = None


def _curve_point(point: PastPoint, previous: PastPoint | None) -> Point:
    """The same evaluation as a study's curve has it."""
    metrics: dict[str, float] = {}
    if point.lr is not None:
        metrics["lr"] = point.lr
    if previous is not None and previous.seconds is not None and point.seconds is not None:
        passed = point.seconds - previous.seconds
        metrics["step_seconds"] = passed / (point.step - previous.step)
    train_loss = math.nan if point.train_loss is None else point.train_loss
    return Point(point.step, point.value, train_loss, point.loss, metrics)


def _is_above_1(point: PastPoint) -> bool:
    return point.value > 1


@dataclass(frozen=True)
class PastRun:
    """A training that was done without hpo."""

    name: str
    path: str
    # Dotted name -> value, as far as it is recorded.
    config: dict[str, Any]
    curve: tuple[PastPoint, ...]
    # The planned number of steps; None if it is not recorded.
    steps: int | None
    # The split it was scored on: test, validation or another name; None if it is not recorded.
    split: str | None
    warnings: tuple[str, ...] = ()
    # Settings of the run that the study's configuration cannot express. A run with such settings
    # lies in no space.
    foreign: tuple[str, ...] = ()
    # Names of settings of the run of which nobody here knows what they do. A run with such settings
    # informs no study unless the user says that they make no difference.
    unknown: tuple[str, ...] = ()
    n_features: int | None = None
    n_days: int | None = None
    metric: Metric = PER
    # Whether values above 1 are known to be fractions too: an error rate counts insertions.
    values_are_fractions: bool = False
    # How many steps before its planned end the last evaluation of a whole run may lie; None means
    # one and a half intervals.
    steps_missing: int | None = None

    @property
    def key(self) -> str:
        """A digest of name and content, the same wherever the run lies and whatever is stated of it
        by hand.
        """
        points = [
            {
                "step": point.step,
                "per": point.value,
                "loss": point.loss,
                "seconds": point.seconds,
                "lr": point.lr,
            }
            for point in self.curve
        ]
        content = json.dumps([self.name, points, self.steps, self.split], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    @property
    def best_value(self) -> float | None:
        values = [point.value for point in self.curve if math.isfinite(point.value)]
        return self.metric.best(values) if values else None

    @property
    def points(self) -> list[Point]:
        """The curve as a stopping rule sees it.

        The training loss is NaN where it is not recorded. Where no loss is recorded, only the
        metric can stop the run.
        """
        points: list[Point] = []
        previous: PastPoint | None = None
        for point in self.curve:
            points.append(_curve_point(point, previous))
            previous = point
        return points

    @property
    def interval(self) -> int:
        """The most common number of steps between two evaluations; 1 if there are no two."""
        steps = [point.step for point in self.curve]
        gaps = Counter(after - before for before, after in pairwise(steps) if after > before)
        if not gaps:
            return 1
        interval, _ = gaps.most_common(1)[0]
        return interval

    @property
    def metric_fault(self) -> str:
        """Why the values cannot be those of the metric; empty if they can.

        A run with such a fault informs no sampler and judges no rule.
        """
        if not self.metric.bounded:
            return ""
        if self.metric.direction == "maximize":
            return self._outside_of_bounds()
        return self._not_an_error_rate()

    def _outside_of_bounds(self) -> str:
        outside = [
            point.step
            for point in self.curve
            if math.isfinite(point.value) and not 0 <= point.value <= 1
        ]
        if not outside:
            return ""
        return f"{self.metric.name} outside of 0 to 1 at step {some(outside)}"

    def _not_an_error_rate(self) -> str:
        name = self.metric.name
        negative = [point.step for point in self.curve if point.value < 0]
        if negative:
            return f"negative {name} at step {some(negative)}: not an error rate"
        best = self.best_value or 0
        highest_best = SURELY_PERCENT if self.values_are_fractions else 1
        if best > highest_best:
            return f"no {name} at or below 1, the lowest is {best:.4g}: percent?"
        if not self.values_are_fractions:
            return ""
        for point in self.curve:
            if SURELY_PERCENT < point.value < math.inf:
                where = f"{name} {point.value:.4g} at step {point.step}"
                return f"{where} is not a fraction of 1: percent?"
        return ""

    @property
    def suspicious_points(self) -> list[PastPoint]:
        """The points above 1 that deserve a warning.

        Where values are known to be fractions, a training usually begins above 1, so only points
        after the first one at or below 1 count.
        """
        if not self.metric.bounded or self.metric.direction == "maximize":
            return []
        points = list(self.curve)
        if self.values_are_fractions:
            points = list(dropwhile(_is_above_1, points))
        return [point for point in points if _is_above_1(point)]

    @property
    def reached_its_plan(self) -> bool:
        """Whether the run trained to its planned end.

        neural_seq_decoder evaluates for the last time one interval before its end.
        """
        if not self.curve or self.steps is None:
            return False
        missing = self.steps - self.curve[-1].step
        if self.steps_missing is None:
            return missing <= 1.5 * self.interval
        return missing <= self.steps_missing


def printable(text: str) -> str:
    """The text without characters that could steer the terminal that shows it."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def some(items: Sequence[Any]) -> str:
    """The first few items, and how many more there are."""
    text = ", ".join(str(item) for item in items[:LISTED])
    more = len(items) - LISTED
    return f"{text} and {more} more" if more > 0 else text
