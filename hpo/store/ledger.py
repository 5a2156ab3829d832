"""What is read and written of our tables, and the locks: who holds which trial, its attempts, and its fine curve.

A worker holds a lease on its trial and renews it while steps advance. An expired lease may be taken by anyone; so may
that of a process which is known to be dead because it ran on this host. What a worker writes of its trial, to Optuna's
tables too, it writes in transactions that begin with a look at its lease (`fenced`).
"""

import os
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from math import isfinite
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, String, case, cast, event, exists, func, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.engine import Connection, Row

from hpo.curve import Point
from hpo.store.tables import IMPORTED, attempt_table, curve_table, optuna_attributes, optuna_trials, result_table, score_table, trial_table
from hpo.trainer import Score

LOCK_CLASS = 0x4850  # first key of our advisory locks; the second is the study, 0 for the list of studies
VALIDATION = "validation"  # the partition that a search scores on
ENQUEUED = "enqueued"  # attribute of a trial that a person put into the queue: by whom
LOCK_IDLE = "30s"  # a process that is halted while it holds a lock loses its session, and with it the lock, after so long


class LeaseLostError(Exception):
    """The trial is another's by now. Nothing was written."""


_fence: ContextVar[tuple[int, str] | None] = ContextVar("_fence", default=None)


@contextmanager
def fenced(trial_id: int, lease: str) -> Iterator[None]:
    """Every transaction that begins meanwhile (Optuna's) holds the lease's row until it ends, or raises LeaseLostError.

    On engines that `fence_transactions` knows.
    """
    token = _fence.set((trial_id, lease))
    try:
        yield
    finally:
        _fence.reset(token)


def fence_transactions(engine: Engine) -> None:
    event.listen(engine, "begin", _check_fence)


def _check_fence(connection: Connection) -> None:
    if (held := _fence.get()) is not None:
        statement = select(trial_table.c.trial_id).where(_held(*held)).with_for_update()
        if connection.execute(statement).first() is None:
            raise LeaseLostError


@dataclass(frozen=True)
class Process:
    """A process among all hosts. `identity` holds its start time, so a pid that is used again is another process."""

    host: str
    identity: str

    @classmethod
    def this(cls) -> "Process":
        return cls(_host(), f"{os.getpid()}:{_start_time(os.getpid())}")


