"""Leases when two processes meet at one trial: a real Postgres, the test chooses the moment."""

from collections.abc import Callable

import pytest
from helpers.studies import claim, completed, report
from optuna.trial import TrialState
from sqlalchemy import text
from sqlalchemy.engine import Connection

from hpo.errors import DatabaseAwayError, StudyError
from hpo.process import Process
from hpo.space.spec import StudySpec
from hpo.store import leases, trials
from hpo.study.control import kill
from hpo.study.study import Study
from hpo.study.trial import Trial

Make = Callable[..., Study]
ELSEWHERE = Process("another-host 1 1", "1:1")


def expire(study: Study) -> None:
    past = "now() - interval '1 second'"
    update = text(f"UPDATE hpo_trial SET lease_until = {past} WHERE lease IS NOT NULL")
    with study.engine.begin() as connection:
        connection.execute(update)


def cut(*arguments: object) -> None:
    raise DatabaseAwayError("cut")


def sweep_while(study: Study, act: Callable[[], object]) -> None:
    """Calls `act` after a sweeper has read the leases and before it acts on them."""
    orphans = leases.orphans

    def orphans_then_act(connection: Connection, study_id: int, idle: Process | None) -> object:
        result = orphans(connection, study_id, idle)
        act()
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(leases, "orphans", orphans_then_act)
        study.sweep()


def test_a_late_worker_that_renews_while_it_is_swept_keeps_its_trial(
    make_study: Make, tiny_spec: StudySpec
) -> None:
    """After an outage all workers come back at once, and the first of them to claim sweeps."""
    study = make_study(tiny_spec)
    late = claim(study, ELSEWHERE)
    expire(study)
    sweep_while(study, lambda: report(study, late, 2, 0.9, 1.0))
    assert report(study, late, 4, 0.8, 2.0)
    assert study.records()[0].state == "running"


def outcomes(study: Study, trial: Trial) -> list[str]:
    """The outcome of each attempt of the trial."""
    with study.engine.begin() as connection:
        return [row.outcome for row in trials.attempts_of(connection, [trial.id])[trial.id]]


def finish_without_the_last_write(study: Study, trial: Trial) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(leases, "drop_lease", cut)
        with pytest.raises(DatabaseAwayError):
            study.finish(trial, completed(0.5), 3.0)


def test_a_late_worker_that_finishes_while_it_is_swept_has_finished(
    make_study: Make, tiny_spec: StudySpec
) -> None:
    study = make_study(tiny_spec)
    late = claim(study, ELSEWHERE)
    expire(study)
    sweep_while(study, lambda: finish_without_the_last_write(study, late))
    assert study.finish(late, completed(0.5), 3.0)
    record = study.records()[0]
    assert (record.state, record.value, record.attempts) == ("complete", 0.5, 1)
    assert outcomes(study, late) == ["complete"]


def end_in_optuna(study: Study, trial: Trial) -> None:
    """The second transaction in which a worker finishes; the first one renewed the lease."""
    with leases.fenced(trial.id, trial.lease):
        study.end_trial(trial.id, TrialState.COMPLETE, {}, [0.5])


def test_a_trial_that_ends_while_it_is_killed_keeps_its_outcome(
    make_study: Make, tiny_spec: StudySpec
) -> None:
    study = make_study(tiny_spec)
    trial = claim(study, ELSEWHERE)
    get_trial = study.storage.get_trial

    def get_trial_then_finish(trial_id: int) -> object:
        """The worker finishes after `kill` has read the trial."""
        result = get_trial(trial_id)
        patch.undo()
        finish_without_the_last_write(study, trial)
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study.storage, "get_trial", get_trial_then_finish)
        with pytest.raises(StudyError, match=r"trial 0 .* is over \(complete\)"):
            kill(study, 0)
    assert outcomes(study, trial) == ["complete"]


def test_a_late_worker_whose_outcome_lands_while_it_is_swept_has_finished(
    make_study: Make, tiny_spec: StudySpec
) -> None:
    """It was halted between our part of its outcome and Optuna's."""
    study = make_study(tiny_spec)
    late = claim(study, ELSEWHERE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "end_trial", cut)
        with pytest.raises(DatabaseAwayError):
            study.finish(late, completed(0.5), 3.0)
    expire(study)
    sweep_while(study, lambda: end_in_optuna(study, late))
    record = study.records()[0]
    assert (record.state, record.value, record.attempts) == ("complete", 0.5, 1)
    assert outcomes(study, late) == ["complete"]
