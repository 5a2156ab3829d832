"""Which parameters matter, and which pairs of them interact, over the trials of a study.

Importance: PED-ANOVA (Watanabe et al. 2023; Optuna's takes conditional parameters as arXiv 2601.20800), which asks what tells the
best trials from all, beside fANOVA (Hutter et al. 2014), which asks for shares of the variance. With few trials both give
something a large number always, so whether an effect stands out of the noise has a test of its own (surface.py).
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from textwrap import fill
from typing import Any

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
from hpo.analysis.surface import Axis, interaction, main_effect, surface
from hpo.errors import StudyError
from hpo.space.spec import StudySpec
from hpo.study.reader import StudyReader
from hpo.study.sampling import distribution
from hpo.study.trial import Record
from hpo.text import value_text
from hpo.trainer import Metric

OTHERS = 3  # pairs shown beside those
FEWEST = 5  # trials
ENOUGH = 20  # trials that have the parameter, or both; below it nothing is claimed
BEST = 5  # trials that PED-ANOVA should have in its target, at least (its documentation)
ALPHA = 0.01  # strict, because a search does not draw its trials independently


@dataclass(frozen=True)
class Ended:
    """A trial as it is explained: its parameters, and the metric that it ended with."""

    number: int
    state: str
    params: Mapping[str, Any]
    outcome: float


class Importance(BaseModel, frozen=True):
    """How much one parameter matters."""

    name: str
    # share in what tells the best trials from all; the shares add up to 1
    ped_anova: float
    # share of the variance that the parameter explains alone; None where it could not be computed
    fanova: float | None
    # how many have the parameter
    trials: int
    # of a test of its main effect, alone and adjusted for the number of parameters; None where there are too few trials
    p: float | None
    p_holm: float | None

    @property
    def clear(self) -> bool:
        """Whether it stands out of the noise."""
        return stands_out(self.trials, self.p_holm)


class PairTrial(BaseModel, frozen=True):
    """A trial on a heat map. value: the outcome, in the metric's unit (a fraction of 1 where it is percent)."""

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
    # the mean outcome, a row for each of y_values, in the metric's unit
    value: tuple[tuple[float, ...], ...]
    # those that have both parameters
    trials: tuple[PairTrial, ...]
    # share of the variance
    strength: float
    # of a test of the interaction, alone and adjusted for the number of pairs
    p: float
    p_holm: float

    @property
    def clear(self) -> bool:
        """Whether it stands out of the noise."""
        return stands_out(len(self.trials), self.p_holm)


class Effects(BaseModel, frozen=True):
    """The finding `effects`. importance: the largest first; interactions: the clearest first."""

    # that are complete or stopped by a rule, and those of them that were stopped
    trials: int
    diverged: int
    # what was explained, in words
    outcome: str
    importance: tuple[Importance, ...]
    interactions: tuple[Interaction, ...]
    notes: tuple[str, ...]


def build_effects(study: StudyReader) -> Effects:
    """The finding `effects`, kept with the study. Raises StudyError."""
    found = effects_of(study.name, study.spec, study.records())
    study.keep_result("effects", found.model_dump(mode="json"))
    return found


def effects_of(name: str, spec: StudySpec, all_records: Sequence[Record]) -> Effects:
    """What the trials say of the parameters and their pairs. Raises StudyError, which calls the study `name`."""
    metric = spec.metric
    records = ended_trials(all_records, metric)
    if len(records) < FEWEST:
        raise StudyError(f"study {name}: {len(records)} trials are complete or stopped by a rule; effects need {FEWEST} or more, "
                         f"{ENOUGH} to claim something. Run more: hpo budget --study {name} --trials +{ENOUGH}")  # fmt: skip
    if len({record.outcome for record in records}) == 1:
        raise StudyError(
            f"study {name}: all {len(records)} trials have the same outcome, so there is nothing to explain"
        )
    pairs = [set(pair) for pair in spec.load_trainer().pairs]
    interactions = _interactions(spec, records, pairs)
    return Effects(
        trials=len(records),
        diverged=sum(record.state == "stopped" for record in records),
        outcome=_outcome_text(metric),
        importance=_importance(spec, records),
        interactions=interactions,
        notes=_notes(spec, records, interactions, pairs),
    )


def ended_trials(records: Sequence[Record], metric: Metric) -> list[Ended]:
    """Those that are complete or stopped by a rule. A stopped one counts with the last value seen, or with the worst there is."""
    told = [
        record for record in records if record.state in ("complete", "stopped") and record.params
    ]
    values = [record.value for record in told if record.value is not None]
    worst = metric.worst(values)
    return [
        Ended(record.number, record.state, record.params, _outcome_of(record, metric, worst))
        for record in told
    ]


def _outcome_of(record: Record, metric: Metric, worst: float) -> float:
    if record.value is not None:
        return record.value
    if record.last_value is None or not math.isfinite(record.last_value):
        return worst
    return metric.best([worst, record.last_value]) if metric.bounded else record.last_value