def _host() -> str:
    """Host name, with what tells cloned machines of one name apart (the kernel's boot) and containers (the process-id
    namespace): a pid means something in one boot and one namespace only.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()} {boot} {Path('/proc/self/ns/pid').readlink().name}"
    except OSError:
        return socket.gethostname()


def this_host() -> str:
    """As trials record it."""
    return socket.gethostname()


def _start_time(pid: int) -> str | None:
    """Clock ticks since boot when `pid` started; None if it is not there or a zombie; empty where there is no /proc."""
    if not Path("/proc/self/stat").exists():
        return ""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else fields[18]


def known_dead(host: str, identity: str) -> bool:
    """Whether a process has surely ended: it ran on this host and is not there any more."""
    pid, _, start = identity.partition(":")
    return host == _host() and start != "" and _start_time(int(pid)) != start


@contextmanager
def locked(engine: Engine, study_id: int) -> Iterator[Connection]:
    """A connection that alone works on the study (0: on the list of studies). Each statement on it commits at once.

    The lock is the session's, not a transaction's: Optuna writes on a connection of its own meanwhile, and would wait for
    ever for a row that an open transaction of ours has touched.
    """
    keys = (LOCK_CLASS, study_id)
    idle = text("SELECT set_config('idle_session_timeout', :value, false)")
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(idle, {"value": LOCK_IDLE})
        connection.execute(select(func.pg_advisory_lock(*keys)))
        try:
            yield connection
        finally:
            if not connection.invalidated:
                connection.execute(select(func.pg_advisory_unlock(*keys)))
                connection.execute(idle, {"value": "0"})


@contextmanager
def alone(engine: Engine) -> Iterator[None]:
    """While no other process is here too. Around what creates tables: Postgres lets one of two
    CREATE TABLE IF NOT EXISTS at once fail.
    """
    with locked(engine, 0):
        yield


# ---- leases


def _held(trial_id: int, lease: str) -> Any:
    return (trial_table.c.trial_id == trial_id) & (trial_table.c.lease == lease)


def _lease_end(seconds: float) -> Any:
    return func.now() + func.make_interval(0, 0, 0, 0, 0, 0, seconds)


def take_lease(connection: Connection, trial_id: int, lease: str, process: Process, record: dict[str, Any], seconds: float) -> int:
    """Make `process` the holder for `seconds`. Returns which attempt this is, from 1."""
    table = trial_table.c
    row = {"lease": lease, "lease_until": _lease_end(seconds), "host": process.host, "process": process.identity, "memory": None, **record}
    statement = insert(trial_table).values(trial_id=trial_id, attempts=1, **row)
    again = {**row, "attempts": table.attempts + 1, "seconds_before": table.seconds}
    statement = statement.on_conflict_do_update(index_elements=["trial_id"], set_=again)
    attempt = int(connection.execute(statement.returning(table.attempts)).scalar_one())
    made_by = {"host": process.host, "process": process.identity, "device": record["device"], "code_version": record["code_version"]}
    connection.execute(insert(attempt_table).values(trial_id=trial_id, attempt=attempt, **made_by))
    return attempt


def renew_lease(connection: Connection, trial_id: int, lease: str, seconds: float, worked: float | None = None, **values: Any) -> bool:
    """Renew for `seconds`, and write `values` with it. False: the trial is another's by now, nothing was written.

    worked: seconds of this attempt so far. Told again they count once; trainings that share a GPU share its time.
    """
    table = trial_table.c
    if worked is not None:
        other = trial_table.alias()
        beside = select(func.count()).where(other.c.host == table.host, other.c.device == table.device, other.c.lease.is_not(None),
                                            other.c.lease_until > func.now()).scalar_subquery()  # fmt: skip
        share = case((table.device.like("cuda%"), func.greatest(1, beside)), else_=1)
        total = func.greatest(table.seconds, table.seconds_before + worked)
        values |= {"seconds": total, "gpu_seconds": table.gpu_seconds + (total - table.seconds) / share}
    statement = update(trial_table).where(_held(trial_id, lease)).values(lease_until=_lease_end(seconds), **values)
    return connection.execute(statement).rowcount == 1


def drop_lease(connection: Connection, trial_id: int, lease: str, seen: datetime | None = None) -> int | None:
    """Nobody holds the trial now. Returns which attempt that ends; None: another holds it, or its holder has renewed the lease
    since its end was `seen`.
    """
    held = _held(trial_id, lease) if seen is None else _held(trial_id, lease) & (trial_table.c.lease_until == seen)
    gone = update(trial_table).where(held).values(lease=None, lease_until=None)
    return connection.execute(gone.returning(trial_table.c.attempts)).scalar()


def ended_by_hand(connection: Connection, trial_id: int, lease: str) -> bool:
    """Whether a person has ended the trial in optuna-dashboard, and not its holder. Then nobody holds it any more."""
    last = (attempt_table.c.trial_id == trial_table.c.trial_id) & (attempt_table.c.attempt == trial_table.c.attempts)
    both = trial_table.join(optuna_trials, optuna_trials.c.trial_id == trial_table.c.trial_id).join(attempt_table, last)
    state = select(cast(optuna_trials.c.state, String), attempt_table.c.outcome).select_from(both).where(_held(trial_id, lease))
    row = connection.execute(state).first()
    if row is None or row[0] == "RUNNING" or row.outcome is not None:  # the last: its holder tells the outcome again
        return False
    if attempt := drop_lease(connection, trial_id, lease):
        end_attempt(connection, trial_id, attempt, "stopped", "ended by hand")
    return True


def take_away(connection: Connection, trial_id: int, outcome: str, reason: str) -> bool | None:
    """Nobody holds the trial now, and who did finds out why. Returns whether it has a configuration; None: it is over already.

    In one transaction, which waits for the one in which its holder ends it.
    """
    connection.execute(select(trial_table.c.trial_id).where(trial_table.c.trial_id == trial_id).with_for_update())
    state = select(cast(optuna_trials.c.state, String)).where(optuna_trials.c.trial_id == trial_id)
    if connection.execute(state).scalar_one() not in ("RUNNING", "WAITING"):
        return None
    row = rows_of(connection, [trial_id]).get(trial_id)
    if row is not None and row.lease is not None:
        end_attempt(connection, trial_id, row.attempts, outcome, reason)
        drop_lease(connection, trial_id, row.lease)
    return row is not None and bool(row.config)


def end_attempt(connection: Connection, trial_id: int, attempt: int, outcome: str, reason: str) -> None:
    """outcome: complete, stopped, by hand, or a Cause. The last word counts."""
    step = select(trial_table.c.step).where(trial_table.c.trial_id == trial_id).scalar_subquery()
    mine = (attempt_table.c.trial_id == trial_id) & (attempt_table.c.attempt == attempt)
    ended = {"ended": func.now(), "last_step": step, "outcome": outcome, "reason": reason}
    connection.execute(update(attempt_table).where(mine).values(ended))


def beside(connection: Connection, trial_id: int) -> int:
    """How many other trials are being trained on the trial's device."""
    table, other = trial_table.c, trial_table.alias().c
    same = (other.host == table.host) & (other.device == table.device) & (other.trial_id != trial_id)
    held = other.lease.is_not(None) & (other.lease_until > func.now())
    return int(connection.execute(select(func.count()).where(table.trial_id == trial_id, same, held)).scalar_one())


