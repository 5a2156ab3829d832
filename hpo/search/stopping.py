"""When to stop a run: pure functions of its curve, the same live and in a backtest.

The rule judges a run against its own past, never against other runs: warmup and weight averaging make the best runs look
worst early, and on 24 real runs of one lab rank rules (median, ASHA) would have stopped 8 of 9 healthy ones. This rule
stopped every diverged and degraded run of those and no healthy one.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from hpo.decoder.config import Count, NotNegative, Positive, Real, Settings


@dataclass(frozen=True)
class Evaluation:
    """One point of a curve."""

    step: int
    per: float
    loss: float  # on the same sentences as per


@dataclass(frozen=True)
class Stop:
    """Why a run ends early. `rule` and `cause` are for counting, `reason` is for people."""

    rule: str
    cause: str
    reason: str


class OwnPast(Settings):
    """PER above its best + `per_margin` for `per_patience` evaluations in a row, or loss above `loss_factor` x its best
    for `loss_patience` in a row, or anything not finite.

    PER counts only once it was below `learned_per`: a CTC decoder often begins with a few common phonemes (PER 0.8 to 0.9),
    then says nothing for a while (1.0), then learns, and that is no divergence.
    """

    per_margin: NotNegative = 0.05
    per_patience: Count = 3
    loss_factor: Annotated[Real, Field(ge=1)] = 2.0
    loss_patience: Count = 2
    learned_per: Positive = 0.7

    def judge(self, curve: Sequence[Evaluation]) -> Stop | None:
        """Whether the run that has this curve so far should stop now."""
        if not curve:
            return None
        last = curve[-1]
        if not (math.isfinite(last.per) and math.isfinite(last.loss)):
            return non_finite(last.step, f"validation loss {last.loss}, PER {last.per}")
        best_per, per_worse = _worse_in_a_row([point.per for point in curve], lambda best: best + self.per_margin)
        best_loss, loss_worse = _worse_in_a_row([point.loss for point in curve], lambda best: best * self.loss_factor)
        if best_per < self.learned_per and per_worse >= self.per_patience:
            return Stop("own-past", "per", f"PER {last.per:.3f} at step {last.step}, above its best {best_per:.3f} + "
                        f"{self.per_margin} for {per_worse} evaluations")  # fmt: skip
        if loss_worse >= self.loss_patience:
            return Stop("own-past", "loss", f"loss {last.loss:.3g} at step {last.step}, above {self.loss_factor:g} x its best "
                        f"{best_loss:.3g} for {loss_worse} evaluations")  # fmt: skip
        return None


def non_finite(step: int, what: str) -> Stop:
    return Stop("own-past", "non-finite", f"{what} at step {step}")


def _worse_in_a_row(values: Sequence[float], limit: Callable[[float], float]) -> tuple[float, int]:
    """(the best value, how many of the last values in a row lie above the limit that the best before each sets)."""
    best, row = math.inf, 0
    for value in values:
        row = row + 1 if value > limit(best) else 0
        best = min(best, value)
    return best, row
