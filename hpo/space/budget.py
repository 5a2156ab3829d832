"""What a study may cost, and whether it can afford another trial.

These are pure functions, called under the study's lock before a trial starts. Trials are counted
exactly. GPU-hours and the deadline are enforced twice: a trial starts only if earlier trials
suggest that it will end in time, and trials that still run when the budget is spent are handed back
with a checkpoint.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from hpo.errors import SpecError
from hpo.settings import Settings, Whole
from hpo.space.times import hours_in, later, length, moment_from, moment_in
from hpo.text import local, plural

HOUR = 3600.0
GPU_HOURS = "GPU-hours"


def hours_unit(on_cpus: bool) -> str:
    """The unit of the time that trials took: where no GPU worked, it is no GPU-hours."""
    return "worker-hours" if on_cpus else GPU_HOURS


class Budget(Settings):
    trials: Whole = Field(default=100, ge=0, description="completed, or stopped by a rule")
    failures: Whole = Field(
        default=10, ge=0, description="failed trials that are replaced, at most"
    )
    gpu_hours: Annotated[float, BeforeValidator(hours_in)] | None = Field(
        default=None, description="of all workers; trainings that share a GPU share its hours"
    )
    deadline: Annotated[datetime, BeforeValidator(moment_in)] | None = None

    def covers(self, other: "Budget") -> bool:
        """Whether no limit of this budget is below the other's."""
        return (
            self.trials >= other.trials
            and self.failures >= other.failures
            and _at_least(self.gpu_hours, other.gpu_hours)
            and _at_least(self.deadline, other.deadline)
        )

    def changed(self, changes: Mapping[str, str], now: datetime) -> "Budget":
        """A copy with some fields changed.

        changes: field -> what the user typed: a value, +5 or -5 for a change, or none.
        now: with its time zone. Raises pydantic's ValidationError, and SpecError for a deadline
        that cannot be.
        """
        values = {name: self._changed_value(name, text, now) for name, text in changes.items()}
        budget = Budget.model_validate(self.model_dump() | values)
        if "deadline" in changes:
            budget.check_deadline(now)
        return budget

    def check_deadline(self, now: datetime) -> None:
        """Raises SpecError if the deadline is not ahead."""
        if self.deadline is not None and self.deadline <= now:
            raise SpecError(
                f"the deadline {local(self.deadline)} has passed: it is {local(now)}. "
                "Valid: a moment that is still to come"
            )

    def _changed_value(self, name: str, text: str, now: datetime) -> Any:
        text = text.strip()
        if text.lower() == "none":
            return None
        if name == "deadline":
            return self._changed_deadline(text, now)
        if text.startswith(("+", "-")):
            change = _change(name, text)
            if change is not None:
                return (getattr(self, name) or 0) + change
        return text

    def _changed_deadline(self, text: str, now: datetime) -> datetime:
        """+12h moves the deadline, or is 12 hours from now if there is none."""
        change = length(text[1:]) if text.startswith(("+", "-")) else None
        try:
            if change is None:
                return moment_from(text, now)
            return later(self.deadline or now, -change if text.startswith("-") else change)
        except ValueError as error:
            raise SpecError(f"deadline: {error} (given: {text!r})") from None

    def __str__(self) -> str:
        return self.in_words()

    def in_words(self, unit: str = GPU_HOURS) -> str:
        """The limits, for people. unit: of the GPU-hours."""
        parts = [plural(self.trials, "trial")]
        if self.gpu_hours is not None:
            parts.append(f"{self.gpu_hours:g} {unit}")
        if self.deadline is not None:
            parts.append(f"until {local(self.deadline)}")
        return ", ".join(parts)


def _at_least(limit: Any, other: Any) -> bool:
    """Whether a limit is no lower than another one. None: no limit."""
    if limit is None:
        return True
    return other is not None and bool(limit >= other)


def _change(name: str, text: str) -> float | None:
    """The number in a change such as +5, in hours also +2h30m; None if there is none."""
    if name == "gpu_hours":
        change = length(text[1:])
        if change is not None:
            hours = change / timedelta(hours=1)
            return -hours if text.startswith("-") else hours
    try:
        return float(text)
    except ValueError:
        return None


