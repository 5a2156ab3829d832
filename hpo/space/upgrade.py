"""What an earlier version stored, read with the names and values that this version has."""

from collections.abc import Mapping, Sequence
from typing import Any

from hpo.curve import Point
from hpo.settings import flatten
from hpo.trainer import DEFAULT_TRAINER, Metric, load_trainer

# What an earlier version offered as a policy, and what a study made with it goes on with.
REMOVED_POLICIES = {"gp-halving": "gp"}
# Of a point in a checkpoint of a version that knew one metric.
OLD_METRICS = ("grad_norm", "lr", "step_seconds")


def upgraded_spec(stored: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a stored spec, as StudySpec takes them now. Raises SpecError for a field that is gone."""
    spec = dict(stored)
    if spec.get("policy") in REMOVED_POLICIES:
        spec["policy"] = REMOVED_POLICIES[spec["policy"]]
    spec["budget"] = upgraded_budget(spec["budget"])
    if "trainer" not in spec:
        trainer = load_trainer(DEFAULT_TRAINER)
        spec["trainer"] = DEFAULT_TRAINER
        spec["metric"] = trainer.metric.model_dump()
        spec["base"] = trainer.config().with_values(flatten(spec["base"])).flat()
    return spec


def upgraded_budget(stored: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in stored.items() if name != "min_gain"}


def metric_of(attributes: Mapping[str, Any]) -> Metric:
    """A study's metric, from its attributes. Before there were others it was the default trainer's."""
    stored = attributes.get("metric")
    return Metric.model_validate(stored) if stored else load_trainer(DEFAULT_TRAINER).metric


def upgraded_curve(stored: Sequence[Mapping[str, Any]]) -> list[Point]:
    """The curve in a checkpoint."""
    return [_point(point) for point in stored]


def _point(stored: Mapping[str, Any]) -> Point:
    if "metrics" in stored:
        return Point(**stored)
    metrics = {name: stored[name] for name in OLD_METRICS}
    return Point(
        int(stored["step"]), stored["per"], stored["loss"], stored["validation_loss"], metrics
    )


def what_changed(spec: Mapping[str, Any], budget: Mapping[str, Any]) -> list[str]:
    """What a stored study loses in this version, a line each."""
    lines = []
    if spec.get("policy") in REMOVED_POLICIES:
        lines.append(
            f"policy {spec['policy']} was removed; the study goes on with "
            f"{REMOVED_POLICIES[spec['policy']]}, and trials that were parked wait to be trained on"
        )
    if budget.get("min_gain") is not None:
        lines.append("min_gain was removed from budgets; the study no longer ends because of it")
    return lines
