"""One HPO_HOME, several machines: only the owner of the embedded server touches its files."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers.servers import answers, postmaster

from hpo.errors import DatabaseError
from hpo.store.embedded import EmbeddedServer
from hpo.store.filesystem import NETWORK, is_lasting, network_filesystem
from hpo.store.owner import this_place

NAMESPACES = ["--mount", "--mount-proc", "--pid", "--net", "--uts"]
ELSEWHERE = ["unshare", *NAMESPACES, "--fork", "--kill-child"]
# What a command does there: another host name and a loopback of its own.
ON_HOST_B = "hostname host-b; ip link set lo up; exec "


@pytest.fixture
def owned(fresh: EmbeddedServer) -> EmbeddedServer:
    fresh.start()
    return fresh


def rewrite(embedded: EmbeddedServer, **changes: str) -> None:
    path = embedded.home / "postgres.owner"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def crash(embedded: EmbeddedServer) -> None:
    os.kill(postmaster(embedded), signal.SIGKILL)


def environment_of(embedded: EmbeddedServer) -> dict[str, str]:
    """With the embedded server's home and no other database."""
    environment = {name: value for name, value in os.environ.items() if name != "HPO_DATABASE_URL"}
    return environment | {"HPO_HOME": str(embedded.home)}


def run(embedded: EmbeddedServer, command: list[str]) -> "subprocess.CompletedProcess[str]":
    environment = environment_of(embedded)
    return subprocess.run(
        command, capture_output=True, text=True, stdin=subprocess.DEVNULL, env=environment
    )


def here(embedded: EmbeddedServer, *command: str) -> "subprocess.CompletedProcess[str]":
    """A command of hpo on this machine."""
    return run(embedded, [sys.executable, "-m", "hpo.cli", *command])


def on_host_b(embedded: EmbeddedServer, *command: str) -> "subprocess.CompletedProcess[str]":
    """A command of hpo in mount, pid, net and uts namespaces of its own, with the same HPO_HOME."""
    line = ON_HOST_B + f"{sys.executable} -m hpo.cli {' '.join(command)}"
    return run(embedded, [*ELSEWHERE, "bash", "-c", line])


needs_namespaces = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("unshare") or not shutil.which("ip"),
    reason="namespaces need root, unshare and ip",
)


@pytest.mark.slow
@needs_namespaces
def test_a_second_machine_never_touches_a_live_server(owned: EmbeddedServer) -> None:
    before = (owned.data / "postmaster.pid").read_text()
    for command in (["studies"], ["database", "stop"]):
        done = on_host_b(owned, *command)
        assert done.returncode == 1, done.stderr
        (line,) = done.stderr.splitlines()
        assert f"belongs to host {this_place().host}" in line
        assert "HPO_DATABASE_URL" in line
    assert "not running here: it belongs to host" in on_host_b(owned, "database", "status").stdout
    assert (owned.data / "postmaster.pid").read_text() == before
    assert answers(owned.url())


@pytest.mark.slow
@needs_namespaces
def test_a_second_machine_starts_the_server_only_after_adopting_it(owned: EmbeddedServer) -> None:
    crash(owned)
    stale = (owned.data / "postmaster.pid").read_text()
    assert on_host_b(owned, "studies").returncode == 1
    assert (owned.data / "postmaster.pid").read_text() == stale
    refused = on_host_b(owned, "database", "adopt")
    assert refused.returncode == 1
    assert on_host_b(owned, "studies").returncode == 1
    assert on_host_b(owned, "database", "adopt", "--yes").returncode == 0
    with pytest.raises(DatabaseError, match="belongs to host host-b"):
        owned.start()
    owned.adopt()
    assert answers(owned.start())


@pytest.mark.slow
def test_there_is_nothing_to_adopt_at_home(owned: EmbeddedServer) -> None:
    for expected in ("it runs here", "it belongs to this machine"):
        done = here(owned, "database", "adopt")
        assert done.returncode == 0, done
        assert done.stdout.startswith(f"nothing to adopt: {expected}"), done
        owned.stop()


