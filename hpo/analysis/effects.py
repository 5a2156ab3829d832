"""Which parameters matter, and which pairs of them interact, over the trials of a study.

Importance has two measures. PED-ANOVA (Watanabe et al. 2023; Optuna's takes conditional parameters
as arXiv 2601.20800) asks what tells the best trials from all; fANOVA (Hutter et al. 2014) asks for
shares of the variance. With few trials both always rate something high, so a separate test says
whether an effect stands out from the noise (surface.py).
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from textwrap import fill
from typing import Any, TypeVar

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.importance import (
    BaseImportanceEvaluator,
    FanovaImportanceEvaluator,
    PedAnovaImportanceEvaluator,
    get_param_importances,
)
from pydantic import BaseModel

from hpo.analysis.stats import holm
from hpo.analysis.surface import Array, Axis, Effect, Plane, interaction, main_effect, surface
from hpo.errors import StudyError
from hpo.space.spec import StudySpec
from hpo.study.reader import StudyReader
from hpo.study.sampling import distribution
from hpo.study.trial import Record
from hpo.text import value_text
from hpo.trainer import Metric

# Pairs shown in addition to those that the trainer asks about.
OTHERS = 3
# Trials without which there are no effects.
FEWEST = 5
# Trials that have the parameter, or both; with fewer, nothing is claimed.
ENOUGH = 20
# Trials that PED-ANOVA should have in its target, at least (from its documentation).
BEST = 5
# Strict, because a search does not draw its trials independently.
ALPHA = 0.01

Pair = tuple[str, str]
Key = TypeVar("Key", str, Pair)


@dataclass(frozen=True)
class EndedTrial:
    """A trial that effects are computed from: its parameters, and the outcome in the metric."""

    number: int
    state: str
    params: Mapping[str, Any]
    outcome: float


class Importance(BaseModel, frozen=True):
    """How much one parameter matters."""

    name: str
    # Share in what tells the best trials from all; the shares add up to 1.
    ped_anova: float
    # Share of the variance that the parameter explains alone; None if it could not be computed.
    fanova: float | None
    # How many trials have the parameter.
    trials: int
    # Of a test of its main effect: alone, and adjusted for the number of parameters.
    # None if there are too few trials.
    p: float | None
    p_holm: float | None

    @property
    def clear(self) -> bool:
        """Whether it stands out from the noise."""
        return stands_out(self.trials, self.p_holm)


class PairTrial(BaseModel, frozen=True):
    """A trial on a heat map. value: the outcome in the metric's unit (a fraction where percent)."""

    number: int
    x: Any
    y: Any
    value: float
    state: str


class Interaction(BaseModel, frozen=True):
    """How two parameters act together, as a heat map with the trials on it."""

    x: str
    y: str
    x_values: tuple[Any, ...]
    y_values: tuple[Any, ...]
    x_log: bool
    y_log: bool
    x_choices: bool
    y_choices: bool
    # The mean outcome in the metric's unit, a row for each of y_values.
    value: tuple[tuple[float, ...], ...]
    # Those that have both parameters.
    trials: tuple[PairTrial, ...]
    # Share of the variance.
    strength: float
    # Of a test of the interaction: alone, and adjusted for the number of pairs.
    p: float
    p_holm: float

    @property
    def clear(self) -> bool:
        """Whether it stands out from the noise."""
        return stands_out(len(self.trials), self.p_holm)


class Effects(BaseModel, frozen=True):
    """The finding `effects`. importance: the largest first; interactions: the clearest first."""

    # Trials that are complete or stopped by a rule.
    trials: int
    # How many of them were stopped.
    diverged: int
    # What is explained, in words.
    outcome: str
    importance: tuple[Importance, ...]
    interactions: tuple[Interaction, ...]
    notes: tuple[str, ...]


def build_effects(study: StudyReader) -> Effects:
    """Compute the finding `effects` and keep it with the study. Raises StudyError."""
    effects = effects_of(study.name, study.spec, study.records())
    study.keep_result("effects", effects.model_dump(mode="json"))
    return effects


