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

from hpo.decoder.artifact import save_decoder
from hpo.decoder.checkpoint import Writer, checkpoints, load_checkpoint, remove_drafts, save_checkpoint
from hpo.decoder.config import DecoderConfig
from hpo.decoder.data import Data, load_data, load_for_scoring
from hpo.decoder.train import Progress, TrainState, evaluate, train
from hpo.errors import (
    BadNodeError,
    CallerError,
    DatabaseAwayError,
    DatabaseError,
    DataError,
    MachineError,
    MemoryShortError,
    WorkerError,
)
from hpo.search.ledger import Point, Process, point_of
from hpo.search.paths import study_folder, trial_folder
from hpo.search.reporter import Reporter, persistently
from hpo.search.sharing import taken_memory
from hpo.search.stopping import Evaluation, Stop, non_finite
from hpo.search.study import Study
from hpo.search.trackers import FOLDER, Subject, Tracker, Trackers, chosen
from hpo.search.trial import BY_HAND, Cause, Completed, Failed, Halt, Interrupted, Outcome, Stopped, Trial
from hpo.search.version import check_code, code_version

PAUSE_SECONDS = 2.0  # between looks at a paused study, on average
HAND_BACK_SECONDS = 15.0  # after a signal: so long a worker tries to tell a database that is away
MEMORY_SHORT = ("can't allocate memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
log = logging.getLogger(__name__)


def choose_device(wanted: str | None) -> torch.device:
    """`cpu`, `cuda` or `cuda:N`; None takes CUDA when there is one. Raises CallerError or MachineError."""
    gpus = torch.cuda.device_count()
    try:
        device = torch.device(wanted or ("cuda" if gpus else "cpu"))
    except RuntimeError:
        raise CallerError(f"--device {wanted}: not a device. Valid: cpu, cuda, cuda:0, cuda:1, ...") from None
    if device.type not in ("cpu", "cuda"):
        raise CallerError(f"--device {wanted}: not supported. Valid: cpu, cuda, cuda:0, cuda:1, ...")
    if device.type == "cuda" and (device.index or 0) >= gpus:
        raise MachineError(f"--device {wanted}: this machine shows {gpus} CUDA devices to PyTorch {torch.__version__}. Take --device cpu")
    return device


def device_name(device: torch.device) -> str:
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else "cpu"


@dataclass
class Worker:
    study: Study
    data: Data
    folder: Path  # of the study's checkpoints
    record: dict[str, str]  # device, code_version, data
    stop: Callable[[], bool] = lambda: False
    process: Process = field(default_factory=Process.this)
    held_out: Mapping[str, Data] = field(default_factory=dict)  # partitions that complete trials are scored on too

    def run(self) -> int:
        """Run trials until the budget is spent or the flag is raised. Returns how many came to an end here.

        Raises MemoryShortError or BadNodeError, with the trial handed back, DatabaseAwayError after an hour without it.
        """
        done = 0
        while not self.stop() and (trial := self._claim()):
            log.info("trial %d: begins%s", trial.number, f" (start {trial.start})" if trial.start else "")
            outcome = self.run_trial(trial)
            if outcome is not None:
                why = f" ({outcome.reason})" if isinstance(outcome, Interrupted) else ""
                log.info("trial %d: %s%s", trial.number, type(outcome).__name__.lower(), why)
            done += isinstance(outcome, (Completed, Stopped, Failed))
            if isinstance(outcome, Failed) and self._bad_host():
                raise BadNodeError(f"the last trials failed on this host ({outcome.reason}), while other hosts bring theirs to an end. "
                                   f"Nothing is lost: they go on elsewhere. Look at this machine")  # fmt: skip
        return done

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
                outcome = Failed(f"{type(error).__name__}: {_first_line(error)}")
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
            raise MemoryShortError(f"trial {trial.number}: {self.data.device} ran out of memory; it waits to go on. Take fewer workers on "
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
        what = f"{self.data.device} ran out of memory"
        shared = persistently(lambda: self.study.shares_device(trial), self.stop, log.warning)
        return Interrupted(f"{what} beside other trainings") if shared else Failed(what, Cause.OUT_OF_MEMORY)

    def _check_device(self) -> None:
        """After some errors a process can use its GPU no more. It must end then, or it would fail trial after trial."""
        if self.data.device.type == "cuda":
            try:
                torch.cuda.synchronize(self.data.device)
            except RuntimeError as error:
                raise WorkerError(f"{self.data.device} cannot be used any more ({_first_line(error)})") from None


class _Run:
    """One attempt at a trial: its state, its curve and its files."""

    def __init__(self, worker: Worker, trial: Trial, folder: Path):
        self.worker, self.study, self.data = worker, worker.study, worker.data
        self.trial, self.folder = trial, folder
        self.writer = Writer(self._write_fault)
        self.reporter = Reporter(worker.study, trial, partial(taken_memory, self.data.device), log.warning)
        self.trackers = Trackers()
        self.curve: list[Point] = []
        self._unkept: dict[str, Callable[[], bool]] = {}  # weights, by which
        self.short_of_memory = False

    def to_its_end(self) -> Outcome | None:
        state = TrainState(self.trial.config, self.data)
        faults, curve = load_checkpoint(state, self.folder)
        for fault in faults:
            log.warning("trial %d: a checkpoint cannot be used: %s", self.trial.number, fault)
        if state.step:
            self.curve = curve
            log.info("trial %d: goes on after step %d", self.trial.number, state.step)
        elif self.trial.attempt > 1:
            log.info("trial %d: no checkpoint of its earlier attempt is here; it begins again at step 0", self.trial.number)
        resume = partial(self.study.resume, self.trial, state.step, self.curve)
        if not persistently(resume, self.worker.stop, log.warning):
            return None
        self._track()
        remove_drafts(self.folder)
        outcome = self._steps(state)
        if isinstance(outcome, Completed):
            precision = state.config.precision
            held_out = {name: evaluate(state.scored, data, precision)[0] for name, data in self.worker.held_out.items()}
            outcome = replace(outcome, held_out=held_out)
            self._keep(state, "last", outcome.score.per)
        if isinstance(outcome, (Completed, Interrupted)):
            self._checkpoint(state)  # of a complete one until the outcome is stored
        self.writer.wait()
        return outcome

    def _track(self) -> None:
        names, unique = persistently(partial(chosen, self.study), self.worker.stop, log.warning)
        trial, folder = self.trial, self.worker.folder / FOLDER
        subject = Subject(folder, self.study.name, trial.number, trial.attempt, f"{unique}-{trial.number}", trial.config.flat())
        self.trackers = Trackers([Tracker(name, subject, self.reporter.may_write, log.warning) for name in names], self.curve)

    def tidy(self) -> None:
        """After the outcome is stored: no checkpoint is needed any more, unless the weights could not be written."""
        if (self.folder / "last.safetensors").exists():
            for path in checkpoints(self.folder):
                path.unlink(missing_ok=True)

    def _steps(self, state: TrainState) -> Outcome | None:
        since: list[Progress] = []
        saved = time.monotonic()
        score = None
        for progress in train(state, self.data):
            if not progress.finite:
                self.reporter.at(progress.step)
                what = f"training loss {progress.loss:.3g}, gradient norm {progress.grad_norm:.3g}"
                return Stopped(non_finite(progress.step, what))
            since.append(progress)
            if progress.score is not None:
                score, since = progress.score, self._evaluated(since)
                stop = self.study.spec.stopping.judge(self._evaluations()) if self.study.spec.stopping else None
                if stop and not state.finished:
                    return Stopped(stop)
                due = time.monotonic() - saved >= self.study.spec.attempts.checkpoint_seconds and not self.writer.busy
                if score.per <= min(point["per"] for point in self.curve):
                    self._keep(state, "best", score.per)  # before the checkpoint: who goes on from that does not score this again
                if due and not state.finished:
                    self._checkpoint(state)
                    saved = time.monotonic()
            else:
                self.reporter.at(progress.step)
            if self.reporter.lost:
                return None
            if (why := "a signal" if self.worker.stop() else self.reporter.spent) and not state.finished:
                return Interrupted(why)
        if score is None:  # no steps at all, or resumed at the last one
            score, _ = evaluate(state.scored, self.data, state.config.precision)
        return Completed(score)

    def _evaluated(self, since: list[Progress]) -> list[Progress]:
        """A point of the curve. Returns the steps since it: none."""
        point = point_of(since)
        self.curve.append(point)
        self.reporter.at(since[-1].step, point)
        self.trackers.point(point)
        return []

    def _evaluations(self) -> list[Evaluation]:
        return [Evaluation(int(point["step"]), point["per"], point["validation_loss"]) for point in self.curve]

    def _checkpoint(self, state: TrainState) -> None:
        self.writer.submit(f"the checkpoint at step {state.step}", save_checkpoint, state.state_dict(), self.folder, self.curve,
                           self.reporter.may_write)  # fmt: skip

    def _keep(self, state: TrainState, which: str, per: float) -> None:
        """The weights that were scored, `best` along the curve or `last`."""
        facts = {"study": self.study.name, "trial": self.trial.number, "weights": which, "step": state.step, "per": per,
                 "partition": "validation", **self.worker.record}  # fmt: skip
        self.writer.submit(f"the {which} weights", self._write_weights, which, state.scored.state_dict(), state.config, facts)

    def _write_weights(self, which: str, weights: dict[str, torch.Tensor], config: DecoderConfig, facts: dict[str, Any]) -> None:
        """Other than a checkpoint, which any attempt can go on from, they take the place of those of a next holder: where it is not
        known whether there is one, they wait.
        """
        write = partial(save_decoder, self.folder / f"{which}.safetensors", weights, config, facts, self.reporter.holds)
        self._unkept.pop(which, None)
        if not write():
            self._unkept[which] = write

    def keep_late(self) -> None:
        """The database has answered: what waits is written, or forgotten with the trial."""
        for which, write in self._unkept.items():
            self.writer.now(f"the {which} weights", write)
        self._unkept.clear()

    def _write_fault(self, what: str, error: Exception) -> None:
        """A disk that is full costs the file, not the training."""
        log.warning("trial %d: %s could not be written: %s", self.trial.number, what, _first_line(error))


def is_memory_short(error: BaseException) -> bool:
    """Whether PyTorch, on a GPU or the CPU, or Python did not get the memory that they asked for."""
    said = isinstance(error, RuntimeError) and any(words in str(error) for words in MEMORY_SHORT)
    return said or isinstance(error, (torch.OutOfMemoryError, MemoryError))


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or "no message").splitlines()[0]


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
    data, fingerprint = load_study_data(study, data_path, device)
    child = study.spec.child
    held_out: dict[str, Data] = {
        partition: load_for_scoring(data_path or study.data_path, partition, study.spec.base.model, device)
        for partition in (child.score if child else ())
    }
    record = {"device": device_name(device), "code_version": code_version(), "data": fingerprint}
    return Worker(study, data, study_folder(study, artifacts), record, stop, held_out=held_out).run()


def load_study_data(study: Study, data_path: Path | None, device: torch.device) -> tuple[Data, str]:
    """The study's training and validation sentences, and their fingerprint. data_path: as for `run_worker`.

    Raises DataError if they are other sentences than the study's, MemoryShortError.
    """
    spec = study.spec
    path = data_path or study.data_path
    try:
        data, sentences = load_data(path, spec.base.model, spec.validation.fraction, spec.validation.seed, device)
    except (RuntimeError, MemoryError) as error:
        if is_memory_short(error):
            raise MemoryShortError(f"{path or 'the bundled recordings'}: no room on {device} for it. Take fewer workers there") from None
        raise
    fingerprint = sentences.fingerprint()
    if fingerprint != study.data["fingerprint"]:
        raise DataError(f"{path or 'the bundled recordings'}: fingerprint {fingerprint}, but study {study.name} was made on "
                        f"{study.data['fingerprint']}. Give --data with the study's data")  # fmt: skip
    return data, fingerprint
