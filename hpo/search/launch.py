"""Launcher: worker processes on this machine, one or more per GPU, restarted if they die, stopped together.

Workers are ordinary `hpo worker` processes with a log file each; they need nothing from the launcher but the database's
URL, so they outlive it.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import torch

from hpo.decoder.data import load_data, share_too_short
from hpo.errors import CallerError, DatabaseError, WorkerError
from hpo.search.database import Database
from hpo.search.spec import DEMO_PROFILE, StudySpec
from hpo.search.study import Record, Study
from hpo.search.worker import choose_device, study_folder

POLL_SECONDS = 0.5
RESTARTS = 3  # of each worker that died without being asked to
End = Literal["done", "interrupted"]


def look_at_data(path: Path | None, spec: StudySpec) -> tuple[dict[str, Any], list[str]]:
    """Check the data once before any worker does. Returns (what the study stores of them, lines for people).

    Raises DataError.
    """
    validation, model, base = spec.validation, spec.base.model, spec.base
    data, sentences = load_data(path, spec.strictest_model(), validation.fraction, validation.seed, torch.device("cpu"))
    facts = {
        "path": str(path.absolute()) if path else None,
        "fingerprint": sentences.fingerprint(),
        "n_features": data.n_features,
        "n_days": data.n_days,
    }
    source = str(path) if path else "no --data given: the bundled spoken-digit recordings (real speech, no neural data)"
    chosen = f"profile {spec.profile} of the space" if spec.profile else "the space's base"
    if spec.profile == DEMO_PROFILE and not path:
        chosen += ": a small decoder, because the data are the bundled ones"
    lines = [
        f"data       {source}",
        f"           {len(data.train)} sentences train, {len(data.validation)} validate; {data.n_days} days, {data.n_features} features",
        f"decoder    {chosen}",
        f"           {model.layers} x {model.units} units, kernel {model.kernel}, stride {model.stride}, "
        f"{base.steps} steps of {base.batch_size} sentences",
    ]
    if short := share_too_short(sentences, model):
        lines.append(f"           {100 * short:.1f} % of the sentences have more labels than output frames: CTC learns nothing there")
    return facts, lines


@dataclass(frozen=True)
class Plan:
    """Which workers run here: a device and a number of CPU threads each."""

    devices: tuple[str, ...]
    threads: int

    def __str__(self) -> str:
        kinds = sorted(set(self.devices))
        count = len(self.devices)
        return f"{count} worker{'s' * (count != 1)} on {', '.join(kinds)}, {self.threads} CPU thread{'s' * (self.threads != 1)} each"


def plan_workers(workers: int | None, device: str | None) -> Plan:
    """Default: one worker per GPU; without one, a worker per two CPU cores (two workers on two cores).

    The CPU cores are divided between the workers. Raises CallerError, MachineError.
    """
    if workers is not None and workers < 1:
        raise CallerError(f"--workers {workers}: valid is 1 or more; without it, one per GPU, else one per two CPU cores")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if choose_device(device).type == "cpu":
        count = workers or min(cores, max(2, cores // 2))
        return Plan(("cpu",) * count, max(1, cores // count))
    gpus = [device] if device and ":" in device else [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    count = workers or len(gpus)
    return Plan(tuple(gpus[index % len(gpus)] for index in range(count)), max(1, cores // count))


@dataclass
class Launcher:
    study: Study
    database: Database
    plan: Plan
    data_path: Path | None
    _running: dict[int, "subprocess.Popen[bytes]"] = field(default_factory=dict)
    _restarts: int = 0
    _asked_to_stop: int = 0

    def run(self, show: Callable[[list[Record]], None]) -> End:
        """Start the workers, `show` the trials twice a second, return when all have left.

        Raises WorkerError if workers died and work is left that none of them does.
        """
        handled = {number: signal.signal(number, self._stop) for number in (signal.SIGINT, signal.SIGTERM)}
        if hasattr(signal, "SIGHUP"):
            handled[signal.SIGHUP] = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a closed terminal does not end a study
        try:
            for index in range(len(self.plan.devices)):
                self._start(index)
            while self._running:
                self._look_after()
                with suppress(DatabaseError):  # the workers will tell whether it is more than a moment
                    show(self.study.records())
                time.sleep(POLL_SECONDS)
            return "interrupted" if self._asked_to_stop else "done"
        finally:
            for worker in self._running.values():
                worker.terminate()
            for number, handler in handled.items():
                signal.signal(number, handler)

    def log_of(self, index: int) -> Path:
        return study_folder(self.study) / "logs" / f"worker-{os.getpid()}-{index}.log"

    def _start(self, index: int) -> None:
        if self._asked_to_stop:
            return
        command = [sys.executable, "-m", "hpo.cli", "worker", "--study", self.study.name]
        command += ["--device", self.plan.devices[index], "--threads", str(self.plan.threads)]
        if self.data_path:
            command += ["--data", str(self.data_path)]
        environment = os.environ | {"HPO_DATABASE_URL": self.database.url, "OMP_NUM_THREADS": str(self.plan.threads)}
        log = self.log_of(index)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:  # its own session: a Ctrl-C at the terminal reaches the launcher alone, which passes it on
            self._running[index] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment, start_new_session=True
            )
        if self._asked_to_stop:  # between the look above and here
            self._running[index].terminate()

    def _look_after(self) -> None:
        """Take note of workers that left; start those again that died. A worker that died comes back to its own trial."""
        for index, worker in list(self._running.items()):
            code = worker.poll()
            if code is None:
                continue
            del self._running[index]
            if code == 0 or self._asked_to_stop:
                continue
            if code == CallerError.exit_code or self._restarts >= RESTARTS:
                self._stop_workers()
                raise WorkerError(f"worker {index} ended with {_in_words(code)}: {self._last_line(index)} (log: {self.log_of(index)}). "
                                  f"Nothing finished is lost: the same line goes on")  # fmt: skip
            self._restarts += 1
            self._start(index)

    def _last_line(self, index: int) -> str:
        lines = self.log_of(index).read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "no output"

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self._asked_to_stop += 1
        self._stop_workers(signal.SIGTERM if self._asked_to_stop == 1 else signal.SIGKILL)

    def _stop_workers(self, number: signal.Signals = signal.SIGTERM) -> None:
        for worker in self._running.values():
            worker.send_signal(number)


def _in_words(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"
