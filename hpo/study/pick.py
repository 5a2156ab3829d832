"""Which trial of a study is meant: the best one, or one by its number."""

from collections.abc import Sequence

from hpo.errors import StudyError
from hpo.study.reader import StudyReader
from hpo.study.trial import Record
from hpo.trainer import Metric


def best_of(records: Sequence[Record], metric: Metric) -> Record | None:
    """The complete trial with the best final value; the first of equals.

    Retrainings have none: their seeds are to be averaged.
    """
    return next(iter(best_first([record for record in records if not record.label], metric)), None)


def best_first(records: Sequence[Record], metric: Metric) -> list[Record]:
    """The complete ones, by their final value; of equals the first comes first."""
    complete = [(record.value, record) for record in records if record.value is not None]
    ranked = sorted(complete, key=lambda pair: (metric.sign * pair[0], pair[1].number))
    return [record for _, record in ranked]


def pick_trial(study: StudyReader, trial: str) -> Record:
    """`best` or a trial's number. Raises StudyError."""
    records = study.records()
    if trial == "best":
        best = best_of(records, study.spec.metric)
        if best is None:
            if study.spec.child:
                raise StudyError(
                    f"study {study.name} retrains configurations of {study.spec.child.parent}: none is best. Give a number"
                )
            raise StudyError(
                f"study {study.name}: no trial is complete yet, so there is no best one. See hpo status --study {study.name}"
            )
        return best
    numbers = {str(record.number): record for record in records if record.config}
    if trial not in numbers:
        raise StudyError(
            f"study {study.name}: no trial {trial!r} that began. Valid: best, {', '.join(numbers) or 'none yet'}"
        )
    return numbers[trial]
