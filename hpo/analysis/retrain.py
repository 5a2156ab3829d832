"""Retrain configurations with fresh seeds: what to train, for how long, and the result of each.

Diverging is an outcome, not an error. Values and intervals cover the seeds that were trained to the
end, and every display of them says how many were not.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from textwrap import wrap

from hpo.analysis.stats import score_interval
from hpo.errors import DataError, SpecError, StudyError
from hpo.settings import Config
from hpo.space.spec import StudySpec
from hpo.study.study import Study
from hpo.study.trial import BY_HAND, Record
from hpo.text import duration
from hpo.trainer import Metric, Score
from hpo.worker.dataset import call_trainer, check_fingerprint, load_dataset

LEVEL = 0.95
# Runs the waiting trials of a child study until none waits.
Train = Callable[[Study], None]
# A configuration and a label for it.
Labelled = tuple[Config, str]


@dataclass(frozen=True)
class Retrained:
    """One configuration: its trials, in the order of their seeds, and their scores."""

    records: list[Record]
    # By trial id, of the complete trials.
    scores_by_id: dict[int, Score]
    metric: Metric

    @property
    def scores(self) -> list[Score]:
        return list(self.scores_by_id.values())

    @property
    def all_complete(self) -> bool:
        """Whether every seed was trained to the end."""
        return len(self.scores_by_id) == len(self.records)

    @property
    def diverged(self) -> int:
        """How many trials the divergence rule stopped."""
        return sum(record.state == "stopped" and record.rule != BY_HAND for record in self.records)

    @property
    def failed(self) -> int:
        """How many trials failed or were stopped by hand, which says nothing about their seeds."""
        return sum(record.state == "failed" or record.rule == BY_HAND for record in self.records)

    @property
    def value(self) -> float | None:
        """Mean over the complete trials; None if there is none."""
        return mean(score.value for score in self.scores)

    @property
    def interval(self) -> tuple[float, float] | None:
        if not self.scores:
            return None
        return score_interval(self.scores, self.metric, LEVEL)

    @property
    def counts(self) -> str:
        """`5`, or `3 of 5, 2 diverged`."""
        if not self.diverged and not self.failed:
            return str(len(self.records))
        counts = f"{len(self.scores_by_id)} of {len(self.records)}"
        if self.diverged:
            counts += f", {self.diverged} diverged"
        if self.failed:
            counts += f", {self.failed} failed"
        return counts


def mean(values: Iterable[float]) -> float | None:
    """None if there are no values."""
    numbers = list(values)
    if not numbers:
        return None
    return sum(numbers) / len(numbers)


def retrain(
    child: Study,
    configs: Sequence[Labelled],
    seeds: Sequence[int],
    train: Train,
    partition: str,
) -> list[Retrained]:
    """Train each configuration with each seed in a child study, and score it on a partition.

    Trainings that the child already has are not repeated. Returns one result per configuration.
    Raises StudyError if some trainings are unfinished when `train` returns.
    """
    wanted = []
    for config, label in configs:
        wanted += [(config.with_values({"seed": seed}), label) for seed in seeds]
    ids = child.enqueue(wanted)
    train(child)
    records = {record.id: record for record in child.records()}
    unfinished = [i for i in set(ids) if records[i].state in ("waiting", "running")]
    if unfinished:
        raise StudyError(
            f"study {child.name}: {len(unfinished)} trainings are not finished. "
            f"Run the same command again to continue"
        )
    scores = _comparable(child.scores(ids, partition))
    results = []
    for first in range(0, len(ids), len(seeds)):
        row = ids[first : first + len(seeds)]
        complete = [i for i in row if records[i].state == "complete" and i in scores]
        scores_by_id = {i: scores[i] for i in complete}
        results.append(Retrained([records[i] for i in row], scores_by_id, child.spec.metric))
    return results


def _comparable(scores: dict[int, Score]) -> dict[int, Score]:
    """The scores as they are if all are on the same items, else each as a single number.

    Scripts may score different items in each training.
    """
    if len({score.lengths for score in scores.values()}) <= 1:
        return scores
    return {trial_id: Score.of(score.value) for trial_id, score in scores.items()}


def items_scored(results: Sequence[Retrained]) -> int:
    """How many items (such as sentences) the scores are over; 0 if no training was completed."""
    for result in results:
        if result.scores:
            return len(result.scores[0].lengths)
    return 0


def start_config(study: Study, start: str) -> Config:
    return study.spec.config(study.spec.starts[start])


def config_of(spec: StudySpec, record: Record) -> Config | None:
    """The trial's configuration, or None if it is incomplete in this version.

    Past runs that were trained elsewhere may lack fields.
    """
    if not record.config:
        return None
    try:
        return spec.config(record.config)
    except SpecError:
        return None


def check_data(study: Study, path: Path | None, score_test: bool) -> None:
    """Check that the data are the study's, and with score_test that `test` can be scored.

    path: where the data are on this machine, if not where they were. Raises StudyError, DataError.
    """
    spec = study.spec
    path = path or study.data_path
    if score_test:
        test = load_dataset(spec, path, "cpu", "test")
        for config in spec.extremes():
            call_trainer(spec, "describe", partial(test.describe, config))
    try:
        check_fingerprint(study, path, load_dataset(spec, path, "cpu").fingerprint)
    except DataError as error:
        raise StudyError(str(error)) from None


def cost(study: Study, trainings: int, workers: int) -> str:
    """How long the trainings take, judged by the study's complete trials."""
    text = f"{trainings} trainings"
    typical = mean(record.seconds for record in study.records() if record.state == "complete")
    if typical and workers:
        text += f", about {duration(trainings * typical / workers)} with {workers} workers"
    return text


def difference_interval(metric: Metric, interval: Sequence[float]) -> str:
    return f"[{metric.difference(interval[0])}, {metric.difference(interval[1])}]"


def wrapped(notes: Iterable[str], indent: str = "  ") -> list[str]:
    """The notes in lines of 100 columns; lines after a note's first are indented."""
    lines = []
    for note in notes:
        lines += wrap(note, 100, subsequent_indent=indent)
    return lines
