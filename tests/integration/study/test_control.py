"""Steering a study: on live workers, and what is written for each command."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from helpers.commands import start, until
from helpers.studies import RECORD, claim, completed, long, report
from optuna.samplers import RandomSampler
from optuna.search_space import IntersectionSearchSpace
from optuna.trial import TrialState

from hpo.analysis.child import open_child
from hpo.cli import main
from hpo.errors import SpecError, StudyError
from hpo.process import Process
from hpo.space.spec import StudySpec, parse_settings
from hpo.store import trials
from hpo.store.database import Database
from hpo.study import control
from hpo.study.paths import study_folder
from hpo.study.study import Study
from hpo.study.trial import Interrupted, Record
from hpo.worker.checkpoint import checkpoints

Make = Callable[..., Study]
PROMISED_SECONDS = 10.0  # within which a worker obeys


def hpo(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def error(*arguments: str) -> str:
    """The one line that a mistake is told in."""
    done = hpo(*arguments)
    assert (done.exit_code, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.output
    return done.stderr


def measured(what: str, condition: Callable[[], Any]) -> None:
    begin = time.monotonic()
    until(condition, PROMISED_SECONDS)
    print(f"{what}: {time.monotonic() - begin:.1f} s")


def test_live_workers_obey(database: Database, tiny_space: Path, tiny_data: Path) -> None:
    """Two workers: a trial of one is killed, both pause with checkpoints, go on from them, and leave."""
    tiny_space.write_text(long(100_000, 10).replace("trials: 4", "trials: 6"))
    launch = start(
        "launch",
        "--study",
        tiny_space,
        "--data",
        tiny_data,
        "--workers",
        "2",
        "--device",
        "cpu",
        "--name",
        "live",
    )
    until(lambda: hpo("budget", "--study", "live").exit_code == 0)
    study = Study.open(database, "live")

    def running() -> list[Record]:
        return [
            record for record in study.records() if record.state == "running" and record.step > 0
        ]

    def holder(number: int) -> str | None:
        return dict(ledger_rows(study))[number]

    until(lambda: len(running()) == 2)
    worker = holder(0)
    killed = hpo("kill", "--study", "live", "--trial", "0", "--reason", "<b>silly</b>")
    assert killed.exit_code == 0, killed.output
    assert "trial 0 is stopped by hand; its worker takes the next one" in killed.stdout
    measured(
        "killed, next trial trains", lambda: sorted(record.number for record in running()) == [1, 2]
    )
    assert holder(2) == worker
    assert not (study_folder(study) / "trial-0").exists()
    first = study.records()[0]
    assert (first.state, first.rule, first.cause, first.reason) == (
        "stopped",
        "by hand",
        "by hand",
        f"by hand, {control.person()}: <b>silly</b>",
    )
    assert "over (stopped): nothing to kill. Running or waiting: 1, 2" in error(
        "kill", "--study", "live", "--trial", "0"
    )

    hpo("pause", "--study", "live", "--reason", "lunch")
    measured(
        "paused, handed back",
        lambda: [record.state for record in study.records()[1:]] == ["waiting", "waiting"],
    )
    assert all(checkpoints(study_folder(study) / f"trial-{number}") for number in (1, 2))
    assert f"paused by {control.person()}" in study.records()[1].reason
    assert "(lunch)" in hpo("status", "--study", "live").stdout
    before = {record.number: record.step for record in study.records()}
    assert "was paused by" in hpo("resume", "--study", "live").stdout
    measured("resumed, trains", lambda: len(running()) == 2)
    assert all(record.step >= before[record.number] > 0 for record in running())

    hpo("stop", "--study", "live")
    measured("stopped, handed back", lambda: not running())
    out, err = launch.communicate(timeout=60)
    assert (launch.returncode, err) == (0, "")
    assert f"The workers left: stopped by {control.person()}" in out
    assert [record.state for record in study.records()] == ["stopped", "waiting", "waiting"]
    assert study.claim(Process.this(), RECORD) is None
    assert "Its workers have left" in hpo("resume", "--study", "live").stdout
    assert "neither paused nor stopped" in hpo("resume", "--study", "live").stdout
    assert claim(study).number == 1


def ledger_rows(study: Study) -> list[tuple[int, str | None]]:
    """(number, process) of each trial that a worker has taken."""
    records = study.records()
    with study.engine.begin() as connection:
        rows = trials.rows_of(connection, [record.id for record in records])
    return [(record.number, rows[record.id].process) for record in records if record.id in rows]


def test_the_same_launch_line_goes_on_after_a_stop(
    make_study: Make, database: Database, tiny_space: Path, tiny_data: Path
) -> None:
    line = (
        "launch",
        "--study",
        str(tiny_space),
        "--data",
        str(tiny_data),
        "--trials",
        "0",
        "--device",
        "cpu",
        "--name",
        "again",
    )
    assert hpo(*line).exit_code == 0
    hpo("stop", "--study", "again", "--reason", "no power")
    done = hpo(*line)
    assert "(no power); it continues now" in done.stdout
    assert Study.open(database, "again").halt is None


def test_a_killed_trial_cannot_be_written_and_tells_the_sampler_no_divergence(
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
    assert study.stopped_by_hand(trial) == f"by hand, {control.person()}: too slow"
    assert study.standing().ended == 1
    with pytest.raises(StudyError, match=r"trial 0 of study s is over \(stopped\)"):
        control.kill(study, 0)
    with pytest.raises(StudyError, match=r"there is no trial 7\. Running or waiting: 1"):
        control.kill(study, 7)


def test_a_waiting_trial_can_be_killed_and_blinds_no_sampler(
    make_study: Make, tiny_spec: StudySpec
) -> None:
    study = make_study(tiny_spec)
    assert control.kill(study, 0) is False
    assert study.finish(claim(study), completed(0.2))
    space = IntersectionSearchSpace(include_pruned=True).calculate(study.optuna)
    assert list(space) == ["optimizer.lr", "optimizer.name"]  # those that the second start has too
    assert study.records()[0].state == "stopped"


def chosen(
    spec: StudySpec, *given: str, like: dict[str, Any] | None = None
) -> tuple[dict[str, Any], list[str]]:
    return control.chosen_values(spec, parse_settings(given), like or {})


def test_what_is_put_in_lies_in_the_space(tiny_spec: StudySpec) -> None:
    assert chosen(tiny_spec, "optimizer.lr=1e-3") == (
        {"optimizer.lr": 0.001},
        ["optimizer.name", "optimizer.eps"],
    )
    whole = {"optimizer.lr": 0.001, "optimizer.name": "adam", "optimizer.eps": 1e-8}
    assert chosen(tiny_spec, "optimizer.lr=0.01", like=whole) == (
        whole | {"optimizer.lr": 0.01},
        [],
    )
    sgd = {"optimizer.lr": 0.001, "optimizer.name": "sgd"}
    assert chosen(tiny_spec, "optimizer.name=sgd", like=whole) == (
        sgd,
        [],
    )  # eps does not exist there
    assert chosen(tiny_spec, "optimizer.name=adam", like=sgd) == (
        sgd | {"optimizer.name": "adam"},
        ["optimizer.eps"],
    )
    assert chosen(tiny_spec, "optimizer.eps=0.1") == (
        {"optimizer.name": "adam", "optimizer.eps": 0.1},
        ["optimizer.lr"],
    )
    for given, like, message in (
        (
            "optimizer.lr=0.5",
            {},
            r"optimizer.lr = 0.5 is outside the space. Valid: 0.0001..0.05 \(log\)",
        ),
        ("optimizer.lr=fast", {}, "optimizer.lr: input should be a valid number"),
        ("optimizer.name=adamw", {}, r"'adamw' is outside the space. Valid: \['adam', 'sgd'\]"),
        (
            "optimizer.eps=0.1",
            sgd,
            "optimizer.eps exists only with optimizer.name=adam. Give that too",
        ),
        (
            "steps=7",
            {},
            "steps is not searched, it is 6. Valid: optimizer.lr, optimizer.name, optimizer.eps",
        ),
    ):
        with pytest.raises(SpecError, match=message):
            chosen(tiny_spec, given, like=like)


def test_what_is_put_in_runs_next(make_study: Make, tiny_spec: StudySpec) -> None:
    study = make_study(tiny_spec)
    done = hpo("enqueue", "--study", "s", "optimizer.lr=0.01", "--like", "slow")
    assert (
        done.stdout
        == "trial 2 runs next: optimizer.lr=0.01, optimizer.name=sgd\nIt is one of the budget's 4 trials\n"
    )
    assert (
        "sampled by Optuna: optimizer.name, optimizer.eps"
        in hpo("enqueue", "--study", "s", "optimizer.lr=0.02").stdout
    )
    trials = [claim(study) for _ in range(3)]
    assert [trial.number for trial in trials] == [2, 3, 0]
    assert (
        trials[0].config.flat()["optimizer.lr"],
        trials[0].config.flat()["optimizer.name"],
        trials[1].config.flat()["optimizer.lr"],
    ) == (0.01, "sgd", 0.02)
    assert study.finish(trials[0], completed(0.2))
    assert (
        "optimizer.lr=0.03, optimizer.name=sgd"
        in hpo("enqueue", "--study", "s", "optimizer.lr=0.03", "--like", "best").stdout
    )

    typo = error("enqueue", "--study", "s", "optimizer.rl=0.01")
    assert (
        "there is no 'optimizer.rl'. Did you mean optimizer.lr? Valid: optimizer.lr, optimizer.name, optimizer.eps"
        in typo
    )
    assert "no values. Valid: FIELD=VALUE" in error("enqueue", "--study", "s")
    assert "no trial '9' that began" in error("enqueue", "--study", "s", "--like", "9")
    assert "no value. Valid: hpo enqueue optimizer.lr=VALUE" in error(
        "enqueue", "--study", "s", "optimizer.lr"
    )


def test_nothing_is_put_into_a_study_that_retrains(
    make_study: Make, database: Database, tiny_spec: StudySpec
) -> None:
    open_child(database, make_study(tiny_spec, "s"), "confirm")
    told = error("enqueue", "--study", "s.confirm", "optimizer.lr=0.01")
    assert (
        "study s.confirm retrains configurations of s: no trial can be enqueued. Give --study s"
        in told
    )


def test_the_budget_is_spent_or_below(make_study: Make, tiny_spec: StudySpec) -> None:
    study = make_study(tiny_spec)
    for per in (0.3, 0.2):
        study.finish(claim(study), completed(per))
    below = hpo("budget", "--study", "s", "--trials", "1").stdout
    assert (
        "Nothing new starts: the budget of 1 trial is spent. To continue, raise it with hpo budget --study s"
        in below
    )
    claim_refused = hpo("enqueue", "--study", "s", "optimizer.lr=0.02").stdout
    assert (
        "It is one of the budget's 1 trials: the budget of 1 trial is spent. To continue, raise it"
        in claim_refused
    )
    hpo("budget", "--study", "s", "--trials", "+2")
    claim(study)
    late = hpo("budget", "--study", "s", "--deadline", "2020-01-01").stdout
    assert "Nothing new starts: the deadline" in late and "Running trials are handed back." in late


def test_notes_are_text_with_a_name(make_study: Make, tiny_spec: StudySpec) -> None:
    from optuna_dashboard import get_note

    study = make_study(tiny_spec)
    assert (
        hpo("note", "--study", "s", "first <script>alert(1)</script> & *second*").stdout
        == "noted on study s\n"
    )
    assert hpo("note", "--study", "s", "third").exit_code == 0
    assert hpo("note", "--study", "s", "--trial", "1", "of a trial").stdout == "noted on trial 1\n"
    text = get_note(study.optuna)
    assert text.startswith(
        "first &lt;script&gt;alert(1)&lt;/script&gt; &amp; *second*\n\n*" + control.person()
    )
    assert "\n\nthird\n\n" in text
    assert get_note(study.optuna_trial(study.records()[1].id, RandomSampler())).startswith(
        "of a trial"
    )
    assert "there is no trial 9" in error("note", "--study", "s", "--trial", "9", "x")
