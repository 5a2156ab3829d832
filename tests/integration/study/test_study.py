"""The life of trials in a real Postgres: budgets, leases, outcomes, and what the sampler learns."""

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path

import numpy as np
import optuna
import pytest
from helpers.studies import (
    DIVERGED,
    HERE,
    RECORD,
    TINY,
    claim,
    completed,
    curve,
    ended_process,
    point,
    report,
)
from optuna.trial import TrialState
from sqlalchemy import select, text
from sqlalchemy.engine import Connection

from hpo.analysis.effects import ended_trials
from hpo.dashboard.content import trial_note
from hpo.decoder.config import DecoderConfig
from hpo.errors import DatabaseAwayError, StudyError
from hpo.process import Process
from hpo.report.page import as_markdown
from hpo.report.report import as_text, build_report
from hpo.report.report_data import read_report_data
from hpo.report.report_page import page_of
from hpo.space.load import load_spec
from hpo.space.spec import StudySpec
from hpo.store import leases, trials
from hpo.store.database import Database
from hpo.store.tables import curve_table
from hpo.store.trials import WorkRow
from hpo.study import control
from hpo.study.pick import best_of
from hpo.study.record import in_thin_curve
from hpo.study.study import Study
from hpo.study.trial import (
    Cause,
    Completed,
    Failed,
    Interrupted,
    Outcome,
    Stopped,
    is_over,
    learned_nothing,
)
from hpo.trainer import Score

Make = Callable[..., Study]


def states(study: Study) -> list[str]:
    return [record.state for record in study.records()]


def test_starts_come_first_with_their_configurations(
    make_study: Make, tiny_spec: StudySpec
) -> None:
    study = make_study(tiny_spec)
    one, two = claim(study), claim(study)
    assert (one.start, two.start) == ("baseline", "slow")
    assert one.config == tiny_spec.config()
    assert two.config.flat() == tiny_spec.base | tiny_spec.starts["slow"] | {"seed": 1}
    assert [trial.number for trial in (one, two)] == [0, 1]
    records = study.records()
    # sgd has no eps.
    assert "optimizer.eps" not in records[1].params
    assert records[0].config == one.config.flat()
    assert (records[0].data, records[0].device) == ("f", "cpu")
    assert (records[0].attempts, records[0].state) == (1, "running")


def test_random_draws_depend_on_seed_and_number_alone(
    make_study: Make, tiny_spec: StudySpec
) -> None:
    sampler = tiny_spec.sampler.model_copy(update={"startup_trials": 99})
    spec = tiny_spec.model_copy(update={"sampler": sampler})
    one, other = make_study(spec, "a"), make_study(spec, "b")
    drawn = [claim(one).config for _ in range(4)]
    assert [claim(other).config for _ in range(4)] == drawn
    assert len({config.flat()["optimizer.lr"] for config in drawn}) == 4


@pytest.mark.slow
def test_the_budget_is_exact_with_many_workers_at_once(
    make_study: Make, database: Database, tiny_space: Path
) -> None:
    tiny_space.write_text(TINY.replace("trials: 4", "trials: 13"))
    make_study(load_spec(tiny_space))
    outcomes: list[Outcome] = [
        completed(0.5),
        DIVERGED,
        Failed("a bug", Cause.BAD_CONFIGURATION),
    ]

    def work(seed: int) -> int:
        """The number of trials that this worker ended without a failure."""
        study = Study.open(database, "s")
        kinds = np.random.default_rng(seed)
        done = 0
        while trial := study.claim(HERE, RECORD):
            outcome = outcomes[kinds.choice(3, p=[0.5, 0.4, 0.1])]
            assert study.finish(trial, outcome)
            if not isinstance(outcome, Failed):
                done += 1
        return done

    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(work, range(6))) == 13
    counts = build_report(Study.open(database, "s"))["trials"]
    assert counts["complete"] + counts["stopped"] == 13
    assert counts["running"] == 0
    assert counts["waiting"] == 0


