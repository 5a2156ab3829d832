"""How many more trials fit into some GPU-hours, judged by what the study's trials have cost."""

from statistics import fmean

from pydantic import BaseModel

from hpo.errors import StudyError
from hpo.space.budget import HOUR
from hpo.study.pick import best_of
from hpo.study.reader import StudyReader
from hpo.study.trial import DONE, Record
from hpo.text import duration
from hpo.trainer import Metric


class Cost(BaseModel, frozen=True):
    """What the trials that ended in one state have cost on average."""

    trials: int
    # Of one trial.
    gpu_seconds: float


class Best(BaseModel, frozen=True):
    """The best trial so far."""

    trial: int
    # Of the metric, on validation.
    value: float


class Plan(BaseModel, frozen=True):
    """The answer of `hpo plan`."""

    study: str
    gpus: int
    hours: float
    gpu_hours: float
    # GPU-seconds of a trial on average, over those that are complete or that a rule stopped.
    trial_seconds: float
    states: dict[str, Cost]
    # From the first step to the last, on average over complete trials.
    training_seconds: float
    # How many more fit.
    trials: int
    best: Best


def build_plan(study: StudyReader, gpus: int, hours: float) -> Plan:
    """Raises StudyError if no trial is complete yet."""
    # How long a trial took that someone stopped says nothing about the others.
    records = [
        record
        for record in study.records()
        if record.step and (record.state == "complete" or record.stopped_by_rule)
    ]
    best = best_of(records, study.spec.metric)
    if best is None or best.value is None:
        raise StudyError(
            f"study {study.name}: no trial is complete, so the cost of one is not known. "
            f"Run hpo launch first"
        )
    trial_seconds = fmean(record.gpu_seconds for record in records)
    complete = [record for record in records if record.state == "complete"]
    return Plan(
        study=study.name,
        gpus=gpus,
        hours=hours,
        gpu_hours=gpus * hours,
        trial_seconds=trial_seconds,
        states=_costs(records),
        training_seconds=fmean(record.seconds for record in complete),
        trials=int(gpus * hours * HOUR / trial_seconds) if trial_seconds else 0,
        best=Best(trial=best.number, value=best.value),
    )


def _costs(records: list[Record]) -> dict[str, Cost]:
    costs: dict[str, Cost] = {}
    for state in DONE:
        spent = [record.gpu_seconds for record in records if record.state == state]
        if spent:
            costs[state] = Cost(trials=len(spent), gpu_seconds=fmean(spent))
    return costs


def plan_text(plan: Plan, metric: Metric) -> str:
    """The plan for a terminal."""
    states = ", ".join(
        f"{cost.trials} {state} {duration(cost.gpu_seconds)}" for state, cost in plan.states.items()
    )
    command = (
        f"hpo budget --study {plan.study} --trials +{plan.trials} --gpu-hours +{plan.gpu_hours:g}"
    )
    lines = [
        f"{plan.gpus} GPUs for {plan.hours:g} hours are {plan.gpu_hours:g} GPU-hours",
        f"a trial   {duration(plan.trial_seconds)} of a GPU on average ({states})",
        f"they fit  about {plan.trials} more: {command}",
        f"so far    best {metric.name} {metric.text(plan.best.value)} (trial {plan.best.trial}), "
        f"on validation",
    ]
    if plan.training_seconds > plan.hours * HOUR:
        lines.append(
            f"note      a whole training takes {duration(plan.training_seconds)}, "
            f"longer than the hours given: none would finish"
        )
    return "\n".join(lines)
