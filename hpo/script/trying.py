"""`hpo try`: does a script start, are its values found, and can it resume after an interruption?

Four runs of the base configuration tell. The first ends at its second value, which shows how often
the script reports. The others are as short as that allows: a complete run; one that is stopped
halfway and resumed; and a second complete run, which shows how much two equal trainings differ.
"""

import json
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import mode
from typing import Any

from hpo.errors import SpecError
from hpo.script.config import ScriptConfig
from hpo.script.data import ScriptData
from hpo.script.process import end_of
from hpo.script.section import CompleteScript
from hpo.script.settings import CHECKPOINTS
from hpo.script.training import Looks, ScriptTraining
from hpo.text import duration, plural, value_text
from hpo.trainer import Metric, Progress, Site, TrainingFailedError

# Values that a shortened run should have.
VALUES = 4
# After this time without a value, a line shows that the run continues.
NEWS_SECONDS = 30.0
STARTS_OVER = "An interrupted trial starts over"


@dataclass(frozen=True)
class ScriptToTry:
    """A script with its base configuration. site: the folder in which the runs keep files."""

    settings: CompleteScript
    config: ScriptConfig
    data: ScriptData
    site: Site


@dataclass(frozen=True)
class StopAt:
    """When hpo stops a run: at this number of values or at this step. Without either, never."""

    values: int | None = None
    step: int | None = None

    def is_reached(self, values: Mapping[int, float]) -> bool:
        """values: step -> value, at least one."""
        if self.values is not None and len(values) >= self.values:
            return True
        return self.step is not None and max(values) >= self.step


@dataclass(frozen=True)
class Run:
    """What one run of the script has reported."""

    # Step -> value of the metric.
    values: dict[int, float]
    # The step of the first value of the last attempt.
    first: int | None
    seconds: float
    # From the start to the first value.
    first_seconds: float
    # From the request to stop until its end. None if it ended by itself.
    stop_seconds: float | None
    # Whether it is the second attempt, and why that failed.
    resumed: bool = False
    fault: str = ""

    @property
    def last(self) -> int:
        return max(self.values)

    @property
    def ended_by_itself(self) -> bool:
        return self.stop_seconds is None


@dataclass(frozen=True)
class ResumeVerdict:
    """resume: exact, `within X`, or none; None if it could not be measured."""

    resume: str | None
    why: str


@dataclass(frozen=True)
class TryResult:
    """What `hpo try` has measured."""

    resume: str | None
    why: str
    # The largest difference between two complete runs.
    noise: float
    # Steps from one value to the next.
    every: int | None
    # Estimated duration of a full training.
    seconds: float


