"""Budgets: decisions from figures, and limits of a real study while it runs."""

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from helpers.commands import invoke
from helpers.studies import RECORD, TINY, claim, completed
from pydantic import ValidationError

from hpo.errors import SpecError, StudyError
from hpo.process import Process
from hpo.settings import explain
from hpo.space.budget import Budget, Pace, Spent, refusal, seconds_left, spent_limit
from hpo.space.load import load_spec
from hpo.space.spec import StudySpec
from hpo.store.database import Database
from hpo.study.study import Study
from hpo.study.trial import Interrupted

Make = Callable[..., Study]
NOW = datetime(2027, 1, 31, 8, tzinfo=UTC)
NOTHING = Spent(now=NOW, ended=0, running=0, failed=0, gpu_seconds=0.0, promised=0.0, typical=None)
ON_GPU = RECORD | {"device": "cuda:0 (NVIDIA H200)"}


def test_running_trials_count() -> None:
    budget = Budget(trials=4, failures=1)
    assert refusal(budget, replace(NOTHING, ended=2, running=1, failed=1)) is None
    used_up = refusal(budget, replace(NOTHING, ended=3, running=1))
    assert used_up == "the running trials use up the budget of 4 trials"
    assert refusal(budget, replace(NOTHING, ended=4)) == "the budget of 4 trials is spent"
    assert "2 trials failed" in str(refusal(budget, replace(NOTHING, failed=2)))


def test_the_limit_that_is_reached_first_gives_the_time_left() -> None:
    # Two trials share a GPU.
    pace = Pace(
        steps=1000,
        seconds=500.0,
        gpu_seconds=250.0,
        typical=80.0,
        started=10,
        running=2,
        steps_left=100,
    )
    trials = Budget(trials=20)
    assert seconds_left(trials, pace, NOW) == (10 * 80 + 100) * 0.5 / 2
    # 100 GPU-seconds, which one GPU spends.
    gpu_seconds = Budget(trials=20, gpu_hours=350 / 3600)
    assert seconds_left(gpu_seconds, pace, NOW) == pytest.approx(100)
    assert seconds_left(Budget(trials=20, gpu_hours=1), pace, NOW) == 225
    assert seconds_left(Budget(trials=20, gpu_hours=200 / 3600), pace, NOW) == 0
    in_a_minute = NOW + timedelta(seconds=60)
    assert seconds_left(Budget(trials=20, deadline=in_a_minute), pace, NOW) == 60
    early = replace(pace, typical=None, steps=60, seconds=30.0, started=2, steps_left=140)
    assert seconds_left(Budget(trials=4), early, NOW) == 85
    assert seconds_left(trials, replace(pace, running=0), NOW) is None
    assert seconds_left(trials, replace(pace, steps=0), NOW) is None


def test_gpu_hours_are_promised_to_running_trials() -> None:
    budget = Budget(gpu_hours=1)
    # Nobody knows yet what a trial takes.
    assert refusal(budget, replace(NOTHING, gpu_seconds=3500)) is None
    known = replace(NOTHING, typical=1000.0, gpu_seconds=1500)
    assert refusal(budget, known) is None
    promised = replace(known, promised=1200.0)
    assert refusal(budget, promised) == "0.25 of 1 GPU-hours are left, and a trial takes 0.278"
    # A trial that was interrupted needs less.
    assert refusal(budget, promised, done=200.0) is None
    assert spent_limit(budget, replace(known, gpu_seconds=3599)) is None
    assert spent_limit(budget, replace(known, gpu_seconds=3600)) == "1 of 1 GPU-hours are spent"


def test_a_deadline_leaves_time_for_a_whole_trial() -> None:
    budget = Budget(deadline=NOW + timedelta(hours=1))
    known = replace(NOTHING, typical=1800.0)

    def after(minutes: int) -> Spent:
        return replace(known, now=NOW + timedelta(minutes=minutes))

    assert refusal(budget, known) is None
    too_late = str(refusal(budget, after(31)))
    assert "would not end before the deadline 2027-01-31" in too_late
    assert spent_limit(budget, after(59)) is None
    assert "has passed" in str(spent_limit(budget, after(60)))


