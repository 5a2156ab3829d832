"""Configurations retrained with fresh seeds: what to train, for how long, and what came of each configuration.

Diverging is an outcome. Values and intervals are of the seeds that came to their end, and whoever shows them says how many did not.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from textwrap import wrap
from typing import Any

from hpo.analysis.stats import score_interval
from hpo.errors import DataError, SpecError, StudyError
from hpo.settings import Config
from hpo.space.spec import StudySpec
from hpo.study.study import Study
from hpo.study.trial import BY_HAND, Record
from hpo.text import duration
from hpo.trainer import Metric, Score
from hpo.worker.dataset import asked, check_fingerprint, load_dataset

LEVEL = 0.95
Train = Callable[[Study], None]  # runs the waiting trials of a child to their end


@dataclass(frozen=True)
class Retrained:
    """One configuration: its trials in the order of their seeds, and the scores of the complete ones by trial id."""

    records: list[Record]
    found: dict[int, Score]
    metric: Metric

    @property
    def scores(self) -> list[Score]:
        return list(self.found.values())

    @property
    def diverged(self) -> int:
        return sum(record.state == "stopped" and record.rule != BY_HAND for record in self.records)

    @property
    def failed(self) -> int:
        """Or was killed by a person, which says as little of the configuration."""
        return sum(record.state == "failed" or record.rule == BY_HAND for record in self.records)

    @property
    def value(self) -> float | None:
        return mean(score.value for score in self.scores)

    @property
    def interval(self) -> tuple[float, float] | None:
        return score_interval(self.scores, self.metric, LEVEL) if self.found else None

    @property
    def counts(self) -> str:
        """`5`, or `3 of 5, 2 diverged`."""
        lost = [
            f"{count} {what}"
            for count, what in ((self.diverged, "diverged"), (self.failed, "failed"))
            if count
        ]
        return (
            ", ".join([f"{len(self.found)} of {len(self.records)}", *lost])
            if lost
            else str(len(self.records))
        )


def mean(values: Iterable[float]) -> float | None:
    there = list(values)
    return sum(there) / len(there) if there else None


def retrain(
    child: Study, configs: Sequence[tuple[Config, str]], seeds: Sequence[int], train: Train
) -> list[list[int]]:
    """Train each (configuration, label) with each seed, unless the child has that already. Returns trial ids, a row each.

    Raises StudyError if trials still wait when `train` is back.
    """
    wanted = [
        (config.with_values({"seed": seed}), label) for config, label in configs for seed in seeds
    ]
    ids = child.enqueue(wanted)
    train(child)
    states = {record.id: record.state for record in child.records()}
    if left := sum(states[trial_id] in ("waiting", "running") for trial_id in set(ids)):
        raise StudyError(
            f"study {child.name}: {left} trainings are still to be done. The same line goes on with them"
        )
    return [ids[row * len(seeds) : (row + 1) * len(seeds)] for row in range(len(configs))]


def outcomes(child: Study, ids: Sequence[Sequence[int]], partition: str) -> list[Retrained]:
    records = {record.id: record for record in child.records()}
    scores = _comparable(child.scores([trial_id for row in ids for trial_id in row], partition))
    found = []
    for row in ids:
        complete = [
            trial_id
            for trial_id in row
            if records[trial_id].state == "complete" and trial_id in scores
        ]
        of_row = {trial_id: scores[trial_id] for trial_id in complete}
        found.append(Retrained([records[trial_id] for trial_id in row], of_row, child.spec.metric))
    return found


def _comparable(scores: dict[int, Score]) -> dict[int, Score]:
    """Scores of the same items; where they are of different ones, as of a script's, single numbers."""
    if len({score.lengths for score in scores.values()}) <= 1:
        return scores
    return {trial_id: Score.of(score.value) for trial_id, score in scores.items()}


def items_scored(results: Sequence[Retrained]) -> int:
    """How many items, such as sentences, the scores are of; 0 if no training came to its end."""
    return next((len(result.scores[0].lengths) for result in results if result.found), 0)


def start_config(study: Study, start: str) -> Config:
    return study.spec.config(study.spec.starts[start])


def config_of(spec: StudySpec, record: Record) -> Config | None:
    """None if the record has no complete configuration of this version, as a run that was made elsewhere may not."""
    try:
        return spec.config(record.config) if record.config else None
    except SpecError:
        return None


def check_data(study: Study, path: Path | None, score_test: bool) -> None:
    """Raises StudyError if the data are not the study's, DataError if there is no `test` that is to be scored."""
    path, spec = path or study.data_path, study.spec
    if score_test:
        test = load_dataset(spec, path, "cpu", "test")
        for config in spec.extremes():
            asked(spec, "describe", partial(test.describe, config))
    try:
        check_fingerprint(study, path, load_dataset(spec, path, "cpu").fingerprint)
    except DataError as error:
        raise StudyError(str(error)) from None


def cost(study: Study, trainings: int, workers: int) -> str:
    """How long trainings take, as the study's complete trials did."""
    typical = mean(record.seconds for record in study.records() if record.state == "complete")
    time = (
        f", about {duration(trainings * typical / max(1, workers))} with {workers} workers"
        if typical and workers
        else ""
    )
    return f"{trainings} trainings{time}"


def difference_interval(metric: Metric, interval: Sequence[float]) -> str:
    return f"[{metric.difference(interval[0])}, {metric.difference(interval[1])}]"


def wrapped(notes: Iterable[str], indent: str = "  ") -> list[str]:
    """A note each, in lines of 100 columns."""
    return [line for note in notes for line in wrap(note, 100, subsequent_indent=indent)]


def seeds_facts(
    child_records: Sequence[Record], found: dict[int, Score], validation: dict[int, Score]
) -> list[dict[str, Any]]:
    return [
        {
            "trial": record.number,
            "seed": record.config.get("seed"),
            "state": record.state,
            "reason": record.reason,
            "value": found[record.id].value if record.id in found else None,
            "validation_value": validation[record.id].value if record.id in validation else None,
        }
        for record in child_records
    ]