def test_failures_are_replaced_up_to_their_cap(make_study: Make, tiny_space: Path) -> None:
    tiny_space.write_text(TINY.replace("trials: 4", "trials: 4, failures: 2"))
    study = make_study(load_spec(tiny_space))
    failed = 0
    while trial := study.claim(HERE, RECORD):
        study.finish(trial, Failed("ValueError: a bug"))
        failed += 1
    # Each trial is tried twice.
    assert failed == 6
    assert "3 trials failed, more than the budget's 2" in str(study.why_over())
    assert build_report(study)["failed_because"] == {"ValueError: a bug": 3}


def test_an_interrupted_trial_goes_on_under_its_number(
    make_study: Make, tiny_spec: StudySpec
) -> None:
    study = make_study(tiny_spec)
    first = claim(study)
    report(study, first, 2, 0.9, 3.0)
    assert study.finish(first, Interrupted(), 4.0)
    record = study.records()[0]
    assert (record.state, record.cause, record.reason) == ("waiting", "interrupted", "a signal")

    again = claim(study)
    assert (again.number, again.config) == (0, first.config)
    assert again.lease != first.lease
    assert study.resume(again, 2, [point(2, 0.9)])
    record = study.records()[0]
    assert (record.attempts, record.seconds, record.last_value) == (2, 4.0, 0.9)
    report(study, again, 4, 0.8, 1.5)
    assert curve(study, again) == [(2, 0.9, 1), (4, 0.8, 2)]
    assert study.records()[0].seconds == 5.5

    # A checkpoint from before that evaluation.
    assert study.resume(again, 1, [])
    assert curve(study, again) == []


def test_a_resumed_trial_delivers_the_points_that_were_missing(
    make_study: Make, tiny_spec: StudySpec
) -> None:
    """The database was away when the first worker evaluated; its checkpoint has the curve."""
    study = make_study(tiny_spec)
    claim(study, ended_process())
    taker = claim(study)
    points = [point(2, 0.9), point(4, 0.7)]
    assert study.resume(taker, 4, points)
    assert curve(study, taker) == [(2, 0.9, 2), (4, 0.7, 2)]
    assert study.optuna.get_trials()[0].intermediate_values == {2: 0.9, 4: 0.7}


def test_a_curve_that_another_attempt_forgot_comes_back_with_the_checkpoint(
    make_study: Make, tiny_spec: StudySpec
) -> None:
    """Without a shared folder: host a, then host b from step 0, then a with its checkpoint."""
    study = make_study(tiny_spec)
    points = [point(2, 0.9), point(4, 0.7)]
    assert study.deliver(claim(study, ended_process()), points, 4, 1.0)
    assert study.resume(claim(study, ended_process()), 0, [])
    last = claim(study)
    assert study.resume(last, 4, points)
    assert curve(study, last) == [(2, 0.9, 3), (4, 0.7, 3)]


def test_a_dead_workers_trial_is_taken_at_once(make_study: Make, tiny_spec: StudySpec) -> None:
    study = make_study(tiny_spec)
    lost = claim(study, ended_process())
    assert claim(study).number == lost.number


def test_a_living_workers_trial_is_not_taken(make_study: Make, tiny_spec: StudySpec) -> None:
    study = make_study(tiny_spec)
    assert [claim(study).number for _ in range(3)] == [0, 1, 2]
    # Nothing is known of a worker elsewhere, so its lease counts.
    claim(study, Process("another-host", "1:1"))
    study.sweep()
    assert states(study) == ["running"] * 4


