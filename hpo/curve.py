"""A point of a trial's fine curve: what is known of a training at an evaluation."""

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
    """Mean training loss since the previous point; NaN if unknown."""
    validation_loss: float | None = None
    """On the items that the metric is computed on."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Further figures of the trainer: learning rate, gradient norm, seconds per step."""


def point_of(since: Sequence[Progress], first: int, seconds: float) -> Point:
    """The point at the last of some looks, which must have a score.

    since: the looks since the previous point. first: the step of the previous point, or the one at
    which the attempt began. seconds: how long the steps in between took.
    """
    last = since[-1]
    assert last.score is not None
    steps = max(1, last.step - first)
    return Point(
        step=last.step,
        value=last.score.value,
        loss=_mean_loss(since, first),
        validation_loss=last.validation_loss,
        metrics={"step_seconds": seconds / steps, **last.metrics},
    )


def _mean_loss(since: Sequence[Progress], first: int) -> float:
    """The mean over the steps whose loss is known; NaN if there are none."""
    total = 0.0
    steps_with_loss = 0
    previous = first
    for progress in since:
        if progress.loss is not None:
            steps = progress.step - previous
            # A look at the step where the attempt began counts as one step.
            at_the_beginning = progress.step == first
            steps = max(steps, 1 if at_the_beginning else 0)
            total += progress.loss * steps
            steps_with_loss += steps
        previous = progress.step
    return total / steps_with_loss if steps_with_loss else math.nan
