"""Which difference between two configurations explains how much.

A path leads from one configuration to the other, one change at a time; questions are single
contrasts. All scores are on validation.

The order of a path is chosen greedily with some seeds, and its steps are measured with others:
choosing a lucky change and measuring it with the same seeds would flatter it. How much a step
explains depends on the steps before it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from hpo.analysis.child import fresh_seeds
from hpo.analysis.retrain import (
    LEVEL,
    Labelled,
    Retrained,
    Train,
    config_of,
    difference_interval,
    items_scored,
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
# Fields that change together -> their new values.
Change = dict[str, Any]
Interval = tuple[float, float]


class Difference(BaseModel, frozen=True):
    """The difference in the metric between two configurations trained with the same seeds.

    Both are scored on the same items. Numbers are None if a side has no complete trial.
    """

    # After minus before, with its 95 % interval.
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
    # Of the metric, the mean over complete trials, with its 95 % interval. None if there are none.
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
    """The finding `ablation`: a path from one configuration to another, one change at a time."""

    model_config = ConfigDict(frozen=True, populate_by_name=True)

    child: str
    start: str = Field(validation_alias="from", serialization_alias="from")
    end: str = Field(validation_alias="to", serialization_alias="to")
    partition: str
    # How many items the metric is measured on.
    sentences: int
    # How many each step is trained with.
    seeds: int
    # Of all trials of the child study.
    gpu_seconds: float
    # The first is the path's start.
    steps: tuple[Step, ...]
    # The end minus the start.
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
    # Of the metric, the mean over complete trials. None if there are none.
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
    # How many each side is trained with.
    seeds: int


class Answer(BaseModel, frozen=True):
    """One question, with the evidence and what it says."""

    ask: str
    evidence: tuple[Evidence, ...]
    verdict: Literal["decided", "not decided"]
    # The evidence in words.
    answer: str


class Answers(BaseModel):
    """The finding `questions`: a study's questions, answered."""

    # Keeps infinite values in a `change`. Only the setting of the outermost model counts.
    model_config = ConfigDict(frozen=True, ser_json_inf_nan="constants")

    child: str
    partition: str
    # How many each side is trained with.
    seeds: int
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class Effort:
    """How many trainings a path may take."""

    # Fresh seeds that measure each configuration of the path.
    seeds: int
    # Other seeds, with which the next change is chosen.
    select_seeds: int = 1
    # How often the next change is chosen; the rest follows the ranking of the last round.
    # None: until the order is complete.
    rounds: int | None = None

    def check(self) -> None:
        """Raises CallerError for a number of seeds below 1."""
        for option, value in (("--seeds", self.seeds), ("--select-seeds", self.select_seeds)):
            if value < 1:
                raise CallerError(f"{option} {value}: valid is 1 or more")

    def rounds_for(self, changes: int) -> int:
        """How many rounds order this many changes. The last change needs no round."""
        needed = max(0, changes - 1)
        return needed if self.rounds is None else min(self.rounds, needed)

    def trainings(self, changes: int) -> int:
        """How many trainings a path of this many changes takes at most."""
        selecting = sum(changes - done for done in range(self.rounds_for(changes)))
        return self.select_seeds * selecting + self.seeds * (changes + 1)


def named(study: Study, which: str) -> tuple[str, Config]:
    """(name, configuration) of a start, a trial's number or `best`. Raises StudyError."""
    if which in study.spec.starts:
        return which, start_config(study, which)
    if which != "best" and not which.isdecimal():
        raise StudyError(
            f"study {study.name}: {which!r} is no start. "
            f"Valid: {', '.join(study.spec.starts)}, best, or a trial's number"
        )
    record = pick_trial(study, which)
    config = config_of(study.spec, record)
    if config is None:
        raise StudyError(
            f"study {study.name}: trial {record.number} has no complete configuration, "
            f"so it cannot be retrained. Choose another one"
        )
    return f"trial {record.number}", config


