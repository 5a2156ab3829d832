"""hpo doctor: against a real database and a real study, and its conclusions from numbers that cannot be had here."""

import json
import os
import pickle
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from helpers.commands import asked
from helpers.data import tiny_contents
from helpers.servers import execute
from sqlalchemy import make_url

from hpo.launch.doctor import (
    Finding,
    examine,
    folder,
    judge_clock,
    judge_code,
    judge_connections,
    judge_data,
    judge_probes,
    judge_tls,
)
from hpo.store.database import Database
from hpo.store.embedded import EmbeddedServer
from hpo.study.study import Study
from hpo.study.version import code_version


def by_name(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings}


def on_another_host(name: str, *arguments: str | Path) -> str:
    """What `hpo` says on a machine called `name`: a namespace with a host name of its own."""
    rights = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    code = f"import socket, sys; socket.sethostname({name!r}); import hpo.cli; hpo.cli.main()"
    command = ["unshare", "--uts", *rights, sys.executable, "-c", code, *map(str, arguments)]
    if (
        not shutil.which("unshare")
        or subprocess.run(
            [*command[: command.index("-c")], "-c", ""], capture_output=True
        ).returncode
    ):
        pytest.skip("no namespaces here")
    return subprocess.run(command, capture_output=True, text=True, timeout=120).stdout


# ---- on this machine


def test_a_machine_that_can_work(database: Database) -> None:
    done = asked("doctor")
    levels = {line.split()[1]: line.split()[0] for line in done.stdout.splitlines()}
    assert {
        "versions",
        "GPU",
        "database",
        "version",
        "clock",
        "connections",
        "rights",
        "TLS",
        "artifacts",
        "shared",
    } <= set(levels)
    assert done.returncode == 0
    assert all(
        levels[name] == "ok"
        for name in (
            "versions",
            "database",
            "version",
            "clock",
            "connections",
            "rights",
            "TLS",
            "shared",
        )
    )
    as_json = asked("doctor", "--json")
    assert [finding["name"] for finding in json.loads(as_json.stdout)] == list(levels)


