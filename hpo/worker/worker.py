"""run_worker: claim a trial, train it, report, ask the stopping rule, checkpoint, hand over; until nothing is left."""

import logging
import random
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from hpo.curve import Point, point_of
from hpo.errors import (
    BadNodeError,
    DatabaseAwayError,
    DatabaseError,
    MemoryShortError,
    WorkerError,
)
from hpo.settings import Config
from hpo.space.stopping import Stop, non_finite, not_finite
from hpo.store.process import Process
from hpo.study.logs import log_path, logged
from hpo.study.paths import study_folder, trial_folder
from hpo.study.study import Study
from hpo.study.trial import BY_HAND, Cause, Completed, Failed, Halt, Interrupted, Outcome, Stopped, Trial
from hpo.study.version import check_code, code_version
from hpo.trainer import Progress, Trainer, Training, load_trainer
from hpo.worker.checkpoint import TORCH_WEIGHTS, Writer, begin, check_state, checkpoints, remove_drafts, save_checkpoint, written
from hpo.worker.dataset import load_dataset, load_study_data
from hpo.worker.device import CPU, device_name, first_line, is_memory_short, taken_memory
from hpo.worker.reporter import Reporter, persistently
from hpo.worker.trackers import FOLDER, Subject, Tracker, Trackers, chosen

PAUSE_SECONDS = 2.0  # between looks at a paused study, on average
HAND_BACK_SECONDS = 15.0  # after a signal: so long a worker tries to tell a database that is away
log = logging.getLogger(__name__)


@dataclass
class Worker:
    """One process that trains. `dataset` and `held_out` are made by the trainer."""

    study: Study
    dataset: Any
    folder: Path  # of the study's checkpoints
    record: dict[str, str]  # device, code_version, data
    stop: Callable[[], bool] = lambda: False
    process: Process = field(default_factory=Process.this)
    device: torch.device = CPU
    held_out: Mapping[str, Any] = field(default_factory=dict)  # partitions that complete trials are scored on too

    @property
    def trainer(self) -> Trainer:
        return load_trainer(self.study.spec.trainer)

    def run(self) -> int:
        """Run trials until the budget is spent or the flag is raised. Returns how many came to an end here.

        Raises MemoryShortError or BadNodeError, with the trial handed back, DatabaseAwayError after an hour without it.
        """
        done = 0
        while not self.stop() and (trial := self._claim()):
            with logged(log_path(self.folder, trial.number)):
                outcome = self._attempt(trial)
            done += isinstance(outcome, (Completed, Stopped, Failed))
            if isinstance(outcome, Failed) and self._bad_host():
                raise BadNodeError(f"the last trials failed on this host ({outcome.reason}), while other hosts bring theirs to an end. "
                                   f"Nothing is lost: they go on elsewhere. Look at this machine")  # fmt: skip
        return done

    def _attempt(self, trial: Trial) -> Outcome | None:
        """run_trial, with its beginning and its end in the log."""
        log.info("trial %d: begins%s", trial.number, f" (start {trial.start})" if trial.start else "")
        outcome = self.run_trial(trial)
        if outcome is not None:
            why = f" ({outcome.reason})" if isinstance(outcome, Interrupted) else ""
            log.info("trial %d: %s%s", trial.number, type(outcome).__name__.lower(), why)
        return outcome

    def _bad_host(self) -> bool:
        try:
            return self.study.bad_host(self.process.host)
        except DatabaseAwayError:  # the next failure asks again
            return False

    def _claim(self) -> Trial | None:
        """None: nothing is left to do, the study was stopped, or we are to leave."""
        try:
            while True:
                claim = partial(self.study.claim, self.process, self.record, idle=True)
                trial = persistently(claim, self.stop, log.warning)
                if trial or not self._sit_out_pause():
                    return trial
        except DatabaseAwayError:
            if self.stop():
                return None
            raise

    def _sit_out_pause(self) -> bool:
        """Wait, with the data loaded, while the study is paused and not over. Returns whether it was."""
        told = None
        while not self.stop() and (halt := persistently(self._halt, self.stop, log.warning)) and halt.state == "paused":
            if halt != told:
                log.info("the study is %s; waiting for hpo resume", halt)
                told = halt
            until = time.monotonic() + PAUSE_SECONDS * random.uniform(0.5, 1.5)  # noqa: S311  (jitter, no secret)
            while time.monotonic() < until and not self.stop():
                time.sleep(0.1)
        return told is not None

    def _halt(self) -> Halt | None:
        return None if self.study.why_over() else self.study.halt

    def run_trial(self, trial: Trial) -> Outcome | None:
        """Train one trial to its outcome and store it. None: the trial was taken from us, or the database stayed away."""
        run = _Run(self, trial, trial_folder(self.folder, trial.number))
        outcome: Outcome | None
        try:
            outcome = run.to_its_end()
        except DatabaseError as error:  # no outcome can be written; the lease runs out and the trial goes on elsewhere
            if not (self.stop() and isinstance(error, DatabaseAwayError)):
                raise
            outcome = None
        except Exception as error:
            if is_memory_short(error):
                run.short_of_memory = True
                outcome = self._short_of_memory(trial)
            else:
                log.exception("trial %d", trial.number)
                self._check_device()
                outcome = Failed(f"{type(error).__name__}: {first_line(error)}")
        finally:
            run.writer.close()
            seconds = run.reporter.close(self.stop)
        if outcome is None or not self._finish(run, outcome, seconds):
            self._let_go(run)
            return None
        run.trackers.close(outcome)
        if isinstance(outcome, Completed):
            run.tidy()
        if run.short_of_memory:
            raise MemoryShortError(f"trial {trial.number}: {self.device} ran out of memory; it waits to go on. Take fewer workers on "
                                   f"this device, a smaller batch_size with more accumulation, or another device")  # fmt: skip
        if isinstance(outcome, Stopped):
            shutil.rmtree(run.folder, ignore_errors=True)
        return outcome

    def _let_go(self, run: "_Run") -> None:
        """The trial is not ours any more. If a person has stopped it nobody needs its files."""
        number = run.trial.number
        try:
            asked = partial(self.study.stopped_by_hand, run.trial)
            if not self.stop() and (reason := persistently(asked, self.stop, log.warning)):
                log.info("trial %d: stopped %s", number, reason)
                run.trackers.close(Stopped(Stop(BY_HAND, BY_HAND, reason)))
                shutil.rmtree(run.folder, ignore_errors=True)
                return
        except DatabaseError:
            pass
        run.trackers.close()
        log.warning("trial %d: not ours any more; nothing was written", number)

    def _finish(self, run: "_Run", outcome: Outcome, seconds: float) -> bool:
        """Deliver what is owed and the outcome, as long as it takes; after a signal, for what is left of its 30 seconds."""
        raised = time.monotonic()

        def deliver() -> bool:
            run.reporter.deliver()
            run.keep_late()
            return not run.reporter.lost and self.study.finish(run.trial, outcome, seconds)

        def given_up() -> bool:
            return self.stop() and time.monotonic() - raised > HAND_BACK_SECONDS

        try:
            return persistently(deliver, given_up, log.warning)
        except DatabaseAwayError:
            if self.stop():  # its checkpoint lies in its folder; the lease runs out and the trial goes on from there
                return False
            raise

    def _short_of_memory(self, trial: Trial) -> Outcome:
        """Beside others it is no fault of the trial."""
        what = f"{self.device} ran out of memory"
        shared = persistently(lambda: self.study.shares_device(trial), self.stop, log.warning)
        return Interrupted(f"{what} beside other trainings") if shared else Failed(what, Cause.OUT_OF_MEMORY)

    def _check_device(self) -> None:
        """After some errors a process can use its GPU no more. It must end then, or it would fail trial after trial."""
        if self.device.type == "cuda":
            try:
                torch.cuda.synchronize(self.device)
            except RuntimeError as error:
                raise WorkerError(f"{self.device} cannot be used any more ({first_line(error)})") from None


