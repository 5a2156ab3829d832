"""How good the best really is: top configurations and starts, retrained and scored on `test`.

Nothing is selected here. The configurations are chosen by the search's validation score; their
scores on `test` are only reported.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from pydantic import BaseModel

from hpo.analysis.child import fresh_seeds
from hpo.analysis.retrain import (
    LEVEL,
    Retrained,
    Train,
    config_of,
    difference_interval,
    items_scored,
    mean,
    retrain,
    start_config,
    wrapped,
)
from hpo.analysis.stats import compare, holm, seeds_to_separate
from hpo.errors import CallerError, StudyError
from hpo.settings import Config
from hpo.store.findings import VALIDATION
from hpo.study.pick import best_first
from hpo.study.study import Study
from hpo.study.trial import Record
from hpo.text import plural
from hpo.trainer import Metric, Score, Trainer

PARTITION = "test"
ALPHA = 1 - LEVEL


@dataclass(frozen=True)
class Chosen:
    """A configuration to confirm, and the search's result for it."""

    # "trial 7", or the start's name.
    name: str
    trial: int | None
    start: str | None
    # Whether it is one of the search's best.
    top: bool
    search_value: float | None
    config: Config


class ConfirmedConfig(BaseModel, frozen=True):
    """A configuration retrained.

    Values are of the metric, means over the seeds that were trained to the end, or None if there
    are none.
    """

    name: str
    trial: int | None
    start: str | None
    top: bool
    # On validation, from the one training of the search.
    search_value: float | None
    # A dict for each training, in the order of the seeds: trial, seed, state, reason, value,
    # validation_value.
    seeds: tuple[dict[str, Any], ...]
    # On validation, over the fresh seeds.
    validation_value: float | None
    # On the finding's partition, with its interval.
    value: float | None
    interval: tuple[float, float] | None
    # `5`, or `3 of 5, 2 diverged`.
    counts: str
    # How much worse `value` is than `search_value`; below 0 it is better. The sum of the next two.
    optimism: float | None
    # The bias of choosing the best of many noisy values.
    selection: float | None
    # The difference between test and validation.
    partition_shift: float | None


class ConfigComparison(BaseModel, frozen=True):
    """Two configurations by name. The difference is value of a minus value of b."""

    a: str
    b: str
    difference: float
    interval: tuple[float, float]
    p: float
    # Whether interval and p_holm agree that they differ, and no seed diverged or failed.
    decided: bool
    # p adjusted for the number of comparisons.
    p_holm: float


class Confirmation(BaseModel, frozen=True):
    """The finding `confirm`."""

    # The study of the trainings.
    child: str
    partition: str
    # How many items the partition has; 0 if no training was completed.
    sentences: int
    # Of the intervals, as a fraction.
    level: float
    # Of all trainings together.
    gpu_seconds: float
    configs: tuple[ConfirmedConfig, ...]
    comparisons: tuple[ConfigComparison, ...]
    # Whether the search's best differs from every other top configuration.
    separated: bool
    notes: tuple[str, ...]


def choose(study: Study, top: int) -> list[Chosen]:
    """The `top` best configurations of the search, best first, then the starts not among them.

    Raises CallerError if `top` is below 1, StudyError if no trial is complete.
    """
    if top < 1:
        raise CallerError(f"--top {top}: valid is 1 or more")
    chosen = _best_configs(study, top)
    if not chosen:
        raise StudyError(
            f"study {study.name}: no trial is complete, so there is nothing to confirm. "
            f"See hpo status --study {study.name}"
        )
    trial_of_start = {record.start: record for record in study.records() if record.start}
    for start in study.spec.starts:
        config = start_config(study, start)
        if _is_chosen(config, chosen):
            continue
        record = trial_of_start.get(start)
        chosen.append(
            Chosen(
                name=start,
                trial=record.number if record else None,
                start=start,
                top=False,
                search_value=record.value if record else None,
                config=config,
            )
        )
    return chosen


def _best_configs(study: Study, top: int) -> list[Chosen]:
    """Configurations that differ in the seed alone count once."""
    chosen: list[Chosen] = []
    for record in best_first(study.records(), study.spec.metric):
        if len(chosen) == top:
            break
        config = config_of(study.spec, record)
        if config is None or _is_chosen(config, chosen):
            continue
        chosen.append(
            Chosen(
                name=record.start or f"trial {record.number}",
                trial=record.number,
                start=record.start,
                top=True,
                search_value=record.value,
                config=config,
            )
        )
    return chosen


