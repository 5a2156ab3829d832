"""run_worker: claim a trial, train it, report, ask the stopping rule, checkpoint, hand over; until nothing is left.

Everything that a signal does is set a flag, which is read between steps.
"""

import logging
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import torch

from hpo import __version__
from hpo.decoder.artifact import save_decoder
from hpo.decoder.checkpoint import Writer, checkpoints, load_checkpoint, save_checkpoint
from hpo.decoder.data import Data, load_data
from hpo.decoder.train import Progress, TrainState, evaluate, train
from hpo.errors import CallerError, DatabaseError, DataError, MachineError, MemoryShortError, WorkerError
from hpo.search.database import home
from hpo.search.ledger import Process
from hpo.search.stopping import Evaluation, non_finite
from hpo.search.study import Completed, Failed, Interrupted, Outcome, Stopped, Study, Trial

RENEW_SECONDS = 2.0  # the lease is renewed and the displayed step is fresh this often, while steps advance
CHECKPOINT_SECONDS = 30.0  # at most this much work is lost with a killed worker, rounded up to an evaluation
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)  # the last two: schedulers before they end a job
log = logging.getLogger(__name__)


@dataclass
class StopFlag:
    """Set by a signal or by the clock, read between steps."""

    leave_at: float | None = None  # seconds since the epoch
    raised: bool = False

    def catch_signals(self) -> None:
        for number in STOP_SIGNALS:
            signal.signal(number, self._raise)

    def _raise(self, number: int, frame: FrameType | None) -> None:
        if self.raised and number == signal.SIGINT:
            raise KeyboardInterrupt  # the second Ctrl-C ends at once
        self.raised = True

    def __call__(self) -> bool:
        return self.raised or (self.leave_at is not None and time.time() >= self.leave_at)


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

    def run(self) -> int:
        """Run trials until the budget is spent or the flag is raised. Returns how many came to an end here."""
        done = 0
        while not self.stop() and (trial := self.study.claim(self.process, self.record)):
            log.info("trial %d: begins%s", trial.number, f" (start {trial.start})" if trial.start else "")
            outcome = self.run_trial(trial)
            log.info("trial %d: %s", trial.number, outcome if outcome is None else type(outcome).__name__.lower())
            done += isinstance(outcome, (Completed, Stopped, Failed))
        return done

    def run_trial(self, trial: Trial) -> Outcome | None:
        """Train one trial to its outcome and store it. None: the trial was taken from us.

        Raises MemoryShortError, with the trial handed back, if the device's memory was not enough.
        """
        run = _Run(self, trial, trial_folder(self.folder, trial.number))
        outcome: Outcome | None
        try:
            outcome = run.to_its_end()
        except DatabaseError:
            raise  # no outcome can be written; the lease runs out and the trial goes on elsewhere
        except Exception as error:
            if is_memory_short(error):
                outcome = Interrupted(f"{self.data.device} ran out of memory")
            else:
                log.exception("trial %d", trial.number)
                self._check_device()
                outcome = Failed(f"{type(error).__name__}: {_first_line(error)}")
        finally:
            run.writer.close()
        if outcome is None or not self.study.finish(trial, outcome, run.clock.lap()):
            log.warning("trial %d: its lease was lost; another worker has it", trial.number)
            return None
        if isinstance(outcome, Interrupted) and outcome.trouble:
            raise MemoryShortError(f"trial {trial.number}: {outcome.trouble}; it waits to go on. Take fewer workers on this device, a "
                                   f"smaller batch_size with more accumulation, or another device")  # fmt: skip
        if isinstance(outcome, (Stopped, Failed)):
            shutil.rmtree(run.folder, ignore_errors=True)
        return outcome

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
        self.clock, self.writer = _Clock(), Writer(self._write_fault)

    def to_its_end(self) -> Outcome | None:
        state = TrainState(self.trial.config, self.data)
        for fault in load_checkpoint(state, self.folder):
            log.warning("trial %d: a checkpoint cannot be used: %s", self.trial.number, fault)
        if state.step:
            log.info("trial %d: goes on after step %d", self.trial.number, state.step)
        elif self.trial.attempt > 1:
            log.info("trial %d: no checkpoint of its earlier attempt is here; it begins again at step 0", self.trial.number)
        curve = self.study.resume(self.trial, state.step)
        if curve is None:
            return None
        try:
            outcome = self._steps(state, curve)
        except DatabaseError:
            self._checkpoint(state, wait=True)  # what was computed is not lost with the database
            raise
        if isinstance(outcome, Completed):
            self._keep(state, "last", outcome.score.per)
            self.writer.wait()
            for path in checkpoints(self.folder):
                path.unlink(missing_ok=True)
        return outcome

    def _steps(self, state: TrainState, curve: list[Evaluation]) -> Outcome | None:
        since: list[Progress] = []
        saved = renewed = time.monotonic()
        score = None
        for progress in train(state, self.data):
            if not progress.finite:
                self.study.renew(self.trial, progress.step, self.clock.lap())
                what = f"training loss {progress.loss:.3g}, gradient norm {progress.grad_norm:.3g}"
                return Stopped(non_finite(progress.step, what))
            since.append(progress)
            now = time.monotonic()
            if progress.score is not None and progress.validation_loss is not None:
                score = progress.score
                curve.append(Evaluation(progress.step, score.per, progress.validation_loss))
                if not self.study.report(self.trial, since, self.clock.lap()):
                    return None
                since, renewed = [], now
                stop = self.study.spec.stopping.judge(curve) if self.study.spec.stopping else None
                if stop and not state.finished:
                    return Stopped(stop)
                if score.per <= min(point.per for point in curve):
                    self._keep(state, "best", score.per)
                if now - saved > CHECKPOINT_SECONDS and not state.finished and not self.writer.busy:
                    self._checkpoint(state)
                    saved = now
            elif now - renewed > RENEW_SECONDS:
                if not self.study.renew(self.trial, progress.step, self.clock.lap()):
                    return None
                renewed = now
            if self.worker.stop() and not state.finished:
                self._checkpoint(state, wait=True)
                self.study.renew(self.trial, progress.step, self.clock.lap())
                return Interrupted()
        if score is None:  # no steps at all, or resumed at the last one
            score, _ = evaluate(state.scored, self.data, state.config.precision)
        return Completed(score)

    def _checkpoint(self, state: TrainState, wait: bool = False) -> None:
        self.writer.submit(f"the checkpoint at step {state.step}", save_checkpoint, state.state_dict(), self.folder)
        if wait:
            self.writer.wait()

    def _keep(self, state: TrainState, which: str, per: float) -> None:
        """The weights that were scored, `best` along the curve or `last`."""
        facts = {"study": self.study.name, "trial": self.trial.number, "weights": which, "step": state.step, "per": per,
                 "partition": "validation", **self.worker.record}  # fmt: skip
        path = self.folder / f"{which}.safetensors"
        self.writer.submit(f"the {which} weights", save_decoder, path, state.scored.state_dict(), state.config, facts)

    def _write_fault(self, what: str, error: Exception) -> None:
        """A disk that is full costs the file, not the training."""
        log.warning("trial %d: %s could not be written: %s", self.trial.number, what, _first_line(error))


