"""Stopping rules replayed on recorded curves."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.commands import invoke
from helpers.lines import refusal
from helpers.studies import RECORD, point

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


def curve(name: str, pers: list[float], seconds: bool = True) -> Curve:
    """An evaluation every 100 steps, which take a second each where times are known."""
    points = tuple(Point(100 * n, per, 1.0, 1.0) for n, per in enumerate(pers, 1))
    times = tuple(float(point.step) for point in points)
    return Curve(name, points, PER, times if seconds else None, 100 * len(pers))


FALLING = [0.9, 0.6, 0.5, 0.4, 0.35, 0.3, 0.28, 0.26, 0.25, 0.24]
# own-past stops it at step 500: three in a row above 0.45.
RISING = [0.9, 0.4, 0.5, 0.6, 0.7, 0.8, 0.8, 0.8, 0.8, 0.8]
# Looks worst early and ends best.
LATE = [0.95, 0.95, 0.94, 0.9, 0.5, 0.3, 0.2, 0.15, 0.12, 0.1]


@pytest.fixture(scope="module")
def replay(shared_data: Path) -> Any:
    """What `hpo backtest --sweep` prints of the lab's runs."""
    done = invoke("backtest", shared_data / "lab_runs", "--json", "--sweep")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_own_past_stops_the_bad_real_runs_and_no_healthy_one(replay: Any) -> None:
    """The claim of DESIGN, for the runs that diverged or degraded."""
    own = replay["rules"][0]
    assert own["rule"] == "own-past"
    assert {run["run"] for run in own["runs"] if run["stopped_at"] is not None} == BAD
    assert own["healthy_stopped"] == []
    assert own["bad_missed"] == []
    assert all(run["value_forgone"] == 0 for run in own["runs"])
    assert 0 < own["gpu_hours_saved"] < own["gpu_hours_total"]
    assert own["best_run_stopped_at"] is None
    # The curves alone tell what the labels do.
    assert {run["run"] for run in replay["runs"] if run["ended_badly"]} == BAD
    assert replay["not_replayable"] == {"run18_long_sgdr_swa": "no evaluation is recorded"}


def test_rank_rules_would_have_killed_the_winner(replay: Any) -> None:
    assert replay["best_run"] == "run16_3"
    for rule in replay["rules"][1:]:
        assert rule["rule"] in ("median", "asha")
        assert set(rule["healthy_stopped"]) == HEALTHY
        # 3 % of the plan of 10,000.
        assert rule["best_run_stopped_at"] == 300
        assert rule["best_value_left"] > 0.2152


def test_the_constants_are_safe_over_a_wide_range(replay: Any) -> None:
    for row in replay["sweep"]:
        low, high = row["safe"]
        assert low < row["default"] < high
        assert high / low >= 2


@pytest.mark.slow
def test_the_table_and_the_picture_name_every_run(shared_data: Path, tmp_path: Path) -> None:
    png, svg = tmp_path / "stops.png", tmp_path / "stops.svg"
    line = ("backtest", shared_data / "lab_runs", "--sweep")
    for done in (
        invoke(*line, "--plot", png),
        invoke(*line, "--plot", svg, "--rule", "own-past"),
    ):
        assert done.exit_code == 0, done.output
        for part in ("run16_3 *", "not replayed: run18_long_sgdr_swa", "margin", "GPU-hours saved"):
            assert part in done.output
    assert png.read_bytes().startswith(b"\x89PNG")
    assert svg.read_text().startswith("<?xml")
    assert "run16_3" in svg.read_text()
    assert "median" not in svg.read_text()


def test_a_replay_tells_where_and_why_a_run_stops_and_what_that_saves() -> None:
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
    """Six runs fall and one is late: the median stops the late one, wherever it stands.

    It does not stop the run that is first everywhere.
    """

    def falling(name: str, offset: float) -> Curve:
        return curve(name, [per + offset for per in FALLING])

    for order in (0, 6):
        runs = [falling(f"r{n}", 0.001 * n) for n in range(6)]
        runs.insert(order, curve("late", LATE))
        rule = backtest([*runs, falling("best", -0.05)], ["median"]).rules[0]
        results = {run.run: run for run in rule.runs}
        assert results["late"].stopped_at == 100
        assert results["best"].stopped_at is None
        assert results["late"].value_forgone == pytest.approx(0.95 - 0.1)


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule != "own-past"])
def test_every_rank_rule_takes_curves_that_are_not_finite(rule: str) -> None:
    runs = [curve(f"r{n}", FALLING) for n in range(6)]
    runs += [curve("nan", [0.9, 0.8, math.nan]), curve("short", [0.9])]
    result = backtest(runs, [rule])
    assert [run.run for run in result.rules[0].runs] == [run.name for run in runs]
    assert next(run for run in result.runs if run.run == "nan").ended_badly == "not finite"
    json.dumps(result.model_dump(mode="json"), allow_nan=False)