def test_an_expired_lease_is_taken_and_its_holder_cannot_write(
    make_study: Make, tiny_spec: StudySpec
) -> None:
    study = make_study(tiny_spec)
    slow = claim(study, Process("another-host", "1:1"))
    with study.engine.begin() as connection:
        connection.execute(text("UPDATE hpo_trial SET lease_until = now() - interval '1 second'"))
    taker = claim(study)
    assert taker.number == slow.number
    assert not study.deliver(slow, [], 5, 1.0)
    assert not report(study, slow, 2, 0.1, 1.0)
    assert not study.finish(slow, completed(0.1))
    record = study.records()[0]
    assert record.state == "running"
    assert (record.step, record.last_value, record.seconds) == (0, None, 0.0)
    assert study.finish(taker, completed(0.5))
    assert study.records()[0].value == 0.5


def test_a_trial_whose_claim_died_half_way_is_taken(make_study: Make, tiny_spec: StudySpec) -> None:
    """Optuna says RUNNING, and nobody has a lease."""
    study = make_study(tiny_spec)
    study.optuna.ask()
    assert claim(study).number == 0


def test_a_trial_that_kills_its_workers_fails_in_the_end(
    make_study: Make, tiny_spec: StudySpec
) -> None:
    study = make_study(tiny_spec)
    assert [claim(study, ended_process()).number for _ in range(4)] == [0, 0, 0, 1]
    record = study.records()[0]
    assert (record.state, record.cause) == ("failed", "lost")
    assert record.reason == "its worker died or fell silent"


def test_how_often_a_trial_is_tried_depends_on_the_cause() -> None:
    lost, code, cut = Cause.LOST, Cause.CODE_ERROR, Cause.INTERRUPTED
    no_memory, bad = Cause.OUT_OF_MEMORY, Cause.BAD_CONFIGURATION
    to_be_tried_again = [
        [cut] * 50,
        [lost, lost],
        [code],
        [no_memory, lost],
        [lost, cut, cut, lost],
        [lost, lost, code, cut],
    ]
    ended = [
        [bad],
        [code, code],
        [lost, lost, lost],
        [lost, code, no_memory],
        [lost, cut, lost, lost],
        [code, lost, code],
    ]
    for causes in to_be_tried_again:
        assert not is_over(causes, 3), causes
    for causes in ended:
        assert is_over(causes, 3), causes
    assert not is_over([lost] * 4, 5)


def test_interruptions_are_no_losses(make_study: Make, tiny_spec: StudySpec) -> None:
    study = make_study(tiny_spec)
    for _ in range(6):
        trial = claim(study)
        assert trial.number == 0
        study.finish(trial, Interrupted())


@pytest.mark.slow
def test_an_invalid_drawn_configuration_fails_and_the_next_is_taken(
    make_study: Make, tiny_space: Path
) -> None:
    """Nesterov needs momentum; the space allows them apart."""
    tiny_space.write_text(
        "base: {optimizer.name: sgd}\nparameters:\n  optimizer.momentum: {choices: [0.0, 0.9]}\n"
        "  optimizer.nesterov: {choices: [false, true]}\nbudget: {trials: 12, failures: 12}"
    )
    study = make_study(load_spec(tiny_space))
    while trial := study.claim(HERE, RECORD):
        study.finish(trial, completed(0.5))
    failed = [record for record in study.records() if record.state == "failed"]
    assert failed
    for record in failed:
        assert "optimizer.nesterov needs optimizer.momentum above 0" in record.reason
    assert study.budget_spent()


def test_a_worker_that_lost_its_trial_does_not_wipe_the_curve(
    make_study: Make, tiny_spec: StudySpec
) -> None:
    study = make_study(tiny_spec)
    slow = claim(study, ended_process())
    taker = claim(study)
    report(study, taker, 2, 0.9, 1.0)
    assert not study.resume(slow, 0, [])
    assert curve(study, taker) == [(2, 0.9, 2)]


@pytest.mark.slow
def test_a_trial_ended_by_hand_in_the_dashboard_is_left_as_it_is(
    make_study: Make, tiny_spec: StudySpec
) -> None:
    study = make_study(tiny_spec)
    trial = claim(study)
    study.optuna.tell(trial.number, state=TrialState.FAIL)
    assert not report(study, trial, 2, 0.9, 1.0)
    assert not study.finish(trial, completed(0.5))
    record = study.records()[0]
    assert (record.state, record.cause, record.reason) == ("failed", "stopped", "ended by hand")
    assert curve(study, trial) == []


