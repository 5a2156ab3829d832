"""Replays stopping rules on recorded curves: where each would have stopped which run, and what that
would have cost.

`own-past` is the code that runs live. The rank rules are Optuna's own pruners. They judge each run
as if it came last, after all others had trained to their ends (each keeps its number). This needs
no order of the runs, which nobody knows, and it favours the rank rules: live, the runs that they
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
from hpo.study.trial import DONE, Record
from hpo.trainer import Metric

DEFAULT_RULES = (OWN_PAST, "median", "asha")
# A fraction of the longest plan: rank rules stop nothing before that. It is 300 of
# neural_seq_decoder's 10,000 steps.
FIRST = 0.03
# Between the rungs of asha and hyperband.
FACTOR = 3
PATIENCE = 5
# A bounded metric that ends further from its best than this has ended badly.
BAD_MARGIN = 0.05
# A run whose bounded metric never gets better than this has learned nothing.
LEARNED = 0.9
ORDER = (
    "rank rules judge each run as if it came last, when all the others had trained to their ends"
)
# The values that are tried for each constant of own-past, the others at their defaults.
SWEEP: dict[str, tuple[float, ...]] = {
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

# Optuna would log a line among the results for every study that is made here.
optuna.logging.set_verbosity(optuna.logging.WARNING)


@dataclass(frozen=True)
class Curve:
    """A run to be replayed."""

    name: str
    points: tuple[Point, ...]
    metric: Metric
    # GPU seconds since its start, at each evaluation; None if they are not recorded.
    seconds: tuple[float, ...] | None
    # The planned number of steps.
    steps: int
    remark: str = ""

    @property
    def best_value(self) -> float | None:
        return best_value(self.points, self.metric)

    @property
    def ended_badly(self) -> str:
        """Why the run ended badly, judged from the curve alone; empty if it did not. See
        `bad_end`.
        """
        metric = self.metric
        best = self.best_value
        last = self.points[-1]
        if not_finite(last, metric) or best is None:
            return "not finite"
        if not metric.bounded:
            return ""
        if metric.sign * (last.value - best) > BAD_MARGIN:
            moved = "rose" if metric.direction == "minimize" else "fell"
            best_text = metric.short(best).removesuffix(" %")
            return f"{metric.name} {moved} from {best_text} to {metric.short(last.value)}"
        if metric.sign * best >= metric.sign * learned(metric):
            return f"learned nothing ({metric.name} {metric.short(best)})"
        return ""


class RunFacts(BaseModel, frozen=True):
    """What is known of a run, whatever the rule. Values are in the metric's unit; where that is
    percent, they are fractions of 1.
    """

    run: str
    evaluations: int
    # Optimizer updates.
    last_step: int
    # None if no value is finite.
    best_value: float | None
    # None if it is not finite.
    last_value: float | None
    # Why the run ended badly; empty if it did not.
    ended_badly: str
    # Up to the last evaluation; None if they are not recorded.
    gpu_seconds: float | None
    remark: str


class RunOutcome(BaseModel, frozen=True):
    """What a rule would have done with a run."""

    run: str
    # Optimizer updates; None if the rule does not stop the run.
    stopped_at: int | None
    reason: str
    # Of the whole run, in the metric's unit.
    best_value: float | None
    # How much worse the best value before the stop is, in the metric's unit; None if either is not
    # known.
    value_forgone: float | None
    # None if GPU seconds are not recorded.
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
    # Optimizer updates; None if the rule does not stop the best run.
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
    # In words: what ending badly means, and how the rank rules order the runs.
    bad: str
    order: str
    rules: tuple[RuleOutcome, ...]


class Tried(BaseModel, frozen=True):
    """A value of a constant of own-past, and the runs on which the rule errs with it."""

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
    """The value that a bounded metric must beat."""
    return LEARNED if metric.direction == "minimize" else round(1 - LEARNED, 6)


def bad_end(metric: Metric) -> str:
    """What ending badly means, in words."""
    if not metric.bounded:
        return "not finite at its end"
    name = metric.name
    if metric.direction == "minimize":
        degraded = f"its last {name} above its best + {BAD_MARGIN}"
        learned_nothing = f"no {name} below {learned(metric)}"
    else:
        degraded = f"its last {name} below its best - {BAD_MARGIN}"
        learned_nothing = f"no {name} above {learned(metric)}"
    return f"not finite at its end, {degraded}, or {learned_nothing}"


def best_value(points: Sequence[Point], metric: Metric) -> float | None:
    """None if no value is finite."""
    values = [point.value for point in points if math.isfinite(point.value)]
    return metric.best(values) if values else None


# ---- which curves are replayed


def past_curves(runs: Sequence[PastRun], metric: Metric) -> tuple[list[Curve], dict[str, str]]:
    """(curves, the runs that cannot be replayed -> why)."""
    left_out: dict[str, str] = {}
    for run in runs:
        if run.metric_fault:
            left_out[run.name] = run.metric_fault
        elif not run.curve:
            left_out[run.name] = "no evaluation is recorded"
    splits = {run.split for run in runs if run.name not in left_out}
    curves = [
        _past_curve(run, metric, splits_differ=len(splits) > 1)
        for run in runs
        if run.curve and not run.metric_fault
    ]
    return curves, left_out


def _past_curve(run: PastRun, metric: Metric, splits_differ: bool) -> Curve:
    seconds = [point.seconds for point in run.curve if point.seconds is not None]
    remark = ""
    if splits_differ and run.split not in (None, "test"):
        remark = f"scored on {run.split}"
    return Curve(
        name=run.name,
        points=tuple(run.points),
        metric=metric,
        seconds=tuple(seconds) if len(seconds) == len(run.curve) else None,
        steps=run.steps or run.curve[-1].step,
        remark=remark,
    )


def study_curves(study: StudyReader) -> tuple[list[Curve], dict[str, str]]:
    """(curves of a study's trials, the trials that cannot be replayed -> why)."""
    records = study.records()
    points_of_trials = study.curves(records)
    curves: list[Curve] = []
    left_out: dict[str, str] = {}
    for record in records:
        name = f"trial {record.number}"
        points = points_of_trials[record.number]
        if not points:
            left_out[name] = f"{record.state}, no evaluation is recorded"
        elif record.state not in DONE:
            left_out[name] = record.state
        else:
            curves.append(_trial_curve(name, record, points, study.spec.metric))
    return curves, left_out


def _trial_curve(name: str, record: Record, points: Sequence[Point], metric: Metric) -> Curve:
    """The time of a trial is spread evenly over its steps."""
    seconds_per_step = record.gpu_seconds / record.step if record.step else 0.0
    remark = ""
    if record.state == "stopped":
        remark = f"censored: {record.rule} stopped it, so what came after is not known"
    return Curve(
        name=name,
        points=tuple(points),
        metric=metric,
        seconds=tuple(seconds_per_step * point.step for point in points),
        steps=record.steps,
        remark=remark,
    )


# ---- the replay


@dataclass(frozen=True)
class ReplayedStop:
    """Where a rule stops a run."""

    # Index of the evaluation at which the run ends.
    index: int
    reason: str


# Of each curve; None if the rule does not stop the run.
Stops = list[ReplayedStop | None]


@dataclass(frozen=True)
class _Rungs:
    """The steps between which rank rules compare runs."""

    first: int
    longest: int

    @classmethod
    def of(cls, curves: Sequence[Curve]) -> "_Rungs":
        longest_plan = max(curve.steps for curve in curves)
        first = max(1, round(FIRST * longest_plan))
        return cls(first, max(first, longest_plan))


def backtest(
    curves: Sequence[Curve], rules: Sequence[str] = DEFAULT_RULES, own_past: OwnPast | None = None
) -> Backtest:
    """What each rule would have done.

    Raises SpecError for an unknown rule, or if there are no curves.
    """
    for rule in rules:
        if rule not in RULES:
            raise SpecError(unknown(rule, tuple(RULES), "--rule"))
    if not curves:
        raise SpecError(
            "no run has a curve, so there is nothing to replay. Valid: runs with evaluations; "
            "hpo import RUNS_DIR shows which those are"
        )
    metric = curves[0].metric
    best_run = min(curves, key=_rank).name
    if own_past is None:
        own_past = OwnPast().of(metric)
    rungs = _Rungs.of(curves)
    outcomes: list[RuleOutcome] = []
    for rule in rules:
        if rule == OWN_PAST:
            what = _own_past_in_words(own_past)
            stops = own_past_stops(curves, own_past)
        else:
            what = RULES[rule].format(first=rungs.first, longest=rungs.longest)
            stops = _rank_stops(rule, curves, rungs)
        outcomes.append(_rule_outcome(rule, what, curves, stops, best_run))
    return Backtest(
        runs=tuple(_facts(curve) for curve in curves),
        best_run=best_run,
        bad=bad_end(metric),
        order=ORDER,
        rules=tuple(outcomes),
    )


def _rank(curve: Curve) -> float:
    """The lower, the better the run."""
    best = curve.best_value
    return math.inf if best is None else curve.metric.sign * best


def _own_past_in_words(own_past: OwnPast) -> str:
    constants = [f"{name} {value:g}" for name, value in own_past if value is not None]
    return f"the rule that runs live ({', '.join(constants)})"


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


def _rule_outcome(
    rule: str, what: str, curves: Sequence[Curve], stops: Stops, best_run: str
) -> RuleOutcome:
    outcomes: list[RunOutcome] = []
    values_left: list[float] = []
    healthy_stopped: list[str] = []
    bad_missed: list[str] = []
    for curve, stop in zip(curves, stops, strict=True):
        value_left = _value_left(curve, stop)
        if value_left is not None:
            values_left.append(value_left)
        outcomes.append(_run_outcome(curve, stop, value_left))
        if stop and not curve.ended_badly:
            healthy_stopped.append(curve.name)
        if curve.ended_badly and not stop:
            bad_missed.append(curve.name)
    seconds_saved = sum(outcome.gpu_seconds_saved or 0 for outcome in outcomes)
    seconds_total = sum(curve.seconds[-1] for curve in curves if curve.seconds)
    metric = curves[0].metric
    return RuleOutcome(
        rule=rule,
        what=what,
        runs=tuple(outcomes),
        gpu_hours_saved=seconds_saved / 3600,
        gpu_hours_total=seconds_total / 3600,
        healthy_stopped=tuple(healthy_stopped),
        bad_missed=tuple(bad_missed),
        best_run_stopped_at=next(run.stopped_at for run in outcomes if run.run == best_run),
        best_value_left=metric.best(values_left) if values_left else None,
    )


def _value_left(curve: Curve, stop: ReplayedStop | None) -> float | None:
    """The run's best value up to the stop; None if none is finite."""
    if stop is None:
        return curve.best_value
    return best_value(curve.points[: stop.index + 1], curve.metric)


def _run_outcome(curve: Curve, stop: ReplayedStop | None, value_left: float | None) -> RunOutcome:
    best = curve.best_value
    value_forgone = None
    if best is not None and value_left is not None:
        value_forgone = curve.metric.sign * (value_left - best)
    return RunOutcome(
        run=curve.name,
        stopped_at=curve.points[stop.index].step if stop else None,
        reason=stop.reason if stop else "",
        best_value=best,
        value_forgone=value_forgone,
        gpu_seconds_saved=_seconds_saved(curve, stop),
    )


def _seconds_saved(curve: Curve, stop: ReplayedStop | None) -> float | None:
    if not curve.seconds:
        return None
    if stop is None:
        return 0.0
    return curve.seconds[-1] - curve.seconds[stop.index]


def own_past_stops(curves: Sequence[Curve], rule: OwnPast) -> Stops:
    """The rule as it runs live: it sees each beginning of the run's own curve."""
    return [_own_past_stop(curve, rule) for curve in curves]


def _own_past_stop(curve: Curve, rule: OwnPast) -> ReplayedStop | None:
    for index in range(len(curve.points)):
        stop = rule.judge(curve.points[: index + 1], curve.metric)
        if stop:
            return ReplayedStop(index, stop.reason)
    return None


# ---- Optuna's pruners

# Rule -> its description.
RULES = {
    OWN_PAST: "",
    "median": "Optuna's MedianPruner, from step {first}",
    "asha": f"Optuna's SuccessiveHalvingPruner, rungs at {{first}} x {FACTOR}^n",
    "hyperband": f"Optuna's HyperbandPruner, rungs at {{first}} x {FACTOR}^n up to {{longest}}",
    "patient": (
        f"Optuna's PatientPruner, when {PATIENCE + 1} evaluations in a row are worse than one "
        "before"
    ),
}


def _pruner(rule: str, rungs: _Rungs) -> BasePruner:
    if rule == "median":
        return MedianPruner(n_warmup_steps=rungs.first)
    if rule == "asha":
        return SuccessiveHalvingPruner(min_resource=rungs.first, reduction_factor=FACTOR)
    if rule == "hyperband":
        return HyperbandPruner(
            min_resource=rungs.first, max_resource=rungs.longest, reduction_factor=FACTOR
        )
    return PatientPruner(None, patience=PATIENCE)


def _study(pruner: BasePruner, metric: Metric) -> optuna.Study:
    """A study in memory. Its name is always the same, because Hyperband draws brackets from it."""
    return optuna.create_study(
        study_name="backtest", sampler=RandomSampler(), pruner=pruner, direction=metric.direction
    )


def _rank_stops(rule: str, curves: Sequence[Curve], rungs: _Rungs) -> Stops:
    with warnings.catch_warnings():
        # Optuna warns that some pruners are experimental, and so are parts of its studies.
        warnings.simplefilter("ignore")
        trials = _whole_trials(rule, curves, rungs)
        stops: Stops = []
        for number, curve in enumerate(curves):
            study = _study(_pruner(rule, rungs), curves[0].metric)
            study.add_trials(trials[:number])
            trial = study.ask()
            study.add_trials(trials[number + 1 :])
            stops.append(_rank_stop(rule, curve, trial))
        return stops


def _whole_trials(
    rule: str, curves: Sequence[Curve], rungs: _Rungs
) -> list[optuna.trial.FrozenTrial]:
    """All runs as trials that have trained to their ends."""
    study = _study(_pruner(rule, rungs), curves[0].metric)
    for curve in curves:
        trial = study.ask()
        for point in curve.points:
            trial.report(point.value, point.step)
            # The answer does not count, but the pruner keeps notes on the trial.
            trial.should_prune()
        last = curve.points[-1].value
        if math.isfinite(last):
            study.tell(trial, last)
        else:
            study.tell(trial, None, TrialState.FAIL)
    return study.get_trials(deepcopy=False)


def _rank_stop(rule: str, curve: Curve, trial: optuna.Trial) -> ReplayedStop | None:
    """Where the pruner stops the trial."""
    for index, point in enumerate(curve.points):
        trial.report(point.value, point.step)
        if trial.should_prune():
            reason = f"{rule}: {curve.metric.name} {point.value:.3f} at step {point.step}"
            return ReplayedStop(index, reason)
    return None


# ---- how wide the safe range of each constant is


def sweep(curves: Sequence[Curve], default: OwnPast | None = None) -> tuple[SafeRange, ...]:
    """For each constant of own-past, the others at their defaults: the values tried, and the safe
    ones around the default, which stop every run that ended badly and no other one.
    """
    default = default or OwnPast().of(curves[0].metric)
    return tuple(
        _safe_range(curves, default, constant)
        for constant in SWEEP
        if getattr(default, constant) is not None
    )


def _safe_range(curves: Sequence[Curve], default: OwnPast, constant: str) -> SafeRange:
    default_value = getattr(default, constant)
    tried: list[Tried] = []
    for value in sorted({*SWEEP[constant], default_value}):
        typed_value = type(default_value)(value)
        rule = default.model_copy(update={constant: typed_value})
        tried.append(_tried(curves, rule, value))
    return SafeRange(
        constant=constant,
        default=default_value,
        safe=_safe_around(tried, default_value),
        tried=tuple(tried),
    )


def _tried(curves: Sequence[Curve], rule: OwnPast, value: float) -> Tried:
    """How the rule errs with this value of a constant."""
    bad = {curve.name for curve in curves if curve.ended_badly}
    stops = own_past_stops(curves, rule)
    stopped = {curve.name for curve, stop in zip(curves, stops, strict=True) if stop}
    return Tried(
        value=value,
        bad_missed=tuple(sorted(bad - stopped)),
        healthy_stopped=tuple(sorted(stopped - bad)),
    )


def _safe_around(tried: Sequence[Tried], default: float) -> tuple[float, float] | None:
    """(lowest, highest) of the safe values that lie together with the default; None if the default
    is not safe.
    """
    values = [entry.value for entry in tried]
    lowest = values.index(default)
    highest = lowest
    if tried[lowest].errs:
        return None
    while lowest > 0 and not tried[lowest - 1].errs:
        lowest -= 1
    while highest < len(tried) - 1 and not tried[highest + 1].errs:
        highest += 1
    return values[lowest], values[highest]
