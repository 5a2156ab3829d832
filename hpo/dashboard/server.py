"""The dashboard's address: bind it, say who may come in, open a browser, serve."""

import os
import secrets
import socket
import sys
import webbrowser
from collections.abc import Callable

import waitress

from hpo.dashboard.app import build_app
from hpo.dashboard.guard import Guard, is_loopback
from hpo.dashboard.pages import Pages
from hpo.errors import CallerError
from hpo.store.database import Database
from hpo.study.study import Study

PASSWORD = "HPO_DASHBOARD_PASSWORD"  # noqa: S105  (its name)
SHORTEST = 8  # characters of a password
THREADS = 4
BODY_BYTES = (
    2**20
)  # of a request: more than a note, and no more than anybody may have this machine keep before the login
PROXY = "127.0.0.1"  # whose word on https and on the address of the browser is taken


def serve(database: Database, study: str | None, host: str, port: int, base_path: str, read_only: bool, browser: bool,
          say: Callable[[str], None]) -> None:  # fmt: skip
    """Until a signal. Raises CallerError or StudyError before it begins."""
    base = _checked(base_path)
    password = os.environ.get(PASSWORD)
    alone = is_loopback(host)
    token = _check_password(password, alone, host)
    study_id = Study.open(database, study).id if study else None
    guard = Guard(build_app(Pages(database, base)), password or token, read_only, base)
    server = bind(guard, host, port, base)
    place = f"{base}/dashboard" + (f"/studies/{study_id}" if study_id is not None else "")
    bound = (
        server.effective_port
        if hasattr(server, "effective_port")
        else server.effective_listen[0][1]
    )
    url = f"http://{_shown(host)}:{bound}{place}"
    say(f"dashboard  {url}" + (", read-only" if read_only else ""))
    if token:
        say(f"password   {token} (made for this run; set {PASSWORD} for one of your own)")
    if not alone:
        say(f"no TLS     what is typed and shown crosses the network as it is. Put a reverse proxy with TLS on this machine before it, or "
            f"keep --host 127.0.0.1 and come by: ssh -L {bound}:127.0.0.1:{bound} {socket.gethostname()}")  # fmt: skip
    say("Ctrl-C ends it; the study goes on.")
    if browser and _has_display():
        webbrowser.open(url)
    server.run()


def _checked(base_path: str) -> str:
    """As "/a/b", or empty."""
    base = "/" + base_path.strip("/") if base_path.strip("/") else ""
    if not all(
        part
        and part.isascii()
        and part.replace("-", "").replace("_", "").replace(".", "").isalnum()
        for part in base.split("/")[1:]
    ):
        raise CallerError(
            f"--base-path {base_path}: not a path. Valid: letters, digits, '.', '_', '-', such as /hpo"
        )
    return base


def _check_password(password: str | None, alone: bool, host: str) -> str | None:
    """A token that is made, where one is needed and none was given. Raises CallerError."""
    if password is not None and len(password) < SHORTEST:
        raise CallerError(f"{PASSWORD}: {len(password)} characters. Valid: {SHORTEST} or more")
    if password is not None or alone:
        return None
    if not sys.stdout.isatty():  # it would stand in a log
        raise CallerError(
            f"--host {host} without a login: others can reach it. Set {PASSWORD} in the environment"
        )
    return secrets.token_urlsafe(16)


def bind(guard: Guard, host: str, port: int, base: str) -> "waitress.server.BaseWSGIServer":
    try:
        return waitress.create_server(
            guard, host=host, port=port, threads=THREADS, ident="hpo", url_prefix=base,
            max_request_body_size=BODY_BYTES, clear_untrusted_proxy_headers=True, trusted_proxy=PROXY, trusted_proxy_count=1,
            trusted_proxy_headers={"x-forwarded-for", "x-forwarded-proto"},
        )  # fmt: skip
    except ValueError:  # waitress's for a name that is none
        raise CallerError(
            f"--host {host}: not an address of this machine. Valid: 127.0.0.1, 0.0.0.0, or one that it has"
        ) from None
    except OSError as error:
        raise CallerError(
            f"--host {host} --port {port}: {error.strerror}. Another dashboard may run there; --port 0 takes a free one"
        ) from None


def _shown(host: str) -> str:
    """For people: a host that their browser can ask for."""
    name = socket.gethostname() if host in ("0.0.0.0", "::") else host  # noqa: S104
    return f"[{name}]" if ":" in name else name


def _has_display() -> bool:
    """A browser in a window; without one webbrowser takes over the terminal, and over ssh it would open elsewhere."""
    here = sys.platform in ("darwin", "win32") or any(
        name in os.environ for name in ("DISPLAY", "WAYLAND_DISPLAY")
    )
    return here and sys.stdout.isatty()
