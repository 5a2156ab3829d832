"""The best combination of a study's finished decoders: selected on validation, then scored on `test` beside the best single one.

How models are combined their trainer says: the built-in decoders are averaged frame by frame, so their frames must match.
`test` selects nothing here.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

from pydantic import BaseModel, ConfigDict

from hpo.analysis.stats import Comparison, compare, score_interval
from hpo.analysis.weights import weights_of
from hpo.errors import StudyError
from hpo.study.pick import best_first
from hpo.study.study import Study
from hpo.study.trial import Record
from hpo.trainer import Ensembles, Metric, Score
from hpo.worker.dataset import load_dataset, load_study_data
from hpo.worker.device import choose_device

CANDIDATES = 40  # so many of the best trials: their outputs are in memory together


class Scored(BaseModel, frozen=True):
    """The metric on both partitions, in its unit (a fraction of 1 where it is percent), with 95 % intervals; None where one
    sentence gives none.
    """

    validation_value: float
    validation_interval: tuple[float, float] | None
    test_value: float
    test_interval: tuple[float, float] | None


class Single(Scored, frozen=True):
    """The best single decoder on validation."""

    trial: int


class Member(BaseModel, frozen=True):
    """weight: how often it was taken."""

    trial: int
    weight: int


class Combined(Scored, frozen=True):
    """The combination that was best on validation. mean: how its members are averaged."""

    mean: str
    members: tuple[Member, ...]

    @property
    def size(self) -> int:
        """Members, counted as often as they were taken."""
        return sum(member.weight for member in self.members)


class Size(BaseModel, frozen=True):
    """A combination that was looked at: the one of a size smaller, and the trial that was added."""

    size: int
    added: int
    mean: str
    validation_value: float
    test_value: float


class Cost(BaseModel, frozen=True):
    """Of the sentences of test. ratio: of the seconds."""

    seconds_single: float
    seconds_ensemble: float
    ratio: float
    sentences: int
    parameters: int


class Ensemble(BaseModel):
    """The finding `ensemble`. What all members agree in are extra fields, named in `matching`: `stride=4`."""

    model_config = ConfigDict(frozen=True, extra="allow")

    partition_selected: str
    partition: str
    candidates: int
    matching: tuple[str, ...]
    single: Single
    ensemble: Combined
    # the combination minus the single decoder, on test
    comparison: Comparison
    curve: tuple[Size, ...]
    cost: Cost
    notes: tuple[str, ...]


def build_ensemble(study: Study, trials: Sequence[int] | None = None, max_size: int = 10, device: str | None = None,
                   data_path: Path | None = None) -> Ensemble:  # fmt: skip
    """The finding `ensemble`, kept with the study.

    trials: numbers of complete trials to choose from; None: the best ones whose weights are here. data_path: where the
    study's data are on this machine, if not where they were. Raises StudyError, DataError.
    """
    offer: Ensembles = study.spec.offered("ensemble", "ensembles")
    pool, notes = (
        _asked_for(study, trials, offer.matching) if trials else _the_best(study, offer.matching)
    )
    chosen = str(choose_device(device))
    on_validation, _ = offer.outputs(load_study_data(study, data_path, chosen), pool)
    paths = {mean: offer.select(on_validation, mean, max_size) for mean in offer.means}
    members = {
        number: pool[number]
        for number in sorted({number for path in paths.values() for number in path})
    }
    on_test, costs = offer.outputs(
        load_dataset(study.spec, data_path or study.data_path, chosen, "test"), members
    )
    facts = {
        "partition_selected": "validation",
        "partition": "test",
        "candidates": len(pool),
        **_matching(study, next(iter(pool)), offer.matching),
        "notes": tuple(notes),
    }
    found = _finding(facts, offer, study.spec.metric, paths, on_validation, on_test, costs)
    study.keep_result("ensemble", found.model_dump(mode="json"))
    return found


def _the_best(study: Study, matching: Sequence[str]) -> tuple[dict[int, Path], list[str]]:
    """The weights of the best complete trials that are here and match the best of them, and what was left out."""
    complete = best_first(study.records(), study.spec.metric)
    pool: dict[int, Path] = {}
    notes: list[str] = []
    frames: tuple[Any, ...] = ()
    for record in complete:
        if len(pool) == CANDIDATES:
            notes.append(f"candidates are the best {CANDIDATES} of {len(complete)} complete trials")
            break
        try:
            path = weights_of(study, str(record.number), "last")
        except StudyError as error:
            notes.append(str(error))
            continue
        frames = frames or _frames(record, matching)
        if _frames(record, matching) == frames:
            pool[record.number] = path
        else:
            notes.append(
                f"trial {record.number} is left out: {_differs(record, frames, matching)}, so its frames do not match"
            )
    if len(pool) < 2:
        why = f" ({notes[0]})" if notes else ""
        raise StudyError(f"study {study.name}: an ensemble needs 2 complete trials whose weights are here and whose frames match; there "
                         f"{'is' if len(pool) == 1 else 'are'} {len(pool)} of {len(complete)} complete{why}")  # fmt: skip
    return pool, notes


def _asked_for(
    study: Study, trials: Sequence[int], matching: Sequence[str]
) -> tuple[dict[int, Path], list[str]]:
    pool = {number: weights_of(study, str(number), "last") for number in trials}
    if len(pool) < 2:
        raise StudyError(f"--trials {trials[0]}: one trial is no ensemble. Give 2 or more")
    records = {record.number: record for record in study.records()}
    first = records[trials[0]]
    for number in pool:
        if _frames(records[number], matching) != _frames(first, matching):
            apart = _differs(records[number], _frames(first, matching), matching)
            raise StudyError(
                f"--trials: trial {number} has {apart} as trial {first.number}, so their frames do not match. "
                f"Give trials that agree in {', '.join(matching)}"
            )
    return pool, []


def _frames(record: Record, matching: Sequence[str]) -> tuple[Any, ...]:
    return tuple(record.config[name] for name in matching)


def _differs(record: Record, frames: tuple[Any, ...], matching: Sequence[str]) -> str:
    """`model.stride 2, not 4`"""
    values = _frames(record, matching)
    apart = [pair for pair in zip(matching, values, frames, strict=True) if pair[1] != pair[2]]
    return ", ".join(f"{name} {value}, not {wanted}" for name, value, wanted in apart)


def _matching(study: Study, number: int, matching: Sequence[str]) -> dict[str, Any]:
    """In what all members agree, by the last part of each field's name."""
    record = next(record for record in study.records() if record.number == number)
    names = [name.rpartition(".")[2] for name in matching]
    shared = dict(zip(names, _frames(record, matching), strict=True))
    return {"matching": names, **shared}


