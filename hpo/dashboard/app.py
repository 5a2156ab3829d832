"""optuna-dashboard with hpo's views in place of the slow ones and of those that disturb workers."""

import gzip
import json
import re
from collections.abc import Callable
from functools import partial
from typing import Any

from bottle import Bottle, HTTPError, HTTPResponse, request
from optuna_dashboard import _note, wsgi

from hpo.dashboard.content import FILES, curve_png, log_tail
from hpo.dashboard.pages import Pages, StudyPage, without_our_part
from hpo.errors import HpoError, MachineError
from hpo.report.export import export_text
from hpo.study import control
from hpo.study.studies import refuse_if_running
from hpo.study.trial import Record

View = Callable[..., Any]
# (HTTP method, bottle's rule for the path)
Route = tuple[str, str]

# Larger answers are compressed.
COMPRESSED_FROM_BYTES = 2000
# At the right of the bar on top of each page, which is empty there. It works without a script.
LOGOUT_BUTTON = """<form method="post" action="{base}/logout"
 style="position: fixed; right: 24px; top: 16px; z-index: 2000; margin: 0">
<button style="font: 14px system-ui, sans-serif; padding: 0.3em 0.8em">Log out</button>
</form>"""
NO_RENAME = (
    "hpo names the folder with a study's weights and checkpoints after the study, so it cannot be "
    "renamed. Start a new study with hpo launch --name"
)
NO_VALUE = (
    "a trial's value is what its worker measured, so it cannot be typed in. A trial can be failed "
    "here; it is then recorded as stopped by hand"
)
NO_ATTRIBUTES = "a trial's attributes are hpo's record of it. Write a note instead"
NO_UPLOAD = "files cannot be uploaded here: hpo makes the files of a trial from its record"


def build_app(pages: Pages, with_logout: bool = False) -> Bottle:
    """The WSGI application.

    with_logout: every page has a button that ends the session.
    Raises MachineError if the installed optuna-dashboard lacks a view that hpo replaces.
    """
    app = wsgi(pages.storage)
    assert isinstance(app, Bottle)
    originals: dict[Route, View] = {}
    for route in list(app.routes):
        # optuna-dashboard wraps its views so that errors are printed on the terminal.
        # The page should show them, so the view inside the wrapper is taken.
        view = getattr(route.callback, "__wrapped__", route.callback)
        originals[route.method, route.rule] = view
        app.route(route.rule, route.method, with_errors_as_answers(view))

    replacements = StudyViews(pages).replacements()
    if pages.base_path:
        replacements |= MovedPages(pages.base_path).replacements()
    more = LOGOUT_BUTTON.format(base=pages.base_path) if with_logout else ""
    replacements["GET", "/dashboard<:re:(/.*)?>"] = partial(send_page, pages.base_path, more)
    for (method, rule), view in replacements.items():
        original = originals.get((method, rule))
        if original is None:
            raise MachineError(
                f"the installed optuna-dashboard has no {method} {rule}. Install version 0.21"
            )
        app.route(rule, method, with_errors_as_answers(partial(view, original)))

    names = "|".join(re.escape(name) for name in FILES)
    rule = f"/artifacts/<study_id:int>/<trial_id:int>/<name:re:{names}>"
    app.route(rule, "GET", with_errors_as_answers(partial(send_file, pages)))
    return app


def with_errors_as_answers(view: View) -> View:
    """The view, with each error turned into an answer that the page shows."""

    def answer(**arguments: Any) -> Any:
        try:
            return view(**arguments)
        except MachineError as error:
            return refusal(503, str(error))
        except HpoError as error:
            return refusal(409, str(error))
        except HTTPError as error:
            # Raised by bottle.
            return refusal(error.status_code, str(error.body))
        except KeyError:
            # Raised by Optuna's storage.
            return refusal(404, "it does not exist, or no longer exists")
        except RecursionError:
            return refusal(400, "the JSON of this request is nested too deeply")

    return answer


