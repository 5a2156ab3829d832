"""The best combination of a study's finished decoders.

It is selected on validation and then scored on `test` next to the best single decoder. The trainer
says how models are combined: the built-in decoders are averaged frame by frame, so their frames
must match.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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

# How many of the best trials to choose from: the outputs of all are in memory together.
CANDIDATES = 40


class Scored(BaseModel, frozen=True):
    """The metric on both partitions, in its unit (a fraction of 1 where that is percent).

    Intervals are at 95 %; None where one sentence gives none.
    """

    validation_value: float
    validation_interval: tuple[float, float] | None
    test_value: float
    test_interval: tuple[float, float] | None


class Single(Scored, frozen=True):
    """The best single decoder on validation."""

    trial: int


class Member(BaseModel, frozen=True):
    """weight: how often the trial was taken."""

    trial: int
    weight: int


class Combined(Scored, frozen=True):
    """The combination that was best on validation. mean: how its members are averaged."""

    mean: str
    members: tuple[Member, ...]

    @property
    def size(self) -> int:
        """Number of members; a trial counts as often as it was taken."""
        return sum(member.weight for member in self.members)


class Size(BaseModel, frozen=True):
    """A combination that was tried: the next smaller one plus the trial `added`."""

    size: int
    added: int
    mean: str
    validation_value: float
    test_value: float


class Cost(BaseModel, frozen=True):
    """The cost of decoding all sentences of test."""

    seconds_single: float
    seconds_ensemble: float
    # Of the seconds.
    ratio: float
    sentences: int
    # Of all members together.
    parameters: int


class Ensemble(BaseModel):
    """The finding `ensemble`.

    Values that all members share are extra fields, named in `matching`: `stride=4`.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    partition_selected: str
    partition: str
    candidates: int
    matching: tuple[str, ...]
    single: Single
    ensemble: Combined
    # The combination minus the single decoder, on test.
    comparison: Comparison
    curve: tuple[Size, ...]
    cost: Cost
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Path:
    """Combinations of growing size with one mean: the first trial, the first two, and so on."""

    mean: str
    # Numbers of the trials, in the order in which they are added.
    trials: Sequence[int]
    # A score for each size.
    validation: Sequence[Score]
    test: Sequence[Score]


def build_ensemble(
    study: Study,
    trials: Sequence[int] | None = None,
    max_size: int = 10,
    device: str | None = None,
    data_path: Path | None = None,
) -> Ensemble:
    """Compute the finding `ensemble` and keep it with the study.

    trials: numbers of complete trials to choose from; None: the best ones whose weights are here.
    data_path: where the study's data are on this machine, if not where they were.
    Raises StudyError, DataError.
    """
    offer: Ensembles = study.spec.offered("ensemble", "ensembles")
    if trials:
        pool = _weights_of_trials(study, trials, offer.matching)
        notes: list[str] = []
    else:
        pool, notes = _best_weights(study, offer.matching)
    device_name = str(choose_device(device))
    on_validation, _ = offer.outputs(load_study_data(study, data_path, device_name), pool)
    selected = {mean: offer.select(on_validation, mean, max_size) for mean in offer.means}
    weights_needed = {number: pool[number] for number in sorted(set().union(*selected.values()))}
    on_test, costs = offer.outputs(
        load_dataset(study.spec, data_path or study.data_path, device_name, "test"), weights_needed
    )
    paths = [
        _Path(
            mean,
            numbers,
            offer.scores_along(numbers, on_validation, mean),
            offer.scores_along(numbers, on_test, mean),
        )
        for mean, numbers in selected.items()
    ]
    metric = study.spec.metric
    best, size = _best_combination(paths, metric)
    ensemble = Ensemble(
        partition_selected="validation",
        partition="test",
        candidates=len(pool),
        single=_single(best, metric),
        ensemble=_combined(best, size, metric),
        comparison=compare([best.test[size - 1]], [best.test[0]]),
        curve=tuple(_curve(paths)),
        cost=_cost(best, size, costs),
        notes=tuple(notes),
        **_shared_values(study, next(iter(pool)), offer.matching),
    )
    study.keep_result("ensemble", ensemble.model_dump(mode="json"))
    return ensemble


def _best_weights(study: Study, matching: Sequence[str]) -> tuple[dict[int, Path], list[str]]:
    """The weights of the best complete trials by number, and notes on the trials left out.

    Trials are left out if their weights are not here or their frames do not match the best trial's.
    Raises StudyError if fewer than 2 are left.
    """
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
            difference = _difference(record, frames, matching)
            notes.append(
                f"trial {record.number} is left out: {difference}, so its frames do not match"
            )
    if len(pool) < 2:
        why = f" ({notes[0]})" if notes else ""
        raise StudyError(
            f"study {study.name}: an ensemble needs 2 complete trials whose weights are here and "
            f"whose frames match; of {len(complete)} complete trials {len(pool)} qualify{why}"
        )
    return pool, notes


def _weights_of_trials(
    study: Study, trials: Sequence[int], matching: Sequence[str]
) -> dict[int, Path]:
    """The weights by number. Raises StudyError if the frames of two trials do not match."""
    pool = {number: weights_of(study, str(number), "last") for number in trials}
    if len(pool) < 2:
        raise StudyError(f"--trials {trials[0]}: one trial is no ensemble. Give 2 or more")
    records = {record.number: record for record in study.records()}
    first = records[trials[0]]
    frames = _frames(first, matching)
    for number in pool:
        if _frames(records[number], matching) != frames:
            difference = _difference(records[number], frames, matching)
            raise StudyError(
                f"--trials: trial {number} has {difference} as trial {first.number}, so their "
                f"frames do not match. Give trials that agree in {', '.join(matching)}"
            )
    return pool


