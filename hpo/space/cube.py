"""A search space as the unit cube, in which Sobol points and models can handle any parameter.

Each parameter is one dimension. A parameter that does not exist with the values of the others has a
coordinate nevertheless, which is ignored.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpo.space.parameter import Parameter
from hpo.space.spec import StudySpec

Array = NDArray[np.float64]
# The coordinate of a parameter that does not exist.
MIDDLE = 0.5
# The value of a one-hot column. It puts two choices as far apart (0.7 x sqrt 2) as the ends of a
# range.
APART = 0.7


class Cube:
    """Configurations as points of the unit cube, and points as features for a model.

    points_NP: coordinates in [0, 1], one column per parameter.
    features_NF: one column per parameter, or one per choice where there are three or more; the
    trainer's own feature comes last, if it has one.
    """

    def __init__(self, spec: StudySpec):
        self.spec = spec
        self.names = list(spec.parameters)
        self._parameters = list(spec.parameters.values())
        self._base = spec.base
        self._feature = spec.load_trainer().feature
        self._whole = [_is_whole_number(spec.base[name]) for name in self.names]
        self.ranges_P: NDArray[np.bool_] = np.array(
            [parameter.choices is None for parameter in self._parameters]
        )

    def point(self, values: Mapping[str, Any]) -> Array:
        """The point of a configuration.

        A choice lies in the middle of its share of the dimension. A value outside its range is
        moved to the nearest end; a parameter that is missing in `values` lies in the middle.
        """
        point_P = np.full(len(self.names), MIDDLE)
        for index, (name, parameter) in enumerate(zip(self.names, self._parameters, strict=True)):
            if name in values:
                point_P[index] = _coordinate(parameter, values[name])
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
        """features_NF of these points."""
        exists_NP = self._exist(points_NP)
        columns: list[NDArray[Any]] = []
        for index, parameter in enumerate(self._parameters):
            exists_N = exists_NP[:, index]
            share_N = points_NP[:, index]
            if parameter.choices is None:
                columns.append(np.where(exists_N, share_N, MIDDLE))
                continue
            count = len(parameter.choices)
            chosen_N = _chosen(share_N, count)
            if count == 2:
                columns.append(np.where(exists_N, chosen_N, MIDDLE))
                continue
            for choice in range(count):
                columns.append(APART * (exists_N & (chosen_N == choice)))
        if self._feature is not None:
            fields = {name: self._field(points_NP, name) for name in self._feature.fields}
            columns.append(self._feature.compute(fields))
        return np.stack(columns, axis=1).astype(np.float64)

    def _field(self, points_NP: Array, name: str) -> NDArray[Any]:
        """The value of a field at each point, searched or not."""
        if name not in self.names:
            return np.full(len(points_NP), self._base[name])
        parameter = self.spec.parameters[name]
        share_N = points_NP[:, self.names.index(name)]
        if parameter.choices is not None:
            return np.array(parameter.choices)[_chosen(share_N, len(parameter.choices))]
        low, high = _scaled_ends(parameter)
        scaled_N = low + share_N * (high - low)
        return np.exp(scaled_N) if parameter.log else scaled_N

    def _exist(self, points_NP: Array) -> NDArray[np.bool_]:
        """Which parameters exist at each point, as exists_NP."""
        exists_NP = np.ones(points_NP.shape, dtype=bool)
        for index, parameter in enumerate(self._parameters):
            for parent, allowed in parameter.when.items():
                column = self.names.index(parent)
                choices = self._parameters[column].choices
                assert choices is not None
                allowed_indices = [choices.index(value) for value in allowed]
                chosen_N = _chosen(points_NP[:, column], len(choices))
                is_allowed_N = np.isin(chosen_N, allowed_indices)
                exists_NP[:, index] &= exists_NP[:, column] & is_allowed_N
        return exists_NP


def _is_whole_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _scaled_ends(parameter: Parameter) -> tuple[float, float]:
    """The ends of a range on its scale: their logarithms on a logarithmic one."""
    low, high = parameter.ends
    if parameter.log:
        return math.log(low), math.log(high)
    return low, high


def _chosen(share_N: Array, count: int) -> NDArray[np.int64]:
    """The index of the choice at each coordinate, of `count` choices with equal shares."""
    return np.minimum((share_N * count).astype(np.int64), count - 1)


def _coordinate(parameter: Parameter, value: Any) -> float:
    if parameter.choices is not None:
        return (parameter.choices.index(value) + 0.5) / len(parameter.choices)
    low, high = _scaled_ends(parameter)
    scaled = math.log(value) if parameter.log else value
    return min(max((scaled - low) / (high - low), 0.0), 1.0)


def _value(parameter: Parameter, share: float, whole: bool) -> Any:
    """The value at a coordinate.

    whole: the field takes whole numbers; on a linear scale each has the same share.
    """
    if parameter.choices is not None:
        count = len(parameter.choices)
        return parameter.choices[min(int(share * count), count - 1)]
    low, high = _scaled_ends(parameter)
    if whole and not parameter.log:
        return min(int(low + share * (high + 1 - low)), int(high))
    scaled = low + share * (high - low)
    unscaled = math.exp(scaled) if parameter.log else scaled
    lowest, highest = parameter.ends
    value = min(max(unscaled, lowest), highest)
    return round(value) if whole else value