def differences(spec: StudySpec, start: Config, end: Config) -> list[Change]:
    """What differs between two configurations, as changes in the order of the space.

    A parameter that exists on one side only changes together with the parameters it depends on.
    """
    before = start.flat()
    after = end.flat()
    exists_before = set(spec.existing(before))
    exists_after = set(spec.existing(after))
    exists_on_one_side = exists_before ^ exists_after
    exists_nowhere = set(spec.parameters) - exists_before - exists_after
    outside_the_space = [name for name in before if name not in spec.parameters]
    order = [*spec.parameters, *outside_the_space]
    groups: list[list[str]] = []
    for name in order:
        if before[name] == after[name] or name == "seed" or name in exists_nowhere:
            continue
        parents = set(spec.parameters[name].when) if name in exists_on_one_side else set()
        groups = _with_member(groups, name, parents)
    groups.sort(key=lambda group: order.index(group[0]))
    return [{name: after[name] for name in group} for group in groups]


def _with_member(groups: list[list[str]], name: str, parents: set[str]) -> list[list[str]]:
    """Merge the groups that hold a parent of the parameter `name` into one, and add it there."""
    others: list[list[str]] = []
    merged: list[str] = []
    for group in groups:
        if parents.isdisjoint(group):
            others.append(group)
        else:
            merged += group
    return [*others, [*merged, name]]


def ablate(
    study: Study, child: Study, ends: tuple[str, str], effort: Effort, train: Train
) -> Ablation:
    """Walk from one configuration to the other, and keep the finding.

    child: the study of the trainings. ends: as `named` takes them. Raises StudyError, CallerError.
    """
    effort.check()
    start, start_of_path = named(study, ends[0])
    end, end_of_path = named(study, ends[1])
    changes = differences(study.spec, start_of_path, end_of_path)
    if not changes:
        raise CallerError(
            f"--from {ends[0]} --to {ends[1]}: they do not differ. "
            f"Valid: two configurations that do"
        )

    def select(candidates: Sequence[Labelled]) -> list[Retrained]:
        seeds = fresh_seeds(study, "select", effort.select_seeds)
        return retrain(child, candidates, seeds, train, PARTITION)

    metric = study.spec.metric
    rounds = effort.rounds_for(len(changes))
    changes = _greedy_order(start_of_path, changes, rounds, select, metric.sign)
    path: list[Labelled] = [(start_of_path, start)]
    for change in changes:
        before, _ = path[-1]
        path.append((before.with_values(change), _label(before, change)))
    seeds = fresh_seeds(study, "measure", effort.seeds)
    results = retrain(child, path, seeds, train, PARTITION)
    steps = [_first_step(start, results[0])]
    for index, change in enumerate(changes, 1):
        _, label = path[index]
        steps.append(_step(change, label, Measured.of(results[index - 1], results[index], metric)))
    finding = Ablation(
        child=child.name,
        start=start,
        end=end,
        partition=PARTITION,
        sentences=items_scored(results),
        seeds=effort.seeds,
        gpu_seconds=sum(record.gpu_seconds for record in child.records()),
        steps=tuple(steps),
        whole=Measured.of(results[0], results[-1], metric).as_difference(),
        notes=_notes(effort.seeds),
    )
    study.keep_result("ablation", finding.model_dump(mode="json", by_alias=True))
    return finding


def _greedy_order(
    config: Config,
    changes: list[Change],
    rounds: int,
    select: Callable[[Sequence[Labelled]], list[Retrained]],
    sign: int,
) -> list[Change]:
    """Order the changes greedily: the one after which the metric is best comes next.

    select: trains the candidates of a round. sign: of the metric.
    """
    done: list[Change] = []
    left = changes
    for _ in range(rounds):
        candidates = [
            (config.with_values(change), f"after {len(done)}: {_label(config, change)}")
            for change in left
        ]
        ranks = [_rank(result, sign) for result in select(candidates)]
        best_first = sorted(range(len(left)), key=lambda index: ranks[index])
        best, *left = [left[index] for index in best_first]
        config = config.with_values(best)
        done.append(best)
    return done + left


