"""A webhook: one JSON at a new best, at trouble and at the end, in a thread, so that no server can hold up a training.

`text` is what Slack and its like show; the other fields are for programs. Nothing in it is secret, and the URL, which often
is, appears in no message of ours.
"""

import json
import queue
import threading
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from hpo.errors import CallerError, HpoError
from hpo.study.pick import best_first
from hpo.study.study import Study
from hpo.study.trial import Record
from hpo.trainer import Metric, named

SEND_SECONDS = 10.0  # for one message
LAST_SECONDS = 15.0  # for what is left when the launch ends


class Notifier:
    """Given the records again and again, it finds what is new in them. What was there at first is no news."""

    def __init__(self, url: str, study: str, metric: Metric, say: Callable[[str], None]):
        self._url, self._study, self._metric, self._say = url, study, metric, say
        self._queue: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._best: float | None = None
        self._failed: set[int] | None = None
        self._thread = threading.Thread(target=self._work, name="notify", daemon=True)
        self._thread.start()

    def look(self, records: list[Record]) -> None:
        metric = self._metric
        best = next(iter(best_first(records, metric)), None)
        value = best.value if best else None
        failed = [record for record in records if record.state == "failed"]
        if self._failed is not None:
            if (
                best
                and value is not None
                and (self._best is None or metric.better(value, self._best))
            ):
                text = f"new best {metric.name} {metric.text(value)} (trial {best.number})"
                self.tell("best", text, trial=best.number, value=value)
            for record in failed:
                if record.number not in self._failed:
                    self.tell(
                        "trouble",
                        f"trial {record.number} failed: {record.reason}",
                        trial=record.number,
                        reason=record.reason,
                    )
        self._best = value
        self._failed = {record.number for record in failed}

    def tell(self, event: str, text: str, **facts: Any) -> None:
        """event: best, trouble or end."""
        message = {
            "text": f"hpo {self._study}: {text}",
            "study": self._study,
            "event": event,
            **facts,
        }
        self._queue.put(named(message, self._metric))

    def close(self) -> None:
        """Wait for what is not sent yet, not for long."""
        self._queue.put(None)
        self._thread.join(LAST_SECONDS)

    def _work(self) -> None:
        told = ""
        while (message := self._queue.get()) is not None:
            problem = send(self._url, message)
            if problem and problem != told:
                self._say(f"--notify: {urlsplit(self._url).hostname} {problem}; the study goes on")
            told = problem or ""


@contextmanager
def notifying(
    url: str | None, study: Study, say: Callable[[str], None]
) -> Iterator[Callable[[list[Record]], None]]:
    """What the block calls with the records, as often as it likes. Its end is told, and an error that ends it."""
    if url is None:
        yield lambda records: None
        return
    metric = study.spec.metric
    notifier = Notifier(url, study.name, metric, say)
    try:
        yield notifier.look
        records = study.records()
        notifier.look(records)
        values = [record.value for record in records if record.value is not None]
        best = metric.best(values) if values else None
        states = dict(Counter(record.state for record in records))
        shown = (
            f"best {metric.name} {metric.text(best)}"
            if best is not None
            else "no trial is complete"
        )
        text = f"the workers left: {shown}, {study.why_over() or 'work is left'}"
        notifier.tell("end", text, value=best, trials=states)
    except HpoError as error:
        notifier.tell("trouble", f"the launch ended: {error}", reason=str(error))
        raise
    finally:
        notifier.close()


def send(url: str, message: dict[str, Any]) -> str | None:
    """Returns what was wrong; None: it arrived."""
    body = json.dumps(message).encode()
    headers = {"Content-Type": "application/json"}
    # The scheme was checked.
    request = urllib.request.Request(url, body, headers)  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=SEND_SECONDS):  # noqa: S310
            return None
    except urllib.error.HTTPError as error:
        return f"answered {error.code}"
    except (OSError, ValueError) as error:
        return f"did not take it ({type(getattr(error, 'reason', error)).__name__})"


def check_url(url: str) -> str:
    """Raises CallerError; it does not show the URL."""
    try:
        parsed = urlsplit(url)
        valid = (
            parsed.scheme in ("http", "https")
            and bool(parsed.hostname)
            and (parsed.port or 1) > 0
            and url.isascii()
            and " " not in url
        )
    except ValueError:
        valid = False
    if not valid:
        raise CallerError(
            "--notify: not a URL that takes a POST. Valid: https://HOST/PATH, such as an incoming webhook of Slack"
        )
    return url