def _finding(
    facts: Mapping[str, Any],
    offer: Ensembles,
    metric: Metric,
    paths: Mapping[str, list[int]],
    on_validation: Any,
    on_test: Any,
    costs: Mapping[int, tuple[float, int]],
) -> Ensemble:
    """Which mean and size is best on validation, the smallest of equals; its scores and the best single decoder's."""
    scores = {mean: offer.scores_along(path, on_validation, mean) for mean, path in paths.items()}
    tests = {mean: offer.scores_along(path, on_test, mean) for mean, path in paths.items()}
    ends = [(mean, end) for end in range(len(paths[offer.means[0]])) for mean in offer.means]
    mean, end = min(ends, key=lambda at: metric.sign * scores[at[0]][at[1]].value)
    members = Counter(paths[mean][: end + 1])
    single = paths[mean][0]
    seconds = sum(costs[number][0] for number in members)
    curve = [
        Size(
            size=size, added=number, mean=mean, validation_value=score.value, test_value=test.value
        )
        for mean, path in paths.items()
        for size, (number, score, test) in enumerate(
            zip(path, scores[mean], tests[mean], strict=True), start=1
        )
    ]
    return Ensemble(
        **facts,
        single=Single(trial=single, **_scored(scores[mean][0], tests[mean][0], metric)),
        ensemble=Combined(
            mean=mean,
            members=tuple(
                Member(trial=number, weight=weight) for number, weight in members.most_common()
            ),
            **_scored(scores[mean][end], tests[mean][end], metric),
        ),
        comparison=compare([tests[mean][end]], [tests[mean][0]]),
        curve=tuple(curve),
        cost=Cost(
            seconds_single=costs[single][0],
            seconds_ensemble=seconds,
            ratio=seconds / costs[single][0],
            sentences=len(tests[mean][0].lengths),
            parameters=sum(costs[number][1] for number in members),
        ),
    )


