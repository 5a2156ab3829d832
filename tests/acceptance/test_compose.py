"""docker-compose.yml: its schema, what a network sees of it, and its commands, run here without an engine."""

import json
import os
import re
import shlex
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.commands import asked, start
from helpers.dashboards import Client
from helpers.paths import ROOT
from sqlalchemy import make_url

from hpo.store.database import Database

FILE = ROOT / "docker-compose.yml"
TEXT = FILE.read_text()
COMPOSE: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES: dict[str, Any] = COMPOSE["services"]
PASSWORD = re.compile(
    r"\$\{HPO_(DB|DASHBOARD)_PASSWORD:\?"
)  # the form that makes compose stop without one


def valid(path: Path) -> bool:
    command = [
        sys.executable,
        "-m",
        "check_jsonschema",
        "--builtin-schema",
        "vendor.compose-spec",
        str(path),
    ]
    return subprocess.run(command, capture_output=True).returncode == 0


def test_the_schema(tmp_path: Path) -> None:
    assert valid(FILE)
    wrong = tmp_path / "wrong.yml"
    wrong.write_text(TEXT.replace("command:", "comand:"))
    assert not valid(wrong)


def test_ports_are_published_to_this_machine_only() -> None:
    published = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert len(published) == 2
    for port in published:
        assert re.fullmatch(r"127\.0\.0\.1:\$\{HPO_\w+_PORT:-\d+\}:\d+", port), port
    assert not any(
        "network_mode" in service or "privileged" in service for service in SERVICES.values()
    )


def test_no_password_stands_in_it() -> None:
    values = [
        str(value)
        for service in SERVICES.values()
        for name, value in service["environment"].items()
        if "PASSWORD" in name
    ]
    assert len(values) == 4
    assert all(PASSWORD.match(value) for value in values)
    for service in SERVICES.values():
        assert not re.search(r"://\w*:", json.dumps(service)), "a password in a URL"
        assert "PASSWORD" not in json.dumps(
            [service.get("command"), service.get("entrypoint"), service.get("healthcheck")]
        )


def test_postgres_is_pinned_kept_and_waited_for() -> None:
    postgres = SERVICES["postgres"]
    assert re.fullmatch(r"postgres:\d+", postgres["image"])
    assert postgres["healthcheck"]["test"][:2] == ["CMD", "pg_isready"]
    assert postgres["volumes"] == ["postgres:/var/lib/postgresql/data"]
    assert "postgres" in COMPOSE["volumes"]
    for name in ("dashboard", "worker"):
        assert SERVICES[name]["depends_on"] == {"postgres": {"condition": "service_healthy"}}


def test_only_the_worker_needs_a_gpu_and_only_when_asked_for() -> None:
    worker = SERVICES["worker"]
    assert [name for name, service in SERVICES.items() if service.get("profiles")] == ["worker"]
    assert worker["profiles"] == ["gpu"]
    (device,) = worker["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])
    data = next(volume for volume in worker["volumes"] if isinstance(volume, dict))
    assert (data["target"], data["read_only"]) == ("/data", True)
    assert "artifacts" in COMPOSE["volumes"]


def test_the_image_copies_what_is_there_and_does_not_run_as_root() -> None:
    lines = [
        shlex.split(line) for line in SERVICES["worker"]["build"]["dockerfile_inline"].splitlines()
    ]
    sources = [source for line in lines if line[0] == "COPY" for source in line[1:-1]]
    assert {"pyproject.toml", "hpo", "search_spaces"} <= set(sources)
    assert all((FILE.parent / source).exists() for source in sources)
    assert [line[1] for line in lines if line[0] == "USER"] == ["hpo"]
    assert SERVICES["dashboard"]["build"] == SERVICES["worker"]["build"]
    assert "docker-compose.yml" not in sources


@pytest.fixture
def as_in_a_container(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """The URL has no password there; libpq takes it from PGPASSWORD."""
    url, environment = make_url(database.url), SERVICES["worker"]["environment"]
    assert url.password and PASSWORD.match(environment["PGPASSWORD"])
    monkeypatch.setenv("PGPASSWORD", url.password)
    bare = environment["HPO_DATABASE_URL"].replace(
        "@postgres:5432/hpo", f"@{url.host}:{url.port}/{url.database}"
    )
    assert bare.startswith("postgresql://hpo@127.0.0.1:")
    monkeypatch.setenv("HPO_DATABASE_URL", bare)


@pytest.mark.usefixtures("as_in_a_container")
def test_the_dashboard_s_command_serves_behind_a_login(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HPO_DASHBOARD_PASSWORD", "correct horse")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [word.replace("8080", str(port)) for word in SERVICES["dashboard"]["command"]]
    process = start(*command)
    client = Client(port)
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                assert client.ask("GET", "/api/studies").status == 401
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < deadline, (
                    process.stderr.read() if process.stderr else ""
                )
                time.sleep(0.1)
        assert client.log_in("correct horse").status == 303
        assert client.json("/api/studies") == {"study_summaries": []}
        shown = Path(f"/proc/{process.pid}/cmdline").read_text()
        assert os.environ["PGPASSWORD"] not in shown and "horse" not in shown
    finally:
        process.kill()
        process.communicate()


@pytest.mark.usefixtures("as_in_a_container")
def test_the_worker_s_command_joins_a_study(tiny_space: Path, tiny_data: Path) -> None:
    asked("launch", "--study", tiny_space, "--data", tiny_data, "--trials", "0", "--device", "cpu")
    values = {"${HPO_STUDY:-lr-aug}": "tiny", "${HPO_DEVICE:-cuda}": "cpu", "/data": str(tiny_data)}
    command = [values.get(word, word) for word in SERVICES["worker"]["command"]]
    assert set(values.values()) <= set(command)
    done = asked(*command)
    assert (done.returncode, done.stderr, done.stdout) == (
        0,
        "",
        "0 trials ended here; nothing is left to do\n",
    )
