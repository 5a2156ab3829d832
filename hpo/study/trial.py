"""The values that describe a trial.

Trial is for its worker, Outcome and Cause say how an attempt ended, and Record is for readers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Literal

from hpo.settings import Config
from hpo.space.stopping import Stop
from hpo.trainer import Metric, Score

State = Literal["waiting", "running", "complete", "stopped", "failed"]
# These count against a budget of trials, in addition to running ones.
DONE: tuple[State, ...] = ("complete", "stopped")
# The rule of a trial that someone has stopped.
BY_HAND = "by hand"
# A final value this far from perfect, of a metric between 0 and 1, is that of a training which
# learned nothing.
NOTHING_LEARNED = 0.95
LEARNED_NOTHING = "learned nothing"


class Cause(StrEnum):
    """Why an attempt ended before its trial did."""

    # By a signal, preemption or the end of an allocation. The trial resumes, however often it
    # happens.
    INTERRUPTED = "interrupted"
    # The worker died, or its training made no step for the length of a lease.
    LOST = "lost"
    # The trial waits for a worker with a larger share of a device.
    OUT_OF_MEMORY = "out of memory"
    # The training showed no sign of life and was ended. It gets one more attempt.
    HUNG = "hung"
    # The training raised an exception. It gets one more attempt.
    CODE_ERROR = "code error"
    # Another attempt would fail in the same way.
    BAD_CONFIGURATION = "bad configuration"


# After this many attempts with the same cause a trial fails. Other causes are limited by the
# study's max_attempts.
ALLOWED = {
    Cause.HUNG: 2,
    Cause.CODE_ERROR: 2,
    Cause.BAD_CONFIGURATION: 1,
}


def is_over(causes: Sequence[Cause], max_attempts: int) -> bool:
    """Whether a trial fails, rather than waits for another attempt.

    causes: why its attempts ended, the last one last.
    """
    counted = [cause for cause in causes if cause != Cause.INTERRUPTED]
    if not counted or causes[-1] == Cause.INTERRUPTED:
        return False
    last = counted[-1]
    if len(counted) >= max_attempts:
        return True
    return counted.count(last) >= ALLOWED.get(last, max_attempts)


@dataclass(frozen=True)
class Completed:
    """The training reached its last step.

    The trial's value is the metric at that step, not the best value of the curve.
    """

    score: Score
    # By partition. Only trials of child studies are scored on held-out partitions.
    held_out: Mapping[str, Score] = field(default_factory=dict)


@dataclass(frozen=True)
class Stopped:
    """A rule stopped the training.

    Diverging is a result: the sampler learns from it, and such a trial is never the best one.
    """

    stop: Stop


@dataclass(frozen=True)
class Interrupted:
    """A signal or a spent budget ended the attempt. The trial resumes later."""

    reason: str = "a signal"


@dataclass(frozen=True)
class Failed:
    """An error ended the attempt.

    The trial waits for another attempt or fails, depending on the cause and the earlier attempts.
    """

    reason: str
    cause: Cause = Cause.CODE_ERROR


Outcome = Completed | Stopped | Interrupted | Failed


def in_words(outcome: Outcome) -> tuple[str, str]:
    """How an attempt ended, and why, as the database stores it."""
    match outcome:
        case Completed():
            return "complete", ""
        case Stopped(stop):
            return "stopped", _storable(stop.reason)
        case Interrupted(reason):
            return Cause.INTERRUPTED, _storable(reason)
        case Failed(reason, cause):
            return cause, _storable(reason)


def _storable(text: str) -> str:
    """The text without NUL, which Postgres does not accept."""
    return text.replace("\0", "?")


@dataclass(frozen=True)
class Trial:
    """A claimed trial, with all that its worker needs to run it."""

    id: int
    number: int
    config: Config
    # The token of the worker's lease.
    lease: str
    # The name of the start that the trial is, if it is one.
    start: str | None
    attempt: int = 1


@dataclass(frozen=True)
class Halt:
    """Someone has paused a study, so that its workers wait, or stopped it, so that they leave."""

    state: Literal["paused", "stopped"]
    # As USER@HOST.
    by: str
    # ISO 8601, UTC.
    since: str
    why: str = ""

    def __str__(self) -> str:
        since = datetime.fromisoformat(self.since).astimezone()
        text = f"{self.state} by {self.by} at {since:%Y-%m-%d %H:%M:%S}"
        if self.why:
            text += f" ({self.why})"
        return text


def learned_nothing(value: float | None, metric: Metric) -> bool:
    """Whether the final value of a bounded metric is about the worst one, such as a PER of 97 %.

    The trial counts as complete; this is a mark for people.
    """
    if value is None or not metric.bounded:
        return False
    from_perfect = value if metric.direction == "minimize" else 1 - value
    return from_perfect >= NOTHING_LEARNED


@dataclass(frozen=True)
class Record:
    """All that is known about a trial, for displays and reports."""

    id: int
    number: int
    state: State
    start: str | None
    # What a trial of a child study retrains; empty in a search.
    label: str
    params: dict[str, Any]
    # By dotted name; empty before a worker has claimed the trial.
    config: dict[str, Any]
    # The metric at the end of the training; None unless the trial is complete.
    value: float | None
    # The last and the best value of the thin curve.
    last_value: float | None
    best_value: float | None
    best_step: int | None
    step: int
    # Time of training and evaluation, over all attempts.
    seconds: float
    # The same; where several trainings shared a GPU, divided by their number.
    gpu_seconds: float
    attempts: int
    # The rule that stopped the trial.
    rule: str
    # Which limit of the rule was exceeded; for failed or waiting trials, how the last attempt
    # ended.
    cause: str
    # Why the trial was stopped or failed, or why it waits, for people.
    reason: str
    host: str
    device: str
    code_version: str
    # The fingerprint of the data.
    data: str
    # The name of the past run that was imported as this trial; empty for a trial of the study.
    imported: str = ""
    # Time of attempts after which the training began again at step 0.
    lost_seconds: float = 0.0
    # Whether the training ended where it began: see `learned_nothing`.
    learned_nothing: bool = False

    @property
    def steps(self) -> int:
        """The steps of a whole training; 0 before a worker has claimed the trial."""
        return int(self.config.get("steps", 0))

    @property
    def stopped_by_rule(self) -> bool:
        """Whether a rule stopped the trial, and not a person."""
        return self.state == "stopped" and self.rule != BY_HAND

    @property
    def gpu_share(self) -> float:
        """The part of its GPU that the training had, on average."""
        return self.gpu_seconds / self.seconds if self.seconds else 1.0
