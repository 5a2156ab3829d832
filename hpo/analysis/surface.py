"""What an outcome depends on: one parameter, two that interact, and the surface over two.

Tests are of quadratic response surfaces in one or two parameters, whatever the others are. They see what bends one way
over a range; other shapes are seen on the heat map, which a Gaussian process draws. A random forest's functional ANOVA
gave a simulated interaction of lr and eps 3 % of the variance with 40 trials, where its true share is 40 %.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import f as f_distribution
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

from hpo.space.parameter import Parameter

STEPS = 12  # of a heat map's axis
MIN_FREEDOM = 4  # residual degrees of freedom of a test
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Axis:
    """A parameter as numbers: a range from -1 to 1 (log scale if the space has it so), a choice as its place in `levels`."""

    parameter: Parameter
    whole: bool  # whole numbers only
    levels: tuple[Any, ...]  # choices that trials have; empty for a range

    @classmethod
    def of(cls, parameter: Parameter, values: Sequence[Any]) -> "Axis":
        whole = all(isinstance(value, int) for value in values)
        return cls(
            parameter,
            whole,
            tuple(choice for choice in parameter.choices or () if choice in values),
        )

    def linear(self, values: Sequence[Any]) -> Array:
        """A column for a range; for choices one for each level but the first."""
        if self.levels:
            return np.array(
                [[value == level for level in self.levels[1:]] for value in values], dtype=float
            )
        low, high, at = (
            np.asarray(part, dtype=float)
            for part in (self.parameter.low, self.parameter.high, values)
        )
        if self.parameter.log:
            low, high, at = np.log(low), np.log(high), np.log(at)
        scaled: Array = 2 * (at - low) / (high - low) - 1
        return scaled[:, None]

    def main(self, values: Sequence[Any]) -> Array:
        """The columns of a main effect: a parabola over a range, a mean for each level."""
        linear = self.linear(values)
        return linear if self.levels else np.column_stack([linear, linear**2])

    def grid(self) -> list[Any]:
        if self.levels:
            return list(self.levels)
        space = np.geomspace if self.parameter.log else np.linspace
        points = space(float(self.parameter.low or 0), float(self.parameter.high or 0), STEPS)
        return (
            sorted({round(point) for point in points})
            if self.whole
            else [float(point) for point in points]
        )


def main_effect(axis: Axis, values: Sequence[Any], outcome: Array) -> tuple[float, float] | None:
    return _added(np.ones((len(outcome), 1)), axis.main(values), outcome)


def interaction(
    x: Axis, y: Axis, x_values: Sequence[Any], y_values: Sequence[Any], outcome: Array
) -> tuple[float, float] | None:
    """What the products of the two add to their main effects."""
    without = np.column_stack([np.ones(len(outcome)), x.main(x_values), y.main(y_values)])
    products = x.linear(x_values)[:, :, None] * y.linear(y_values)[:, None, :]
    return _added(without, products.reshape(len(outcome), -1), outcome)


def _added(without: Array, columns: Array, outcome: Array) -> tuple[float, float] | None:
    """(share of the outcome's variance that `columns` explain beyond `without`, p that they explain nothing); None: too few trials.

    p is the larger of two: the F-test's, which takes all trials for equally noisy, and that of a Wald test with the covariance HC3
    of MacKinnon and White (1985), which does not. Diverging trials are noisier, and there the F-test claims too often;
    a level with two or three like trials looks free of noise to HC3.
    """
    base = _basis(without)
    added = _basis(columns - base @ (base.T @ columns))
    freedom = len(outcome) - base.shape[1] - added.shape[1]
    if freedom < MIN_FREEDOM or not added.shape[1]:
        return None
    effect = added.T @ outcome
    leverage = (base**2).sum(axis=1) + (added**2).sum(axis=1)
    residual = outcome - base @ (base.T @ outcome) - added @ effect
    noise = (added * (residual / np.clip(1 - leverage, 1e-6, 1))[:, None]).T
    gained = float((effect**2).sum())
    alike = gained / max(float((residual**2).sum()) / freedom, 1e-30)
    unlike = float(effect @ np.linalg.pinv(noise @ noise.T, hermitian=True) @ effect)
    share = gained / float(((outcome - outcome.mean()) ** 2).sum())
    return share, float(f_distribution.sf(min(alike, unlike) / len(effect), len(effect), freedom))


def _basis(columns: Array) -> Array:
    """Orthonormal columns of the same span; those that are lost in rounding are left out."""
    vectors, sizes, _ = np.linalg.svd(columns, full_matrices=False)
    return vectors[:, sizes > 1e-9 * max(1.0, sizes.max(initial=0))]


def surface(
    x: Axis,
    y: Axis,
    x_values: Sequence[Any],
    y_values: Sequence[Any],
    outcome: Array,
    bounded: bool = True,
) -> list[list[float]]:
    """The mean outcome over the grid of both, a row for each value of y: a Gaussian process with noise, in these two alone.

    Where no trial is near it returns to the mean of all. bounded: kept within 0 and 1, else within the outcomes.
    """
    points = np.column_stack([x.linear(x_values), y.linear(y_values)])
    scales = np.ones(points.shape[1])
    kernel = ConstantKernel(1.0, (0.05, 20)) * Matern(scales, (0.3, 20), nu=2.5) + WhiteKernel(
        0.2, (1e-3, 2)
    )
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", ConvergenceWarning
        )  # a scale at its bound says only that the parameter does not matter
        process = GaussianProcessRegressor(kernel, normalize_y=True).fit(points, outcome)
    columns, rows = x.grid(), y.grid()
    grid = np.column_stack(
        [
            np.tile(x.linear(columns), (len(rows), 1)),
            np.repeat(y.linear(rows), len(columns), axis=0),
        ]
    )
    low, high = (0, 1) if bounded else (outcome.min(), outcome.max())
    table = process.predict(grid).clip(low, high).reshape(len(rows), len(columns))
    return [[float(value) for value in row] for row in table]