def _scored(validation: Score, test: Score, metric: Metric) -> dict[str, Any]:
    """The fields of Scored."""
    return {
        "validation_value": validation.value,
        "validation_interval": score_interval([validation], metric),
        "test_value": test.value,
        "test_interval": score_interval([test], metric),
    }


def _shared(found: Ensemble) -> str:
    """kernel 8, stride 2"""
    return ", ".join(f"{name} {getattr(found, name)}" for name in found.matching)


def ensemble_text(found: Ensemble, metric: Metric) -> str:
    """For a terminal, 100 columns."""
    single, ensemble, cost = found.single, found.ensemble, found.cost
    members = ", ".join(
        f"{member.trial}" + (f" (x{member.weight})" if member.weight > 1 else "")
        for member in ensemble.members
    )
    curve = [point for point in found.curve if point.mean == ensemble.mean]
    lines = [
        f"Best single decoder: trial {single.trial}",
        *_score_lines(single, metric),
        f"Ensemble: {ensemble.mean} mean of {members}; {found.candidates} candidates, {_shared(found)}",
        *_score_lines(ensemble, metric),
        f"  Members, mean and size were chosen on validation, so that {metric.name} flatters; on test nothing was chosen.",
        _verdict(found.comparison, ensemble.size, metric),
        f"Cost of {cost.sentences} sentences: {cost.seconds_ensemble:.2f} s, {cost.ratio:.1f} x the single decoder's; "
        f"{cost.parameters:,} parameters",
        "  size  added  validation      test",
    ]
    for point in curve:
        taken = "   <- taken" if point.size == ensemble.size else ""
        lines.append(
            f"  {point.size:4}  {point.added:5}  {metric.text(point.validation_value):>10}  {metric.text(point.test_value):>8}{taken}"
        )
    lines += [f"Note: {note}" for note in found.notes]
    return "\n".join(fill(line, 100, subsequent_indent="    ") for line in lines)


def _score_lines(part: Scored, metric: Metric) -> list[str]:
    return [
        _score_line("validation", part.validation_value, part.validation_interval, metric),
        _score_line("test", part.test_value, part.test_interval, metric),
    ]


def _score_line(
    partition: str, value: float, interval: tuple[float, float] | None, metric: Metric
) -> str:
    if interval is None:
        within = "no interval of one sentence"
    else:
        within = f"95 % interval {metric.text(interval[0])} to {metric.text(interval[1])}"
    return f"  {partition:11} {metric.text(value):>8}, {within}"


def _verdict(comparison: Comparison, size: int, metric: Metric) -> str:
    if size == 1:
        return "No combination was better on validation than the best single decoder."
    low, high = comparison.interval
    below, above = ("better", "worse") if metric.direction == "minimize" else ("worse", "better")
    word = below if high < 0 else above if low > 0 else "not separated"
    return (
        f"Ensemble minus single on test: {metric.difference(comparison.difference)} {metric.difference_unit}, "
        f"95 % interval {metric.difference(low)} to {metric.difference(high)}, p {comparison.p:.2g}: {word}"
    )
