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


@dataclass
class Stretch:
    """What a training has shown since the last point of its curve."""

    after: int  # the step of that point, or where the attempt began
    looks: list[Progress] = field(default_factory=list)
    begun: float = field(default_factory=time.monotonic)

    def point(self) -> Point:
        """At the last look, which has a score."""
        return point_of(self.looks, self.after, time.monotonic() - self.begun)


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
        self._since = Stretch(0)
        self._score: Score | None = None  # the last
        self._scores: dict[float, Score] = {}  # by value, where the best of the curve is taken
        self._saved_at = time.monotonic()
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
        self._saved_at = time.monotonic()
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
        """None: the trial was taken from us."""
        self._since = Stretch(training.step)
        for look in looks:
            outcome = self._takes(training, look)
            if self.reporter.lost:
                return None
            if outcome is not None:
                return outcome
        return self._at_its_end(training)

    def _takes(self, training: Training, look: Progress | Waiting) -> Outcome | None:
        """None: the training goes on."""
        if isinstance(look, Progress):
            return self._advances(training, look)
        if not isinstance(look, Waiting):
            raise TypeError(
                f"train() gave a {type(look).__name__}. Valid: hpo.Progress(step, loss, ...)"
            )
        self.reporter.alive()
        if look.goes_on_at is not None:
            self._go_back(look.goes_on_at)
        return self._called_off()

    def _advances(self, training: Training, look: Progress) -> Outcome | None:
        if reason := look.reason_to_end:
            self.reporter.at(look.step)
            return Stopped(non_finite(look.step, reason))
        if self.curve and look.step <= self.curve[-1].step:
            self._go_back(look.step)
        self._since.looks.append(look)
        is_last = look.step >= self.trial.config.steps
        if look.score is None:
            self.reporter.at(look.step)
        elif stop := self._scores_look(training, look.score, is_last):
            return Stopped(stop)
        return None if is_last else self._called_off()

    def _scores_look(self, training: Training, score: Score, is_last: bool) -> Stop | None:
        """The last look has a score, which is a point of the curve. Returns why the training should stop."""
        point = self._since.point()
        self._score = score
        if self.trainer.take == "best":
            self._scores.setdefault(point.value, score)
        self._evaluated(point)
        if stop := self._judged(is_last):
            return stop
        # Asked before the best weights are written, which may be at every evaluation.
        age = time.monotonic() - self._saved_at
        is_due = age >= self.study.spec.attempts.checkpoint_seconds and not self.writer.busy
        # Before the checkpoint: who goes on from that does not score this again.
        self._keep_if_best(training, point)
        if is_due and not is_last:
            self._checkpoint(training)
            self._saved_at = time.monotonic()
        self._since = Stretch(point.step)
        return None

    def _at_its_end(self, training: Training) -> Outcome:
        """The training has ended. It is evaluated once more after no steps at all, after a resume at the last one, and
        after steps without a score.
        """
        if self._score is not None and not self._since.looks:
            return Completed(self._taken(self._score))
        score = as_score(training.evaluate(self.place.dataset))
        # A training with files of its own was evaluated where it says so, and nowhere else.
        is_new = bool(self._since.looks) and not self.trainer.keeps_files
        if not is_new:
            last = Point(training.step, score.value, 0.0)
            stop = not_finite(last, self.metric)
            return Stopped(stop) if stop else Completed(self._taken(score))
        self._since.looks[-1] = replace(self._since.looks[-1], score=score)
        point = self._since.point()
        if stop := not_finite(point, self.metric):
            return Stopped(stop)
        self._evaluated(point)
        self._keep_if_best(training, point)
        return Completed(self._taken(score))

    def _called_off(self) -> Interrupted | None:
        """The trial is handed back, because the worker is to leave or the study has halted."""
        why = "a signal" if self.place.stop() else self.reporter.spent
        return Interrupted(why) if why else None

    def _go_back(self, step: int) -> None:
        """The training goes on earlier than its curve ends: from `step` on the curve is made again."""
        self.curve = [point for point in self.curve if point.step < step]
        last = self.curve[-1] if self.curve else None
        self.reporter.go_back(last)
        self._since = Stretch(last.step if last else 0)

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
