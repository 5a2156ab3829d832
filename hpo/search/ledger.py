"""Our two tables beside Optuna's, and the locks: who holds which trial, what it is, and its fine curve.

A worker holds a lease on its trial and renews it while steps advance. An expired lease may be taken by anyone; so may
that of a process which is known to be dead because it ran on this host.
"""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    ARRAY,
    JSON,
    Column,
    DateTime,
    Double,
    Engine,
    ForeignKey,
    Integer,
    MetaData,
    String,
    Table,
    create_engine,
    func,
    select,
    text,
    update,
)  # fmt: skip
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.engine import Connection, Row
from sqlalchemy.pool import NullPool

if TYPE_CHECKING:
    from hpo.decoder.train import Progress

LEASE_SECONDS = 600  # a worker that shows no step for so long has lost its trial
LOCK_CLASS = 0x4850  # first key of our advisory locks; the second is the study, 0 for the list of studies

metadata = MetaData()
Table("trials", metadata, Column("trial_id", Integer, primary_key=True))  # Optuna's, for the foreign keys
_gone_with_trial = ForeignKey("trials.trial_id", ondelete="CASCADE")

trial_table = Table(
    "hpo_trial",
    metadata,
    Column("trial_id", Integer, _gone_with_trial, primary_key=True),
    Column("lease", String),  # the holder's token; null: nobody
    Column("lease_until", DateTime(timezone=True)),
    Column("host", String),
    Column("process", String),
    Column("device", String),
    Column("code_version", String),
    Column("data", String),  # fingerprint
    Column("config", JSON),  # dotted name -> value
    Column("attempts", Integer, nullable=False, server_default="0"),
    Column("losses", Integer, nullable=False, server_default="0"),  # holders that died or fell silent
    Column("step", Integer, nullable=False, server_default="0"),
    Column("seconds", Double, nullable=False, server_default="0"),  # over all attempts
    Column("errors", ARRAY(Integer)),  # of the final score, a sentence each
    Column("lengths", ARRAY(Integer)),
)
curve_table = Table(
    "hpo_curve",
    metadata,
    Column("trial_id", Integer, ForeignKey("trials.trial_id", ondelete="CASCADE"), primary_key=True),
    Column("step", Integer, primary_key=True),
    Column("per", Double, nullable=False),
    Column("validation_loss", Double, nullable=False),
    Column("loss", Double, nullable=False),  # training, mean since the last point
    Column("grad_norm", Double, nullable=False),  # largest since the last point
    Column("lr", Double, nullable=False),
    Column("step_seconds", Double, nullable=False),  # mean since the last point, evaluation not included
)


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
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(select(func.pg_advisory_lock(*keys)))
        try:
            yield connection
        finally:
            if not connection.invalidated:
                connection.execute(select(func.pg_advisory_unlock(*keys)))


@contextmanager
def alone(url: str, connect_arguments: dict[str, Any]) -> Iterator[None]:
    """While no other process is here too, on a connection of its own. Around what creates tables: Postgres lets one of two
    CREATE TABLE IF NOT EXISTS at once fail.
    """
    engine = create_engine(url, poolclass=NullPool, connect_args=connect_arguments)
    with locked(engine, 0):
        yield


def create_tables(connection: Connection) -> None:
    metadata.create_all(connection)


def take_lease(connection: Connection, trial_id: int, lease: str, process: Process, values: dict[str, Any]) -> int:
    """Make `process` the holder, whoever held the trial before. Returns which attempt this is, from 1."""
    row = {"lease": lease, "lease_until": _lease_end(), "host": process.host, "process": process.identity, **values}
    statement = insert(trial_table).values(trial_id=trial_id, attempts=1, **row)
    statement = statement.on_conflict_do_update(index_elements=["trial_id"], set_={**row, "attempts": trial_table.c.attempts + 1})
    return int(connection.execute(statement.returning(trial_table.c.attempts)).scalar_one())


def renew_lease(connection: Connection, trial_id: int, lease: str, **values: Any) -> bool:
    """Renew, and write `values` with it. False: the trial is another's by now, nothing was written."""
    held = (trial_table.c.trial_id == trial_id) & (trial_table.c.lease == lease)
    return connection.execute(update(trial_table).where(held).values(lease_until=_lease_end(), **values)).rowcount == 1


def drop_lease(connection: Connection, trial_id: int) -> None:
    connection.execute(update(trial_table).where(trial_table.c.trial_id == trial_id).values(lease=None, lease_until=None))


def count_loss(connection: Connection, trial_id: int) -> int:
    """The holder is gone: nobody has the trial now. Returns how often that has happened to it."""
    table = trial_table.c
    values = {"lease": None, "lease_until": None, "losses": table.losses + 1}
    statement = update(trial_table).where(table.trial_id == trial_id).values(values).returning(table.losses)
    return int(connection.execute(statement).scalar() or 1)


def lost(connection: Connection, running: list[int]) -> list[int]:
    """Those of the running trials (ids) that nobody works on: no lease, an expired one, a dead holder.

    The caller holds the study's lock. A claim writes Optuna's row and ours under it, so a trial without a lease here was
    claimed by a process that died in between.
    """
    table = trial_table.c
    late = (table.lease_until < func.now()).label("late")
    statement = select(table.trial_id, table.lease, table.host, table.process, late).where(table.trial_id.in_(running))
    rows = {row.trial_id: row for row in connection.execute(statement)}

    def gone(row: Row[Any] | None) -> bool:
        return row is None or row.lease is None or row.late or known_dead(row.host, row.process)

    return [trial_id for trial_id in running if gone(rows.get(trial_id))]


def add_point(connection: Connection, trial_id: int, since: "list[Progress]") -> None:
    """One point of the fine curve, at the last of the steps since the point before."""
    last, steps = since[-1], sum(progress.steps for progress in since)
    assert last.score is not None
    values = {
        "per": last.score.per,
        "validation_loss": last.validation_loss,
        "loss": sum(progress.loss * progress.steps for progress in since) / steps,
        "grad_norm": max(progress.grad_norm for progress in since),
        "lr": last.lr,
        "step_seconds": sum(progress.seconds * progress.steps for progress in since) / steps,
    }
    statement = insert(curve_table).values(trial_id=trial_id, step=last.step, **values)
    connection.execute(statement.on_conflict_do_update(index_elements=["trial_id", "step"], set_=values))


def forget_curve_after(connection: Connection, trial_id: int, step: int) -> None:
    """A trial that goes on from `step` writes what comes after it again."""
    connection.execute(curve_table.delete().where((curve_table.c.trial_id == trial_id) & (curve_table.c.step > step)))


def rows_of(connection: Connection, trial_ids: list[int]) -> dict[int, Row[Any]]:
    statement = select(trial_table).where(trial_table.c.trial_id.in_(trial_ids))
    return {row.trial_id: row for row in connection.execute(statement)}


def curves_of(connection: Connection, trial_ids: list[int]) -> dict[int, list[Row[Any]]]:
    statement = select(curve_table).where(curve_table.c.trial_id.in_(trial_ids)).order_by(curve_table.c.step)
    curves: dict[int, list[Row[Any]]] = {trial_id: [] for trial_id in trial_ids}
    for row in connection.execute(statement):
        curves[row.trial_id].append(row)
    return curves


def _lease_end() -> Any:
    return func.now() + text(f"interval '{LEASE_SECONDS} seconds'")
