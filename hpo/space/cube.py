"""A search space as the unit cube, one dimension a parameter whatever its kind: what Sobol points and models can handle.

A parameter that does not exist with the others' values has a coordinate all the same; nobody looks at it.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpo.space.spec import Parameter, StudySpec

Array = NDArray[np.float64]
MIDDLE = 0.5  # the coordinate of what does not exist
APART = 0.7  # one-hot columns: two choices lie as far from each other (0.7 x sqrt 2) as the ends of a range


class Cube:
    """points_NP: configurations in [0, 1], a column a parameter. features_NF: for a model, choices one by one, and last the
    trainer's own feature if it has one.
    """

    def __init__(self, spec: StudySpec):
        self.spec, self.names = spec, list(spec.parameters)
        self._parameters = list(spec.parameters.values())
        self._base = base = spec.base
        self._feature = spec.load_trainer().feature
        self._whole = [
            isinstance(base[name], int) and not isinstance(base[name], bool) for name in self.names
        ]
        self.ranges_P: NDArray[np.bool_] = np.array(
            [parameter.choices is None for parameter in self._parameters]
        )

    def point(self, values: Mapping[str, Any]) -> Array:
        """The middle of a choice's share; of what is not among `values`, or outside the space, the nearest."""
        point_P = np.full(len(self.names), MIDDLE)
        for index, (name, parameter) in enumerate(zip(self.names, self._parameters, strict=True)):
            if name not in values:
                continue
            if parameter.choices is not None:
                point_P[index] = (parameter.choices.index(values[name]) + 0.5) / len(
                    parameter.choices
                )
            else:
                low, high = _ends(parameter)
                place = math.log(values[name]) if parameter.log else values[name]
                point_P[index] = min(max((place - low) / (high - low), 0.0), 1.0)
        return point_P

    def values(self, point_P: Array) -> dict[str, Any]:
        """The configuration at a point: every parameter that exists there."""
        values: dict[str, Any] = {}
        for name, parameter, share, whole in zip(
            self.names, self._parameters, point_P, self._whole, strict=True
        ):
            if self.spec.active(name, values):
                values[name] = _value(parameter, float(share), whole)
        return values

    def features(self, points_NP: Array) -> Array:
        exists_NP, columns = self._exist(points_NP), []
        for index, parameter in enumerate(self._parameters):
            exists_N, share_N = exists_NP[:, index], points_NP[:, index]
            if parameter.choices is None:
                columns.append(np.where(exists_N, share_N, MIDDLE))
                continue
            chosen_N = _chosen(share_N, len(parameter.choices))
            if len(parameter.choices) == 2:
                columns.append(np.where(exists_N, chosen_N, MIDDLE))
            else:
                columns += [
                    APART * (exists_N & (chosen_N == choice))
                    for choice in range(len(parameter.choices))
                ]
        if self._feature is not None:
            fields = {name: self._of(points_NP, name) for name in self._feature.fields}
            columns.append(self._feature.compute(fields))
        return np.stack(columns, axis=1).astype(np.float64)

    def _of(self, points_NP: Array, name: str) -> NDArray[Any]:
        """The field's value at each point, searched or not."""
        if name not in self.names:
            return np.full(len(points_NP), self._base[name])
        parameter, share_N = self.spec.parameters[name], points_NP[:, self.names.index(name)]
        if parameter.choices is not None:
            return np.array(parameter.choices)[_chosen(share_N, len(parameter.choices))]
        low, high = _ends(parameter)
        place_N = low + share_N * (high - low)
        return np.exp(place_N) if parameter.log else place_N

    def _exist(self, points_NP: Array) -> NDArray[np.bool_]:
        exists_NP = np.ones(points_NP.shape, dtype=bool)
        for index, parameter in enumerate(self._parameters):
            for parent, allowed in parameter.when.items():
                column = self.names.index(parent)
                choices = self._parameters[column].choices
                assert choices is not None
                fitting = [choices.index(value) for value in allowed]
                exists_NP[:, index] &= exists_NP[:, column] & np.isin(
                    _chosen(points_NP[:, column], len(choices)), fitting
                )
        return exists_NP


def _ends(parameter: Parameter) -> tuple[float, float]:
    assert parameter.low is not None and parameter.high is not None
    return (
        (math.log(parameter.low), math.log(parameter.high))
        if parameter.log
        else (parameter.low, parameter.high)
    )


def _chosen(share_N: Array, count: int) -> NDArray[np.int64]:
    return np.minimum((share_N * count).astype(np.int64), count - 1)


def _value(parameter: Parameter, share: float, whole: bool) -> Any:
    """whole: each whole number has the same share."""
    if parameter.choices is not None:
        return parameter.choices[
            min(int(share * len(parameter.choices)), len(parameter.choices) - 1)
        ]
    low, high = _ends(parameter)
    assert parameter.low is not None and parameter.high is not None
    if whole and not parameter.log:
        return min(int(low + share * (high + 1 - low)), int(high))
    place = low + share * (high - low)
    value = min(max(math.exp(place) if parameter.log else place, parameter.low), parameter.high)
    return round(value) if whole else value
