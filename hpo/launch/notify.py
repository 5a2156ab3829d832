"""A webhook: a JSON message for each new best, each failure and the end of the launch.

A thread sends them, so that no server can hold up a training. Slack and similar services show the
field `text`; the other fields are for programs. The messages hold no secrets. The URL is often
secret, so no output shows it.
"""

import json
import queue
import threading
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPException
from typing import Any
from urllib.parse import urlsplit

from hpo.errors import CallerError, HpoError
from hpo.study.pick import best_first
from hpo.study.study import Study
from hpo.study.trial import Record
from hpo.trainer import Metric, named

# The timeout of one message.
SEND_SECONDS = 10.0
# How long the end of a launch waits for messages that are not sent yet.
LAST_SECONDS = 15.0
REDIRECTS = (301, 302, 303, 307, 308)


class Notifier:
    """Finds news in the records of a study and sends it. The first records it sees are not news."""

    def __init__(self, url: str, study: str, metric: Metric, warn: Callable[[str], None]):
        self._url = url
        self._host = urlsplit(url).hostname
        self._study = study
        self._metric = metric
        self._warn = warn
        self._queue: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._best: float | None = None
        # The numbers of failed trials; None before the first look.
        self._failed: set[int] | None = None
        self._thread = threading.Thread(target=self._work, name="notify", daemon=True)
        self._thread.start()

    def look(self, records: list[Record]) -> None:
        """Send what is new since the last call."""
        best = next(iter(best_first(records, self._metric)), None)
        failed = [record for record in records if record.state == "failed"]
        if self._failed is not None:
            if best is not None:
                self._tell_if_new_best(best)
            for record in failed:
                if record.number not in self._failed:
                    self._tell_failure(record)
        self._best = best.value if best else None
        self._failed = {record.number for record in failed}

    def _tell_if_new_best(self, best: Record) -> None:
        value = best.value
        if value is None:
            return
        if self._best is None or self._metric.better(value, self._best):
            shown = self._metric.text(value)
            text = f"new best {self._metric.name} {shown} (trial {best.number})"
            self.tell("best", text, trial=best.number, value=value)

    def _tell_failure(self, record: Record) -> None:
        text = f"trial {record.number} failed: {record.reason}"
        self.tell("trouble", text, trial=record.number, reason=record.reason)

    def tell(self, event: str, text: str, **facts: Any) -> None:
        """Queue a message. event: best, trouble or end."""
        message = {
            "text": f"hpo {self._study}: {text}",
            "study": self._study,
            "event": event,
            **facts,
        }
        self._queue.put(named(message, self._metric))

    def close(self) -> None:
        """Wait, for a limited time, until all messages are sent. Warns if some are not."""
        self._queue.put(None)
        self._thread.join(LAST_SECONDS)
        if self._thread.is_alive():
            self._warn(f"--notify: {self._host} did not answer; the last messages are not sent")

    def _work(self) -> None:
        last_problem = None
        while (message := self._queue.get()) is not None:
            problem = send(self._url, message)
            if problem and problem != last_problem:
                self._warn(f"--notify: {self._host} {problem}; the study continues")
            last_problem = problem


@contextmanager
def notifying(
    url: str | None, study: Study, warn: Callable[[str], None]
) -> Iterator[Callable[[list[Record]], None]]:
    """Yield a function that takes the study's records and sends what is new in them.

    The end of the block sends a last message, and so does an error that ends it. Without a URL
    nothing is sent. warn: is told when messages cannot be sent.
    """
    if url is None:
        yield lambda records: None
        return
    notifier = Notifier(url, study.name, study.spec.metric, warn)
    try:
        yield notifier.look
        _tell_end(notifier, study)
    except HpoError as error:
        notifier.tell("trouble", f"the launch ended: {error}", reason=str(error))
        raise
    finally:
        notifier.close()


def _tell_end(notifier: Notifier, study: Study) -> None:
    records = study.records()
    notifier.look(records)
    metric = study.spec.metric
    values = [record.value for record in records if record.value is not None]
    best = None
    result = "no trial is complete"
    if values:
        best = metric.best(values)
        result = f"best {metric.name} {metric.text(best)}"
    states = dict(Counter(record.state for record in records))
    text = f"the workers left: {result}, {study.why_over() or 'work is left'}"
    notifier.tell("end", text, value=best, trials=states)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect is an error: following it would be a GET without the message, to any address."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


_opener = urllib.request.build_opener(_NoRedirects)


def send(url: str, message: dict[str, Any]) -> str | None:
    """POST the message as JSON. Returns what went wrong, or None if it arrived.

    Redirects are not followed.
    """
    body = json.dumps(message).encode()
    headers = {"Content-Type": "application/json"}
    # check_url has checked the scheme.
    request = urllib.request.Request(url, body, headers)  # noqa: S310
    try:
        with _opener.open(request, timeout=SEND_SECONDS):
            return None
    except urllib.error.HTTPError as error:
        return _refusal(error)
    except (OSError, ValueError, HTTPException) as error:
        # The text of an HTTPException can hold the URL.
        cause = getattr(error, "reason", error)
        return f"did not take the message ({type(cause).__name__})"


def _refusal(error: urllib.error.HTTPError) -> str:
    if error.code not in REDIRECTS:
        return f"answered {error.code}"
    return (
        f"answered {error.code}, a redirect, which is not followed. "
        "Give the address that takes the POST itself"
    )


def check_url(url: str) -> str:
    """Return the URL. Raises CallerError, without showing it, if it cannot take a POST."""
    if not _is_valid(url):
        raise CallerError(
            "--notify: not a URL that takes a POST. Valid: https://HOST/PATH without user and "
            "password, such as an incoming webhook of Slack"
        )
    return url


def _is_valid(url: str) -> bool:
    try:
        parsed = urlsplit(url)
        # Raises ValueError if it is out of range.
        _ = parsed.port
    except ValueError:
        return False
    if parsed.scheme not in ("http", "https") or not parsed.hostname:
        return False
    if "@" in parsed.netloc:
        # urllib would take them as a part of the host's name.
        return False
    return url.isascii() and url.isprintable() and " " not in url