class _Run:
    """One attempt at a trial: its training, its curve and its files."""

    def __init__(self, worker: Worker, trial: Trial, folder: Path):
        self.worker, self.study, self.trainer = worker, worker.study, worker.trainer
        self.metric = worker.study.spec.metric
        self.weights = self.trainer.weights or TORCH_WEIGHTS
        self.trial, self.folder = trial, folder
        self.writer = Writer(self._write_fault)
        self.reporter = Reporter(worker.study, trial, partial(taken_memory, worker.device), log.warning)
        self.trackers = Trackers()
        self.curve: list[Point] = []
        self._unkept: dict[str, Callable[[], bool]] = {}  # weights, by which
        self.short_of_memory = False

    def to_its_end(self) -> Outcome | None:
        begun = begin(partial(self.trainer.start, self.trial.config, self.worker.dataset), self.folder)
        training = begun.training
        for fault in begun.faults:
            log.warning("trial %d: a checkpoint cannot be used: %s", self.trial.number, fault)
        if training.step:
            self.curve = begun.curve
            log.info("trial %d: goes on after step %d", self.trial.number, training.step)
        elif self.trial.attempt > 1:
            log.info("trial %d: no checkpoint of its earlier attempt is here; it begins again at step 0", self.trial.number)
        check_state(training.state_dict())
        resume = partial(self.study.resume, self.trial, training.step, self.curve)
        if not persistently(resume, self.worker.stop, log.warning):
            return None
        self._track()
        remove_drafts(self.folder)
        outcome = self._steps(training)
        if isinstance(outcome, Completed):
            held_out = {name: training.evaluate(data) for name, data in self.worker.held_out.items()}
            outcome = replace(outcome, held_out=held_out)
            self._keep(training, "last", outcome.score.value)
        if isinstance(outcome, (Completed, Interrupted)):
            self._checkpoint(training)  # of a complete one until the outcome is stored
        self.writer.wait()
        return outcome

    def _track(self) -> None:
        names, unique = persistently(partial(chosen, self.study), self.worker.stop, log.warning)
        trial, folder = self.trial, self.worker.folder / FOLDER
        subject = Subject(
            folder, self.study.name, trial.number, trial.attempt, f"{unique}-{trial.number}", trial.config.flat(), self.metric.key
        )
        threads = [Tracker(name, subject, self.reporter.may_write, log.warning) for name in names]
        self.trackers = Trackers(threads, self.curve)

    def tidy(self) -> None:
        """After the outcome is stored: no checkpoint is needed any more, unless the weights could not be written."""
        if self._weights_path("last").exists():
            for path in checkpoints(self.folder):
                path.unlink(missing_ok=True)

    def _steps(self, training: Training) -> Outcome | None:
        since: list[Progress] = []
        last_step = training.step
        begin_seconds = time.monotonic()
        saved = time.monotonic()
        score = None
        steps = self.trial.config.steps
        for progress in training.train():
            if reason := progress.reason_to_end:
                self.reporter.at(progress.step)
                return Stopped(non_finite(progress.step, reason))
            since.append(progress)
            finished = progress.step >= steps
            if progress.score is None:
                self.reporter.at(progress.step)
            else:
                score = progress.score
                point = point_of(since, last_step, time.monotonic() - begin_seconds)
                self._evaluated(point)
                if stop := self._judged(finished):
                    return Stopped(stop)
                # Asked before the best weights are written, which may be at every evaluation.
                due = time.monotonic() - saved >= self.study.spec.attempts.checkpoint_seconds and not self.writer.busy
                if point.value == self.metric.best([point.value for point in self.curve]):
                    # Before the checkpoint: who goes on from that does not score this again.
                    self._keep(training, "best", point.value)
                if due and not finished:
                    self._checkpoint(training)
                    saved = time.monotonic()
                since, last_step = [], progress.step
                begin_seconds = time.monotonic()
            if self.reporter.lost:
                return None
            if (why := "a signal" if self.worker.stop() else self.reporter.spent) and not finished:
                return Interrupted(why)
        if score is None:  # no steps at all, or resumed at the last one
            score = training.evaluate(self.worker.dataset)
            if stop := not_finite(Point(training.step, score.value, 0.0), self.metric):
                return Stopped(stop)
        return Completed(score)

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
        what = f"the checkpoint at step {training.step}"
        self.writer.submit(what, save_checkpoint, training.step, state, list(self.curve), self.folder, self.reporter.may_write)

    def _keep(self, training: Training, which: str, value: float) -> None:
        """The weights that were scored, `best` along the curve or `last`."""
        facts = {
            "study": self.study.name,
            "trial": self.trial.number,
            "weights": which,
            "step": training.step,
            self.metric.key: value,
            "partition": "validation",
            **self.worker.record,
        }
        collected = self.weights.collect(training)
        self.writer.submit(f"the {which} weights", self._write_weights, which, collected, self.trial.config, facts)

    def _weights_path(self, which: str) -> Path:
        return self.folder / f"{which}{self.weights.suffix}"

    def _write_weights(self, which: str, collected: dict[str, Any], config: Config, facts: dict[str, Any]) -> None:
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
        log.warning("trial %d: %s could not be written: %s", self.trial.number, what, first_line(error))


def run_worker(
    study: Study,
    data_path: Path | None,
    device: torch.device,
    threads: int | None,
    stop: Callable[[], bool],
    artifacts: Path | None = None,
    allow_different_code: bool = False,
) -> int:
    """Join a study: load its data, check that they and the code are the study's, run trials. Returns how many ended here.

    data_path: where the data are on this machine; None takes the path that the study was made with. artifacts: the same
    for the study's shared folder. Raises DataError, StudyError if data or code differ from the study's.
    """
    if threads:
        torch.set_num_threads(threads)
    check_code(study, allow_different_code)
    spec = study.spec
    dataset = load_study_data(study, data_path, str(device))
    held_out: dict[str, Any] = {
        partition: load_dataset(spec, data_path or study.data_path, str(device), partition)
        for partition in (spec.child.score if spec.child else ())
    }
    folder = study_folder(study, artifacts)
    record = {
        "device": device_name(device),
        "code_version": code_version(spec.trainer),
        "data": dataset.fingerprint,
    }
    return Worker(study, dataset, folder, record, stop, device=device, held_out=held_out).run()
