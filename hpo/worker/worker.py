"""The loop of a worker: claim a trial, make an attempt at it, store its outcome."""

import logging
import random
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
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
from hpo.worker.disk import is_disk_full
from hpo.worker.keeping import Tidying
from hpo.worker.reporter import ask_until_answered

# The average time between looks at a paused study.
PAUSE_SECONDS = 2.0
# How long a worker that got a signal waits for a database that is away.
HAND_BACK_SECONDS = 15.0
log = logging.getLogger(__name__)


@dataclass
class Worker(Place):
    """One process that trains, and that provides the place for its attempts."""

    process: Process = field(default_factory=Process.this)
    # What could not be written, because the disk was full.
    unwritten: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._tidying = Tidying(self.study, self.folder)

    def run(self) -> int:
        """Run trials until the budget is spent or the stop flag is set.

        Returns how many trials ended here. Raises MemoryShortError or BadNodeError with the trial
        handed back, and DatabaseAwayError after the database has been away for an hour.
        """
        ended = 0
        self._tidy()
        while not self.stop():
            trial = self._claim()
            if trial is None:
                break
            with logged(log_path(self.folder, trial.number)):
                outcome = self._run_logged(trial)
            if isinstance(outcome, (Completed, Stopped, Failed)):
                ended += 1
                self._tidy()
            if isinstance(outcome, Failed) and self._is_bad_host():
                raise BadNodeError(
                    f"the last trials failed on this host ({outcome.reason}), while other hosts "
                    f"complete theirs. Nothing is lost: the trials continue elsewhere. Check this "
                    f"machine"
                )
        return ended

    def _tidy(self) -> None:
        """Remove files that nobody needs any more, unless the database is away."""
        with suppress(DatabaseError, OSError):
            # It is not worth waiting for: the next worker tidies, too.
            ask_until_answered(self._tidying.tidy, lambda: True, log.warning)

    def _run_logged(self, trial: Trial) -> Outcome | None:
        """Run the trial, with its beginning and its outcome in the log."""
        start = f" (start {trial.start})" if trial.start else ""
        log.info("trial %d: begins%s", trial.number, start)
        outcome = self.run_trial(trial)
        if outcome is not None:
            reason = f" ({outcome.reason})" if isinstance(outcome, Interrupted) else ""
            log.info("trial %d: %s%s", trial.number, type(outcome).__name__.lower(), reason)
        return outcome

    def _is_bad_host(self) -> bool:
        try:
            return self.study.bad_host(self.process.host)
        except DatabaseAwayError:
            # The next failure asks again.
            return False

    def _claim(self) -> Trial | None:
        """Returns None if no work is left, the study was stopped, or the stop flag is set."""
        claim = partial(self.study.claim, self.process, self.provenance, idle=True)
        try:
            while True:
                trial = ask_until_answered(claim, self.stop, log.warning)
                if trial or not self._wait_while_paused():
                    return trial
        except DatabaseAwayError:
            if self.stop():
                self._withdraw()
                return None
            raise

    def _withdraw(self) -> None:
        """Hand back the trial of a claim that has not been answered when the signal came."""
        began_at = time.monotonic()

        def given_up() -> bool:
            return time.monotonic() - began_at > HAND_BACK_SECONDS

        withdraw = partial(self.study.withdraw, self.process)
        # Without the database, the trial is handed back when this process is seen to be dead.
        with suppress(DatabaseAwayError):
            ask_until_answered(withdraw, given_up, log.warning)

    def _wait_while_paused(self) -> bool:
        """Wait, with the data loaded, while the study is paused. Returns whether it was paused."""
        announced: Halt | None = None
        while not self.stop():
            halt = ask_until_answered(self._halt, self.stop, log.warning)
            if halt is None or halt.state != "paused":
                break
            if halt != announced:
                log.info("the study is %s; waiting for hpo resume", halt)
                announced = halt
            # The jitter is no secret.
            self._sleep(PAUSE_SECONDS * random.uniform(0.5, 1.5))  # noqa: S311
        return announced is not None

    def _halt(self) -> Halt | None:
        """Whether the study is paused or stopped; None if it is over anyway."""
        return None if self.study.why_over() else self.study.halt

    def _sleep(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until and not self.stop():
            time.sleep(0.1)

    def run_trial(self, trial: Trial) -> Outcome | None:
        """Train one trial to its outcome and store that.

        Returns None if another worker holds the trial now, or if the database stayed away. Raises
        MemoryShortError if the device ran out of memory.
        """
        attempt = Attempt(self, trial, trial_folder(self.folder, trial.number))
        try:
            outcome = self._outcome_of(attempt)
        finally:
            attempt.writer.close()
            seconds = attempt.reporter.close(self.stop)
            self.unwritten += attempt.unwritten
        if outcome is None or not self._finish(attempt, outcome, seconds):
            self._let_go(attempt)
            return None
        attempt.trackers.close(outcome)
        if isinstance(outcome, Completed):
            attempt.tidy()
        if attempt.short_of_memory:
            raise MemoryShortError(
                f"trial {trial.number}: {self.device} ran out of memory; the trial waits for "
                f"another attempt. Use fewer workers on this device, a smaller batch, or another "
                f"device"
            )
        if isinstance(outcome, Stopped):
            shutil.rmtree(attempt.folder, ignore_errors=True)
        return outcome

    def _outcome_of(self, attempt: Attempt) -> Outcome | None:
        """Run the attempt.

        Returns None if the outcome cannot be stored: the lease expires and the trial continues
        elsewhere. Raises StudyError, with the trial handed back, if the user must fix something.
        """
        number = attempt.trial.number
        try:
            return attempt.run()
        except TrainingFailedError as error:
            log.warning("trial %d: %s", number, error)
            return Failed(str(error), _cause_of(error))
        except StudyError as error:
            self._hand_back(attempt, error)
            raise
        except DatabaseError as error:
            if self.stop() and isinstance(error, DatabaseAwayError):
                return None
            raise
        except Exception as error:
            if is_memory_short(error):
                attempt.short_of_memory = True
                return self._out_of_memory(attempt.trial)
            if is_disk_full(error, self.folder):
                full = StudyError(
                    f"the disk of {self.folder} is full ({first_line(error)}). The trial waits. "
                    f"Free some space (hpo studies --disk says what lies where), then run the same "
                    f"command"
                )
                self._hand_back(attempt, full)
                raise WorkerError(f"trial {number}: {full}") from None
            log.exception("trial %d", number)
            self._check_device()
            return Failed(f"{type(error).__name__}: {first_line(error)} ({place_of(error)})")

    def _hand_back(self, attempt: Attempt, error: StudyError) -> None:
        attempt.writer.close()
        seconds = attempt.reporter.close(self.stop)
        self._finish(attempt, Interrupted(str(error)), seconds)

    def _let_go(self, attempt: Attempt) -> None:
        """Give up a trial that this worker no longer holds.

        If the user has stopped it, nobody needs its files.
        """
        number = attempt.trial.number
        reason = self._why_stopped_by_hand(attempt.trial)
        if reason:
            log.info("trial %d: stopped %s", number, reason)
            attempt.trackers.close(Stopped(Stop(BY_HAND, BY_HAND, reason)))
            shutil.rmtree(attempt.folder, ignore_errors=True)
            return
        attempt.trackers.close()
        log.warning("trial %d: no longer held by this worker; its outcome was not stored", number)

    def _why_stopped_by_hand(self, trial: Trial) -> str | None:
        """The user's reason to stop the trial; None if the user did not, or if nobody can tell."""
        if self.stop():
            return None
        ask = partial(self.study.stopped_by_hand, trial)
        try:
            return ask_until_answered(ask, self.stop, log.warning)
        except DatabaseError:
            return None

    def _finish(self, attempt: Attempt, outcome: Outcome, seconds: float) -> bool:
        """Store the outcome, after all points that are not delivered yet.

        Waits for a database that is away; after a signal, for HAND_BACK_SECONDS. Returns False if
        another worker holds the trial now, or if the database stayed away after a signal.
        """
        began_at = time.monotonic()

        def deliver() -> bool:
            attempt.reporter.deliver()
            attempt.weights.write_postponed()
            if attempt.reporter.lost:
                return False
            return self.study.finish(attempt.trial, outcome, seconds)

        def given_up() -> bool:
            return self.stop() and time.monotonic() - began_at > HAND_BACK_SECONDS

        try:
            return ask_until_answered(deliver, given_up, log.warning)
        except DatabaseAwayError:
            # The lease expires, and the trial resumes from the checkpoint in its folder.
            if self.stop():
                return False
            raise

    def _out_of_memory(self, trial: Trial) -> Outcome:
        """The trial is to blame only if it had the device to itself."""
        problem = f"{self.device} ran out of memory"
        ask = partial(self.study.shares_device, trial)
        if ask_until_answered(ask, self.stop, log.warning):
            return Interrupted(f"{problem}, shared with other trainings")
        return Failed(problem, Cause.OUT_OF_MEMORY)

    def _check_device(self) -> None:
        """Raises WorkerError if this process can no longer use its GPU, as after some errors.

        Otherwise it would fail trial after trial.
        """
        if self.device.type != "cuda":
            return
        try:
            torch.cuda.synchronize(self.device)
        except RuntimeError as error:
            raise WorkerError(
                f"{self.device} can no longer be used ({first_line(error)})"
            ) from None


def _cause_of(error: TrainingFailedError) -> Cause:
    if isinstance(error, TrainingHangsError):
        return Cause.HUNG
    return Cause.LOST if error.lost else Cause.CODE_ERROR


# Each argument is an option of `hpo worker`.
def run_worker(  # noqa: PLR0913
    study: Study,
    data_path: Path | None,
    device: torch.device,
    threads: int | None,
    stop: Callable[[], bool],
    artifacts: Path | None = None,
    allow_different_code: bool = False,
    gpus: tuple[int, ...] = (),
    notes: list[str] | None = None,
) -> int:
    """Join a study: load its data, check that data and code are the study's, run trials.

    Returns how many trials ended here. data_path: the place of the data on this machine; None: the
    path that the study was made with. artifacts: likewise for the study's shared folder. gpus: the
    indices of the GPUs that this worker holds; empty: that of `device`. notes: is given a line
    about files that could not be written.

    Raises DataError or StudyError if the data or the code differ from the study's.
    """
    if threads:
        torch.set_num_threads(threads)
    check_code(study, allow_different_code)
    dataset = load_study_data(study, data_path, str(device))
    held_out = _load_held_out(study, data_path or study.data_path, device)
    folder = study_folder(study, artifacts)
    provenance = {
        "device": device_name(device, gpus),
        "code_version": code_version(study.spec),
        "data": dataset.fingerprint,
    }
    worker = Worker(
        study,
        dataset,
        folder,
        provenance,
        stop,
        device=device,
        gpus=gpus,
        held_out=held_out,
    )
    trials_run = worker.run()
    if worker.unwritten and notes is not None:
        notes.append(
            f"the disk of {folder} was full: {len(worker.unwritten)} files were not written, the "
            f"last one {worker.unwritten[-1]}. hpo studies --disk says what lies where"
        )
    return trials_run


def _load_held_out(study: Study, path: Path | None, device: torch.device) -> dict[str, Any]:
    """The partitions on which a child study scores its completed trials."""
    child = study.spec.child
    if child is None:
        return {}
    partitions: dict[str, Any] = {}
    for partition in child.score:
        partitions[partition] = load_dataset(study.spec, path, str(device), partition)
    return partitions
