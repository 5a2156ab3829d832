"""A process on any of the hosts, and whether it has certainly ended."""

import os
import socket
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Process:
    """A process on any of the hosts.

    `identity` is its pid and its start time, which tells it from a later process with that pid.
    """

    host: str
    identity: str

    @classmethod
    def this(cls) -> "Process":
        """The process that calls this."""
        return cls(host_identity(), f"{os.getpid()}:{start_time(os.getpid())}")


def host_identity() -> str:
    """The host name, the kernel's boot and the process-id namespace.

    A pid means something within one boot and one namespace only. They also tell cloned machines
    with the same name apart, and containers.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = Path("/proc/self/ns/pid").readlink().name
    except OSError:
        return socket.gethostname()
    return f"{socket.gethostname()} {boot} {namespace}"


def this_host() -> str:
    """The host name that trials record."""
    return socket.gethostname()


def start_time(pid: int) -> str | None:
    """When a process started, in clock ticks since boot.

    None if it does not exist or is a zombie; an empty text on systems without /proc.
    """
    if not Path("/proc/self/stat").exists():
        return ""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # pid (name) state ...: the name may hold anything, the last bracket ends it; see proc(5).
    _, _, after_name = stat.rpartition(") ")
    state, *fields = after_name.split()
    return None if state in "ZX" else fields[18]


def known_dead(host: str, identity: str) -> bool:
    """Whether a process has certainly ended: it ran on this host and no longer exists."""
    pid, _, start = identity.partition(":")
    return host == host_identity() and start != "" and start_time(int(pid)) != start
