"""Which machine or container the embedded server of an HPO_HOME belongs to.

A home folder is often shared between machines. A server's process is only seen where it runs, so
nobody else can tell a stale postmaster.pid from the one of a live server, and two servers on the same
files destroy them. So the first place that starts the server is written down, and only that place ever
starts it again, until a person gives it to another one.
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
    """A place where processes see each other. A container has a process namespace of its own."""

    host: str
    machine: str
    boot: str
    pid_namespace: str
    since: str

    def is_here(self) -> bool:
        """Whether this process runs where that one ran, or on the same machine after a reboot."""
        here = this_place()
        if not here.boot:
            # This system tells no more than the name of the host.
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
    """Here and now. Parts that the system does not tell are empty."""
    try:
        namespace = str(PID_NAMESPACE.readlink())
    except OSError:
        namespace = ""
    machine = next(filter(None, map(_text, MACHINE_IDS)), "")
    since = time.strftime("%Y-%m-%d %H:%M %Z")
    return Owner(socket.gethostname(), machine, _text(BOOT_ID), namespace, since)


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def read_owner(path: Path) -> Owner | None:
    """Raises DatabaseError for a file that cannot be understood: whoever wrote it may own the server."""
    try:
        return Owner(**json.loads(path.read_text()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise DatabaseError(
            f"{path}: does not say which machine runs the embedded Postgres ({error}). If no other machine does: hpo database adopt"
        ) from None


def write_owner(path: Path, before: Owner | None) -> None:
    """Write down that it is here.

    Raises OSError, and DatabaseError if there was no owner and another place was quicker.
    """
    contents = json.dumps(asdict(this_place()), indent=2)
    if before is not None:
        draft = path.with_name(f"{path.name}.{os.getpid()}")
        draft.write_text(contents)
        draft.replace(path)
        return
    try:
        # Only one place can make a file, also on file systems without locks.
        with path.open("x") as file:
            file.write(contents)
    except FileExistsError:
        raise DatabaseError(
            f"{path}: another machine has just begun here. Type the same line again"
        ) from None
    except OSError:
        path.unlink(missing_ok=True)
        raise
