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
from typing import Literal

import torch

from hpo.errors import (
    BadNodeError,
    CallerError,
    DatabaseError,
    MachineError,
    MemoryShortError,
    WorkerError,
)
from hpo.launch.sharing import Sharing
from hpo.process import this_host
from hpo.store.database import Database
from hpo.study.paths import study_folder
from hpo.study.study import Study
from hpo.study.trial import Record
from hpo.worker.device import check_gpus, choose_device, free_memory
from hpo.worker.signals import STOP_SIGNALS

POLL_SECONDS = 0.5
RESTARTS = 3  # of workers that ended with an error, or were killed before they began a trial
End = Literal["done", "interrupted"]


@dataclass(frozen=True)
class Plan:
    """Which workers run here: a device and a number of CPU threads each; with `grow`, more join while that pays."""

    devices: tuple[str, ...]
    threads: int
    grow: bool = False

    def __str__(self) -> str:
        kinds = sorted(set(self.devices))
        count = len(self.devices)
        return (f"{count} worker{'s' * (count != 1)} on {', '.join(kinds)}, {self.threads} CPU thread{'s' * (self.threads != 1)} each"
                f"{', more where that pays' * self.grow}")  # fmt: skip


def plan_workers(
    workers: int | None, device: str | None, per_gpu: str | None = None, gpus: int = 1
) -> Plan:
    """Default: one worker per GPU; without one, a worker per two CPU cores (two workers on two cores).

    per_gpu: a number of workers for each GPU (or for the CPU), or `auto`: begin with one each and add more while that pays.
    gpus: that a training takes: with several a worker holds as many. The CPU cores are divided between the workers.
    Raises CallerError, MachineError.
    """
    if workers is not None and workers < 1:
        raise CallerError(
            f"--workers {workers}: valid is 1 or more; without it, one per GPU, else one per two CPU cores"
        )
    if per_gpu is not None and workers is not None:
        raise CallerError(f"--workers {workers} with --per-gpu {per_gpu}: give one of them")
    check_per_gpu(per_gpu)
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    on_cpu = choose_device(device).type == "cpu"
    homes = ["cpu"] if on_cpu else gpu_groups(torch.cuda.device_count(), gpus)
    if device and ":" in device:
        check_gpus(device, choose_device(device), gpus)
        homes = [device]
    if per_gpu == "auto":
        return Plan(tuple(homes), 1 if on_cpu else max(1, cores // (4 * len(homes))), grow=True)
    default = min(cores, max(2, cores // 2)) if on_cpu else len(homes)
    count = len(homes) * int(per_gpu) if per_gpu else workers or default
    return Plan(tuple(homes[index % len(homes)] for index in range(count)), max(1, cores // count))


def gpu_groups(count: int, size: int) -> list[str]:
    """`count` GPUs in groups of `size`, as `--device` takes them: cuda:0,1. GPUs that make no whole group stay free.

    Raises MachineError if there is no whole group.
    """
    size = max(1, size)
    if count < size:
        raise MachineError(f"a training of this study takes {size} GPUs, and this machine shows {count} to PyTorch. Take --device cpu "
                           f"or another machine, or lower script.gpus")  # fmt: skip
    groups = [range(first, first + size) for first in range(0, count - size + 1, size)]
    return [f"cuda:{','.join(map(str, group))}" for group in groups]


def plan_node(device: str | None, per_gpu: str | None, gpus: int = 1) -> Plan:
    """A worker for every GPU of this machine, or `per_gpu`. A node whose GPUs are not there must not train on its CPU unasked.

    gpus: as for `plan_workers`. Raises CallerError, MachineError.
    """
    check_whole_node(device)
    if choose_device(device).type == "cpu" and device is None:
        raise MachineError(f"--all-gpus: this machine shows no CUDA device to PyTorch {torch.__version__}. See nvidia-smi, or take "
                           f"--device cpu")  # fmt: skip
    return plan_workers(None, device, per_gpu, gpus)


def check_whole_node(device: str | None) -> None:
    if device not in (None, "cpu", "cuda"):
        raise CallerError(f"--device {device}: every GPU of a node is used. Valid here: cpu, cuda")


def check_per_gpu(per_gpu: str | None) -> None:
    if per_gpu is not None and per_gpu != "auto" and not (per_gpu.isdecimal() and int(per_gpu) > 0):
        raise CallerError(f"--per-gpu {per_gpu}: valid is auto, or a number from 1")


@dataclass
class Launcher:
    study: Study
    database: Database
    plan: Plan
    data_path: Path | None
    label: str = field(
        default_factory=lambda: f"{this_host()}-{os.getpid()}"
    )  # in the logs' names, where hosts share the folder
    allow_different_code: bool = False
    _devices: list[str] = field(default_factory=list)  # of each worker that was ever started here
    _running: dict[int, "subprocess.Popen[bytes]"] = field(default_factory=dict)
    _sharing: dict[str, Sharing] = field(default_factory=dict)
    _restarts: int = 0
    _attempts: int = 0  # at trials, when a worker died last
    _asked_to_stop: int = 0

    def run(
        self,
        show: Callable[[], bool] | None = None,
        news: Callable[[list[Record]], None] | None = None,
    ) -> End:
        """Start the workers, return when all have left. Twice a second it calls `show`, which says whether the database
        answers, and `news` with the trials.

        Raises WorkerError if workers died and work is left that none of them does.
        """
        handled = {number: signal.signal(number, self._stop) for number in STOP_SIGNALS}
        if hasattr(signal, "SIGHUP"):
            handled[signal.SIGHUP] = signal.signal(
                signal.SIGHUP, signal.SIG_IGN
            )  # a closed terminal does not end a study
        try:
            if self.plan.grow:
                self._sharing = {
                    device: Sharing(free_memory(device)) for device in self.plan.devices
                }
            for device in self.plan.devices:
                self._start(self._new(device))
            while self._running:
                self._look_after()
                if not self._tell(
                    show, news
                ):  # the workers train on, and will tell if it is more than a moment
                    self.database.revive()
                time.sleep(POLL_SECONDS)
            return "interrupted" if self._asked_to_stop else "done"
        finally:
            for worker in self._running.values():
                worker.terminate()
            for number, handler in handled.items():
                signal.signal(number, handler)

    def _tell(
        self, show: Callable[[], bool] | None, news: Callable[[list[Record]], None] | None
    ) -> bool:
        """Returns whether the database answers, as far as it was asked."""
        if show and not show():
            return False
        if not (news or self._sharing):
            return True
        try:
            records = self.study.records()
            if news:
                news(records)
            self._share(records)
        except DatabaseError:
            return False
        return True

    def log_of(self, index: int) -> Path:
        return study_folder(self.study) / "logs" / f"worker-{self.label}-{index}.log"

    def _new(self, device: str) -> int:
        self._devices.append(device)
        return len(self._devices) - 1

    def _on(self, device: str) -> list[int]:
        return [index for index in self._running if self._devices[index] == device]

    def _share(self, records: list[Record]) -> None:
        """Start or end a worker of a device, as its measurements say; a pause says nothing."""
        halted = bool(self._sharing) and self.study.halt is not None
        for device, sharing in self._sharing.items():
            if halted:
                sharing.restart()
                continue
            here = [
                record
                for record in records
                if record.host == this_host() and record.device.split(" ")[0] == device
            ]
            training = sum(record.state == "running" and record.step > 0 for record in here)
            if len(self._on(device)) < sharing.count:
                sharing.restart()
            change = sharing.look(
                training, sum(record.step for record in here), free_memory(device)
            )
            if change > 0:
                self._start(self._new(device))
            elif change < 0 and len(ours := self._on(device)) > sharing.count:
                self._running[max(ours)].terminate()  # it hands its trial back

    def shared(self) -> list[str]:
        """A line for each device whose number of workers was measured."""
        return [f"{device}: {sharing}" for device, sharing in self._sharing.items()]

    def _start(self, index: int) -> None:
        if self._asked_to_stop:
            return
        command = [sys.executable, "-m", "hpo.cli", "worker", "--study", self.study.name]
        command += ["--device", self._devices[index], "--threads", str(self.plan.threads)]
        if self.allow_different_code:
            command += ["--allow-different-code"]
        if self.data_path:
            command += ["--data", str(self.data_path)]
        environment = os.environ | {
            "HPO_DATABASE_URL": self.database.url,
            "OMP_NUM_THREADS": str(self.plan.threads),
        }
        log = self.log_of(index)
        log.parent.mkdir(parents=True, exist_ok=True)
        with (
            log.open("ab") as output
        ):  # its own session: a Ctrl-C at the terminal reaches the launcher alone, which passes it on
            self._running[index] = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
                start_new_session=True,
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
            if code == MemoryShortError.exit_code and self._on(
                self._devices[index]
            ):  # the others go on
                if sharing := self._sharing.get(self._devices[index]):
                    sharing.out_of_memory()
                continue
            if code == BadNodeError.exit_code and self._running:
                continue
            if code in (CallerError.exit_code, BadNodeError.exit_code) or self._too_often(code):
                self._stop_workers()
                raise WorkerError(f"worker {index} ended with {_in_words(code)}: {self._last_line(index)} (log: {self.log_of(index)}). "
                                  f"Nothing finished is lost: the same line goes on")  # fmt: skip
            self._start(index)

    def _too_often(self, code: int) -> bool:
        """Note a death. How often a trial kills a worker is bounded by its attempts, and how many trials do by the budget."""
        with suppress(DatabaseError):
            attempts = sum(record.attempts for record in self.study.records())
            begun, self._attempts = attempts > self._attempts, attempts
            if code < 0 and begun:
                return False
        self._restarts += 1
        return self._restarts > RESTARTS

    def _last_line(self, index: int) -> str:
        lines = self.log_of(index).read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "no output"

    def _stop(self, number: int, frame: FrameType | None) -> None:
        at_once = (
            self._asked_to_stop and number == signal.SIGINT
        )  # a scheduler's second signal only repeats the first
        self._asked_to_stop += 1
        self._stop_workers(signal.SIGKILL if at_once else signal.SIGTERM)

    def _stop_workers(self, number: signal.Signals = signal.SIGTERM) -> None:
        for worker in self._running.values():
            worker.send_signal(number)


def _in_words(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"
