"""A trial's progress on its way to the database, in a thread of its own, so that a database that is slow or away costs no step.

What could not be delivered is owed: kept, and delivered when the database answers again. The lease is renewed only when
steps have advanced or the training says that it is alive, so a worker whose GPU hangs loses its trial.
"""

import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from hpo.curve import Point
from hpo.errors import DatabaseAwayError
from hpo.study.study import Study
from hpo.study.trial import Trial

RENEW_SECONDS = (
    2.0  # the lease is renewed and the displayed step is fresh this often, while steps advance
)
TOGETHER_SECONDS = 0.5  # points that come within this are delivered together
LOOK_SECONDS = 4.0  # how long a spent budget or a passed deadline may stay unnoticed
ANSWER_SECONDS = 5.0  # so long a worker waits for an answer, even if it is to leave
OUTAGE_SECONDS = (
    3600.0  # a worker waits so long for a database that is away, with nothing else to do
)
Found = TypeVar("Found")


class Backoff:
    """Waiting times between attempts: doubled up to half a minute, each by chance between a half and the whole of that."""

    def __init__(self) -> None:
        self._next = 0.5

    def seconds(self) -> float:
        self._next = min(30.0, 2 * self._next)
        return self._next * random.uniform(0.5, 1.0)  # noqa: S311  (jitter, no secret)


def persistently(
    ask: Callable[[], Found],
    given_up: Callable[[], bool],
    say: Callable[[str], None],
    limit: float = OUTAGE_SECONDS,
) -> Found:
    """ask(), again and again while the database is away; raises DatabaseAwayError after `limit` seconds or when `given_up`."""
    backoff, begin, last = Backoff(), time.monotonic(), ""
    while True:
        try:
            return _answer(ask, given_up)
        except DatabaseAwayError as error:
            if given_up() or time.monotonic() - begin > limit:
                raise
            if str(error) != last:
                say(f"{error}; trying again for up to {limit / 60:.0f} minutes")
                last = str(error)
            until = time.monotonic() + backoff.seconds()
            while time.monotonic() < until and not given_up():
                time.sleep(0.1)


def _answer(ask: Callable[[], Found], given_up: Callable[[], bool]) -> Found:
    """ask() in a thread of its own: nothing ends a wait for a server that hangs, and a signal is not heard within it."""
    answer: Future[Found] = Future()

    def work() -> None:
        try:
            answer.set_result(ask())
        except BaseException as error:
            answer.set_exception(error)

    thread = threading.Thread(target=work, name="ask", daemon=True)
    thread.start()
    if not _joined(thread, given_up):
        raise DatabaseAwayError(f"database: no answer for {ANSWER_SECONDS:g} s")
    return answer.result()


def _joined(thread: threading.Thread, given_up: Callable[[], bool]) -> bool:
    """Wait for its end, ANSWER_SECONDS at least; False: `given_up` came first."""
    thread.join(ANSWER_SECONDS)
    while thread.is_alive() and not given_up():
        thread.join(0.5)
    return not thread.is_alive()