def test_changes_are_absolute_or_relative() -> None:
    budget = Budget(trials=100, gpu_hours=10)

    def changed(**changes: str) -> Budget:
        return budget.changed(changes, NOW - timedelta(days=1))

    assert changed(trials="400").trials == 400
    assert changed(trials="+50", gpu_hours="-2.5") == Budget(trials=150, gpu_hours=7.5)
    assert changed(gpu_hours="none").gpu_hours is None
    assert changed(gpu_hours="+1h30m").gpu_hours == 11.5
    assert changed(gpu_hours="-30m").gpu_hours == 9.5
    assert changed(gpu_hours="2d 12h").gpu_hours == 60
    assert changed(deadline="2027-01-31T08:00+00:00").deadline == NOW
    for wrong in (
        {"trials": "many"},
        {"trials": "-101"},
        {"trials": "none"},
        {"gpu_hours": "0"},
        {"gpu_hours": "1:30"},
        {"gpu_hours": "-10h"},
        {"gpu_hours": "h"},
        {"gpu_hours": "1e400"},
    ):
        with pytest.raises(ValidationError) as caught:
            changed(**wrong)
        if "gpu_hours" in wrong:
            line = explain(caught.value)
            assert line.startswith("gpu_hours: not a number of hours. Valid: a number"), line


def test_a_deadline_is_typed_as_people_say_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    # 23:30 there, in the night in which summer time begins.
    now = datetime(2027, 3, 27, 22, 30, tzinfo=UTC)
    expected = {
        "8h": (28, 6, 30),
        "in 2h30m": (28, 1, 0),
        "+12 hours": (28, 10, 30),
        "1d": (28, 22, 30),
        "1.5 h": (28, 0, 0),
        "today 23:45": (27, 22, 45),
        "tomorrow 8:00": (28, 6, 0),
        "Tomorrow at 08:00": (28, 6, 0),
        "18:30": (28, 16, 30),
        "2027-03-28 08:00": (28, 6, 0),
        "2027-03-28T08:00:00Z": (28, 8, 0),
        " 2027-03-29 ": (28, 22, 0),
    }
    typed = {text: Budget().changed({"deadline": text}, now).deadline for text in expected}
    monkeypatch.undo()
    time.tzset()
    moments = {
        text: datetime(2027, 3, day, hour, minute, tzinfo=UTC)
        for text, (day, hour, minute) in expected.items()
    }
    assert typed == moments


def test_a_deadline_is_moved() -> None:
    budget = Budget(deadline=NOW)
    before = NOW - timedelta(days=2)
    assert budget.changed({"deadline": "+12h"}, before).deadline == NOW + timedelta(hours=12)
    assert budget.changed({"deadline": "-1d"}, before).deadline == NOW - timedelta(days=1)
    assert budget.changed({"deadline": "none"}, before).deadline is None


@pytest.mark.parametrize(
    "text",
    [
        "8",
        "+12",
        "1:30:00",
        "tomorrow",
        "soon",
        "",
        "25:00",
        "2027-02-30",
        "2027-13-01T08:00",
        "20270131",
        "2027",
        "1900000000",
        "2027-01-31T8",
        "9999-12-31T23:59",
        "99999999999h",
        "0001-01-01",
        "-8h",
        "today 0:00",
        "2020-01-01",
    ],
)
def test_a_deadline_that_cannot_be_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(SpecError) as caught:
        Budget().changed({"deadline": text}, NOW)
    line = str(caught.value)
    assert "Valid: " in line
    assert "2027-01-31T08:00" in line or "has passed: it is 2027-01-31" in line


@pytest.mark.parametrize("text", ["8h", "tomorrow 8:00", "8:00", "480", "yes"])
def test_a_study_file_names_the_day_of_its_deadline(tiny_space: Path, text: str) -> None:
    """It is read again at every launch."""
    tiny_space.write_text(TINY.replace("trials: 4", f"trials: 4, deadline: '{text}'"))
    with pytest.raises(SpecError, match=r"budget.deadline: not a date and a time. Valid: such as"):
        load_spec(tiny_space)


