"""Which machine or container the embedded server of an HPO_HOME belongs to.

Machines often share a home folder. A server's process is visible only where it runs, so no other
machine can tell a stale postmaster.pid from that of a live server, and two servers on the same
files destroy them. So the first place that starts the server is recorded, and only that place
starts it again, until someone hands it over to another one.
"""

import json
import os
import socket
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from hpo.errors import DatabaseError

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
PID_NAMESPACE = Path("/proc/self/ns/pid")
MACHINE_IDS = (Path("/etc/machine-id"), Path("/var/lib/dbus/machine-id"))


@dataclass(frozen=True)
class Owner:
    """A place whose processes see each other: a machine, or a container on it."""

    host: str
    machine: str
    boot: str
    pid_namespace: str
    since: str

    def is_here(self) -> bool:
        """Whether this process runs there, or on the same machine after a reboot."""
        here = this_place()
        if not here.boot:
            # This system reports nothing but the name of the host.
            return self.host == here.host
        if self.boot == here.boot:
            return self.pid_namespace == here.pid_namespace
        return bool(self.machine) and (self.machine, self.host) == (here.machine, here.host)

    def __str__(self) -> str:
        container = ""
        if self.boot == this_place().boot:
            container = ", in another container or process namespace of this machine"
        return f"host {self.host}{container}, which started it {self.since}"


def this_place() -> Owner:
    """The place of this process, since now. Parts that the system does not report are empty."""
    try:
        namespace = str(PID_NAMESPACE.readlink())
    except OSError:
        namespace = ""
    since = time.strftime("%Y-%m-%d %H:%M %Z")
    return Owner(socket.gethostname(), _machine_id(), _text(BOOT_ID), namespace, since)


def _machine_id() -> str:
    for path in MACHINE_IDS:
        machine_id = _text(path)
        if machine_id:
            return machine_id
    return ""


def _text(path: Path) -> str:
    """The stripped text of a file; empty if it cannot be read."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def read_owner(path: Path) -> Owner | None:
    """The owner that the file names; None if there is no file.

    Raises DatabaseError for a file that cannot be read: another place may own the server.
    """
    try:
        return Owner(**json.loads(path.read_text()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise DatabaseError(
            f"{path}: does not say which machine runs the embedded Postgres ({error}). "
            f"If no other machine does: hpo database adopt"
        ) from None


def write_owner(path: Path, before: Owner | None) -> None:
    """Record this place as the owner.

    before: the owner that the file names now. Raises OSError, and DatabaseError if there was no
    owner and another place recorded itself first.
    """
    contents = json.dumps(asdict(this_place()), indent=2)
    if before is not None:
        draft = path.with_name(f"{path.name}.{os.getpid()}")
        draft.write_text(contents)
        draft.replace(path)
        return
    try:
        # Only one place can create a file, even on file systems without locks.
        with path.open("x") as file:
            file.write(contents)
    except FileExistsError:
        raise DatabaseError(
            f"{path}: another machine has just started here. Run the same command again"
        ) from None
    except OSError:
        path.unlink(missing_ok=True)
        raise
