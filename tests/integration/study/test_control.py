"""Steering a study: live workers obey, and each command leaves its mark."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.commands import invoke, launch_arguments, start, until
from helpers.lines import refusal
from helpers.studies import RECORD, claim, completed, long, report
from optuna.samplers import RandomSampler
from optuna.search_space import IntersectionSearchSpace
from optuna.trial import TrialState
from optuna_dashboard import get_note

from hpo.analysis.child import open_child
from hpo.errors import SpecError, StudyError
from hpo.process import Process
from hpo.space.load import parse_settings
from hpo.space.spec import StudySpec
from hpo.store import trials
from hpo.store.database import Database
from hpo.study import control
from hpo.study.paths import study_folder
from hpo.study.study import Study
from hpo.study.trial import Interrupted, Record
from hpo.worker.checkpoint import checkpoints

Make = Callable[..., Study]
# Within which a worker obeys.
PROMISED_SECONDS = 10.0


def measured(what: str, condition: Callable[[], Any]) -> None:
    begin = time.monotonic()
    until(condition, PROMISED_SECONDS)
    print(f"{what}: {time.monotonic() - begin:.1f} s")


@pytest.mark.slow
def test_live_workers_obey(database: Database, tiny_space: Path, tiny_data: Path) -> None:
    """Two workers: a trial of one is killed, both pause with checkpoints, resume, and leave."""
    tiny_space.write_text(long(100_000, 10).replace("trials: 4", "trials: 6"))
    options = ("--name", "live", "--workers", "2")
    launch = start(*launch_arguments(tiny_space, tiny_data, *options))
    until(lambda: invoke("budget", "--study", "live").exit_code == 0)
    study = Study.open(database, "live")

    def running() -> list[Record]:
        return [
            record for record in study.records() if record.state == "running" and record.step > 0
        ]

    def states() -> list[str]:
        return [record.state for record in study.records()]

    def holder(number: int) -> str | None:
        return dict(ledger_rows(study))[number]

    until(lambda: len(running()) == 2)
    worker = holder(0)
    killed = invoke("kill", "--study", "live", "--trial", "0", "--reason", "<b>silly</b>")
    assert killed.exit_code == 0, killed.output
    assert "trial 0 is stopped by hand; its worker takes the next one" in killed.stdout
    measured(
        "killed, next trial trains", lambda: sorted(record.number for record in running()) == [1, 2]
    )
    assert holder(2) == worker
    assert not (study_folder(study) / "trial-0").exists()
    first = study.records()[0]
    assert (first.state, first.rule, first.cause) == ("stopped", "by hand", "by hand")
    assert first.reason == f"by hand, {control.current_user()}: <b>silly</b>"
    over = refusal("kill", "--study", "live", "--trial", "0")
    assert "over (stopped): nothing to kill. Running or waiting: 1, 2" in over

    invoke("pause", "--study", "live", "--reason", "lunch")
    measured("paused, handed back", lambda: states()[1:] == ["waiting", "waiting"])
    assert all(checkpoints(study_folder(study) / f"trial-{number}") for number in (1, 2))
    assert f"paused by {control.current_user()}" in study.records()[1].reason
    assert "(lunch)" in invoke("status", "--study", "live").stdout
    before = {record.number: record.step for record in study.records()}
    assert "was paused by" in invoke("resume", "--study", "live").stdout
    measured("resumed, trains", lambda: len(running()) == 2)
    assert all(record.step >= before[record.number] > 0 for record in running())

    invoke("stop", "--study", "live")
    measured("stopped, handed back", lambda: not running())
    out, err = launch.communicate(timeout=60)
    assert (launch.returncode, err) == (0, "")
    assert f"The workers left: stopped by {control.current_user()}" in out
    assert states() == ["stopped", "waiting", "waiting"]
    assert study.claim(Process.this(), RECORD) is None
    assert "Its workers have left" in invoke("resume", "--study", "live").stdout
    assert "neither paused nor stopped" in invoke("resume", "--study", "live").stdout
    assert claim(study).number == 1


def ledger_rows(study: Study) -> list[tuple[int, str | None]]:
    """(number, process) of each trial that a worker has taken."""
    records = study.records()
    with study.engine.begin() as connection:
        rows = trials.rows_of(connection, [record.id for record in records])
    return [(record.number, rows[record.id].process) for record in records if record.id in rows]


def test_the_same_launch_line_goes_on_after_a_stop(
    database: Database, tiny_space: Path, tiny_data: Path
) -> None:
    line = launch_arguments(tiny_space, tiny_data, "--trials", "0", "--name", "again")
    assert invoke(*line).exit_code == 0
    invoke("stop", "--study", "again", "--reason", "no power")
    done = invoke(*line)
    assert "(no power); it continues now" in done.stdout
    assert Study.open(database, "again").halt is None


def test_a_killed_trial_cannot_be_written_and_is_no_divergence_to_the_sampler(
    make_study: Make, tiny_spec: StudySpec
) -> None:
    study = make_study(tiny_spec)
    trial = claim(study)
    assert report(study, trial, 2, 0.5, 1.0)
    assert control.kill(study, 0, "too slow")
    assert not report(study, trial, 4, 0.4, 2.0)
    assert not study.finish(trial, completed(0.1))
    assert not study.finish(trial, Interrupted())
    killed = study.optuna.trials[0]
    assert (killed.state, killed.intermediate_values) == (TrialState.PRUNED, {2: 0.5})
    assert not killed.constraints
    assert study.stopped_by_hand(trial) == f"by hand, {control.current_user()}: too slow"
    assert study.standing().ended == 1
    with pytest.raises(StudyError, match=r"trial 0 of study s is over \(stopped\)"):
        control.kill(study, 0)
    with pytest.raises(StudyError, match=r"there is no trial 7\. Running or waiting: 1"):
        control.kill(study, 7)


def test_a_killed_waiting_trial_does_not_blind_the_sampler(
    make_study: Make, tiny_spec: StudySpec
) -> None:
    study = make_study(tiny_spec)
    assert control.kill(study, 0) is False
    assert study.finish(claim(study), completed(0.2))
    space = IntersectionSearchSpace(include_pruned=True).calculate(study.optuna)
    # Those that the second start has too.
    assert list(space) == ["optimizer.lr", "optimizer.name"]
    assert study.records()[0].state == "stopped"


def chosen(
    spec: StudySpec, setting: str, like: dict[str, Any] | None = None
) -> tuple[dict[str, Any], list[str]]:
    return control.chosen_values(spec, parse_settings((setting,)), like or {})


WHOLE = {"optimizer.lr": 0.001, "optimizer.name": "adam", "optimizer.eps": 1e-8}
SGD = {"optimizer.lr": 0.001, "optimizer.name": "sgd"}


def test_an_enqueued_configuration_is_completed_by_the_one_it_is_like(
    tiny_spec: StudySpec,
) -> None:
    """chosen_values gives the fixed values, and the parameters left to the sampler."""
    values, sampled = chosen(tiny_spec, "optimizer.lr=1e-3")
    assert values == {"optimizer.lr": 0.001}
    assert sampled == ["optimizer.name", "optimizer.eps"]

    values, sampled = chosen(tiny_spec, "optimizer.lr=0.01", WHOLE)
    assert values == WHOLE | {"optimizer.lr": 0.01}
    assert sampled == []

    # With sgd there is no eps.
    values, sampled = chosen(tiny_spec, "optimizer.name=sgd", WHOLE)
    assert values == SGD
    assert sampled == []

    values, sampled = chosen(tiny_spec, "optimizer.name=adam", SGD)
    assert values == SGD | {"optimizer.name": "adam"}
    assert sampled == ["optimizer.eps"]

    values, sampled = chosen(tiny_spec, "optimizer.eps=0.1")
    assert values == {"optimizer.name": "adam", "optimizer.eps": 0.1}
    assert sampled == ["optimizer.lr"]


@pytest.mark.parametrize(
    ("setting", "like", "message"),
    [
        (
            "optimizer.lr=0.5",
            {},
            r"optimizer.lr = 0.5 is outside the space. Valid: 0.0001..0.05 \(log\)",
        ),
        ("optimizer.lr=fast", {}, "optimizer.lr: input should be a valid number"),
        ("optimizer.name=adamw", {}, r"'adamw' is outside the space. Valid: \['adam', 'sgd'\]"),
        (
            "optimizer.eps=0.1",
            SGD,
            "optimizer.eps exists only with optimizer.name=adam. Give that too",
        ),
        (
            "steps=7",
            {},
            "steps is not searched, it is 6. Valid: optimizer.lr, optimizer.name, optimizer.eps",
        ),
    ],
)
def test_a_configuration_outside_the_space_is_refused(
    tiny_spec: StudySpec, setting: str, like: dict[str, Any], message: str
) -> None:
    with pytest.raises(SpecError, match=message):
        chosen(tiny_spec, setting, like)


@pytest.mark.slow
def test_an_enqueued_configuration_runs_next(make_study: Make, tiny_spec: StudySpec) -> None:
    study = make_study(tiny_spec)
    enqueue = ("enqueue", "--study", "s")
    done = invoke(*enqueue, "optimizer.lr=0.01", "--like", "slow")
    assert done.stdout == (
        "trial 2 runs next: optimizer.lr=0.01, optimizer.name=sgd\n"
        "It is one of the budget's 4 trials\n"
    )
    done = invoke(*enqueue, "optimizer.lr=0.02")
    assert "sampled by Optuna: optimizer.name, optimizer.eps" in done.stdout
    claimed = [claim(study) for _ in range(3)]
    assert [trial.number for trial in claimed] == [2, 3, 0]
    first, second = (trial.config.flat() for trial in claimed[:2])
    assert (first["optimizer.lr"], first["optimizer.name"]) == (0.01, "sgd")
    assert second["optimizer.lr"] == 0.02
    assert study.finish(claimed[0], completed(0.2))
    done = invoke(*enqueue, "optimizer.lr=0.03", "--like", "best")
    assert "optimizer.lr=0.03, optimizer.name=sgd" in done.stdout

    typo = refusal(*enqueue, "optimizer.rl=0.01")
    assert (
        "there is no 'optimizer.rl'. Did you mean optimizer.lr? "
        "Valid: optimizer.lr, optimizer.name, optimizer.eps"
    ) in typo
    assert "no values. Valid: FIELD=VALUE" in refusal(*enqueue)
    assert "no trial '9' that began" in refusal(*enqueue, "--like", "9")
    unset = refusal(*enqueue, "optimizer.lr")
    assert "no value. Valid: hpo enqueue optimizer.lr=VALUE" in unset


def test_nothing_is_enqueued_in_a_study_that_retrains(
    make_study: Make, database: Database, tiny_spec: StudySpec
) -> None:
    open_child(database, make_study(tiny_spec, "s"), "confirm")
    error = refusal("enqueue", "--study", "s.confirm", "optimizer.lr=0.01")
    assert (
        "study s.confirm retrains configurations of s: no trial can be enqueued. Give --study s"
    ) in error


def test_a_lowered_budget_says_why_nothing_starts(make_study: Make, tiny_spec: StudySpec) -> None:
    study = make_study(tiny_spec)
    for per in (0.3, 0.2):
        study.finish(claim(study), completed(per))
    below = invoke("budget", "--study", "s", "--trials", "1").stdout
    spent = "the budget of 1 trial is spent. To continue, raise it"
    assert f"Nothing new starts: {spent} with hpo budget --study s" in below
    enqueued = invoke("enqueue", "--study", "s", "optimizer.lr=0.02").stdout
    assert f"It is one of the budget's 1 trials: {spent}" in enqueued
    invoke("budget", "--study", "s", "--trials", "+2")
    claim(study)
    late = refusal("budget", "--study", "s", "--deadline", "2020-01-01")
    assert "budget the deadline 2020-01-01" in late
    assert "Valid: a moment that is still to come" in late
    assert (
        "now 3 trials, 2 worker-hours, until"
        in invoke("budget", "--study", "s", "--deadline", "1m", "--gpu-hours", "120m").stdout
    )


def test_notes_are_text_with_a_name(make_study: Make, tiny_spec: StudySpec) -> None:
    study = make_study(tiny_spec)
    note = ("note", "--study", "s")
    first = invoke(*note, "first <script>alert(1)</script> & *second*")
    assert first.stdout == "noted on study s\n"
    assert invoke(*note, "third").exit_code == 0
    assert invoke(*note, "--trial", "1", "of a trial").stdout == "noted on trial 1\n"
    text = get_note(study.optuna)
    escaped = "first &lt;script&gt;alert(1)&lt;/script&gt; &amp; *second*"
    assert text.startswith(f"{escaped}\n\n*{control.current_user()}")
    assert "\n\nthird\n\n" in text
    trial = study.optuna_trial(study.records()[1].id, RandomSampler())
    assert get_note(trial).startswith("of a trial")
    assert "there is no trial 9" in refusal(*note, "--trial", "9", "x")
