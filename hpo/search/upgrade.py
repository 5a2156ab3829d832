"""Studies that an earlier version stored, read with the values that this version has."""

from collections.abc import Mapping
from typing import Any

# What an earlier version offered as a policy, and what a study made with it goes on with.
REMOVED_POLICIES = {"gp-halving": "gp"}


def upgraded_spec(stored: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a stored spec, as StudySpec takes them now."""
    spec = dict(stored)
    spec["policy"] = REMOVED_POLICIES.get(spec["policy"], spec["policy"])
    spec["budget"] = upgraded_budget(spec["budget"])
    return spec


def upgraded_budget(stored: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in stored.items() if name != "min_gain"}


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
