"""What the best is worth: the top configurations and the starts retrained with fresh seeds and scored on `test`.

Nothing is selected here: the configurations are chosen by the search's validation score, and what `test` says of them is told.
"""

from dataclasses import dataclass
from itertools import product
from typing import Any

from hpo.analysis.child import fresh_seeds
from hpo.analysis.retrain import (
    LEVEL,
    Retrained,
    Train,
    config_of,
    difference_interval,
    mean,
    outcomes,
    retrain,
    seeds_facts,
    start_config,
    wrapped,
)
from hpo.analysis.stats import compare, holm, seeds_to_separate
from hpo.errors import CallerError, StudyError
from hpo.settings import Config
from hpo.study.pick import best_first
from hpo.study.study import Study
from hpo.text import plural
from hpo.trainer import Metric, Score

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


def choose(study: Study, top: int) -> list[Chosen]:
    """The `top` best of the search, best first, and the starts that are not among them. Raises StudyError, CallerError."""
    if top < 1:
        raise CallerError(f"--top {top}: valid is 1 or more")
    chosen: list[Chosen] = []
    for record in best_first(study.records(), study.spec.metric):
        config = config_of(study.spec, record)
        if config is not None and len(chosen) < top and all(_unseeded(config) != _unseeded(other.config) for other in chosen):
            chosen.append(Chosen(record.start or f"trial {record.number}", record.number, record.start, True, record.value, config))
    if not chosen:
        raise StudyError(f"study {study.name}: no trial is complete, so there is nothing to confirm. See hpo status --study {study.name}")
    tried = {record.start: record for record in study.records() if record.start}
    for start in study.spec.starts:
        config = start_config(study, start)
        if all(_unseeded(config) != _unseeded(other.config) for other in chosen):
            found = tried.get(start)
            chosen.append(Chosen(start, found.number if found else None, start, False, found.value if found else None, config))
    return chosen


def _unseeded(config: Config) -> dict[str, Any]:
    return {name: value for name, value in config.flat().items() if name != "seed"}


def confirm(study: Study, child: Study, top: int, seeds: int, train: Train) -> dict[str, Any]:
    """Retrain, score, compare. Returns the finding, which is kept with the study. Raises StudyError, CallerError."""
    if seeds < 1:
        raise CallerError(f"--seeds {seeds}: valid is 1 or more; with 2 or more the intervals know how much seeds matter")
    chosen = choose(study, top)
    ids = retrain(child, [(each.config, each.name) for each in chosen], fresh_seeds(study, "confirm", seeds), train)
    results = outcomes(child, ids, PARTITION)
    validation = child.scores([trial_id for row in ids for trial_id in row])
    comparisons = _comparisons(chosen, results)
    finding = {
        "child": child.name,
        "partition": PARTITION,
        "sentences": next((len(result.scores[0].lengths) for result in results if result.found), 0),
        "level": LEVEL,
        "gpu_seconds": sum(record.gpu_seconds for result in results for record in result.records),
        "configs": [_config(each, result, validation, study.spec.metric.sign) for each, result in zip(chosen, results, strict=True)],
        "comparisons": comparisons,
        "separated": _separated(chosen, comparisons),
        "notes": _notes(study, chosen, results, comparisons, seeds),
    }
    study.keep_result("confirm", finding)
    return finding


def _config(chosen: Chosen, result: Retrained, validation: dict[int, Score], sign: int) -> dict[str, Any]:
    """optimism: how much worse it is than the search said; selection: what choosing the best of many noisy numbers flattered;
    partition_shift: that test is not validation. sign: of the metric.
    """
    again = mean(validation[trial_id].value for trial_id in result.found if trial_id in validation)
    return {
        "name": chosen.name,
        "trial": chosen.trial,
        "start": chosen.start,
        "top": chosen.top,
        "search_value": chosen.search_value,
        "seeds": seeds_facts(result.records, result.found, validation),
        "validation_value": again,
        "value": result.value,
        "interval": result.interval,
        "counts": result.counts,
        "optimism": _minus(result.value, chosen.search_value, sign),
        "selection": _minus(again, chosen.search_value, sign),
        "partition_shift": _minus(result.value, again, sign),
    }


def _minus(a: float | None, b: float | None, sign: int) -> float | None:
    return None if a is None or b is None else sign * (a - b)


def _comparisons(chosen: list[Chosen], results: list[Retrained]) -> list[dict[str, Any]]:
    """Each top configuration against each start, and the first against the other top ones.

    decided: interval and p agree, and no seed diverged or failed, because the seeds that came through flatter their side.
    """
    everything = list(zip(chosen, results, strict=True))
    tops, starts = ([pair for pair in everything if wanted(pair[0])] for wanted in (lambda c: c.top, lambda c: c.start is not None))
    pairs = [*product(tops, starts), *product(tops[:1], tops[1:])]
    seen: set[frozenset[str]] = set()
    found: list[dict[str, Any]] = []
    for (a, result_a), (b, result_b) in pairs:
        if a is not b and frozenset((a.name, b.name)) not in seen and result_a.found and result_b.found:
            seen.add(frozenset((a.name, b.name)))
            apart = compare(result_a.scores, result_b.scores, LEVEL)
            whole = all(len(result.found) == len(result.records) for result in (result_a, result_b))
            found.append({"a": a.name, "b": b.name, "difference": apart.difference, "interval": apart.interval, "p": apart.p,
                          "decided": apart.decided and whole})  # fmt: skip
    adjusted = holm([float(comparison["p"]) for comparison in found])
    return [{**comparison, "p_holm": p, "decided": comparison["decided"] and p <= ALPHA}
            for comparison, p in zip(found, adjusted, strict=True)]  # fmt: skip


