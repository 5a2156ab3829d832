"""How far an optimizer step goes, as a feature for the search's model of the space."""

from collections.abc import Mapping
from typing import Any

from hpo.trainer import Feature

# About the root of Adam's second moment in this decoder: an eps far below it has no effect.
GRADIENT = 3e-3
# Scale: the step sizes of a wide space span this many e-folds, or twice as many.
DECADES = 5.0


def _step_size(values: Mapping[str, Any]) -> Any:
    """Logarithm of the step size, which lr sets together with eps or momentum.

    With this feature a model ranks configurations far from those it has seen much better
    (benchmarks/search/simulate.py).
    """
    import numpy as np

    is_sgd = values["optimizer.name"] == "sgd"
    momentum = values["optimizer.momentum"].astype(float)
    eps = values["optimizer.eps"].astype(float)
    divisor = np.where(is_sgd, 1 - momentum, eps + GRADIENT)
    return np.log(values["optimizer.lr"].astype(float) / divisor) / DECADES


STEP_SIZE = Feature(
    fields=("optimizer.name", "optimizer.lr", "optimizer.eps", "optimizer.momentum"),
    compute=_step_size,
)
