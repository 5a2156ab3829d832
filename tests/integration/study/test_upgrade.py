"""Studies that an earlier version stored."""

import logging
from collections.abc import Callable

import pytest
from helpers.studies import HERE, RECORD, claim

from hpo.space.spec import Policy, StudySpec
from hpo.store import leases
from hpo.study.study import Study
from hpo.study.trial import Interrupted


def test_a_study_with_a_removed_policy_goes_on_and_its_parked_trials_too(
    make_study: Callable[..., Study], tiny_spec: StudySpec, caplog: pytest.LogCaptureFixture
) -> None:
    study = make_study(tiny_spec.model_copy(update={"policy": Policy.GP}))
    first = claim(study)
    assert study.finish(first, Interrupted(), 1.0)
    with study.engine.begin() as connection:
        leases.end_attempt(connection, first.id, first.attempt, "parked", "2 of 2 at step 2")
    old = dict(study.optuna.user_attrs["spec"])
    old["policy"] = "gp-halving"
    old["budget"] = old["budget"] | {"min_gain": 0.05}
    study.optuna.set_user_attr("spec", old)
    study.optuna.set_user_attr("budget", old["budget"])

    with caplog.at_level(logging.WARNING):
        opened = make_study(tiny_spec.model_copy(update={"policy": Policy.GP}))
    assert "policy gp-halving was removed; the study continues with gp" in caplog.text
    assert "min_gain was removed from budgets" in caplog.text
    assert opened.spec.policy == Policy.GP
    assert opened.records()[0].state == "waiting"
    again = opened.claim(HERE, RECORD)
    assert again is not None
    assert (again.number, again.attempt, again.config) == (first.number, 2, first.config)
    assert opened.change_budget({"trials": "+1"})[1].trials == tiny_spec.budget.trials + 1


def test_a_study_of_today_loses_nothing(
    make_study: Callable[..., Study], tiny_spec: StudySpec, caplog: pytest.LogCaptureFixture
) -> None:
    make_study(tiny_spec)
    with caplog.at_level(logging.WARNING):
        make_study(tiny_spec)
    assert caplog.text == ""