def _separated(chosen: list[Chosen], comparisons: list[dict[str, Any]]) -> bool:
    """Whether the search's best differs from every other top configuration."""
    first, *others = [each.name for each in chosen if each.top]
    decided = {frozenset((comparison["a"], comparison["b"])) for comparison in comparisons if comparison["decided"]}
    return all(frozenset((first, other)) in decided for other in others)


def _notes(study: Study, chosen: list[Chosen], results: list[Retrained], comparisons: list[dict[str, Any]], seeds: int) -> list[str]:
    metric = study.spec.metric
    notes = []
    if study.why_over() is None:
        notes.append("The search is not over: another configuration may become its best.")
    if seeds == 1:
        notes.append(
            f"One seed: the intervals are over {metric.items} alone. They know nothing of how much seeds matter; take --seeds 2 or more."
        )
    for each, result in zip(chosen, results, strict=True):
        lost = [record for record in result.records if record.state != "complete"]
        if lost:
            reasons = "; ".join(dict.fromkeys(record.reason for record in lost))
            rest = f"its {metric.name} is of the others, which flatters it" if result.found else f"so it has no {metric.name}"
            notes.append(f"{each.name}: {len(lost)} of {seeds} seeds {_lost(result)} ({reasons}): {rest}.")
    by_name = {each.name: result for each, result in zip(chosen, results, strict=True)}
    tops = [each.name for each in chosen if each.top]
    for comparison in comparisons:
        a, b = comparison["a"], comparison["b"]
        if tops[0] in (a, b) and {a, b} <= set(tops) and not comparison["decided"]:
            notes.append(
                f"{a} and {b} are not separated: {metric.difference(comparison['difference'])} {metric.difference_unit} "
                f"{difference_interval(metric, comparison['interval'])}.{_needed(by_name[a], by_name[b], seeds, metric)}"
            )
    return notes


def _lost(result: Retrained) -> str:
    return " and ".join(word for word, count in (("diverged", result.diverged), ("failed", result.failed)) if count)


def _needed(a: Retrained, b: Retrained, seeds: int, metric: Metric) -> str:
    if min(len(a.found), len(b.found)) < 2:
        return ""
    needed = seeds_to_separate(a.scores, b.scores, LEVEL)
    if needed is None:
        return f" No number of seeds would do: the {metric.items} are too few for so small a difference."
    return f" If it is as large as that, about {needed} seeds each would do." if needed > seeds else " A few more seeds may do."


def as_text(study: str, finding: dict[str, Any], metric: Metric) -> str:
    """The finding for a terminal, 100 columns."""
    configs, seeds = finding["configs"], len(finding["configs"][0]["seeds"])
    width = max(len(config["name"]) for config in configs)
    lines = [
        f"Study {study}: {len(configs)} configurations retrained with {plural(seeds, 'fresh seed')} each, "
        f"scored on {finding['partition']} ({finding['sentences']} {metric.items})",
        f"  {'':{width}} {'search':>9} {'fresh seeds':>12} {f'test {metric.name}':>9}  {'95 % interval':19} seeds",
    ]
    for config in configs:
        lines.append(
            f"  {config['name']:{width}} {_value(config['search_value'], metric):>9} "
            f"{_value(config['validation_value'], metric):>12} {_value(config['value'], metric):>9}  "
            f"{_interval(config['interval'], metric):19} {config['counts']}"
        )
    lines.append(
        f"  (search: its validation {metric.name}; fresh seeds: mean {metric.name} on the same {metric.items}; the others are on test)"
    )
    if finding["comparisons"]:
        lines += _comparison_lines(finding["comparisons"], metric)
    worse = "higher" if metric.direction == "minimize" else "lower"
    lines.append(f"How much {worse} the {metric.name} on test is than the search said, in {metric.difference_unit}")
    for config in configs:
        if config["top"] and config["optimism"] is not None:
            lines.append(
                f"  {config['name']:{width}} {metric.difference(config['optimism'])} = "
                f"{metric.difference(config['selection'])} selection (fresh seeds, validation) "
                f"{metric.difference(config['partition_shift'])} other {metric.items} (test)"
            )
    return "\n".join(lines + wrapped(finding["notes"]))


def _comparison_lines(comparisons: list[dict[str, Any]], metric: Metric) -> list[str]:
    lines = [f"Differences on test in {metric.difference_unit}; p: permutation over {metric.items}, Holm over {len(comparisons)}"]
    pairs = [f"{comparison['a']} - {comparison['b']}" for comparison in comparisons]
    wide = max(map(len, pairs))
    for pair, comparison in zip(pairs, comparisons, strict=True):
        interval = difference_interval(metric, comparison["interval"])
        undecided = "" if comparison["decided"] else "  not decided"
        lines.append(
            f"  {pair:{wide}} {metric.difference(comparison['difference']):>8} {interval:18} p {comparison['p_holm']:.4f}{undecided}"
        )
    return lines


def _value(value: float | None, metric: Metric) -> str:
    return "-" if value is None else metric.text(value)


def _interval(interval: tuple[float, float] | None, metric: Metric) -> str:
    return "-" if interval is None else f"{metric.bare(interval[0])} .. {metric.text(interval[1])}"
