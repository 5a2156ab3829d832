"""A throw-away SLURM on this machine: munged, slurmctld and two slurmd, each a node with two GPUs.

The GPUs are pretended. The daemons stay in the foreground, as children of the tests. All that they
start inherits SLURM_CONF, by which `stop` finds and ends it. `cred_expire` is the time that a
requeued job waits: 120 s by default, 5 at least.
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
# slurmd only checks that the device files exist.
GPUS = "Name=gpu File=/dev/null\nName=gpu File=/dev/zero\n"
CONFIGURATION = r"""
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
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=8 \
    MaxTime=INFINITE State=UP
PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF MaxTime=INFINITE State=UP
"""


def missing() -> str | None:
    """Why no cluster can run on this machine, if none can."""
    absent = [name for name in PROGRAMS if not shutil.which(name)]
    if absent:
        install = "apt-get install --no-install-recommends slurm-wlm munge"
        return f"SLURM is not installed ({', '.join(absent)}): {install}"
    return "a SLURM of its own needs root" if os.geteuid() else None


class Cluster:
    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="hpo-slurm-"))
        # munged refuses a folder that others cannot read.
        self.folder.chmod(0o755)
        self.configuration = self.folder / "slurm.conf"
        self._daemons: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """Raises AssertionError with the daemons' last output if it is not up within 30 s."""
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
        options = [f"--{name}={self.folder / file}" for name, file in files.items()]
        self._run("munged", "--foreground", "--force", *options)
        self._until((self.folder / "munge.sock").exists)
        self._run("slurmctld", "-D", "-c")
        for node in range(1, NODES + 1):
            self._run("slurmd", "-D", "-N", f"n{node}")
        self._until(lambda: self.ask("sinfo", "-h", "-t", "idle", "-o", "%D").strip() == str(NODES))

    def _run(self, *command: str) -> None:
        with (self.folder / "output").open("ab") as output:
            daemon = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=self._environment,
            )
        self._daemons.append(daemon)

    def _until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 30
        while not condition():
            last_output = (self.folder / "output").read_text()[-2000:]
            assert all(daemon.poll() is None for daemon in self._daemons), last_output
            assert time.monotonic() < deadline, last_output
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
        while processes := self.processes():
            assert time.monotonic() < deadline, f"processes {processes} do not end"
            for pid in processes:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            for daemon in self._daemons:
                daemon.wait()
        shutil.rmtree(self.folder)

    def processes(self) -> list[int]:
        """The ids of all other processes that have our SLURM_CONF in their environment."""
        setting = f"SLURM_CONF={self.configuration}".encode()
        pids = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                environment = path.read_bytes().split(b"\0")
            except OSError:
                # The process has ended.
                continue
            pid = int(path.parent.name)
            if setting in environment and pid != os.getpid():
                pids.append(pid)
        return pids


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [int(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports
