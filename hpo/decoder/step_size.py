"""How far a step of the optimizer goes, as a feature for the model that a search has of the space."""

from collections.abc import Mapping
from typing import Any

from hpo.trainer import Feature

# About the root of Adam's second moment in this decoder: an eps far below it changes nothing.
GRADIENT = 3e-3
# Step sizes of a wide space lie so many e-folds apart, or twice that.
DECADES = 5.0


def _step_size(values: Mapping[str, Any]) -> Any:
    """Logarithm of how far a step goes, which lr makes together with eps or momentum.

    With it a model ranks trainings that it has not seen much better (benchmarks/search/simulate.py).
    """
    import numpy as np

    is_sgd = values["optimizer.name"] == "sgd"
    momentum, eps = (
        values["optimizer.momentum"].astype(float),
        values["optimizer.eps"].astype(float),
    )
    divided = np.where(is_sgd, 1 - momentum, eps + GRADIENT)
    return np.log(values["optimizer.lr"].astype(float) / divided) / DECADES


STEP_SIZE = Feature(
    fields=("optimizer.name", "optimizer.lr", "optimizer.eps", "optimizer.momentum"),
    compute=_step_size,
)
