"""A throw-away SLURM on this machine: munged, slurmctld and two slurmd, each a node with two pretend GPUs.

The daemons stay in the foreground, as children of the tests. Whatever they start inherits SLURM_CONF, by which `stop` finds
and ends it. `cred_expire` is the time that a requeued job waits: 120 s by default, 5 at least.
"""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

NODES = 2
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "scontrol", "sinfo")
GPUS = "Name=gpu File=/dev/null\nName=gpu File=/dev/zero\n"  # slurmd only looks whether the devices are there
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.sock,cred_expire=5
SlurmctldPidFile={folder}/slurmctld.pid
StateSaveLocation={folder}/state
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmdSpoolDir={folder}/spool/%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
GresTypes=gpu
ReturnToService=2
KillWait=5
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1,sched_min_interval=0,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 Gres=gpu:2 State=UNKNOWN
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2 Gres=gpu:2 State=UNKNOWN
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=8 MaxTime=INFINITE State=UP
PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF MaxTime=INFINITE State=UP
"""


def missing() -> str | None:
    """Why there can be no cluster here."""
    absent = [name for name in PROGRAMS if not shutil.which(name)]
    if absent:
        return f"SLURM is not installed ({', '.join(absent)}): apt-get install --no-install-recommends slurm-wlm munge"
    return "a SLURM of its own needs root" if os.geteuid() else None


class Cluster:
    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="hpo-slurm-"))
        self.folder.chmod(0o755)  # munged insists
        self.configuration = self.folder / "slurm.conf"
        self._daemons: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """Raises AssertionError, with the daemons' last words, if it is not up within 30 s."""
        for name in ("state", "spool/n1", "spool/n2"):
            (self.folder / name).mkdir(parents=True)
        key = self.folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(128))
        host = socket.gethostname().split(".")[0]
        self.configuration.write_text(
            CONFIGURATION.format(host=host, folder=self.folder, ports=_free_ports(1 + NODES))
        )
        (self.folder / "gres.conf").write_text(GPUS)
        files = {
            "key-file": "munge.key",
            "socket": "munge.sock",
            "pid-file": "munge.pid",
            "log-file": "munge.log",
            "seed-file": "munge.seed",
        }
        self._run(
            "munged",
            "--foreground",
            "--force",
            *(f"--{name}={self.folder / file}" for name, file in files.items()),
        )
        self._until((self.folder / "munge.sock").exists)
        self._run("slurmctld", "-D", "-c")
        for node in range(1, NODES + 1):
            self._run("slurmd", "-D", "-N", f"n{node}")
        self._until(lambda: self.ask("sinfo", "-h", "-t", "idle", "-o", "%D").strip() == str(NODES))

    def _run(self, *command: str) -> None:
        with (self.folder / "output").open("ab") as output:
            self._daemons.append(
                subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env=self._environment,
                )
            )

    def _until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 30
        while not condition():
            alive = all(daemon.poll() is None for daemon in self._daemons)
            assert alive and time.monotonic() < deadline, (self.folder / "output").read_text()[
                -2000:
            ]
            time.sleep(0.05)

    @property
    def _environment(self) -> dict[str, str]:
        return os.environ | {"SLURM_CONF": str(self.configuration)}

    def ask(self, *command: str) -> str:
        return subprocess.run(
            command, capture_output=True, text=True, env=self._environment, timeout=30
        ).stdout

    def queue(self) -> str:
        return self.ask("squeue", "--noheader", "--array", "--format=%i %T")

    def stop(self) -> None:
        """End the daemons and all that they started, whatever state they are in."""
        deadline = time.monotonic() + 20
        while ours := self._processes():
            assert time.monotonic() < deadline, f"processes {ours} do not end"
            for pid in ours:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            for daemon in self._daemons:
                daemon.wait()
        shutil.rmtree(self.folder)

    def _processes(self) -> list[int]:
        """All with our SLURM_CONF in their environment, this one not."""
        mark, found = f"SLURM_CONF={self.configuration}".encode(), []
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                if mark in path.read_bytes().split(b"\0") and int(path.parent.name) != os.getpid():
                    found.append(int(path.parent.name))
            except OSError:
                continue  # it ended
        return found


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [int(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports
