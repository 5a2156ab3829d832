"""Reads what earlier versions stored, with the names and values of this version."""

from collections.abc import Mapping, Sequence
from typing import Any

from hpo.curve import Point
from hpo.settings import flatten
from hpo.trainer import DEFAULT_TRAINER, Metric, load_trainer

# Policies of earlier versions, and the policies with which their studies continue.
REMOVED_POLICIES = {"gp-halving": "gp"}
# Fields of a point in the checkpoints of versions that knew one metric only.
OLD_METRICS = ("grad_norm", "lr", "step_seconds")


def upgraded_spec(stored: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a stored spec as StudySpec takes them now.

    Raises SpecError for a field that no longer exists.
    """
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
    """The values of a stored budget as Budget takes them now."""
    return {name: value for name, value in stored.items() if name != "min_gain"}


def made_by_hpo(attributes: Mapping[str, Any]) -> bool:
    """Whether hpo made the study with these attributes, and not another program with Optuna."""
    spec = attributes.get("spec")
    return isinstance(spec, dict) and "parameters" in spec and "unique" in attributes


def metric_of(attributes: Mapping[str, Any]) -> Metric:
    """A study's metric, from its attributes.

    Studies of versions that knew one metric only have the default trainer's.
    """
    stored = attributes.get("metric")
    if not stored:
        return load_trainer(DEFAULT_TRAINER).metric
    return Metric.model_validate(stored)


def upgraded_curve(stored: Sequence[Mapping[str, Any]]) -> list[Point]:
    """The curve that a checkpoint holds."""
    return [_point(point) for point in stored]


def _point(stored: Mapping[str, Any]) -> Point:
    if "metrics" in stored:
        return Point(**stored)
    metrics = {name: stored[name] for name in OLD_METRICS}
    return Point(
        step=int(stored["step"]),
        value=stored["per"],
        loss=stored["loss"],
        validation_loss=stored["validation_loss"],
        metrics=metrics,
    )


def upgrade_notes(spec: Mapping[str, Any], budget: Mapping[str, Any]) -> list[str]:
    """Lines for people: what a stored study loses in this version."""
    lines = []
    if spec.get("policy") in REMOVED_POLICIES:
        lines.append(
            f"policy {spec['policy']} was removed; the study continues with "
            f"{REMOVED_POLICIES[spec['policy']]}, and its parked trials wait to be resumed"
        )
    if budget.get("min_gain") is not None:
        lines.append("min_gain was removed from budgets; the study no longer ends because of it")
    return lines
