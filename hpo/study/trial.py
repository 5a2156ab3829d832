"""The values that a trial is passed around as: Trial for its worker, Outcome of an attempt, Cause of its trouble, Record for readers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Literal

from hpo.settings import Config
from hpo.space.stopping import Stop
from hpo.trainer import Score

State = Literal["waiting", "running", "complete", "stopped", "failed"]
DONE: tuple[State, ...] = (
    "complete",
    "stopped",
)  # what a budget of trials counts, besides those that run
BY_HAND = "by hand"  # the rule of a trial that a person has stopped


class Cause(StrEnum):
    """Why an attempt ended before its trial did."""

    INTERRUPTED = "interrupted"  # a signal, pre-emption, the end of an allocation: it goes on, as often as that happens
    LOST = "lost"  # its worker died, or showed no step for the length of a lease
    OUT_OF_MEMORY = "out of memory"  # it waits for a worker with a larger share of a device
    HUNG = "hung"  # it showed no sign of life and was ended: tried once more
    CODE_ERROR = "code error"  # an exception: tried once more
    BAD_CONFIGURATION = "bad configuration"  # it would be as bad again


ALLOWED = {
    Cause.HUNG: 2,
    Cause.CODE_ERROR: 2,
    Cause.BAD_CONFIGURATION: 1,
}  # attempts that may end so; the others: the study's max_attempts


def is_over(causes: Sequence[Cause], max_attempts: int) -> bool:
    """Whether a trial whose attempts ended with these causes (the last one last) fails, instead of waiting for another attempt."""
    counted = [cause for cause in causes if cause != Cause.INTERRUPTED]
    if not counted or causes[-1] == Cause.INTERRUPTED:
        return False
    return len(counted) >= max_attempts or counted.count(counted[-1]) >= ALLOWED.get(
        counted[-1], max_attempts
    )


@dataclass(frozen=True)
class Completed:
    """Trained to its last step. The trial's value is the metric there, not the best along the curve."""

    score: Score
    held_out: Mapping[str, Score] = field(
        default_factory=dict
    )  # by partition; of children that score one only


@dataclass(frozen=True)
class Stopped:
    """Ended early by a rule. Diverging is a result: the sampler learns from it, and it is never best."""

    stop: Stop


@dataclass(frozen=True)
class Interrupted:
    """Ended by a signal or a spent budget, to go on later."""

    reason: str = "a signal"


@dataclass(frozen=True)
class Failed:
    """Ended by trouble. The trial waits for another attempt or fails, by its cause and how often that happened."""

    reason: str
    cause: Cause = Cause.CODE_ERROR


Outcome = Completed | Stopped | Interrupted | Failed


def in_words(outcome: Outcome) -> tuple[str, str]:
    """What an attempt ended with, and why."""
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
    """Postgres takes no NUL in a text."""
    return text.replace("\0", "?")


@dataclass(frozen=True)
class Trial:
    """A claimed trial: what its worker needs to run it."""

    id: int
    number: int
    config: Config
    lease: str
    start: str | None
    attempt: int = 1


@dataclass(frozen=True)
class Halt:
    """That a person has paused a study (its workers wait) or stopped it (they leave)."""

    state: Literal["paused", "stopped"]
    by: str  # USER@HOST
    since: str  # ISO 8601, UTC
    why: str = ""

    def __str__(self) -> str:
        since = datetime.fromisoformat(self.since).astimezone()
        return f"{self.state} by {self.by} at {since:%Y-%m-%d %H:%M:%S}" + (
            f" ({self.why})" if self.why else ""
        )


@dataclass(frozen=True)
class Record:
    """What is known of a trial, for displays and reports."""

    id: int
    number: int
    state: State
    start: str | None
    label: str  # what a child's trial retrains; empty for a trial of a search
    params: dict[str, Any]
    config: dict[str, Any]  # dotted name -> value; empty before a worker took it
    value: float | None  # of the metric, at the end of the training; None unless complete
    last_value: float | None  # of the thin curve
    best_value: float | None  # of the thin curve
    best_step: int | None
    step: int
    seconds: float  # training and evaluation, over all attempts
    gpu_seconds: float  # the same, where trainings shared a GPU divided by their number
    attempts: int
    rule: str  # that stopped it
    cause: str  # by which of its limits; of a failed or waiting trial, what its last attempt ended with
    reason: str  # why it was stopped or failed, or waits, for people
    host: str
    device: str
    code_version: str
    data: str  # fingerprint
    imported: str = ""  # name of the past run that it is; empty: a trial of the study
    lost_seconds: float = 0.0  # of attempts after which the training began again at step 0

    @property
    def steps(self) -> int:
        return int(self.config.get("steps", 0))
