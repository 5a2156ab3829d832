"""What stands before the dashboard: a WSGI layer that lets a request through or answers it itself.

optuna-dashboard has no login, answers to any host name and believes any page. With a password, nothing but the login page
is served without a session. Without one (on this machine only), requests must name this machine as their host, or a page
of anybody could read us through a name of its own that points here. What changes something must come from our own pages.
"""

import hashlib
import hmac
import json
import secrets
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from html import escape
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from bottle import BaseRequest
from itsdangerous import BadSignature, TimestampSigner

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

SESSION_SECONDS = 12 * 3600
WRONG = 10  # passwords of one address, or network of IPv6, within WAIT_SECONDS
WRONG_OF_ALL = 10 * WRONG  # of everybody: addresses can be had in numbers
WAIT_SECONDS = 300.0
ADDRESSES = 1000  # that are remembered
FORM_BYTES = 4096
FORM = "application/x-www-form-urlencoded"
READING = ("GET", "HEAD")
HEADERS = [
    ("X-Frame-Options", "DENY"),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "same-origin"),
]
PAGE = """<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>hpo dashboard</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>
body {{ font: 16px system-ui, sans-serif; display: grid; place-content: center; min-height: 90vh; }}
form {{ display: grid; gap: 0.8em; width: 18em; }} input, button {{ font: inherit; padding: 0.4em; }} p {{ color: #b00020; margin: 0; }}
</style></head><body><form method="post" action="{action}"><label for="password">Password of this dashboard</label>
<input id="password" name="password" type="password" autocomplete="current-password" autofocus required>
<input name="next" type="hidden" value="{next}"><button>Log in</button><p role="alert">{message}</p></form></body></html>"""
Answer = tuple[str, list[tuple[str, str]], bytes]


class Attempts:
    """Wrong passwords, by address; those of the last WAIT_SECONDS, in bounded memory."""

    def __init__(self, now: Callable[[], float] = time.monotonic):
        self._now = now
        self._by: OrderedDict[str, deque[float]] = OrderedDict()
        self._all: deque[float] = deque(maxlen=WRONG_OF_ALL)

    def wait(self, address: str) -> float:
        """Seconds until this address may try again; 0: now."""
        mine = self._by.get(_network(address), deque())
        full = [
            times[0]
            for times, limit in ((mine, WRONG), (self._all, WRONG_OF_ALL))
            if len(times) == limit
        ]
        return max([0.0, *(first + WAIT_SECONDS - self._now() for first in full)])

    def wrong(self, address: str) -> None:
        mine = self._by.setdefault(_network(address), deque(maxlen=WRONG))
        self._by.move_to_end(_network(address))
        for times in (mine, self._all):
            times.append(self._now())
        if len(self._by) > ADDRESSES:
            self._by.popitem(last=False)


def _network(address: str) -> str:
    """The address; of IPv6 its /64, which one machine has all of."""
    try:
        return (
            str(ip_network(f"{address}/64", strict=False))
            if ip_address(address).version == 6
            else address
        )
    except ValueError:
        return address


