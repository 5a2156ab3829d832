"""The dashboard: what it adds to optuna-dashboard, who may enter, what actions do to workers."""

import io
import json
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from functools import partial
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import optuna
import optuna_dashboard
import pytest
import yaml
from bottle import Bottle
from helpers.commands import one_line, run_hpo, start, until
from helpers.dashboards import FORM, JSON, Answer, dashboard
from helpers.servers import execute
from helpers.studies import RECORD, long, point
from sqlalchemy import make_url, text

from hpo.dashboard.connections import MOST_CONNECTIONS
from hpo.dashboard.guard import (
    ADDRESSES,
    SESSION_SECONDS,
    SESSIONS,
    WAIT_SECONDS,
    WRONG,
    Attempts,
    Sessions,
)
from hpo.dashboard.pages import OURS, Pages
from hpo.dashboard.server import Options, serve
from hpo.errors import CallerError, HpoError, StudyError
from hpo.process import Process
from hpo.space.load import load_spec
from hpo.space.spec import StudySpec
from hpo.space.stopping import Stop
from hpo.store.database import Database
from hpo.store.embedded import EmbeddedServer
from hpo.store.storage import open_storage
from hpo.study.paths import study_folder
from hpo.study.study import Study
from hpo.study.trial import Completed, Failed, Outcome, Stopped, Trial
from hpo.trainer import Score
from hpo.worker.dataset import look_at_data

PASSWORD = "correct horse"
# A form whose body does not come.
LONG_BODY = (
    b"POST /login HTTP/1.1\r\nHost: localhost\r\n"
    b"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: 4000\r\n\r\npassword="
)
HOSTILE = (
    "**bold** <img src=x onerror=\"document.title='hacked'\">"
    "<script>document.title='hacked'</script>"
)


def report(study: Study, trial: Trial, step: int, per: float) -> None:
    score = Score((round(100 * per),), (100,))
    assert study.deliver(trial, [point(step, score.value, validation_loss=1.0)], step, 1.0)


@pytest.fixture
def study(make_study: Callable[..., Study], tiny_spec: StudySpec) -> Study:
    """Four trials: complete, stopped, failed, running."""
    study = make_study(tiny_spec.model_copy(update={"question": "Which lr, and <b>why</b>?"}))
    stopped = Stopped(Stop("own-past", "per", "PER 0.6, above its *best*"))
    outcomes: list[Outcome | None] = [
        Completed(Score((30,), (100,))),
        stopped,
        Failed("no & way"),
        None,
    ]
    for outcome in outcomes:
        trial = study.claim(Process.this(), RECORD)
        assert trial
        report(study, trial, 2, 0.4)
        report(study, trial, 6, 0.3)
        if outcome is not None:
            study.finish(trial, outcome, 2.0)
        if isinstance(outcome, Failed):
            # A failed trial is tried once more.
            again = study.claim(Process.this(), RECORD)
            assert again
            study.finish(again, outcome, 2.0)
    return study


def reason_of(answer: Answer) -> str:
    return str(json.loads(answer.text)["reason"])


def answer_of_optuna_dashboard(database: Database, path: str) -> Any:
    plain = optuna_dashboard.wsgi(open_storage(database))
    assert isinstance(plain, Bottle)
    environ = {
        "REQUEST_METHOD": "GET",
        "PATH_INFO": path,
        "wsgi.input": io.BytesIO(),
        "wsgi.errors": sys.stderr,
    }
    return json.loads(b"".join(plain(environ, lambda status, headers, *_: None)))


