"""A point of a trial's fine curve: what is known of a training where it was evaluated."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from hpo.trainer import Progress


@dataclass(frozen=True)
class Point:
    step: int
    """Optimizer updates done."""
    value: float
    """Of the metric."""
    loss: float
    """Of the training data, mean since the point before; NaN where it is not known."""
    validation_loss: float | None = None
    """On the items that the metric is of."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """What the trainer tells beside: learning rate, gradient norm, seconds per step."""


def point_of(since: Sequence[Progress], first: int, seconds: float) -> Point:
    """The point at the last of the looks since the point before, which has a score.

    first: the step of the point before, or where the attempt began. seconds: that these steps took.
    """
    last = since[-1]
    assert last.score is not None
    steps = max(1, last.step - first)
    metrics = {"step_seconds": seconds / steps, **last.metrics}
    return Point(
        last.step, last.score.value, _mean_loss(since, first), last.validation_loss, metrics
    )


def _mean_loss(since: Sequence[Progress], first: int) -> float:
    """Over the steps whose loss is known; NaN if none is."""
    total = 0.0
    known = 0
    before = first
    for progress in since:
        if progress.loss is not None:
            # A look at the step where the attempt began counts as one step.
            steps = max(progress.step - before, 1 if progress.step == first else 0)
            total += progress.loss * steps
            known += steps
        before = progress.step
    return total / known if known else math.nan
