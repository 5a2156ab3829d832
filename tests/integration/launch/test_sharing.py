"""How many trainings share a device: the decision by given measurements, and once for real on the CPU."""

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
from hpo.space.spec import load_spec
from hpo.store.database import Database
from hpo.study.study import Study
from hpo.worker.dataset import look_at_data
from hpo.worker.device import free_memory

GIB = 2**30


def settle(rate_of: Callable[[int], float], free_of: Callable[[int], int]) -> Sharing:
    """Ask every second what to do while `n` trainings run at rate_of(n) steps/s in all and leave free_of(n) bytes."""
    found = Sharing(free_alone=free_of(0))
    running, steps, second = 1, 0.0, 0
    while not found.settled:
        steps, second = steps + rate_of(running), second + 1
        running += found.look(running, round(steps), free_of(running), float(second))
        assert second < 10_000
    assert running == found.count
    return found


def plenty(running: int) -> int:
    return 80 * GIB - running * GIB


def test_trainings_are_added_while_the_total_rate_grows_by_a_tenth() -> None:
    assert settle(lambda n: 10.0 * min(n, 3), plenty).count == 3
    assert settle(lambda n: 10.0, plenty).count == 1
    assert settle(lambda n: 10.0 + n, plenty).count == 1  # 11 to 12: less than a tenth
    assert settle(lambda n: 100.0 * n**0.5, plenty).count == 5  # the sixth adds 9.5 %


def test_none_is_added_that_the_memory_does_not_hold() -> None:
    assert (
        settle(lambda n: 10.0 * n, lambda n: 9 * GIB - n * 3 * GIB).count == 2
    )  # 3 GiB are left, 3.6 are wanted
    assert settle(lambda n: 10.0 * n, lambda n: 10 * GIB - n * 6 * GIB).count == 1


def test_nothing_is_measured_before_all_have_shown_a_step() -> None:
    found = Sharing(free_alone=80 * GIB, count=2, rates=[10.0])
    assert [found.look(1, 100, 70 * GIB, float(second)) for second in range(200)] == [0] * 200
    assert found.rates == [10.0]


def test_a_training_that_goes_back_begins_the_measurement_anew() -> None:
    found = Sharing(free_alone=80 * GIB)
    assert [
        found.look(1, steps, 70 * GIB, float(second))
        for second, steps in ((0, 500), (30, 800), (61, 100), (62, 100))
    ] == [0] * 4
    assert found.rates == []
    assert found.look(1, 700, 70 * GIB, 123.0) == 1
    assert found.rates == [pytest.approx(600 / 61)]


def test_out_of_memory_ends_the_growth() -> None:
    found = Sharing(free_alone=80 * GIB, count=3)
    found.out_of_memory()
    assert (found.count, found.settled) == (2, True)
    assert found.look(3, 0, 0) == 0


def test_plans() -> None:
    assert plan_workers(None, "cpu", "3").devices == ("cpu",) * 3
    auto = plan_workers(None, "cpu", "auto")
    assert (auto.devices, auto.grow, auto.threads) == (("cpu",), True, 1)
    for per_gpu in ("0", "-1", "many", "1.5"):
        with pytest.raises(CallerError, match="valid is auto, or a number from 1"):
            plan_workers(None, "cpu", per_gpu)
    with pytest.raises(CallerError, match="give one of them"):
        plan_workers(2, "cpu", "2")


def test_workers_join_and_leave_on_a_real_device_and_no_trial_is_lost(
    database: Database, tiny_space: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How many pay is the machine's affair; that a second was tried and measured, and every trial handed back, is ours."""
    monkeypatch.setattr(sharing, "WINDOW_SECONDS", 3.0)
    tiny_space.write_text(long(1_000_000, 1_000_000))
    spec = load_spec(tiny_space)
    facts = look_at_data(tiny_data, spec).facts
    study = Study.create_or_open(database, "shared", spec, facts)
    launcher = Launcher(study, database, plan_workers(None, "cpu", "auto"), tiny_data)
    most = 0

    def show() -> bool:
        nonlocal most
        most = max(most, len(launcher._running))
        if len(launcher._sharing["cpu"].rates) == 2 and not launcher._asked_to_stop:
            os.kill(os.getpid(), signal.SIGTERM)
        return True

    assert launcher.run(show) == "interrupted"
    found = launcher._sharing["cpu"]
    assert len(found.rates) == 2 and all(rate > 0 for rate in found.rates)
    assert most >= 2
    records = study.records()
    assert {record.state for record in records} == {"waiting"}
    assert sum(record.step > 0 for record in records) >= 2
    assert 0 < free_memory("cpu") < 2**50
