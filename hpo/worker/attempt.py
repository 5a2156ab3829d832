"""An attempt at a trial: train, report, ask the stopping rule, checkpoint, keep the weights."""

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from hpo.curve import Point, point_of
from hpo.settings import Config
from hpo.space.stopping import Stop, not_finite, not_finite_stop
from hpo.store.url import secrets_of
from hpo.study.logs import log_path
from hpo.study.study import Study
from hpo.study.trial import Completed, Interrupted, Outcome, Stopped, Trial
from hpo.trainer import Progress, Score, Site, Training, Waiting, Weights, as_score
from hpo.worker.checkpoint import (
    TORCH_WEIGHTS,
    Writer,
    begin,
    check_state,
    checkpoints,
    remove_drafts,
    save_checkpoint,
    write_atomically,
)
from hpo.worker.device import CPU, first_line, peak_memory, visible_devices
from hpo.worker.disk import is_disk_full
from hpo.worker.reporter import Reporter, ask_until_answered
from hpo.worker.trackers import FOLDER, RunInfo, Tracker, Trackers, chosen

log = logging.getLogger(__name__)


@dataclass
class Place:
    """What a worker provides for its attempts."""

    study: Study
    # Made by the trainer's load_data.
    dataset: Any
    # The folder of the study's files.
    folder: Path
    # device, code_version and data, as the study records them of a trial.
    provenance: dict[str, str]
    stop: Callable[[], bool] = lambda: False
    device: torch.device = CPU
    # The indices of the worker's GPUs.
    gpus: tuple[int, ...] = ()
    # Further partitions, made by load_data, on which completed trials are scored.
    held_out: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Stretch:
    """What a training has reported since the last point of its curve."""

    # The step of that point, or of the beginning of the attempt.
    after: int
    reported: list[Progress] = field(default_factory=list)
    began_at: float = field(default_factory=time.monotonic)

    def point(self) -> Point:
        """The point of the curve at the last report, which has a score."""
        return point_of(self.reported, self.after, time.monotonic() - self.began_at)


@dataclass
class WeightsFiles:
    """Writes the weights of an attempt: `best` along the curve, and `last`.

    Any attempt can resume from a checkpoint, but these files replace those of the trial's next
    holder. While it is not certain that this attempt holds the trial, they are postponed.
    """

    weights: Weights
    folder: Path
    config: Config
    writer: Writer
    # Whether this attempt certainly holds the trial.
    holds: Callable[[], bool]
    # The postponed writes, by the name of the weights.
    _postponed: dict[str, Callable[[], bool]] = field(default_factory=dict)

    def path(self, which: str) -> Path:
        return self.folder / f"{which}{self.weights.suffix}"

    def submit(self, which: str, training: Training, facts: dict[str, Any]) -> None:
        """Collect the weights now and write them soon. facts: where they come from."""
        collected = self.weights.collect(training)
        self.writer.submit(f"the {which} weights", self._write, which, collected, facts)

    def _write(self, which: str, collected: dict[str, Any], facts: dict[str, Any]) -> None:
        def write(path: Path) -> None:
            self.weights.write(path, collected, self.config, facts)

        write_file = partial(write_atomically, self.path(which), write, self.holds)
        self._postponed.pop(which, None)
        if not write_file():
            self._postponed[which] = write_file

    def write_postponed(self) -> None:
        """The database has answered: write what was postponed, unless the trial is lost."""
        for which, write_file in self._postponed.items():
            self.writer.now(f"the {which} weights", write_file)
        self._postponed.clear()


