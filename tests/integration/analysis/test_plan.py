"""How many trials fit into more GPU-hours."""

import math
from collections.abc import Callable

import pytest
from helpers.commands import invoke
from helpers.studies import HERE, RECORD, completed, report

from hpo.analysis.plan import Cost, build_plan
from hpo.errors import StudyError
from hpo.space.spec import StudySpec
from hpo.study.study import Study

SECONDS = 900.0


def searched(study: Study, trials: int) -> Study:
    """Runs trials that end the better the nearer their lr is to 0.003."""
    study.change_budget({"trials": str(trials)})
    while trial := study.claim(HERE, RECORD):
        assert report(study, trial, 6, 0.5, 0.0)
        per = min(0.95, 0.3 + 0.1 * abs(math.log(trial.config.flat()["optimizer.lr"] / 0.003)))
        assert study.finish(trial, completed(per), SECONDS)
    return study


@pytest.mark.slow
def test_a_plan_counts_trials_of_the_cost_seen_so_far(
    make_study: Callable[..., Study], tiny_spec: StudySpec
) -> None:
    study = searched(make_study(tiny_spec), 14)
    some = build_plan(study, gpus=2, hours=1.0)
    many = build_plan(study, gpus=8, hours=24.0)
    assert (some.trials, many.trials) == (8, 768)
    assert some.states == {"complete": Cost(trials=14, gpu_seconds=SECONDS)}
    best = min(record.value for record in study.records() if record.value is not None)
    assert some.best.value == best


@pytest.mark.slow
def test_the_command_says_what_to_type(
    make_study: Callable[..., Study], tiny_spec: StudySpec
) -> None:
    searched(make_study(tiny_spec), 10)
    done = invoke("plan", "--study", "s", "--gpus", "2", "--hours", "0.2")
    assert done.exit_code == 0, done.output
    assert "2 GPUs for 0.2 hours are 0.4 GPU-hours" in done.output
    assert "about 1 more: hpo budget --study s --trials +1 --gpu-hours +0.4" in done.output
    assert "a whole training takes 0:15:00, longer than the hours given" in done.output


def test_before_a_trial_is_complete_nothing_is_known(
    make_study: Callable[..., Study], tiny_spec: StudySpec
) -> None:
    with pytest.raises(StudyError, match="no trial is complete"):
        build_plan(make_study(tiny_spec), 1, 1.0)


@pytest.mark.parametrize(
    "wrong", [("--gpus", "0", "--hours", "1"), ("--gpus", "1", "--hours", "0"), ("--gpus", "1")]
)
def test_no_gpus_or_no_hours_are_refused(wrong: tuple[str, ...]) -> None:
    assert invoke("plan", "--study", "s", *wrong).exit_code == 2
