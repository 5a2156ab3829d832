"""Locks of a study: a slow holder keeps them, a suspended one loses them and is told."""

from collections.abc import Callable

import pytest
from helpers.commands import until
from helpers.servers import execute
from helpers.studies import HERE, RECORD, claim
from sqlalchemy import make_url

from hpo.errors import DatabaseAwayError
from hpo.space.spec import StudySpec
from hpo.store import leases, locks
from hpo.store.database import Database, open_engine
from hpo.store.embedded import EmbeddedServer
from hpo.study.study import Study

Make = Callable[..., Study]
STUDY = 77
HOLDERS = f"""
FROM pg_locks JOIN pg_database ON pg_database.oid = pg_locks.database
JOIN pg_stat_activity USING (pid)
WHERE locktype = 'advisory' AND granted AND classid = {locks.LOCK_CLASS}
"""


class Holders:
    """The sessions of the server that hold a lock of hpo in one database."""

    def __init__(self, server: EmbeddedServer, database: Database):
        self.server = server
        self.here = f"{HOLDERS} AND pg_database.datname = '{make_url(database.url).database}'"

    def count(self) -> int:
        return len(execute(self.server, f"SELECT pid {self.here}"))

    def end(self) -> None:
        execute(self.server, f"SELECT pg_terminate_backend(pid) {self.here}")
        until(lambda: self.count() == 0)

    def have_shown_life_after(self, seconds: float) -> bool:
        """Whether the last statement of a holder came this long after its transaction began."""
        late = f"state_change - xact_start > interval '{seconds} s'"
        return bool(execute(self.server, f"SELECT 1 {self.here} AND {late}"))


@pytest.fixture
def holders(server: EmbeddedServer, database: Database) -> Holders:
    return Holders(server, database)


def test_a_slow_holder_keeps_its_lock(
    database: Database, holders: Holders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "IDLE_LIMIT", "2s")
    monkeypatch.setattr(locks, "BEAT_SECONDS", 0.2)
    with locks.locked(open_engine(database), STUDY):
        until(lambda: holders.have_shown_life_after(3))
        assert holders.count() == 1
    assert holders.count() == 0


def test_a_suspended_holder_loses_its_lock_to_others_and_is_told(
    database: Database, holders: Holders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "IDLE_LIMIT", "100ms")
    monkeypatch.setattr(locks, "BEAT_SECONDS", 1000)
    engine = open_engine(database)

    def hold_while_another_does() -> None:
        with locks.locked(engine, STUDY):
            until(lambda: holders.count() == 0)
            monkeypatch.setattr(locks, "IDLE_LIMIT", "30s")
            with locks.locked(engine, STUDY):
                assert holders.count() == 1

    with pytest.raises(DatabaseAwayError, match="was suspended, or cut off"):
        hold_while_another_does()


def test_a_holder_that_is_cut_off_is_told(
    database: Database, holders: Holders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "BEAT_SECONDS", 0.05)
    engine = open_engine(database)

    def hold_and_write() -> None:
        with locks.locked(engine, STUDY) as lock:
            holders.end()
            lock.last_write().execute(locks.HEARTBEAT)

    with pytest.raises(DatabaseAwayError):
        hold_and_write()


def test_an_error_under_the_lock_frees_it_and_passes(database: Database, holders: Holders) -> None:
    with pytest.raises(KeyError), locks.locked(open_engine(database), STUDY):
        raise KeyError
    assert holders.count() == 0


def test_a_claim_that_lost_the_lock_takes_no_trial(
    make_study: Make, tiny_spec: StudySpec, holders: Holders, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another one may be inside by then, so that both would start the last trial of a budget."""
    study = make_study(tiny_spec)
    take_lease = leases.take_lease

    def cut_first(*arguments: object) -> int:
        holders.end()
        return take_lease(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(leases, "take_lease", cut_first)
        with pytest.raises(DatabaseAwayError):
            study.claim(HERE, RECORD)
    assert [record.attempts for record in study.records()] == [0, 0]
    numbers = [claim(study).number for _ in range(4)]
    assert sorted(numbers) == [0, 1, 2, 3]
    assert study.claim(HERE, RECORD) is None
