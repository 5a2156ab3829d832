"""Trials that a study's policy parks and takes up again: real Postgres, and real training."""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import TINY
from test_study import HERE, RECORD, claim, completed

from hpo.decoder.checkpoint import checkpoints
from hpo.decoder.data import load_data
from hpo.evidence.report import as_text, build_report
from hpo.search import choice, control, ledger, policy
from hpo.search.spec import Policy, StudySpec, load_spec
from hpo.search.stopping import Evaluation, Stop
from hpo.search.study import Study
from hpo.search.trial import Interrupted, Parked, Stopped, Trial
from hpo.search.worker import Worker

Make = Callable[..., Study]


@pytest.fixture
def spec(tiny_space: Path) -> StudySpec:
    tiny_space.write_text(TINY.replace("policy: tpe", "policy: gp-halving").replace("trials: 4", "trials: 6"))
    return load_spec(tiny_space)


def come_to(study: Study, trial: Trial, step: int, per: float) -> str | None:
    """The trial trains to a step; why it should be parked there."""
    point = {"step": step, "per": per, "validation_loss": per} | dict.fromkeys(("loss", "grad_norm", "lr", "step_seconds"), 0.0)
    assert study.deliver(trial, [point], step, float(step))
    return choice.why_park(study, trial, [Evaluation(step, per, per)])


def park(study: Study, trial: Trial, per: float) -> None:
    reason = come_to(study, trial, 2, per)
    assert reason
    assert study.finish(trial, Parked(reason), 2.0)


def started(study: Study) -> tuple[Trial, Trial]:
    """The two starts, at their first rung."""
    one, two = claim(study), claim(study)
    assert come_to(study, one, 2, 0.5) is None
    assert come_to(study, two, 2, 0.6) is None, "a start is never parked"
    return one, two


def test_a_parked_trial_keeps_its_place_in_the_budget_and_goes_on_when_it_leads(make_study: Make, spec: StudySpec) -> None:
    study = make_study(spec)
    one, two = started(study)
    three = claim(study)
    park(study, three, 0.7)
    record = study.records()[2]
    assert (record.state, record.step, record.reason) == ("parked", 2, "3 of 3 at step 2; goes on when it is among the best 60 % there")
    assert (study.standing().parked, study.standing().running) == (1, 2)
    four, five, six = claim(study), claim(study), claim(study)
    assert study.claim(HERE, RECORD) is None, "six have begun"
    for trial, per in ((four, 0.8), (five, 0.9), (six, 0.95)):
        park(study, trial, per)
    again = claim(study)  # 3 of 6 lead by now
    assert (again.number, again.attempt, again.config) == (3 - 1, 2, three.config)
    assert study.claim(HERE, RECORD) is None
    for trial in (one, two, again):
        assert study.finish(trial, completed(0.5), 6.0)
    assert study.claim(HERE, RECORD) is None
    assert study.budget_spent()
    assert Counter(record.state for record in study.records()) == {"complete": 3, "parked": 3}
    text = as_text(build_report(study))
    assert "3 complete, 0 stopped, 0 failed, 3 parked; budget 6" in text
    assert "saved by stopping and parking" in text


def test_a_larger_budget_takes_up_what_has_come_to_lead(make_study: Make, spec: StudySpec) -> None:
    study = make_study(spec.model_copy(update={"budget": spec.budget.model_copy(update={"trials": 3})}))
    one, two = started(study)
    park(study, three := claim(study), 0.7)
    for trial in (one, two):
        assert study.finish(trial, completed(0.5), 6.0)
    assert study.why_over() is not None
    study.change_budget({"trials": "5"})
    assert study.why_over() is None
    four, five = claim(study), claim(study)
    park(study, four, 0.8)
    park(study, five, 0.9)
    assert study.why_over() is None, "trial 2 is among the best three of five"
    assert claim(study).number == three.number


def test_one_whose_checkpoint_is_elsewhere_comes_after_new_ones(make_study: Make, spec: StudySpec) -> None:
    study = make_study(spec)
    started(study)
    park(study, claim(study), 0.7)
    for per in (0.8, 0.9):
        park(study, claim(study), per)
    new = study.claim(HERE, RECORD, can_go_on=lambda number: False)
    assert new and new.number == 5
    parked = study.claim(HERE, RECORD, can_go_on=lambda number: False)
    assert parked and parked.number == 2, "better from its beginning than not at all"


def test_what_waits_comes_before_what_is_parked(make_study: Make, spec: StudySpec) -> None:
    study = make_study(spec)
    _, two = started(study)
    park(study, claim(study), 0.7)
    for per in (0.8, 0.9):
        park(study, claim(study), per)
    assert study.finish(two, Interrupted())
    assert [claim(study).number for _ in range(3)] == [1, 2, 5]