def _frames(record: Record, matching: Sequence[str]) -> tuple[Any, ...]:
    """The values that decide whether the frames of two decoders match."""
    return tuple(record.config[name] for name in matching)


def _difference(record: Record, frames: tuple[Any, ...], matching: Sequence[str]) -> str:
    """`model.stride 2, not 4`"""
    parts = []
    for name, value, wanted in zip(matching, _frames(record, matching), frames, strict=True):
        if value != wanted:
            parts.append(f"{name} {value}, not {wanted}")
    return ", ".join(parts)


def _shared_values(study: Study, number: int, matching: Sequence[str]) -> dict[str, Any]:
    """The values that all members share with trial `number`, by the last part of the field's name.

    The names themselves are the value of `matching`.
    """
    record = next(record for record in study.records() if record.number == number)
    names = [name.rpartition(".")[2] for name in matching]
    values = dict(zip(names, _frames(record, matching), strict=True))
    return {"matching": names, **values}


def _best_combination(paths: Sequence[_Path], metric: Metric) -> tuple[_Path, int]:
    """The path and the size that are best on validation, the smallest of equals."""
    sizes = range(1, len(paths[0].trials) + 1)
    combinations = [(path, size) for size in sizes for path in paths]
    return min(combinations, key=lambda pair: metric.sign * pair[0].validation[pair[1] - 1].value)


def _single(best: _Path, metric: Metric) -> Single:
    return Single(trial=best.trials[0], **_scored(best.validation[0], best.test[0], metric))


def _combined(best: _Path, size: int, metric: Metric) -> Combined:
    weights = Counter(best.trials[:size]).most_common()
    return Combined(
        mean=best.mean,
        members=tuple(Member(trial=number, weight=weight) for number, weight in weights),
        **_scored(best.validation[size - 1], best.test[size - 1], metric),
    )


def _scored(validation: Score, test: Score, metric: Metric) -> dict[str, Any]:
    """The fields of Scored."""
    return {
        "validation_value": validation.value,
        "validation_interval": score_interval([validation], metric),
        "test_value": test.value,
        "test_interval": score_interval([test], metric),
    }


def _curve(paths: Sequence[_Path]) -> list[Size]:
    curve = []
    for path in paths:
        steps = zip(path.trials, path.validation, path.test, strict=True)
        for size, (added, validation, test) in enumerate(steps, start=1):
            curve.append(
                Size(
                    size=size,
                    added=added,
                    mean=path.mean,
                    validation_value=validation.value,
                    test_value=test.value,
                )
            )
    return curve


def _cost(best: _Path, size: int, costs: Mapping[int, tuple[float, int]]) -> Cost:
    """costs: seconds and number of parameters of each trial, by number."""
    members = dict.fromkeys(best.trials[:size])
    seconds_single, _ = costs[best.trials[0]]
    seconds = sum(costs[number][0] for number in members)
    return Cost(
        seconds_single=seconds_single,
        seconds_ensemble=seconds,
        ratio=seconds / seconds_single,
        sentences=len(best.test[0].lengths),
        parameters=sum(costs[number][1] for number in members),
    )


def ensemble_text(finding: Ensemble, metric: Metric) -> str:
    """The finding for a terminal, 100 columns."""
    single = finding.single
    ensemble = finding.ensemble
    cost = finding.cost
    members = ", ".join(_member_text(member) for member in ensemble.members)
    shared = ", ".join(f"{name} {getattr(finding, name)}" for name in finding.matching)
    lines = [
        f"Best single decoder: trial {single.trial}",
        *_score_lines(single, metric),
        f"Ensemble: {ensemble.mean} mean of {members}; {finding.candidates} candidates, {shared}",
        *_score_lines(ensemble, metric),
        f"  Validation chose members, mean and size, so its {metric.name} flatters; "
        f"nothing was chosen on test.",
        _verdict(finding.comparison, ensemble.size, metric),
        f"Cost of {cost.sentences} sentences: {cost.seconds_ensemble:.2f} s, {cost.ratio:.1f} x "
        f"the single decoder's; {cost.parameters:,} parameters",
        "  size  added  validation      test",
    ]
    for point in finding.curve:
        if point.mean != ensemble.mean:
            continue
        validation = metric.text(point.validation_value)
        test = metric.text(point.test_value)
        taken = "   <- taken" if point.size == ensemble.size else ""
        lines.append(f"  {point.size:4}  {point.added:5}  {validation:>10}  {test:>8}{taken}")
    lines += [f"Note: {note}" for note in finding.notes]
    return "\n".join(fill(line, 100, subsequent_indent="    ") for line in lines)


def _member_text(member: Member) -> str:
    """`7`, or `7 (x2)`."""
    if member.weight == 1:
        return str(member.trial)
    return f"{member.trial} (x{member.weight})"


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
    if not comparison.decided:
        word = "not separated"
    elif (high < 0) == (metric.direction == "minimize"):
        word = "better"
    else:
        word = "worse"
    return (
        f"Ensemble minus single on test: {metric.difference(comparison.difference)} "
        f"{metric.difference_unit}, 95 % interval {metric.difference(low)} to "
        f"{metric.difference(high)}, p {comparison.p:.2g}: {word}"
    )