def begin_attempt(connection: Connection, trial_id: int, attempt: int, step: int) -> None:
    """It goes on after `step`."""
    mine = (attempt_table.c.trial_id == trial_id) & (attempt_table.c.attempt == attempt)
    connection.execute(update(attempt_table).where(mine).values(first_step=step))


def orphans(connection: Connection, study_id: int, idle: Process | None) -> list[tuple[int, str | None, datetime | None, bool]]:
    """(id, lease, its end, whether `idle` had it) of the study's running trials that nobody works on: without a lease, with an expired
    one, of a dead holder.

    idle: a process that works on none. The caller holds the study's lock. A claim writes Optuna's row and ours under
    it, so a trial without a lease here was claimed by a process that died in between.
    """
    table, trials = trial_table.c, optuna_trials.c
    late = (table.lease_until < func.now()).label("late")
    statement = select(trials.trial_id, table.lease, table.lease_until, table.host, table.process, late)
    statement = statement.join_from(optuna_trials, trial_table, trials.trial_id == table.trial_id, isouter=True)

    def of_idle(row: Row[Any]) -> bool:
        return Process(row.host, row.process) == idle

    def gone(row: Row[Any]) -> bool:
        return row.lease is None or row.late or of_idle(row) or known_dead(row.host, row.process)

    rows = connection.execute(statement.where(trials.study_id == study_id, cast(trials.state, String) == "RUNNING"))
    return [(row.trial_id, row.lease, row.lease_until, of_idle(row)) for row in rows if gone(row)]


# ---- where a study stands


def _own(study_id: int) -> Any:
    """The study's trials, without imported ones."""
    attributes = optuna_attributes.c
    imported = select(attributes.trial_id).where(attributes.key == IMPORTED, attributes.trial_id == optuna_trials.c.trial_id)
    return (optuna_trials.c.study_id == study_id) & ~imported.exists()


def counts(connection: Connection, study_id: int) -> dict[str, int]:
    """Trials by Optuna's name of their state."""
    state = cast(optuna_trials.c.state, String)
    statement = select(state, func.count()).where(_own(study_id)).group_by(state)
    return {row[0]: row[1] for row in connection.execute(statement)}