def _rank(result: Retrained, sign: int) -> tuple[int, float]:
    """The lower the better. A seed that diverged or failed is worse than any value."""
    lost = len(result.records) - len(result.scores)
    value = inf if result.value is None else sign * result.value
    return lost, value


def _label(before: Config, change: Change) -> str:
    flat = before.flat()
    return ", ".join(
        f"{name} {value_text(flat[name])} -> {value_text(value)}" for name, value in change.items()
    )


@dataclass(frozen=True)
class Measured:
    """Two configurations on the same seeds and items: do they differ, and is that decided?"""

    before: Retrained
    after: Retrained
    metric: Metric
    # After minus before, over the complete trials; None if a side has none.
    comparison: Comparison | None

    @classmethod
    def of(cls, before: Retrained, after: Retrained, metric: Metric) -> "Measured":
        comparison = None
        if before.scores and after.scores:
            comparison = compare(after.scores, before.scores, LEVEL)
        return cls(before, after, metric, comparison)

    @property
    def chance_of_divergence(self) -> float | None:
        """The chance of the divergences if every seed of one side diverged and none of the other.

        It is for either way round, if both sides diverge at the same rate: at most 2 / 4^S for S
        seeds a side, whatever the rate r (it is 2 (r (1 - r))^S). None in all other cases.
        """
        seeds = len(self.before.records)
        diverged = (self.before.diverged, self.after.diverged)
        if self.before.failed or self.after.failed:
            return None
        if diverged not in ((0, seeds), (seeds, 0)):
            return None
        chance: float = 2 / 4**seeds
        return chance

    @property
    def decided(self) -> bool:
        """By the counts of diverged seeds if all of one side diverged and none of the other.

        Else by the interval, if no seed diverged or failed and there are two or more a side.
        """
        chance = self.chance_of_divergence
        if chance is not None:
            return chance <= 1 - LEVEL
        for side in (self.before, self.after):
            if not side.all_complete or len(side.records) < 2:
                return False
        return self.comparison is not None and self.comparison.decided

    @property
    def in_words(self) -> str:
        diverged = self.before.diverged + self.after.diverged
        failed = self.before.failed + self.after.failed
        if diverged or failed:
            text = (
                f"{self.after.diverged} of {len(self.after.records)} seeds diverged with it, "
                f"{self.before.diverged} of {len(self.before.records)} without"
            )
            if failed:
                text += f", {failed} failed"
            if self.chance_of_divergence is not None:
                text += f" (by chance at most {100 * self.chance_of_divergence:.2g} %)"
        else:
            assert self.comparison is not None
            metric = self.metric
            text = (
                f"{metric.difference(self.comparison.difference)} {metric.difference_unit} "
                f"{difference_interval(metric, self.comparison.interval)}, "
                f"p {self.comparison.p:.4f}"
            )
        return text if self.decided else f"{text}; not decided"

    def as_difference(self) -> Difference:
        comparison = self.comparison
        return Difference(
            difference=comparison.difference if comparison else None,
            difference_interval=comparison.interval if comparison else None,
            p=comparison.p if comparison else None,
            decided=self.decided,
            in_words=self.in_words,
        )


def _first_step(label: str, result: Retrained) -> Step:
    nothing_before = Difference(
        difference=None, difference_interval=None, p=None, decided=None, in_words=""
    )
    return _as_step((), label, result, nothing_before)


def _step(change: Change, label: str, measured: Measured) -> Step:
    return _as_step(tuple(change), label, measured.after, measured.as_difference())


def _as_step(
    changed: tuple[str, ...], label: str, result: Retrained, difference: Difference
) -> Step:
    return Step(
        changed=changed,
        label=label,
        value=result.value,
        interval=result.interval,
        **dict(difference),
        diverged=result.diverged,
        trials=tuple(record.number for record in result.records),
    )


