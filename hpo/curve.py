"""A point of a trial's fine curve: what is known of a training where it was evaluated."""

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
    total = 0.0
    before = first
    for progress in since:
        total += progress.loss * (progress.step - before)
        before = progress.step
    steps = max(1, last.step - first)
    metrics = {"step_seconds": seconds / steps, **last.metrics}
    return Point(last.step, last.score.value, total / steps, last.validation_loss, metrics)
