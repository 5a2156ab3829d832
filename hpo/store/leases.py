"""Which worker holds which trial.

A worker holds a lease on its trial and renews it while steps advance. Anyone may take over an
expired lease, or the lease of a process that ran on this host and is known to be dead. Whatever a
worker writes about its trial, in Optuna's tables too, it writes in transactions that first check
its lease (`fenced`).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Engine, String, case, cast, event, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.engine import Connection, Row

from hpo.process import Process, known_dead
from hpo.store.tables import LAST_ATTEMPT, attempt_table, optuna_trials, trial_table
from hpo.store.trials import rows_of


class LeaseLostError(Exception):
    """Another worker holds the trial; the write was rolled back."""


@dataclass(frozen=True)
class Lease:
    """A worker's claim on a trial, which ends `seconds` after each renewal."""

    trial_id: int
    token: str
    seconds: float


@dataclass(frozen=True)
class Orphan:
    """A running trial that nobody works on."""

    trial_id: int
    # None if the process that claimed the trial died before it wrote a lease.
    token: str | None
    lease_until: datetime | None
    # Whether its holder is alive, and does not know that it holds the trial.
    is_holder_alive: bool


_fence: ContextVar[tuple[int, str] | None] = ContextVar("_fence", default=None)


@contextmanager
def fenced(trial_id: int, token: str) -> Iterator[None]:
    """Let only the lease's holder write: each transaction that begins meanwhile locks the lease.

    A transaction raises LeaseLostError if the lease is gone. This covers Optuna's own transactions
    too, on engines that were passed to `fence_transactions`.
    """
    before = _fence.set((trial_id, token))
    try:
        yield
    finally:
        _fence.reset(before)


def fence_transactions(engine: Engine) -> None:
    """Let `fenced` watch over the transactions of this engine."""
    event.listen(engine, "begin", _check_fence)


def _check_fence(connection: Connection) -> None:
    fence = _fence.get()
    if fence is None:
        return
    statement = select(trial_table.c.trial_id).where(_is_held(*fence)).with_for_update()
    if connection.execute(statement).first() is None:
        raise LeaseLostError


def _is_held(trial_id: int, token: str) -> Any:
    return (trial_table.c.trial_id == trial_id) & (trial_table.c.lease == token)


def _from_now(seconds: float) -> Any:
    return func.clock_timestamp() + func.make_interval(0, 0, 0, 0, 0, 0, seconds)


def take_lease(
    connection: Connection, lease: Lease, process: Process, provenance: dict[str, Any]
) -> int:
    """Make `process` the holder of the trial. Returns the number of this attempt, from 1.

    provenance: device, code_version and data of the worker.
    """
    columns = {
        "lease": lease.token,
        "lease_until": _from_now(lease.seconds),
        "host": process.host,
        "process": process.identity,
        "memory": None,
        **provenance,
    }
    table = trial_table.c
    next_attempt = {"attempts": table.attempts + 1, "seconds_before": table.seconds}
    statement = (
        insert(trial_table)
        .values(trial_id=lease.trial_id, attempts=1, **columns)
        .on_conflict_do_update(index_elements=["trial_id"], set_={**columns, **next_attempt})
        .returning(table.attempts)
    )
    attempt = int(connection.execute(statement).scalar_one())
    connection.execute(
        insert(attempt_table).values(
            # The lease is taken in the transaction of a lock, which may have begun long ago.
            begun=func.clock_timestamp(),
            trial_id=lease.trial_id,
            attempt=attempt,
            host=process.host,
            process=process.identity,
            device=provenance["device"],
            code_version=provenance["code_version"],
        )
    )
    return attempt


def renew_lease(
    connection: Connection, lease: Lease, worked: float | None = None, **columns: Any
) -> bool:
    """Renew the lease and write `columns` of hpo_trial. Returns False if another worker holds it.

    worked: seconds of this attempt so far, to be charged to the trial. Charging the same seconds
    twice counts them once.
    """
    if worked is not None:
        columns |= _charged(worked)
    statement = (
        update(trial_table)
        .where(_is_held(lease.trial_id, lease.token))
        .values(lease_until=_from_now(lease.seconds), **columns)
    )
    return connection.execute(statement).rowcount == 1


def _charged(worked: float) -> dict[str, Any]:
    """The columns `seconds` and `gpu_seconds` after `worked` seconds of this attempt.

    Trainings that share a GPU share its time. A training on several GPUs (device `cuda:0,1`) takes
    the time of each.
    """
    table = trial_table.c
    other = trial_table.alias().c
    trainings_on_device = (
        select(func.count())
        .where(
            other.host == table.host,
            other.device == table.device,
            other.lease.is_not(None),
            other.lease_until > func.now(),
        )
        .scalar_subquery()
    )
    sharing = case((table.device.like("cuda%"), func.greatest(1, trainings_on_device)), else_=1)
    indices = func.split_part(table.device, " ", 1)
    gpus = 1 + func.length(indices) - func.length(func.replace(indices, ",", ""))
    total = func.greatest(table.seconds, table.seconds_before + worked)
    return {
        "seconds": total,
        "gpu_seconds": table.gpu_seconds + (total - table.seconds) * gpus / sharing,
    }