@pytest.mark.slow
def test_the_same_machine_goes_on_after_a_crash_and_after_a_reboot(owned: EmbeddedServer) -> None:
    crash(owned)
    assert answers(owned.start())
    crash(owned)
    rewrite(owned, boot="another", pid_namespace="pid:[1]")
    assert answers(owned.start())


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"boot": "another", "host": "another"},
        {"boot": "another", "machine": "another"},
        {"boot": "another", "machine": ""},
        {"pid_namespace": "pid:[1]"},
    ],
    ids=["another host", "another machine", "a machine without an id", "a container of this host"],
)
def test_another_place_is_refused(owned: EmbeddedServer, changes: dict[str, str]) -> None:
    crash(owned)
    rewrite(owned, **changes)
    before = (owned.data / "postmaster.pid").read_text()
    with pytest.raises(DatabaseError, match=r"belongs to host .* hpo database adopt"):
        owned.start()
    assert (owned.data / "postmaster.pid").read_text() == before
    owned.adopt()
    assert answers(owned.start())


WRITES = """
import sys, time
import psycopg2
from hpo.store.database import open_database
connection = psycopg2.connect(open_database().url.replace("+psycopg2", ""))
connection.autocommit = True
with connection.cursor() as cursor:
    cursor.execute("CREATE TABLE IF NOT EXISTS written (id int PRIMARY KEY)")
    print("writes", flush=True)
    deadline, row = time.monotonic() + float(sys.argv[1]), 0
    while time.monotonic() < deadline or row < 200:
        cursor.execute("INSERT INTO written VALUES (%s)", (row,))
        row += 1
    print(row, flush=True)
"""

# HPO_TEST_SECONDS=90 tries for longer.
SECONDS_OF_WRITES = float(os.environ.get("HPO_TEST_SECONDS", "3"))
COUNT = """
import psycopg2
from hpo.store.database import open_database
with psycopg2.connect(open_database().url.replace("+psycopg2", "")).cursor() as cursor:
    cursor.execute("SELECT count(*) FROM written")
    print(cursor.fetchone()[0])
"""


@pytest.mark.slow
@needs_namespaces
def test_no_row_is_lost_while_another_machine_tries(owned: EmbeddedServer) -> None:
    """The other machine is the one that comes later, or the one that began."""
    command = [sys.executable, "-c", WRITES, str(SECONDS_OF_WRITES)]

    def written_while_others_try(command: list[str], other: Callable[[], int]) -> None:
        writer = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env=environment_of(owned)
        )
        assert writer.stdout
        assert writer.stdout.readline() == "writes\n"
        tries = 0
        while writer.poll() is None:
            assert other() == 1
            tries += 1
        rows = int(writer.stdout.read())
        assert tries
        assert rows >= 200
        assert writer.returncode == 0

    def count_rows() -> int:
        done = run(owned, [sys.executable, "-c", COUNT])
        assert done.returncode == 0, done.stderr
        return int(done.stdout)

    written_while_others_try(command, lambda: on_host_b(owned, "studies").returncode)
    assert count_rows() >= 200

    owned.stop()
    shutil.rmtree(owned.root)
    (owned.home / "postgres.owner").unlink()
    on_b = [*ELSEWHERE, "bash", "-c", ON_HOST_B + shlex.join(command)]
    written_while_others_try(on_b, lambda: here(owned, "studies").returncode)
    # Its process namespace is gone, and the server with it.
    owned.adopt()
    assert count_rows() >= 200


@pytest.mark.slow
@needs_namespaces
def test_a_live_server_in_another_container_is_not_adopted(fresh: EmbeddedServer) -> None:
    studies_and_wait = f"{sys.executable} -m hpo.cli studies && read wait"
    line = f"hostname container; ip link set lo up; {studies_and_wait}"
    container = subprocess.Popen(
        [*ELSEWHERE, "bash", "-c", line],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment_of(fresh),
    )
    assert container.stdout
    assert "There is no study" in container.stdout.readline()
    refused = "belongs to host container, in another container or process namespace"
    with pytest.raises(DatabaseError, match=refused):
        fresh.start()
    with pytest.raises(DatabaseError, match="a server runs on"):
        fresh.adopt()
    container.communicate("\n", timeout=60)
    fresh.adopt()
    assert answers(fresh.start())


