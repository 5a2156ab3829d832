"""Brings past runs into a study: as finished trials where they are comparable, else as a finding
with the reason.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from hpo.curve import Point
from hpo.errors import StudyError
from hpo.past.imported import add_trial, place, trials_by_key
from hpo.past.past_runs import PastPoint, PastRun, some
from hpo.settings import Config
from hpo.space.stopping import OwnPast, Stop
from hpo.study.study import Study
from hpo.study.trial import BY_HAND, Record

KIND = "past_runs"
NEVER = 10**9  # evaluations in a row


def stated(run: PastRun, values: Mapping[str, Any], config: type[Config] | None) -> PastRun:
    """With what a person says of fields that the run does not record. config: of the trainer; None:
    any field.
    """
    typed = config().with_values(values, "--set ").flat() if config else values
    new = {name: typed[name] for name in values if name not in run.config}
    said = tuple(f"{name} = {value} is stated by hand" for name, value in new.items())
    return replace(run, config=new | run.config, doubts=run.doubts + said)


def runs_of(other: Study, study: Study) -> list[PastRun]:
    """The trials of another study that are complete or were stopped by its rule, as past runs for
    `study`.

    Raises StudyError if they were not trained and scored on the sentences of `study`.
    """
    if other.id == study.id:
        raise StudyError(f"--from-study {other.name}: that is the study itself. Give another")
    here, there = ((found.data["fingerprint"], found.spec.validation) for found in (study, other))
    metric = study.spec.metric
    if here != there:
        raise StudyError(
            f"study {other.name} was trained on other {metric.items} than study {study.name} "
            f"(data {there[0]}, {here[0]}; "
            f"validation {there[1]}, {here[1]}), so its {metric.name} does not compare"
        )
    if other.spec.metric != metric:
        raise StudyError(
            f"study {other.name} is judged by {other.spec.metric.name}, study {study.name} by "
            f"{metric.name}"
        )
    records = [
        record
        for record in other.records()
        if record.state in ("complete", "stopped") and record.rule != BY_HAND
    ]
    curves = other.curves(records)
    return [
        replace(_past(other.name, record, curves.get(record.number, [])), metric=metric)
        for record in records
    ]


def _past(name: str, record: Record, curve: Sequence[Point]) -> PastRun:
    pace = record.gpu_seconds / record.step if record.step else 0.0
    points = [
        PastPoint(
            point.step,
            point.value,
            point.validation_loss,
            pace * point.step,
            point.metrics.get("lr"),
        )
        for point in curve
    ]
    return PastRun(
        f"{name}:{record.number}", "", record.config, tuple(points), record.steps, "validation"
    )


def import_runs(study: Study, runs: Sequence[PastRun], same_data: bool) -> list[dict[str, Any]]:
    """Add what is comparable, and keep all of it as the study's finding `past_runs`. Told twice it
    is there once.

    same_data: a person says that they were trained on the study's data and scored on its validation
    part; no run records that.
    """
    kept = {row["key"]: row for row in study.results().get(KIND, {"runs": []})["runs"]}
    there = trials_by_key(study)
    for run in runs:
        if run.key in there and run.key in kept:
            continue
        number, why_not = None, ""
        try:
            run, values, points, stop = _comparable(study, run, same_data)
            number = add_trial(study, run.key, run.name, values, points, stop)
        except StudyError as error:
            why_not = str(error)
        kept[run.key] = facts(run) | {"trial": number, "why_not": why_not}
    study.keep_result(KIND, {"runs": list(kept.values())})
    return [kept[run.key] for run in runs]


def facts(run: PastRun) -> dict[str, Any]:
    """JSON-ready: what is known of the run, without its curve. What is not finite is null."""
    last = run.curve[-1] if run.curve else None
    return {
        "name": run.name,
        "path": run.path,
        "key": run.key,
        "best_value": run.best_value,
        "last_value": last.value if last and math.isfinite(last.value) else None,
        "evaluations": len(run.curve),
        "last_step": last.step if last else None,
        "steps": run.steps,
        "gpu_seconds": last.seconds if last else None,
        "split": run.split,
        "config": run.config,
        "doubts": list(run.doubts),
    }


def _comparable(
    study: Study, run: PastRun, same_data: bool
) -> tuple[PastRun, dict[str, Any], list[Point], Stop | None]:
    """Raises StudyError with the reason why it is not."""
    if not run.curve:
        raise StudyError("no evaluation is recorded")
    if run.no_error_rate:
        raise StudyError(run.no_error_rate)
    if run.split == "test" and study.spec.load_trainer().partition != "test":
        raise StudyError("scored on test, which the search never sees")
    if not same_data:
        raise StudyError(
            "no run says which data it is of; --same-data says that it is the study's, scored on "
            "its validation part"
        )
    for name, here, there in (
        ("channels", study.data.get("n_features"), run.n_features),
        ("days", study.data.get("n_days"), run.n_days),
    ):
        if there not in (None, here):
            raise StudyError(f"{there} {name}, the study's data have {here}")
    if run.foreign:
        raise StudyError(run.foreign[0])
    values, assumed = place(study.spec, run.config)
    points, metric = run.points, study.spec.metric
    rule = study.spec.stopping or OwnPast(patience=NEVER, loss_patience=NEVER)
    judged = ((end, rule.judge(points[:end], metric)) for end in range(1, len(points) + 1))
    end, stop = next(((end, stop) for end, stop in judged if stop), (len(points), None))
    if stop is None and not run.reached_its_plan:
        planned = "an unknown number" if run.steps is None else run.steps
        raise StudyError(
            f"ended at step {run.curve[-1].step} of {planned}, so what a whole training would "
            "reach is not known"
        )
    if assumed:
        run = replace(
            run, doubts=(*run.doubts, f"not recorded, taken as the study's: {some(assumed)}")
        )
    return run, values, points[:end], stop