@pytest.mark.slow
def test_a_study_is_answered_as_by_optuna_dashboard_with_our_additions(
    study: Study, database: Database
) -> None:
    plain = answer_of_optuna_dashboard(database, f"/api/studies/{study.id}")
    with dashboard(database) as client:
        ours = client.json(f"/api/studies/{study.id}?after=0")
        later = client.json(f"/api/studies/{study.id}?after=3")
    assert later["trials"] == ours["trials"][3:]
    notes = [trial.pop("note")["body"] for trial in ours["trials"]]
    artifacts = [trial.pop("artifacts") for trial in ours["trials"]]
    for content in (plain, ours):
        for name in (
            "union_search_space",
            "intersection_search_space",
            "union_user_attrs",
            "user_attrs",
        ):
            content[name] = sorted(content[name], key=str)
    for trial in plain["trials"]:
        assert trial.pop("note") == {"version": 0, "body": ""}
        assert trial.pop("artifacts") == []
    assert ours["trials"] == plain["trials"]
    assert {trial["state"] for trial in ours["trials"]} == {"Complete", "Pruned", "Fail", "Running"}
    assert [trial["number"] for trial in ours["best_trials"]] == [0]
    assert [trial["number"] for trial in plain["best_trials"]] == [0]
    different = {name for name in plain if name in ours and plain[name] != ours[name]}
    assert different == {"note", "best_trials", "plotly_graph_objects"}

    files = {artifact["filename"] for artifact in artifacts[0]}
    assert files == {"curve.png", "configuration.yaml", "log.txt"}
    complete, stopped, failed, _ = notes
    assert "PER 30.00 % at the end" in complete
    assert r"PER 0.6, above its \*best\*" in stopped
    assert "optimizer.lr` 0.02 → 0.001" in stopped
    assert r"no \& way" in failed
    assert "attempt 2" in failed
    note = ours["note"]["body"]
    assert r"\<b\>why\</b\>" in note
    assert "hpo worker --study s" in note