def gpu_time(connection: Connection, study_id: int) -> tuple[float, float, float | None]:
    """GPU-seconds: of all trials; that the running ones will still take; of a complete trial on average (None: of none)."""
    table, state = trial_table.c, cast(optuna_trials.c.state, String)
    of_study = optuna_trials.join(trial_table, optuna_trials.c.trial_id == table.trial_id)
    mine = _own(study_id)
    complete = func.avg(table.gpu_seconds).filter(state == "COMPLETE")
    spent, typical = connection.execute(
        select(func.coalesce(func.sum(table.gpu_seconds), 0), complete).select_from(of_study).where(mine)
    ).one()
    left = func.sum(func.greatest(0, (typical or 0.0) - table.gpu_seconds))
    promised = connection.execute(select(func.coalesce(left, 0)).select_from(of_study).where(mine, state == "RUNNING")).scalar_one()
    return spent, promised, typical


def now(connection: Connection) -> datetime:
    found: datetime = connection.execute(select(func.now())).scalar_one()
    return found


def waiting(connection: Connection, study_id: int) -> list[Row[Any]]:
    """Trials that wait, those that a person put in first: trial_id, number, gpu_seconds so far, and outcome and host of the last
    attempt (None: there was none).
    """
    table, trials, attempt = trial_table.c, optuna_trials.c, attempt_table.c
    last = (attempt.trial_id == table.trial_id) & (attempt.attempt == table.attempts)
    joined = optuna_trials.outerjoin(trial_table, trials.trial_id == table.trial_id).outerjoin(attempt_table, last)
    seconds = func.coalesce(table.gpu_seconds, 0).label("gpu_seconds")
    statement = select(trials.trial_id, trials.number, seconds, attempt.outcome, attempt.host)
    statement = statement.select_from(joined).where(trials.study_id == study_id, cast(trials.state, String) == "WAITING")
    by_hand = exists().where(optuna_attributes.c.trial_id == trials.trial_id, optuna_attributes.c.key == ENQUEUED)
    return list(connection.execute(statement.order_by(by_hand.desc(), trials.number)))


def works_elsewhere(connection: Connection, study_id: int, host: str) -> bool:
    """Whether another host holds a trial of the study now."""
    table, trials = trial_table.c, optuna_trials.c
    statement = select(table.trial_id).join(optuna_trials, trials.trial_id == table.trial_id)
    statement = statement.where(trials.study_id == study_id, table.host != host, table.lease.is_not(None), table.lease_until > func.now())
    return connection.execute(statement.limit(1)).first() is not None


def outcomes(connection: Connection, study_id: int, host: str, here: bool, limit: int) -> list[str]:
    """Of the last attempts that ended on `host`, or on all others; the newest first."""
    attempt, trials = attempt_table.c, optuna_trials.c
    place = attempt.host == host if here else attempt.host != host
    statement = select(attempt.outcome).join(optuna_trials, trials.trial_id == attempt.trial_id)
    statement = statement.where(trials.study_id == study_id, place, attempt.outcome.is_not(None)).order_by(attempt.ended.desc())
    return list(connection.execute(statement.limit(limit)).scalars())


def attempts_of(connection: Connection, trial_ids: list[int]) -> dict[int, list[Row[Any]]]:
    """In order."""
    statement = select(attempt_table).where(attempt_table.c.trial_id.in_(trial_ids))
    found: dict[int, list[Row[Any]]] = {trial_id: [] for trial_id in trial_ids}
    for row in connection.execute(statement.order_by(attempt_table.c.trial_id, attempt_table.c.attempt)):
        found[row.trial_id].append(row)
    return found


# ---- curves


def add_points(connection: Connection, trial_id: int, attempt: int | None, points: list[Point]) -> None:
    """Those that are there are kept."""
    if not points:
        return
    rows = [
        {
            "trial_id": trial_id,
            "attempt": attempt,
            "step": point.step,
            "value": point.value,
            "loss": point.loss,
            "validation_loss": point.validation_loss,
            # JSON has no word for what is not finite.
            "metrics": {name: value for name, value in point.metrics.items() if isfinite(value)},
        }
        for point in points
    ]
    statement = insert(curve_table).values(rows)
    connection.execute(statement.on_conflict_do_nothing(index_elements=["trial_id", "step"]))


