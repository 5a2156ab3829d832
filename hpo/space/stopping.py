"""When to stop a run: pure functions of its curve, the same live and in a backtest.

The rule judges a run against its own past, never against other runs: warmup and weight averaging make the best runs look
worst early, and on 24 real runs of one lab rank rules (median, ASHA) would have stopped 8 of 9 healthy ones. This rule
stopped every diverged and degraded run of those and no healthy one.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import AliasChoices, Field

from hpo.curve import Point
from hpo.settings import Count, NotNegative, Real, Settings
from hpo.trainer import Metric

OWN_PAST = "own-past"


@dataclass(frozen=True)
class Stop:
    """Why a run ends early. `rule` and `cause` are for counting, `reason` is for people."""

    rule: str
    cause: str
    reason: str


class OwnPast(Settings):
    """The metric worse than its best by `margin` for `patience` evaluations in a row, or the validation loss above
    `loss_factor` x its best for `loss_patience` in a row, or anything not finite.

    The metric counts only once it was better than `learned`: a CTC decoder often begins with a few common phonemes
    (PER 0.8 to 0.9), then says nothing for a while (1.0), then learns, and that is no divergence. Of a metric that is to
    be high, `learned` is the distance from 1.
    """

    margin: NotNegative | None = Field(
        default=0.05,
        validation_alias=AliasChoices("margin", "per_margin"),
        description="in units of the metric; null: the metric stops no run",
    )
    patience: Count = Field(default=3, validation_alias=AliasChoices("patience", "per_patience"))
    loss_factor: Annotated[Real, Field(ge=1)] = 2.0
    loss_patience: Count = 2
    learned: Annotated[Real, Field(gt=0)] | None = Field(
        default=0.7,
        validation_alias=AliasChoices("learned", "learned_per"),
        description="null: the metric counts from the first evaluation",
    )

    def of(self, metric: Metric) -> "OwnPast":
        """The same for a metric that is not bounded, of which nobody knows in advance what much is: what was not
        written does not count.
        """
        if metric.bounded:
            return self
        unwritten = {"margin", "learned"} - self.model_fields_set
        return self.model_copy(update=dict.fromkeys(unwritten))

    def judge(self, curve: Sequence[Point], metric: Metric) -> Stop | None:
        """Whether the run that has this curve so far should stop now."""
        if not curve:
            return None
        return (
            not_finite(curve[-1], metric)
            or self._worse_metric(curve, metric)
            or self._worse_loss(curve)
        )

    def _worse_metric(self, curve: Sequence[Point], metric: Metric) -> Stop | None:
        margin = self.margin
        if margin is None:
            return None
        best, worse = _worse_in_a_row(
            [metric.sign * point.value for point in curve], lambda best: best + margin
        )
        if worse < self.patience or not self._has_learned(best, metric):
            return None
        last = curve[-1]
        side, sign = ("above", "+") if metric.direction == "minimize" else ("below", "-")
        reason = (
            f"{metric.name} {last.value:.3f} at step {last.step}, {side} its best {metric.sign * best:.3f} "
            f"{sign} {margin} for {worse} evaluations"
        )
        return Stop(OWN_PAST, metric.key, reason)

    def _has_learned(self, best: float, metric: Metric) -> bool:
        """best: times the metric's sign."""
        if self.learned is None:
            return True
        from_perfect = best if metric.direction == "minimize" else 1 + best
        return from_perfect < self.learned

    def _loss_limit(self, best: float) -> float:
        """loss_factor x the best; below 0, as a negative log-likelihood may be, as far above it."""
        return best * self.loss_factor if best >= 0 else best + (self.loss_factor - 1) * abs(best)

    def _worse_loss(self, curve: Sequence[Point]) -> Stop | None:
        losses = [point.validation_loss for point in curve if point.validation_loss is not None]
        best, worse = _worse_in_a_row(losses, self._loss_limit)
        if worse < self.loss_patience:
            return None
        last = curve[-1]
        reason = f"loss {losses[-1]:.3g} at step {last.step}, above {self.loss_factor:g} x its best {best:.3g} for {worse} evaluations"
        return Stop(OWN_PAST, "loss", reason)


def not_finite(point: Point, metric: Metric) -> Stop | None:
    """A training whose score or validation loss is no number has diverged, whatever the rule."""
    if math.isfinite(point.value) and (
        point.validation_loss is None or math.isfinite(point.validation_loss)
    ):
        return None
    return non_finite(
        point.step, f"validation loss {point.validation_loss}, {metric.name} {point.value}"
    )


def non_finite(step: int, what: str) -> Stop:
    return Stop(OWN_PAST, "non-finite", f"{what} at step {step}")


def _worse_in_a_row(values: Sequence[float], limit: Callable[[float], float]) -> tuple[float, int]:
    """(the best value, how many of the last values in a row lie above the limit that the best before each sets).

    values: the lower, the better.
    """
    best, row = math.inf, 0
    for value in values:
        row = row + 1 if value > limit(best) else 0
        best = min(best, value)
    return best, row
