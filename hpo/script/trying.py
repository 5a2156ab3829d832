"""`hpo try`: does a script start, are its values found, can it go on where it was interrupted?

The script is run four times on the base: until its second value, to learn how often it reports; then, as short as that
allows, whole; stopped in the middle and resumed; and whole again, to learn how much two equal trainings differ.
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

# Values that a whole short run should have.
VALUES = 4
# After so long without a value a line says that the run goes on.
NEWS_SECONDS = 30.0


@dataclass(frozen=True)
class Run:
    """What one run of the script has reported."""

    values: dict[int, float]
    """Step -> value of the metric."""
    first: int | None
    """The step of the first value of the last attempt."""
    seconds: float
    first_seconds: float
    """From the start to the first value."""
    stop_seconds: float | None
    """From our asking to its end; None: it had ended by itself."""

    resumed: bool = False
    """Whether it is the second attempt."""
    fault: str = ""
    """Why the second attempt failed."""

    @property
    def last(self) -> int:
        return max(self.values)


@dataclass(frozen=True)
class Found:
    """What `hpo try` has measured."""

    resume: str | None
    """exact, `within X`, or none; None: it could not be measured."""
    why: str
    noise: float
    """The largest difference between two whole runs."""
    every: int | None
    """Steps from one value to the next."""
    seconds: float
    """Of a whole training, as the short one says."""


class Trial:
    """Tries one script. `say` gets lines for people as they become known. Raises SpecError."""

    def __init__(
        self,
        settings: CompleteScript,
        config: ScriptConfig,
        data: ScriptData,
        site: Site,
        say: Callable[[str], None],
        others: Mapping[str, Any],
    ):
        """others: name -> another value than the base's, of each searched parameter."""
        self.settings = settings
        self.config = config
        self.data = data
        self.site = site
        self.say = say
        self.others = others
        self.metric: Metric = settings.metric

    def find(self) -> Found:
        probe = self._probe()
        config = self._shortened(probe)
        whole = self._whole(config, "whole")
        interrupted = self._interrupted(config, whole)
        again = self._whole(config, "again")
        noise = apart(whole.values, again.values)
        for warning in (*self._unread(config, whole), *self._wrong_way(whole, noise)):
            self.say(f"WARNING    {warning}")
        self.say(
            f"noise      the same configuration and seed twice: {self.metric.name} differs by at most "
            f"{self._difference(noise)}"
        )
        resume, why = judged(whole, interrupted, noise, self.metric)
        self.say(f"resumes    {resume or 'not known'}: {why}")
        steps = whole.last - min(whole.values) or whole.last or 1
        seconds = (
            whole.first_seconds + (whole.seconds - whole.first_seconds) * self.config.steps / steps
        )
        return Found(resume, why, noise, _interval(whole), seconds)

    def _difference(self, value: float) -> str:
        return f"{self.metric.difference(value).lstrip('+')} {self.metric.difference_unit}"

    def _probe(self) -> Run:
        run = self._run(self.config, "probe", lambda values: len(values) > 1)
        shown = ", ".join(
            f"{self.metric.text(value)} at step {step}" for step, value in run.values.items()
        )
        self.say(
            f"starts     yes, the first {self.metric.name} after {duration(run.first_seconds)}"
        )
        self.say(f"values     {self.metric.name} {shown}")
        if run.stop_seconds is not None:
            self.say(f"stops      {run.stop_seconds:.1f} s after SIGTERM")
        return run

    def _shortened(self, probe: Run) -> ScriptConfig:
        """As many steps as give VALUES values, where the script can be told how many to do."""
        every = _interval(probe)
        if self.settings.steps_field is None or every is None:
            return self.config
        last = max(probe.values) + (VALUES - 2) * every
        # Of a script that counts from 0, step 499 is the last of 500.
        steps = min(self.config.steps, last + 1 if (last + 1) % every == 0 else last)
        return self.config.with_values({"steps": steps})

    def _whole(self, config: ScriptConfig, name: str) -> Run:
        run = self._run(config, name, self._enough(config))
        how = (
            "by itself"
            if run.stop_seconds is None
            else f"by us, after {plural(len(run.values), 'value')}"
        )
        self.say(
            f"{name:10} {plural(len(run.values), 'value')} to step {run.last} in {duration(run.seconds)}, ended {how}"
        )
        return run

    def _unread(self, config: ScriptConfig, whole: Run) -> Iterator[str]:
        """What the script does not seem to read: its number of steps, its searched values."""
        if whole.stop_seconds is None and whole.last > config.steps:
            yield (
                f"hpo asked for {plural(config.steps, 'step')}, and the script made {whole.last}: it does not read "
                f"{self.settings.steps}. Does a value reach it? Say flag: or config:, or read HPO_CONFIG"
            )
        other = config.with_values(self.others)
        try:
            run = self._run(other, "other", self._enough(config))
        except SpecError as error:
            yield f"with other values ({_listed(self.others)}): {error}"
            return
        if apart(whole.values, run.values) == 0:
            yield (
                f"with other values ({_listed(self.others)}) every {self.metric.name} is the same: the script does not "
                f"read them. Say flag: or config:, or read HPO_CONFIG"
            )

    def _wrong_way(self, whole: Run, noise: float) -> Iterator[str]:
        """A metric that gets worse while a training goes on."""
        values = [self.metric.sign * whole.values[step] for step in sorted(whole.values)]
        always_worse = all(after > before for before, after in pairwise(values))
        if len(values) > 2 and always_worse and values[-1] - values[0] > noise:
            moves, better = ("rises", "lower") if self.metric.sign > 0 else ("falls", "higher")
            yield (
                f"{self.metric.name} {moves} while the script trains, and metric: direction: says that {better} is better"
            )

    def _enough(self, config: ScriptConfig) -> Callable[[dict[int, float]], bool]:
        """A run that cannot be made shorter is ended by us."""
        shortened = config.steps < self.config.steps
        return lambda values: not shortened and len(values) >= VALUES

    def _interrupted(self, config: ScriptConfig, whole: Run) -> Run | None:
        """Stopped after half of its values and resumed, up to where `whole` ended; None: it has nothing to go on from."""
        steps = sorted(whole.values)
        half = steps[(len(steps) - 1) // 2]
        stopped = self._run(config, "interrupted", lambda values: max(values) >= half)
        if not any((self._folder("interrupted") / "attempt-1" / CHECKPOINTS).iterdir()):
            return None
        if stopped.stop_seconds is None:
            return stopped
        try:
            return self._run(config, "interrupted", lambda values: False, attempt=2)
        except SpecError as error:
            return replace(stopped, resumed=True, fault=str(error))

    def _waits(self, name: str, log: Path, seconds: float, values: int) -> None:
        self.say(
            f"           {name} run: {plural(values, 'value')} in {duration(seconds)}; its output: {log}"
        )

    def _folder(self, name: str) -> Path:
        return self.site.folder / name

    def _run(
        self,
        config: ScriptConfig,
        name: str,
        enough: Callable[[dict[int, float]], bool],
        attempt: int = 1,
    ) -> Run:
        folder = self._folder(name)
        if attempt == 1:
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        site = replace(self.site, folder=folder, attempt=attempt, log=folder / "log")
        # `resume` is what is to be found out.
        settings = self.settings.model_copy(update={"resume": None})
        training = ScriptTraining(settings, config, self.data, site)
        try:
            return _followed(training, enough, partial(self._waits, name, site.log))
        except (TrainingFailedError, MemoryError) as error:
            raise SpecError(f"{name} run: {error} (its output: {site.log})") from None


def _followed(
    training: ScriptTraining,
    enough: Callable[[dict[int, float]], bool],
    say: Callable[[float, int], None],
) -> Run:
    """say: is told (seconds, values so far) where nothing new comes for a while."""
    begin = time.monotonic()
    values: dict[int, float] = {}
    first: int | None = None
    first_seconds = 0.0
    stop_seconds = None
    with closing(training.train()) as looks:
        for look in _patient(looks, values, say):
            for step in [step for step in values if step > look.step]:
                del values[step]
            values[look.step] = _finite(look)
            if first is None and training.reading == training.site.attempt:
                first, first_seconds = look.step, time.monotonic() - begin
            if enough(values):
                asked = time.monotonic()
                looks.close()
                end = end_of(training.folder)
                if end is None or end.stopped:
                    stop_seconds = time.monotonic() - asked
                break
    resumed = training.site.attempt > 1
    return Run(values, first, time.monotonic() - begin, first_seconds, stop_seconds, resumed)


def _patient(
    looks: Looks, values: Mapping[int, float], say: Callable[[float, int], None]
) -> Iterator[Progress]:
    """The looks that have a score. Raises TrainingFailedError for a training that diverges."""
    begin = told = time.monotonic()
    for look in looks:
        now = time.monotonic()
        if isinstance(look, Progress):
            if reason := look.reason_to_end:
                raise TrainingFailedError(f"the base diverges at step {look.step}: {reason}")
            if look.score is not None:
                told = now
                yield look
        elif now - told > NEWS_SECONDS:
            told = now
            say(now - begin, len(values))


def _finite(look: Progress) -> float:
    assert look.score is not None
    if not math.isfinite(look.score.value):
        raise TrainingFailedError(f"the base diverges at step {look.step}: {look.score.value}")
    return look.score.value


def _interval(run: Run) -> int | None:
    """Steps from one value to the next, as most often; None: there is one value."""
    steps = sorted(run.values)
    return mode(after - before for before, after in pairwise(steps)) if len(steps) > 1 else None


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value_text(value)}" for name, value in values.items())


