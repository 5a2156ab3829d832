"""Worker processes on this machine: one or more per GPU, restarted if they die, stopped together.

Workers are ordinary `hpo worker` processes, each with its own log file. They need nothing from the
launcher but the database's URL, so they outlive it.
"""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import torch

from hpo.errors import (
    BadNodeError,
    CallerError,
    DatabaseError,
    MachineError,
    MemoryShortError,
    WorkerError,
)
from hpo.launch.neighbours import Neighbour, mark, neighbours, still_to_start
from hpo.launch.program import worker_program
from hpo.launch.sharing import Sharing
from hpo.process import this_host
from hpo.store.database import Database
from hpo.study.paths import study_folder
from hpo.study.study import Study
from hpo.study.trial import Record
from hpo.text import plural
from hpo.worker.device import check_gpus, choose_device, free_memory
from hpo.worker.signals import STOP_SIGNALS

POLL_SECONDS = 0.5
# How many restarts are tried of workers that ended with an error, or were killed before they
# began a trial.
RESTARTS = 3
End = Literal["done", "interrupted"]


@dataclass(frozen=True)
class Plan:
    """Which workers run here: one for each entry of `devices`, with this many CPU threads each."""

    devices: tuple[str, ...]
    threads: int
    # Whether to add workers for as long as that pays off.
    grow: bool = False

    def __str__(self) -> str:
        workers = plural(len(self.devices), "worker")
        devices = ", ".join(sorted(set(self.devices)))
        text = f"{workers} on {devices}, {plural(self.threads, 'CPU thread')} each"
        if self.grow:
            text += ", more if that pays off"
        return text


