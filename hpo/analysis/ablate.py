"""Which difference explains how much: the path between two configurations, one change at a time, and questions as contrasts.

The order of the path is chosen greedily with some seeds, its steps are measured with others, all on validation: choosing the
lucky change and measuring it with the same seeds would flatter it. What a step explains depends on the steps before it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from hpo.analysis.child import fresh_seeds
from hpo.analysis.retrain import (
    LEVEL,
    Retrained,
    Train,
    config_of,
    difference_interval,
    items_scored,
    outcomes,
    retrain,
    start_config,
    wrapped,
)
from hpo.analysis.stats import Comparison, compare
from hpo.errors import CallerError, StudyError
from hpo.settings import Config
from hpo.space.sections import Contrast, Question
from hpo.space.spec import StudySpec
from hpo.study.pick import pick_trial
from hpo.study.study import Study
from hpo.text import plural, value_text
from hpo.trainer import Metric

PARTITION = "validation"
Change = dict[str, Any]  # fields that change together -> their new values
Interval = tuple[float, float]


class Difference(BaseModel, frozen=True):
    """How the metric differs between two configurations that were trained with the same seeds and scored on the same sentences."""

    # After minus before, with its 95 % interval. None if a side has no complete trial.
    difference: float | None
    difference_interval: Interval | None
    p: float | None
    # None for a path's first configuration, which has none before it.
    decided: bool | None
    in_words: str


class Step(BaseModel, frozen=True):
    """A configuration of a path, and its difference to the one before it."""

    # Names of fields.
    changed: tuple[str, ...]
    label: str
    # Of the metric, the mean over complete trials, with its 95 % interval. None if there is no complete trial.
    value: float | None
    interval: Interval | None
    # As in Difference.
    difference: float | None
    difference_interval: Interval | None
    p: float | None
    decided: bool | None
    in_words: str
    # How many seeds diverged.
    diverged: int
    # Numbers of the trials in the child study.
    trials: tuple[int, ...]


class Ablation(BaseModel):
    """A path from one configuration to another, one change at a time."""

    model_config = ConfigDict(frozen=True, populate_by_name=True)

    child: str
    start: str = Field(validation_alias="from", serialization_alias="from")
    end: str = Field(validation_alias="to", serialization_alias="to")
    partition: str
    # How many items the metric was measured on.
    sentences: int
    # How many train each step.
    seeds: int
    # All trials of the child study together.
    gpu_seconds: float
    # The first is the path's start.
    steps: tuple[Step, ...]
    # Of the end to the start.
    whole: Difference
    notes: tuple[str, ...]


class Evidence(BaseModel):
    """One contrast of a question, measured."""

    model_config = ConfigDict(frozen=True, populate_by_name=True)

    # A start, a trial's number or best.
    origin: str = Field(validation_alias="from", serialization_alias="from")
    # Fields -> their new values.
    change: Change
    label: str
    # Of the metric, the mean over complete trials. None if there is none.
    value_from: float | None
    value_changed: float | None
    # As in Difference.
    difference: float | None
    difference_interval: Interval | None
    p: float | None
    decided: bool
    in_words: str
    # How many seeds of each side diverged.
    diverged_from: int
    diverged_changed: int
    # How many train each side.
    seeds: int


class Answer(BaseModel, frozen=True):
    """What the evidence says of one question."""

    ask: str
    evidence: tuple[Evidence, ...]
    verdict: Literal["decided", "not decided"]
    # The evidence in words.
    answer: str


class Answers(BaseModel):
    """A study's questions, answered."""

    # An infinite value in a `change` stays one; what counts is the setting of the model that is dumped.
    model_config = ConfigDict(frozen=True, ser_json_inf_nan="constants")

    child: str
    partition: str
    # How many train each side.
    seeds: int
    answers: tuple[Answer, ...]


def named(study: Study, which: str) -> tuple[str, Config]:
    """(name, configuration) of a start, a trial's number or `best`. Raises StudyError."""
    if which in study.spec.starts:
        return which, start_config(study, which)
    if which != "best" and not which.isdecimal():
        raise StudyError(
            f"study {study.name}: {which!r} is no start. Valid: {', '.join(study.spec.starts)}, best, or a trial's number"
        )
    record = pick_trial(study, which)
    config = config_of(study.spec, record)
    if config is None:
        raise StudyError(
            f"study {study.name}: trial {record.number} has no whole configuration, so it cannot be retrained. Take another"
        )
    return f"trial {record.number}", config