def apart(a: dict[int, float], b: dict[int, float]) -> float:
    """The largest difference at common steps; infinite if there is none."""
    common = [step for step in a if step in b]
    return max((abs(a[step] - b[step]) for step in common), default=math.inf)


def judged(
    whole: Run, interrupted: Run | None, noise: float, metric: Metric
) -> tuple[str | None, str]:
    """(exact, `within X`, none or None; why). interrupted: stopped in the middle and resumed."""
    if interrupted is None:
        return "none", "it keeps nothing in HPO_CHECKPOINTS. An interrupted trial begins again"
    if interrupted.fault:
        return "none", f"resumed it fails ({interrupted.fault}). An interrupted trial begins again"
    if not interrupted.resumed:
        return None, "the script had ended before it could be stopped"
    if interrupted.first is None:
        return "none", "the resumed script reports no value. An interrupted trial begins again"
    if interrupted.first <= min(whole.values) and len(whole.values) > 1:
        return (
            "none",
            f"the resumed script begins again, at step {interrupted.first}, although it has checkpoints",
        )
    if interrupted.last > whole.last and whole.stop_seconds is None:
        return (
            "none",
            f"the resumed script goes on to step {interrupted.last}, a whole one ends at {whole.last}",
        )
    difference = apart(whole.values, interrupted.values)
    if math.isinf(difference):
        return "none", "the resumed script reports at other steps than a whole one"
    if difference == 0:
        return "exact", f"stopped and resumed it gives the same {metric.name} at every step"
    words = f"{metric.difference(difference).lstrip('+')} {metric.difference_unit}"
    if difference <= noise:
        return (
            f"within {difference:.2g}",
            f"stopped and resumed it differs by at most {words}, as two whole runs do",
        )
    return (
        f"within {difference:.2g}",
        f"stopped and resumed it differs by {words}, which is more than two whole runs do",
    )


def written(path: Path, found: Found, code: str) -> None:
    """Keep what was found beside the study file, where `hpo launch` looks. Raises OSError."""
    facts = {
        "resume": found.resume,
        "why": found.why,
        "noise": found.noise,
        "steps_between_values": found.every,
        "seconds_of_a_training": round(found.seconds, 1),
        "code": code,
    }
    path.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