def _notes(seeds: int) -> tuple[str, ...]:
    notes = [
        "Each step is measured after those above it; in another order it may explain more or less. "
        "Intervals are 95 % each."
    ]
    if seeds == 1:
        notes.append(
            "One seed: the intervals do not cover variation between seeds, so nothing is decided. "
            "Use --seeds 2 or more."
        )
    return tuple(notes)


def measure(
    study: Study, child: Study, questions: Sequence[Question], seeds: int, train: Train
) -> Answers:
    """Train both sides of every contrast, answer the questions and keep the finding.

    child: the study of the trainings. Raises StudyError, CallerError.
    """
    Effort(seeds).check()
    if not questions:
        raise StudyError(
            f"study {study.name} has no questions. "
            f"Put `questions:` into its space ({study.spec.space}) and launch it again"
        )
    configs: list[Labelled] = []
    for number, question in enumerate(questions, 1):
        for contrast in question.compare:
            before, after = sides_of(study, contrast)
            configs += [(before, f"question {number}"), (after, f"question {number}")]
    results = retrain(child, configs, fresh_seeds(study, "measure", seeds), train, PARTITION)
    sides = zip(configs, results, strict=True)
    answers = []
    for question in questions:
        evidence = []
        for contrast in question.compare:
            (before, _), result_before = next(sides)
            (after, _), result_after = next(sides)
            measured = Measured.of(result_before, result_after, study.spec.metric)
            evidence.append(_evidence(contrast, before, after, measured))
        answers.append(_answer(question, evidence))
    finding = Answers(child=child.name, partition=PARTITION, seeds=seeds, answers=tuple(answers))
    study.keep_result("questions", finding.model_dump(mode="json", by_alias=True))
    return finding


def sides_of(study: Study, contrast: Contrast) -> tuple[Config, Config]:
    """(before, after). Raises StudyError, SpecError."""
    _, origin = named(study, contrast.origin)
    return contrast.sides(origin, f"study {study.name}: a question's ")


def _answer(question: Question, evidence: Sequence[Evidence]) -> Answer:
    return Answer(
        ask=question.ask,
        evidence=tuple(evidence),
        verdict="decided" if all(each.decided for each in evidence) else "not decided",
        answer=". ".join(each.in_words for each in evidence) + ".",
    )


def _evidence(contrast: Contrast, before: Config, after: Config, measured: Measured) -> Evidence:
    flat_before = before.flat()
    flat_after = after.flat()
    changed = {name: value for name, value in flat_after.items() if flat_before[name] != value}
    label = _label(before, changed)
    same = before == after
    difference = measured.as_difference()
    finding = "it has these values already" if same else f"{label}: {difference.in_words}"
    return Evidence(
        origin=contrast.origin,
        change={name: flat_after[name] for name in contrast.change},
        label=label,
        value_from=measured.before.value,
        value_changed=measured.after.value,
        difference=difference.difference,
        difference_interval=difference.difference_interval,
        p=difference.p,
        decided=measured.decided and not same,
        in_words=f"from {contrast.origin}: {finding}",
        diverged_from=measured.before.diverged,
        diverged_changed=measured.after.diverged,
        seeds=len(measured.after.records),
    )


def _items(finding: Ablation, metric: Metric) -> str:
    """How many items the metric is measured on; empty for single numbers."""
    if finding.sentences <= 1:
        return ""
    return f" ({finding.sentences} {metric.items})"


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
    """The answers for a terminal, 100 columns."""
    lines = [
        f"Study {study}: its questions, {plural(finding.seeds, 'seed')} a side, "
        f"{finding.partition}; {metric.difference_unit} of {metric.name}"
    ]
    for answer in finding.answers:
        lines += wrapped([f"{answer.ask} {answer.verdict.upper()}"])
        lines += wrapped([f"  {each.in_words}" for each in answer.evidence], "    ")
    return "\n".join(lines)
