"""Replays stopping rules on recorded curves: where would each have ended which run, and what would
that have cost.

`own-past` is the code that runs live. The rank rules are Optuna's own pruners; a run is replayed as
if it came last, after all the others had trained to their ends (each keeps its number). That needs
no order of the runs, which nobody knows, and is kind to the rank rules: live, the runs that they
stop early would be missing among the others.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import optuna
from optuna.pruners import (
    BasePruner,
    HyperbandPruner,
    MedianPruner,
    PatientPruner,
    SuccessiveHalvingPruner,
)
from optuna.samplers import RandomSampler
from optuna.trial import TrialState
from pydantic import BaseModel

from hpo.curve import Point
from hpo.errors import SpecError
from hpo.past.past_runs import PastRun
from hpo.settings import unknown
from hpo.space.stopping import OWN_PAST, OwnPast, not_finite
from hpo.study.reader import StudyReader
from hpo.study.trial import DONE
from hpo.trainer import Metric

DEFAULT_RULES = (OWN_PAST, "median", "asha")
FIRST = 0.03  # of the longest plan: no rank before that. 300 of neural_seq_decoder's 10,000 steps
FACTOR = 3  # between rungs
PATIENCE = 5
BAD_MARGIN, LEARNED = 0.05, 0.9
ORDER = (
    "rank rules judge each run as if it came last, when all the others had trained to their ends"
)
SWEEP: dict[
    str, tuple[float, ...]
] = {  # tried for each constant of own-past, the others at their defaults
    "margin": (
        0.005,
        0.01,
        0.015,
        0.02,
        0.025,
        0.03,
        0.04,
        0.05,
        0.06,
        0.08,
        0.1,
        0.12,
        0.15,
        0.2,
        0.3,
    ),
    "patience": (1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20),
    "loss_factor": (1.05, 1.1, 1.15, 1.2, 1.3, 1.5, 1.75, 2, 2.5, 3, 4, 5, 7, 10),
    "loss_patience": (1, 2, 3, 4, 5, 6, 8, 10, 15),
    "learned": (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 1.0),
}


@dataclass(frozen=True)
class Curve:
    """A run to be replayed."""

    name: str
    points: tuple[Point, ...]
    metric: Metric
    seconds: tuple[float, ...] | None  # since its start, at each evaluation; of a GPU
    steps: int  # planned
    remark: str = ""

    @property
    def best_value(self) -> float | None:
        return best_value(self.points, self.metric)

    @property
    def ended_badly(self) -> str:
        """Why, from the curve alone, by `bad_end`; empty if it did not."""
        last, best, metric = self.points[-1], self.best_value, self.metric
        if not_finite(last, metric) or best is None:
            return "not finite"
        if not metric.bounded:
            return ""
        rose = "rose" if metric.direction == "minimize" else "fell"
        if metric.sign * (last.value - best) > BAD_MARGIN:
            lowest = metric.short(best).removesuffix(" %")
            return f"{metric.name} {rose} from {lowest} to {metric.short(last.value)}"
        nothing = metric.sign * best >= metric.sign * learned(metric)
        return f"learned nothing ({metric.name} {metric.short(best)})" if nothing else ""


class RunFacts(BaseModel, frozen=True):
    """What is known of a run, whatever the rule. Values in the metric's unit (a fraction of 1 where
    it is percent).
    """

    run: str
    evaluations: int
    # Optimizer updates.
    last_step: int
    # None where no value is finite, or the last one is not.
    best_value: float | None
    last_value: float | None
    # Why; empty if it did not.
    ended_badly: str
    # Of a GPU, up to the last evaluation; None where they are not recorded.
    gpu_seconds: float | None
    remark: str


class RunOutcome(BaseModel, frozen=True):
    """What a rule would have done with a run."""

    run: str
    # Optimizer updates; None if the rule lets it go on.
    stopped_at: int | None
    reason: str
    # Of the whole run, in the metric's unit.
    best_value: float | None
    # In the metric's unit, how much worse the best before the stop is; None where either is not
    # known.
    value_forgone: float | None
    # None where they are not recorded.
    gpu_seconds_saved: float | None


class RuleOutcome(BaseModel, frozen=True):
    """What a rule would have done with all runs."""

    rule: str
    # The rule in words, with its constants.
    what: str
    # In the order of the curves.
    runs: tuple[RunOutcome, ...]
    # Of the runs that record their time.
    gpu_hours_saved: float
    gpu_hours_total: float
    # Names of the runs.
    healthy_stopped: tuple[str, ...]
    bad_missed: tuple[str, ...]
    # Optimizer updates; None if the rule lets the best run go on.
    best_run_stopped_at: int | None
    # Of all runs up to their stops, in the metric's unit.
    best_value_left: float | None

    @property
    def saved(self) -> str:
        """GPU-hours, for people: 7.5 of 143"""
        return f"{_hours(self.gpu_hours_saved)} of {_hours(self.gpu_hours_total)}"


def _hours(hours: float) -> str:
    return f"{hours:.2g}" if hours < 10 else f"{hours:.0f}"


class Backtest(BaseModel, frozen=True):
    """What each rule would have done with some runs."""

    # In the order of the curves.
    runs: tuple[RunFacts, ...]
    best_run: str
    # What ending badly means, and how the rank rules order the runs, in words.
    bad: str
    order: str
    rules: tuple[RuleOutcome, ...]


class Tried(BaseModel, frozen=True):
    """A value of a constant of own-past, and where it errs."""

    # A whole number stays one in the JSON.
    value: int | float
    # Names of the runs.
    bad_missed: tuple[str, ...]
    healthy_stopped: tuple[str, ...]

    @property
    def errs(self) -> bool:
        return bool(self.bad_missed or self.healthy_stopped)


class SafeRange(BaseModel, frozen=True):
    """How far a constant of own-past may move, the others at their defaults."""

    constant: str
    default: int | float
    # Lowest and highest of the safe values around the default; None if the default is not safe.
    safe: tuple[int | float, int | float] | None
    # By value, from the lowest.
    tried: tuple[Tried, ...]


def learned(metric: Metric) -> float:
    """What a bounded metric must be better than."""
    return LEARNED if metric.direction == "minimize" else round(1 - LEARNED, 6)


def bad_end(metric: Metric) -> str:
    """What ending badly means, in words."""
    if not metric.bounded:
        return "not finite at its end"
    above, below, sign = (
        ("above", "below", "+") if metric.direction == "minimize" else ("below", "above", "-")
    )
    return (
        f"not finite at its end, its last {metric.name} {above} its best {sign} {BAD_MARGIN}, "
        f"or no {metric.name} {below} {learned(metric)}"
    )


def best_value(points: Sequence[Point], metric: Metric) -> float | None:
    values = [point.value for point in points if math.isfinite(point.value)]
    return metric.best(values) if values else None


# Its words about every study that it makes would stand among the results.
optuna.logging.set_verbosity(optuna.logging.WARNING)


def past_curves(runs: Sequence[PastRun], metric: Metric) -> tuple[list[Curve], dict[str, str]]:
    """(curves, the runs that cannot be replayed and why)."""
    left_out = {
        run.name: run.metric_fault or "no evaluation is recorded"
        for run in runs
        if run.metric_fault or not run.curve
    }
    curves = []
    differ = len({run.split for run in runs if run.name not in left_out}) > 1
    for run in runs:
        if run.curve and not run.metric_fault:
            seconds = [point.seconds for point in run.curve if point.seconds is not None]
            timed = tuple(seconds) if len(seconds) == len(run.curve) else None
            is_told = differ and run.split not in (None, "test")
            remark = f"scored on {run.split}" if is_told else ""
            curves.append(
                Curve(
                    run.name,
                    tuple(run.points),
                    metric,
                    timed,
                    run.steps or run.curve[-1].step,
                    remark,
                )
            )
    return curves, left_out


def study_curves(study: StudyReader) -> tuple[list[Curve], dict[str, str]]:
    """As past_curves, of a study's trials. The time of a trial is spread evenly over its steps."""
    records = study.records()
    found = study.curves(records)
    curves, left_out = [], {}
    for record in records:
        points, name = found[record.number], f"trial {record.number}"
        if record.state not in DONE or not points:
            left_out[name] = (
                record.state if points else f"{record.state}, no evaluation is recorded"
            )
            continue
        pace = record.gpu_seconds / record.step if record.step else 0.0
        remark = ""
        if record.state == "stopped":
            remark = f"censored: {record.rule} stopped it, so what came after is not known"
        seconds = tuple(pace * point.step for point in points)
        curves.append(Curve(name, tuple(points), study.spec.metric, seconds, record.steps, remark))
    return curves, left_out