def effects_of(name: str, spec: StudySpec, all_records: Sequence[Record]) -> Effects:
    """What the trials say about the parameters and their pairs.

    name: of the study, for errors. Raises StudyError if there are too few trials or all outcomes
    are equal.
    """
    metric = spec.metric
    trials = ended_trials(all_records, metric)
    if len(trials) < FEWEST:
        raise StudyError(
            f"study {name}: {len(trials)} trials are complete or stopped by a rule; effects need "
            f"{FEWEST} or more, {ENOUGH} to claim something. "
            f"Run more: hpo budget --study {name} --trials +{ENOUGH}"
        )
    if len({trial.outcome for trial in trials}) == 1:
        raise StudyError(
            f"study {name}: all {len(trials)} trials have the same outcome, "
            f"so there is nothing to explain"
        )
    pairs_of_interest = [set(pair) for pair in spec.load_trainer().pairs]
    interactions = _interactions(spec, trials, pairs_of_interest)
    return Effects(
        trials=len(trials),
        diverged=sum(trial.state == "stopped" for trial in trials),
        outcome=_outcome_text(metric),
        importance=_importance(spec, trials),
        interactions=interactions,
        notes=_notes(spec, len(trials), interactions, pairs_of_interest),
    )


def ended_trials(records: Sequence[Record], metric: Metric) -> list[EndedTrial]:
    """The trials that are complete or stopped by a rule.

    The outcome of a stopped one is its last value, or the worst possible one if it has none.
    """
    ended = [
        record
        for record in records
        if (record.state == "complete" or record.stopped_by_rule) and record.params
    ]
    worst = metric.worst([record.value for record in ended if record.value is not None])
    return [
        EndedTrial(record.number, record.state, record.params, _outcome(record, metric, worst))
        for record in ended
    ]


def _outcome(record: Record, metric: Metric, worst: float) -> float:
    if record.value is not None:
        return record.value
    if record.last_value is None or not math.isfinite(record.last_value):
        return worst
    if metric.bounded:
        return metric.best([worst, record.last_value])
    return record.last_value


def _outcome_text(metric: Metric) -> str:
    name = metric.name
    if metric.bounded:
        worst = metric.short(metric.worst(())).replace(".0", "")
        limit = "at most" if metric.direction == "minimize" else "at least"
        last = f"the last {name} seen before, {limit} {worst}, and {worst} if there was none."
    else:
        last = f"the last {name} seen before, and the worst of the complete ones if there was none."
    return (
        f"the {name} on validation at the end of the training; of a trial that a rule stopped, "
        f"{last}"
    )


def _notes(
    spec: StudySpec,
    trials: int,
    interactions: Sequence[Interaction],
    pairs_of_interest: Sequence[set[str]],
) -> tuple[str, ...]:
    notes = []
    if trials < ENOUGH:
        notes.append(
            f"{trials} trials, fewer than {ENOUGH}: importances are mostly noise, "
            f"and nothing here is more than a hint."
        )
    tested = [{shown.x, shown.y} for shown in interactions]
    for pair in pairs_of_interest:
        if pair <= set(spec.parameters) and pair not in tested:
            names = " x ".join(sorted(pair, reverse=True))
            notes.append(f"{names}: the trials are too few or too similar to tell.")
    if any(parameter.when for parameter in spec.parameters.values()):
        notes.append(
            "A parameter that exists under a condition is judged among the trials that have it "
            "(column trials), except by PED-ANOVA, which weighs it by their share."
        )
    notes.append(
        f"The search tried more where {spec.metric.name} was {spec.metric.good}, so trials are not "
        f"spread evenly, and parameters may have moved together."
    )
    return tuple(notes)


def _trials_with(trials: Sequence[EndedTrial], *names: str) -> list[EndedTrial]:
    """The trials that have all of these parameters."""
    return [trial for trial in trials if all(name in trial.params for name in names)]


def _outcomes(trials: Sequence[EndedTrial]) -> Array:
    return np.array([trial.outcome for trial in trials])


def _adjusted_p(tests: Mapping[Key, Effect]) -> dict[Key, float]:
    """The p-value of each test, adjusted for their number."""
    adjusted = holm([test.p for test in tests.values()])
    return dict(zip(tests, adjusted, strict=True))


# ---- one parameter


def _importance(spec: StudySpec, trials: Sequence[EndedTrial]) -> tuple[Importance, ...]:
    names = [name for name in spec.parameters if _trials_with(trials, name)]
    optuna_study = _as_optuna_study(spec, trials)
    ped_anova = _ped_anova(optuna_study, names)
    total = sum(ped_anova.values()) or 1.0
    fanova = _fanova(optuna_study, names, trials)
    tests: dict[str, Effect] = {}
    for name in names:
        test = _main_effect(spec, name, _trials_with(trials, name))
        if test is not None:
            tests[name] = test
    p_holm = _adjusted_p(tests)
    importance = [
        Importance(
            name=name,
            ped_anova=ped_anova[name] / total,
            fanova=fanova.get(name),
            trials=len(_trials_with(trials, name)),
            p=tests[name].p if name in tests else None,
            p_holm=p_holm.get(name),
        )
        for name in names
    ]
    importance.sort(key=lambda entry: entry.ped_anova + (entry.fanova or 0.0), reverse=True)
    return tuple(importance)