class Tryout:
    """Runs a script a few times. `show` gets lines for the user as soon as they are known."""

    def __init__(
        self, script: ScriptToTry, other_values: Mapping[str, Any], show: Callable[[str], None]
    ):
        """other_values: searched parameter -> a value that differs from the base's."""
        self.settings = script.settings
        self.config = script.config
        self.data = script.data
        self.site = script.site
        self.other_values = other_values
        self.show = show
        self.metric: Metric = script.settings.metric

    def run(self) -> TryResult:
        """Raises SpecError for a script that fails, diverges or reports no value."""
        probe = self._probe()
        config = self._shortened(probe)
        complete = self._run_complete(config, "complete")
        interrupted = self._run_interrupted(config, complete)
        again = self._run_complete(config, "again")
        noise = largest_difference(complete.values, again.values)
        warnings = self._ignored_settings(config, complete) + self._wrong_direction(complete, noise)
        for warning in warnings:
            self.show(f"WARNING    {warning}")
        self.show(
            f"noise      two runs of the same configuration and seed: {self.metric.name} differs "
            f"by at most {_difference_text(noise, self.metric)}"
        )
        verdict = judge_resume(complete, interrupted, noise, self.metric)
        self.show(f"resumes    {verdict.resume or 'not known'}: {verdict.why}")
        seconds = self._estimated_seconds(complete)
        return TryResult(verdict.resume, verdict.why, noise, _interval(complete), seconds)

    def _estimated_seconds(self, run: Run) -> float:
        steps = run.last - min(run.values) or run.last or 1
        return run.first_seconds + (run.seconds - run.first_seconds) * self.config.steps / steps

    # ---- the runs

    def _probe(self) -> Run:
        run = self._run(self.config, "probe", StopAt(values=2))
        values = [f"{self.metric.text(value)} at step {step}" for step, value in run.values.items()]
        self.show(
            f"starts     yes, the first {self.metric.name} after {duration(run.first_seconds)}"
        )
        self.show(f"values     {self.metric.name} {', '.join(values)}")
        if run.stop_seconds is not None:
            self.show(f"stops      {run.stop_seconds:.1f} s after SIGTERM")
        return run

    def _shortened(self, probe: Run) -> ScriptConfig:
        """A configuration with just enough steps for VALUES values.

        The same configuration if the script takes no number of steps.
        """
        every = _interval(probe)
        if self.settings.steps_field is None or every is None:
            return self.config
        steps = probe.last + (VALUES - 2) * every
        # If the script counts from 0, step 499 is the last of 500.
        if (steps + 1) % every == 0:
            steps += 1
        return self.config.with_values({"steps": min(self.config.steps, steps)})

    def _run_complete(self, config: ScriptConfig, name: str) -> Run:
        run = self._run(config, name, self._stop_of_complete_run(config))
        count = plural(len(run.values), "value")
        ending = "ended by itself" if run.ended_by_itself else "stopped by hpo"
        self.show(f"{name:10} {count} up to step {run.last} in {duration(run.seconds)}, {ending}")
        return run

    def _stop_of_complete_run(self, config: ScriptConfig) -> StopAt:
        """A run that could not be shortened is stopped once it has enough values."""
        is_shortened = config.steps < self.config.steps
        return StopAt() if is_shortened else StopAt(values=VALUES)

    def _run_interrupted(self, config: ScriptConfig, complete: Run) -> Run | None:
        """A run that is stopped after half of the values of `complete`, and then resumed.

        None if it saves no checkpoint. The first attempt alone if that had already ended.
        """
        steps = sorted(complete.values)
        half = steps[(len(steps) - 1) // 2]
        stopped = self._run(config, "interrupted", StopAt(step=half))
        checkpoints = self._folder("interrupted") / "attempt-1" / CHECKPOINTS
        if not any(checkpoints.iterdir()):
            return None
        if stopped.ended_by_itself:
            return stopped
        try:
            return self._run(config, "interrupted", StopAt(), attempt=2)
        except SpecError as error:
            return replace(stopped, resumed=True, fault=str(error))

    def _run(self, config: ScriptConfig, name: str, stop_at: StopAt, attempt: int = 1) -> Run:
        folder = self._folder(name)
        if attempt == 1:
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        site = replace(self.site, folder=folder, attempt=attempt, log=folder / "log")
        # `resume` is unknown here: it is what the tryout measures.
        settings = self.settings.model_copy(update={"resume": None})
        training = ScriptTraining(settings, config, self.data, site)
        show_waiting = partial(self._show_waiting, name, site.log)
        try:
            return _follow(training, stop_at, show_waiting)
        except (TrainingFailedError, MemoryError) as error:
            raise SpecError(f"{name} run: {error} (its output: {site.log})") from None

    def _show_waiting(self, name: str, log: Path, seconds: float, values: int) -> None:
        count = plural(values, "value")
        self.show(f"           {name} run: {count} in {duration(seconds)}; its output: {log}")

    def _folder(self, name: str) -> Path:
        return self.site.folder / name

    # ---- warnings

    def _ignored_settings(self, config: ScriptConfig, complete: Run) -> list[str]:
        """Warnings about values that the script does not seem to read: steps and parameters."""
        warnings = []
        if complete.ended_by_itself and complete.last > config.steps:
            warnings.append(
                f"hpo asked for {plural(config.steps, 'step')}, but the script made "
                f"{complete.last}: it does not read {self.settings.steps}. Pass values with flag: "
                f"or config:, or read HPO_CONFIG"
            )
        changes = ", ".join(
            f"{name} {value_text(value)}" for name, value in self.other_values.items()
        )
        other_config = config.with_values(self.other_values)
        try:
            run = self._run(other_config, "other", self._stop_of_complete_run(other_config))
        except SpecError as error:
            warnings.append(f"with other values ({changes}): {error}")
            return warnings
        if largest_difference(complete.values, run.values) == 0:
            warnings.append(
                f"with other values ({changes}) every {self.metric.name} is the same: the script "
                f"does not read them. Pass values with flag: or config:, or read HPO_CONFIG"
            )
        return warnings

    def _wrong_direction(self, complete: Run, noise: float) -> list[str]:
        """A warning if the metric only gets worse during the training."""
        values = [self.metric.sign * complete.values[step] for step in sorted(complete.values)]
        always_worse = all(after > before for before, after in pairwise(values))
        if len(values) <= 2 or not always_worse or values[-1] - values[0] <= noise:
            return []
        moves, better = "falls", "higher"
        if self.metric.sign > 0:
            moves, better = "rises", "lower"
        return [
            f"{self.metric.name} {moves} while the script trains, but metric: direction: says "
            f"that {better} is better"
        ]


# ---- one run


def _follow(
    training: ScriptTraining, stop_at: StopAt, show_waiting: Callable[[float, int], None]
) -> Run:
    """show_waiting: gets (seconds, number of values) while no new value comes."""
    begin = time.monotonic()
    values: dict[int, float] = {}
    first: int | None = None
    first_seconds = 0.0
    stop_seconds = None
    with closing(training.train()) as looks:
        for progress in _evaluations(looks, values, show_waiting):
            _add_value(values, progress)
            is_of_this_attempt = training.attempt_being_read == training.site.attempt
            if first is None and is_of_this_attempt:
                first = progress.step
                first_seconds = time.monotonic() - begin
            if stop_at.is_reached(values):
                stop_seconds = _stop(training, looks)
                break
    seconds = time.monotonic() - begin
    resumed = training.site.attempt > 1
    return Run(values, first, seconds, first_seconds, stop_seconds, resumed)


def _evaluations(
    looks: Looks, values: Mapping[int, float], show_waiting: Callable[[float, int], None]
) -> Iterator[Progress]:
    """The looks that have a score. Raises TrainingFailedError for a training that diverges."""
    begin = time.monotonic()
    last_news = begin
    for look in looks:
        now = time.monotonic()
        if isinstance(look, Progress):
            reason = look.reason_to_end
            if reason:
                raise TrainingFailedError(f"the base diverges at step {look.step}: {reason}")
            if look.score is not None:
                last_news = now
                yield look
        elif now - last_news > NEWS_SECONDS:
            last_news = now
            show_waiting(now - begin, len(values))


def _add_value(values: dict[int, float], progress: Progress) -> None:
    """Add a value, and forget those of later steps: the script has gone back behind them.

    Raises TrainingFailedError for a value that is not finite.
    """
    assert progress.score is not None
    for step in list(values):
        if step > progress.step:
            del values[step]
    value = progress.score.value
    if not math.isfinite(value):
        raise TrainingFailedError(f"the base diverges at step {progress.step}: {value}")
    values[progress.step] = value


def _stop(training: ScriptTraining, looks: Looks) -> float | None:
    """Stop the script. Returns how many seconds that took; None if it had already ended."""
    begin = time.monotonic()
    looks.close()
    end = end_of(training.folder)
    if end is not None and not end.stopped:
        return None
    return time.monotonic() - begin


def _interval(run: Run) -> int | None:
    """The most frequent number of steps from one value to the next; None for a single value."""
    steps = sorted(run.values)
    if len(steps) < 2:
        return None
    return mode(after - before for before, after in pairwise(steps))


# ---- what the runs mean


def largest_difference(a: Mapping[int, float], b: Mapping[int, float]) -> float:
    """The largest absolute difference at common steps; infinite without common steps."""
    differences = [abs(a[step] - b[step]) for step in a if step in b]
    return max(differences, default=math.inf)


def judge_resume(
    complete: Run, interrupted: Run | None, noise: float, metric: Metric
) -> ResumeVerdict:
    """interrupted: stopped halfway and resumed; None if the script saved no checkpoint."""
    if interrupted is None:
        return ResumeVerdict("none", f"it saves nothing in HPO_CHECKPOINTS. {STARTS_OVER}")
    if interrupted.fault:
        why = f"it fails when it is resumed ({interrupted.fault}). {STARTS_OVER}"
        return ResumeVerdict("none", why)
    if not interrupted.resumed:
        return ResumeVerdict(None, "the script ended before it could be stopped")
    fault = _resume_fault(complete, interrupted)
    if fault:
        return ResumeVerdict("none", fault)
    difference = largest_difference(complete.values, interrupted.values)
    if math.isinf(difference):
        why = "the resumed script reports at other steps than a complete run"
        return ResumeVerdict("none", why)
    if difference == 0:
        return ResumeVerdict(
            "exact", f"stopped and resumed, it gives the same {metric.name} at every step"
        )
    why = f"stopped and resumed, it differs by at most {_difference_text(difference, metric)}"
    if difference <= noise:
        why += ", no more than two complete runs do"
    else:
        why += ", which is more than two complete runs do"
    return ResumeVerdict(f"within {difference:.2g}", why)


def _resume_fault(complete: Run, resumed: Run) -> str:
    """Why the resumed attempt is no continuation of the first, or empty."""
    if resumed.first is None:
        return f"the resumed script reports no value. {STARTS_OVER}"
    if resumed.first <= min(complete.values) and len(complete.values) > 1:
        return (
            f"the resumed script starts over, at step {resumed.first}, although it has checkpoints"
        )
    if resumed.last > complete.last and complete.ended_by_itself:
        return (
            f"the resumed script continues to step {resumed.last}, but a complete run ends at "
            f"{complete.last}"
        )
    return ""


def _difference_text(difference: float, metric: Metric) -> str:
    return f"{metric.difference(difference).lstrip('+')} {metric.difference_unit}"


def write_result(path: Path, result: TryResult, code: str) -> None:
    """Write a result to the file where `hpo launch` looks for it. Raises OSError.

    code: the digest of the script's code.
    """
    content = {
        "resume": result.resume,
        "why": result.why,
        "noise": result.noise,
        "steps_between_values": result.every,
        "seconds_of_a_training": round(result.seconds, 1),
        "code": code,
    }
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
