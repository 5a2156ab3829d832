"""Reports a trial's progress to the database.

A thread does this, so that a slow or absent database costs no step. Points that cannot be delivered
are kept until the database answers again. The lease is renewed only while steps advance or the
training says that it is alive, so a worker whose GPU hangs loses its trial.
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

# How often the lease is renewed and the displayed step refreshed while steps advance.
RENEW_SECONDS = 2.0
# Points that come within this time are delivered together.
TOGETHER_SECONDS = 0.5
# How long a spent budget or a passed deadline may go unnoticed.
LOOK_SECONDS = 4.0
# How long a worker waits for an answer of the database, even after a signal.
ANSWER_SECONDS = 5.0
# How long a worker that has nothing else to do waits for a database that is away.
OUTAGE_SECONDS = 3600.0
Answer = TypeVar("Answer")


class Backoff:
    """Waiting times between attempts: doubled up to half a minute, with a jitter of one half."""

    def __init__(self) -> None:
        self._next = 0.5

    def seconds(self) -> float:
        self._next = min(30.0, 2 * self._next)
        # The jitter is no secret.
        return self._next * random.uniform(0.5, 1.0)  # noqa: S311


def ask_until_answered(
    ask: Callable[[], Answer],
    given_up: Callable[[], bool],
    warn: Callable[[str], None],
    limit: float = OUTAGE_SECONDS,
) -> Answer:
    """Call `ask` until the database answers, and return the answer.

    Raises DatabaseAwayError after `limit` seconds or once `given_up` returns True.
    """
    backoff = Backoff()
    began_at = time.monotonic()
    last_warning = ""
    while True:
        try:
            return _ask_in_thread(ask, given_up)
        except DatabaseAwayError as error:
            if given_up() or time.monotonic() - began_at > limit:
                raise
            if str(error) != last_warning:
                warn(f"{error}; trying again for up to {limit / 60:.0f} minutes")
                last_warning = str(error)
            until = time.monotonic() + backoff.seconds()
            while time.monotonic() < until and not given_up():
                time.sleep(0.1)


def _ask_in_thread(ask: Callable[[], Answer], given_up: Callable[[], bool]) -> Answer:
    """Call `ask` in a thread, because a server that hangs would block signal handling forever."""
    answer: Future[Answer] = Future()

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
    """Wait for the end of the thread, for at least ANSWER_SECONDS. Returns whether it ended."""
    thread.join(ANSWER_SECONDS)
    while thread.is_alive() and not given_up():
        thread.join(0.5)
    return not thread.is_alive()


class Reporter:
    """Reports one attempt. `lost` and `reason_to_leave` tell the training to end."""

    def __init__(
        self, study: Study, trial: Trial, memory: Callable[[], int], warn: Callable[[str], None]
    ):
        """memory: returns the bytes that the training takes. warn: is told about outages."""
        self.study = study
        self.trial = trial
        # Whether another worker holds the trial now.
        self.lost = False
        # Why to hand the trial back, if the study is paused or stopped or its budget is spent.
        self.reason_to_leave = ""
        self._memory = memory
        self._warn = warn
        # Guards the points, the step and where the training goes back to.
        self._lock = threading.Lock()
        self._undelivered: list[Point] = []
        self._step = 0
        self._delivered_step = 0
        # Whether the training goes back, and after which point; None: to its beginning.
        self._goes_back = False
        self._goes_back_to: Point | None = None
        # Whether the training showed a sign of life since the last delivery.
        self._alive = False
        self._alive_until = 0.0
        self._began_at = time.monotonic()
        self._seconds = 0.0
        # The lease certainly lasts for its length from here.
        self._confirmed_at = time.monotonic()
        self.lease_seconds = study.spec.attempts.lease_seconds
        self._database_is_away = False
        self._looked_at_budget = time.monotonic()
        self._fault: Exception | None = None
        self._wake = threading.Event()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, name="reporter", daemon=True)
        self._thread.start()

    def at(self, step: int, point: Point | None = None) -> None:
        """Report a step that is done, with a point if the training was evaluated there.

        Raises the error that ended the thread, if one did.
        """
        self.alive()
        self._step = step
        if point is not None:
            with self._lock:
                self._undelivered.append(point)
            self._wake.set()

    def alive(self) -> None:
        """Report that the training works, although no step is done.

        Raises the error that ended the thread, if one did.
        """
        if self._fault:
            raise self._fault
        self._seconds = time.monotonic() - self._began_at
        self._alive = True

    def alive_for(self, seconds: float) -> None:
        """Report that the training works and may be silent for this long."""
        self._alive_until = time.monotonic() + seconds

    def go_back(self, last: Point | None) -> None:
        """Report that the training continues after this point of its curve; None: from step 0.

        Later points are removed from the database before new ones are delivered.
        """
        step = last.step if last else 0
        with self._lock:
            self._must_go_back_to(last)
            if last is None:
                self._undelivered = []
            else:
                self._undelivered = [point for point in self._undelivered if point.step <= step]
            self._step = step

    def _must_go_back_to(self, last: Point | None) -> None:
        """Note where the next delivery goes back to: the earliest point that was asked for.

        The caller holds the lock.
        """
        if not self._goes_back:
            self._goes_back = True
            self._goes_back_to = last
        elif last is None or self._goes_back_to is None:
            self._goes_back_to = None
        elif last.step < self._goes_back_to.step:
            self._goes_back_to = last

    def holds(self) -> bool:
        """Whether this attempt certainly holds the trial.

        A process that was suspended or cut off for longer than its lease must ask first.
        """
        return not self.lost and time.monotonic() - self._confirmed_at < self.lease_seconds

    def may_write(self) -> bool:
        """Whether this attempt may add to the trial's files.

        It may while the database is away: that can hold for all workers, and the work must not be
        lost.
        """
        return self.holds() or (self._database_is_away and not self.lost)

    def close(self, given_up: Callable[[], bool] = lambda: False) -> float:
        """End the thread, perhaps with undelivered points. Returns the attempt's seconds."""
        self._over.set()
        self._wake.set()
        _joined(self._thread, given_up)
        return time.monotonic() - self._began_at

    def deliver(self) -> None:
        """Deliver everything once, now. Raises DatabaseAwayError and keeps what it could not."""
        with self._lock:
            step = self._step
            points = list(self._undelivered)
            goes_back = self._goes_back
            last = self._goes_back_to
            self._alive = False
            self._goes_back = False
        asked_at = time.monotonic()
        is_held = self._deliver_going_back(last) if goes_back else True
        if is_held:
            is_held = self.study.deliver(self.trial, points, step, self._seconds, self._memory())
        self._confirmed_at = asked_at
        self._delivered_step = step
        self._database_is_away = False
        delivered = {id(point) for point in points}
        with self._lock:
            self._undelivered = [point for point in self._undelivered if id(point) not in delivered]
        if is_held:
            self._look_for_reason_to_leave(asked_at)
        else:
            self.lost = True

    def _deliver_going_back(self, last: Point | None) -> bool:
        """Returns False if another worker holds the trial now."""
        step = last.step if last else 0
        curve = [last] if last else []
        try:
            return self.study.resume(self.trial, step, curve)
        except DatabaseAwayError:
            # Try again at the next delivery. Meanwhile the training may have gone back once more.
            with self._lock:
                self._must_go_back_to(last)
            raise

    def _look_for_reason_to_leave(self, now: float) -> None:
        is_budget_due = now - self._looked_at_budget > LOOK_SECONDS
        if is_budget_due:
            self._looked_at_budget = now
        reason = self.study.why_hand_back(is_budget_due)
        if reason:
            self.reason_to_leave = reason

    def _has_news(self) -> bool:
        is_alive = self._alive or time.monotonic() < self._alive_until
        return bool(self._undelivered) or is_alive or self._step != self._delivered_step

    def _work(self) -> None:
        """Deliver again and again, until the attempt ends or the trial is lost."""
        backoff = Backoff()
        pause = RENEW_SECONDS - TOGETHER_SECONDS
        while not self._over.is_set() and not self.lost:
            self._wake.wait(pause)
            self._wake.clear()
            if self._over.is_set() or not self._has_news():
                continue
            try:
                self.deliver()
                # Points that come soon after are delivered together.
                self._over.wait(TOGETHER_SECONDS)
                backoff = Backoff()
                pause = RENEW_SECONDS - TOGETHER_SECONDS
            except DatabaseAwayError as error:
                if not self._database_is_away:
                    self._warn(f"trial {self.trial.number}: {error}; training continues")
                self._database_is_away = True
                pause = backoff.seconds()
            except Exception as error:
                # `at` and `alive` raise it in the training.
                self._fault = error
                return