def backtest(
    curves: Sequence[Curve], rules: Sequence[str] = DEFAULT_RULES, own_past: OwnPast | None = None
) -> Backtest:
    """What each rule would have done.

    Raises SpecError for a rule that is not there or for no curves at all.
    """
    for rule in rules:
        if rule not in RULES:
            raise SpecError(unknown(rule, tuple(RULES), "--rule"))
    if not curves:
        raise SpecError(
            "no run has a curve, so there is nothing to replay. Valid: runs with evaluations; "
            "hpo import RUNS_DIR shows what is there"
        )
    metric = curves[0].metric
    best = min(
        curves,
        key=lambda curve: math.inf if curve.best_value is None else metric.sign * curve.best_value,
    )
    first = first_rung(curves)
    longest = max(first, *(curve.steps for curve in curves))
    return Backtest(
        runs=tuple(_facts(curve) for curve in curves),
        best_run=best.name,
        bad=bad_end(metric),
        order=ORDER,
        rules=tuple(
            _rule(rule, curves, best, own_past or OwnPast().of(metric), first, longest)
            for rule in rules
        ),
    )


def first_rung(curves: Sequence[Curve]) -> int:
    return max(1, round(FIRST * max(curve.steps for curve in curves)))


def _facts(curve: Curve) -> RunFacts:
    last = curve.points[-1]
    return RunFacts(
        run=curve.name,
        evaluations=len(curve.points),
        last_step=last.step,
        best_value=curve.best_value,
        last_value=last.value if math.isfinite(last.value) else None,
        ended_badly=curve.ended_badly,
        gpu_seconds=curve.seconds[-1] if curve.seconds else None,
        remark=curve.remark,
    )


