"""Stopping rules replayed on recorded curves."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from helpers.studies import point

from hpo.cli import main
from hpo.curve import Point
from hpo.decoder.trainer import PER
from hpo.past.backtest import RULES, SWEEP, Curve, backtest, own_past_stops, sweep
from hpo.process import Process
from hpo.space.spec import StudySpec
from hpo.space.stopping import OwnPast, Stop
from hpo.study.study import Study
from hpo.study.trial import Completed, Interrupted, Outcome, Stopped
from hpo.trainer import Score

# Labels from shared/data/lab_runs/README.md: diverged, diverged, degraded; the others are healthy.
BAD = {"gru_ctc_reg2", "run12_baseline_hybrid", "run17_greedy_ema_fastcos"}
HEALTHY = {"gru_ctc_reg5", "gru_ctc_reg6", "run15_warmup_cosine_safe", "run16_3"}


def hpo(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def curve(name: str, pers: list[float], seconds: bool = True) -> Curve:
    points = tuple(Point(100 * n, per, 1.0, 1.0) for n, per in enumerate(pers, 1))
    return Curve(
        name,
        points,
        PER,
        tuple(float(point.step) for point in points) if seconds else None,
        100 * len(pers),
    )


FALLING = [0.9, 0.6, 0.5, 0.4, 0.35, 0.3, 0.28, 0.26, 0.25, 0.24]
RISING = [
    0.9,
    0.4,
    0.5,
    0.6,
    0.7,
    0.8,
    0.8,
    0.8,
    0.8,
    0.8,
]  # own-past: three in a row above 0.45 at step 500
LATE = [0.95, 0.95, 0.94, 0.9, 0.5, 0.3, 0.2, 0.15, 0.12, 0.1]  # looks worst early and ends best


@pytest.fixture(scope="module")
def found(shared_data: Path) -> Any:
    done = hpo("backtest", shared_data / "lab_runs", "--json", "--sweep")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_own_past_on_real_runs(found: Any) -> None:
    """The claim of DESIGN: it stops the diverged and the degraded runs and no healthy one."""
    own = found["rules"][0]
    assert own["rule"] == "own-past"
    assert {run["run"] for run in own["runs"] if run["stopped_at"] is not None} == BAD
    assert own["healthy_stopped"] == own["bad_missed"] == []
    assert all(run["value_forgone"] == 0 for run in own["runs"])
    assert 0 < own["gpu_hours_saved"] < own["gpu_hours_total"]
    assert own["best_run_stopped_at"] is None
    assert {
        run["run"] for run in found["runs"] if run["ended_badly"]
    } == BAD  # the curves alone say what the labels do
    assert found["not_replayable"] == {"run18_long_sgdr_swa": "no evaluation is recorded"}


def test_rank_rules_would_have_killed_the_winner(found: Any) -> None:
    assert found["best_run"] == "run16_3"
    for rule in found["rules"][1:]:
        assert rule["rule"] in ("median", "asha")
        assert set(rule["healthy_stopped"]) == HEALTHY
        assert rule["best_run_stopped_at"] == 300  # 3 % of the plan of 10,000
        assert rule["best_value_left"] > 0.2152


def test_the_constants_are_safe_over_a_wide_range(found: Any) -> None:
    for row in found["sweep"]:
        low, high = row["safe"]
        assert low < row["default"] < high
        assert high / low >= 2


def test_the_table_and_the_picture(shared_data: Path, tmp_path: Path) -> None:
    for ending, begin in (("png", b"\x89PNG"), ("svg", b"<?xml")):
        picture = tmp_path / f"stops.{ending}"
        done = hpo(
            "backtest",
            shared_data / "lab_runs",
            "--plot",
            picture,
            "--sweep",
            *(("--rule", "own-past") if ending == "svg" else ()),
        )
        assert done.exit_code == 0, done.output
        assert picture.read_bytes().startswith(begin)
        for part in ("run16_3 *", "not replayed: run18_long_sgdr_swa", "margin", "GPU-hours saved"):
            assert part in done.output
    svg = (tmp_path / "stops.svg").read_text()
    assert "run16_3" in svg
    assert "median" not in svg


def test_where_why_saved_and_given_up() -> None:
    result = backtest(
        [curve("falling", FALLING), curve("rising", RISING), curve("late", LATE, seconds=False)],
        ["own-past"],
    )
    falling, rising, late = result.rules[0].runs
    assert (falling.stopped_at, falling.reason) == (None, "")
    assert (rising.stopped_at, rising.value_forgone, rising.gpu_seconds_saved) == (500, 0.0, 500.0)
    assert "above its best 0.400" in rising.reason
    assert late.gpu_seconds_saved is None
    assert result.best_run == "late"


def test_a_rank_rule_judges_a_run_as_if_it_came_last() -> None:
    """Five that fall and one that is late: the median stops the late one, wherever it stands, and none that is first everywhere."""
    best = [per - 0.05 for per in FALLING]
    for order in (0, 6):
        runs = [curve(f"r{n}", [per + 0.001 * n for per in FALLING]) for n in range(6)]
        runs.insert(order, curve("late", LATE))
        rule = backtest([*runs, curve("best", best)], ["median"]).rules[0]
        stopped = {run.run: run.stopped_at for run in rule.runs}
        assert stopped["late"] == 100
        assert stopped["best"] is None
        assert next(run for run in rule.runs if run.run == "late").value_forgone == pytest.approx(
            0.95 - 0.1
        )


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule != "own-past"])
def test_every_rank_rule_takes_curves_that_are_not_finite(rule: str) -> None:
    runs = [curve(f"r{n}", FALLING) for n in range(6)] + [
        curve("nan", [0.9, 0.8, math.nan]),
        curve("short", [0.9]),
    ]
    result = backtest(runs, [rule])
    assert [run.run for run in result.rules[0].runs] == [run.name for run in runs]
    assert next(run for run in result.runs if run.run == "nan").ended_badly == "not finite"
    json.dumps(result.model_dump(mode="json"), allow_nan=False)


def test_a_run_that_is_stopped_before_any_finite_per_gives_up_all() -> None:
    result = backtest(
        [curve("late", [math.nan, 0.8, 0.3]), curve("falling", FALLING)], ["own-past"]
    )
    late, _ = result.rules[0].runs
    assert (late.stopped_at, late.best_value, late.value_forgone) == (100, 0.3, None)
    assert result.rules[0].best_value_left == 0.24


def test_every_rule_takes_runs_that_planned_nothing() -> None:
    found = backtest([Curve("still", (Point(0, 0.9, 1.0, 1.0),), PER, None, 0)], list(RULES))
    assert [rule.runs[0].stopped_at for rule in found.rules] == [None] * len(RULES)


def test_what_is_no_error_rate_is_not_replayed(tmp_path: Path) -> None:
    rows = [
        f"{name},{100 * n},{scale * per}"
        for name, scale in (("fraction", 1), ("percent", 100))
        for n, per in enumerate(FALLING)
    ]
    rows += [f"negative,{100 * n},{-0.1 if n == 3 else per}" for n, per in enumerate(FALLING)]
    (tmp_path / "a.csv").write_text("\n".join(["name,step,per", *rows]))
    found = json.loads(hpo("backtest", tmp_path / "a.csv", "--json").stdout)
    assert [run["run"] for run in found["runs"]] == ["fraction"]
    assert found["not_replayable"] == {
        "percent": "no PER at or below 1, the lowest is 24: percent?",
        "negative": "negative PER at step 300: not an error rate",
    }


def test_patience_is_an_own_curve_rule() -> None:
    still = [0.9, 0.5, *[0.51] * 8]
    stops = backtest([curve("still", still), curve("falling", FALLING)], ["patient"]).rules[0].runs
    assert [run.stopped_at for run in stops] == [800, None]


def test_the_replay_is_the_live_rule() -> None:
    rule = OwnPast(margin=0.2, patience=2)
    (stop,) = own_past_stops([curve("rising", RISING)], rule)
    assert stop is not None
    points = curve("rising", RISING).points
    assert rule.judge(points[: stop.index], PER) is None
    live = rule.judge(points[: stop.index + 1], PER)
    assert live is not None and live.reason == stop.reason


def test_a_sweep_names_what_breaks() -> None:
    rows = {
        row.constant: row for row in sweep([curve("falling", FALLING), curve("rising", RISING)])
    }
    assert set(rows) == set(SWEEP) == set(OwnPast.model_fields)
    tried = {entry.value: entry for entry in rows["learned"].tried}
    assert tried[0.3].bad_missed == ("rising",)  # it never was below 0.3
    safe = rows["learned"].safe
    assert safe is not None and safe[0] == 0.5
    assert (
        sweep([curve("dip", [0.5, 0.6, 0.6, 0.6, 0.5])])[0].safe is None
    )  # the default stops it, though it ends well


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ((), ("RUNS_DIR, --study NAME or both",)),
        (("--study", "s"), ("Add RUNS_DIR",)),
        (
            ("{runs}", "--rule", "medien"),
            ("there is no 'medien'", "Did you mean median?", "own-past"),
        ),
        (("{runs}", "--plot", "a.gif"), ("a.gif", ".svg, .png, .pdf")),
        (("{runs}/none",), ("no such file or folder",)),
    ],
)
def test_mistakes_are_one_line(
    tmp_path: Path, arguments: tuple[str, ...], parts: tuple[str, ...]
) -> None:
    (tmp_path / "a.csv").write_text("step,per\n0,0.9\n100,0.5\n")
    done = hpo(
        "backtest",
        *(argument.format(runs=tmp_path) for argument in arguments),
        "--map",
        "step=step",
    )
    assert done.exit_code == 2
    assert done.stderr.count("\n") == 1
    for part in parts:
        assert part in done.stderr


def test_a_study_is_replayed_with_its_own_rule(
    make_study: Callable[..., Study], tiny_spec: StudySpec
) -> None:
    study = make_study(tiny_spec.model_copy(update={"stopping": OwnPast(margin=0.5)}))
    record = {"device": "cpu", "code_version": "0", "data": "f"}
    outcomes: list[Outcome] = [
        Completed(Score((40,), (100,))),
        Stopped(Stop("own-past", "per", "PER rose")),
        Interrupted(),
    ]
    for outcome in outcomes:
        trial = study.claim(Process.this(), record)
        assert trial is not None
        for step, per in ((2, 0.3), (4, 0.4), (6, 0.4)):
            score = Score((round(per * 100),), (100,))
            study.deliver(trial, [point(step, score.value)], step, float(step))
        study.finish(trial, outcome, 6.0)
    done = hpo("backtest", "--study", "s", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert [run["run"] for run in found["runs"]] == ["trial 0", "trial 1"]
    assert found["runs"][1]["remark"].startswith("censored")
    assert found["not_replayable"] == {"trial 2": "waiting"}
    assert "margin 0.5" in found["rules"][0]["what"]
    assert found["rules"][0]["gpu_hours_total"] == pytest.approx(12 / 3600)
    assert study.results()["backtest"]["best_run"] == "trial 0"