def test_a_persons_trial_is_not_parked_and_a_parked_one_can_be_killed(make_study: Make, spec: StudySpec) -> None:
    study = make_study(spec)
    started(study)
    control.enqueue(study, {"optimizer.lr": 0.01, "optimizer.name": "sgd"})
    mine = claim(study)
    assert come_to(study, mine, 2, 0.99) is None
    park(study, claim(study), 0.999)
    assert not control.kill(study, 3, "no use")
    assert (study.records()[3].state, study.standing().parked) == ("stopped", 0)


def test_what_diverges_after_its_rung_leaves_its_place_to_a_parked_one(make_study: Make, spec: StudySpec) -> None:
    study = make_study(spec.model_copy(update={"starts": {}}))
    best = claim(study)
    assert come_to(study, best, 2, 0.1) is None
    park(study, claim(study), 0.7)
    assert study.finish(best, Stopped(Stop("own-past", "per", "PER rose")))
    assert claim(study).number == 1


def test_a_rung_of_which_the_loss_is_not_known_is_none(make_study: Make, spec: StudySpec) -> None:
    """As in imported runs that record none."""
    study = make_study(spec)
    one, _ = started(study)
    point = {"step": 4, "per": 0.5, "validation_loss": math.nan} | dict.fromkeys(("loss", "grad_norm", "lr", "step_seconds"), 0.0)
    assert study.deliver(one, [point], 4, 4.0)
    assert [evaluation.step for evaluation in choice.seen_by(study, -1)[0].rungs] == [2]


def test_other_policies_and_retrainings_park_nothing(make_study: Make, spec: StudySpec) -> None:
    study = make_study(spec.model_copy(update={"policy": Policy.GP}))
    started(study)
    assert come_to(study, claim(study), 2, 0.99) is None


def test_a_study_ends_early_when_little_is_expected_and_says_so(make_study: Make, spec: StudySpec) -> None:
    budget = spec.budget.model_copy(update={"trials": 40})
    study = make_study(spec.model_copy(update={"policy": Policy.GP, "budget": budget}))
    for _ in range(12):
        trial = claim(study)
        assert study.finish(trial, completed(0.5), 3600.0)
    ahead = study.standing().hourly_gain
    assert ahead is not None and ahead >= 0
    study.change_budget({"min_gain": f"{ahead + 1}"})
    assert study.claim(HERE, RECORD) is None
    assert f"under the budget's min_gain of {ahead + 1:g}" in (study.why_over() or "")
    assert "Ended early: " in as_text(build_report(study))
    study.change_budget({"min_gain": "none"})
    running = claim(study)
    study.change_budget({"min_gain": f"{ahead + 1}"})
    assert study.finish(running, Interrupted(), 1.0)
    assert claim(study).number == running.number, "what has begun goes to its end"


def test_workers_park_with_a_checkpoint_and_go_on_from_it(
    make_study: Make, spec: StudySpec, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = make_study(spec.model_copy(update={"budget": spec.budget.model_copy(update={"trials": 8})}))
    data = load_data(tiny_data, spec.base.model, 0.2, 0, torch.device("cpu"))[0]
    Worker(study, data, tmp_path, RECORD).run()
    records = study.records()
    states = Counter(record.state for record in records)
    assert states["parked"] and states["complete"] + states["parked"] + states["stopped"] == 8
    assert study.budget_spent()
    for record in records:
        assert bool(checkpoints(tmp_path / f"trial-{record.number}")) == (record.state == "parked")
        assert record.step in ((2, 4) if record.state == "parked" else (6,)) or record.state == "stopped"
    generous = {Policy.GP_HALVING: tuple(replace(rung, keep=1.0) for rung in policy.RUNGS[Policy.GP_HALVING])}
    monkeypatch.setattr(policy, "RUNGS", generous)  # now all lead
    Worker(study, data, tmp_path, RECORD).run()
    after = study.records()
    assert {record.state for record in after} <= {"complete", "stopped"}
    for before, record in zip(records, after, strict=True):
        steps = [point["step"] for point in study.curves([record])[record.number]]
        assert record.attempts == 1 + (before.state == "parked")
        assert record.state == "stopped" or steps == [2, 4, 6]
        with study._engine.begin() as connection:
            last = ledger.attempts_of(connection, [record.id])[record.id][-1]
        assert last.first_step == (before.step if before.state == "parked" else 0), "it goes on from its checkpoint"