def test_a_machine_that_cannot(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(
        "HPO_DATABASE_URL", make_url(database.url).set(port=1).render_as_string(hide_password=False)
    )
    done = asked("doctor", "--study", "s", "--artifacts", tmp_path / "not-mounted", "--json")
    assert (done.returncode, done.stderr) == (1, "")
    failed = {
        finding["name"]: finding["text"]
        for finding in json.loads(done.stdout)
        if finding["level"] == "fail"
    }
    assert set(failed) == {"database", "artifacts"}
    assert "Connection refused" in failed["database"]
    assert "not-mounted" in failed["artifacts"] and "No such file" in failed["artifacts"]
    assert not (tmp_path / "not-mounted").exists()


def test_a_password_on_the_command_line(database: Database) -> None:
    typed = by_name(examine(None, database.url, None, None))["password"]
    assert (typed.level, "HPO_DATABASE_URL" in typed.text) == ("warn", True)
    assert "password" not in by_name(examine(None, None, None, None))


def test_a_user_without_rights(database: Database, server: EmbeddedServer) -> None:
    url = make_url(database.url)
    execute(server, f"CREATE DATABASE empty_{url.database}")
    execute(server, f"CREATE ROLE poor_{url.database} LOGIN PASSWORD 'p'")
    try:
        poor = url.set(
            username=f"poor_{url.database}", password="p", database=f"empty_{url.database}"
        )
        rights = by_name(examine(None, poor.render_as_string(hide_password=False), None, None))[
            "rights"
        ]
        assert (
            rights.level,
            f"GRANT CREATE ON SCHEMA public TO poor_{url.database}" in rights.text,
        ) == ("fail", True)
    finally:
        execute(server, f"DROP DATABASE empty_{url.database}")
        execute(server, f"DROP ROLE poor_{url.database}")


def test_two_machines_prove_that_they_share_a_folder(database: Database, tmp_path: Path) -> None:
    shared, alone = tmp_path / "shared", tmp_path / "alone"
    shared.mkdir()
    alone.mkdir()
    assert "no probe of another host found" in by_name(folder(shared))["shared"].text
    assert f"with {socket.gethostname()} (hpo doctor ran there 0 h 0 min ago)" in on_another_host(
        "gpu2", "doctor", "--artifacts", shared
    )
    assert (
        "with gpu2 (hpo doctor ran there 0 h 0 min ago)" in by_name(folder(shared))["shared"].text
    )
    assert "no probe of another host found" in by_name(folder(alone))["shared"].text


# ---- a study's workers


def test_code_and_data_of_a_study(
    database: Database,
    tiny_space: Path,
    tiny_data: Path,
    tmp_path: Path,
    make_study: Callable[..., Study],
) -> None:
    asked("launch", "--study", tiny_space, "--data", tiny_data, "--trials", "0", "--device", "cpu")
    asked("budget", "--study", "tiny", "--trials", "4")
    assert asked("worker", "--study", "tiny", "--device", "cpu").returncode == 0
    ours = by_name(examine("tiny", None, None, None))
    assert (ours["code"].level, ours["code"].text) == (
        "ok",
        f"{code_version()}, matches all 4 trials that ran",
    )
    assert (ours["data"].level, ours["data"].text) == (
        "ok",
        f"{tiny_data}: matches the study and all 4 trials that ran",
    )

    other = tiny_contents()
    other["train"][0]["phonemes"][0][0] += 1
    path = tmp_path / "other"
    path.write_bytes(pickle.dumps(other))
    wrong = by_name(examine("tiny", None, path, None))["data"]
    assert (wrong.level, "Give --data with the study's data" in wrong.text) == ("fail", True)
    gone = by_name(examine("tiny", None, tmp_path / "gone", None))["data"]
    assert (gone.level, "no such file or folder" in gone.text) == ("fail", True)
    missing = by_name(examine("nothing", None, None, None))["study"]
    assert (missing.level, "There are: tiny" in missing.text) == ("fail", True)

    records = Study.open(database, "tiny").records()
    assert judge_code("9.9", code_version(), records).level == "fail"
    newer = judge_code("9.9", "", records)
    assert newer.level == "warn"
    assert (
        f"here 9.9; trials ran with {code_version()} (trials: 4, on {socket.gethostname()})"
        in newer.text
    )
    mixed = judge_data("d", "f" * 16, "f" * 16, records)
    assert (
        mixed.level,
        f"{records[0].data} (trials: 4, on {socket.gethostname()})" in mixed.text,
    ) == ("warn", True)


# ---- conclusions


@pytest.mark.parametrize(
    ("finding", "level", "part"),
    [
        (judge_clock(100.0, 100.1, 100.2), "ok", "within 0.200 s of the database server's"),
        (judge_clock(100.0, 105.0, 110.0), "ok", "10.000 s"),  # a slow answer is no skew
        (
            judge_clock(100.0, 102.5, 100.1),
            "warn",
            "2 s behind the database server's: synchronize both with NTP",
        ),
        (judge_clock(100.0, 30.0, 100.1), "fail", "70 s ahead of the database server's"),
        (judge_connections(100, 20), "ok", "20 of 100 in use: room for 40 more workers"),
        (judge_connections(100, 90), "warn", "room for 5 more workers. Raise max_connections"),
        (judge_connections(100, 99), "fail", "room for 0 more workers"),
        (judge_tls("db.lab", "TLSv1.3, X", "verify-full"), "ok", "TLSv1.3, X"),
        (
            judge_tls("db.lab", "TLSv1.3, X", "prefer"),
            "ok",
            "is not verified (use sslmode=verify-full)",
        ),
        (judge_tls("db.lab", None, "prefer"), "warn", "the traffic to db.lab is not encrypted"),
        (judge_tls("127.0.0.1", None, "prefer"), "ok", "the connection stays on this machine"),
        (
            judge_tls("/var/run/postgresql", None, "prefer"),
            "ok",
            "the connection stays on this machine",
        ),
    ],
)
def test_conclusions(finding: Finding, level: str, part: str) -> None:
    assert finding.level == level
    assert part in finding.text


def test_old_probes_say_when_they_were_written() -> None:
    now = datetime(2025, 1, 31, tzinfo=UTC)
    written: dict[str, Any] = {
        "a": now - timedelta(minutes=3),
        "b": now - timedelta(days=12),
        "c": now + timedelta(hours=1),
    }
    text = judge_probes({host: at.isoformat() for host, at in written.items()} | {"d": "?"}, now)
    ago = {
        "a": "0 h 3 min ago",
        "b": "12 days ago",
        "c": "0 h 0 min ago",
        "d": "at an unknown time",
    }
    assert text == "with " + ", ".join(
        f"{host} (hpo doctor ran there {when})" for host, when in ago.items()
    )