def _outcome_text(metric: Metric) -> str:
    name = metric.name
    if metric.bounded:
        worst = metric.short(metric.worst(())).replace(".0", "")
        limit = "at most" if metric.direction == "minimize" else "at least"
        last = f"the last {name} seen before, {limit} {worst}, and {worst} if there was none."
    else:
        last = f"the last {name} seen before, and the worst of the complete ones if there was none."
    return f"the {name} on validation at the end of the training; of a trial that a rule stopped, {last}"


def _notes(
    spec: StudySpec,
    records: Sequence[Ended],
    interactions: Sequence[Interaction],
    pairs: Sequence[set[str]],
) -> tuple[str, ...]:
    notes = []
    if len(records) < ENOUGH:
        notes.append(
            f"{len(records)} trials, fewer than {ENOUGH}: importances are mostly noise, and nothing here is more than a hint."
        )
    shown = [{pair.x, pair.y} for pair in interactions]
    untested = [asked for asked in pairs if asked <= set(spec.parameters) and asked not in shown]
    notes += [
        f"{' x '.join(sorted(asked, reverse=True))}: too few trials, or too much alike, to tell."
        for asked in untested
    ]
    if any(parameter.when for parameter in spec.parameters.values()):
        notes.append("A parameter that exists under a condition is judged among the trials that have it (column trials), except by "
                     "PED-ANOVA, which weighs it by their share.")  # fmt: skip
    notes.append(
        f"The search tried more where {spec.metric.name} was {spec.metric.good}, so trials are not spread evenly, "
        f"and parameters may have moved together."
    )
    return tuple(notes)


# ---- one parameter


def _importance(spec: StudySpec, records: Sequence[Ended]) -> tuple[Importance, ...]:
    names = [name for name in spec.parameters if any(name in record.params for record in records)]
    having = {name: [record for record in records if name in record.params] for name in names}
    twin = _twin(spec, records)
    quantile = max(0.1, min(0.5, BEST / len(records)))
    ped_anova = _asked(twin, PedAnovaImportanceEvaluator(target_quantile=quantile), names)
    common = [name for name in names if len(having[name]) == len(records)]
    fanova: dict[str, float] = _asked(twin, _forest(), common) if common else {}
    for name in names:  # fANOVA takes parameters of all trials only: another forest for each of the others, on the trials that have it
        if (
            name not in common
            and len(having[name]) >= FEWEST
            and len({record.outcome for record in having[name]}) > 1
        ):
            fanova[name] = _asked(twin, _forest(), [*common, name])[name]
    tests = [_main_effect(spec, name, having[name]) for name in names]
    adjusted = iter(holm([test[1] for test in tests if test]))
    total = sum(ped_anova.values()) or 1.0
    found = [
        Importance(
            name=name,
            ped_anova=ped_anova[name] / total,
            fanova=fanova.get(name),
            trials=len(having[name]),
            p=test[1] if test else None,
            p_holm=next(adjusted) if test else None,
        )
        for name, test in zip(names, tests, strict=True)
    ]
    return tuple(
        sorted(found, key=lambda entry: entry.ped_anova + (entry.fanova or 0.0), reverse=True)
    )


def _forest() -> FanovaImportanceEvaluator:
    return FanovaImportanceEvaluator(n_trees=32, seed=0)


def _asked(
    twin: optuna.Study, evaluator: BaseImportanceEvaluator, names: list[str]
) -> dict[str, float]:
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # of few trials, which the notes say, and of normalize=False being new
        found = get_param_importances(twin, evaluator=evaluator, params=names, normalize=False)
    return {name: float(share) for name, share in found.items()}


def _twin(spec: StudySpec, records: Sequence[Ended]) -> optuna.Study:
    """The trials in a study in memory, all complete, with log parameters as their logarithms: Optuna's fANOVA weighs a range as
    it is given, so of eps from 1e-8 to 1e-1 it would see the last decade only."""
    twin = optuna.create_study(
        sampler=optuna.samplers.RandomSampler(0), direction=spec.metric.direction
    )
    distributions = {name: _linear(spec, name) for name in spec.parameters}
    for record in records:
        params = {
            name: math.log(value) if spec.parameters[name].log else value
            for name, value in record.params.items()
        }
        twin.add_trial(optuna.create_trial(params=params, distributions={name: distributions[name] for name in params},
                                           value=record.outcome))  # fmt: skip
    return twin


def _linear(spec: StudySpec, name: str) -> BaseDistribution:
    parameter = spec.parameters[name]
    if not parameter.log or parameter.low is None or parameter.high is None:
        return distribution(spec, name)
    return FloatDistribution(math.log(parameter.low), math.log(parameter.high))


def _main_effect(
    spec: StudySpec, name: str, records: Sequence[Ended]
) -> tuple[float, float] | None:
    values = [record.params[name] for record in records]
    return main_effect(
        Axis.of(spec.parameters[name], values),
        values,
        np.array([record.outcome for record in records]),
    )


# ---- two parameters


