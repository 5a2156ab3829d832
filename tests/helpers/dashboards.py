"""A running dashboard, and a client that keeps its cookie."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.message import Message
from http.client import HTTPConnection
from typing import Any
from urllib.parse import urlencode

from waitress.wasyncore import close_all

from hpo.dashboard.app import build_app
from hpo.dashboard.guard import Guard
from hpo.dashboard.pages import Pages
from hpo.dashboard.server import bind
from hpo.store.database import Database

JSON = {"Content-Type": "application/json"}
FORM = {"Content-Type": "application/x-www-form-urlencoded"}


@dataclass(frozen=True)
class Answer:
    """An answer that has been read whole."""

    status: int
    text: str
    headers: Message

    def getheader(self, name: str) -> str | None:
        return self.headers.get(name)


class Client:
    """Sends requests to a dashboard and keeps the cookie."""

    def __init__(self, port: int, base: str = ""):
        self.port = port
        self.base = base
        self.cookie = ""

    def ask(
        self, method: str, path: str, body: str | None = None, headers: dict[str, str] | None = None
    ) -> Answer:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        cookie = {"Cookie": self.cookie} if self.cookie else {}
        connection.request(method, self.base + path, body, {**cookie, **(headers or {})})
        response = connection.getresponse()
        text = response.read().decode(errors="replace")
        return Answer(response.status, text, response.headers)

    def status(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> int:
        text = None if body is None else json.dumps(body)
        return self.ask(method, path, text, {**JSON, **(headers or {})}).status

    def json(self, path: str) -> Any:
        answer = self.ask("GET", path)
        assert answer.status == 200, answer.text
        return json.loads(answer.text)

    def log_in(
        self, password: str, headers: dict[str, str] | None = None, where: str = "/dashboard"
    ) -> Answer:
        fields = urlencode({"password": password, "next": where})
        answer = self.ask("POST", "/login", fields, {**FORM, **(headers or {})})
        self.cookie = (answer.getheader("Set-Cookie") or "").partition(";")[0]
        return answer


@contextmanager
def dashboard(
    database: Database,
    password: str | None = None,
    read_only: bool = False,
    base: str = "",
    proxy: str | None = None,
) -> Iterator[Client]:
    app = build_app(Pages(database, base), with_logout=password is not None)
    guard = Guard(app, password, read_only, base)
    server = bind(guard, "127.0.0.1", 0, proxy)
    thread = threading.Thread(target=server.run)
    thread.start()

    def close_connections() -> None:
        # waitress has no public list of its sockets. A browser keeps connections open.
        close_all(server._map, ignore_all=True)  # noqa: SLF001

    try:
        yield Client(server.effective_port, base)
    finally:
        # The dispatcher's threads pull the trigger too, so they end first.
        server.task_dispatcher.shutdown()
        # The trigger runs the function in the server's own thread.
        server.trigger.pull_trigger(close_connections)
        thread.join(20)
        assert not thread.is_alive()
