"""What stands before the dashboard: a WSGI layer that lets a request through or answers it itself.

optuna-dashboard has no login and checks neither Host nor Origin. With a password, only the login
page is served without a session. Without a password the dashboard serves this machine alone, and a
request must name this machine as its host; otherwise any web page could read the dashboard through
a host name that it points here (DNS rebinding). Requests that change something must come from the
dashboard's own pages.
"""

import hashlib
import hmac
import json
import math
import re
import secrets
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from html import escape
from ipaddress import IPv6Address, ip_address, ip_network
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from bottle import BaseRequest

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

SESSION_SECONDS = 12 * 3600
# The oldest session ends when there are more.
SESSIONS = 1000
# Wrong passwords that are allowed within WAIT_SECONDS from one address (of IPv6: one network).
# There is no limit for all together: with one, anybody could keep everybody out.
WRONG = 10
WAIT_SECONDS = 300.0
# How many addresses are remembered.
ADDRESSES = 10_000
LOGOUT = "/logout"
FORM_BYTES = 4096
FORM = "application/x-www-form-urlencoded"
# A name, an address or an address of IPv6, and perhaps a port: nothing that can hide another host.
HOST = re.compile(r"[A-Za-z0-9._:\[\]-]+")
READING = ("GET", "HEAD")
HEADERS = [
    ("X-Frame-Options", "DENY"),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "same-origin"),
]
PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>hpo dashboard</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>
body {{ font: 16px system-ui, sans-serif; display: grid; place-content: center; min-height: 90vh; }}
form {{ display: grid; gap: 0.8em; width: 18em; }}
input, button {{ font: inherit; padding: 0.4em; }}
p {{ color: #b00020; margin: 0; }}
</style></head><body>
<form method="post" action="{action}">
<label for="password">Password of this dashboard</label>
<input id="password" name="password" type="password" autocomplete="current-password" autofocus
 required>
<input name="next" type="hidden" value="{next}">
<button>Log in</button>
<p role="alert">{message}</p>
</form></body></html>"""
# Status, headers, body.
Answer = tuple[str, list[tuple[str, str]], bytes]


class Sessions:
    """The sessions of those who have logged in. Each ends at its logout, or in SESSION_SECONDS."""

    def __init__(self, now: Callable[[], float] = time.monotonic):
        """now: the time in seconds."""
        self._now = now
        self._lock = threading.Lock()
        # When each session ends, by the digest of its key. The oldest is first.
        self._ends: OrderedDict[bytes, float] = OrderedDict()

    def begin(self) -> str:
        """A new session. Returns its key, which only the browser keeps."""
        key = secrets.token_urlsafe(32)
        with self._lock:
            self._ends[_digest(key)] = self._now() + SESSION_SECONDS
            if len(self._ends) > SESSIONS:
                self._ends.popitem(last=False)
        return key

    def has(self, key: str) -> bool:
        """Whether the session of this key goes on."""
        with self._lock:
            return self._ends.get(_digest(key), -math.inf) > self._now()

    def end(self, key: str) -> None:
        """End the session of this key, if there is one."""
        with self._lock:
            self._ends.pop(_digest(key), None)


class Attempts:
    """Wrong passwords of the last WAIT_SECONDS, by address, in bounded memory."""

    def __init__(self, now: Callable[[], float] = time.monotonic):
        """now: the time in seconds."""
        self._now = now
        self._lock = threading.Lock()
        self._times_of: OrderedDict[str, deque[float]] = OrderedDict()

    def __len__(self) -> int:
        """How many addresses are remembered."""
        return len(self._times_of)

    def wait(self, address: str) -> float:
        """Seconds until this address may try again; 0 if it may try now."""
        with self._lock:
            times = self._times_of.get(_network(address), deque())
            if len(times) < WRONG:
                return 0.0
            return max(0.0, times[0] + WAIT_SECONDS - self._now())

    def wrong(self, address: str) -> None:
        """Count a wrong password."""
        network = _network(address)
        with self._lock:
            times = self._times_of.setdefault(network, deque(maxlen=WRONG))
            self._times_of.move_to_end(network)
            times.append(self._now())
            if len(self._times_of) > ADDRESSES:
                self._times_of.popitem(last=False)


def plain_address(address: str) -> str:
    """The IP address in the one form that waitress has it in: IPv4 is not written as IPv6.

    Raises ValueError if it is none.
    """
    parsed = ip_address(address)
    if isinstance(parsed, IPv6Address) and parsed.ipv4_mapped:
        return str(parsed.ipv4_mapped)
    return str(parsed)


def _network(address: str) -> str:
    """The address itself, or for IPv6 its /64 network, all of which belongs to one machine."""
    try:
        plain = plain_address(address)
        if ip_address(plain).version == 6:
            return str(ip_network(f"{plain}/64", strict=False))
    except ValueError:
        # Not an IP address, such as "" for a Unix socket, or one with the name of a device.
        return address
    return plain


@dataclass
class Guard:
    """Passes requests on to `app`, or answers them itself.

    password: None lets everyone in who names this machine as the host.
    base: the base path, as "/x", or empty.
    """

    app: "WSGIApplication"
    password: str | None
    read_only: bool = False
    base: str = ""

    def __post_init__(self) -> None:
        self.attempts = Attempts()
        # They end with this process.
        self.sessions = Sessions()

    def __call__(
        self, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> Iterable[bytes]:
        def start(status: str, headers: list[tuple[str, str]], *more: Any) -> Any:
            return start_response(status, [*headers, *HEADERS], *more)

        # optuna-dashboard expects this header in every request.
        environ.setdefault("HTTP_ACCEPT_ENCODING", "")
        request = BaseRequest(environ)
        answer = self._answer(request)
        if answer is None:
            return self.app(environ, start)
        status, headers, body = answer
        start(status, [*headers, ("Content-Length", str(len(body))), ("Cache-Control", "no-store")])
        return [] if request.method == "HEAD" else [body]

    def _answer(self, request: BaseRequest) -> Answer | None:
        """The answer to a request, or None if the dashboard is to answer it."""
        reading = request.method in READING
        if self.password is None and not is_loopback(_host_of(request)):
            return _refusal(
                "403 Forbidden",
                "this dashboard has no login, so it answers to localhost and 127.0.0.1 only. "
                "To use another name, start it with HPO_DASHBOARD_PASSWORD set",
            )
        if not reading and not _is_from_our_pages(request):
            return _refusal(
                "403 Forbidden", "this request did not come from a page of this dashboard"
            )
        if self.password is not None:
            if request.path == "/login":
                return self._login(request, self.password)
            if request.path != "/favicon.ico" and not self.sessions.has(_session_key(request)):
                return self._without_session(request)
            if request.path == LOGOUT:
                return self._logout(request)
        if not reading and self.read_only:
            return _refusal("403 Forbidden", "this dashboard was started with --read-only")
        if not reading and _content_type(request) != "application/json":
            return _refusal("415 Unsupported Media Type", "send JSON")
        return None

    def _without_session(self, request: BaseRequest) -> Answer:
        """Pages lead to the login; other requests are refused."""
        is_page = request.path == "/" or request.path.startswith("/dashboard")
        if request.method in READING and is_page:
            login = f"{self.base}/login?next={quote(request.path)}"
            return "303 See Other", [("Location", login)], b""
        return _refusal(
            "401 Unauthorized", "not logged in, or the session has ended: reload the page"
        )

    def _login(self, request: BaseRequest, password: str) -> Answer:
        if request.method in READING:
            return self._form("200 OK", request.query.getunicode("next", ""), "")
        is_form = _content_type(request) == FORM and request.content_length <= FORM_BYTES
        if request.method != "POST" or not is_form:
            return _refusal("400 Bad Request", "send the form")
        address = _address_of(request)
        wait = self.attempts.wait(address)
        if wait > 0:
            minutes = math.ceil(wait / 60)
            message = f"Too many wrong passwords from your address. Wait {minutes} min."
            status, headers, body = self._form("429 Too Many Requests", "", message)
            return status, [*headers, ("Retry-After", str(int(wait) + 1))], body
        next_page = request.forms.getunicode("next", "")
        if not _equal(request.forms.getunicode("password", ""), password):
            self.attempts.wrong(address)
            return self._form("403 Forbidden", next_page, "Wrong password.")
        if not next_page.startswith("/dashboard"):
            next_page = "/dashboard"
        headers = [
            ("Location", self.base + quote(next_page)),
            ("Set-Cookie", self._cookie(request, self.sessions.begin(), SESSION_SECONDS)),
        ]
        return "303 See Other", headers, b""

    def _logout(self, request: BaseRequest) -> Answer:
        if request.method != "POST":
            return _refusal("405 Method Not Allowed", "POST it: a link must not end a session")
        self.sessions.end(_session_key(request))
        headers = [
            ("Location", f"{self.base}/login"),
            ("Set-Cookie", self._cookie(request, "", 0)),
        ]
        return "303 See Other", headers, b""

    def _cookie(self, request: BaseRequest, key: str, seconds: int) -> str:
        parts = [
            f"{_cookie_name(request)}={key}",
            f"Path={self.base or '/'}",
            f"Max-Age={seconds}",
            "HttpOnly",
            "SameSite=Strict",
        ]
        if request.environ["wsgi.url_scheme"] == "https":
            parts.append("Secure")
        return "; ".join(parts)

    def _form(self, status: str, next_page: str, message: str) -> Answer:
        body = PAGE.format(
            action=f"{self.base}/login", next=escape(next_page), message=escape(message)
        )
        policy = (
            "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; "
            "frame-ancestors 'none'; base-uri 'none'"
        )
        headers = [
            ("Content-Type", "text/html; charset=utf-8"),
            ("Content-Security-Policy", policy),
        ]
        return status, headers, body.encode()


def _refusal(status: str, reason: str) -> Answer:
    """An error in the form that optuna-dashboard's pages show."""
    return status, [("Content-Type", "application/json")], json.dumps({"reason": reason}).encode()


def _address_of(request: BaseRequest) -> str:
    """The browser's address.

    waitress has removed what anyone but the named proxy says. It writes what the proxy says into
    REMOTE_ADDR, but cuts an IPv4 address that is written as IPv6, such as ::ffff:192.0.2.1.
    """
    try:
        return plain_address(request.environ.get("HTTP_X_FORWARDED_FOR", ""))
    except ValueError:
        return str(request.environ.get("REMOTE_ADDR", ""))


def _host_of(request: BaseRequest) -> str:
    """The host name that the request names; empty if it is not valid."""
    host = request.environ.get("HTTP_HOST", "")
    if not HOST.fullmatch(host):
        return ""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def is_loopback(host: str) -> bool:
    """Whether the host is this machine, by a name that nobody can point elsewhere."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _content_type(request: BaseRequest) -> str:
    return str(request.content_type).partition(";")[0].strip().lower()


def _is_from_our_pages(request: BaseRequest) -> bool:
    """Whether the request comes from a page of this dashboard, by what the browser says.

    Browsers send Sec-Fetch-Site, except over plain http to other machines, where they send Origin.
    A request with neither does not come from a browser.
    """
    site = request.get_header("Sec-Fetch-Site")
    if site is not None:
        return bool(site == "same-origin")
    origin = request.get_header("Origin")
    return origin is None or urlsplit(origin).netloc == request.environ.get("HTTP_HOST")


def _cookie_name(request: BaseRequest) -> str:
    """A name for each port, because browsers send a host's cookies to all its ports."""
    return f"hpo_session_{request.environ.get('SERVER_PORT', '')}"


def _session_key(request: BaseRequest) -> str:
    return str(request.get_cookie(_cookie_name(request), ""))


def _equal(password: str, expected: str) -> bool:
    """Compare in constant time, whatever the lengths."""
    return hmac.compare_digest(_digest(password), _digest(expected))


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode(errors="replace")).digest()
