"""Brings past runs into a study: as finished trials where they are comparable, otherwise as a
result with the reason why they are not.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from hpo.curve import Point
from hpo.errors import SpecError, StudyError
from hpo.past.imported import ComparableRun, add_trial, place, trials_by_key
from hpo.past.past_runs import PastPoint, PastRun, some
from hpo.settings import Config, unknown
from hpo.space.stopping import OwnPast, Stop
from hpo.study.study import Study
from hpo.study.trial import BY_HAND, Record

KIND = "past_runs"
# Evaluations in a row: more than any run has.
NEVER = 10**9


def stated(run: PastRun, values: Mapping[str, Any], config: type[Config] | None) -> PastRun:
    """The run with fields that it does not record, as the user states them.

    config: of the trainer, which gives the values their types; None allows any field.
    """
    typed = config().with_values(values, "--set ").flat() if config else values
    new = {name: typed[name] for name in values if name not in run.config}
    warnings = [f"{name} = {value} is stated by hand" for name, value in new.items()]
    return replace(run, config=new | run.config, warnings=(*run.warnings, *warnings))


def runs_of(other: Study, study: Study) -> list[PastRun]:
    """The trials of another study as past runs for `study`: those that are complete or that its
    rule stopped.

    Raises StudyError if they were not trained and scored on the data of `study`.
    """
    _check_same_data(other, study)
    records = [
        record
        for record in other.records()
        if record.state in ("complete", "stopped") and record.rule != BY_HAND
    ]
    curves = other.curves(records)
    runs: list[PastRun] = []
    for record in records:
        run = _past_run(other.name, record, curves.get(record.number, []))
        runs.append(replace(run, metric=study.spec.metric))
    return runs


def _check_same_data(other: Study, study: Study) -> None:
    """Raises StudyError if values of the other study do not compare with those of `study`."""
    if other.id == study.id:
        raise StudyError(f"--from-study {other.name}: that is the study itself. Give another")
    metric = study.spec.metric
    data = study.data["fingerprint"]
    other_data = other.data["fingerprint"]
    validation = study.spec.validation
    other_validation = other.spec.validation
    if data != other_data or validation != other_validation:
        raise StudyError(
            f"study {other.name} was trained on other {metric.items} than study {study.name} "
            f"(data {other_data}, {data}; validation {other_validation}, {validation}), so its "
            f"{metric.name} does not compare"
        )
    if other.spec.metric != metric:
        raise StudyError(
            f"study {other.name} is judged by {other.spec.metric.name}, study {study.name} by "
            f"{metric.name}"
        )


def _past_run(study: str, record: Record, curve: Sequence[Point]) -> PastRun:
    """A trial as a past run. Its time is spread evenly over its steps."""
    seconds_per_step = record.gpu_seconds / record.step if record.step else 0.0
    points = [
        PastPoint(
            step=point.step,
            value=point.value,
            loss=point.validation_loss,
            seconds=seconds_per_step * point.step,
            lr=point.metrics.get("lr"),
        )
        for point in curve
    ]
    return PastRun(
        name=f"{study}:{record.number}",
        path="",
        config=record.config,
        curve=tuple(points),
        steps=record.steps,
        split="validation",
    )


def with_accepted(runs: Sequence[PastRun], names: Sequence[str]) -> list[PastRun]:
    """The runs, where these settings of them, which hpo does not know, are taken as without effect.

    Raises SpecError for a name that is not an unknown setting of any run.
    """
    all_unknown = tuple(dict.fromkeys(name for run in runs for name in run.unknown))
    for name in names:
        if name not in all_unknown:
            raise SpecError(_not_unknown(name, all_unknown))
    return [_with_accepted(run, names) for run in runs]


def _not_unknown(name: str, all_unknown: tuple[str, ...]) -> str:
    option = f"--accept-unknown {name}"
    if not all_unknown:
        return f"{option}: the runs have no settings that hpo does not know. Leave it out"
    return unknown(name, all_unknown, option)


def _with_accepted(run: PastRun, names: Sequence[str]) -> PastRun:
    accepted = [name for name in run.unknown if name in names]
    if not accepted:
        return run
    warning = f"taken as without effect, as stated by hand: {', '.join(accepted)}"
    left = tuple(name for name in run.unknown if name not in names)
    return replace(run, unknown=left, warnings=(*run.warnings, warning))


def import_runs(study: Study, runs: Sequence[PastRun], same_data: bool) -> list[dict[str, Any]]:
    """Adds the comparable runs as trials, and keeps the facts of all as the study's result
    `past_runs`. A run that is imported again is kept once.

    same_data: the user states that the runs were trained on the study's data and scored on its
    validation part, which no run records.
    """
    results = study.results().get(KIND, {"runs": []})
    kept = {row["key"]: row for row in results["runs"]}
    trials = trials_by_key(study)
    for run in runs:
        if run.key in trials and run.key in kept:
            continue
        number: int | None = None
        why_not = ""
        try:
            comparable = _comparable(study, run, same_data)
            run = comparable.run
            number = add_trial(study, comparable)
        except StudyError as error:
            why_not = str(error)
        kept[run.key] = facts(run) | {"trial": number, "why_not": why_not}
    study.keep_result(KIND, {"runs": list(kept.values())})
    return [kept[run.key] for run in runs]


def facts(run: PastRun) -> dict[str, Any]:
    """What is known of the run, JSON-ready, without its curve. What is not finite is null."""
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
        "unknown": list(run.unknown),
        "doubts": list(run.warnings),
    }


def _comparable(study: Study, run: PastRun, same_data: bool) -> ComparableRun:
    """Raises StudyError with the reason if the study cannot learn from the run."""
    _check_scores(study, run)
    if not same_data:
        raise StudyError(
            "no run records its data; --same-data states that they are the study's, and that the "
            "run was scored on its validation part"
        )
    _check_size_of_data("channels", study.data.get("n_features"), run.n_features)
    _check_size_of_data("days", study.data.get("n_days"), run.n_days)
    if run.foreign:
        raise StudyError(run.foreign[0])
    if run.unknown:
        raise StudyError(
            f"unknown settings: {some(run.unknown)}. If they change nothing, or --set says what "
            f"they mean: --accept-unknown {','.join(run.unknown)}"
        )
    values, assumed = place(study.spec, run.config)
    curve, stop = _up_to_stop(study, run)
    if stop is None and not run.reached_its_plan:
        planned = "an unknown number" if run.steps is None else run.steps
        raise StudyError(
            f"ended at step {run.curve[-1].step} of {planned}, so what a whole training would "
            "reach is not known"
        )
    if assumed:
        warning = f"not recorded, taken as the study's: {some(assumed)}"
        run = replace(run, warnings=(*run.warnings, warning))
    return ComparableRun(run, values, curve, stop)


def _check_scores(study: Study, run: PastRun) -> None:
    """Raises StudyError if the run has no scores that compare with the study's."""
    if not run.curve:
        raise StudyError("no evaluation is recorded")
    if run.metric_fault:
        raise StudyError(run.metric_fault)
    if run.split == "test" and study.spec.load_trainer().partition != "test":
        raise StudyError("scored on test, which the search never sees")


def _check_size_of_data(what: str, of_study: int | None, of_run: int | None) -> None:
    if of_run is not None and of_run != of_study:
        raise StudyError(f"{of_run} {what}, the study's data have {of_study}")


def _up_to_stop(study: Study, run: PastRun) -> tuple[list[Point], Stop | None]:
    """(the curve up to where the study's rule stops the run, the stop; None if there is none)."""
    points = run.points
    rule = study.spec.stopping or OwnPast(patience=NEVER, loss_patience=NEVER)
    for end in range(1, len(points) + 1):
        stop = rule.judge(points[:end], study.spec.metric)
        if stop:
            return points[:end], stop
    return points, None
