"""What the best is worth: the top configurations and the starts retrained with fresh seeds and scored on `test`.

Nothing is selected here: the configurations are chosen by the search's validation score, and what `test` says of them is told.
"""

from collections.abc import Sequence
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
    outcomes,
    retrain,
    seeds_facts,
    start_config,
    wrapped,
)
from hpo.analysis.stats import Comparison, compare, holm, seeds_to_separate
from hpo.errors import CallerError, StudyError
from hpo.settings import Config
from hpo.store.findings import VALIDATION
from hpo.study.pick import best_first
from hpo.study.study import Study
from hpo.text import plural
from hpo.trainer import Metric, Score, Trainer

PARTITION = "test"
ALPHA = 1 - LEVEL


@dataclass(frozen=True)
class Chosen:
    """A configuration to confirm, and what the search said of it."""

    name: str  # "trial 7", or the start's
    trial: int | None
    start: str | None
    top: bool
    search_value: float | None
    config: Config


class ConfirmedConfig(BaseModel, frozen=True):
    """A configuration retrained. Values are of the metric, means over the seeds that came to their end; None where there is none."""

    name: str
    trial: int | None
    start: str | None
    top: bool
    # On validation, of the search's one training.
    search_value: float | None
    # seeds_facts of each training, in the order of the seeds.
    seeds: tuple[dict[str, Any], ...]
    # On validation, of the fresh seeds.
    validation_value: float | None
    # On the finding's partition, with its interval.
    value: float | None
    interval: tuple[float, float] | None
    # `5`, or `3 of 5, 2 diverged`.
    counts: str
    # How much worse `value` is than `search_value`; below 0 it is better. The sum of the next two.
    optimism: float | None
    # What choosing the best of many noisy numbers flattered.
    selection: float | None
    # What comes of test being not validation.
    partition_shift: float | None


class ConfigComparison(BaseModel, frozen=True):
    """Two configurations by name. The difference is value of a minus value of b."""

    a: str
    b: str
    difference: float
    interval: tuple[float, float]
    p: float
    # Interval and p_holm agree, and no seed diverged or failed.
    decided: bool
    # p adjusted for the number of comparisons.
    p_holm: float


class Confirmation(BaseModel, frozen=True):
    # The study of the trainings.
    child: str
    partition: str
    # How many items the partition has; 0 if no training came to its end.
    sentences: int
    # Of the intervals, as a fraction.
    level: float
    # Of all the trainings together, in seconds of a GPU.
    gpu_seconds: float
    configs: tuple[ConfirmedConfig, ...]
    comparisons: tuple[ConfigComparison, ...]
    # Whether the search's best differs from every other top configuration.
    separated: bool
    notes: tuple[str, ...]


def choose(study: Study, top: int) -> list[Chosen]:
    """The `top` best of the search, best first, and the starts that are not among them. Raises StudyError, CallerError."""
    if top < 1:
        raise CallerError(f"--top {top}: valid is 1 or more")
    chosen: list[Chosen] = []
    for record in best_first(study.records(), study.spec.metric):
        config = config_of(study.spec, record)
        if (
            config is not None
            and len(chosen) < top
            and all(_unseeded(config) != _unseeded(other.config) for other in chosen)
        ):
            chosen.append(
                Chosen(
                    record.start or f"trial {record.number}",
                    record.number,
                    record.start,
                    True,
                    record.value,
                    config,
                )
            )
    if not chosen:
        raise StudyError(
            f"study {study.name}: no trial is complete, so there is nothing to confirm. See hpo status --study {study.name}"
        )
    tried = {record.start: record for record in study.records() if record.start}
    for start in study.spec.starts:
        config = start_config(study, start)
        if all(_unseeded(config) != _unseeded(other.config) for other in chosen):
            found = tried.get(start)
            chosen.append(
                Chosen(
                    start,
                    found.number if found else None,
                    start,
                    False,
                    found.value if found else None,
                    config,
                )
            )
    return chosen


def _unseeded(config: Config) -> dict[str, Any]:
    return {name: value for name, value in config.flat().items() if name != "seed"}


def confirm(study: Study, child: Study, top: int, seeds: int, train: Train) -> Confirmation:
    """Retrain, score, compare. Returns the finding, which is kept with the study. Raises StudyError, CallerError."""
    if seeds < 1:
        raise CallerError(
            f"--seeds {seeds}: valid is 1 or more; with 2 or more the intervals know how much seeds matter"
        )
    chosen = choose(study, top)
    ids = retrain(
        child,
        [(each.config, each.name) for each in chosen],
        fresh_seeds(study, "confirm", seeds),
        train,
    )
    trainer = study.spec.load_trainer()
    has_test = trainer.cuts_validation
    results = outcomes(child, ids, PARTITION if has_test else VALIDATION)
    validation = child.scores([trial_id for row in ids for trial_id in row])
    comparisons = _comparisons(chosen, results)
    finding = Confirmation(
        child=child.name,
        partition=PARTITION if has_test else trainer.partition,
        sentences=items_scored(results),
        level=LEVEL,
        gpu_seconds=sum(record.gpu_seconds for result in results for record in result.records),
        configs=tuple(
            _config(each, result, validation, study.spec.metric.sign)
            for each, result in zip(chosen, results, strict=True)
        ),
        comparisons=tuple(comparisons),
        separated=_separated(chosen, comparisons),
        notes=tuple(_notes(study, chosen, results, comparisons, seeds)),
    )
    study.keep_result("confirm", finding.model_dump(mode="json"))
    return finding