def plan_workers(
    workers: int | None, device: str | None, per_gpu: str | None = None, gpus: int = 1
) -> Plan:
    """Plan the workers of this machine.

    The default is one worker per GPU; without a GPU, one per two CPU cores (two on two cores). The
    CPU cores are divided between the workers.

    per_gpu: how many workers share each GPU (or the CPU), or `auto`: start with one each and add
    more for as long as that pays off. gpus: how many GPUs one training takes, and so each worker.
    Raises CallerError, MachineError.
    """
    if workers is not None and workers < 1:
        raise CallerError(
            f"--workers {workers}: valid is 1 or more; without it, one per GPU, else one per two "
            f"CPU cores"
        )
    if per_gpu is not None and workers is not None:
        raise CallerError(f"--workers {workers} with --per-gpu {per_gpu}: give one of them")
    check_per_gpu(per_gpu)
    cores = _available_cores()
    on_cpu = choose_device(device).type == "cpu"
    slots = _slots(device, on_cpu, gpus)
    if per_gpu == "auto":
        threads = 1 if on_cpu else max(1, cores // (4 * len(slots)))
        return Plan(tuple(slots), threads, grow=True)
    if per_gpu:
        count = len(slots) * int(per_gpu)
    elif workers:
        count = workers
    elif on_cpu:
        count = min(cores, max(2, cores // 2))
    else:
        count = len(slots)
    devices = tuple(slots[index % len(slots)] for index in range(count))
    return Plan(devices, max(1, cores // count))


def _available_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _slots(device: str | None, on_cpu: bool, gpus: int) -> list[str]:
    """The devices that workers run on, each as `--device` takes it."""
    slots = ["cpu"] if on_cpu else gpu_groups(torch.cuda.device_count(), gpus)
    if device and ":" in device:
        check_gpus(device, choose_device(device), gpus)
        return [device]
    return slots


def gpu_groups(count: int, size: int) -> list[str]:
    """Divide `count` GPUs into groups of `size`, written as `--device` takes them: cuda:0,1.

    GPUs that do not fill a group stay free. Raises MachineError if there is no whole group.
    """
    size = max(1, size)
    if count < size:
        raise MachineError(
            f"a training of this study takes {size} GPUs, and PyTorch sees {count} on this "
            f"machine. Use --device cpu or another machine, or lower script.gpus"
        )
    groups = []
    for first in range(0, count - size + 1, size):
        indices = ",".join(str(index) for index in range(first, first + size))
        groups.append(f"cuda:{indices}")
    return groups


def plan_node(device: str | None, per_gpu: str | None, gpus: int = 1) -> Plan:
    """Plan one worker, or `per_gpu` workers, for every GPU of this machine.

    A node whose GPUs are missing must not train on its CPU unless the user asks for that. gpus: as
    for `plan_workers`. Raises CallerError, MachineError.
    """
    check_whole_node(device)
    if choose_device(device).type == "cpu" and device is None:
        raise MachineError(
            f"--all-gpus: PyTorch {torch.__version__} sees no CUDA device on this machine. Check "
            f"nvidia-smi, or use --device cpu"
        )
    return plan_workers(None, device, per_gpu, gpus)


def check_whole_node(device: str | None) -> None:
    """Raises CallerError for a device that does not stand for all GPUs of a node."""
    if device not in (None, "cpu", "cuda"):
        raise CallerError(f"--device {device}: every GPU of a node is used. Valid here: cpu, cuda")


def check_per_gpu(per_gpu: str | None) -> None:
    """Raises CallerError for an invalid `--per-gpu`."""
    if per_gpu is None or per_gpu == "auto":
        return
    if not (per_gpu.isdecimal() and int(per_gpu) > 0):
        raise CallerError(f"--per-gpu {per_gpu}: valid is auto, or a number from 1")


def _default_label() -> str:
    return f"{this_host()}-{os.getpid()}"


@dataclass
class Launcher:
    """Starts the workers of a plan, restarts those that die, and stops all of them together."""

    study: Study
    database: Database
    plan: Plan
    data_path: Path | None
    # Part of the logs' names, because hosts may share the folder.
    label: str = field(default_factory=_default_label)
    allow_different_code: bool = False
    # The device of every worker that was ever started here, by the worker's index.
    _devices: list[str] = field(default_factory=list)
    running: dict[int, "subprocess.Popen[bytes]"] = field(default_factory=dict)
    # Workers of the plan that other launches have started.
    _neighbours: list[Neighbour] = field(default_factory=list)
    sharing: dict[str, Sharing] = field(default_factory=dict)
    _restarts: int = 0
    # The attempts of all trials when a worker last died.
    _attempts: int = 0
    # How many signals have asked to stop.
    _asked_to_stop: int = 0

    def run(
        self,
        show: Callable[[], bool] | None = None,
        news: Callable[[list[Record]], None] | None = None,
    ) -> End:
        """Start the workers that do not run here yet, and return when all have left.

        Workers of a launch that has ended are looked after like its own. Twice a second this calls
        `show`, which returns whether the database answers, and `news` with the records of the
        trials. Raises WorkerError if workers died and the work that is left has no worker.
        """
        previous_handlers = self._handle_signals()
        try:
            self._neighbours = self.neighbours()
            missing = still_to_start(self.plan.devices, self._neighbours)
            if self.plan.grow:
                # Where others train, too, no measurement tells what one training takes.
                for device in missing:
                    free = free_memory(device)
                    # Without that number nobody knows whether another training fits.
                    if free is not None:
                        self.sharing[device] = Sharing(free)
            for device in missing:
                self._start(self._new(device))
            while self.running or self._neighbours:
                self._look_after()
                self._look_after_neighbours()
                # The workers train on without the database, and report a long outage themselves.
                if not self._update(show, news):
                    self.database.revive()
                time.sleep(POLL_SECONDS)
            return "interrupted" if self._asked_to_stop else "done"
        finally:
            for worker in self.running.values():
                worker.terminate()
            for number, handler in previous_handlers.items():
                signal.signal(number, handler)

    def neighbours(self) -> list[Neighbour]:
        """The workers of this study that run here already, on devices of the plan."""
        found = neighbours(self.study.unique)
        return [neighbour for neighbour in found if neighbour.device in self.plan.devices]

    def _handle_signals(self) -> dict[signal.Signals, Any]:
        """Install the handlers of the launcher and return the previous ones."""
        previous: dict[signal.Signals, Any] = {}
        for number in STOP_SIGNALS:
            previous[number] = signal.signal(number, self._stop)
        # A study continues when its terminal is closed.
        if hasattr(signal, "SIGHUP"):
            previous[signal.SIGHUP] = signal.signal(signal.SIGHUP, signal.SIG_IGN)
        return previous

    def _update(
        self, show: Callable[[], bool] | None, news: Callable[[list[Record]], None] | None
    ) -> bool:
        """Update the displays and the sharing of devices. Returns False if the database is away."""
        if show and not show():
            return False
        if not (news or self.sharing):
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
        """The log file of a worker."""
        return study_folder(self.study) / "logs" / f"worker-{self.label}-{index}.log"

    def _new(self, device: str) -> int:
        """Register a worker on this device and return its index."""
        self._devices.append(device)
        return len(self._devices) - 1

    def _running_on(self, device: str) -> list[int]:
        return [index for index in self.running if self._devices[index] == device]

    def _share(self, records: list[Record]) -> None:
        """Start or end workers as the measurements of their devices suggest."""
        if not self.sharing:
            return
        # Step rates during a pause say nothing about sharing.
        is_halted = self.study.halt is not None
        for device, sharing in self.sharing.items():
            if is_halted:
                sharing.restart()
            else:
                self._share_device(device, sharing, records)

    def _share_device(self, device: str, sharing: Sharing, records: list[Record]) -> None:
        host = this_host()
        training = 0
        steps = 0
        for record in records:
            if record.host != host or record.device.split(" ")[0] != device:
                continue
            steps += record.step
            if record.state == "running" and record.step > 0:
                training += 1
        if len(self._running_on(device)) < sharing.count:
            sharing.restart()
        free = free_memory(device)
        if free is None:
            return
        change = sharing.look(training, steps, free)
        if change > 0:
            self._start(self._new(device))
        elif change < 0:
            workers = self._running_on(device)
            if len(workers) > sharing.count:
                # A worker that is terminated hands its trial back.
                self.running[max(workers)].terminate()

    def shared(self) -> list[str]:
        """A line for each device whose number of workers was measured."""
        return [f"{device}: {sharing}" for device, sharing in self.sharing.items()]

    def _start(self, index: int) -> None:
        if self._asked_to_stop:
            return
        command = [*worker_program(), "--study", self.study.name]
        command += ["--device", self._devices[index], "--threads", str(self.plan.threads)]
        if self.allow_different_code:
            command += ["--allow-different-code"]
        if self.data_path:
            command += ["--data", str(self.data_path)]
        environment = os.environ | {
            "HPO_DATABASE_URL": self.database.url,
            "OMP_NUM_THREADS": str(self.plan.threads),
            **mark(self.study.unique, self._devices[index]),
        }
        log = self.log_of(index)
        log.parent.mkdir(parents=True, exist_ok=True)
        # In its own session, a worker does not receive the terminal's Ctrl-C: the launcher does,
        # and passes it on.
        with log.open("ab") as output:
            self.running[index] = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
                start_new_session=True,
            )
        # A signal may have come since the check above.
        if self._asked_to_stop:
            self.running[index].terminate()

    def _look_after(self) -> None:
        """Forget workers that left and restart those that died, which then resume their trials."""
        for index, worker in list(self.running.items()):
            code = worker.poll()
            if code is None:
                continue
            del self.running[index]
            if code == 0 or self._asked_to_stop:
                continue
            self._handle_death(index, code)

    def _look_after_neighbours(self) -> None:
        """Forget neighbours that left. Replace those that nobody else replaces, while work is left.

        How they ended is not known here. A replacement that finds nothing to do leaves again.
        """
        for neighbour in list(self._neighbours):
            if neighbour.is_alive():
                # A launch that runs stops its workers itself.
                if self._asked_to_stop and not neighbour.is_orphan():
                    self._neighbours.remove(neighbour)
                continue
            try:
                is_needed = neighbour.is_orphan() and self.study.why_over() is None
            except DatabaseError:
                # Ask again at the next look.
                continue
            self._neighbours.remove(neighbour)
            if is_needed:
                self._start(self._new(neighbour.device))

    def _handle_death(self, index: int, code: int) -> None:
        """Restart the worker, or do without it. Raises WorkerError if neither is possible."""
        device = self._devices[index]
        if code == MemoryShortError.exit_code and self._running_on(device):
            # The other workers of the device continue.
            sharing = self.sharing.get(device)
            if sharing is not None:
                sharing.out_of_memory()
            return
        if code == BadNodeError.exit_code and self.running:
            return
        is_hopeless = code in (CallerError.exit_code, BadNodeError.exit_code)
        if is_hopeless or self._died_too_often(code):
            self._stop_workers()
            raise WorkerError(
                f"worker {index} ended with {_in_words(code)}: {self._last_line(index)} "
                f"(log: {self.log_of(index)}). Finished trials are kept; the same command resumes "
                f"the study"
            )
        self._start(index)

    def _died_too_often(self, code: int) -> bool:
        """Count a death and return whether it was one too many.

        A worker that is killed after it began a trial does not count: a trial's attempts limit how
        often it kills workers, and the budget limits how many trials do.
        """
        with suppress(DatabaseError):
            attempts = sum(record.attempts for record in self.study.records())
            began_a_trial = attempts > self._attempts
            self._attempts = attempts
            was_killed = code < 0
            if was_killed and began_a_trial:
                return False
        self._restarts += 1
        return self._restarts > RESTARTS

    def _last_line(self, index: int) -> str:
        lines = self.log_of(index).read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "no output"

    def _stop(self, number: int, frame: FrameType | None) -> None:
        # Only a second Ctrl-C ends the workers at once: a scheduler merely repeats its signal.
        at_once = self._asked_to_stop > 0 and number == signal.SIGINT
        self._asked_to_stop += 1
        self._stop_workers(signal.SIGKILL if at_once else signal.SIGTERM)

    def _stop_workers(self, number: signal.Signals = signal.SIGTERM) -> None:
        for worker in self.running.values():
            worker.send_signal(number)
        for neighbour in self._neighbours:
            if neighbour.is_orphan():
                neighbour.signal(number)


def _in_words(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"
