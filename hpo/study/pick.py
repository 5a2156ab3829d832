"""Which trial of a study is meant: the best one, or one by its number."""

from collections.abc import Sequence

from hpo.errors import StudyError
from hpo.study.reader import StudyReader
from hpo.study.trial import Record
from hpo.trainer import Metric


def best_of(records: Sequence[Record], metric: Metric) -> Record | None:
    """The complete trial with the best final value, the first one of equals.

    Retrainings are left out: their values are to be averaged over seeds.
    """
    ranked = best_first([record for record in records if not record.label], metric)
    return ranked[0] if ranked else None


def best_first(records: Sequence[Record], metric: Metric) -> list[Record]:
    """The complete trials by their final value, equal ones by number."""
    complete = [(record.value, record) for record in records if record.value is not None]
    ranked = sorted(complete, key=lambda pair: (metric.sign * pair[0], pair[1].number))
    return [record for _, record in ranked]


def pick_trial(study: StudyReader, trial: str) -> Record:
    """The trial that the user names: `best` or a number. Raises StudyError."""
    records = study.records()
    if trial == "best":
        best = best_of(records, study.spec.metric)
        if best is None:
            raise _no_best(study)
        return best
    by_number = {str(record.number): record for record in records if record.config}
    if trial not in by_number:
        raise StudyError(
            f"study {study.name}: no trial {trial!r} that began. "
            f"Valid: best, {', '.join(by_number) or 'none yet'}"
        )
    return by_number[trial]


def _no_best(study: StudyReader) -> StudyError:
    child = study.spec.child
    if child:
        return StudyError(
            f"study {study.name} retrains configurations of {child.parent}: none is best. "
            f"Give a number"
        )
    return StudyError(
        f"study {study.name}: no trial is complete yet, so there is no best one. "
        f"See hpo status --study {study.name}"
    )