def _ped_anova(optuna_study: optuna.Study, names: list[str]) -> dict[str, float]:
    quantile = max(0.1, min(0.5, BEST / len(optuna_study.trials)))
    evaluator = PedAnovaImportanceEvaluator(target_quantile=quantile)
    return _evaluate(optuna_study, evaluator, names)


def _fanova(
    optuna_study: optuna.Study, names: list[str], trials: Sequence[EndedTrial]
) -> dict[str, float]:
    """The share of each parameter. A parameter with too few trials or equal outcomes is missing.

    fANOVA needs parameters that every trial has, so each conditional parameter gets its own forest,
    on the trials that have it.
    """
    in_every_trial = [name for name in names if len(_trials_with(trials, name)) == len(trials)]
    shares: dict[str, float] = {}
    if in_every_trial:
        shares = _evaluate(optuna_study, _forest(), in_every_trial)
    for name in names:
        if name in in_every_trial:
            continue
        having = _trials_with(trials, name)
        if len(having) >= FEWEST and len({trial.outcome for trial in having}) > 1:
            shares[name] = _evaluate(optuna_study, _forest(), [*in_every_trial, name])[name]
    return shares


def _forest() -> FanovaImportanceEvaluator:
    return FanovaImportanceEvaluator(n_trees=32, seed=0)


def _evaluate(
    optuna_study: optuna.Study, evaluator: BaseImportanceEvaluator, names: list[str]
) -> dict[str, float]:
    with warnings.catch_warnings():
        # Optuna warns of few trials, which the notes say, and of normalize=False being new.
        warnings.simplefilter("ignore")
        importances = get_param_importances(
            optuna_study, evaluator=evaluator, params=names, normalize=False
        )
    return {name: float(share) for name, share in importances.items()}


def _as_optuna_study(spec: StudySpec, trials: Sequence[EndedTrial]) -> optuna.Study:
    """The trials as complete ones of an Optuna study in memory.

    Log parameters are given as their logarithms: Optuna's fANOVA takes a range as linear, so of eps
    from 1e-8 to 1e-1 it would see the last decade only.
    """
    study = optuna.create_study(
        sampler=optuna.samplers.RandomSampler(0), direction=spec.metric.direction
    )
    all_distributions = {name: _linear_distribution(spec, name) for name in spec.parameters}
    for trial in trials:
        params = {
            name: math.log(value) if spec.parameters[name].log else value
            for name, value in trial.params.items()
        }
        distributions = {name: all_distributions[name] for name in params}
        study.add_trial(
            optuna.create_trial(params=params, distributions=distributions, value=trial.outcome)
        )
    return study


def _linear_distribution(spec: StudySpec, name: str) -> BaseDistribution:
    parameter = spec.parameters[name]
    if not parameter.log or parameter.low is None or parameter.high is None:
        return distribution(spec, name)
    return FloatDistribution(math.log(parameter.low), math.log(parameter.high))


def _main_effect(spec: StudySpec, name: str, trials: Sequence[EndedTrial]) -> Effect | None:
    values = [trial.params[name] for trial in trials]
    axis = Axis.of(spec.parameters[name], values)
    return main_effect(axis, values, _outcomes(trials))


# ---- two parameters


def _interactions(
    spec: StudySpec, trials: Sequence[EndedTrial], pairs_of_interest: Sequence[set[str]]
) -> tuple[Interaction, ...]:
    """All testable pairs of interest, and the other pairs that stand out most; the clearest first.

    The p-values of the two groups are adjusted separately, each for its own number of pairs.
    """
    tests: dict[Pair, Effect] = {}
    for pair in combinations(spec.parameters, 2):
        having = _trials_with(trials, *pair)
        if len(having) < FEWEST:
            continue
        test = interaction(_plane(spec, pair, having), _outcomes(having))
        if test is not None:
            tests[pair] = test
    of_interest = [pair for pair in tests if set(pair) in pairs_of_interest]
    others = [pair for pair in tests if set(pair) not in pairs_of_interest]
    others.sort(key=lambda pair: tests[pair].p)
    p_holm = {
        **_adjusted_p({pair: tests[pair] for pair in of_interest}),
        **_adjusted_p({pair: tests[pair] for pair in others}),
    }
    shown = [*of_interest, *others[:OTHERS]]
    shown.sort(key=lambda pair: tests[pair].p)
    return tuple(_heat_map(spec, trials, pair, tests[pair], p_holm[pair]) for pair in shown)