def differences(spec: StudySpec, start: Config, end: Config) -> list[Change]:
    """What differs, in the space's order. A parameter that exists on one side only changes together with those that it hangs on."""
    a, b = start.flat(), end.flat()
    in_a, in_b = spec.existing(a), spec.existing(b)
    nowhere = set(spec.parameters) - set(in_a) - set(in_b)
    order = [*spec.parameters, *(name for name in a if name not in spec.parameters)]
    changed = [
        name for name in order if a[name] != b[name] and name != "seed" and name not in nowhere
    ]
    groups: list[list[str]] = []
    for name in changed:
        hangs_on = (
            set(spec.parameters[name].when)
            if name in spec.parameters and (name in in_a) != (name in in_b)
            else set()
        )
        joined = [group for group in groups if hangs_on & set(group)]
        groups = [group for group in groups if group not in joined] + [
            [*(other for group in joined for other in group), name]
        ]
    groups.sort(key=lambda group: order.index(group[0]))
    return [{name: b[name] for name in group} for group in groups]


def trainings(changes: int, seeds: int, select_seeds: int, rounds: int | None) -> int:
    """How many a path takes at most."""
    selecting = [
        changes - done for done in range(changes if rounds is None else min(rounds, changes))
    ]
    return select_seeds * sum(count for count in selecting if count > 1) + seeds * (changes + 1)


def ablate(
    study: Study,
    child: Study,
    ends: tuple[str, str],
    seeds: int,
    select_seeds: int,
    rounds: int | None,
    train: Train,
) -> Ablation:
    """Walk from one configuration to the other. rounds: of choosing the next change; the rest follows the last round's order.

    Returns the finding, which is kept with the study. Raises StudyError, CallerError.
    """
    check_seeds(seeds, select_seeds)
    (start, config), (end, goal) = (named(study, which) for which in ends)
    changes = differences(study.spec, config, goal)
    if not changes:
        raise CallerError(
            f"--from {ends[0]} --to {ends[1]}: they do not differ. Valid: two configurations that do"
        )
    ordered = _order(study, child, config, changes, select_seeds, rounds, train)
    nodes = [config]
    for change in ordered:
        nodes.append(nodes[-1].with_values(change))
    labels = [
        start,
        *(_label(before, change) for before, change in zip(nodes, ordered, strict=False)),
    ]
    results = outcomes(
        child,
        retrain(
            child,
            list(zip(nodes, labels, strict=True)),
            fresh_seeds(study, "measure", seeds),
            train,
        ),
        PARTITION,
    )
    steps = tuple(
        _step(results, index, ({}, *ordered)[index], labels[index], study.spec.metric)
        for index in range(len(nodes))
    )
    whole = Measured.of(results[0], results[-1], study.spec.metric)
    finding = Ablation(
        child=child.name,
        start=start,
        end=end,
        partition=PARTITION,
        sentences=items_scored(results),
        seeds=seeds,
        gpu_seconds=sum(record.gpu_seconds for record in child.records()),
        steps=steps,
        whole=whole.facts(),
        notes=_notes(seeds),
    )
    study.keep_result("ablation", finding.model_dump(mode="json", by_alias=True))
    return finding


def check_seeds(seeds: int, select_seeds: int = 1) -> None:
    for option, value in (("--seeds", seeds), ("--select-seeds", select_seeds)):
        if value < 1:
            raise CallerError(f"{option} {value}: valid is 1 or more")


def _order(
    study: Study,
    child: Study,
    config: Config,
    changes: list[Change],
    seeds: int,
    rounds: int | None,
    train: Train,
) -> list[Change]:
    """Greedily: the change after which the metric is best comes next. A seed that diverged is worse than any value."""
    sign = study.spec.metric.sign
    done: list[Change] = []
    left = changes
    for _ in range(len(changes) if rounds is None else rounds):
        if len(left) < 2:
            break
        candidates = [
            (config.with_values(change), f"after {len(done)}: {_label(config, change)}")
            for change in left
        ]
        results = outcomes(
            child, retrain(child, candidates, fresh_seeds(study, "select", seeds), train), PARTITION
        )
        ranks = [_rank(result, sign) for result in results]
        left = [left[index] for index in sorted(range(len(left)), key=lambda index: ranks[index])]
        config = config.with_values(left[0])
        done.append(left.pop(0))
    return done + left


