"""A worker on another host whose link to Postgres goes down for a minute while it trains.

    python benchmarks/network_loss.py [--seconds 60]

The other host is a network namespace; this needs root and `ip`. Packets are lost and nothing is
refused: the hard case, in which a connection looks alive. The exit code is 1 if the worker ended,
lost its trial, stood still, or did not report the whole curve afterwards.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from chaos import make_study
from sqlalchemy import make_url

from hpo.store import curves
from hpo.store.database import Database
from hpo.store.embedded import EmbeddedServer
from hpo.study.paths import study_folder
from hpo.study.study import Study
from hpo.worker.checkpoint import checkpoints

NAME = "hpo-loss"
# Addresses of the server's host and of the worker's.
SERVER = "10.77.0.1"
WORKER = "10.77.0.2"


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def connect() -> None:
    """Make the worker's namespace, and a link to it."""
    ip("netns", "add", NAME)
    ip("link", "add", "hpo0", "type", "veth", "peer", "name", "hpo1", "netns", NAME)
    ip("addr", "add", f"{SERVER}/24", "dev", "hpo0")
    ip("link", "set", "hpo0", "up")
    ip("-n", NAME, "addr", "add", f"{WORKER}/24", "dev", "hpo1")
    ip("-n", NAME, "link", "set", "hpo1", "up")


def listen(server: EmbeddedServer) -> str:
    """Let the worker's host in. Returns the URL for it."""
    server.start()
    with (server.data / "postgresql.conf").open("a") as file:
        file.write(f"listen_addresses = '127.0.0.1,{SERVER}'\n")
    with (server.data / "pg_hba.conf").open("a") as file:
        file.write(f"host all all {SERVER}/24 scram-sha-256\n")
    server.stop()
    return make_url(server.start()).set(host=SERVER).render_as_string(hide_password=False)


def step_of(study: Study) -> int:
    return max((record.step for record in study.records()), default=0)


def start_worker(study: Study, log: Path) -> "subprocess.Popen[bytes]":
    """A worker in its namespace."""
    hpo = ["ip", "netns", "exec", NAME, sys.executable, "-m", "hpo.cli"]
    command = [*hpo, "worker", "--study", study.name, "--device", "cpu", "--threads", "1"]
    with log.open("w") as file:
        return subprocess.Popen(command, stdout=file, stderr=file)


def measure(study: Study, home: Path, seconds: float) -> None:
    """Take the link down for so long while a worker trains. Raises AssertionError."""
    log = home / "log"
    worker = start_worker(study, log)
    while step_of(study) < 200:
        time.sleep(0.1)
    ip("link", "set", "hpo0", "down")
    # This process is on the server's host, so it still reads the database.
    before = step_of(study)
    begin = time.monotonic()
    while time.monotonic() < begin + seconds:
        assert worker.poll() is None, log.read_text()
        time.sleep(0.1)
    during = step_of(study)
    newest = int(checkpoints(study_folder(study) / "trial-0")[0].name.split("-")[1])
    ip("link", "set", "hpo0", "up")
    up = time.monotonic()
    while step_of(study) <= newest:
        assert worker.poll() is None, log.read_text()
        time.sleep(0.1)
    back = time.monotonic() - up
    with study.engine.begin() as connection:
        record = study.records()[0]
        curve = curves.curves_of(connection, [record.id])[record.id]
    steps = [point.step for point in curve]
    worker.terminate()
    assert worker.wait(30) == 0
    print(
        f"{seconds:.0f} s without packets: the database saw step {before}, then {during}; "
        f"the worker was at {newest}; {back:.1f} s after the link was up all of it was reported"
    )
    assert steps == list(range(100, steps[-1] + 1, 100))
    assert record.attempts == 1
    assert newest > during


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hpo-loss-") as folder:
        home = Path(folder)
        home.chmod(0o711)
        server = EmbeddedServer(home)
        connect()
        try:
            url = listen(server)
            os.environ |= {"HPO_HOME": folder, "HPO_DATABASE_URL": url}
            sizes = {"steps": 200_000, "evaluate_every": 100, "lease": 600.0}
            study, _ = make_study(Database(url, None), home, 1, sizes)
            measure(study, home, arguments.seconds)
        finally:
            for words in (["link", "delete", "hpo0"], ["netns", "delete", NAME]):
                subprocess.run(["ip", *words], check=False)
            server.stop()


if __name__ == "__main__":
    main()