class StudyViews:
    """Replacements of optuna-dashboard's views.

    Each takes the view that it replaces as its first argument; that one still answers for studies
    that hpo did not make.
    """

    def __init__(self, pages: Pages):
        self._pages = pages

    def replacements(self) -> dict[Route, View]:
        return {
            ("GET", "/api/studies/<study_id:int>"): self.study,
            ("GET", "/api/meta"): self.meta,
            ("POST", "/api/studies/<study_id:int>/rename"): self.rename,
            ("DELETE", "/api/studies/<study_id:int>"): self.delete,
            ("POST", "/api/trials/<trial_id:int>/tell"): self.tell,
            ("POST", "/api/trials/<trial_id:int>/user-attrs"): self.set_attributes,
            ("PUT", "/api/studies/<study_id:int>/note"): self.save_study_note,
            ("PUT", "/api/studies/<study_id:int>/<trial_id:int>/note"): self.save_trial_note,
            ("POST", "/api/artifacts/<study_id:int>"): self.upload,
            ("POST", "/api/artifacts/<study_id:int>/<trial_id:int>"): self.upload,
        }

    # ---- reading

    def study(self, original: View, study_id: int) -> Any:
        """The study with its trials from number `after` on, or 304 if the browser has it."""
        page = self._pages.of(study_id)
        if page is None:
            return original(study_id=study_id)
        try:
            after = int(request.query.get("after", 0))
        except ValueError:
            return refusal(400, "after: not a number")
        known_tags = request.get_header("If-None-Match", "")
        try:
            tag, body = page.answer(max(0, after), known_tags)
        except KeyError:
            self._pages.forget(study_id)
            raise
        if body is None:
            return HTTPResponse(status=304, ETag=tag)
        headers = {
            "Content-Type": "application/json",
            "ETag": tag,
            "Cache-Control": "private, no-cache",
            "Vary": "Accept-Encoding",
        }
        return compressed(body, headers)

    def meta(self, original: View) -> Any:
        """What the page may do: show files of trials, and draw plots in the browser."""
        return {
            **original(),
            "artifact_is_available": True,
            "plotlypy_is_available": False,
            "jupyterlab_extension_context": {"base_url": self._pages.base_path},
        }

    # ---- writing

    def rename(self, original: View, study_id: int) -> Any:
        if self._pages.of(study_id):
            return refusal(409, NO_RENAME)
        return original(study_id=study_id)

    def delete(self, original: View, study_id: int) -> Any:
        """Delete the study in the database. Its files stay; `hpo delete` removes them too."""
        page = self._pages.of(study_id)
        if page is not None:
            refuse_if_running(page.study)
        self._pages.forget(study_id)
        return original(study_id=study_id)

    def tell(self, original: View, trial_id: int) -> Any:
        """Stop a trial. Values cannot be set."""
        study_id, number = self._pages.place(trial_id)
        page = self._pages.of(study_id)
        if page is None:
            return original(trial_id=trial_id)
        state = str(sent_json().get("state", ""))
        if state.lower() != "fail":
            return refusal(409, NO_VALUE)
        control.kill(page.study, number, "in the dashboard")
        return HTTPResponse(status=204)

    def set_attributes(self, original: View, trial_id: int) -> Any:
        study_id, _ = self._pages.place(trial_id)
        if self._pages.of(study_id):
            return refusal(409, NO_ATTRIBUTES)
        return original(trial_id=trial_id)

    def save_study_note(self, _original: View, study_id: int) -> Any:
        return self._save_note(study_id, None)

    def save_trial_note(self, _original: View, study_id: int, trial_id: int) -> Any:
        return self._save_note(study_id, trial_id)

    def upload(self, _original: View, **_ids: int) -> Any:
        return refusal(409, NO_UPLOAD)

    def _save_note(self, study_id: int, trial_id: int | None) -> Any:
        """Save a note as optuna-dashboard does, without the part that hpo adds to it."""
        version = sent_json().get("version")
        body = sent_json().get("body")
        if not isinstance(version, int) or not isinstance(body, str):
            return refusal(400, "send version and body")
        storage = self._pages.storage
        attributes = storage.get_study_system_attrs(study_id)
        if not _note.version_is_incremented(attributes, trial_id, version):
            conflict = {
                "reason": "The text you are editing has changed. "
                "Please copy your edits and refresh the page.",
                "note": _note.get_note_from_system_attrs(attributes, trial_id),
            }
            return json_response(409, conflict)
        _note.save_note_with_version(storage, study_id, trial_id, version, without_our_part(body))
        return HTTPResponse(status=204)


def send_page(base: str, more: str, original: View) -> HTTPResponse:
    """optuna-dashboard's one page, in which its script shows everything.

    It contains absolute addresses, which need the base path. more: added at the end of its HTML.
    """
    answer = whole_file(original)
    html = answer.body.read().decode()
    html = html.replace('"/static/', f'"{base}/static/').replace("</body>", f"{more}</body>")
    headers = {
        "Content-Type": "text/html; charset=utf-8",
        "Content-Security-Policy": answer.get_header("Content-Security-Policy"),
        # After a logout, the browser's button "back" must ask again.
        "Cache-Control": "no-store",
    }
    return HTTPResponse(html.encode(), headers=headers)


