"""optuna-dashboard with our pages in place of its slow ones, and its actions made safe for workers; served by waitress."""

import gzip
import json
import re
from collections.abc import Callable
from functools import cache, partial
from typing import Any

from bottle import Bottle, HTTPError, HTTPResponse, request
from optuna_dashboard import _note, wsgi

from hpo.dashboard.content import FILES, curve_png, log_tail
from hpo.dashboard.pages import Pages, without_ours
from hpo.errors import HpoError, MachineError
from hpo.report.report import export_text
from hpo.study import control
from hpo.study.studies import refuse_if_running

View = Callable[..., Any]
Replace = Callable[[str, str], Callable[[View], View]]
ZIP_BYTES = 2000  # what is larger travels compressed
RENAME = (
    "hpo names a study's folder, with its weights and checkpoints, after it: it cannot be renamed. "
    "Take hpo launch --name for a new one"
)
VALUE = "a trial's value is what its worker measured. A trial can be failed here; it is kept as stopped by hand"
ATTRIBUTES = "a trial's attributes are hpo's record of it. Write a note instead"
UPLOAD = "nothing can be uploaded here: the files of a trial are made from its record"


def build_app(pages: Pages) -> Bottle:
    """Raises MachineError if the installed optuna-dashboard has not what is replaced."""
    app = wsgi(pages.storage)
    assert isinstance(app, Bottle)
    views: dict[tuple[str, str], View] = {}
    for route in list(
        app.routes
    ):  # without optuna-dashboard's decorator, which tells the terminal what is wrong and not the page
        view = views[route.method, route.rule] = getattr(
            route.callback, "__wrapped__", route.callback
        )
        app.route(route.rule, route.method, telling(view))

    def replace(method: str, rule: str) -> Callable[[View], View]:
        """The view gets the one that it replaces as its first argument."""
        if (there := views.get((method, rule))) is None:
            raise MachineError(
                f"the installed optuna-dashboard has no {method} {rule}. Install version 0.21"
            )

        def install(view: View) -> View:
            app.route(rule, method, telling(partial(view, there)))
            return view

        return install

    _replace_reading(app, pages, replace)
    _replace_writing(pages, replace)
    if pages.base_path:
        _move(pages.base_path, replace)
    return app


def telling(view: View) -> View:
    """The view, with what is wrong as its answer."""

    def answer(**arguments: Any) -> Any:
        try:
            return view(**arguments)
        except HpoError as error:
            return reason(503 if isinstance(error, MachineError) else 409, str(error))
        except HTTPError as error:  # bottle's
            return reason(error.status_code, str(error.body))
        except KeyError:  # Optuna's
            return reason(404, "it is not there, or not any more")

    return answer


def _replace_reading(app: Bottle, pages: Pages, replace: Replace) -> None:
    @replace("GET", "/api/studies/<study_id:int>")
    def study(there: View, study_id: int) -> Any:
        if (page := pages.of(study_id)) is None:
            return there(study_id=study_id)
        try:
            tag, body = page.answer(
                max(0, int(request.query.get("after", 0))), request.get_header("If-None-Match", "")
            )
        except ValueError:
            return reason(400, "after: not a number")
        except KeyError:
            pages.forget(study_id)
            raise
        if body is None:
            return HTTPResponse(status=304, ETag=tag)
        headers = {
            "Content-Type": "application/json",
            "ETag": tag,
            "Cache-Control": "private, no-cache",
            "Vary": "Accept-Encoding",
        }
        return zipped(body, headers)

    @replace("GET", "/api/meta")
    def meta(there: View) -> Any:
        """Trials have files, though none can be uploaded; plots are drawn by the browser, not here; where we are."""
        mine = {"artifact_is_available": True, "plotlypy_is_available": False}
        return {**there(), **mine, "jupyterlab_extension_context": {"base_url": pages.base_path}}

    def file(study_id: int, trial_id: int, name: str) -> Any:
        page = pages.of(study_id)
        record = page.record(trial_id) if page else None
        if page is None or record is None or not record.config:
            return reason(404, "no such trial, or it has not begun")
        try:
            if name == "curve.png":
                body = curve_png(
                    record, page.study.curves([record])[record.number], page.study.spec.metric
                )
            elif name == "log.txt":
                body = log_tail(page.study, record).encode()
            else:
                body = export_text(page.study, str(record.number)).encode()
        except HpoError as error:
            return reason(500, str(error))
        policy = {
            "Content-Security-Policy": "sandbox; default-src 'none'",
            "Cache-Control": "private, no-cache",
        }
        return HTTPResponse(body, headers={"Content-Type": FILES[name], **policy})

    app.route(
        f"/artifacts/<study_id:int>/<trial_id:int>/<name:re:{'|'.join(map(re.escape, FILES))}>",
        "GET",
        file,
    )


