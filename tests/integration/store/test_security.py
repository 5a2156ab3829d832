"""Nobody else can read the password; TLS options reach libpq; the embedded server's files."""

import os
import re
import shutil
import string
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg2
import pytest
from helpers.commands import Done, launch_arguments, run_hpo, start
from helpers.servers import execute
from sqlalchemy import make_url

from hpo.errors import CallerError, DatabaseError
from hpo.store.database import Database, open_database
from hpo.store.embedded import EmbeddedServer
from hpo.store.url import has_password

WARNING = "other users of this machine can read the password of --database in `ps`"


@pytest.fixture
def secret(
    database: Database, server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """Part of the password of a new role, as which HPO_DATABASE_URL logs in.

    The rest of the password must be encoded in a URL.
    """
    token = os.urandom(12).hex()
    role = f"u{token[:8]}"
    password = token + string.punctuation + " é"
    quoted = password.replace("'", "''")
    execute(server, f"CREATE ROLE {role} LOGIN IN ROLE hpo PASSWORD '{quoted}'")
    url = make_url(database.url)
    encoded = quote(password, safe="")
    monkeypatch.setenv(
        "HPO_DATABASE_URL",
        f"postgresql://{role}:{encoded}@127.0.0.1:{url.port}/{url.database}",
    )
    yield token
    execute(server, f"DROP ROLE {role}")


def url_with(**changes: Any) -> str:
    url = make_url(os.environ["HPO_DATABASE_URL"]).set(**changes)
    return url.render_as_string(hide_password=False)


def command_lines() -> set[str]:
    """Of all processes of this machine, as `ps` shows them to anyone."""
    lines = set()
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.add(file.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue
    return lines


def output_of(done: Done) -> str:
    return done.stdout + done.stderr


# ---- where a password could be seen


@pytest.mark.slow
def test_a_study_shows_its_password_nowhere(
    secret: str, tiny_space: Path, tiny_data: Path, tmp_path: Path
) -> None:
    launch = start(*launch_arguments(tiny_space, tiny_data, "--workers", "1"))
    lines: set[str] = set()
    deadline = time.monotonic() + 120
    while launch.poll() is None and time.monotonic() < deadline:
        lines |= command_lines()
        time.sleep(0.05)
    out, err = launch.communicate()
    assert (launch.returncode, err) == (0, "")
    # The search below would have seen them.
    assert any("hpo.cli worker --study tiny" in line for line in lines)
    assert not any(secret in line for line in lines)

    study = ("--study", "tiny")
    outputs = {
        command: output_of(run_hpo(*command))
        for command in (
            ("worker", *study),
            ("status", *study),
            ("status", *study, "--json"),
            ("report", *study),
            ("report", *study, "--json"),
            ("export", *study, "--out", tmp_path / "best.yaml"),
            ("doctor", *study, "--json"),
            ("status", "--study", "no-such"),
        )
    }
    assert "Next: hpo export" in outputs["report", *study]
    assert not any(secret in output for output in [out, *outputs.values()])

    files = [*Path(os.environ["HPO_HOME"]).rglob("*"), *tmp_path.rglob("*")]
    contents = {file: file.read_bytes() for file in files if file.is_file()}
    assert any(file.suffix == ".log" for file in contents)
    assert not any(secret.encode() in content for content in contents.values())


def test_a_typed_password_gets_a_warning_of_one_line(secret: str) -> None:
    done = run_hpo("report", "--study", "none-yet", "--database", os.environ["HPO_DATABASE_URL"])
    warning, error = done.stderr.splitlines()
    for part in (WARNING, "HPO_DATABASE_URL", "~/.pgpass"):
        assert part in warning
    assert error.startswith("hpo: no study 'none-yet' in postgresql://u")
    assert secret not in output_of(done)
    assert WARNING not in run_hpo("report", "--study", "none-yet").stderr


@pytest.mark.parametrize(
    ("url", "holds"),
    [
        ("postgresql://u@h/d", False),
        ("postgresql:///d", False),
        ("postgresql://u:p@h/d", True),
        ("postgresql://u@h/d?password=p", True),
        ("postgresql://u@h/d?sslpassword=p", True),
        ("u:p@h", True),
    ],
)
def test_a_password_is_recognised_anywhere_in_a_url(url: str, holds: bool) -> None:
    assert has_password(url) == holds


# ---- errors


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"host": "no-such-host.invalid"}, "could not translate host name"),
        ({"port": 1}, "Connection refused"),
        ({"port": 99999}, "invalid port number"),
        ({"database": "nowhere"}, 'database "nowhere" does not exist'),
        ({"username": "nobody-of-this-name"}, "password authentication failed"),
        ({"query": {"sslmode": "bad"}}, 'invalid sslmode value: "bad"'),
        ({"query": {"sslmode": "require"}}, "server does not support SSL, but SSL was required"),
    ],
)
def test_a_refusal_is_one_line_without_the_password(
    secret: str, changes: dict[str, object], expected: str
) -> None:
    with pytest.raises(DatabaseError, match=expected) as caught:
        open_database(url_with(**changes))
    assert secret not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_wrong_password_is_not_shown_either(secret: str) -> None:
    wrong = run_hpo("status", "--study", "s", "--database", url_with(password=secret + "?"))
    assert wrong.returncode == 1
    assert "password authentication failed" in wrong.stderr
    assert secret not in output_of(wrong)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgresql://u:SECRET@h/d?foo=bar", 'invalid connection option "foo"'),
        ("postgresql://u:a%00SECRET@h/d", "%00. Valid: "),
        ("postgresql://u:a@SECRET@h/d", "more than one @. Valid: .* @ as %40"),
        ("postgresql://u:a@b?SECRET@h/d", "more than one @"),
        ("postgresql://u:SECRET@h:x/d", "not a URL"),
        ("postgresql://u:SECRET", "not a URL"),
        ("mysql://u:SECRET@h/d", "mysql is not supported"),
    ],
)
def test_the_error_about_a_bad_url_does_not_show_its_password(
    url: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HPO_DATABASE_URL", url)
    with pytest.raises(CallerError, match=expected) as caught:
        open_database()
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize(
    "place",
    [
        "u:SECRET@127.0.0.1:1/d",
        "u@127.0.0.1:1/d?password=SECRET",
        "u@127.0.0.1:1/d?sslpassword=SECRET",
    ],
)
def test_a_database_shows_no_password_in_any_form(place: str) -> None:
    with pytest.raises(DatabaseError, match="Connection refused") as caught:
        open_database(f"postgresql://{place}")
    shown = Database(f"postgresql+psycopg2://{place.replace('?password=', '?sslpassword=')}", None)
    assert "SECRET" not in f"{caught.value} {shown} {shown!r}"


def test_a_password_in_the_query_is_used(secret: str) -> None:
    url = make_url(os.environ["HPO_DATABASE_URL"])
    encoded = quote(str(url.password), safe="")
    place = f"{url.username}@{url.host}:{url.port}/{url.database}"
    moved = f"postgresql://{place}?password={encoded}"
    assert make_url(open_database(moved).url).password == url.password


# ---- TLS


class TlsServer(EmbeddedServer):
    """The system's Postgres: that of the wheel is built without TLS."""

    def _binaries(self) -> Path:
        return max(Path("/usr/lib/postgresql").glob("*/bin"))


def openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


def self_signed(certificate: Path, key: Path, *names: str) -> None:
    request = ("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2")
    openssl(*request, *names, "-out", certificate, "-keyout", key)


@pytest.fixture
def tls_server(private_folder: Path) -> Iterator[tuple[str, Path]]:
    """(its URL, the certificate that it shows)"""
    if not any(Path("/usr/lib/postgresql").glob("*/bin/initdb")):
        pytest.skip("no Postgres under /usr/lib/postgresql: the wheel's is built without TLS")
    if not shutil.which("openssl"):
        pytest.skip("no openssl")
    home = private_folder / f"tls-{os.urandom(4).hex()}"
    home.mkdir(mode=0o711)
    server = TlsServer(home)
    server.start()
    server.stop()
    certificate, key = server.data / "server.crt", server.data / "server.key"
    names = ("-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1")
    self_signed(certificate, key, *names)
    for file in (certificate, key):
        file.chmod(0o600)
        if server.account:
            os.chown(file, server.account.pw_uid, server.account.pw_gid)
    with (server.data / "postgresql.conf").open("a") as configuration:
        configuration.write("ssl = on\n")
    yield server.start(), certificate
    server.stop()


def uses_tls(url: str) -> bool:
    plain = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    connection = psycopg2.connect(plain)
    with connection.cursor() as cursor:
        cursor.execute("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
        row = cursor.fetchone()
    connection.close()
    return bool(row == (True,))


@pytest.mark.slow
def test_tls_options_reach_libpq(tls_server: tuple[str, Path], tmp_path: Path) -> None:
    url, certificate = tls_server
    for mode in ("require", "verify-ca", "verify-full"):
        opened = open_database(f"{url}&sslmode={mode}&sslrootcert={certificate}")
        assert uses_tls(opened.url)

    other = tmp_path / "other.crt"
    self_signed(other, tmp_path / "other.key", "-subj", "/CN=other")
    with pytest.raises(DatabaseError, match="certificate verify failed"):
        open_database(f"{url}&sslmode=verify-ca&sslrootcert={other}")
    with pytest.raises(DatabaseError, match='root certificate file "/nowhere" does not exist'):
        open_database(f"{url}&sslmode=verify-ca&sslrootcert=/nowhere")


@pytest.mark.slow
def test_the_doctor_says_how_far_tls_is_checked(
    tls_server: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, certificate = tls_server
    expected = {
        "verify-ca": "ok +TLS +TLSv1.[23], [A-Z0-9_-]+\n",
        "require": r"not verified \(use sslmode=verify-full\)",
        "disable": "ok +TLS +not in use: the connection stays on this machine",
    }
    monkeypatch.setenv("HPO_HOME", str(tmp_path / "home"))
    for mode, line in expected.items():
        monkeypatch.setenv("HPO_DATABASE_URL", f"{url}&sslmode={mode}&sslrootcert={certificate}")
        done = run_hpo("doctor")
        assert done.returncode == 0
        assert re.search(line, done.stdout), done.stdout


def test_sslmode_disable_works_where_there_is_no_tls(secret: str) -> None:
    assert open_database(url_with(query={"sslmode": "disable"})).url.endswith("?sslmode=disable")


# ---- the embedded server


def test_no_other_account_may_read_a_file_of_the_embedded_server(private_folder: Path) -> None:
    home = private_folder / "files"
    home.mkdir(mode=0o711)
    own = EmbeddedServer(home)
    # As earlier versions made it.
    own.root.mkdir(mode=0o755)
    own.start()
    own.stop()
    files = [own.root, *own.root.rglob("*")]
    assert len(files) > 900
    assert {oct(file.stat().st_mode & 0o777) for file in files} == {"0o700", "0o600"}