def drop_lease(
    connection: Connection, trial_id: int, token: str, lease_until: datetime | None = None
) -> int | None:
    """End the lease. Returns the number of the attempt that ends with it.

    Returns None if another worker holds the trial, or if the lease does not end at `lease_until`
    any more because its holder has renewed it.
    """
    condition = _is_held(trial_id, token)
    if lease_until is not None:
        condition = condition & (trial_table.c.lease_until == lease_until)
    statement = (
        update(trial_table)
        .where(condition)
        .values(lease=None, lease_until=None)
        .returning(trial_table.c.attempts)
    )
    return connection.execute(statement).scalar()


def ended_by_hand(connection: Connection, trial_id: int, token: str) -> bool:
    """Whether someone ended the trial in optuna-dashboard. If so, the lease is dropped."""
    joined = trial_table.join(
        optuna_trials, optuna_trials.c.trial_id == trial_table.c.trial_id
    ).join(attempt_table, LAST_ATTEMPT)
    statement = (
        select(cast(optuna_trials.c.state, String), attempt_table.c.outcome)
        .select_from(joined)
        .where(_is_held(trial_id, token))
    )
    row = connection.execute(statement).first()
    if row is None or row[0] == "RUNNING":
        return False
    if row.outcome is not None:
        # The holder ended the trial itself, and is writing the outcome once more.
        return False
    attempt = drop_lease(connection, trial_id, token)
    if attempt:
        end_attempt(connection, trial_id, attempt, "stopped", "ended by hand")
    return True


def revoke(connection: Connection, trial_id: int, outcome: str, reason: str) -> bool | None:
    """Revoke the trial's lease and record why.

    Returns whether the trial has a configuration, or None if it is already over. Works in one
    transaction, which waits for a holder that is just ending the trial.
    """
    connection.execute(
        select(trial_table.c.trial_id).where(trial_table.c.trial_id == trial_id).with_for_update()
    )
    state = select(cast(optuna_trials.c.state, String)).where(optuna_trials.c.trial_id == trial_id)
    if connection.execute(state).scalar_one() not in ("RUNNING", "WAITING"):
        return None
    row = rows_of(connection, [trial_id]).get(trial_id)
    if row is None:
        return False
    if row.lease is not None:
        end_attempt(connection, trial_id, row.attempts, outcome, reason)
        drop_lease(connection, trial_id, row.lease)
    return bool(row.config)


def begin_attempt(connection: Connection, trial_id: int, attempt: int, step: int) -> None:
    """Record that the attempt resumes the training after `step`."""
    statement = update(attempt_table).where(_is_attempt(trial_id, attempt)).values(first_step=step)
    connection.execute(statement)


def end_attempt(
    connection: Connection, trial_id: int, attempt: int, outcome: str, reason: str
) -> None:
    """Record how the attempt ended. A later call replaces what an earlier one wrote.

    outcome: complete, stopped, by hand, or a Cause.
    """
    step = select(trial_table.c.step).where(trial_table.c.trial_id == trial_id).scalar_subquery()
    ending = {"ended": func.now(), "last_step": step, "outcome": outcome, "reason": reason}
    connection.execute(update(attempt_table).where(_is_attempt(trial_id, attempt)).values(ending))


def _is_attempt(trial_id: int, attempt: int) -> Any:
    return (attempt_table.c.trial_id == trial_id) & (attempt_table.c.attempt == attempt)


def count_sharing_device(connection: Connection, trial_id: int) -> int:
    """How many other trials are being trained on the trial's device."""
    table = trial_table.c
    other = trial_table.alias().c
    same_device = (
        (other.host == table.host) & (other.device == table.device) & (other.trial_id != trial_id)
    )
    held = other.lease.is_not(None) & (other.lease_until > func.now())
    statement = select(func.count()).where(table.trial_id == trial_id, same_device, held)
    return int(connection.execute(statement).scalar_one())


def orphans(connection: Connection, study_id: int, idle: Process | None) -> list[Orphan]:
    """The study's running trials that nobody works on.

    They have no lease, an expired one, or one whose holder is dead or `idle`, a process that works
    on no trial. The caller holds the study's lock: a claim writes Optuna's row and the lease under
    it, so a running trial without a lease was claimed by a process that died in between.
    """
    table = trial_table.c
    trials = optuna_trials.c
    is_late = (table.lease_until < func.now()).label("is_late")
    statement = (
        select(trials.trial_id, table.lease, table.lease_until, table.host, table.process, is_late)
        .join_from(optuna_trials, trial_table, trials.trial_id == table.trial_id, isouter=True)
        .where(trials.study_id == study_id, cast(trials.state, String) == "RUNNING")
    )
    found: list[Orphan] = []
    for row in connection.execute(statement):
        is_of_idle = Process(row.host, row.process) == idle
        if is_of_idle or _is_abandoned(row):
            found.append(Orphan(row.trial_id, row.lease, row.lease_until, is_of_idle))
    return found


def _is_abandoned(row: Row[Any]) -> bool:
    return row.lease is None or row.is_late or known_dead(row.host, row.process)