class Attempt:
    """One attempt at a trial: its training, its curve and its files.

    The caller of `run` stores the outcome, and then calls `tidy` or `weights.write_postponed`.
    """

    def __init__(self, place: Place, trial: Trial, folder: Path):
        self.place = place
        self.study = place.study
        self.trainer = place.study.spec.load_trainer()
        self.metric = place.study.spec.metric
        self.trial = trial
        self.folder = folder
        self.writer = Writer(self._warn_of_write)
        self.reporter = Reporter(
            place.study, trial, partial(peak_memory, place.device), log.warning
        )
        self.weights = WeightsFiles(
            self.trainer.weights or TORCH_WEIGHTS,
            folder,
            trial.config,
            self.writer,
            self.reporter.holds,
        )
        self.trackers = Trackers()
        self.curve: list[Point] = []
        self.short_of_memory = False
        # What could not be written to a full disk.
        self.unwritten: list[str] = []
        self._since = Stretch(0)
        self._last_score: Score | None = None
        # By value, if the trainer takes the best score of the curve.
        self._scores: dict[float, Score] = {}
        self._saved_at = time.monotonic()

    def run(self) -> Outcome | None:
        """Train from the newest usable checkpoint to the outcome.

        Returns None if another worker holds the trial now.
        """
        training = self._prepare()
        resume = partial(self.study.resume, self.trial, training.step, self.curve)
        if not ask_until_answered(resume, self.place.stop, log.warning):
            return None
        self._start_trackers()
        remove_drafts(self.folder)
        outcome = self._train(training)
        if isinstance(outcome, Completed):
            outcome = replace(outcome, held_out=self._held_out_scores(training))
            self._keep_weights(training, "last", outcome.score.value)
        # Even a completed trial needs its checkpoint until the outcome is stored.
        if isinstance(outcome, (Completed, Interrupted)):
            self._checkpoint(training)
        self.writer.wait()
        return outcome

    def tidy(self) -> None:
        """Remove the checkpoints of a completed trial, unless its weights could not be written."""
        if self.trainer.keeps_files or self.weights.path("last").exists():
            for path in checkpoints(self.folder):
                path.unlink(missing_ok=True)

    def _prepare(self) -> Training:
        """A training at step 0, or at the step of the newest usable checkpoint."""
        begun = begin(self._start, self.folder)
        training = begun.training
        number = self.trial.number
        for fault in begun.faults:
            log.warning("trial %d: unusable checkpoint: %s", number, fault)
        if training.step:
            self.curve = begun.curve
            log.info("trial %d: resumes after step %d", number, training.step)
        elif self.trial.attempt > 1:
            log.info("trial %d: no checkpoint of an earlier attempt; restarts at step 0", number)
        check_state(training.state_dict())
        return training

    def _start(self) -> Training:
        """A training at step 0."""
        arguments: list[Any] = [self.trial.config, self.place.dataset]
        if self.trainer.needs_site:
            arguments.append(self._site())
        training: Training = self.trainer.start(*arguments)
        return training

    def _site(self) -> Site:
        url = self.study.engine.url.render_as_string(hide_password=False)
        url_of_user = os.environ.get("HPO_DATABASE_URL", "")
        return Site(
            folder=self.folder,
            log=log_path(self.place.folder, self.trial.number),
            study=self.study.name,
            trial=self.trial.number,
            attempt=self.trial.attempt,
            device=self.place.provenance["device"].split(" ")[0],
            gpus=visible_devices(self.place.gpus),
            secrets=(*secrets_of(url), *secrets_of(url_of_user)),
        )

    def _start_trackers(self) -> None:
        names, unique = ask_until_answered(
            partial(chosen, self.study), self.place.stop, log.warning
        )
        trial = self.trial
        info = RunInfo(
            folder=self.place.folder / FOLDER,
            study=self.study.name,
            number=trial.number,
            attempt=trial.attempt,
            id=f"{unique}-{trial.number}",
            config=trial.config.flat(),
            metric=self.metric.key,
        )
        threads = [Tracker(name, info, self.reporter.may_write, log.warning) for name in names]
        self.trackers = Trackers(threads, self.curve)

    def _train(self, training: Training) -> Outcome | None:
        # The training first ends what an earlier attempt has left running here.
        self.reporter.alive_for(self.trainer.ending_seconds)
        self._saved_at = time.monotonic()
        events = training.train()
        try:
            return self._follow(training, events)
        finally:
            # Closing ends whatever the training still does, which may take a while.
            self.reporter.alive_for(self.trainer.ending_seconds)
            close = getattr(events, "close", None)
            if close is not None:
                close()

    def _follow(self, training: Training, events: Iterator[Progress | Waiting]) -> Outcome | None:
        """Handle the training's events until there is an outcome, or the trial is lost (None)."""
        self._since = Stretch(training.step)
        for event in events:
            outcome = self._handle(training, event)
            if self.reporter.lost:
                return None
            if outcome is not None:
                return outcome
        return self._complete(training)

    def _handle(self, training: Training, event: Progress | Waiting) -> Outcome | None:
        """Returns None for as long as the training continues."""
        if isinstance(event, Progress):
            return self._advance(training, event)
        if not isinstance(event, Waiting):
            raise TypeError(
                f"train() gave a {type(event).__name__}. Valid: hpo.Progress(step, loss, ...)"
            )
        self.reporter.alive()
        if event.resumes_at is not None:
            self._go_back(event.resumes_at)
        return self._interruption()

    def _advance(self, training: Training, progress: Progress) -> Outcome | None:
        reason = progress.reason_to_end
        if reason:
            self.reporter.at(progress.step)
            return Stopped(not_finite_stop(progress.step, reason))
        if self.curve and progress.step <= self.curve[-1].step:
            self._go_back(progress.step)
        self._since.reported.append(progress)
        is_last = progress.step >= self.trial.config.steps
        if progress.score is None:
            self.reporter.at(progress.step)
        else:
            stop = self._evaluated(training, progress.score, is_last)
            if stop is not None:
                return Stopped(stop)
        return None if is_last else self._interruption()

    def _evaluated(self, training: Training, score: Score, is_last: bool) -> Stop | None:
        """Add a point to the curve. Returns why the training should stop, if it should."""
        point = self._since.point()
        self._last_score = score
        if self.trainer.take == "best":
            self._scores.setdefault(point.value, score)
        self._add_to_curve(point)
        stop = self._reason_to_stop(is_last)
        if stop is not None:
            return stop
        # This looks at the writer before the best weights may occupy it at every evaluation.
        age = time.monotonic() - self._saved_at
        is_due = age >= self.study.spec.attempts.checkpoint_seconds and not self.writer.busy
        # The weights come before the checkpoint: an attempt that resumes from the checkpoint does
        # not score this step again.
        self._keep_weights_if_best(training, point)
        if is_due and not is_last:
            self._checkpoint(training)
            self._saved_at = time.monotonic()
        self._since = Stretch(point.step)
        return None

    def _complete(self, training: Training) -> Outcome:
        """The outcome of a training that has ended by itself.

        It is evaluated here if it has no score of its last step: it took no steps because it was
        resumed at the last one, or it took steps without a score.
        """
        if self._last_score is not None and not self._since.reported:
            return Completed(self._score_of_trial(self._last_score))
        score = as_score(training.evaluate(self.place.dataset))
        # A training that keeps its own files decides itself where its curve has points.
        has_new_point = bool(self._since.reported) and not self.trainer.keeps_files
        if has_new_point:
            self._since.reported[-1] = replace(self._since.reported[-1], score=score)
            point = self._since.point()
        else:
            point = Point(training.step, score.value, 0.0)
        stop = not_finite(point, self.metric)
        if stop is not None:
            return Stopped(stop)
        if has_new_point:
            self._add_to_curve(point)
            self._keep_weights_if_best(training, point)
        return Completed(self._score_of_trial(score))

    def _interruption(self) -> Interrupted | None:
        """Whether to hand the trial back, because of a signal or because the study has halted."""
        reason = "a signal" if self.place.stop() else self.reporter.reason_to_leave
        return Interrupted(reason) if reason else None

    def _go_back(self, step: int) -> None:
        """The training continues at this step, and replaces the curve from there on."""
        self.curve = [point for point in self.curve if point.step < step]
        last = self.curve[-1] if self.curve else None
        self.reporter.go_back(last)
        self._since = Stretch(last.step if last else 0)

    def _score_of_trial(self, last_score: Score) -> Score:
        """The last score, or the best of the curve if the trainer takes that."""
        if self.trainer.take == "last" or not self.curve:
            return last_score
        best = self.metric.best([point.value for point in self.curve])
        return self._scores.get(best) or Score.of(best)

    def _held_out_scores(self, training: Training) -> dict[str, Score]:
        scores = {}
        for name, data in self.place.held_out.items():
            scores[name] = as_score(training.evaluate(data))
        return scores

    def _reason_to_stop(self, is_last: bool) -> Stop | None:
        """A value that is not finite ends any training; the rule ends one that has steps left."""
        stop = not_finite(self.curve[-1], self.metric)
        if stop is not None:
            return stop
        rule = self.study.spec.stopping
        if rule is None or is_last:
            return None
        return rule.judge(self.curve, self.metric)

    def _add_to_curve(self, point: Point) -> None:
        self.curve.append(point)
        self.reporter.at(point.step, point)
        self.trackers.point(point)

    def _checkpoint(self, training: Training) -> None:
        state = training.state_dict()
        check_state(state)
        self.writer.submit(
            f"the checkpoint at step {training.step}",
            save_checkpoint,
            training.step,
            state,
            list(self.curve),
            self.folder,
            self.reporter.may_write,
        )

    def _keep_weights_if_best(self, training: Training, point: Point) -> None:
        if point.value == self.metric.best([point.value for point in self.curve]):
            self._keep_weights(training, "best", point.value)

    def _keep_weights(self, training: Training, which: str, value: float) -> None:
        """which: `best` or `last`. value: the metric of these weights."""
        if self.trainer.keeps_files:
            return
        facts = {
            "study": self.study.name,
            "trial": self.trial.number,
            "weights": which,
            "step": training.step,
            self.metric.key: value,
            "partition": "validation",
            **self.place.provenance,
        }
        self.weights.submit(which, training, facts)

    def _warn_of_write(self, what: str, error: Exception) -> None:
        """A full disk costs the file, not the training."""
        if is_disk_full(error, self.folder):
            self.unwritten.append(f"{what} of trial {self.trial.number}")
        log.warning("trial %d: cannot write %s: %s", self.trial.number, what, first_line(error))