def test_a_study_does_not_begin_after_its_deadline(make_study: Make, tiny_space: Path) -> None:
    tiny_space.write_text(TINY.replace("trials: 4", "trials: 4, deadline: 2020-01-01T08:00Z"))
    spec = load_spec(tiny_space)
    with pytest.raises(StudyError, match=r"study s: the deadline 2020-01-01 .* has passed: it is"):
        make_study(spec)
    assert json.loads(invoke("studies", "--json").stdout) == []


def test_a_study_file_holds_a_budget(tiny_space: Path) -> None:
    tiny_space.write_text(
        TINY.replace("trials: 4", "trials: 4, gpu_hours: 1.5, deadline: 2027-01-31T08:00:00+00:00")
    )
    budget = load_spec(tiny_space).budget
    assert (budget.gpu_hours, budget.deadline) == (1.5, NOW)
    assert str(budget).startswith("4 trials, 1.5 GPU-hours, until 2027-01-31 ")
    tiny_space.write_text(TINY.replace("trials: 4", "trials: 4, gpuhours: 1"))
    with pytest.raises(SpecError, match=r"Did you mean gpu_hours\?"):
        load_spec(tiny_space)


def test_a_budget_is_raised_and_lowered_while_the_study_runs(
    make_study: Make, database: Database, tiny_spec: StudySpec
) -> None:
    study = make_study(tiny_spec)
    running = [claim(study) for _ in range(4)]
    assert study.claim(Process.this(), RECORD) is None
    Study.open(database, "s").change_budget({"trials": "+1"})
    running.append(claim(study))
    Study.open(database, "s").change_budget({"trials": "2"})
    # Trials that had begun may end.
    for trial in running:
        assert study.finish(trial, completed(0.5))
    assert study.claim(Process.this(), RECORD) is None
    spent = "the budget of 2 trials is spent. To continue, raise it with hpo budget --study s"
    assert spent in str(study.why_over())
    with pytest.raises(StudyError, match=r"budget trials.*'few'"):
        study.change_budget({"trials": "few"})
    # The same launch line goes on with the changed budget.
    assert make_study(tiny_spec).budget.trials == 2


@pytest.mark.slow
def test_workers_that_share_a_gpu_share_its_hours(make_study: Make, tiny_spec: StudySpec) -> None:
    study = make_study(tiny_spec)
    workers = [Process("a", "1:1"), Process("a", "2:1"), Process("b", "1:1")]
    trials = [study.claim(worker, ON_GPU) for worker in workers]
    for trial in trials:
        assert trial is not None
        assert study.deliver(trial, [], 1, 100.0)
        # Delivered twice it counts once.
        assert study.deliver(trial, [], 1, 100.0)
    assert [record.gpu_seconds for record in study.records()[:3]] == [50.0, 50.0, 100.0]
    assert [record.seconds for record in study.records()[:3]] == [100.0] * 3
    assert study.standing().gpu_seconds == 200.0


def test_a_worker_learns_that_the_gpu_hours_are_spent(make_study: Make, tiny_space: Path) -> None:
    tiny_space.write_text(TINY.replace("trials: 4", "trials: 4, gpu_hours: 0.1"))
    study = make_study(load_spec(tiny_space))
    trial = claim(study)
    assert study.deliver(trial, [], 1, 359.0)
    assert study.why_hand_back() is None
    assert study.deliver(trial, [], 2, 361.0)
    assert study.why_hand_back() == "0.1 of 0.1 worker-hours are spent"
    assert study.finish(trial, Interrupted(str(study.why_hand_back())), 361.0)
    assert study.claim(Process.this(), RECORD) is None
    assert "worker-hours are spent" in str(study.why_over())
    assert study.budget_spent()
    study.change_budget({"gpu_hours": "+1"})
    assert claim(study).number == 0


def test_gpu_hours_are_not_given_twice(
    make_study: Make, database: Database, tiny_space: Path
) -> None:
    """Eight claim at once, and there is room for three trials of a tenth of an hour."""
    tiny_space.write_text(TINY.replace("trials: 4", "trials: 100, gpu_hours: 0.4"))
    study = make_study(load_spec(tiny_space))
    assert study.finish(claim(study), completed(0.5), 360.0)
    studies = [Study.open(database, "s") for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        taken = list(pool.map(lambda one: one.claim(Process.this(), RECORD), studies))
    assert sum(trial is not None for trial in taken) == 3
