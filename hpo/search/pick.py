"""Which trial of a study is meant: the best one, or one by its number."""

from hpo.errors import StudyError
from hpo.search.study import Study
from hpo.search.trial import Record


def best_of(records: list[Record]) -> Record | None:
    """The complete trial with the lowest final PER; the first of equals. Retrainings have none: their seeds are to be averaged."""
    complete = [record for record in records if record.per is not None and not record.label]
    return min(complete, key=lambda record: (record.per, record.number), default=None)


def pick_trial(study: Study, trial: str) -> Record:
    """`best` or a trial's number. Raises StudyError."""
    records = study.records()
    if trial == "best":
        best = best_of(records)
        if best is None:
            if study.spec.child:
                raise StudyError(f"study {study.name} retrains configurations of {study.spec.child.parent}: none is best. Give a number")
            raise StudyError(f"study {study.name}: no trial is complete yet, so there is no best one. See hpo status --study {study.name}")
        return best
    numbers = {str(record.number): record for record in records if record.config}
    if trial not in numbers:
        raise StudyError(f"study {study.name}: no trial {trial!r} that began. Valid: best, {', '.join(numbers) or 'none yet'}")
    return numbers[trial]