def _replace_writing(pages: Pages, replace: Replace) -> None:
    @replace("POST", "/api/studies/<study_id:int>/rename")
    def rename(there: View, study_id: int) -> Any:
        return reason(409, RENAME) if pages.of(study_id) else there(study_id=study_id)

    @replace("DELETE", "/api/studies/<study_id:int>")
    def delete(there: View, study_id: int) -> Any:
        """Its files stay; hpo delete removes them too."""
        if page := pages.of(study_id):
            refuse_if_running(page.study)
        pages.forget(study_id)
        return there(study_id=study_id)

    @replace("POST", "/api/trials/<trial_id:int>/tell")
    def tell(there: View, trial_id: int) -> Any:
        study_id, number = pages.place(trial_id)
        if (page := pages.of(study_id)) is None:
            return there(trial_id=trial_id)
        if str(sent().get("state", "")).lower() != "fail":
            return reason(409, VALUE)
        control.kill(page.study, number, "in the dashboard")
        return HTTPResponse(status=204)

    @replace("POST", "/api/trials/<trial_id:int>/user-attrs")
    def attributes(there: View, trial_id: int) -> Any:
        return (
            reason(409, ATTRIBUTES)
            if pages.of(pages.place(trial_id)[0])
            else there(trial_id=trial_id)
        )

    def save(study_id: int, trial_id: int | None) -> Any:
        """As optuna-dashboard does it, without our part of the note."""
        version, body = sent().get("version"), sent().get("body")
        if not isinstance(version, int) or not isinstance(body, str):
            return reason(400, "send version and body")
        attributes = pages.storage.get_study_system_attrs(study_id)
        if not _note.version_is_incremented(attributes, trial_id, version):
            changed = (
                "The text you are editing has changed. Please copy your edits and refresh the page."
            )
            there = _note.get_note_from_system_attrs(attributes, trial_id)
            return HTTPResponse(
                json.dumps({"reason": changed, "note": there}),
                409,
                {"Content-Type": "application/json"},
            )
        _note.save_note_with_version(pages.storage, study_id, trial_id, version, without_ours(body))
        return HTTPResponse(status=204)

    @replace("PUT", "/api/studies/<study_id:int>/note")
    def study_note(there: View, study_id: int) -> Any:
        return save(study_id, None)

    @replace("PUT", "/api/studies/<study_id:int>/<trial_id:int>/note")
    def trial_note(there: View, study_id: int, trial_id: int) -> Any:
        return save(study_id, trial_id)

    @replace("POST", "/api/artifacts/<study_id:int>")
    def upload(there: View, **_: int) -> Any:
        return reason(409, UPLOAD)

    replace("POST", "/api/artifacts/<study_id:int>/<trial_id:int>")(upload)


def _move(base: str, replace: Replace) -> None:
    """Under a base path: the page and its script name absolute addresses."""

    @cache
    def script(there: View) -> bytes:
        moved = there(filename="bundle.js").body.read()
        for before in ('"/dashboard"', "`/csv/", "`/artifacts/", "`${this.baseURL}/api/"):
            slash = before.index("/") if "$" not in before else 1
            after = f"{before[:slash]}{base}{before[slash:]}".encode()
            if before.encode() not in moved:
                raise MachineError(
                    f"--base-path: the installed optuna-dashboard's page has no {before}. Install version 0.21"
                )
            moved = moved.replace(before.encode(), after)
        return bytes(moved)

    @replace("GET", "/static/<filename:path>")
    def static(there: View, filename: str) -> Any:
        if filename != "bundle.js":
            return there(filename=filename)
        request.environ.pop("HTTP_IF_MODIFIED_SINCE", None)
        encoding, request.environ["HTTP_ACCEPT_ENCODING"] = (
            request.get_header("Accept-Encoding", ""),
            "",
        )
        body = script(there)
        request.environ["HTTP_ACCEPT_ENCODING"] = encoding
        return zipped(body, {"Content-Type": "text/javascript"})

    @replace("GET", "/dashboard<:re:(/.*)?>")
    def page(there: View) -> Any:
        request.environ.pop("HTTP_IF_MODIFIED_SINCE", None)
        found = there()
        html = found.body.read().replace(b'"/static/', f'"{base}/static/'.encode())
        return HTTPResponse(
            html,
            headers={
                "Content-Type": "text/html",
                "Content-Security-Policy": found.get_header("Content-Security-Policy"),
            },
        )

    @replace("GET", "/")
    def root(there: View) -> Any:
        return HTTPResponse(status=302, Location=f"{base}/dashboard")


def sent() -> dict[str, Any]:
    """The JSON of the request."""
    found = request.json
    return found if isinstance(found, dict) else {}


def zipped(body: bytes, headers: dict[str, str]) -> HTTPResponse:
    if len(body) > ZIP_BYTES and "gzip" in request.get_header("Accept-Encoding", ""):
        return HTTPResponse(gzip.compress(body, 1), headers={**headers, "Content-Encoding": "gzip"})
    return HTTPResponse(body, headers=headers)


def reason(status: int, text: str) -> HTTPResponse:
    """As optuna-dashboard's pages read it."""
    return HTTPResponse(json.dumps({"reason": text}), status, {"Content-Type": "application/json"})
