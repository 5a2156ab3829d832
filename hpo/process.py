"""A process among all hosts, and whether one has surely ended."""

import os
import socket
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Process:
    """A process among all hosts. `identity` holds its start time, so a pid that is used again is another process."""

    host: str
    identity: str

    @classmethod
    def this(cls) -> "Process":
        return cls(host_identity(), f"{os.getpid()}:{start_time(os.getpid())}")


def host_identity() -> str:
    """Host name, with what tells cloned machines of one name apart (the kernel's boot) and containers (the process-id
    namespace): a pid means something in one boot and one namespace only.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()} {boot} {Path('/proc/self/ns/pid').readlink().name}"
    except OSError:
        return socket.gethostname()


def this_host() -> str:
    """As trials record it."""
    return socket.gethostname()


def start_time(pid: int) -> str | None:
    """Clock ticks since boot when `pid` started; None if it is not there or a zombie; empty where there is no /proc."""
    if not Path("/proc/self/stat").exists():
        return ""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else fields[18]


def known_dead(host: str, identity: str) -> bool:
    """Whether a process has surely ended: it ran on this host and is not there any more."""
    pid, _, start = identity.partition(":")
    return host == host_identity() and start != "" and start_time(int(pid)) != start