def test_a_renewal_notices_that_a_trial_was_ended_by_hand_and_frees_its_device(
    make_study: Make, tiny_spec: StudySpec
) -> None:
    study = make_study(tiny_spec)
    trial, other = claim(study), claim(study)
    study.optuna.tell(trial.number, state=TrialState.FAIL)
    assert study.shares_device(other)
    # Between evaluations.
    assert not study.deliver(trial, [], 1, 1.0)
    assert not study.shares_device(other)


def test_a_value_set_by_hand_is_no_score(make_study: Make, tiny_spec: StudySpec) -> None:
    """optuna-dashboard takes any number for a running trial."""
    study = make_study(tiny_spec)
    trial = claim(study)
    study.optuna.tell(trial.number, 0.001)
    assert not study.finish(trial, completed(0.5))
    built = build_report(study)
    assert built["best"] is None
    assert built["stopped_by"] == {"by hand": 1}
    assert study.records()[0].reason == "ended by hand"
    assert study.standing().ended == 1


def test_only_trials_that_may_change_are_read_again(make_study: Make, tiny_spec: StudySpec) -> None:
    """A launch reads them twice a second, in a study of thousands."""
    study, watcher = make_study(tiny_spec), make_study(tiny_spec)
    one, two, by_hand = claim(study), claim(study), claim(study)
    assert study.finish(one, completed(0.5))
    assert study.finish(two, Interrupted())
    # The worker of this trial does not know yet.
    study.optuna.tell(by_hand.number, state=TrialState.FAIL)
    assert states(watcher) == ["complete", "waiting", "failed"]
    assert not study.finish(by_hand, completed(0.5))
    assert study.finish(claim(study), DIVERGED)
    assert watcher.records() == study.records()

    rows_of = trials.rows_of
    read: set[int] = set()

    def rows(connection: Connection, trial_ids: list[int]) -> dict[int, WorkRow]:
        read.update(trial_ids)
        return rows_of(connection, trial_ids)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hpo.study.reader.rows_of", rows)
        running = claim(study)
        assert states(watcher) == ["complete", "stopped", "failed", "running"]
    # By the claim, which shows the policy what there is, and by the watcher.
    assert read == {running.id}


def test_a_study_that_hpo_did_not_make_is_left_alone(
    make_study: Make, database: Database, tiny_spec: StudySpec
) -> None:
    other = optuna.create_study(storage=database.url, study_name="theirs", direction="maximize")
    other.add_trial(optuna.trial.create_trial(value=1.0))
    refused = "study theirs already exists, to maximize, not to minimize"
    with pytest.raises(StudyError, match=refused):
        make_study(tiny_spec, "theirs")
    assert other.user_attrs == {}


def test_two_starts_of_equal_values_are_both_tried(make_study: Make, tiny_space: Path) -> None:
    tiny_space.write_text(TINY.replace("  slow:", "  ours: {}\n  slow:"))
    study = make_study(load_spec(tiny_space))
    assert [record.start for record in study.records()] == ["baseline", "ours", "slow"]


def test_a_host_on_which_all_trials_fail_gets_no_more(
    make_study: Make, tiny_spec: StudySpec
) -> None:
    study = make_study(tiny_spec)
    bad, good = Process("bad", "1:1"), Process("good", "1:1")
    assert study.finish(claim(study, good), completed(0.5))
    held = claim(study, good)
    assert held.number == 1
    # Not the trial that failed here: another host may take that.
    for number in (2, 3):
        assert not study.bad_host("bad")
        trial = claim(study, bad)
        assert trial.number == number
        study.finish(trial, Failed("RuntimeError: CUDA error"))
    assert study.bad_host("bad")
    assert not study.bad_host("good")
    assert states(study)[2:] == ["waiting", "waiting"]
    # When the good host ends its trial, nobody else is there to take them.
    assert study.finish(held, completed(0.5))
    assert not study.bad_host("bad")
    assert claim(study, good).number == 2


