"""What the best is worth: the top configurations and the starts retrained with fresh seeds and scored on `test`.

Nothing is selected here: the configurations are chosen by the search's validation PER, and what `test` says of them is told.
"""

from dataclasses import dataclass
from itertools import product
from typing import Any

from hpo.decoder.config import DecoderConfig
from hpo.decoder.metric import Score
from hpo.errors import CallerError, StudyError
from hpo.evidence.retrain import (
    LEVEL,
    Retrained,
    Train,
    config_of,
    mean,
    outcomes,
    points,
    points_interval,
    retrain,
    seeds_facts,
    start_config,
    wrapped,
)
from hpo.evidence.stats import compare, holm, seeds_to_separate
from hpo.search.child import fresh_seeds
from hpo.search.study import Study
from hpo.text import percent

PARTITION = "test"
ALPHA = 1 - LEVEL


@dataclass(frozen=True)
class Chosen:
    """A configuration to confirm, and what the search said of it."""

    name: str  # "trial 7", or the start's
    trial: int | None
    start: str | None
    top: bool
    search_per: float | None
    config: DecoderConfig


def choose(study: Study, top: int) -> list[Chosen]:
    """The `top` best of the search, best first, and the starts that are not among them. Raises StudyError, CallerError."""
    if top < 1:
        raise CallerError(f"--top {top}: valid is 1 or more")
    chosen: list[Chosen] = []
    complete = sorted((record for record in study.records() if record.per is not None), key=lambda record: (record.per, record.number))
    for record in complete:
        config = config_of(record)
        if config is not None and len(chosen) < top and all(_unseeded(config) != _unseeded(other.config) for other in chosen):
            chosen.append(Chosen(record.start or f"trial {record.number}", record.number, record.start, True, record.per, config))
    if not chosen:
        raise StudyError(f"study {study.name}: no trial is complete, so there is nothing to confirm. See hpo status --study {study.name}")
    tried = {record.start: record for record in study.records() if record.start}
    for start in study.spec.starts:
        config = start_config(study, start)
        if all(_unseeded(config) != _unseeded(other.config) for other in chosen):
            found = tried.get(start)
            chosen.append(Chosen(start, found.number if found else None, start, False, found.per if found else None, config))
    return chosen


def _unseeded(config: DecoderConfig) -> dict[str, Any]:
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
        "configs": [_config(each, result, validation) for each, result in zip(chosen, results, strict=True)],
        "comparisons": comparisons,
        "separated": _separated(chosen, comparisons),
        "notes": _notes(study, chosen, results, comparisons, seeds),
    }
    study.keep_result("confirm", finding)
    return finding


def _config(chosen: Chosen, result: Retrained, validation: dict[int, Score]) -> dict[str, Any]:
    """selection: what choosing the lowest of many noisy numbers flattered; partition_shift: that test is not validation."""
    again = mean(validation[trial_id].per for trial_id in result.found if trial_id in validation)
    return {
        "name": chosen.name,
        "trial": chosen.trial,
        "start": chosen.start,
        "top": chosen.top,
        "search_per": chosen.search_per,
        "seeds": seeds_facts(result.records, result.found, validation),
        "validation_per": again,
        "per": result.per,
        "interval": result.interval,
        "counts": result.counts,
        "optimism": _minus(result.per, chosen.search_per),
        "selection": _minus(again, chosen.search_per),
        "partition_shift": _minus(result.per, again),
    }


def _minus(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


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
    notes = []
    if study.why_over() is None:
        notes.append("The search is not over: another configuration may become its best.")
    if seeds == 1:
        notes.append(
            "One seed: the intervals are over sentences alone. They know nothing of how much seeds matter; take --seeds 2 or more."
        )
    for each, result in zip(chosen, results, strict=True):
        lost = [record for record in result.records if record.state != "complete"]
        if lost:
            reasons = "; ".join(dict.fromkeys(record.reason for record in lost))
            rest = "its PER is of the others, which flatters it" if result.found else "so it has no PER"
            notes.append(f"{each.name}: {len(lost)} of {seeds} seeds {_lost(result)} ({reasons}): {rest}.")
    by_name = {each.name: result for each, result in zip(chosen, results, strict=True)}
    tops = [each.name for each in chosen if each.top]
    for comparison in comparisons:
        a, b = comparison["a"], comparison["b"]
        if tops[0] in (a, b) and {a, b} <= set(tops) and not comparison["decided"]:
            notes.append(f"{a} and {b} are not separated: {points(comparison['difference'])} points "
                         f"{points_interval(comparison['interval'])}.{_needed(by_name[a], by_name[b], seeds)}")  # fmt: skip
    return notes


def _lost(result: Retrained) -> str:
    return " and ".join(word for word, count in (("diverged", result.diverged), ("failed", result.failed)) if count)


def _needed(a: Retrained, b: Retrained, seeds: int) -> str:
    if min(len(a.found), len(b.found)) < 2:
        return ""
    needed = seeds_to_separate(a.scores, b.scores, LEVEL)
    if needed is None:
        return " No number of seeds would do: the sentences are too few for so small a difference."
    return f" If it is as large as that, about {needed} seeds each would do." if needed > seeds else " A few more seeds may do."


def as_text(study: str, finding: dict[str, Any]) -> str:
    """The finding for a terminal, 100 columns."""
    configs, seeds = finding["configs"], len(finding["configs"][0]["seeds"])
    width = max(len(config["name"]) for config in configs)
    lines = [
        f"Study {study}: {len(configs)} configurations retrained with {seeds} fresh seed{'s' * (seeds != 1)} each, "
        f"scored on {finding['partition']} ({finding['sentences']} sentences)",
        f"  {'':{width}} {'search':>9} {'fresh seeds':>12} {'test PER':>9}  {'95 % interval':19} seeds",
    ]
    lines += [f"  {config['name']:{width}} {_percent(config['search_per']):>9} {_percent(config['validation_per']):>12} "
              f"{_percent(config['per']):>9}  {_interval(config['interval']):19} {config['counts']}" for config in configs]  # fmt: skip
    lines.append("  (search: its validation PER; fresh seeds: mean PER on the same sentences; the others are on test)")
    if finding["comparisons"]:
        lines.append(f"Differences on test in points; p: permutation over sentences, Holm over {len(finding['comparisons'])}")
        pairs = [f"{comparison['a']} - {comparison['b']}" for comparison in finding["comparisons"]]
        wide = max(map(len, pairs))
        lines += [f"  {pair:{wide}} {points(c['difference']):>8} {points_interval(c['interval']):18} p {c['p_holm']:.4f}"
                  f"{'' if c['decided'] else '  not decided'}" for pair, c in zip(pairs, finding["comparisons"], strict=True)]  # fmt: skip
    lines.append("How much higher the PER on test is than the search said, in points")
    lines += [f"  {config['name']:{width}} {points(config['optimism'])} = {points(config['selection'])} selection (fresh seeds, "
              f"validation) {points(config['partition_shift'])} other sentences (test)"
              for config in configs if config["top"] and config["optimism"] is not None]  # fmt: skip
    return "\n".join(lines + wrapped(finding["notes"]))


def _percent(per: float | None) -> str:
    return "-" if per is None else percent(per)


def _interval(interval: tuple[float, float] | None) -> str:
    return "-" if interval is None else f"{100 * interval[0]:.2f} .. {percent(interval[1])}"
