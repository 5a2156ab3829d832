"""hpo doctor: a real database and study, and conclusions from figures that cannot arise here."""

import json
import os
import pickle
import shutil
import socket
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from helpers.commands import launch, run_hpo
from helpers.data import tiny_contents
from helpers.lines import ON_CPU
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
    """What `hpo` prints on a machine called `name`: a namespace with its own host name."""
    rights = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    python = ["unshare", "--uts", *rights, sys.executable, "-c"]
    if not shutil.which("unshare") or subprocess.run([*python, ""], capture_output=True).returncode:
        pytest.skip("no namespaces here")
    code = f"import socket, sys; socket.sethostname({name!r}); import hpo.cli; hpo.cli.main()"
    command = [*python, code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120).stdout


# ---- on this machine


def test_a_machine_that_can_work_passes(database: Database) -> None:
    done = run_hpo("doctor")
    levels = {line.split()[1]: line.split()[0] for line in done.stdout.splitlines()}
    assert {"GPU", "artifacts"} <= set(levels)
    assert done.returncode == 0
    server = ("database", "version", "clock", "connections", "rights", "TLS")
    for name in ("versions", *server, "shared"):
        assert levels[name] == "ok", name
    as_json = run_hpo("doctor", "--json")
    assert [finding["name"] for finding in json.loads(as_json.stdout)] == list(levels)


def test_a_machine_that_cannot_work_fails(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = make_url(database.url).set(port=1)
    monkeypatch.setenv("HPO_DATABASE_URL", closed.render_as_string(hide_password=False))
    done = run_hpo("doctor", "--study", "s", "--artifacts", tmp_path / "not-mounted", "--json")
    assert done.returncode == 1
    assert done.stderr == ""
    failed = {
        finding["name"]: finding["text"]
        for finding in json.loads(done.stdout)
        if finding["level"] == "fail"
    }
    assert set(failed) == {"database", "artifacts"}
    assert "Connection refused" in failed["database"]
    assert "not-mounted" in failed["artifacts"]
    assert "No such file" in failed["artifacts"]
    assert not (tmp_path / "not-mounted").exists()


def test_a_password_on_the_command_line_gets_a_warning(database: Database) -> None:
    typed = by_name(examine(None, database.url, None, None))["password"]
    assert typed.level == "warn"
    assert "HPO_DATABASE_URL" in typed.text
    assert "password" not in by_name(examine(None, None, None, None))


def test_the_finding_about_missing_rights_names_the_grant(
    database: Database, server: EmbeddedServer
) -> None:
    url = make_url(database.url)
    role, empty = f"poor_{url.database}", f"empty_{url.database}"
    execute(server, f"CREATE DATABASE {empty}")
    execute(server, f"CREATE ROLE {role} LOGIN PASSWORD 'p'")
    try:
        poor = url.set(username=role, password="p", database=empty)
        findings = examine(None, poor.render_as_string(hide_password=False), None, None)
        rights = by_name(findings)["rights"]
        assert rights.level == "fail"
        assert f"GRANT CREATE ON SCHEMA public TO {role}" in rights.text
    finally:
        execute(server, f"DROP DATABASE {empty}")
        execute(server, f"DROP ROLE {role}")


@pytest.mark.slow
def test_two_machines_prove_that_they_share_a_folder(database: Database, tmp_path: Path) -> None:
    shared, alone = tmp_path / "shared", tmp_path / "alone"
    shared.mkdir()
    alone.mkdir()
    assert "no probe of another host found" in by_name(folder(shared))["shared"].text
    on_gpu2 = on_another_host("gpu2", "doctor", "--artifacts", shared)
    assert f"with {socket.gethostname()} (hpo doctor ran there 0 h 0 min ago)" in on_gpu2
    here = by_name(folder(shared))["shared"].text
    assert "with gpu2 (hpo doctor ran there 0 h 0 min ago)" in here
    assert "no probe of another host found" in by_name(folder(alone))["shared"].text


# ---- a study's workers


@pytest.fixture
def trained(database: Database, tiny_space: Path, tiny_data: Path) -> Study:
    """A study called tiny, of four trials that a worker here has run."""
    launch(tiny_space, tiny_data, "--trials", "0")
    run_hpo("budget", "--study", "tiny", "--trials", "4")
    assert run_hpo("worker", "--study", "tiny", *ON_CPU).returncode == 0
    return Study.open(database, "tiny")


@pytest.mark.slow
def test_code_and_data_are_compared_with_those_of_a_study(
    trained: Study, tiny_data: Path, tmp_path: Path
) -> None:
    ours = by_name(examine("tiny", None, None, None))
    assert ours["code"].level == "ok"
    assert ours["code"].text == f"{code_version()}, matches all 4 trials that ran"
    assert ours["data"].level == "ok"
    assert ours["data"].text == f"{tiny_data}: matches the study and all 4 trials that ran"

    contents = tiny_contents()
    contents["train"][0]["phonemes"][0][0] += 1
    other = tmp_path / "other"
    other.write_bytes(pickle.dumps(contents))
    wrong = by_name(examine("tiny", None, other, None))["data"]
    assert wrong.level == "fail"
    assert "Give --data with the study's data" in wrong.text
    gone = by_name(examine("tiny", None, tmp_path / "gone", None))["data"]
    assert gone.level == "fail"
    assert "no such file or folder" in gone.text
    missing = by_name(examine("nothing", None, None, None))["study"]
    assert missing.level == "fail"
    assert "There are: tiny" in missing.text


@pytest.mark.slow
def test_other_code_and_data_are_named_with_their_trials(trained: Study) -> None:
    records = trained.records()
    trials = f"(trials: 4, on {socket.gethostname()})"
    assert judge_code("9.9", code_version(), records).level == "fail"
    newer = judge_code("9.9", "", records)
    assert newer.level == "warn"
    assert f"here 9.9; trials ran with {code_version()} {trials}" in newer.text
    mixed = judge_data("d", "f" * 16, "f" * 16, records)
    assert mixed.level == "warn"
    assert f"{records[0].data} {trials}" in mixed.text


# ---- conclusions


@pytest.mark.parametrize(
    ("finding", "level", "part"),
    [
        (judge_clock(100.0, 100.1, 100.2), "ok", "within 0.200 s of the database server's"),
        # A slow answer is no skew.
        (judge_clock(100.0, 105.0, 110.0), "ok", "10.000 s"),
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
def test_a_finding_has_a_level_and_says_what_to_do(finding: Finding, level: str, part: str) -> None:
    assert finding.level == level
    assert part in finding.text


def test_probes_say_when_they_were_written() -> None:
    now = datetime(2025, 1, 31, tzinfo=UTC)
    probes = {
        "a": (now - timedelta(minutes=3)).isoformat(),
        "b": (now - timedelta(days=12)).isoformat(),
        "c": (now + timedelta(hours=1)).isoformat(),
        "d": "?",
    }
    text = judge_probes(probes, now)
    assert text == (
        "with a (hpo doctor ran there 0 h 3 min ago), "
        "b (hpo doctor ran there 12 days ago), "
        "c (hpo doctor ran there 0 h 0 min ago), "
        "d (hpo doctor ran there at an unknown time)"
    )