def test_without_another_host_a_failed_trial_is_tried_here_again(
    make_study: Make, tiny_spec: StudySpec
) -> None:
    study = make_study(tiny_spec)
    for _ in range(2):
        trial = claim(study)
        assert trial.number == 0
        study.finish(trial, Failed("RuntimeError: odd"))
    assert not study.bad_host(HERE.host)
    record = study.records()[0]
    assert (record.state, record.cause) == ("failed", "code error")
    assert record.reason == "RuntimeError: odd"


def test_an_outcome_that_is_reported_twice_is_written_once(
    make_study: Make, tiny_spec: StudySpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection broke after Optuna's part was written: the worker tries again."""
    study = make_study(tiny_spec)
    trial = claim(study)

    def cut(*arguments: object) -> None:
        raise DatabaseAwayError("cut")

    with monkeypatch.context() as patch:
        patch.setattr(leases, "drop_lease", cut)
        with pytest.raises(DatabaseAwayError):
            study.finish(trial, DIVERGED, 3.0)
    assert study.finish(trial, DIVERGED, 3.0)
    record = study.records()[0]
    assert (record.state, record.reason, record.seconds) == ("stopped", "PER rose", 3.0)
    # Now the lease is gone.
    assert not study.finish(trial, DIVERGED, 3.0)


def test_a_claim_whose_answer_was_lost_is_answered_again(
    make_study: Make, tiny_spec: StudySpec
) -> None:
    study = make_study(tiny_spec)
    assert claim(study).number == 0
    # The worker lives, so the attempt is not lost.
    for _ in range(study.spec.attempts.max_attempts + 1):
        again = study.claim(HERE, RECORD, idle=True)
        assert again is not None
        assert again.number == 0


def test_what_was_stopped_by_hand_saves_nothing_and_says_nothing_of_the_space(
    make_study: Make, tiny_spec: StudySpec
) -> None:
    study = make_study(tiny_spec)
    # Two trainings share a GPU.
    on_gpu = RECORD | {"device": "cuda:0"}
    done, diverged = study.claim(HERE, on_gpu), study.claim(HERE, on_gpu)
    assert done and diverged
    killed, typed = claim(study), claim(study)
    assert report(study, diverged, 2, 0.9, 4.0)
    assert study.finish(diverged, DIVERGED)
    assert report(study, killed, 2, 0.9, 100.0)
    assert control.kill(study, killed.number)
    assert report(study, typed, 2, 0.9, 100.0)
    # Another program ends a trial with Optuna's own means.
    study.optuna.tell(typed.number, state=TrialState.PRUNED)
    assert report(study, done, 6, 0.5, 12.0)
    assert study.finish(done, completed(0.5))

    built = build_report(study)
    # The rule stopped one at 2 of 6 steps, after 4 s with half of the GPU.
    assert built["gpu_seconds"]["saved"] == 4.0
    assert built["stopped_by"] == {"own-past": 1, "by hand": 2}
    text = as_text(built, study.spec.metric)
    counts = "1 complete, 1 stopped (rule own-past: 1 per), 2 stopped by hand, 0 failed"
    assert f"Trials: {counts}; budget 4" in text
    page = as_markdown(*page_of(read_report_data(study)))
    assert "Stopped early: 1 (1 PER rose), which saved 4 s of worker time." in page
    assert "Stopped by hand: 2." in page
    assert "1 completed, 1 were stopped early, 2 were stopped by hand and 0 failed" in page
    records = study.records()
    metric = study.spec.metric
    assert [trial.number for trial in ended_trials(records, metric)] == [0, 1]


def test_a_training_that_ends_where_it_began_has_a_mark(
    make_study: Make, tiny_spec: StudySpec
) -> None:
    study = make_study(tiny_spec)
    for per in (0.949, 0.95, 1.02):
        assert study.finish(claim(study), completed(per))
    records = study.records()
    assert [record.learned_nothing for record in records] == [False, True, True]
    assert [record.state for record in records[:3]] == ["complete"] * 3
    built = build_report(study)
    text = as_text(built, study.spec.metric)
    assert "Trials: 3 complete (2 learned nothing), 0 stopped" in text
    assert as_markdown(*page_of(read_report_data(study))).count("complete, learned nothing") == 2
    assert "**complete**, learned nothing" in trial_note(records[1], {}, None, study.spec.metric)
    accuracy = study.spec.metric.model_copy(update={"direction": "maximize"})
    assert learned_nothing(0.05, accuracy) and not learned_nothing(0.06, accuracy)
    assert not learned_nothing(5.0, accuracy.model_copy(update={"bounded": False}))


def test_a_halted_worker_cannot_finish_its_write(make_study: Make, tiny_spec: StudySpec) -> None:
    """After it checked its lease it stood still, and another worker took the trial.

    Its next write is to Optuna's tables.
    """
    study = make_study(tiny_spec)
    slow = claim(study, ended_process())
    taker = claim(study)
    with pytest.raises(leases.LeaseLostError), leases.fenced(slow.id, slow.lease):
        study.end_trial(slow.id, TrialState.COMPLETE, {}, [0.1])
    assert study.records()[0].state == "running"
    with leases.fenced(taker.id, taker.lease):
        study.end_trial(taker.id, TrialState.COMPLETE, {}, [0.1])
    assert study.storage.get_trial(taker.id).value == 0.1


def test_the_report_tells_outcomes_apart(make_study: Make, tiny_spec: StudySpec) -> None:
    study = make_study(tiny_spec)
    done, diverged, odd = claim(study), claim(study), claim(study)
    report(study, done, 2, 0.3, 1.0)
    report(study, done, 6, 0.5, 2.0)
    assert study.finish(done, Completed(Score((2, 3), (5, 5))), 2.5)
    # The lowest PER of all, before it diverges.
    report(study, diverged, 2, 0.01, 1.0)
    assert study.finish(diverged, DIVERGED, 1.0)
    assert study.finish(odd, Failed("RuntimeError: odd", Cause.BAD_CONFIGURATION))

    built = build_report(study)
    best = built["best"]
    for name in ("params", "config", "interval"):
        best.pop(name)
    assert best == {"trial": 0, "value": 0.5, "partition": "validation", "sentences": 2}
    assert built["trials"] == {"complete": 1, "stopped": 1, "failed": 1, "running": 0, "waiting": 0}
    assert built["stopped_by"] == {"own-past": 1}
    assert built["starts"]["baseline"]["points_above_best"] == 0
    slow = built["starts"]["slow"]
    assert (slow["value"], slow["state"]) == (None, "stopped")
    # 2 of 6 steps took 1 s.
    assert built["gpu_seconds"] == {"spent": 3.5, "saved": 2.0, "lost": 0.0}

    assert study.scores([done.id])[done.id] == Score((2, 3), (5, 5))
    record = best_of(study.records(), study.spec.metric)
    assert record is not None
    assert (record.number, record.best_value, record.best_step) == (0, 0.3, 2)
    # Optuna and its dashboard agree.
    assert study.optuna.best_trial.number == 0


def test_the_fine_curve_is_kept(make_study: Make, tiny_spec: StudySpec) -> None:
    study = make_study(tiny_spec)
    trial = claim(study)
    delivered = point(2, 0.9, loss=2.0, grad_norm=9.0)
    study.deliver(trial, [delivered], 2, 1.0)
    assert study.curves(study.records())[trial.number] == [delivered]
    with study.engine.begin() as connection:
        assert [row.attempt for row in connection.execute(select(curve_table))] == [1]


@pytest.mark.parametrize(
    ("steps", "every"), [(10_000, 100), (400, 20), (6, 2), (7, 2), (100, 1000), (10_001, 100)]
)
def test_optuna_gets_a_thin_curve_with_the_last_value(steps: int, every: int) -> None:
    config = DecoderConfig(steps=steps, evaluate_every=every)
    evaluations = sorted({*range(every, steps + 1, every), steps})
    kept = [step for step in evaluations if in_thin_curve(step, config)]
    assert kept[-1] == steps
    assert min(len(evaluations), 12) <= len(kept) <= 26


@pytest.mark.slow
def test_a_study_is_reopened_with_its_own_spec_or_a_grown_one(
    make_study: Make, tiny_space: Path
) -> None:
    def spec(old: str = "", new: str = "") -> StudySpec:
        tiny_space.write_text(TINY.replace(old, new))
        return load_spec(tiny_space)

    make_study(spec())
    # The starts are there once.
    assert len(make_study(spec()).records()) == 2
    another = (
        r"another spec \(different: base.model.units\). "
        "Take --name for a new study; --extend"
    )
    with pytest.raises(StudyError, match=another):
        make_study(spec("units: 8", "units: 9"), extend=True)
    with pytest.raises(StudyError, match=r"smaller spec \(grown: budget.trials\). Take --extend"):
        make_study(spec("trials: 4", "trials: 5"))
    with pytest.raises(StudyError, match=r"made on other data .*fingerprint f; given g"):
        make_study(spec(), fingerprint="g")
    larger = spec("trials: 4", "trials: 5")
    assert make_study(larger, extend=True).spec.budget.trials == 5
    wider = spec("high: 5e-2", "high: 5e-1").model_copy(update={"budget": larger.budget})
    grown = make_study(wider, extend=True)
    # Sampling over the grown range works.
    for _ in range(5):
        grown.finish(claim(grown), completed(0.5))


@pytest.mark.slow
def test_a_study_goes_on_with_the_defaults_that_it_was_made_with(
    make_study: Make, tiny_spec: StudySpec
) -> None:
    """As after an upgrade that has another default for a field that nobody wrote."""
    earlier = tiny_spec.model_copy(update={"base": tiny_spec.base | {"optimizer.beta2": 0.95}})
    make_study(earlier)
    study = make_study(tiny_spec)
    assert claim(study).config.flat()["optimizer.beta2"] == 0.95
    budget = tiny_spec.budget.model_copy(update={"trials": 9})
    extended = make_study(tiny_spec.model_copy(update={"budget": budget}), extend=True)
    assert extended.budget.trials == 9
    assert extended.spec.base["optimizer.beta2"] == 0.95


def test_a_study_of_the_other_direction_is_refused(
    make_study: Make, tiny_spec: StudySpec, database: Database
) -> None:
    """It was made by a process that died before it was whole, or by another program."""
    optuna.create_study(storage=database.url, study_name="s", direction="maximize")
    refused = r"study s already exists, to maximize, not to minimize\. Take --name"
    with pytest.raises(StudyError, match=refused):
        make_study(tiny_spec)


@pytest.mark.slow
def test_four_makers_at_once_make_one_study(database: Database, tiny_spec: StudySpec) -> None:
    data = {"path": None, "fingerprint": "f", "n_features": 3, "n_days": 2}

    def make(_: int) -> Study:
        return Study.create_or_open(database, "s", tiny_spec, data)

    with ThreadPoolExecutor(4) as pool:
        studies = list(pool.map(make, range(4)))
    assert len({study.id for study in studies}) == 1
    assert len(studies[0].records()) == 2


@pytest.mark.parametrize("name", ["a/b", "", "-a", "a b", "ä", "x" * 101, "../x"])
def test_study_names_that_no_folder_or_url_could_hold_are_refused(
    make_study: Make, tiny_spec: StudySpec, name: str
) -> None:
    with pytest.raises(StudyError, match=r"study name .* Valid: letters, digits"):
        make_study(tiny_spec, name)


def test_the_error_about_a_missing_study_lists_those_there_are(
    make_study: Make, database: Database, tiny_spec: StudySpec
) -> None:
    make_study(tiny_spec, "mine")
    with pytest.raises(StudyError, match=r"no study 'mien' .* There are: mine"):
        Study.open(database, "mien")


# ---- what the sampler learns

LR_ONLY = """
parameters:
  optimizer.lr: {low: 1e-4, high: 5e-2, log: true}
  optimizer.eps: {low: 1e-8, high: 1e-1, log: true}
budget: {trials: 1000, failures: 1000}
policy: tpe
sampler: {startup_trials: 20}
"""


def lr_spec(tmp_path: Path) -> StudySpec:
    path = tmp_path / "lr.yaml"
    path.write_text(LR_ONLY)
    return load_spec(path)


def draws_above(study: Study, bound: float, outcome_above: Stopped | Failed) -> float:
    """The share of draws above `bound`, after 30 trials.

    Trials above end with this outcome, the others with a PER that says nothing.
    """
    noise = np.random.default_rng(0)
    drawn = []
    for _ in range(70):
        trial = claim(study)
        lr = trial.config.flat()["optimizer.lr"]
        drawn.append(lr)
        if lr > bound:
            study.finish(trial, outcome_above)
        else:
            study.finish(trial, completed(0.3 + 0.1 * noise.random()))
    return float(np.mean(np.array(drawn[30:]) > bound))


@pytest.mark.slow
def test_the_sampler_draws_clearly_less_where_runs_diverged(
    make_study: Make, tmp_path: Path
) -> None:
    """Above lr 0.005, 37 % of the range, everything diverges.

    From failures, which is Optuna's own way to tell it, it would learn less.
    """
    spec = lr_spec(tmp_path)
    failed = Failed("NaN", Cause.BAD_CONFIGURATION)
    learned = draws_above(make_study(spec, "stopped"), 0.005, DIVERGED)
    failing = draws_above(make_study(spec, "failed"), 0.005, failed)
    assert learned < 0.37 / 2
    assert learned < failing


@pytest.mark.slow
def test_conditional_parameters_are_sampled_and_learned(make_study: Make, tiny_space: Path) -> None:
    """adam is better than sgd, and the better the smaller its eps."""
    tiny_space.write_text(TINY.replace("trials: 4", "trials: 30"))
    study = make_study(load_spec(tiny_space))
    for _ in range(30):
        trial = claim(study)
        values = trial.config.flat()
        if values["optimizer.name"] == "adam":
            per = 0.2 + 0.01 * (math.log10(values["optimizer.eps"]) + 8)
        else:
            per = 0.7
        study.finish(trial, completed(per))
    records = study.records()
    for record in records:
        has_eps = "optimizer.eps" in record.params
        assert has_eps == (record.params["optimizer.name"] == "adam")
    late = [record for record in records[15:] if record.params["optimizer.name"] == "adam"]
    assert len(late) > 9
    assert np.median([record.params["optimizer.eps"] for record in late]) < 1e-5


def test_results_and_fine_curves_are_kept(make_study: Make, tiny_spec: StudySpec) -> None:
    study = make_study(tiny_spec)
    study.keep_result("confirm", {"per": 0.2})
    study.keep_result("confirm", {"per": 0.3})
    study.keep_result("effects", {})
    results = make_study(tiny_spec).results()
    assert results["confirm"]["per"] == 0.3
    assert datetime.fromisoformat(results["effects"]["made"]).tzinfo is not None
    trial = claim(study)
    study.resume(trial, 0, [])
    points = [point(step, 0.5) for step in (2, 4)]
    study.deliver(trial, points, 4, 1.0)
    assert study.curves(study.records())[trial.number] == points
