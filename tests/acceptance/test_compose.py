"""docker-compose.yml: its schema, its ports and passwords, and its commands, run without Docker."""

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
from helpers.commands import launch, run_hpo, start
from helpers.dashboards import Client
from helpers.paths import ROOT
from sqlalchemy import make_url

from hpo.store.database import Database

FILE = ROOT / "docker-compose.yml"
TEXT = FILE.read_text()
COMPOSE: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES: dict[str, Any] = COMPOSE["services"]
# With this form compose stops if there is no password.
PASSWORD = re.compile(r"\$\{HPO_(DB|DASHBOARD)_PASSWORD:\?")


def valid(path: Path) -> bool:
    schema = ["--builtin-schema", "vendor.compose-spec"]
    command = [sys.executable, "-m", "check_jsonschema", *schema, str(path)]
    return subprocess.run(command, capture_output=True).returncode == 0


def test_the_file_fits_the_schema(tmp_path: Path) -> None:
    assert valid(FILE)
    wrong = tmp_path / "wrong.yml"
    wrong.write_text(TEXT.replace("command:", "comand:"))
    assert not valid(wrong)


def test_ports_are_published_to_this_machine_only() -> None:
    published = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert len(published) == 2
    for port in published:
        assert re.fullmatch(r"127\.0\.0\.1:\$\{HPO_\w+_PORT:-\d+\}:\d+", port), port
    for service in SERVICES.values():
        assert "network_mode" not in service
        assert "privileged" not in service


def test_the_file_has_no_password() -> None:
    passwords = []
    for service in SERVICES.values():
        environment = service["environment"]
        passwords += [str(environment[name]) for name in environment if "PASSWORD" in name]
    assert len(passwords) == 4
    assert all(PASSWORD.match(password) for password in passwords)
    for service in SERVICES.values():
        assert not re.search(r"://\w*:", json.dumps(service)), "a password in a URL"
        commands = [service.get(key) for key in ("command", "entrypoint", "healthcheck")]
        assert "PASSWORD" not in json.dumps(commands)


def test_postgres_has_a_version_a_volume_and_a_health_check() -> None:
    postgres = SERVICES["postgres"]
    assert re.fullmatch(r"postgres:\d+", postgres["image"])
    assert postgres["healthcheck"]["test"][:2] == ["CMD", "pg_isready"]
    assert postgres["volumes"] == ["postgres:/var/lib/postgresql/data"]
    assert "postgres" in COMPOSE["volumes"]
    for name in ("dashboard", "worker"):
        assert SERVICES[name]["depends_on"] == {"postgres": {"condition": "service_healthy"}}


def test_only_the_worker_needs_a_gpu_and_it_starts_on_request_only() -> None:
    worker = SERVICES["worker"]
    assert [name for name, service in SERVICES.items() if service.get("profiles")] == ["worker"]
    assert worker["profiles"] == ["gpu"]
    (device,) = worker["deploy"]["resources"]["reservations"]["devices"]
    assert device["driver"] == "nvidia"
    assert device["capabilities"] == ["gpu"]
    data = next(volume for volume in worker["volumes"] if isinstance(volume, dict))
    assert data["target"] == "/data"
    assert data["read_only"] is True
    assert "artifacts" in COMPOSE["volumes"]


def test_the_image_copies_existing_files_and_does_not_run_as_root() -> None:
    dockerfile = SERVICES["worker"]["build"]["dockerfile_inline"]
    lines = [shlex.split(line) for line in dockerfile.splitlines()]
    sources: list[str] = []
    for instruction, *arguments in lines:
        if instruction == "COPY":
            sources += arguments[:-1]
    assert {"pyproject.toml", "hpo", "search_spaces"} <= set(sources)
    assert all((FILE.parent / source).exists() for source in sources)
    assert [line[1] for line in lines if line[0] == "USER"] == ["hpo"]
    assert SERVICES["dashboard"]["build"] == SERVICES["worker"]["build"]
    assert "docker-compose.yml" not in sources


@pytest.fixture
def as_in_a_container(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """The URL of the database has no password; libpq takes it from PGPASSWORD."""
    url = make_url(database.url)
    environment = SERVICES["worker"]["environment"]
    assert url.password
    assert PASSWORD.match(environment["PGPASSWORD"])
    monkeypatch.setenv("PGPASSWORD", url.password)
    here = f"@{url.host}:{url.port}/{url.database}"
    without_password = environment["HPO_DATABASE_URL"].replace("@postgres:5432/hpo", here)
    assert without_password.startswith("postgresql://hpo@127.0.0.1:")
    monkeypatch.setenv("HPO_DATABASE_URL", without_password)


def free_port() -> int:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return int(unused.getsockname()[1])


def status_once_it_answers(process: "subprocess.Popen[str]", client: Client) -> int:
    """The status of a request without a login, after waiting for the dashboard to start."""
    deadline = time.monotonic() + 60
    while True:
        try:
            return client.ask("GET", "/api/studies").status
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(process.stderr.read() if process.stderr else "no answer")
            time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.usefixtures("as_in_a_container")
def test_the_command_of_the_dashboard_serves_behind_a_login(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HPO_DASHBOARD_PASSWORD", "correct horse")
    port = free_port()
    command = [word.replace("8080", str(port)) for word in SERVICES["dashboard"]["command"]]
    process = start(*command)
    client = Client(port)
    try:
        assert status_once_it_answers(process, client) == 401
        assert client.log_in("correct horse").status == 303
        assert client.json("/api/studies") == {"study_summaries": []}
        command_line = Path(f"/proc/{process.pid}/cmdline").read_text()
        assert os.environ["PGPASSWORD"] not in command_line
        assert "horse" not in command_line
    finally:
        process.kill()
        process.communicate()


@pytest.mark.usefixtures("as_in_a_container")
def test_the_command_of_the_worker_joins_a_study(tiny_space: Path, tiny_data: Path) -> None:
    launch(tiny_space, tiny_data, "--trials", "0")
    values = {"${HPO_STUDY:-lr-aug}": "tiny", "${HPO_DEVICE:-cuda}": "cpu", "/data": str(tiny_data)}
    command = [values.get(word, word) for word in SERVICES["worker"]["command"]]
    assert set(values.values()) <= set(command)
    done = run_hpo(*command)
    assert done.returncode == 0
    assert done.stderr == ""
    assert done.stdout == "0 trials ended here; nothing is left to do\n"
