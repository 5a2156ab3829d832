"""Who holds which trial.

A worker holds a lease on its trial and renews it while steps advance. An expired lease may be taken by anyone; so may
that of a process which is known to be dead because it ran on this host. What a worker writes of its trial, to Optuna's
tables too, it writes in transactions that begin with a look at its lease (`fenced`).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from typing import Any

from sqlalchemy import Engine, String, case, cast, event, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.engine import Connection, Row

from hpo.process import Process, known_dead
from hpo.store.tables import LAST_ATTEMPT, attempt_table, optuna_trials, trial_table
from hpo.store.trials import rows_of


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


def _held(trial_id: int, lease: str) -> Any:
    return (trial_table.c.trial_id == trial_id) & (trial_table.c.lease == lease)


def _lease_end(seconds: float) -> Any:
    return func.now() + func.make_interval(0, 0, 0, 0, 0, 0, seconds)


def take_lease(
    connection: Connection,
    trial_id: int,
    lease: str,
    process: Process,
    record: dict[str, Any],
    seconds: float,
) -> int:
    """Make `process` the holder for `seconds`. Returns which attempt this is, from 1."""
    table = trial_table.c
    row = {
        "lease": lease,
        "lease_until": _lease_end(seconds),
        "host": process.host,
        "process": process.identity,
        "memory": None,
        **record,
    }
    statement = insert(trial_table).values(trial_id=trial_id, attempts=1, **row)
    again = {**row, "attempts": table.attempts + 1, "seconds_before": table.seconds}
    statement = statement.on_conflict_do_update(index_elements=["trial_id"], set_=again)
    attempt = int(connection.execute(statement.returning(table.attempts)).scalar_one())
    made_by = {
        "host": process.host,
        "process": process.identity,
        "device": record["device"],
        "code_version": record["code_version"],
    }
    connection.execute(insert(attempt_table).values(trial_id=trial_id, attempt=attempt, **made_by))
    return attempt


def renew_lease(
    connection: Connection,
    trial_id: int,
    lease: str,
    seconds: float,
    worked: float | None = None,
    **values: Any,
) -> bool:
    """Renew for `seconds`, and write `values` with it. False: the trial is another's by now, nothing was written.

    worked: seconds of this attempt so far. Told again they count once; trainings that share a GPU share its time, and one that
    holds several (device `cuda:0,1`) takes that of each.
    """
    table = trial_table.c
    if worked is not None:
        other = trial_table.alias()
        beside = select(func.count()).where(other.c.host == table.host, other.c.device == table.device, other.c.lease.is_not(None),
                                            other.c.lease_until > func.now()).scalar_subquery()  # fmt: skip
        share = case((table.device.like("cuda%"), func.greatest(1, beside)), else_=1)
        indices = func.split_part(table.device, " ", 1)
        gpus = 1 + func.length(indices) - func.length(func.replace(indices, ",", ""))
        total = func.greatest(table.seconds, table.seconds_before + worked)
        values |= {
            "seconds": total,
            "gpu_seconds": table.gpu_seconds + (total - table.seconds) * gpus / share,
        }
    statement = (
        update(trial_table)
        .where(_held(trial_id, lease))
        .values(lease_until=_lease_end(seconds), **values)
    )
    return connection.execute(statement).rowcount == 1


def drop_lease(
    connection: Connection, trial_id: int, lease: str, seen: datetime | None = None
) -> int | None:
    """Nobody holds the trial now. Returns which attempt that ends; None: another holds it, or its holder has renewed the lease
    since its end was `seen`.
    """
    held = (
        _held(trial_id, lease)
        if seen is None
        else _held(trial_id, lease) & (trial_table.c.lease_until == seen)
    )
    gone = update(trial_table).where(held).values(lease=None, lease_until=None)
    return connection.execute(gone.returning(trial_table.c.attempts)).scalar()


def ended_by_hand(connection: Connection, trial_id: int, lease: str) -> bool:
    """Whether a person has ended the trial in optuna-dashboard, and not its holder. Then nobody holds it any more."""
    both = trial_table.join(optuna_trials, optuna_trials.c.trial_id == trial_table.c.trial_id).join(
        attempt_table, LAST_ATTEMPT
    )
    state = (
        select(cast(optuna_trials.c.state, String), attempt_table.c.outcome)
        .select_from(both)
        .where(_held(trial_id, lease))
    )
    row = connection.execute(state).first()
    if (
        row is None or row[0] == "RUNNING" or row.outcome is not None
    ):  # the last: its holder tells the outcome again
        return False
    if attempt := drop_lease(connection, trial_id, lease):
        end_attempt(connection, trial_id, attempt, "stopped", "ended by hand")
    return True


def take_away(connection: Connection, trial_id: int, outcome: str, reason: str) -> bool | None:
    """Nobody holds the trial now, and who did finds out why. Returns whether it has a configuration; None: it is over already.

    In one transaction, which waits for the one in which its holder ends it.
    """
    connection.execute(
        select(trial_table.c.trial_id).where(trial_table.c.trial_id == trial_id).with_for_update()
    )
    state = select(cast(optuna_trials.c.state, String)).where(optuna_trials.c.trial_id == trial_id)
    if connection.execute(state).scalar_one() not in ("RUNNING", "WAITING"):
        return None
    row = rows_of(connection, [trial_id]).get(trial_id)
    if row is not None and row.lease is not None:
        end_attempt(connection, trial_id, row.attempts, outcome, reason)
        drop_lease(connection, trial_id, row.lease)
    return row is not None and bool(row.config)


def begin_attempt(connection: Connection, trial_id: int, attempt: int, step: int) -> None:
    """It goes on after `step`."""
    mine = (attempt_table.c.trial_id == trial_id) & (attempt_table.c.attempt == attempt)
    connection.execute(update(attempt_table).where(mine).values(first_step=step))


def end_attempt(
    connection: Connection, trial_id: int, attempt: int, outcome: str, reason: str
) -> None:
    """outcome: complete, stopped, by hand, or a Cause. The last word counts."""
    step = select(trial_table.c.step).where(trial_table.c.trial_id == trial_id).scalar_subquery()
    mine = (attempt_table.c.trial_id == trial_id) & (attempt_table.c.attempt == attempt)
    ended = {"ended": func.now(), "last_step": step, "outcome": outcome, "reason": reason}
    connection.execute(update(attempt_table).where(mine).values(ended))


def beside(connection: Connection, trial_id: int) -> int:
    """How many other trials are being trained on the trial's device."""
    table, other = trial_table.c, trial_table.alias().c
    same = (
        (other.host == table.host) & (other.device == table.device) & (other.trial_id != trial_id)
    )
    held = other.lease.is_not(None) & (other.lease_until > func.now())
    return int(
        connection.execute(
            select(func.count()).where(table.trial_id == trial_id, same, held)
        ).scalar_one()
    )


def orphans(
    connection: Connection, study_id: int, idle: Process | None
) -> list[tuple[int, str | None, datetime | None, bool]]:
    """(id, lease, its end, whether `idle` had it) of the study's running trials that nobody works on: without a lease, with an expired
    one, of a dead holder.

    idle: a process that works on none. The caller holds the study's lock. A claim writes Optuna's row and ours under
    it, so a trial without a lease here was claimed by a process that died in between.
    """
    table, trials = trial_table.c, optuna_trials.c
    late = (table.lease_until < func.now()).label("late")
    statement = select(
        trials.trial_id, table.lease, table.lease_until, table.host, table.process, late
    )
    statement = statement.join_from(
        optuna_trials, trial_table, trials.trial_id == table.trial_id, isouter=True
    )

    def of_idle(row: Row[Any]) -> bool:
        return Process(row.host, row.process) == idle

    def gone(row: Row[Any]) -> bool:
        return row.lease is None or row.late or of_idle(row) or known_dead(row.host, row.process)

    rows = connection.execute(
        statement.where(trials.study_id == study_id, cast(trials.state, String) == "RUNNING")
    )
    return [(row.trial_id, row.lease, row.lease_until, of_idle(row)) for row in rows if gone(row)]