def whole_file(original: View, **arguments: str) -> HTTPResponse:
    """The view's answer with the whole file, uncompressed, so that it can be changed.

    It does not matter which part or version of the file the browser asked for.
    """
    asked = dict(request.environ)
    for name in ("HTTP_IF_MODIFIED_SINCE", "HTTP_IF_NONE_MATCH", "HTTP_RANGE"):
        request.environ.pop(name, None)
    request.environ.update(REQUEST_METHOD="GET", HTTP_ACCEPT_ENCODING="")
    try:
        return original(**arguments)
    finally:
        request.environ.update(asked)


class MovedPages:
    """optuna-dashboard's script under a base path: it contains absolute addresses."""

    # Addresses in the script that need the base path in front of their first slash.
    _QUOTED_ADDRESSES = ('"/dashboard"', "`/csv/", "`/artifacts/")
    _API_ADDRESS = "`${this.baseURL}/api/"

    def __init__(self, base: str):
        """base: such as "/hpo"."""
        self._base = base
        self._script: bytes | None = None

    def replacements(self) -> dict[Route, View]:
        return {
            ("GET", "/static/<filename:path>"): self.static,
            ("GET", "/"): self.root,
        }

    def static(self, original: View, filename: str) -> Any:
        if filename != "bundle.js":
            return original(filename=filename)
        if self._script is None:
            self._script = self._moved(whole_file(original, filename=filename).body.read())
        return compressed(self._script, {"Content-Type": "text/javascript"})

    def root(self, _original: View) -> Any:
        return HTTPResponse(status=302, Location=f"{self._base}/dashboard")

    def _moved(self, script: bytes) -> bytes:
        """The script with the base path in its addresses. Raises MachineError if one is missing."""
        changes = {self._API_ADDRESS: "`" + self._base + self._API_ADDRESS[1:]}
        for address in self._QUOTED_ADDRESSES:
            changes[address] = address.replace("/", f"{self._base}/", 1)
        for before, after in changes.items():
            if before.encode() not in script:
                raise MachineError(
                    f"--base-path: the installed optuna-dashboard's page has no {before}. "
                    "Install version 0.21"
                )
            script = script.replace(before.encode(), after.encode())
        return script


def send_file(pages: Pages, study_id: int, trial_id: int, name: str) -> Any:
    """A file of a trial, made from its record when somebody opens it. `name`: one of FILES."""
    page = pages.of(study_id)
    record = page.record(trial_id) if page else None
    if page is None or record is None or not record.config:
        return refusal(404, "no such trial, or it has not started")
    try:
        body = file_content(page, record, name)
    except HpoError as error:
        return refusal(500, str(error))
    headers = {
        "Content-Type": FILES[name],
        "Content-Security-Policy": "sandbox; default-src 'none'",
        "Cache-Control": "private, no-cache",
    }
    return HTTPResponse(body, headers=headers)


def file_content(page: StudyPage, record: Record, name: str) -> bytes:
    study = page.study
    if name == "curve.png":
        curve = study.curves([record])[record.number]
        return curve_png(record, curve, study.spec.metric)
    if name == "log.txt":
        return log_tail(study, record).encode()
    return export_text(study, str(record.number)).encode()


def sent_json() -> dict[str, Any]:
    """The JSON object of the request; empty if it sent something else."""
    content = request.json
    return content if isinstance(content, dict) else {}


def compressed(body: bytes, headers: dict[str, str]) -> HTTPResponse:
    """The body, compressed if it is large and the browser accepts that."""
    accepts_gzip = "gzip" in request.get_header("Accept-Encoding", "")
    if len(body) <= COMPRESSED_FROM_BYTES or not accepts_gzip:
        return HTTPResponse(body, headers=headers)
    fast = 1
    return HTTPResponse(gzip.compress(body, fast), headers={**headers, "Content-Encoding": "gzip"})


def refusal(status: int, reason: str) -> HTTPResponse:
    """An error in the form that optuna-dashboard's pages show."""
    return json_response(status, {"reason": reason})


def json_response(status: int, content: dict[str, Any]) -> HTTPResponse:
    return HTTPResponse(json.dumps(content), status, {"Content-Type": "application/json"})
