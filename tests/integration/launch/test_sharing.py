"""How many trainings share a device: decisions from measurements, and once for real on the CPU."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.studies import long

from hpo.errors import CallerError
from hpo.launch import sharing
from hpo.launch.launcher import Launcher, plan_workers
from hpo.launch.sharing import Sharing
from hpo.space.load import load_spec
from hpo.store.database import Database
from hpo.study.study import Study
from hpo.worker.dataset import look_at_data
from hpo.worker.device import free_memory

GIB = 2**30


def settle(rate_of: Callable[[int], float], free_of: Callable[[int], int]) -> Sharing:
    """Ask every second how many trainings to run, until the answer is settled.

    `n` trainings make rate_of(n) steps a second in all, and leave free_of(n) bytes free.
    """
    sharing = Sharing(free_alone=free_of(0))
    running, steps, second = 1, 0.0, 0
    while not sharing.settled:
        steps += rate_of(running)
        second += 1
        running += sharing.look(running, round(steps), free_of(running), float(second))
        assert second < 10_000
    assert running == sharing.count
    return sharing


def plenty(running: int) -> int:
    return 80 * GIB - running * GIB


def test_trainings_are_added_while_the_total_rate_grows_by_a_tenth() -> None:
    assert settle(lambda n: 10.0 * min(n, 3), plenty).count == 3
    assert settle(lambda n: 10.0, plenty).count == 1
    # From 11 to 12 is less than a tenth.
    assert settle(lambda n: 10.0 + n, plenty).count == 1
    # The sixth adds 9.5 %.
    assert settle(lambda n: 100.0 * n**0.5, plenty).count == 5


def test_no_training_is_added_that_does_not_fit_in_memory() -> None:
    # 3 GiB are left, and 3.6 would be needed.
    assert settle(lambda n: 10.0 * n, lambda n: 9 * GIB - n * 3 * GIB).count == 2
    assert settle(lambda n: 10.0 * n, lambda n: 10 * GIB - n * 6 * GIB).count == 1


def test_nothing_is_measured_before_all_have_shown_a_step() -> None:
    sharing = Sharing(free_alone=80 * GIB, count=2, rates=[10.0])
    for second in range(200):
        assert sharing.look(1, 100, 70 * GIB, float(second)) == 0
    assert sharing.rates == [10.0]


def test_a_training_that_goes_back_begins_the_measurement_anew() -> None:
    sharing = Sharing(free_alone=80 * GIB)
    for second, steps in ((0, 500), (30, 800), (61, 100), (62, 100)):
        assert sharing.look(1, steps, 70 * GIB, float(second)) == 0
    assert sharing.rates == []
    assert sharing.look(1, 700, 70 * GIB, 123.0) == 1
    assert sharing.rates == [pytest.approx(600 / 61)]


def test_out_of_memory_ends_the_growth() -> None:
    sharing = Sharing(free_alone=80 * GIB, count=3)
    sharing.out_of_memory()
    assert (sharing.count, sharing.settled) == (2, True)
    assert sharing.look(3, 0, 0) == 0


def test_the_options_make_a_plan_of_workers() -> None:
    assert plan_workers(None, "cpu", "3").devices == ("cpu",) * 3
    auto = plan_workers(None, "cpu", "auto")
    assert (auto.devices, auto.grow, auto.threads) == (("cpu",), True, 1)
    for per_gpu in ("0", "-1", "many", "1.5"):
        with pytest.raises(CallerError, match="valid is auto, or a number from 1"):
            plan_workers(None, "cpu", per_gpu)
    with pytest.raises(CallerError, match="give one of them"):
        plan_workers(2, "cpu", "2")


@pytest.mark.slow
def test_workers_join_and_leave_on_a_real_device_and_no_trial_is_lost(
    database: Database, tiny_space: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second worker is tried and measured, and every trial handed back.

    How many workers pay depends on the machine.
    """
    monkeypatch.setattr(sharing, "WINDOW_SECONDS", 3.0)
    tiny_space.write_text(long(1_000_000, 1_000_000))
    spec = load_spec(tiny_space)
    facts = look_at_data(tiny_data, spec).facts
    study = Study.create_or_open(database, "shared", spec, facts)
    launcher = Launcher(study, database, plan_workers(None, "cpu", "auto"), tiny_data)
    most = 0
    asked_to_stop = False

    def show() -> bool:
        nonlocal most, asked_to_stop
        most = max(most, len(launcher.running))
        if len(launcher.sharing["cpu"].rates) == 2 and not asked_to_stop:
            asked_to_stop = True
            os.kill(os.getpid(), signal.SIGTERM)
        return True

    assert launcher.run(show) == "interrupted"
    rates = launcher.sharing["cpu"].rates
    assert len(rates) == 2
    assert all(rate > 0 for rate in rates)
    assert most >= 2
    records = study.records()
    assert {record.state for record in records} == {"waiting"}
    assert sum(record.step > 0 for record in records) >= 2
    free = free_memory("cpu")
    assert free is not None
    assert 0 < free < 2**50


@pytest.mark.parametrize(
    ("table", "free"),
    [
        ("MemTotal: 9 kB\nMemFree: 4 kB\nMemAvailable:    7 kB\n", 7 * 1024),
        ("MemTotal: 9 kB\nMemFree:         4 kB\n", 4 * 1024),
        ("a line: of: another kind\n\nMemFree: 4 kB", 4 * 1024),
        ("MemAvailable: unknown\n", None),
        ("", None),
        (None, None),
    ],
)
def test_a_machine_that_does_not_tell_its_free_memory_shares_nothing(
    tmp_path: Path, table: str | None, free: int | None
) -> None:
    path = tmp_path / "meminfo"
    if table is not None:
        path.write_text(table)
    assert free_memory("cpu", path) == free