def is_memory_short(error: BaseException) -> bool:
    """Whether PyTorch, on a GPU or the CPU, or Python did not get the memory that they asked for."""
    cpu = isinstance(error, RuntimeError) and "DefaultCPUAllocator: can't allocate memory" in str(error)
    return cpu or isinstance(error, (torch.OutOfMemoryError, MemoryError))


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or "no message").splitlines()[0]


class _Clock:
    """Seconds since the last look."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def lap(self) -> float:
        last, self._last = self._last, time.monotonic()
        return self._last - last


def run_worker(study: Study, data_path: Path | None, device: torch.device, threads: int | None, stop: Callable[[], bool]) -> int:
    """Join a study: load its data, check that they are the study's, run trials. Returns how many ended here.

    data_path: where the data are on this machine; None takes the path that the study was made with.
    Raises DataError if the data differ from the study's.
    """
    if threads:
        torch.set_num_threads(threads)
    spec = study.spec
    path = data_path or study.data_path
    data, sentences = load_data(path, spec.base.model, spec.validation.fraction, spec.validation.seed, device)
    fingerprint = sentences.fingerprint()
    if fingerprint != study.data["fingerprint"]:
        raise DataError(f"{path or 'the bundled recordings'}: fingerprint {fingerprint}, but study {study.name} was made on "
                        f"{study.data['fingerprint']}. Give --data with the study's data")  # fmt: skip
    record = {"device": device_name(device), "code_version": code_version(), "data": fingerprint}
    return Worker(study, data, study_folder(study), record, stop).run()


def study_folder(study: Study) -> Path:
    """Checkpoints, weights and logs on this machine. The unique part keeps studies of one name in two databases apart."""
    return home() / "studies" / f"{study.name}-{study.unique}"


def trial_folder(folder: Path, number: int) -> Path:
    return folder / f"trial-{number}"


def code_version() -> str:
    """The package's version, and the commit if it runs from a git checkout."""
    checkout = Path(__file__).parents[2]
    if not (checkout / ".git").exists():
        return __version__
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty"]
    try:
        described = subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        described = ""
    return f"{__version__} {described}".strip()
