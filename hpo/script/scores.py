"""The score of a row, checked against what its metric allows."""

import math

from hpo.script.row import Row
from hpo.trainer import Metric, Score, TrainingFailedError

# A bounded metric above this is surely in percent.
SURELY_PERCENT = 20.0
# Relative difference allowed between a value and the value of its items: scripts round.
ROUNDING = 1e-3


def score_of(row: Row, metric: Metric) -> Score | None:
    """The score of the items if the script reports them, else of the single value.

    None without either. Raises TrainingFailedError for a value that the metric cannot have, or
    that contradicts the items.
    """
    items = None
    if row.errors is not None and row.lengths is not None:
        items = Score(row.errors, row.lengths)
    value = row.value
    if value is None and items is not None:
        value = items.value
    if value is None:
        return None
    fault = out_of_bounds(value, metric)
    if fault:
        raise TrainingFailedError(f"{fault}: {row.line!r}")
    if items is None or not math.isfinite(value):
        return Score.of(value)
    if abs(items.value - value) > ROUNDING * max(1.0, abs(value)):
        raise TrainingFailedError(
            f"errors and lengths give {metric.name} {items.value:g}, "
            f"but the value is {value:g}: {row.line!r}"
        )
    return items


def out_of_bounds(value: float, metric: Metric) -> str:
    """Why the metric cannot have this value, or empty.

    A bounded metric may exceed 1 if lower is better: an error rate does early in a training.
    """
    if not metric.bounded:
        return ""
    if value < 0 or (metric.direction == "maximize" and value > 1):
        return f"{metric.name} {value:g} is outside of 0 to 1 (metric: bounded)"
    if value > SURELY_PERCENT:
        return (
            f"{metric.name} {value:g} is not a fraction of 1. "
            f"If it is percent: curve: {{expression: value / 100}}"
        )
    return ""