@dataclass
class Guard:
    """password: None lets everybody in who names this machine as the host. base: as "/x", or empty."""

    app: "WSGIApplication"
    password: str | None
    read_only: bool = False
    base: str = ""

    def __post_init__(self) -> None:
        self.attempts = Attempts()
        self._signer = TimestampSigner(secrets.token_bytes(32))  # sessions end with the process

    def __call__(
        self, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> Iterable[bytes]:
        def start(status: str, headers: list[tuple[str, str]], *more: Any) -> Any:
            return start_response(status, [*headers, *HEADERS], *more)

        environ.setdefault(
            "HTTP_ACCEPT_ENCODING", ""
        )  # optuna-dashboard takes for granted that it is there
        request = BaseRequest(environ)
        answer = self._answer(request)
        if answer is None:
            return self.app(environ, start)
        status, headers, body = answer
        start(status, [*headers, ("Content-Length", str(len(body))), ("Cache-Control", "no-store")])
        return [body] if request.method != "HEAD" else []

    def _answer(self, request: BaseRequest) -> Answer | None:
        """None: let it through."""
        if self.password is None and not is_loopback(_host_of(request)):
            return _refusal("403 Forbidden", "this dashboard without a login answers to localhost and 127.0.0.1 only. For other names "
                                             "start it with HPO_DASHBOARD_PASSWORD set")  # fmt: skip
        if request.method not in READING and not _from_our_pages(request):
            return _refusal("403 Forbidden", "this did not come from a page of this dashboard")
        if self.password is not None and request.path == "/login":
            return self._login(request, self.password)
        if (
            self.password is not None
            and request.path != "/favicon.ico"
            and not self._has_session(request)
        ):
            if request.method in READING and (
                request.path == "/" or request.path.startswith("/dashboard")
            ):
                return (
                    "303 See Other",
                    [("Location", f"{self.base}/login?next={quote(request.path)}")],
                    b"",
                )
            return _refusal(
                "401 Unauthorized", "not logged in, or not any more: load the page again"
            )
        if request.method not in READING and self.read_only:
            return _refusal("403 Forbidden", "this dashboard was started with --read-only")
        if request.method not in READING and _kind_of(request) != "application/json":
            return _refusal("415 Unsupported Media Type", "send JSON")
        return None

    def _login(self, request: BaseRequest, password: str) -> Answer:
        if request.method in READING:
            return self._form("200 OK", request.query.getunicode("next", ""), "")
        if (
            request.method != "POST"
            or request.content_length > FORM_BYTES
            or _kind_of(request) != FORM
        ):
            return _refusal("400 Bad Request", "send the form")
        address = request.environ.get("REMOTE_ADDR", "")
        if (wait := self.attempts.wait(address)) > 0:
            status, headers, body = self._form(
                "429 Too Many Requests",
                "",
                f"Too many wrong passwords. Wait {wait / 60:.0f} minutes.",
            )
            return status, [*headers, ("Retry-After", str(int(wait) + 1))], body
        where = request.forms.getunicode("next", "")
        if not _equal(request.forms.getunicode("password", ""), password):
            self.attempts.wrong(address)
            return self._form("403 Forbidden", where, "Wrong password.")
        inside = where if where.startswith("/dashboard") else "/dashboard"
        secure = "; Secure" if request.environ["wsgi.url_scheme"] == "https" else ""
        session = f"{_cookie(request)}={self._signer.sign('in').decode()}; Path={self.base or '/'}; Max-Age={SESSION_SECONDS}"
        return (
            "303 See Other",
            [
                ("Location", self.base + quote(inside)),
                ("Set-Cookie", f"{session}; HttpOnly; SameSite=Strict{secure}"),
            ],
            b"",
        )

    def _has_session(self, request: BaseRequest) -> bool:
        try:
            self._signer.unsign(request.get_cookie(_cookie(request), ""), max_age=SESSION_SECONDS)
        except BadSignature:
            return False
        return True

    def _form(self, status: str, where: str, message: str) -> Answer:
        body = PAGE.format(action=f"{self.base}/login", next=escape(where), message=escape(message))
        policy = "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
        return (
            status,
            [("Content-Type", "text/html; charset=utf-8"), ("Content-Security-Policy", policy)],
            body.encode(),
        )


def _refusal(status: str, reason: str) -> Answer:
    """As optuna-dashboard's pages read it."""
    return status, [("Content-Type", "application/json")], json.dumps({"reason": reason}).encode()


def _host_of(request: BaseRequest) -> str:
    try:
        return urlsplit(f"//{request.environ.get('HTTP_HOST', '')}").hostname or ""
    except ValueError:
        return ""


def is_loopback(host: str) -> bool:
    """Whether it is this machine and nobody can have it name another."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _kind_of(request: BaseRequest) -> str:
    return str(request.content_type).partition(";")[0].strip().lower()


def _from_our_pages(request: BaseRequest) -> bool:
    """What browsers say of the page that asks; the first not on plain http to other machines. No browser says neither."""
    site, origin = request.get_header("Sec-Fetch-Site"), request.get_header("Origin")
    if site is not None:
        return bool(site == "same-origin")
    return origin is None or urlsplit(origin).netloc == request.environ.get("HTTP_HOST")


def _cookie(request: BaseRequest) -> str:
    """Browsers give one host's cookies to all its ports."""
    return f"hpo_session_{request.environ.get('SERVER_PORT', '')}"


def _equal(given: str, wanted: str) -> bool:
    return hmac.compare_digest(
        *(hashlib.sha256(text.encode(errors="replace")).digest() for text in (given, wanted))
    )
