"""One HPO_HOME, several machines: only the owner of the embedded server touches its files."""

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
from test_database import answers, fresh, postmaster

from hpo.errors import DatabaseError
from hpo.search.database import EmbeddedServer
from hpo.search.owner import this_place

__all__ = ["fresh"]

ELSEWHERE = ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "--net", "--uts", "--kill-child"]
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


def on_host_b(embedded: EmbeddedServer, *command: str) -> "subprocess.CompletedProcess[str]":
    """A command of hpo in mount, pid, net and uts namespaces of its own, with the same HPO_HOME."""
    environment = {name: value for name, value in os.environ.items() if name != "HPO_DATABASE_URL"}
    line = ON_HOST_B + f"{sys.executable} -m hpo.cli {' '.join(command)}"
    return subprocess.run(
        [*ELSEWHERE, "bash", "-c", line],
        capture_output=True,
        text=True,
        env=environment | {"HPO_HOME": str(embedded.home)},
    )


needs_namespaces = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("unshare") or not shutil.which("ip"),
    reason="namespaces need root, unshare and ip",
)


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


@needs_namespaces
def test_a_second_machine_waits_for_adopt_after_the_first_is_gone(owned: EmbeddedServer) -> None:
    crash(owned)
    stale = (owned.data / "postmaster.pid").read_text()
    assert on_host_b(owned, "studies").returncode == 1
    assert (owned.data / "postmaster.pid").read_text() == stale
    refused = on_host_b(owned, "database", "adopt", "<", "/dev/null")
    assert refused.returncode == 1
    assert on_host_b(owned, "studies").returncode == 1
    assert on_host_b(owned, "database", "adopt", "--yes").returncode == 0
    with pytest.raises(DatabaseError, match="belongs to host host-b"):
        owned.start()
    owned.adopt()
    assert answers(owned.start())


def test_the_same_machine_goes_on_after_a_crash_and_after_a_reboot(owned: EmbeddedServer) -> None:
    crash(owned)
    assert answers(owned.start())
    crash(owned)
    rewrite(owned, boot="another", pid_namespace="pid:[1]")
    assert answers(owned.start())


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


def test_a_home_of_an_earlier_version(owned: EmbeddedServer) -> None:
    owner = owned.home / "postgres.owner"
    owner.unlink()
    assert answers(owned.start())
    owned.stop()
    assert answers(owned.start())
    owner.unlink()
    crash(owned)
    while owned._processes():
        pass
    with pytest.raises(DatabaseError, match="a server of an earlier version runs on"):
        owned.start()
    owned.adopt()
    assert answers(owned.start())


@pytest.mark.parametrize("contents", ["", "{", "[]", "{}", '{"host": "a"}', "null"])
def test_an_owner_that_cannot_be_read(owned: EmbeddedServer, contents: str) -> None:
    crash(owned)
    (owned.home / "postgres.owner").write_text(contents)
    with pytest.raises(DatabaseError, match="does not say which machine runs the embedded Postgres"):
        owned.start()
    owned.adopt()
    assert answers(owned.start())