def _rule(
    rule: str, curves: Sequence[Curve], best: Curve, own_past: OwnPast, first: int, longest: int
) -> RuleOutcome:
    constants = ", ".join(f"{name} {value:g}" for name, value in own_past if value is not None)
    what = (
        f"the rule that runs live ({constants})"
        if rule == OWN_PAST
        else RULES[rule].format(first=first, longest=longest)
    )
    stops = (
        own_past_stops(curves, own_past)
        if rule == OWN_PAST
        else _rank_stops(rule, curves, first, longest)
    )
    outcomes = [_outcome(curve, stop) for curve, stop in zip(curves, stops, strict=True)]
    runs = tuple(run for run, _ in outcomes)
    left = [value for _, value in outcomes if value is not None]
    return RuleOutcome(
        rule=rule,
        what=what,
        runs=runs,
        gpu_hours_saved=sum(run.gpu_seconds_saved or 0 for run in runs) / 3600,
        gpu_hours_total=sum(curve.seconds[-1] for curve in curves if curve.seconds) / 3600,
        healthy_stopped=tuple(
            curve.name
            for curve, stop in zip(curves, stops, strict=True)
            if stop and not curve.ended_badly
        ),
        bad_missed=tuple(
            curve.name
            for curve, stop in zip(curves, stops, strict=True)
            if not stop and curve.ended_badly
        ),
        best_run_stopped_at=next(run.stopped_at for run in runs if run.run == best.name),
        best_value_left=best.metric.best(left) if left else None,
    )


def _outcome(curve: Curve, stop: tuple[int, str] | None) -> tuple[RunOutcome, float | None]:
    """(what the rule does with the run, its best value up to there).

    stop: (index of the evaluation at which it ends, why).
    """
    at = None if stop is None else stop[0]
    before = curve.best_value if at is None else best_value(curve.points[: at + 1], curve.metric)
    best = curve.best_value
    outcome = RunOutcome(
        run=curve.name,
        stopped_at=None if at is None else curve.points[at].step,
        reason=stop[1] if stop else "",
        best_value=best,
        value_forgone=None
        if best is None or before is None
        else curve.metric.sign * (before - best),
        gpu_seconds_saved=None
        if not curve.seconds
        else 0.0
        if at is None
        else curve.seconds[-1] - curve.seconds[at],
    )
    return outcome, before


Stops = list[
    tuple[int, str] | None
]  # of each curve: index of the evaluation at which it ends, and why


def own_past_stops(curves: Sequence[Curve], rule: OwnPast) -> Stops:
    """As it goes live: the rule sees each prefix of the run's own curve."""
    stops: Stops = []
    for curve in curves:
        judged = (
            (at, rule.judge(curve.points[: at + 1], curve.metric))
            for at in range(len(curve.points))
        )
        stops.append(next(((at, stop.reason) for at, stop in judged if stop), None))
    return stops


