"""What a study may cost, and whether it can afford a trial: pure functions, asked under the study's lock before a trial starts.

Trials are counted exactly. GPU-hours and the deadline are kept twice: a trial starts only if what trials have taken so far
says that it will end in time, and those that run all the same when the budget is spent are handed back with a checkpoint.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from hpo.settings import Real, Settings, Whole
from hpo.text import local

HOUR = 3600.0


def _with_zone(moment: datetime) -> datetime:
    """Without a time zone, this machine's is meant."""
    return moment.astimezone(UTC)


class Budget(Settings):
    trials: Whole = Field(default=100, ge=0)  # completed or stopped by a rule
    failures: Whole = Field(default=10, ge=0)  # failed trials are replaced, at most this many
    gpu_hours: Annotated[Real, Field(gt=0)] | None = (
        None  # of all workers; trainings that share a GPU share its hours
    )
    deadline: Annotated[datetime, AfterValidator(_with_zone)] | None = None

    def covers(self, other: "Budget") -> bool:
        """Whether this is no smaller in anything."""
        hours, late = self.gpu_hours, self.deadline
        return (
            self.trials >= other.trials
            and self.failures >= other.failures
            and (hours is None or (other.gpu_hours is not None and hours >= other.gpu_hours))
            and (late is None or (other.deadline is not None and late >= other.deadline))
        )

    def changed(self, given: Mapping[str, str]) -> "Budget":
        """With fields as a person gives them: a value, +5 or -5 for a change, none. Raises pydantic's ValidationError."""
        values: dict[str, Any] = {}
        for name, text in given.items():
            values[name] = None if text.lower() == "none" else text
            if text[:1] in "+-" and (by := _number(text)) is not None:
                values[name] = (getattr(self, name) or 0) + by
        return Budget.model_validate(self.model_dump() | values)

    def __str__(self) -> str:
        parts = [f"{self.trials} trials"]
        parts += [f"{self.gpu_hours:g} GPU-hours"] if self.gpu_hours is not None else []
        parts += [f"until {local(self.deadline)}"] if self.deadline else []
        return ", ".join(parts)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


@dataclass(frozen=True)
class Spent:
    """Where a study stands, by the database's clock."""

    now: datetime
    ended: int  # complete or stopped
    running: int
    failed: int
    gpu_seconds: float  # of all trials
    promised: float  # GPU-seconds that the running trials will still take
    typical: float | None  # GPU-seconds of a complete trial, on average; None: there is none yet

    def __str__(self) -> str:
        typical = (
            f", {self.typical / HOUR:.3g} a complete trial" if self.typical is not None else ""
        )
        return f"{self.ended} trials, {self.running} more run; {self.gpu_seconds / HOUR:.3g} GPU-hours{typical}"


def over(budget: Budget, spent: Spent) -> str | None:
    """Why the study is over now, whoever still runs; None if it is not. Running trials are handed back then."""
    if budget.gpu_hours is not None and spent.gpu_seconds >= budget.gpu_hours * HOUR:
        return f"{spent.gpu_seconds / HOUR:.3g} of {budget.gpu_hours:g} GPU-hours are spent"
    if budget.deadline is not None and spent.now >= budget.deadline:
        return f"the deadline {local(budget.deadline)} has passed"
    return None


def refusal(budget: Budget, spent: Spent, done: float = 0.0) -> str | None:
    """Why no trial may start now; None if one may. done: GPU-seconds that were put into the trial before."""
    if spent.ended + spent.running >= budget.trials:
        return f"the budget of {budget.trials} trials is {'taken' if spent.running else 'spent'}"
    if spent.failed > budget.failures:
        return f"{spent.failed} trials failed, more than the budget's {budget.failures}"
    if reason := over(budget, spent):
        return reason
    cost = max(0.0, spent.typical - done) if spent.typical is not None else 0.0
    if (
        budget.gpu_hours is not None
        and spent.gpu_seconds + spent.promised + cost > budget.gpu_hours * HOUR
    ):
        left = budget.gpu_hours * HOUR - spent.gpu_seconds - spent.promised
        return (
            f"of {budget.gpu_hours:g} GPU-hours {max(0.0, left) / HOUR:.3g} are not spent or promised, "
            f"and a trial takes {cost / HOUR:.3g}"
        )
    if budget.deadline is not None and spent.now + timedelta(seconds=cost) > budget.deadline:
        return f"a trial takes {cost / HOUR:.3g} hours and would not end before the deadline {local(budget.deadline)}"
    return None


@dataclass(frozen=True)
class Pace:
    """What trials took so far, and what those that run have before them."""

    steps: int  # of all trials
    seconds: float  # of all, training and evaluation
    gpu_seconds: float
    typical: float | None  # steps of a trial that ended, on average; None: there is none yet
    begun: int  # trials of the budget: ended or running
    running: int
    to_come: int  # steps of those that run


def seconds_left(budget: Budget, pace: Pace, now: datetime) -> float | None:
    """Until the trials, the GPU-hours or the time are used up, whichever is first, with as many running as now; None: not known."""
    if not pace.steps or not pace.running:
        return None
    typical = pace.typical or (pace.steps + pace.to_come) / pace.running
    to_come = max(0, budget.trials - pace.begun) * typical + pace.to_come
    left = [to_come * pace.seconds / pace.steps / pace.running]
    if budget.gpu_hours is not None and pace.gpu_seconds:
        left.append(
            (budget.gpu_hours * HOUR - pace.gpu_seconds)
            * pace.seconds
            / pace.gpu_seconds
            / pace.running
        )
    if budget.deadline is not None:
        left.append((budget.deadline - now).total_seconds())
    return max(0.0, min(left))