def _config(
    chosen: Chosen, result: Retrained, validation: dict[int, Score], sign: int
) -> ConfirmedConfig:
    """sign: of the metric."""
    again = mean(validation[trial_id].value for trial_id in result.found if trial_id in validation)
    return ConfirmedConfig(
        name=chosen.name,
        trial=chosen.trial,
        start=chosen.start,
        top=chosen.top,
        search_value=chosen.search_value,
        seeds=tuple(seeds_facts(result.records, result.found, validation)),
        validation_value=again,
        value=result.value,
        interval=result.interval,
        counts=result.counts,
        optimism=_minus(result.value, chosen.search_value, sign),
        selection=_minus(again, chosen.search_value, sign),
        partition_shift=_minus(result.value, again, sign),
    )


def _minus(a: float | None, b: float | None, sign: int) -> float | None:
    return None if a is None or b is None else sign * (a - b)


def _comparisons(chosen: list[Chosen], results: list[Retrained]) -> list[ConfigComparison]:
    """Each top configuration against each start, and the first against the other top ones.

    decided: interval and p agree, and no seed diverged or failed, because the seeds that came through flatter their side.
    """
    everything = list(zip(chosen, results, strict=True))
    tops, starts = (
        [pair for pair in everything if wanted(pair[0])]
        for wanted in (lambda c: c.top, lambda c: c.start is not None)
    )
    pairs = [*product(tops, starts), *product(tops[:1], tops[1:])]
    seen: set[frozenset[str]] = set()
    found: list[
        tuple[str, str, Comparison, bool]
    ] = []  # the last: whether every seed came to its end
    for (a, result_a), (b, result_b) in pairs:
        if (
            a is not b
            and frozenset((a.name, b.name)) not in seen
            and result_a.found
            and result_b.found
        ):
            seen.add(frozenset((a.name, b.name)))
            whole = all(len(result.found) == len(result.records) for result in (result_a, result_b))
            found.append((a.name, b.name, compare(result_a.scores, result_b.scores, LEVEL), whole))
    adjusted = holm([apart.p for _, _, apart, _ in found])
    return [
        ConfigComparison(
            a=name,
            b=other,
            difference=apart.difference,
            interval=apart.interval,
            p=apart.p,
            decided=apart.decided and whole and p_holm <= ALPHA,
            p_holm=p_holm,
        )
        for (name, other, apart, whole), p_holm in zip(found, adjusted, strict=True)
    ]


def _separated(chosen: list[Chosen], comparisons: Sequence[ConfigComparison]) -> bool:
    """Whether the search's best differs from every other top configuration."""
    first, *others = [each.name for each in chosen if each.top]
    decided = {
        frozenset((comparison.a, comparison.b)) for comparison in comparisons if comparison.decided
    }
    return all(frozenset((first, other)) in decided for other in others)


def _notes(
    study: Study,
    chosen: list[Chosen],
    results: list[Retrained],
    comparisons: Sequence[ConfigComparison],
    seeds: int,
) -> list[str]:
    metric = study.spec.metric
    notes = cautions(study.spec.load_trainer(), seeds)
    if study.why_over() is None:
        notes.append("The search is not over: another configuration may become its best.")
    if seeds == 1 and items_scored(results) > 1:
        notes.append(
            f"One seed: the intervals are over {metric.items} alone. They know nothing of how much seeds matter; take --seeds 2 or more."
        )
    for each, result in zip(chosen, results, strict=True):
        lost = [record for record in result.records if record.state != "complete"]
        if lost:
            reasons = "; ".join(dict.fromkeys(record.reason for record in lost))
            rest = (
                f"its {metric.name} is of the others, which flatters it"
                if result.found
                else f"so it has no {metric.name}"
            )
            notes.append(
                f"{each.name}: {len(lost)} of {seeds} seeds {_lost(result)} ({reasons}): {rest}."
            )
    by_name = {each.name: result for each, result in zip(chosen, results, strict=True)}
    tops = [each.name for each in chosen if each.top]
    for comparison in comparisons:
        a, b = comparison.a, comparison.b
        if tops[0] in (a, b) and {a, b} <= set(tops) and not comparison.decided:
            notes.append(
                f"{a} and {b} are not separated: {metric.difference(comparison.difference)} {metric.difference_unit} "
                f"{difference_interval(metric, comparison.interval)}.{_needed(by_name[a], by_name[b], seeds, metric)}"
            )
    return notes


