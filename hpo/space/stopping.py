"""When to stop a run: pure functions of its curve, the same live and in a backtest.

The rule judges a run against its own past, never against other runs. Warmup and weight averaging
make the best runs look worst early: on 24 real runs of one lab, rank rules (median, ASHA) would
have stopped 8 of 9 healthy ones. This rule stopped every diverged and degraded run of those and no
healthy one.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import AliasChoices, Field

from hpo.curve import Point
from hpo.settings import Count, NotNegative, Positive, Real, Settings
from hpo.trainer import Metric

OWN_PAST = "own-past"


@dataclass(frozen=True)
class Stop:
    """Why a run ends early: `rule` and `cause` for counting, `reason` for people to read."""

    rule: str
    cause: str
    reason: str


class OwnPast(Settings):
    """Stops a run that falls behind its own best.

    It stops a run when the metric is worse than its best by `margin` for `patience` evaluations in
    a row, when the validation loss is above `loss_factor` x its best for `loss_patience` in a row,
    or when a value is not finite.

    The metric counts only once it was better than `learned`. A CTC decoder often begins with a few
    common phonemes (PER 0.8 to 0.9), then says nothing for a while (1.0), then learns, and that is
    no divergence. For a metric where higher is better, `learned` is a distance from 1.
    """

    margin: NotNegative | None = Field(
        default=0.05,
        validation_alias=AliasChoices("margin", "per_margin"),
        description="in units of the metric; null: the metric stops no run",
    )
    patience: Count = Field(default=3, validation_alias=AliasChoices("patience", "per_patience"))
    loss_factor: Annotated[Real, Field(ge=1)] = 2.0
    loss_patience: Count = 2
    learned: Positive | None = Field(
        default=0.7,
        validation_alias=AliasChoices("learned", "learned_per"),
        description="null: the metric counts from the first evaluation",
    )

    def of(self, metric: Metric) -> "OwnPast":
        """This rule for a given metric.

        For an unbounded metric no default margin makes sense: `margin` and `learned` are off
        unless the user wrote them.
        """
        if metric.bounded:
            return self
        unwritten = {"margin", "learned"} - self.model_fields_set
        return self.model_copy(update=dict.fromkeys(unwritten))

    def judge(self, curve: Sequence[Point], metric: Metric) -> Stop | None:
        """Why the run with this curve should stop now; None if it should not."""
        if not curve:
            return None
        stop = not_finite(curve[-1], metric)
        if stop is None:
            stop = self._worse_metric(curve, metric)
        if stop is None:
            stop = self._worse_loss(curve)
        return stop

    def _worse_metric(self, curve: Sequence[Point], metric: Metric) -> Stop | None:
        margin = self.margin
        if margin is None:
            return None
        values = [metric.sign * point.value for point in curve]
        best, worse_in_a_row = _best_and_worse(values, lambda best: best + margin)
        if worse_in_a_row < self.patience or not self._has_learned(best, metric):
            return None
        last = curve[-1]
        if metric.direction == "minimize":
            limit = f"above its best {metric.sign * best:.3f} + {margin}"
        else:
            limit = f"below its best {metric.sign * best:.3f} - {margin}"
        reason = (
            f"{metric.name} {last.value:.3f} at step {last.step}, "
            f"{limit} for {worse_in_a_row} evaluations"
        )
        return Stop(OWN_PAST, metric.key, reason)

    def _has_learned(self, best: float, metric: Metric) -> bool:
        """best: the best value times the sign of the metric."""
        if self.learned is None:
            return True
        from_perfect = best if metric.direction == "minimize" else 1 + best
        return from_perfect < self.learned

    def _worse_loss(self, curve: Sequence[Point]) -> Stop | None:
        losses = [point.validation_loss for point in curve if point.validation_loss is not None]
        best, worse_in_a_row = _best_and_worse(losses, self._loss_limit)
        if worse_in_a_row < self.loss_patience:
            return None
        reason = (
            f"loss {losses[-1]:.3g} at step {curve[-1].step}, "
            f"above {self.loss_factor:g} x its best {best:.3g} for {worse_in_a_row} evaluations"
        )
        return Stop(OWN_PAST, "loss", reason)

    def _loss_limit(self, best: float) -> float:
        """loss_factor x the best loss.

        A best loss below 0, such as a negative log-likelihood, is exceeded by the same distance.
        """
        if best >= 0:
            return best * self.loss_factor
        return best + (self.loss_factor - 1) * abs(best)


def not_finite(point: Point, metric: Metric) -> Stop | None:
    """Stops a run whose score or validation loss is not finite: it has diverged under any rule."""
    loss_is_finite = point.validation_loss is None or math.isfinite(point.validation_loss)
    if loss_is_finite and math.isfinite(point.value):
        return None
    values = f"validation loss {point.validation_loss}, {metric.name} {point.value}"
    return not_finite_stop(point.step, values)


def not_finite_stop(step: int, values: str) -> Stop:
    """The stop of a run with values that are not finite. values: which ones, for people."""
    return Stop(OWN_PAST, "non-finite", f"{values} at step {step}")


def _best_and_worse(values: Sequence[float], limit: Callable[[float], float]) -> tuple[float, int]:
    """The best value, and how many values in a row at the end are above their limits.

    values: lower is better. limit: maps the best value so far to the limit of the next one.
    """
    best = math.inf
    above_in_a_row = 0
    for value in values:
        if value > limit(best):
            above_in_a_row += 1
        else:
            above_in_a_row = 0
        best = min(best, value)
    return best, above_in_a_row