def _plane(spec: StudySpec, pair: Pair, trials: Sequence[EndedTrial]) -> Plane:
    x, y = pair
    x_values = [trial.params[x] for trial in trials]
    y_values = [trial.params[y] for trial in trials]
    x_axis = Axis.of(spec.parameters[x], x_values)
    y_axis = Axis.of(spec.parameters[y], y_values)
    return Plane(x_axis, y_axis, x_values, y_values)


def _heat_map(
    spec: StudySpec, trials: Sequence[EndedTrial], pair: Pair, test: Effect, p_holm: float
) -> Interaction:
    x, y = pair
    having = _trials_with(trials, x, y)
    plane = _plane(spec, pair, having)
    rows = surface(plane, _outcomes(having), bounded=spec.metric.bounded)
    pair_trials = [
        PairTrial(
            number=trial.number,
            x=trial.params[x],
            y=trial.params[y],
            value=trial.outcome,
            state=trial.state,
        )
        for trial in having
    ]
    return Interaction(
        x=x,
        y=y,
        x_values=tuple(plane.x.grid()),
        y_values=tuple(plane.y.grid()),
        x_log=spec.parameters[x].log,
        y_log=spec.parameters[y].log,
        x_choices=spec.parameters[x].choices is not None,
        y_choices=spec.parameters[y].choices is not None,
        value=tuple(map(tuple, rows)),
        trials=tuple(pair_trials),
        strength=test.share,
        p=test.p,
        p_holm=p_holm,
    )


# ---- in words


def stands_out(trials: int, p_holm: float | None) -> bool:
    """Whether an effect over this many trials is more than noise would give."""
    return trials >= ENOUGH and p_holm is not None and p_holm < ALPHA


def effects_text(effects: Effects, metric: Metric) -> str:
    """The finding for a terminal, 100 columns."""
    lines = [
        f"{effects.trials} trials, {effects.diverged} of them stopped. Outcome: {effects.outcome}",
        "",
        "Importance                   PED-ANOVA                  fANOVA  trials  p (Holm)",
    ]
    lines += [_importance_line(entry) for entry in effects.importance]
    lines += [
        f"  * stands out from the noise (Holm below {ALPHA:g}). PED-ANOVA: share in what tells the "
        "best trials from all. "
        "fANOVA: share of the variance that the parameter explains alone.",
        "",
    ]
    clear = sum(pair.clear for pair in effects.interactions)
    if clear:
        verdict = f"{clear} of {len(effects.interactions)} stand out"
    else:
        verdict = "none stands out from the noise"
    lines.append(f"Interactions (those asked about, and the clearest others): {verdict}")
    for pair in effects.interactions:
        lines += _interaction_lines(pair, metric)
    lines += [f"Note: {note}" for note in effects.notes]
    return "\n".join(_wrapped(line) for line in lines)


def _wrapped(line: str) -> str:
    if len(line) <= 100:
        return line
    return fill(line, 100, subsequent_indent="    ")


def _importance_line(entry: Importance) -> str:
    fanova = "   -" if entry.fanova is None else f"{entry.fanova:.2f}"
    p = "   -" if entry.p_holm is None else f"{entry.p_holm:.2g}"
    star = " *" if entry.clear else ""
    bar = "#" * round(20 * entry.ped_anova)
    return (
        f"  {entry.name:26} {bar:20} {entry.ped_anova:.2f}    {fanova}  {entry.trials:6}  {p}{star}"
    )


def _interaction_lines(pair: Interaction, metric: Metric) -> list[str]:
    star = " *" if pair.clear else ""
    lines = [
        f"  {pair.x} x {pair.y}: {100 * pair.strength:.0f} % of the variance, p {pair.p:.2g}, "
        f"Holm {pair.p_holm:.2g}{star}"
    ]
    cells = []
    for y, row in zip(pair.y_values, pair.value, strict=True):
        for x, value in zip(pair.x_values, row, strict=True):
            cells.append((value, x, y))
    cells.sort(key=lambda cell: metric.sign * cell[0])
    for word, (value, x, y) in (("best ", cells[0]), ("worst", cells[-1])):
        lines.append(
            f"    {word} near {pair.x} {value_text(x)}, {pair.y} {value_text(y)}: "
            f"{metric.name} {metric.text(value)}"
        )
    return lines