class Reporter:
    """Of one attempt. The training says where it is; `lost` and `spent` tell it to end."""

    def __init__(
        self, study: Study, trial: Trial, memory: Callable[[], int], say: Callable[[str], None]
    ):
        self.study, self.trial = study, trial
        self.lost = False  # the trial is another's now
        self.spent = ""  # why the trial is to be handed back, once it is: the study is paused, stopped, or its budget spent
        self._memory, self._say = memory, say  # bytes that the training takes
        self._owed: list[Point] = []
        self._step = self._told = 0
        self._alive = False  # since it was told last
        self._alive_until = 0.0
        self._goes_back = False
        self._kept: Point | None = None  # where it goes back to; None: to the beginning
        self._lock = threading.Lock()  # of what is owed
        self._begin = time.monotonic()
        self._seconds = 0.0
        self._confirmed = time.monotonic()  # the lease is ours for its length from here
        self._away = False
        self._lease_seconds = study.spec.attempts.lease_seconds
        self._looked = time.monotonic()  # at the budget
        self._fault: Exception | None = None
        self._wake, self._over, self._end = threading.Event(), threading.Event(), False
        self._thread = threading.Thread(target=self._work, name="reporter", daemon=True)
        self._thread.start()

    def at(self, step: int, point: Point | None = None) -> None:
        """A step is done, and with it perhaps an evaluation. Raises what ended the thread, if something did."""
        self.alive()
        self._step = step
        if point is not None:
            with self._lock:
                self._owed.append(point)
            self._wake.set()

    def alive(self) -> None:
        """No step is done, but the training works. Raises what ended the thread, if something did."""
        if self._fault:
            raise self._fault
        self._seconds = time.monotonic() - self._begin
        self._alive = True

    def alive_for(self, seconds: float) -> None:
        """The training works, and will say nothing for up to so long."""
        self._alive_until = time.monotonic() + seconds

    def go_back(self, last: Point | None) -> None:
        """The training goes on after this point of its curve; None: it begins again. Later points are forgotten, before new
        ones are delivered.
        """
        step = last.step if last else 0
        with self._lock:
            earlier = self._kept is None or (last is not None and self._kept.step <= step)
            if not (self._goes_back and earlier):
                self._kept = last
            self._goes_back = True
            self._owed = [point for point in self._owed if last is not None and point.step <= step]
            self._step = step

    def holds(self) -> bool:
        """Whether the trial is surely ours. A process that was halted or cut off for longer than its lease must ask first."""
        return not self.lost and time.monotonic() - self._confirmed < self._lease_seconds

    def may_write(self) -> bool:
        """Whether we may add to the trial's files: the database may be away for all, and the work must not be lost."""
        return self.holds() or (self._away and not self.lost)

    def close(self, given_up: Callable[[], bool] = lambda: False) -> float:
        """End the thread, which may leave points owed. Returns the seconds of this attempt."""
        self._end = True
        self._over.set()
        self._wake.set()
        _joined(self._thread, given_up)
        return time.monotonic() - self._begin

    def deliver(self) -> None:
        """Once, now; raises DatabaseAwayError with everything still owed."""
        with self._lock:
            step, points = self._step, list(self._owed)
            goes_back, kept = self._goes_back, self._kept
            self._alive = self._goes_back = False
        asked = time.monotonic()
        held = not goes_back or self._resumed(kept)
        held = held and self.study.deliver(self.trial, points, step, self._seconds, self._memory())
        self._confirmed, self._told, self._away = asked, step, False
        with self._lock:
            self._owed = [
                point for point in self._owed if not any(point is told for told in points)
            ]
        self.lost = self.lost or not held
        if held:
            budget_too = asked - self._looked > LOOK_SECONDS
            self._looked = asked if budget_too else self._looked
            self.spent = self.study.over(budget_too) or self.spent

    def _resumed(self, kept: Point | None) -> bool:
        """False: the trial is another's now. Where that cannot be asked it is still to be done."""
        try:
            return self.study.resume(self.trial, kept.step if kept else 0, [kept] if kept else [])
        except DatabaseAwayError:
            with self._lock:
                if not self._goes_back:
                    self._goes_back, self._kept = True, kept
            raise

    def _has_news(self) -> bool:
        is_alive = self._alive or time.monotonic() < self._alive_until
        return bool(self._owed) or is_alive or self._step != self._told

    def _pause(self, seconds: float) -> None:
        """Unless the attempt ends before."""
        until = time.monotonic() + seconds
        while not self._end and (left := until - time.monotonic()) > 0:
            self._over.wait(left)

    def _work(self) -> None:
        backoff = Backoff()
        pause = RENEW_SECONDS - TOGETHER_SECONDS
        while not self._end and not self.lost:
            self._wake.wait(pause)
            self._wake.clear()
            if self._end or not self._has_news():
                continue
            try:
                self.deliver()
                # What comes soon after is delivered together.
                self._pause(TOGETHER_SECONDS)
                backoff, pause = Backoff(), RENEW_SECONDS - TOGETHER_SECONDS
            except DatabaseAwayError as error:
                if not self._away:
                    self._say(f"trial {self.trial.number}: {error}; it trains on")
                self._away, pause = True, backoff.seconds()
            except Exception as error:  # the training must hear of it
                self._fault = error
                return