def test_a_run_stopped_before_any_finite_per_gives_up_all() -> None:
    curves = [curve("late", [math.nan, 0.8, 0.3]), curve("falling", FALLING)]
    result = backtest(curves, ["own-past"])
    late, _ = result.rules[0].runs
    assert (late.stopped_at, late.best_value, late.value_forgone) == (100, 0.3, None)
    assert result.rules[0].best_value_left == 0.24


def test_every_rule_takes_runs_that_planned_nothing() -> None:
    still = Curve("still", (Point(0, 0.9, 1.0, 1.0),), PER, None, 0)
    result = backtest([still], list(RULES))
    assert [rule.runs[0].stopped_at for rule in result.rules] == [None] * len(RULES)


def test_values_that_are_no_error_rate_are_not_replayed(tmp_path: Path) -> None:
    rows = ["name,step,per"]
    for n, per in enumerate(FALLING):
        rows.append(f"fraction,{100 * n},{per}")
        rows.append(f"percent,{100 * n},{100 * per}")
        rows.append(f"negative,{100 * n},{-0.1 if n == 3 else per}")
    (tmp_path / "a.csv").write_text("\n".join(rows))
    printed = json.loads(invoke("backtest", tmp_path / "a.csv", "--json").stdout)
    assert [run["run"] for run in printed["runs"]] == ["fraction"]
    assert printed["not_replayable"] == {
        "percent": "no PER at or below 1, the lowest is 24: percent?",
        "negative": "negative PER at step 300: not an error rate",
    }


def test_patience_judges_each_curve_alone() -> None:
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
    curves = [curve("falling", FALLING), curve("rising", RISING)]
    rows = {row.constant: row for row in sweep(curves)}
    assert set(rows) == set(SWEEP) == set(OwnPast.model_fields)
    tried = {entry.value: entry for entry in rows["learned"].tried}
    # The rising run never was below 0.3.
    assert tried[0.3].bad_missed == ("rising",)
    safe = rows["learned"].safe
    assert safe is not None
    assert safe[0] == 0.5
    # The default stops this run, though it ends well.
    dip = curve("dip", [0.5, 0.6, 0.6, 0.6, 0.5])
    assert sweep([dip])[0].safe is None


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
    typed = [argument.format(runs=tmp_path) for argument in arguments]
    line = refusal("backtest", *typed, "--map", "step=step")
    for part in parts:
        assert part in line


@pytest.mark.slow
def test_a_study_is_replayed_with_its_own_rule(
    make_study: Callable[..., Study], tiny_spec: StudySpec
) -> None:
    study = make_study(tiny_spec.model_copy(update={"stopping": OwnPast(margin=0.5)}))
    outcomes: list[Outcome] = [
        Completed(Score((40,), (100,))),
        Stopped(Stop("own-past", "per", "PER rose")),
        Interrupted(),
    ]
    for outcome in outcomes:
        trial = study.claim(Process.this(), RECORD)
        assert trial is not None
        for step, per in ((2, 0.3), (4, 0.4), (6, 0.4)):
            study.deliver(trial, [point(step, per)], step, float(step))
        study.finish(trial, outcome, 6.0)
    done = invoke("backtest", "--study", "s", "--json")
    assert done.exit_code == 0, done.output
    printed = json.loads(done.stdout)
    assert [run["run"] for run in printed["runs"]] == ["trial 0", "trial 1"]
    assert printed["runs"][1]["remark"].startswith("censored")
    assert printed["not_replayable"] == {"trial 2": "waiting"}
    assert "margin 0.5" in printed["rules"][0]["what"]
    assert printed["rules"][0]["gpu_hours_total"] == pytest.approx(12 / 3600)
    assert study.results()["backtest"]["best_run"] == "trial 0"