def cautions(trainer: Trainer, seeds: int) -> list[str]:
    """What a reader of retrainings must know of a trainer that scores one part alone, or takes no seed."""
    notes = []
    if not trainer.cuts_validation:
        notes.append(
            f"The script scores its {trainer.partition} part alone, which the search saw: fresh seeds take out what choosing "
            f"the best of noisy numbers flattered, not what fitting that part did."
        )
    if not trainer.seeded:
        notes.append(
            "The script takes no seed (script: seed: FIELD), so these trainings are repeats: they differ by what the script draws by "
            "itself. If it draws the same each time, they say nothing of other seeds."
        )
    if trainer.take == "best":
        notes.append("Each value is the best of its curve (take: best), which flatters.")
    return notes


def _lost(result: Retrained) -> str:
    return " and ".join(
        word for word, count in (("diverged", result.diverged), ("failed", result.failed)) if count
    )


def _needed(a: Retrained, b: Retrained, seeds: int, metric: Metric) -> str:
    if min(len(a.found), len(b.found)) < 2:
        return ""
    needed = seeds_to_separate(a.scores, b.scores, LEVEL)
    if needed is None:
        return f" No number of seeds would do: the {metric.items} are too few for so small a difference."
    return (
        f" If it is as large as that, about {needed} seeds each would do."
        if needed > seeds
        else " A few more seeds may do."
    )


def as_text(study: str, finding: Confirmation, metric: Metric) -> str:
    """The finding for a terminal, 100 columns."""
    configs, seeds = finding.configs, len(finding.configs[0].seeds)
    width = max(len(config.name) for config in configs)
    where = f"scored on {finding.partition}{_items(finding, metric)}"
    lines = [
        f"Study {study}: {len(configs)} configurations retrained with {plural(seeds, 'fresh seed')} each, {where}"
    ]
    if finding.partition != PARTITION:
        return "\n".join(lines + _without_test(finding, metric, width) + wrapped(finding.notes))
    lines += [
        f"  {'':{width}} {'search':>9} {'fresh seeds':>12} {f'test {metric.name}':>9}  {'95 % interval':19} seeds",
    ]
    for config in configs:
        lines.append(
            f"  {config.name:{width}} {_value(config.search_value, metric):>9} "
            f"{_value(config.validation_value, metric):>12} {_value(config.value, metric):>9}  "
            f"{_interval(config.interval, metric):19} {config.counts}"
        )
    lines.append(
        f"  (search: its validation {metric.name}; fresh seeds: mean {metric.name} on the same {metric.items}; the others are on test)"
    )
    if finding.comparisons:
        lines += _comparison_lines(finding, metric)
    worse = "higher" if metric.direction == "minimize" else "lower"
    lines.append(
        f"How much {worse} the {metric.name} on test is than the search said, in {metric.difference_unit}"
    )
    for config in configs:
        if (
            config.top
            and config.optimism is not None
            and config.selection is not None
            and config.partition_shift is not None
        ):
            lines.append(
                f"  {config.name:{width}} {metric.difference(config.optimism)} = "
                f"{metric.difference(config.selection)} selection (fresh seeds, validation) "
                f"{metric.difference(config.partition_shift)} other {metric.items} (test)"
            )
    return "\n".join(lines + wrapped(finding.notes))


def _items(finding: Confirmation, metric: Metric) -> str:
    """How many there are; of single numbers nothing."""
    return f" ({finding.sentences} {metric.items})" if finding.sentences > 1 else ""


def _without_test(finding: Confirmation, metric: Metric, width: int) -> list[str]:
    """Where the trainings score one part alone."""
    lines = [f"  {'':{width}} {'search':>9} {'fresh seeds':>12}  {'95 % interval':19} seeds"]
    for config in finding.configs:
        lines.append(
            f"  {config.name:{width}} {_value(config.search_value, metric):>9} {_value(config.value, metric):>12}  "
            f"{_interval(config.interval, metric):19} {config.counts}"
        )
    lines.append(
        f"  (search: {metric.name} of the search's one training; fresh seeds: the mean of the others)"
    )
    return lines + (_comparison_lines(finding, metric) if finding.comparisons else [])


def _comparison_lines(finding: Confirmation, metric: Metric) -> list[str]:
    comparisons = finding.comparisons
    test = (
        f"permutation over {metric.items}" if finding.sentences > 1 else "Welch's t test over seeds"
    )
    lines = [
        f"Differences on {finding.partition} in {metric.difference_unit}; p: {test}, Holm over {len(comparisons)}"
    ]
    pairs = [f"{comparison.a} - {comparison.b}" for comparison in comparisons]
    wide = max(map(len, pairs))
    for pair, comparison in zip(pairs, comparisons, strict=True):
        interval = difference_interval(metric, comparison.interval)
        undecided = "" if comparison.decided else "  not decided"
        lines.append(
            f"  {pair:{wide}} {metric.difference(comparison.difference):>8} {interval:18} p {comparison.p_holm:.4f}{undecided}"
        )
    return lines


def _value(value: float | None, metric: Metric) -> str:
    return "-" if value is None else metric.text(value)


def _interval(interval: tuple[float, float] | None, metric: Metric) -> str:
    return "-" if interval is None else f"{metric.bare(interval[0])} .. {metric.text(interval[1])}"
