"""A dashboard that runs, and a client that keeps its cookie."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPResponse
from typing import Any
from urllib.parse import urlencode

from waitress.wasyncore import close_all

from hpo.dashboard.app import build_app
from hpo.dashboard.guard import Guard
from hpo.dashboard.pages import Pages
from hpo.dashboard.server import bind
from hpo.store.database import Database

JSON = {"Content-Type": "application/json"}


class Client:
    """Requests to a dashboard; keeps the cookie."""

    def __init__(self, port: int, base: str = ""):
        self.port, self.base, self.cookie = port, base, ""

    def ask(
        self, method: str, path: str, body: str | None = None, headers: dict[str, str] | None = None
    ) -> HTTPResponse:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        cookie = {"Cookie": self.cookie} if self.cookie else {}
        connection.request(method, self.base + path, body, {**cookie, **(headers or {})})
        answer = connection.getresponse()
        answer.text = answer.read().decode(errors="replace")  # type: ignore[attr-defined]
        return answer

    def status(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> int:
        return self.ask(
            method, path, None if body is None else json.dumps(body), {**JSON, **(headers or {})}
        ).status

    def json(self, path: str) -> Any:
        answer = self.ask("GET", path)
        assert answer.status == 200, answer.text  # type: ignore[attr-defined]
        return json.loads(answer.text)  # type: ignore[attr-defined]

    def log_in(
        self, password: str, headers: dict[str, str] | None = None, where: str = "/dashboard"
    ) -> HTTPResponse:
        form = {"Content-Type": "application/x-www-form-urlencoded", **(headers or {})}
        answer = self.ask("POST", "/login", urlencode({"password": password, "next": where}), form)
        self.cookie = (answer.getheader("Set-Cookie") or "").partition(";")[0]
        return answer


@contextmanager
def dashboard(
    database: Database, password: str | None = None, read_only: bool = False, base: str = ""
) -> Iterator[Client]:
    guard = Guard(build_app(Pages(database, base)), password, read_only, base)
    server = bind(guard, "127.0.0.1", 0, base)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield Client(server.effective_port, base)
    finally:
        server.task_dispatcher.shutdown()  # its threads pull the trigger, too
        server.trigger.pull_trigger(
            lambda: close_all(server._map, ignore_all=True)
        )  # in its thread; a browser keeps connections open
        thread.join(20)
        assert not thread.is_alive()
