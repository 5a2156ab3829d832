"""run_worker: claim a trial, make an attempt at it, store its outcome; until nothing is left."""

import logging
import random
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from hpo.errors import (
    BadNodeError,
    DatabaseAwayError,
    DatabaseError,
    MemoryShortError,
    StudyError,
    WorkerError,
)
from hpo.process import Process
from hpo.space.stopping import Stop
from hpo.study.logs import log_path, logged
from hpo.study.paths import study_folder, trial_folder
from hpo.study.study import Study
from hpo.study.trial import (
    BY_HAND,
    Cause,
    Completed,
    Failed,
    Halt,
    Interrupted,
    Outcome,
    Stopped,
    Trial,
)
from hpo.study.version import check_code, code_version
from hpo.trainer import TrainingFailedError, TrainingHangsError
from hpo.worker.attempt import Attempt, Place
from hpo.worker.dataset import load_dataset, load_study_data
from hpo.worker.device import device_name, first_line, is_memory_short, place_of
from hpo.worker.reporter import persistently

PAUSE_SECONDS = 2.0  # between looks at a paused study, on average
HAND_BACK_SECONDS = 15.0  # after a signal: so long a worker tries to tell a database that is away
log = logging.getLogger(__name__)


@dataclass
class Worker(Place):
    """One process that trains, and so the place of its attempts."""

    process: Process = field(default_factory=Process.this)

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
        log.info(
            "trial %d: begins%s", trial.number, f" (start {trial.start})" if trial.start else ""
        )
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
        while (
            not self.stop()
            and (halt := persistently(self._halt, self.stop, log.warning))
            and halt.state == "paused"
        ):
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
        run = Attempt(self, trial, trial_folder(self.folder, trial.number))
        try:
            outcome = self._outcome_of(run)
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
            raise MemoryShortError(
                f"trial {trial.number}: {self.device} ran out of memory; it waits to go on. Take fewer workers on "
                f"this device, a smaller batch, or another device"
            )
        if isinstance(outcome, Stopped):
            shutil.rmtree(run.folder, ignore_errors=True)
        return outcome

    def _outcome_of(self, run: Attempt) -> Outcome | None:
        """None: it cannot be written; the lease runs out and the trial goes on elsewhere.

        Raises StudyError where a person has to mend something first; the trial goes on then.
        """
        number = run.trial.number
        try:
            return run.to_its_end()
        except TrainingFailedError as error:
            log.warning("trial %d: %s", number, error)
            return Failed(str(error), _cause_of(error))
        except StudyError as error:
            self._hand_back(run, error)
            raise
        except DatabaseError as error:
            if not (self.stop() and isinstance(error, DatabaseAwayError)):
                raise
            return None
        except Exception as error:
            if is_memory_short(error):
                run.short_of_memory = True
                return self._short_of_memory(run.trial)
            log.exception("trial %d", number)
            self._check_device()
            return Failed(f"{type(error).__name__}: {first_line(error)} ({place_of(error)})")

    def _hand_back(self, run: Attempt, error: StudyError) -> None:
        run.writer.close()
        self._finish(run, Interrupted(str(error)), run.reporter.close(self.stop))

    def _let_go(self, run: Attempt) -> None:
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

    def _finish(self, run: Attempt, outcome: Outcome, seconds: float) -> bool:
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
        return (
            Interrupted(f"{what} beside other trainings")
            if shared
            else Failed(what, Cause.OUT_OF_MEMORY)
        )

    def _check_device(self) -> None:
        """After some errors a process can use its GPU no more. It must end then, or it would fail trial after trial."""
        if self.device.type == "cuda":
            try:
                torch.cuda.synchronize(self.device)
            except RuntimeError as error:
                raise WorkerError(
                    f"{self.device} cannot be used any more ({first_line(error)})"
                ) from None


def _cause_of(error: TrainingFailedError) -> Cause:
    if isinstance(error, TrainingHangsError):
        return Cause.HUNG
    return Cause.LOST if error.lost else Cause.CODE_ERROR


def run_worker(
    study: Study,
    data_path: Path | None,
    device: torch.device,
    threads: int | None,
    stop: Callable[[], bool],
    artifacts: Path | None = None,
    allow_different_code: bool = False,
    gpus: tuple[int, ...] = (),
) -> int:
    """Join a study: load its data, check that they and the code are the study's, run trials. Returns how many ended here.

    data_path: where the data are on this machine; None takes the path that the study was made with. artifacts: the same
    for the study's shared folder. gpus: the indices of the GPUs that this worker holds; empty: that of `device`.

    Raises DataError, StudyError if data or code differ from the study's.
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
        "device": device_name(device, gpus),
        "code_version": code_version(spec),
        "data": dataset.fingerprint,
    }
    return Worker(
        study, dataset, folder, record, stop, device=device, gpus=gpus, held_out=held_out
    ).run()
