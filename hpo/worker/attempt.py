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
from hpo.space.stopping import Stop, non_finite, not_finite
from hpo.store.url import secrets_of
from hpo.study.logs import log_path
from hpo.study.study import Study
from hpo.study.trial import Completed, Interrupted, Outcome, Stopped, Trial
from hpo.trainer import Progress, Score, Site, Training, Waiting, as_score
from hpo.worker.checkpoint import (
    TORCH_WEIGHTS,
    Writer,
    begin,
    check_state,
    checkpoints,
    remove_drafts,
    save_checkpoint,
    written,
)
from hpo.worker.device import CPU, first_line, taken_memory, visible_devices
from hpo.worker.reporter import Reporter, persistently
from hpo.worker.trackers import FOLDER, Subject, Tracker, Trackers, chosen

log = logging.getLogger(__name__)


@dataclass
class Place:
    """What an attempt finds in its worker. `dataset` and `held_out` are made by the trainer."""

    study: Study
    dataset: Any
    folder: Path  # of the study's files
    record: dict[str, str]  # device, code_version, data
    stop: Callable[[], bool] = lambda: False
    device: torch.device = CPU
    gpus: tuple[int, ...] = ()  # of the worker
    held_out: Mapping[str, Any] = field(
        default_factory=dict
    )  # partitions that complete trials are scored on too