def _is_chosen(config: Config, chosen: Iterable[Chosen]) -> bool:
    """Whether it is among those chosen, apart from the seed."""
    return any(_without_seed(config) == _without_seed(other.config) for other in chosen)


def _without_seed(config: Config) -> dict[str, Any]:
    return {name: value for name, value in config.flat().items() if name != "seed"}


def confirm(study: Study, child: Study, top: int, seeds: int, train: Train) -> Confirmation:
    """Retrain the chosen configurations, score and compare them, and keep the finding.

    child: the study of the trainings. seeds: fresh ones for each configuration.
    Raises StudyError, CallerError.
    """
    if seeds < 1:
        raise CallerError(
            f"--seeds {seeds}: valid is 1 or more; "
            f"with 2 or more the intervals cover variation between seeds"
        )
    chosen = choose(study, top)
    trainer = study.spec.load_trainer()
    has_test = trainer.cuts_validation
    results = retrain(
        child,
        [(each.config, each.name) for each in chosen],
        fresh_seeds(study, "confirm", seeds),
        train,
        PARTITION if has_test else VALIDATION,
    )
    records: list[Record] = []
    for result in results:
        records += result.records
    validation = child.scores([record.id for record in records])
    sign = study.spec.metric.sign
    configs = [
        _confirmed(each, result, validation, sign)
        for each, result in zip(chosen, results, strict=True)
    ]
    comparisons = compare_configs(chosen, results)
    finding = Confirmation(
        child=child.name,
        partition=PARTITION if has_test else trainer.partition,
        sentences=items_scored(results),
        level=LEVEL,
        gpu_seconds=sum(record.gpu_seconds for record in records),
        configs=tuple(configs),
        comparisons=tuple(comparisons),
        separated=_separated(chosen, comparisons),
        notes=tuple(_notes(study, chosen, results, comparisons, seeds)),
    )
    study.keep_result("confirm", finding.model_dump(mode="json"))
    return finding


def _confirmed(
    chosen: Chosen, result: Retrained, validation: Mapping[int, Score], sign: int
) -> ConfirmedConfig:
    """validation: scores by trial id. sign: of the metric."""
    validation_value = mean(
        validation[trial_id].value for trial_id in result.scores_by_id if trial_id in validation
    )
    return ConfirmedConfig(
        name=chosen.name,
        trial=chosen.trial,
        start=chosen.start,
        top=chosen.top,
        search_value=chosen.search_value,
        seeds=tuple(_seed_entry(record, result, validation) for record in result.records),
        validation_value=validation_value,
        value=result.value,
        interval=result.interval,
        counts=result.counts,
        optimism=_loss_between(chosen.search_value, result.value, sign),
        selection=_loss_between(chosen.search_value, validation_value, sign),
        partition_shift=_loss_between(validation_value, result.value, sign),
    )


def _seed_entry(
    record: Record, result: Retrained, validation: Mapping[int, Score]
) -> dict[str, Any]:
    score = result.scores_by_id.get(record.id)
    validation_score = validation.get(record.id)
    return {
        "trial": record.number,
        "seed": record.config.get("seed"),
        "state": record.state,
        "reason": record.reason,
        "value": score.value if score else None,
        "validation_value": validation_score.value if validation_score else None,
    }


def _loss_between(first: float | None, second: float | None, sign: int) -> float | None:
    """How much worse the second value is; below 0 it is better. None if either is missing."""
    if first is None or second is None:
        return None
    return sign * (second - first)


@dataclass(frozen=True)
class _Side:
    """One side of a comparison."""

    chosen: Chosen
    result: Retrained


def compare_configs(
    chosen: Sequence[Chosen], results: Sequence[Retrained]
) -> list[ConfigComparison]:
    """Compare each top configuration with each start, and the first with the other top ones.

    A comparison is decided if interval and adjusted p agree and no seed diverged or failed: the
    seeds that were trained to the end would flatter their side. Configurations without a complete
    training are left out.
    """
    sides = [_Side(each, result) for each, result in zip(chosen, results, strict=True)]
    tops = [side for side in sides if side.chosen.top]
    starts = [side for side in sides if side.chosen.start is not None]
    pairs = [*product(tops, starts), *product(tops[:1], tops[1:])]
    measured = [(a, b) for a, b in _distinct(pairs) if a.result.scores and b.result.scores]
    tests = [compare(a.result.scores, b.result.scores, LEVEL) for a, b in measured]
    adjusted = holm([test.p for test in tests])
    comparisons = []
    for (a, b), test, p_holm in zip(measured, tests, adjusted, strict=True):
        all_complete = a.result.all_complete and b.result.all_complete
        comparisons.append(
            ConfigComparison(
                a=a.chosen.name,
                b=b.chosen.name,
                difference=test.difference,
                interval=test.interval,
                p=test.p,
                decided=test.decided and all_complete and p_holm <= ALPHA,
                p_holm=p_holm,
            )
        )
    return comparisons