def add_imported(connection: Connection, trial_id: int, config: dict[str, Any], points: list[Point]) -> None:
    """What a trial that was trained outside has: no attempt, no time. Told twice it is written once."""
    row = {"trial_id": trial_id, "config": config, "step": points[-1].step}
    connection.execute(insert(trial_table).values(row).on_conflict_do_nothing(index_elements=["trial_id"]))
    add_points(connection, trial_id, None, points)


def forget_curve_after(connection: Connection, trial_id: int, step: int) -> None:
    """A trial that goes on from `step` writes what comes after it again."""
    connection.execute(curve_table.delete().where((curve_table.c.trial_id == trial_id) & (curve_table.c.step > step)))


def rows_of(connection: Connection, trial_ids: list[int]) -> dict[int, Row[Any]]:
    """Of hpo_trial, with outcome and reason of the last attempt, and `scored`: whether it has a final score."""
    last = (attempt_table.c.trial_id == trial_table.c.trial_id) & (attempt_table.c.attempt == trial_table.c.attempts)
    score = score_table.c
    scored = exists().where(score.trial_id == trial_table.c.trial_id, score.partition == VALIDATION).label("scored")
    statement = select(*trial_table.c, scored, attempt_table.c.outcome, attempt_table.c.reason)
    statement = statement.select_from(trial_table.outerjoin(attempt_table, last))
    rows: Iterable[Row[Any]] = connection.execute(statement.where(trial_table.c.trial_id.in_(trial_ids)))
    return {row.trial_id: row for row in rows}


def place_of(connection: Connection, trial_id: int) -> tuple[int, int]:
    """Study and number of a trial. Raises KeyError."""
    trials = optuna_trials.c
    row = connection.execute(select(trials.study_id, trials.number).where(trials.trial_id == trial_id)).first()
    if row is None:
        raise KeyError(trial_id)
    return row.study_id, row.number


def curves_of(connection: Connection, trial_ids: list[int]) -> dict[int, list[Point]]:
    table = curve_table.c
    statement = select(table.trial_id, table.step, table.value, table.loss, table.validation_loss, table.metrics)
    statement = statement.where(table.trial_id.in_(trial_ids)).order_by(table.step)
    curves: dict[int, list[Point]] = {trial_id: [] for trial_id in trial_ids}
    for trial_id, *values in connection.execute(statement):
        curves[trial_id].append(Point(*values))
    return curves


def put_scores(connection: Connection, trial_id: int, scores: Mapping[str, Score]) -> None:
    """By partition, in the place of those that an attempt before has written."""
    if not scores:
        return
    rows = [
        {"trial_id": trial_id, "partition": name, "errors": list(score.errors), "lengths": list(score.lengths)}
        for name, score in scores.items()
    ]
    statement = insert(score_table).values(rows)
    again = {"errors": statement.excluded.errors, "lengths": statement.excluded.lengths}
    connection.execute(statement.on_conflict_do_update(index_elements=["trial_id", "partition"], set_=again))


def scores_of(connection: Connection, trial_ids: list[int], partition: str) -> dict[int, Score]:
    """By trial id, of those that have a score on the partition."""
    table = score_table.c
    statement = select(table.trial_id, table.errors, table.lengths)
    statement = statement.where(table.partition == partition, table.trial_id.in_(trial_ids))
    rows = connection.execute(statement)
    return {row.trial_id: Score(tuple(row.errors), tuple(row.lengths)) for row in rows}


# ---- findings


def put_result(connection: Connection, study_id: int, kind: str, content: dict[str, Any]) -> None:
    """Instead of the one of this kind that is there."""
    statement = insert(result_table).values(study_id=study_id, kind=kind, content=content)
    again = {"content": statement.excluded.content, "made": func.now()}
    connection.execute(statement.on_conflict_do_update(index_elements=["study_id", "kind"], set_=again))


def results_of(connection: Connection, study_id: int) -> dict[str, dict[str, Any]]:
    """By kind, each with `made`."""
    rows = connection.execute(select(result_table).where(result_table.c.study_id == study_id))
    return {row.kind: {**row.content, "made": row.made.astimezone(UTC).isoformat(timespec="seconds")} for row in rows}