@pytest.mark.slow
def test_only_changed_trials_are_rendered_again(
    study: Study, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hpo.dashboard.pages.FRESH_SECONDS", 0.0)
    page = Pages(database).of(study.id)
    assert page
    tag, body = page.answer(0)
    assert body
    assert page.answer(0, known_tags=tag) == (tag, None)
    before = {number: piece.text for number, piece in page.pieces.items()}
    trial = study.claim(Process.this(), RECORD)
    assert trial
    changed, _ = page.answer(0, known_tags=tag)
    assert changed != tag
    after = {number: piece.text for number, piece in page.pieces.items()}
    # Trial 3 runs, so it is read again, though nothing is new.
    assert [number for number in before if after[number] is not before[number]] == [3]
    report(study, trial, 4, 0.2)
    _, body = page.answer(4)
    assert [trial["number"] for trial in json.loads(body or b"")["trials"]] == [4]


@pytest.mark.slow
def test_a_study_has_plots_of_ours(study: Study, database: Database) -> None:
    with dashboard(database) as client:
        answer = client.json(f"/api/studies/{study.id}")
    plots = {
        plot["id"]: json.loads(plot["graph_object"])["data"]
        for plot in answer["plotly_graph_objects"]
    }
    assert set(plots) == {"hpo-curves", "hpo-map", "hpo-starts"}
    stopped = next(trace for trace in plots["hpo-curves"] if trace["name"] == "stopped")
    assert (stopped["x"], stopped["y"]) == ([6], [0.3])
    assert plots["hpo-starts"][0]["y"][-1] == 0.3
    assert plots["hpo-map"][0]["x"] == [study.records()[0].config["optimizer.lr"]]


@pytest.mark.slow
def test_files_of_a_trial_are_made_on_request(study: Study, database: Database) -> None:
    logs = study_folder(study) / "logs"
    logs.mkdir(parents=True)
    (logs / "trial-0.log").write_text("d t trial 0: begins\nTraceback\n  deep\n")
    (logs / "trial-1.log").write_text("d t trial 1: begins\nd t trial 1: stopped\n")
    record = study.records()[0]
    with dashboard(database) as client:
        place = f"/artifacts/{study.id}/{record.id}"
        picture = client.ask("GET", f"{place}/curve.png")
        assert (picture.status, picture.getheader("Content-Type")) == (200, "image/png")
        assert picture.text[1:4] == "PNG"
        configuration = client.ask("GET", f"{place}/configuration.yaml")
        content = yaml.safe_load(configuration.text)
        assert content["base"] == record.config
        log = client.ask("GET", f"{place}/log.txt")
        assert log.text == "d t trial 0: begins\nTraceback\n  deep\n"
        assert "sandbox" in (log.getheader("Content-Security-Policy") or "")
        assert client.status("GET", f"{place}/other.txt") == 404
        assert client.status("GET", f"/artifacts/{study.id}/999999/log.txt") == 404
        upload = f"/api/artifacts/{study.id}/{record.id}"
        assert client.status("POST", upload, {"file": "data:,a"}) == 409


@pytest.mark.slow
def test_a_persons_note_stands_before_ours_and_only_theirs_is_stored(
    study: Study, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hpo.dashboard.pages.FRESH_SECONDS", 0.0)
    trial = study.records()[0].id
    note_of_study = f"/api/studies/{study.id}/note"
    note_of_trial = f"/api/studies/{study.id}/{trial}/note"
    with dashboard(database) as client:
        for path in (note_of_study, note_of_trial):
            assert client.status("PUT", path, {"version": 1, "body": HOSTILE}) == 204
            assert client.status("PUT", path, {"version": 1, "body": "late"}) == 409
        shown = client.json(f"/api/studies/{study.id}")
        for note in (shown["note"], shown["trials"][0]["note"]):
            assert note["version"] == 1
            assert note["body"].startswith(HOSTILE + OURS)
        body = shown["trials"][0]["note"]["body"].replace("bold", "bolder")
        assert client.status("PUT", note_of_trial, {"version": 2, "body": body}) == 204
    attributes = study.storage.get_study_system_attrs(study.id)
    assert attributes[f"dashboard:{trial}:note_str:0"] == HOSTILE.replace("bold", "bolder")


@pytest.mark.slow
def test_actions_that_would_harm_a_study_are_refused_with_a_reason(
    study: Study, database: Database
) -> None:
    running = study.records()[-1]
    of_study = f"/api/studies/{study.id}"
    tell_running = f"/api/trials/{running.id}/tell"
    tell_complete = f"/api/trials/{study.records()[0].id}/tell"
    attributes_of_running = f"/api/trials/{running.id}/user-attrs"
    attributes = {"user_attrs": {"fixed": "no configuration"}}
    with dashboard(database) as client:
        answer = client.ask("POST", f"{of_study}/rename", json.dumps({"study_name": "t"}), JSON)
        assert answer.status == 409
        assert "--name" in reason_of(answer)
        assert client.status("POST", tell_running, {"state": "Complete", "values": [0]}) == 409
        assert client.status("POST", tell_complete, {"state": "Fail"}) == 409
        assert client.status("POST", "/api/trials/999999/tell", {"state": "Fail"}) == 404
        assert client.status("POST", attributes_of_running, attributes) == 409
        assert study.records()[-1].state == "running"
        assert Study.open(database, "s").id == study.id
        assert client.json(of_study)["trials"]

        # A study without a running trial may be deleted.
        assert client.status("DELETE", of_study, {}) == 409
        assert client.status("POST", tell_running, {"state": "Fail"}) == 204
        assert client.status("DELETE", of_study, {}) == 204
        assert client.status("GET", of_study) == 404


def test_a_study_that_hpo_did_not_make_can_be_deleted(study: Study, database: Database) -> None:
    for name in ("plain", HOSTILE, ""):
        optuna.create_study(storage=open_storage(database), study_name=name).ask()
    with dashboard(database) as client:
        for listed in client.json("/api/studies")["study_summaries"]:
            if listed["study_id"] != study.id:
                place = f"/api/studies/{listed['study_id']}"
                assert client.json(place)["name"] == listed["study_name"]
                assert client.status("DELETE", place, {}) == 204
                assert client.status("DELETE", place, {}) == 404
        left = client.json("/api/studies")["study_summaries"]
        assert [listed["study_id"] for listed in left] == [study.id]


@pytest.mark.slow
def test_bad_requests_and_database_errors_are_answered_with_their_reason(
    study: Study, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hpo.dashboard.pages.FRESH_SECONDS", 0.0)
    note = f"/api/studies/{study.id}/note"
    with dashboard(database) as client:
        bodies: list[Any] = [[], {}, {"version": "1", "body": None}]
        for body in bodies:
            assert client.status("PUT", note, body) == 400
        assert client.status("PUT", "/api/studies/999999/note", {"version": 1, "body": "x"}) == 404
        deep = client.ask("PUT", note, 500_000 * "[", JSON)
        assert (deep.status, "nested too deeply" in reason_of(deep)) == (400, True)
        broken = client.ask("PUT", note, "{", JSON)
        assert broken.status == 400
        assert json.loads(broken.text) == {"reason": "Invalid JSON"}
        assert client.status("GET", f"/api/studies/{study.id}?after=x") == 400
        assert client.json(f"/api/studies/{study.id}?after=-1")["trials"]
        with study.engine.begin() as connection:
            connection.execute(text("ALTER TABLE hpo_trial RENAME TO elsewhere"))
        answer = client.ask("GET", f"/api/studies/{study.id}")
        assert answer.status == 503
        assert "hpo_trial" in reason_of(answer)


@pytest.mark.slow
def test_every_view_says_that_the_database_is_away(
    study: Study, database: Database, server: EmbeddedServer, caplog: pytest.LogCaptureFixture
) -> None:
    name = make_url(database.url).database
    with dashboard(database) as client:
        execute(server, f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        of_database = f"FROM pg_stat_activity WHERE datname = '{name}'"
        execute(server, f"SELECT pg_terminate_backend(pid) {of_database}")
        for path in (
            "/api/studies",
            f"/api/studies/{study.id}",
            f"/csv/{study.id}",
            f"/api/studies/{study.id}/param_importances",
        ):
            answer = client.ask("GET", path)
            assert answer.status == 503
            assert reason_of(answer).startswith("database:")
        execute(server, f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
        assert client.json("/api/studies")["study_summaries"]
        assert "Traceback" not in caplog.text


@pytest.mark.slow
def test_failing_a_trial_in_the_page_leaves_its_worker_alive(
    database: Database, tiny_space: Path, tiny_data: Path
) -> None:
    tiny_space.write_text(long(100_000, 20))
    spec = load_spec(tiny_space)
    study = Study.create_or_open(database, "tiny", spec, look_at_data(tiny_data, spec).facts)
    worker = start("worker", "--study", "tiny", "--device", "cpu")

    def trains(number: int) -> bool:
        running = [record for record in study.records() if record.state == "running"]
        return [record.number for record in running if record.step] == [number]

    try:
        until(lambda: trains(0))
        with dashboard(database) as client:
            tell = f"/api/trials/{study.records()[0].id}/tell"
            assert client.status("POST", tell, {"state": "Fail"}) == 204
            until(lambda: trains(1))
            assert worker.poll() is None
            failed = study.records()[0]
            assert (failed.state, failed.rule) == ("stopped", "by hand")
            assert "in the dashboard" in failed.reason
    finally:
        worker.terminate()
        out, err = worker.communicate(timeout=60)
    assert worker.returncode == 0, err
    assert "Traceback" not in out + err


# ---- who may come in


def test_without_a_login_only_this_machines_names_are_answered(
    study: Study, database: Database
) -> None:
    with dashboard(database) as client:
        assert client.status("GET", "/api/studies") == 200
        # --host may be 127.0.0.2.
        for host in ("localhost:9", "127.0.0.2:8080"):
            assert client.status("GET", "/api/studies", headers={"Host": host}) == 200
        for host in (
            "rebound.example",
            "rebound.example:8080",
            "",
            "[",
            "127.0.0.1.example",
            "evil\\@localhost",
        ):
            headers = {"Host": host, "X-Forwarded-Host": "localhost"}
            assert client.status("GET", "/api/studies", headers=headers) == 403
        framed = client.ask("GET", "/dashboard")
        assert framed.getheader("X-Frame-Options") == "DENY"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 204),
        ({"Sec-Fetch-Site": "same-origin"}, 204),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        # Another port is another origin.
        ({"Origin": "http://127.0.0.1"}, 403),
        ({"Origin": "null"}, 403),
        # What a form of another page could send.
        ({"Content-Type": "text/plain"}, 415),
    ],
)
def test_changes_must_come_from_our_pages(
    study: Study, database: Database, headers: dict[str, str], status: int
) -> None:
    note = f"/api/studies/{study.id}/note"
    with dashboard(database) as client:
        assert client.status("PUT", note, {"version": 1, "body": "x"}, headers) == status
        origin = {"Origin": f"http://127.0.0.1:{client.port}"}
        version = 2 if status == 204 else 1
        assert client.status("PUT", note, {"version": version, "body": "x"}, origin) == 204


def test_read_only_refuses_every_change(study: Study, database: Database) -> None:
    running = study.records()[-1]
    changes = [
        ("PUT", f"/api/studies/{study.id}/note"),
        ("DELETE", f"/api/studies/{study.id}"),
        ("POST", "/api/studies"),
        ("POST", f"/api/trials/{running.id}/tell"),
        ("PATCH", "/"),
    ]
    with dashboard(database, PASSWORD, read_only=True) as client:
        assert client.log_in(PASSWORD).status == 303
        for method, path in changes:
            answer = client.ask(method, path, "{}", JSON)
            assert answer.status == 403
            assert "--read-only" in answer.text
        assert client.json(f"/api/studies/{study.id}")["trials"][-1]["state"] == "Running"


@pytest.mark.slow
@pytest.mark.parametrize("base", ["", "/lab/hpo"])
def test_the_login_guards_every_path(study: Study, database: Database, base: str) -> None:
    of_study = f"/dashboard/studies/{study.id}"
    with dashboard(database, PASSWORD, base=base) as client:
        page = client.ask("GET", of_study)
        assert page.status == 303
        assert page.getheader("Location") == f"{base}/login?next={of_study}"
        for path in (
            "/api/studies",
            "/static/bundle.js",
            "//api/studies",
            "/login/../api/studies",
            f"/artifacts/{study.id}/1/log.txt",
            "/csv/1",
        ):
            assert client.status("GET", path) == 401
            assert client.status("DELETE", path) == 401
        assert client.log_in("wrong").status == 403
        assert not client.cookie
        assert client.status("GET", "/api/studies") == 401

        entered = client.log_in(PASSWORD, where=of_study)
        assert entered.status == 303
        assert entered.getheader("Location") == base + of_study
        cookie = attributes_of_cookie(entered)
        assert {"HttpOnly", "SameSite=Strict", f"Path={base or '/'}"} <= cookie
        assert "Secure" not in cookie
        assert client.status("GET", "/api/studies") == 200
        assert client.status("GET", "/api/studies", headers={"Host": "lab.example"}) == 200
        client.cookie += "x"
        assert client.status("GET", "/api/studies") == 401

        assert client.log_in(PASSWORD, {"Sec-Fetch-Site": "cross-site"}).status == 403
        for place in (
            "//evil.example",
            "https://evil.example",
            "/\\evil.example",
            "/dashboard\r\nX: y",
        ):
            location = client.log_in(PASSWORD, where=place).getheader("Location") or ""
            assert location.startswith(f"{base}/dashboard")
        assert "<script>" not in client.ask("GET", '/login?next="><script>').text


def attributes_of_cookie(answer: Answer) -> set[str]:
    return set((answer.getheader("Set-Cookie") or "").split("; "))


def test_requests_that_no_browser_sends_are_refused_before_the_login(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    with dashboard(database, PASSWORD) as client:
        for kind in ("multipart/form-data", "multipart/form-data; boundary=x", "text/plain"):
            assert client.ask("POST", "/login", "password=x", {"Content-Type": kind}).status == 400
        connection = HTTPConnection("127.0.0.1", client.port, timeout=60)
        connection.putrequest("POST", "/login")
        connection.putheader("Content-Length", str(10**9))
        connection.endheaders()
        # The answer does not wait for the body.
        assert connection.getresponse().status == 413
        connection.close()
        plain = HTTPConnection("127.0.0.1", client.port, timeout=60)
        plain.putrequest("GET", "/favicon.ico", skip_accept_encoding=True)
        plain.endheaders()
        assert plain.getresponse().status == 200
        plain.close()
        # waitress.queue warns of a busy machine.
        assert {record.name for record in caplog.records} <= {"waitress.queue"}


def test_after_ten_wrong_passwords_an_address_must_wait(database: Database) -> None:
    with dashboard(database, PASSWORD, proxy="127.0.0.1") as client:
        for number in range(WRONG):
            assert client.log_in(f"wrong {number}").status == 403
        late = client.log_in(PASSWORD)
        assert late.status == 429
        assert 0 < int(late.getheader("Retry-After") or 0) <= WAIT_SECONDS + 1
        assert "Wait 5 min" in late.text
        assert client.log_in(PASSWORD, {"X-Forwarded-For": "10.0.0.9"}).status == 303


def test_wrong_passwords_from_elsewhere_lock_nobody_else_out(database: Database) -> None:
    with dashboard(database, PASSWORD, proxy="127.0.0.1") as client:
        for network in range(20):
            # As a proxy that listens on IPv6 writes an address of IPv4.
            elsewhere = {"X-Forwarded-For": f"::ffff:203.0.113.{network}"}
            for number in range(WRONG):
                assert client.log_in(f"wrong {number}", elsewhere).status == 403
            assert client.log_in(PASSWORD, elsewhere).status == 429
        assert client.log_in(PASSWORD, {"X-Forwarded-For": "::ffff:192.0.2.1"}).status == 303
        assert client.log_in(PASSWORD).status == 303


@pytest.mark.parametrize("proxy", [None, "10.1.2.3"])
def test_nobody_but_the_named_proxy_says_where_a_browser_is(
    database: Database, proxy: str | None
) -> None:
    with dashboard(database, PASSWORD, proxy=proxy) as client:
        said = {"X-Forwarded-Proto": "https", "Forwarded": "for=10.1.2.3;proto=https"}
        assert "Secure" not in attributes_of_cookie(client.log_in(PASSWORD, said))
        for number in range(WRONG):
            elsewhere = {"X-Forwarded-For": f"10.1.2.{number}", "X-Real-IP": f"10.1.2.{number}"}
            assert client.log_in("wrong", elsewhere).status == 403
        assert client.log_in(PASSWORD, {"X-Forwarded-For": "10.9.9.9"}).status == 429


def test_a_named_proxy_is_believed_and_what_the_browser_forged_is_not(database: Database) -> None:
    with dashboard(database, PASSWORD, proxy="127.0.0.1") as client:
        entered = client.log_in(PASSWORD, {"X-Forwarded-Proto": "https"})
        assert "Secure" in attributes_of_cookie(entered)
        for number in range(WRONG):
            # A proxy adds the address that it saw to what the browser sent.
            forged = {"X-Forwarded-For": f"10.0.0.{number}, 203.0.113.1"}
            assert client.log_in("wrong", forged).status == 403
        assert client.log_in(PASSWORD, {"X-Forwarded-For": "203.0.113.1"}).status == 429
        assert client.log_in(PASSWORD, {"X-Forwarded-For": "10.0.0.1"}).status == 303


def test_wrong_passwords_are_forgotten_in_time_and_kept_in_bounded_memory() -> None:
    now = [0.0]
    attempts = Attempts(lambda: now[0])
    for _ in range(WRONG):
        attempts.wrong("2001:db8::1")
    # The same network.
    assert attempts.wait("2001:db8::2") == WAIT_SECONDS
    assert attempts.wait("2001:db8:0:1::1") == 0
    assert attempts.wait("10.0.0.1") == 0
    now[0] = WAIT_SECONDS
    assert attempts.wait("2001:db8::1") == 0
    for number in range(ADDRESSES + 100):
        attempts.wrong(f"10.{number // 65536}.{number // 256 % 256}.{number % 256}")
    assert len(attempts) == ADDRESSES
    assert attempts.wait("192.0.2.1") == 0
    for odd in ("", "fe80::1%eth0", "localhost", "unknown"):
        for _ in range(WRONG):
            attempts.wrong(odd)
        assert attempts.wait(odd) == WAIT_SECONDS


def test_sessions_end_in_time_and_are_kept_in_bounded_memory() -> None:
    now = [0.0]
    sessions = Sessions(lambda: now[0])
    keys = [sessions.begin() for _ in range(SESSIONS + 1)]
    assert [sessions.has(key) for key in keys] == [False] + SESSIONS * [True]
    now[0] = SESSION_SECONDS
    assert not sessions.has(keys[-1])
    key = sessions.begin()
    sessions.end(key)
    sessions.end(key)
    for odd in (key, "", "in.abc", "\udcff"):
        assert not sessions.has(odd)


@pytest.mark.parametrize("base", ["", "/lab/hpo"])
def test_a_logout_ends_the_session_also_for_who_kept_its_cookie(
    database: Database, base: str
) -> None:
    with dashboard(database, PASSWORD, read_only=True, base=base) as client:
        client.log_in(PASSWORD)
        other = client.cookie
        client.log_in(PASSWORD)
        mine = client.cookie
        page = client.ask("GET", "/dashboard/studies/1")
        assert f'<form method="post" action="{base}/logout"' in page.text
        assert page.getheader("Cache-Control") == "no-store"
        # Neither a link nor another page can end a session.
        assert client.status("GET", "/logout") == 405
        assert client.ask("POST", "/logout", "", {"Sec-Fetch-Site": "cross-site"}).status == 403
        assert client.status("GET", "/api/studies") == 200

        left = client.ask("POST", "/logout", "", FORM)
        assert (left.status, left.getheader("Location")) == (303, f"{base}/login")
        assert {"Max-Age=0", f"Path={base or '/'}"} <= attributes_of_cookie(left)
        client.cookie = mine
        assert client.status("GET", "/api/studies") == 401
        assert client.status("POST", "/logout") == 401
        client.cookie = other
        assert client.status("GET", "/api/studies") == 200
    with dashboard(database, base=base) as client:
        assert "Log out" not in client.ask("GET", "/dashboard").text
        assert client.status("POST", "/logout") == 404


@pytest.mark.parametrize("base", ["", "/lab/hpo"])
def test_the_page_and_its_script_are_sent_whole_whatever_is_asked_for(
    database: Database, base: str
) -> None:
    with dashboard(database, base=base) as client:
        for path in ("/dashboard", "/static/bundle.js"):
            whole = client.ask("GET", path)
            assert whole.status == 200
            tag = whole.getheader("ETag") or '"x"'
            for headers in ({"Range": "bytes=0-9"}, {"If-None-Match": tag}):
                assert client.ask("GET", path, headers=headers).status in (200, 206, 304)
            head = client.ask("HEAD", path)
            assert (head.status, head.text) == (200, "")


@pytest.mark.parametrize("sent", [b"GET /api/studies HTTP/1.1\r\nX: ", b"", LONG_BODY])
def test_200_requests_that_never_end_keep_nobody_out(database: Database, sent: bytes) -> None:
    with dashboard(database, PASSWORD) as client, ExitStack() as stack:
        hanging = []
        for _ in range(200):
            connection = socket.create_connection(("127.0.0.1", client.port))
            stack.callback(connection.close)
            connection.sendall(sent)
            hanging.append(connection)
        for _ in range(3):
            for connection in hanging:
                # One that had to make room is closed.
                with suppress(OSError):
                    connection.sendall(b"x")
            assert client.log_in(PASSWORD).status == 303
            assert client.status("GET", "/api/studies") == 200


def test_of_too_many_connections_the_one_that_waits_longest_is_closed(database: Database) -> None:
    with dashboard(database) as client, ExitStack() as stack:

        def connect() -> socket.socket:
            connection = socket.create_connection(("127.0.0.1", client.port), timeout=60)
            stack.callback(connection.close)
            return connection

        kept = HTTPConnection("127.0.0.1", client.port, timeout=60)
        stack.callback(kept.close)

        def ask() -> int:
            kept.request("GET", "/favicon.ico")
            answer = kept.getresponse()
            answer.read()
            return answer.status

        assert ask() == 200
        oldest = connect()
        connections = [connect() for _ in range(MOST_CONNECTIONS - 2)]
        # Now all are taken. This one has asked more recently than the others.
        assert ask() == 200
        connections.append(connect())
        assert oldest.recv(1) == b""
        assert ask() == 200
        connections[-1].sendall(b"GET /favicon.ico HTTP/1.0\r\nHost: localhost\r\n\r\n")
        assert connections[-1].recv(12) == b"HTTP/1.0 200"


def test_a_dashboard_that_cannot_be_served_is_one_line(
    study: Study, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(
        kind: type[HpoError],
        message: str,
        name: str | None = None,
        host: str = "127.0.0.1",
        base: str = "",
    ) -> None:
        with pytest.raises(kind, match=message):
            serve(database, Options(name, host, 0, base), print)

    with socket.socket() as other_server:
        other_server.bind(("127.0.0.1", 0))
        other_server.listen()
        port = other_server.getsockname()[1]
        done = run_hpo("dashboard", "--port", str(port))
        one_line(done, 2, f"--port {port}: Address already in use", "--port 0")
    Study.create_or_open(database, "winter", study.spec, study.data)
    refused(StudyError, "Did you mean winter\\? There are: s, winter", "wintre")
    refused(StudyError, "study name .*Valid: letters", 'it\'s "quoted"')
    # pytest's output is no terminal, so no password is made.
    refused(CallerError, "Set HPO_DASHBOARD_PASSWORD", host="0.0.0.0")
    refused(CallerError, "--base-path /a b: not a path", base="/a b")
    for proxy in ("*", "nginx", "10.0.0.0/8", "", "127.0.0.1:80"):
        options = Options(proxy=proxy, port=0)
        with pytest.raises(CallerError, match="not an IP address"):
            serve(database, options, print)
    monkeypatch.setenv("HPO_DASHBOARD_PASSWORD", "short")
    refused(CallerError, "HPO_DASHBOARD_PASSWORD: 5 characters. Valid: 8 or more")
    monkeypatch.setenv("HPO_DASHBOARD_PASSWORD", "long enough")
    refused(CallerError, "--host nowhere.invalid: not an address", host="nowhere.invalid")


# ---- in a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("no chromium and chromedriver on PATH (Debian: chromium chromium-driver)")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--window-size=1400,1600",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chrome = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield chrome
    chrome.quit()


@pytest.mark.slow
@pytest.mark.parametrize("base", ["", "/lab/hpo"])
def test_the_pages_work_in_a_browser(
    study: Study, database: Database, browser: Any, base: str
) -> None:
    """Login, list, plots, a trial's note and files, logout. Notes, logs and names are text."""

    def see(script: str) -> Any:
        return browser.execute_script(f"return {script}")

    def words() -> str:
        return str(see("document.body.innerText"))

    def log_in(password: str) -> None:
        browser.find_element("id", "password").send_keys(password + "\n")

    def is_text() -> bool:
        return see("document.title") != "hacked" and not see("document.querySelector('img[src=x]')")

    trial = study.records()[0].id
    note = json.dumps({"version": 1, "body": HOSTILE})
    optuna.create_study(storage=open_storage(database), study_name=HOSTILE)
    logs = study_folder(study) / "logs"
    logs.mkdir(parents=True)
    (logs / "trial-0.log").write_text(f"d t trial 0: begins\n{HOSTILE}\n")
    with dashboard(database, PASSWORD, base=base) as client:
        pages = f"http://127.0.0.1:{client.port}{base}/dashboard"
        client.log_in(PASSWORD)
        assert client.ask("PUT", f"/api/studies/{study.id}/{trial}/note", note, JSON).status == 204
        browser.get(pages)
        log_in("wrong")
        until(lambda: "Wrong password" in words())
        log_in(PASSWORD)
        until(lambda: f"{study.id}. s\n" in words(), 60)
        until(lambda: "<script>" in words())
        assert is_text()

        browser.get(f"{pages}/studies/{study.id}")
        for plot in (
            "plot-history",
            "user-defined-plot:hpo-curves",
            "user-defined-plot:hpo-map",
            "user-defined-plot:hpo-starts",
        ):
            traces = "querySelectorAll('.scatterlayer .trace').length"
            until(partial(see, f"document.getElementById('{plot}')?.{traces}"), 60)
        assert "Best Trial (number=0)" in words()

        browser.get(f"{pages}/studies/{study.id}/trials?numbers=0")
        is_curve = "i => i.src.endsWith('curve.png') && i.naturalWidth > 0"
        until(lambda: see(f"[...document.images].some({is_curve})"), 60)
        for part in ("configuration.yaml", "log.txt", "PER 30.00 % at the end", "<script>"):
            assert part in words()
        assert is_text()
        lines = browser.get_log("browser")
        errors = [line["message"] for line in lines if line["level"] == "SEVERE"]
        assert [error for error in errors if "/login" not in error] == []
        browser.get(f"{pages.removesuffix('/dashboard')}/artifacts/{study.id}/{trial}/log.txt")
        assert "<script>" in words()
        assert is_text()

        browser.get(pages)
        browser.find_element("css selector", "form[action$='/logout'] button").click()
        until(lambda: "Password of this dashboard" in words())
        browser.back()
        until(lambda: "Password of this dashboard" in words())
        browser.get("about:blank")