def _distinct(pairs: Iterable[tuple[_Side, _Side]]) -> list[tuple[_Side, _Side]]:
    """Each pair once, whichever side comes first; no configuration with itself."""
    distinct: dict[frozenset[str], tuple[_Side, _Side]] = {}
    for a, b in pairs:
        if a is not b:
            distinct.setdefault(frozenset((a.chosen.name, b.chosen.name)), (a, b))
    return list(distinct.values())


def _separated(chosen: Sequence[Chosen], comparisons: Sequence[ConfigComparison]) -> bool:
    """Whether the search's best differs from every other top configuration."""
    first, *others = [each.name for each in chosen if each.top]
    decided = [{comparison.a, comparison.b} for comparison in comparisons if comparison.decided]
    return all({first, other} in decided for other in others)


def _notes(
    study: Study,
    chosen: Sequence[Chosen],
    results: Sequence[Retrained],
    comparisons: Sequence[ConfigComparison],
    seeds: int,
) -> list[str]:
    metric = study.spec.metric
    notes = cautions(study.spec.load_trainer())
    if study.why_over() is None:
        notes.append("The search is not over: another configuration may become its best.")
    if seeds == 1 and items_scored(results) > 1:
        notes.append(
            f"One seed: the intervals are over {metric.items} alone. They do not cover variation "
            f"between seeds; use --seeds 2 or more."
        )
    for each, result in zip(chosen, results, strict=True):
        notes += _loss_notes(each.name, result, metric)
    result_of = {each.name: result for each, result in zip(chosen, results, strict=True)}
    tops = [each.name for each in chosen if each.top]
    for comparison in comparisons:
        names = {comparison.a, comparison.b}
        if comparison.decided or tops[0] not in names or not names <= set(tops):
            continue
        remedy = _remedy(result_of[comparison.a], result_of[comparison.b], seeds, metric)
        notes.append(
            f"{comparison.a} and {comparison.b} are not separated: "
            f"{metric.difference(comparison.difference)} {metric.difference_unit} "
            f"{difference_interval(metric, comparison.interval)}.{remedy}"
        )
    return notes


def cautions(trainer: Trainer) -> list[str]:
    """Notes on retrainings of a trainer that scores a single partition or takes no seed."""
    notes = []
    if not trainer.cuts_validation:
        notes.append(
            f"The script scores its {trainer.partition} part alone, which the search has seen: "
            f"fresh seeds remove the bias of choosing the best of noisy values, "
            f"not that of fitting this part."
        )
    if not trainer.seeded:
        notes.append(
            "The script takes no seed (script: seed: FIELD), so these trainings are repeats: they "
            "differ by the script's own random numbers. If it draws the same ones each time, the "
            "repeats tell nothing about other seeds."
        )
    if trainer.take == "best":
        notes.append("Each value is the best of its curve (take: best), which flatters.")
    return notes


def _loss_notes(name: str, result: Retrained, metric: Metric) -> list[str]:
    """A note if some seeds of a configuration diverged or failed."""
    lost = [record for record in result.records if record.state != "complete"]
    if not lost:
        return []
    endings = []
    if result.diverged:
        endings.append("diverged")
    if result.failed:
        endings.append("failed")
    reasons = "; ".join(dict.fromkeys(record.reason for record in lost))
    if result.scores:
        consequence = f"its {metric.name} is of the other seeds, which flatters it"
    else:
        consequence = f"so it has no {metric.name}"
    return [
        f"{name}: {len(lost)} of {len(result.records)} seeds {' and '.join(endings)} ({reasons}): "
        f"{consequence}."
    ]


def _remedy(a: Retrained, b: Retrained, seeds: int, metric: Metric) -> str:
    """How many seeds would separate the two; empty if a side has too few to tell."""
    if min(len(a.scores), len(b.scores)) < 2:
        return ""
    needed = seeds_to_separate(a.scores, b.scores, LEVEL)
    if needed is None:
        return (
            f" No number of seeds is enough: there are too few {metric.items} "
            f"for so small a difference."
        )
    if needed > seeds:
        return f" If the true difference is this large, about {needed} seeds each would show it."
    return " A few more seeds may do."


