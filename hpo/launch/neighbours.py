"""Workers of a study that run on this machine already, such as those of a launch that was killed.

A launcher marks its workers in their environment. /proc shows it, so nothing is left to clean up
and nothing can be out of date. Where there is no /proc, none is found.
"""

import os
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from hpo.process import Process, start_time
from hpo.text import plural

# UNIQUE DEVICE LAUNCHER: the study's unique id, the device, and the launcher's Process.identity.
MARK = "HPO_WORKER_OF"
# Workers with other values do not take the place of those to start: they have GPUs of their own.
SURROUNDINGS = ("SLURM_JOB_ID", "SLURM_ARRAY_TASK_ID")


@dataclass(frozen=True)
class Neighbour:
    """A worker that another launch has started on this machine."""

    pid: int
    start: str
    device: str
    # The identity of the launcher's process.
    launcher: str

    def is_alive(self) -> bool:
        return start_time(self.pid) == self.start

    def is_orphan(self) -> bool:
        """Whether its launcher has ended."""
        pid, _, start = self.launcher.partition(":")
        return start_time(int(pid)) != start

    def signal(self, number: signal.Signals) -> None:
        if self.is_alive():
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)


def mark(unique: str, device: str) -> dict[str, str]:
    """The variable that marks a worker which this process starts."""
    return {MARK: f"{unique} {device} {Process.this().identity}"}


def remove_mark() -> None:
    """Keep the mark of this worker from the processes that it starts."""
    os.environ.pop(MARK, None)


def neighbours(unique: str) -> list[Neighbour]:
    """The workers of the study that run on this machine with the GPUs that this process sees."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, ValueError):
            neighbour = _neighbour(int(entry.name), unique)
            if neighbour is not None:
                found.append(neighbour)
    return sorted(found, key=lambda neighbour: neighbour.pid)


def _neighbour(pid: int, unique: str) -> Neighbour | None:
    """Raises OSError if the process is of another user or has ended."""
    environment = _environment_of(pid)
    study, device, launcher = environment.get(MARK, "").split(" ")
    # What a worker forks has its environment, but is no leader of a session.
    if study != unique or os.getsid(pid) != pid or not _has_our_devices(device, environment):
        return None
    start = start_time(pid)
    return Neighbour(pid, start, device, launcher) if start else None


def _environment_of(pid: int) -> dict[str, str]:
    content = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
    return dict(line.split("=", 1) for line in content.split("\0") if "=" in line)


def _has_our_devices(device: str, environment: Mapping[str, str]) -> bool:
    names: tuple[str, ...] = SURROUNDINGS
    if device.startswith("cuda"):
        names = (*names, "CUDA_VISIBLE_DEVICES")
    return all(environment.get(name) == os.environ.get(name) for name in names)


def still_to_start(devices: Sequence[str], found: Sequence[Neighbour]) -> list[str]:
    """The devices of a plan's workers that do not run yet."""
    missing = list(devices)
    for neighbour in found:
        if neighbour.device in missing:
            missing.remove(neighbour.device)
    return missing


def announcement(found: Sequence[Neighbour], missing: Sequence[str]) -> str:
    """A line about the workers that run already and those that are started beside them."""
    processes = ", ".join(str(neighbour.pid) for neighbour in found)
    verb = "runs" if len(found) == 1 else "run"
    text = f"{plural(len(found), 'worker')} of this study {verb} here already ({processes}); "
    text += f"{len(missing)} more to start" if missing else "no other is started"
    if any(neighbour.is_orphan() for neighbour in found):
        text += ". Their launch has ended: Ctrl-C here stops them"
    return text