def _rank(result: Retrained, sign: int) -> tuple[int, float]:
    lost = len(result.records) - len(result.found)
    return lost, inf if result.value is None else sign * result.value


def _label(before: Config, change: Change) -> str:
    flat = before.flat()
    return ", ".join(
        f"{name} {value_text(flat[name])} -> {value_text(value)}" for name, value in change.items()
    )


@dataclass(frozen=True)
class Measured:
    """Two configurations on the same seeds and sentences: after minus before, and whether that is decided."""

    before: Retrained
    after: Retrained
    metric: Metric
    apart: Comparison | None  # of the complete trials; None if a side has none

    @classmethod
    def of(cls, before: Retrained, after: Retrained, metric: Metric) -> "Measured":
        both = before.found and after.found
        return cls(
            before, after, metric, compare(after.scores, before.scores, LEVEL) if both else None
        )

    @property
    def by_divergence(self) -> float | None:
        """If every seed of one side diverged and none of the other: the chance of that, either way round, if both were alike.

        At most 2 / 4^S for S seeds a side, whatever the rate at which they diverge (it is 2 (r (1 - r))^S). None: it was not so.
        """
        seeds = len(self.before.records)
        lost = self.before.diverged, self.after.diverged
        return (
            2 / 4**seeds
            if lost in ((0, seeds), (seeds, 0)) and not self.before.failed + self.after.failed
            else None
        )

    @property
    def decided(self) -> bool:
        """By the interval if no seed diverged or failed and there are two or more; else by the counts of seeds that diverged."""
        if self.by_divergence is not None:
            return self.by_divergence <= 1 - LEVEL
        whole = all(len(side.found) == len(side.records) >= 2 for side in (self.before, self.after))
        return whole and self.apart is not None and self.apart.decided

    @property
    def in_words(self) -> str:
        verdict = "" if self.decided else "; not decided"
        lost = self.before.diverged + self.after.diverged + self.before.failed + self.after.failed
        if lost:
            counts = f"{self.after.diverged} of {len(self.after.records)} seeds diverged with it, {self.before.diverged} of " \
                     f"{len(self.before.records)} without"  # fmt: skip
            failed = self.before.failed + self.after.failed
            counts += f", {failed} failed" if failed else ""
            exact = (
                f" (by chance at most {100 * self.by_divergence:.2g} %)"
                if self.by_divergence is not None
                else ""
            )
            return counts + exact + verdict
        assert self.apart is not None
        metric = self.metric
        return (
            f"{metric.difference(self.apart.difference)} {metric.difference_unit} "
            f"{difference_interval(metric, self.apart.interval)}, p {self.apart.p:.4f}{verdict}"
        )

    def facts(self) -> Difference:
        apart = self.apart
        return Difference(
            difference=apart.difference if apart else None,
            difference_interval=apart.interval if apart else None,
            p=apart.p if apart else None,
            decided=self.decided,
            in_words=self.in_words,
        )


def _step(
    results: Sequence[Retrained], index: int, change: Change, label: str, metric: Metric
) -> Step:
    result = results[index]
    first = Difference(difference=None, difference_interval=None, p=None, decided=None, in_words="")
    apart = Measured.of(results[index - 1], result, metric).facts() if index else first
    return Step(
        changed=tuple(change),
        label=label,
        value=result.value,
        interval=result.interval,
        **dict(apart),
        diverged=result.diverged,
        trials=tuple(record.number for record in result.records),
    )


def _notes(seeds: int) -> tuple[str, ...]:
    one = "One seed: the intervals know nothing of how much seeds matter, so nothing is decided. Take --seeds 2 or more."
    order = "Each step is measured after those above it; in another order it may explain more or less. Intervals are 95 % each."
    return (order, one) if seeds == 1 else (order,)