def as_text(study: str, finding: Confirmation, metric: Metric) -> str:
    """The finding for a terminal, 100 columns."""
    seeds = len(finding.configs[0].seeds)
    where = f"scored on {finding.partition}{_items(finding, metric)}"
    lines = [
        f"Study {study}: {len(finding.configs)} configurations retrained with "
        f"{plural(seeds, 'fresh seed')} each, {where}"
    ]
    if finding.partition == PARTITION:
        lines += _table_with_test(finding, metric)
        lines += _comparison_lines(finding, metric)
        lines += _optimism_lines(finding, metric)
    else:
        lines += _table_without_test(finding, metric)
        lines += _comparison_lines(finding, metric)
    return "\n".join(lines + wrapped(finding.notes))


def _items(finding: Confirmation, metric: Metric) -> str:
    """How many items the partition has; empty for single numbers."""
    if finding.sentences <= 1:
        return ""
    return f" ({finding.sentences} {metric.items})"


def _name_width(finding: Confirmation) -> int:
    return max(len(config.name) for config in finding.configs)


def _table_with_test(finding: Confirmation, metric: Metric) -> list[str]:
    width = _name_width(finding)
    lines = [
        f"  {'':{width}} {'search':>9} {'fresh seeds':>12} {f'test {metric.name}':>9}  "
        f"{'95 % interval':19} seeds"
    ]
    for config in finding.configs:
        lines.append(
            f"  {config.name:{width}} {_value(config.search_value, metric):>9} "
            f"{_value(config.validation_value, metric):>12} {_value(config.value, metric):>9}  "
            f"{_interval(config.interval, metric):19} {config.counts}"
        )
    lines.append(
        f"  (search: its validation {metric.name}; fresh seeds: mean {metric.name} "
        f"on the same {metric.items}; the others are on test)"
    )
    return lines


def _table_without_test(finding: Confirmation, metric: Metric) -> list[str]:
    """For trainings that score a single partition."""
    width = _name_width(finding)
    lines = [f"  {'':{width}} {'search':>9} {'fresh seeds':>12}  {'95 % interval':19} seeds"]
    for config in finding.configs:
        lines.append(
            f"  {config.name:{width}} {_value(config.search_value, metric):>9} "
            f"{_value(config.value, metric):>12}  "
            f"{_interval(config.interval, metric):19} {config.counts}"
        )
    lines.append(
        f"  (search: {metric.name} of the search's one training; "
        f"fresh seeds: the mean of the others)"
    )
    return lines


def _optimism_lines(finding: Confirmation, metric: Metric) -> list[str]:
    worse = "higher" if metric.direction == "minimize" else "lower"
    width = _name_width(finding)
    lines = [
        f"How much {worse} the {metric.name} on test is than the search said, "
        f"in {metric.difference_unit}"
    ]
    for config in finding.configs:
        if not config.top or None in (config.optimism, config.selection, config.partition_shift):
            continue
        lines.append(
            f"  {config.name:{width}} {metric.difference(config.optimism)} = "
            f"{metric.difference(config.selection)} selection (fresh seeds, validation) "
            f"{metric.difference(config.partition_shift)} other {metric.items} (test)"
        )
    return lines


def _comparison_lines(finding: Confirmation, metric: Metric) -> list[str]:
    comparisons = finding.comparisons
    if not comparisons:
        return []
    if finding.sentences > 1:
        test = f"permutation over {metric.items}"
    else:
        test = "Welch's t test over seeds"
    lines = [
        f"Differences on {finding.partition} in {metric.difference_unit}; p: {test}, "
        f"Holm over {len(comparisons)}"
    ]
    pairs = [f"{comparison.a} - {comparison.b}" for comparison in comparisons]
    width = max(map(len, pairs))
    for pair, comparison in zip(pairs, comparisons, strict=True):
        difference = metric.difference(comparison.difference)
        interval = difference_interval(metric, comparison.interval)
        undecided = "" if comparison.decided else "  not decided"
        lines.append(
            f"  {pair:{width}} {difference:>8} {interval:18} p {comparison.p_holm:.4f}{undecided}"
        )
    return lines


def _value(value: float | None, metric: Metric) -> str:
    return "-" if value is None else metric.text(value)


def _interval(interval: tuple[float, float] | None, metric: Metric) -> str:
    return "-" if interval is None else f"{metric.bare(interval[0])} .. {metric.text(interval[1])}"