class Attempt:
    """One attempt at a trial: its training, its curve and its files.

    `to_its_end` trains; whoever calls it stores the outcome, and then calls `tidy` or `keep_late`.
    """

    def __init__(self, place: Place, trial: Trial, folder: Path):
        self.place, self.study = place, place.study
        self.trainer = place.study.spec.load_trainer()
        self.metric = place.study.spec.metric
        self.weights = self.trainer.weights or TORCH_WEIGHTS
        self.trial, self.folder = trial, folder
        self.writer = Writer(self._write_fault)
        self.reporter = Reporter(
            place.study, trial, partial(taken_memory, place.device), log.warning
        )
        self.trackers = Trackers()
        self.curve: list[Point] = []
        self._unkept: dict[str, Callable[[], bool]] = {}  # weights, by which
        self._scores: dict[
            float, Score
        ] = {}  # by their values, where the best of the curve is taken
        self.short_of_memory = False

    def _start(self) -> Training:
        """A training at step 0."""
        arguments: list[Any] = [self.trial.config, self.place.dataset]
        if self.trainer.needs_site:
            arguments.append(self._site())
        training: Training = self.trainer.start(*arguments)
        return training

    def _site(self) -> Site:
        url = self.study.engine.url.render_as_string(hide_password=False)
        given = os.environ.get("HPO_DATABASE_URL", "")
        return Site(
            folder=self.folder,
            log=log_path(self.place.folder, self.trial.number),
            study=self.study.name,
            trial=self.trial.number,
            attempt=self.trial.attempt,
            device=self.place.record["device"].split(" ")[0],
            gpus=visible_devices(self.place.gpus),
            secrets=(*secrets_of(url), *secrets_of(given)),
        )

    def to_its_end(self) -> Outcome | None:
        begun = begin(self._start, self.folder)
        training = begun.training
        for fault in begun.faults:
            log.warning("trial %d: a checkpoint cannot be used: %s", self.trial.number, fault)
        if training.step:
            self.curve = begun.curve
            log.info("trial %d: goes on after step %d", self.trial.number, training.step)
        elif self.trial.attempt > 1:
            log.info(
                "trial %d: no checkpoint of its earlier attempt is here; it begins again at step 0",
                self.trial.number,
            )
        check_state(training.state_dict())
        resume = partial(self.study.resume, self.trial, training.step, self.curve)
        if not persistently(resume, self.place.stop, log.warning):
            return None
        self._track()
        remove_drafts(self.folder)
        # What an earlier attempt has left running here is ended first.
        self.reporter.alive_for(self.trainer.ending_seconds)
        looks = training.train()
        try:
            outcome = self._steps(training, looks)
        finally:
            # Whatever the training still does, it ends here, and may take its time.
            self.reporter.alive_for(self.trainer.ending_seconds)
            if close := getattr(looks, "close", None):
                close()
        if isinstance(outcome, Completed):
            held_out = {
                name: as_score(training.evaluate(data))
                for name, data in self.place.held_out.items()
            }
            outcome = replace(outcome, held_out=held_out)
            self._keep(training, "last", outcome.score.value)
        if isinstance(outcome, (Completed, Interrupted)):
            self._checkpoint(training)  # of a complete one until the outcome is stored
        self.writer.wait()
        return outcome

    def _track(self) -> None:
        names, unique = persistently(partial(chosen, self.study), self.place.stop, log.warning)
        trial, folder = self.trial, self.place.folder / FOLDER
        subject = Subject(
            folder,
            self.study.name,
            trial.number,
            trial.attempt,
            f"{unique}-{trial.number}",
            trial.config.flat(),
            self.metric.key,
        )
        threads = [Tracker(name, subject, self.reporter.may_write, log.warning) for name in names]
        self.trackers = Trackers(threads, self.curve)

    def tidy(self) -> None:
        """After the outcome is stored: no checkpoint is needed any more, unless the weights could not be written."""
        if self.trainer.keeps_files or self._weights_path("last").exists():
            for path in checkpoints(self.folder):
                path.unlink(missing_ok=True)

    def _steps(self, training: Training, looks: Iterator[Progress | Waiting]) -> Outcome | None:
        since: list[Progress] = []
        last_step = training.step
        begin_seconds = time.monotonic()
        saved = time.monotonic()
        score = None
        steps = self.trial.config.steps
        for progress in looks:
            if isinstance(progress, Waiting):
                self.reporter.alive()
                if progress.goes_on_at is not None:
                    last_step = self._go_back(progress.goes_on_at)
                    since = []
                if outcome := self._called_off(False):
                    return outcome
                if self.reporter.lost:
                    return None
                continue
            if not isinstance(progress, Progress):
                raise TypeError(
                    f"train() gave a {type(progress).__name__}. Valid: hpo.Progress(step, loss, ...)"
                )
            if reason := progress.reason_to_end:
                self.reporter.at(progress.step)
                return Stopped(non_finite(progress.step, reason))
            if self.curve and progress.step <= self.curve[-1].step:
                last_step = self._go_back(progress.step)
                since = []
            since.append(progress)
            finished = progress.step >= steps
            if progress.score is None:
                self.reporter.at(progress.step)
            else:
                score = progress.score
                point = point_of(since, last_step, time.monotonic() - begin_seconds)
                self._scores = (
                    {point.value: score, **self._scores} if self.trainer.take == "best" else {}
                )
                self._evaluated(point)
                if stop := self._judged(finished):
                    return Stopped(stop)
                # Asked before the best weights are written, which may be at every evaluation.
                due = (
                    time.monotonic() - saved >= self.study.spec.attempts.checkpoint_seconds
                    and not self.writer.busy
                )
                # Before the checkpoint: who goes on from that does not score this again.
                self._keep_if_best(training, point)
                if due and not finished:
                    self._checkpoint(training)
                    saved = time.monotonic()
                since, last_step = [], progress.step
                begin_seconds = time.monotonic()
            if self.reporter.lost:
                return None
            if outcome := self._called_off(finished):
                return outcome
        # No steps at all, resumed at the last one, or ended after steps without a score.
        if score is None or since:
            score = as_score(training.evaluate(self.place.dataset))
            # A training with files of its own was evaluated where it says so, and nowhere else.
            is_new = bool(since) and not self.trainer.keeps_files
            point = Point(training.step, score.value, 0.0)
            if is_new:
                looks_since = [*since[:-1], replace(since[-1], score=score)]
                point = point_of(looks_since, last_step, time.monotonic() - begin_seconds)
            if stop := not_finite(point, self.metric):
                return Stopped(stop)
            if is_new:
                self._evaluated(point)
                self._keep_if_best(training, point)
        return Completed(self._taken(score))

    def _called_off(self, finished: bool) -> Interrupted | None:
        """The trial is handed back, because the worker is to leave or the study has halted."""
        why = "a signal" if self.place.stop() else self.reporter.spent
        return Interrupted(why) if why and not finished else None

    def _go_back(self, step: int) -> int:
        """The training goes on earlier than its curve ends: from `step` on the curve is made again.

        Returns the step of the last point that is left.
        """
        self.curve = [point for point in self.curve if point.step < step]
        last = self.curve[-1] if self.curve else None
        self.reporter.go_back(last)
        return last.step if last else 0

    def _taken(self, score: Score) -> Score:
        """The trial's score: the last, or where the trainer says so the best of the curve."""
        if self.trainer.take == "last" or not self.curve:
            return score
        best = self.metric.best([point.value for point in self.curve])
        return self._scores.get(best) or Score.of(best)

    def _judged(self, finished: bool) -> Stop | None:
        """What is no number ends a training in any case; the rule ends one that has steps left."""
        rule = self.study.spec.stopping
        if stop := not_finite(self.curve[-1], self.metric):
            return stop
        return rule.judge(self.curve, self.metric) if rule and not finished else None

    def _evaluated(self, point: Point) -> None:
        self.curve.append(point)
        self.reporter.at(point.step, point)
        self.trackers.point(point)

    def _checkpoint(self, training: Training) -> None:
        state = training.state_dict()
        check_state(state)
        what = f"the checkpoint at step {training.step}"
        self.writer.submit(
            what,
            save_checkpoint,
            training.step,
            state,
            list(self.curve),
            self.folder,
            self.reporter.may_write,
        )

    def _keep(self, training: Training, which: str, value: float) -> None:
        """The weights that were scored, `best` along the curve or `last`."""
        if self.trainer.keeps_files:
            return
        facts = {
            "study": self.study.name,
            "trial": self.trial.number,
            "weights": which,
            "step": training.step,
            self.metric.key: value,
            "partition": "validation",
            **self.place.record,
        }
        collected = self.weights.collect(training)
        self.writer.submit(
            f"the {which} weights", self._write_weights, which, collected, self.trial.config, facts
        )

    def _keep_if_best(self, training: Training, point: Point) -> None:
        if self.trainer.keeps_files:
            return
        if point.value == self.metric.best([point.value for point in self.curve]):
            self._keep(training, "best", point.value)

    def _weights_path(self, which: str) -> Path:
        return self.folder / f"{which}{self.weights.suffix}"

    def _write_weights(
        self, which: str, collected: dict[str, Any], config: Config, facts: dict[str, Any]
    ) -> None:
        """Other than a checkpoint, which any attempt can go on from, they take the place of those of a next holder: where it is not
        known whether there is one, they wait.
        """

        def write(path: Path) -> None:
            self.weights.write(path, collected, config, facts)

        replace_file = partial(written, self._weights_path(which), write, self.reporter.holds)
        self._unkept.pop(which, None)
        if not replace_file():
            self._unkept[which] = replace_file

    def keep_late(self) -> None:
        """The database has answered: what waits is written, or forgotten with the trial."""
        for which, write in self._unkept.items():
            self.writer.now(f"the {which} weights", write)
        self._unkept.clear()

    def _write_fault(self, what: str, error: Exception) -> None:
        """A disk that is full costs the file, not the training."""
        log.warning(
            "trial %d: %s could not be written: %s", self.trial.number, what, first_line(error)
        )