def measure(
    study: Study, child: Study, questions: Sequence[Question], seeds: int, train: Train
) -> Answers:
    """Train both sides of every contrast and answer. Returns the finding, which is kept with the study. Raises StudyError."""
    check_seeds(seeds)
    if not questions:
        raise StudyError(
            f"study {study.name} has no questions. Put `questions:` into its space ({study.spec.space}) and launch it again"
        )
    sides = {
        (q, c): sides_of(study, contrast)
        for q, question in enumerate(questions)
        for c, contrast in enumerate(question.compare)
    }
    wanted = [(side, f"question {q + 1}") for (q, _), pair in sides.items() for side in pair]
    results = iter(
        outcomes(
            child, retrain(child, wanted, fresh_seeds(study, "measure", seeds), train), PARTITION
        )
    )
    measured = {
        key: (pair, Measured.of(next(results), next(results), study.spec.metric))
        for key, pair in sides.items()
    }
    answers = tuple(
        _answer(question, [measured[q, c] for c in range(len(question.compare))])
        for q, question in enumerate(questions)
    )
    finding = Answers(child=child.name, partition=PARTITION, seeds=seeds, answers=answers)
    study.keep_result("questions", finding.model_dump(mode="json", by_alias=True))
    return finding


def sides_of(study: Study, contrast: Contrast) -> tuple[Config, Config]:
    return contrast.sides(named(study, contrast.origin)[1], f"study {study.name}: a question's ")


def _answer(
    question: Question, measured: Sequence[tuple[tuple[Config, Config], Measured]]
) -> Answer:
    evidence = tuple(
        _evidence(contrast, *pair, found)
        for contrast, (pair, found) in zip(question.compare, measured, strict=True)
    )
    return Answer(
        ask=question.ask,
        evidence=evidence,
        verdict="decided" if all(each.decided for each in evidence) else "not decided",
        answer=". ".join(each.in_words for each in evidence) + ".",
    )


def _evidence(contrast: Contrast, before: Config, after: Config, found: Measured) -> Evidence:
    same = before == after
    label = _label(
        before,
        {name: value for name, value in after.flat().items() if before.flat()[name] != value},
    )
    apart = found.facts()
    return Evidence(
        origin=contrast.origin,
        change={name: after.flat()[name] for name in contrast.change},
        label=label,
        value_from=found.before.value,
        value_changed=found.after.value,
        difference=apart.difference,
        difference_interval=apart.difference_interval,
        p=apart.p,
        decided=found.decided and not same,
        in_words=f"from {contrast.origin}: "
        + ("it has these values already" if same else f"{label}: {apart.in_words}"),
        diverged_from=found.before.diverged,
        diverged_changed=found.after.diverged,
        seeds=len(found.after.records),
    )


def _items(finding: Ablation, metric: Metric) -> str:
    """How many there are; of single numbers nothing."""
    return f" ({finding.sentences} {metric.items})" if finding.sentences > 1 else ""


def path_text(study: str, finding: Ablation, metric: Metric) -> str:
    """The path for a terminal, 100 columns."""
    lines = [
        f"Study {study}: from {finding.start} to {finding.end}, one change at a time, "
        f"{plural(finding.seeds, 'seed')} a step, {finding.partition}{_items(finding, metric)}"
    ]
    for step in finding.steps:
        value = "diverged" if step.value is None else metric.text(step.value)
        lines += wrapped([f"{value:>9}  {step.label}"], "             ")
        if step.in_words:
            lines.append(f"{'':11}  {step.in_words}")
    lines.append(f"In all: {finding.whole.in_words}")
    return "\n".join(lines + wrapped(finding.notes))


def questions_text(study: str, finding: Answers, metric: Metric) -> str:
    lines = [
        f"Study {study}: its questions, {plural(finding.seeds, 'seed')} a side, {finding.partition}; "
        f"{metric.difference_unit} of {metric.name}"
    ]
    for answer in finding.answers:
        lines += [*wrapped([f"{answer.ask} {answer.verdict.upper()}"])]
        lines += wrapped([f"  {each.in_words}" for each in answer.evidence], "    ")
    return "\n".join(lines)