def _interactions(
    spec: StudySpec, records: Sequence[Ended], pairs: Sequence[set[str]]
) -> tuple[Interaction, ...]:
    """The pairs that are asked about in any case, and of the others those that stand out most; the clearest first.

    p_holm: among those asked about, and among all others.
    """
    tested: dict[tuple[str, str], tuple[float, float]] = {}
    for x, y in combinations(spec.parameters, 2):
        both = [record for record in records if x in record.params and y in record.params]
        if len(both) >= FEWEST and (test := interaction(*_on_axes(spec, x, y, both))):
            tested[x, y] = test
    asked = [pair for pair in tested if set(pair) in pairs]
    others = sorted(
        (pair for pair in tested if set(pair) not in pairs), key=lambda pair: tested[pair][1]
    )
    p_holm = {
        pair: p
        for family in (asked, others)
        for pair, p in zip(family, holm([tested[pair][1] for pair in family]), strict=True)
    }
    shown = sorted([*asked, *others[:OTHERS]], key=lambda pair: tested[pair][1])
    return tuple(_heat_map(spec, records, pair, tested[pair], p_holm[pair]) for pair in shown)


def _on_axes(
    spec: StudySpec, x: str, y: str, records: Sequence[Ended]
) -> tuple[Axis, Axis, list[Any], list[Any], Any]:
    x_values, y_values = ([record.params[name] for record in records] for name in (x, y))
    axes = Axis.of(spec.parameters[x], x_values), Axis.of(spec.parameters[y], y_values)
    return *axes, x_values, y_values, np.array([record.outcome for record in records])


def _heat_map(
    spec: StudySpec,
    records: Sequence[Ended],
    pair: tuple[str, str],
    test: tuple[float, float],
    p_holm: float,
) -> Interaction:
    """test: strength and p of the pair."""
    x, y = pair
    both = [record for record in records if x in record.params and y in record.params]
    on_axes = _on_axes(spec, x, y, both)
    return Interaction(
        x=x,
        y=y,
        x_values=tuple(on_axes[0].grid()),
        y_values=tuple(on_axes[1].grid()),
        x_log=spec.parameters[x].log,
        y_log=spec.parameters[y].log,
        x_choices=spec.parameters[x].choices is not None,
        y_choices=spec.parameters[y].choices is not None,
        value=tuple(tuple(row) for row in surface(*on_axes, bounded=spec.metric.bounded)),
        trials=tuple(
            PairTrial(
                number=record.number,
                x=record.params[x],
                y=record.params[y],
                value=record.outcome,
                state=record.state,
            )
            for record in both
        ),
        strength=test[0],
        p=test[1],
        p_holm=p_holm,
    )


# ---- in words


def stands_out(trials: int, p_holm: float | None) -> bool:
    """Whether an effect over so many trials is more than noise would give."""
    return trials >= ENOUGH and p_holm is not None and p_holm < ALPHA


def effects_text(found: Effects, metric: Metric) -> str:
    """For a terminal, 100 columns."""
    trials = found.trials
    clear = [pair for pair in found.interactions if pair.clear]
    lines = [
        f"{trials} trials, {found.diverged} of them stopped. Outcome: {found.outcome}",
        "",
        "Importance                   PED-ANOVA                  fANOVA  trials  p (Holm)",
        *(_bar(entry) for entry in found.importance),
        f"  * stands out of the noise (Holm below {ALPHA:g}). PED-ANOVA: share in what tells the best trials from all. "
        "fANOVA: share of the variance that the parameter explains alone.",
        "",
        "Interactions (those asked about, and the clearest others): "
        + (
            f"{len(clear)} of {len(found.interactions)} stand out"
            if clear
            else "none stands out of the noise"
        ),
        *(line for pair in found.interactions for line in _in_words(pair, metric)),
        *(f"Note: {note}" for note in found.notes),
    ]
    return "\n".join(
        fill(line, 100, subsequent_indent="    ", drop_whitespace=True) if len(line) > 100 else line
        for line in lines
    )


def _bar(entry: Importance) -> str:
    fanova = "   -" if entry.fanova is None else f"{entry.fanova:.2f}"
    p = "   -" if entry.p_holm is None else f"{entry.p_holm:.2g}"
    star = " *" if entry.clear else ""
    bar = "#" * round(20 * entry.ped_anova)
    return (
        f"  {entry.name:26} {bar:20} {entry.ped_anova:.2f}    {fanova}  {entry.trials:6}  {p}{star}"
    )


def _in_words(pair: Interaction, metric: Metric) -> list[str]:
    cells = []
    for y, row in zip(pair.y_values, pair.value, strict=True):
        cells += [(value, x, y) for x, value in zip(pair.x_values, row, strict=True)]
    star = " *" if pair.clear else ""
    by_value = sorted(cells, key=lambda cell: metric.sign * cell[0])
    ends = (("best ", by_value[0]), ("worst", by_value[-1]))
    return [
        f"  {pair.x} x {pair.y}: {100 * pair.strength:.0f} % of the variance, p {pair.p:.2g}, Holm {pair.p_holm:.2g}{star}",
        *(
            f"    {word} near {pair.x} {value_text(x)}, {pair.y} {value_text(y)}: {metric.name} {metric.text(value)}"
            for word, (value, x, y) in ends
        ),
    ]