# ---- Optuna's pruners

RULES = {
    OWN_PAST: "",
    "median": "Optuna's MedianPruner, from step {first}",
    "asha": f"Optuna's SuccessiveHalvingPruner, rungs at {{first}} x {FACTOR}^n",
    "hyperband": f"Optuna's HyperbandPruner, rungs at {{first}} x {FACTOR}^n up to {{longest}}",
    "patient": (
        f"Optuna's PatientPruner, when {PATIENCE + 1} evaluations in a row are worse than "
        f"one before"
    ),
}


def _pruner(rule: str, first: int, longest: int) -> BasePruner:
    if rule == "median":
        return MedianPruner(n_warmup_steps=first)
    if rule == "asha":
        return SuccessiveHalvingPruner(min_resource=first, reduction_factor=FACTOR)
    if rule == "hyperband":
        return HyperbandPruner(min_resource=first, max_resource=longest, reduction_factor=FACTOR)
    return PatientPruner(None, patience=PATIENCE)


def _study(pruner: BasePruner, metric: Metric) -> optuna.Study:
    """In memory, and always of one name: Hyperband draws brackets from it."""
    return optuna.create_study(
        study_name="backtest", sampler=RandomSampler(), pruner=pruner, direction=metric.direction
    )


def _rank_stops(rule: str, curves: Sequence[Curve], first: int, longest: int) -> Stops:
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # Optuna's that some pruners are experimental, and that a study of theirs is
        metric = curves[0].metric
        finished = _study(_pruner(rule, first, longest), metric)
        for curve in curves:
            trial = finished.ask()
            _report(trial, curve, to_the_end=True)
            last = curve.points[-1].value
            finished.tell(trial, *((last,) if math.isfinite(last) else (None, TrialState.FAIL)))
        others = finished.get_trials(deepcopy=False)
        stops: Stops = []
        for number, curve in enumerate(curves):
            study = _study(_pruner(rule, first, longest), metric)
            study.add_trials(others[:number])
            trial = study.ask()
            study.add_trials(others[number + 1 :])
            at = _report(trial, curve)
            stops.append(None if at is None else (at, _in_words(rule, curve, at)))
    return stops


def _in_words(rule: str, curve: Curve, at: int) -> str:
    point = curve.points[at]
    return f"{rule}: {curve.metric.name} {point.value:.3f} at step {point.step}"


def _report(trial: optuna.Trial, curve: Curve, to_the_end: bool = False) -> int | None:
    """Index of the evaluation at which the pruner ends the trial. The pruner is asked at each, for
    it keeps notes on the trial.
    """
    for at, point in enumerate(curve.points):
        trial.report(point.value, point.step)
        if trial.should_prune() and not to_the_end:
            return at
    return None


# ---- how wide the safe range of each constant is


def sweep(curves: Sequence[Curve], default: OwnPast | None = None) -> tuple[SafeRange, ...]:
    """For each constant of own-past, the others at their defaults: the values tried, and the safe
    ones around the default, which stop every run that ended badly and no other one.
    """
    default = default or OwnPast().of(curves[0].metric)
    bad = {curve.name for curve in curves if curve.ended_badly}
    found = []
    for constant, values in SWEEP.items():
        here = getattr(default, constant)
        if here is None:
            continue
        tried = []
        for value in sorted({*values, here}):
            rule = default.model_copy(update={constant: type(here)(value)})
            stopped = {
                curve.name
                for curve, stop in zip(curves, own_past_stops(curves, rule), strict=True)
                if stop
            }
            tried.append(
                Tried(
                    value=value,
                    bad_missed=tuple(sorted(bad - stopped)),
                    healthy_stopped=tuple(sorted(stopped - bad)),
                )
            )
        safe = _around(
            [row.value for row in tried if not row.errs], [row.value for row in tried], here
        )
        found.append(SafeRange(constant=constant, default=here, safe=safe, tried=tuple(tried)))
    return tuple(found)


def _around(safe: list[float], tried: list[float], default: float) -> tuple[float, float] | None:
    """(lowest, highest) of the safe values that lie together with the default."""
    if default not in safe:
        return None
    at = tried.index(default)
    low = next((n + 1 for n in range(at, -1, -1) if tried[n] not in safe), 0)
    high = next((n - 1 for n in range(at, len(tried)) if tried[n] not in safe), len(tried) - 1)
    return tried[low], tried[high]
