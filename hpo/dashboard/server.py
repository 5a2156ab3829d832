"""The dashboard's address: bind it, print how to log in, open a browser, serve."""

import os
import re
import secrets
import socket
import sys
import webbrowser
from collections.abc import Callable
from dataclasses import dataclass

import waitress
from waitress.server import BaseWSGIServer, TcpWSGIServer

from hpo.dashboard.app import build_app
from hpo.dashboard.connections import Connection
from hpo.dashboard.guard import Guard, is_loopback, plain_address
from hpo.dashboard.pages import Pages
from hpo.errors import CallerError
from hpo.store.database import Database
from hpo.study.study import Study

# The environment variable that holds the password.
PASSWORD = "HPO_DASHBOARD_PASSWORD"  # noqa: S105  (a name, not a password)
SHORTEST_PASSWORD = 8
THREADS = 4
# The largest request: more than any note, and small enough to be kept before the login.
BODY_BYTES = 2**20
# waitress stops accepting at so many connections; Connection makes room long before.
NEVER_REACHED = 10_000


@dataclass(frozen=True)
class Options:
    """What `hpo dashboard` was asked for.

    port: 0 takes a free one. proxy: the IP address of a reverse proxy. It may say what the
    browser's address is, and whether that used https; nobody else is believed.
    """

    study: str | None = None
    host: str = "127.0.0.1"
    port: int = 8080
    base_path: str = ""
    read_only: bool = False
    browser: bool = False
    proxy: str | None = None


def serve(database: Database, options: Options, say: Callable[[str], None]) -> None:
    """Serve until a signal arrives. Raises CallerError or StudyError before it begins."""
    base = _checked_base_path(options.base_path)
    proxy = _checked_proxy(options.proxy)
    given_password = os.environ.get(PASSWORD)
    made_password = _check_password(given_password, options.host)
    page = "/dashboard"
    if options.study:
        page = f"/dashboard/studies/{Study.open(database, options.study).id}"
    password = given_password or made_password
    app = build_app(Pages(database, base), with_logout=password is not None)
    guard = Guard(app, password, options.read_only, base)
    server = bind(guard, options.host, options.port, proxy)
    port = _bound_port(server)
    url = f"http://{_name_for_browser(options.host)}:{port}{base}{page}"

    note = ", read-only" if options.read_only else ""
    say(f"dashboard  {url}{note}")
    if made_password:
        say(f"password   {made_password} (for this run only; set {PASSWORD} to choose your own)")
    if not is_loopback(options.host):
        tunnel = f"ssh -L {port}:127.0.0.1:{port} {socket.gethostname()}"
        say(
            "no TLS     passwords and pages cross the network unencrypted. Put a reverse proxy "
            "with TLS on this machine in front of it (--proxy), or keep --host 127.0.0.1 and "
            f"connect through a tunnel: {tunnel}"
        )
    say("Ctrl-C stops the dashboard; the study continues.")
    if options.browser and _has_display():
        webbrowser.open(url)
    server.run()


def _checked_base_path(base_path: str) -> str:
    """The path as "/a/b", or empty."""
    parts = base_path.strip("/").split("/")
    if parts == [""]:
        return ""
    for part in parts:
        if not re.fullmatch(r"[A-Za-z0-9._-]*[A-Za-z0-9][A-Za-z0-9._-]*", part):
            raise CallerError(
                f"--base-path {base_path}: not a path. "
                "Valid: letters, digits, '.', '_', '-', such as /hpo"
            )
    return "/" + "/".join(parts)


def _checked_proxy(proxy: str | None) -> str | None:
    """The address as waitress writes it. Raises CallerError."""
    if proxy is None:
        return None
    try:
        return plain_address(proxy)
    except ValueError:
        raise CallerError(
            f"--proxy {proxy}: not an IP address. "
            "Valid: the address that the reverse proxy connects from, such as 127.0.0.1"
        ) from None


def _check_password(password: str | None, host: str) -> str | None:
    """A new password where one is needed and none was given. Raises CallerError."""
    if password is not None:
        if len(password) < SHORTEST_PASSWORD:
            raise CallerError(
                f"{PASSWORD}: {len(password)} characters. Valid: {SHORTEST_PASSWORD} or more"
            )
        return None
    if is_loopback(host):
        return None
    if not sys.stdout.isatty():
        # A password made here would end up in a log file.
        raise CallerError(
            f"--host {host} without a login: other machines can reach it. "
            f"Set {PASSWORD} in the environment"
        )
    return secrets.token_urlsafe(16)


def bind(guard: Guard, host: str, port: int, proxy: str | None = None) -> BaseWSGIServer:
    """The server, listening. Raises CallerError if the address cannot be used.

    proxy: the IP address of a reverse proxy; None if there is none.
    """
    of_proxy = {}
    if proxy is not None:
        of_proxy = {
            "trusted_proxy": proxy,
            "trusted_proxy_count": 1,
            "trusted_proxy_headers": {"x-forwarded-for", "x-forwarded-proto"},
        }
    # waitress puts here what it listens on: a host name can have several addresses.
    sockets: dict[int, object] = {}
    try:
        server = waitress.create_server(
            guard,
            map=sockets,
            host=host,
            port=port,
            threads=THREADS,
            ident="hpo",
            url_prefix=guard.base,
            connection_limit=NEVER_REACHED,
            max_request_body_size=BODY_BYTES,
            clear_untrusted_proxy_headers=True,
            **of_proxy,
        )
    except ValueError:
        # Raised by waitress for a host name that does not exist.
        raise CallerError(
            f"--host {host}: not an address of this machine. "
            "Valid: 127.0.0.1, 0.0.0.0, or one of its own addresses"
        ) from None
    except OSError as error:
        raise CallerError(
            f"--host {host} --port {port}: {error.strerror}. "
            "Another dashboard may be running there; --port 0 takes a free port"
        ) from None
    for listener in sockets.values():
        if isinstance(listener, TcpWSGIServer):
            listener.channel_class = Connection
    return server


def _bound_port(server: BaseWSGIServer) -> int:
    if hasattr(server, "effective_port"):
        return int(server.effective_port)
    # A host name with several addresses gives a server that listens on all of them.
    _, port = server.effective_listen[0]
    return int(port)


def _name_for_browser(host: str) -> str:
    """A host that a browser can ask for."""
    every_address = ("0.0.0.0", "::")  # noqa: S104
    name = socket.gethostname() if host in every_address else host
    return f"[{name}]" if ":" in name else name


def _has_display() -> bool:
    """Whether a browser can open a window here.

    Without a display `webbrowser` would take over the terminal.
    """
    has_windows = sys.platform in ("darwin", "win32")
    has_windows = has_windows or "DISPLAY" in os.environ or "WAYLAND_DISPLAY" in os.environ
    return has_windows and sys.stdout.isatty()