# ---- a home on a network file system


def test_file_systems_are_recognised() -> None:
    assert network_filesystem(Path("/proc")) is None
    assert network_filesystem(Path("/no/such/folder")) is None
    assert not is_lasting(Path("/no/such/folder"))
    assert not is_lasting(Path("/dev/shm"))
    assert {"NFS", "Lustre", "GPFS", "BeeGFS", "CIFS", "FUSE"} <= set(NETWORK.values())


@pytest.fixture
def shared_home(private_folder: Path) -> Iterator[Path]:
    """A home on a file system that other machines may share: a FUSE mount."""
    if os.geteuid() != 0 or not shutil.which("bindfs"):
        pytest.skip("a FUSE mount needs root and bindfs")
    behind = private_folder / f"behind-{os.urandom(4).hex()}"
    mounted = private_folder / f"mounted-{os.urandom(4).hex()}"
    for folder in (behind, mounted):
        folder.mkdir(mode=0o711)
    subprocess.run(["bindfs", behind, mounted], check=True)
    yield mounted
    subprocess.run(["umount", "--lazy", mounted], check=True)


@pytest.mark.slow
def test_on_a_network_the_data_lie_on_a_disk_of_this_machine(shared_home: Path) -> None:
    assert network_filesystem(shared_home) == "FUSE"
    embedded = EmbeddedServer(shared_home)
    try:
        assert answers(embedded.start())
        assert network_filesystem(embedded.data) is None
        assert not embedded.data.is_relative_to(shared_home)
        assert "on a disk of this machine alone, because HPO_HOME is on FUSE" in embedded.where()
        embedded.stop()
        assert answers(EmbeddedServer(shared_home).start())

        refused = on_host_b(embedded, "studies")
        assert refused.returncode == 1
        assert "belongs to host" in refused.stderr
    finally:
        embedded.stop()
        shutil.rmtree(embedded.root)
    # As on another machine: the pointer is there, the files are not.
    adopted = on_host_b(embedded, "database", "adopt", "--yes")
    lost = "are not on this machine. If you adopt it, it starts here without any study"
    assert lost in adopted.stdout
    shutil.rmtree(embedded.root, ignore_errors=True)


def test_data_that_an_earlier_version_put_on_a_network_stay_there(shared_home: Path) -> None:
    embedded = EmbeddedServer(shared_home)
    data = shared_home / "postgres" / "data"
    data.mkdir(parents=True)
    (data / "PG_VERSION").write_text("18\n")
    assert embedded.has_data()
    assert embedded.local_root() is None


@pytest.mark.slow
def test_a_home_of_an_earlier_version_without_an_owner_is_taken_over(
    owned: EmbeddedServer,
) -> None:
    owner = owned.home / "postgres.owner"
    owner.unlink()
    assert answers(owned.start())
    owned.stop()
    assert answers(owned.start())
    owner.unlink()
    crash(owned)
    while owned.processes():
        pass
    with pytest.raises(DatabaseError, match="a server of an earlier version runs on"):
        owned.start()
    owned.adopt()
    assert answers(owned.start())


@pytest.mark.slow
@pytest.mark.parametrize("contents", ["", "{", "[]", "{}", '{"host": "a"}', "null"])
def test_an_owner_file_that_cannot_be_read_needs_adopting(
    owned: EmbeddedServer, contents: str
) -> None:
    crash(owned)
    (owned.home / "postgres.owner").write_text(contents)
    unknown = "does not say which machine runs the embedded Postgres"
    with pytest.raises(DatabaseError, match=unknown):
        owned.start()
    owned.adopt()
    assert answers(owned.start())