@dataclass(frozen=True)
class Spent:
    """Where a study stands, by the database's clock."""

    now: datetime
    # Trials that are complete or stopped.
    ended: int
    running: int
    failed: int
    # Of all trials.
    gpu_seconds: float
    # GPU-seconds that the running trials will still take.
    promised: float
    # Mean GPU-seconds of a complete trial; None before the first one is complete.
    typical: float | None
    # Whether all trials so far ran on CPUs, so that GPU-hours are hours of workers.
    on_cpus: bool = False

    @property
    def unit(self) -> str:
        """Of the hours that were spent: GPU-hours or worker-hours."""
        return hours_unit(self.on_cpus)

    def __str__(self) -> str:
        text = (
            f"{plural(self.ended, 'trial')} done, {self.running} running; "
            f"{self.gpu_seconds / HOUR:.3g} {self.unit}"
        )
        if self.typical is None:
            return text
        return f"{text}, {self.typical / HOUR:.3g} per complete trial"


def spent_limit(budget: Budget, spent: Spent) -> str | None:
    """Why the study is over, so that running trials are handed back; None if it is not over."""
    if budget.gpu_hours is not None and spent.gpu_seconds >= budget.gpu_hours * HOUR:
        return f"{spent.gpu_seconds / HOUR:.3g} of {budget.gpu_hours:g} {spent.unit} are spent"
    if budget.deadline is not None and spent.now >= budget.deadline:
        return f"the deadline {local(budget.deadline)} has passed"
    return None


def refusal(budget: Budget, spent: Spent, done: float = 0.0) -> str | None:
    """Why no trial may start now; None if one may.

    done: GPU-seconds that earlier attempts at the trial took.
    """
    trials = plural(budget.trials, "trial")
    if spent.ended >= budget.trials:
        return f"the budget of {trials} is spent"
    if spent.ended + spent.running >= budget.trials:
        return f"the running trials use up the budget of {trials}"
    if spent.failed > budget.failures:
        failed = plural(spent.failed, "trial")
        return f"{failed} failed, more than the budget's {budget.failures}"
    reason = spent_limit(budget, spent)
    if reason is not None:
        return reason
    cost = 0.0 if spent.typical is None else max(0.0, spent.typical - done)
    planned = spent.gpu_seconds + spent.promised + cost
    if budget.gpu_hours is not None and planned > budget.gpu_hours * HOUR:
        left = budget.gpu_hours * HOUR - spent.gpu_seconds - spent.promised
        return (
            f"{max(0.0, left) / HOUR:.3g} of {budget.gpu_hours:g} {spent.unit} are left, "
            f"and a trial takes {cost / HOUR:.3g}"
        )
    if budget.deadline is not None and spent.now + timedelta(seconds=cost) > budget.deadline:
        return (
            f"a trial takes {cost / HOUR:.3g} hours and would not end "
            f"before the deadline {local(budget.deadline)}"
        )
    return None


@dataclass(frozen=True)
class Pace:
    """How fast a study advances, and what its running trials still have to do."""

    # Steps of all trials.
    steps: int
    # That all trials took, training and evaluation.
    seconds: float
    gpu_seconds: float
    # Mean steps of a trial that ended; None before the first one ended.
    typical: float | None
    # Trials of the budget that ended or run.
    started: int
    running: int
    # Steps that the running trials still have to do.
    steps_left: int


def seconds_left(budget: Budget, pace: Pace, now: datetime) -> float | None:
    """How long the study will still take, with as many trials running as now; None if unknown.

    It ends when the trials, the GPU-hours or the time are used up, whichever is first.
    """
    if not pace.steps or not pace.running:
        return None
    typical = pace.typical or (pace.steps + pace.steps_left) / pace.running
    trials_to_start = max(0, budget.trials - pace.started)
    all_steps_left = trials_to_start * typical + pace.steps_left
    limits = [all_steps_left * pace.seconds / pace.steps / pace.running]
    if budget.gpu_hours is not None and pace.gpu_seconds:
        gpu_seconds_left = budget.gpu_hours * HOUR - pace.gpu_seconds
        limits.append(gpu_seconds_left * pace.seconds / pace.gpu_seconds / pace.running)
    if budget.deadline is not None:
        limits.append((budget.deadline - now).total_seconds())
    return max(0.0, min(limits))
