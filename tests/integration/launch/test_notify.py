"""The webhook of hpo launch: a real server takes messages, refuses them or never answers."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from helpers.commands import launch
from helpers.studies import claim, completed

from hpo.errors import CallerError, StudyError
from hpo.launch import notify
from hpo.launch.notify import check_url, notifying
from hpo.space.spec import StudySpec
from hpo.store.database import Database
from hpo.study.study import Study
from hpo.study.trial import Cause, Failed

Make = Callable[..., Study]


class Hook:
    """Takes messages; `mood` is what it does with them."""

    def __init__(self) -> None:
        self.mood = "takes"
        self.messages: list[dict[str, Any]] = []
        # Where a redirect leads, and whether somebody went there.
        self.elsewhere = "/login"
        self.followed = False
        self.let_go = threading.Event()
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                hook.messages.append(body)
                if hook.mood == "hangs":
                    hook.let_go.wait(60)
                    return
                if hook.mood == "talks nonsense":
                    self.wfile.write(b"no HTTP\r\n\r\n")
                    return
                if hook.mood.isdigit():
                    self.send_response(int(hook.mood))
                    self.send_header("Location", hook.elsewhere)
                else:
                    self.send_response(200)
                self.end_headers()

            def do_GET(self) -> None:
                hook.followed = True
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/services/secret-token"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def hook() -> Iterator[Hook]:
    hook = Hook()
    yield hook
    hook.let_go.set()
    hook.server.shutdown()
    hook.server.server_close()


@pytest.fixture
def study(make_study: Make, tiny_spec: StudySpec) -> Study:
    return make_study(tiny_spec)


@pytest.mark.slow
def test_new_bests_trouble_and_the_end_are_sent(study: Study, hook: Hook) -> None:
    warnings: list[str] = []
    study.finish(claim(study), completed(0.5))
    with notifying(hook.url, study, warnings.append) as look:
        # What was known before is no news.
        look(study.records())
        study.finish(claim(study), completed(0.4))
        look(study.records())
        look(study.records())
        study.finish(claim(study), Failed("no such channel", Cause.BAD_CONFIGURATION))
        study.finish(claim(study), completed(0.45))
        look(study.records())
        look(study.records())
        study.finish(claim(study), completed(0.3))
        look(study.records())
        look(study.records())
    assert warnings == []
    *sent, end = [
        (message["event"], message.get("per"), message["text"]) for message in hook.messages
    ]
    assert sent == [
        ("best", 0.4, "hpo s: new best PER 40.00 % (trial 1)"),
        ("trouble", None, "hpo s: trial 2 failed: no such channel"),
        ("best", 0.3, "hpo s: new best PER 30.00 % (trial 4)"),
    ]
    event, _, text = end
    assert event == "end"
    assert "best PER 30.00 %, the budget of 4 trials is spent" in text
    assert hook.messages[-1]["trials"] == {"complete": 4, "failed": 1}


def test_an_error_that_ends_the_launch_is_trouble(study: Study, hook: Hook) -> None:
    with pytest.raises(StudyError), notifying(hook.url, study, print):
        raise StudyError("the disk is full")
    (message,) = hook.messages
    assert message["event"] == "trouble"
    assert message["text"] == "hpo s: the launch ended: the disk is full"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mood", "problem"),
    [
        ("hangs", "did not take the message (TimeoutError)"),
        ("500", "answered 500"),
        ("talks nonsense", "did not take the message (BadStatusLine)"),
        ("is away", "did not take the message (ConnectionRefusedError)"),
    ],
)
def test_a_bad_server_holds_nothing_up(
    study: Study, hook: Hook, mood: str, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notify, "SEND_SECONDS", 0.5)
    warnings: list[str] = []
    hook.mood = mood
    if mood == "is away":
        hook.server.shutdown()
        hook.server.server_close()
    with notifying(hook.url, study, warnings.append) as look:
        look([])
        study.finish(claim(study), completed(0.5))
        records = study.records()
        begin = time.monotonic()
        look(records)
        assert time.monotonic() - begin < notify.SEND_SECONDS
    assert warnings == [f"--notify: 127.0.0.1 {problem}; the study continues"]
    assert "secret-token" not in warnings[0]


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("elsewhere", ["/login", "file:///etc/passwd", ""])
def test_a_redirect_is_said_and_not_followed(hook: Hook, code: int, elsewhere: str) -> None:
    hook.mood = str(code)
    hook.elsewhere = elsewhere
    problem = notify.send(hook.url, {"text": "x"})
    assert problem
    assert problem.startswith(f"answered {code}, a redirect, which is not followed")
    assert not hook.followed
    assert len(hook.messages) == 1


def test_messages_that_are_not_sent_in_time_are_said(
    study: Study, hook: Hook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notify, "LAST_SECONDS", 0.1)
    warnings: list[str] = []
    hook.mood = "hangs"
    with notifying(hook.url, study, warnings.append):
        pass
    assert warnings == ["--notify: 127.0.0.1 did not answer; the last messages are not sent"]


@pytest.mark.slow
def test_a_launch_sends_its_end(
    database: Database, tiny_space: Path, tiny_data: Path, hook: Hook
) -> None:
    options = ("--workers", "1", "--trials", "1", "--notify", hook.url)
    done = launch(tiny_space, tiny_data, *options)
    assert (done.returncode, done.stderr) == (0, "")
    assert hook.messages[-1]["event"] == "end"


def test_a_bad_url_is_refused_and_not_shown() -> None:
    for url in (
        "hooks.slack.com/services/secret-token",
        "ftp://host/secret-token",
        "http://",
        "http://host:99999/",
        "https://a b",
        "https://host/secret-token\n",
        "https://user:secret-token@host/",
    ):
        with pytest.raises(CallerError, match="--notify: not a URL") as caught:
            check_url(url)
        assert "secret-token" not in str(caught.value)
