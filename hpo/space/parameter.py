"""One parameter of a search space: a range or a list of choices, and when it exists."""

import math
from collections.abc import Sequence
from typing import Any, Self

from pydantic import Field, model_validator

from hpo.errors import shown
from hpo.settings import Flag, Real, Settings


class Parameter(Settings):
    """What may vary in one field: a range (`low`, `high`, `log`) or a list (`choices`)."""

    low: Real | None = None
    high: Real | None = None
    log: Flag = False
    choices: list[Any] | None = None
    when: dict[str, list[Any]] = Field(
        default={},
        description="an earlier parameter -> those of its choices for which this one exists",
    )
    writes: list[str] | None = Field(
        default=None,
        description="the fields of a script that take the value, by default the one of this name",
    )

    @model_validator(mode="after")
    def _range_or_choices(self) -> Self:
        if self.choices is not None:
            self._check_choices(self.choices)
        else:
            self._check_range()
        return self

    def _check_choices(self, choices: Sequence[Any]) -> None:
        if self.low is not None or self.high is not None or self.log:
            raise ValueError(
                "has choices and a range. Valid: {choices: [...]} or {low: .., high: .., log: true}"
            )
        if len(choices) < 2:
            raise ValueError(
                f"needs 2 choices or more, has {shown(choices)}. To fix a value, put it into base"
            )

    def _check_range(self) -> None:
        if self.low is None or self.high is None:
            raise ValueError("needs low and high, or choices")
        if self.low >= self.high:
            raise ValueError(f"low {self.low:g} is not below high {self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError(f"low {self.low:g} with log: true. Valid: above 0")

    @property
    def ends(self) -> tuple[float, float]:
        """(low, high) of a range. A list of choices has no ends."""
        assert self.low is not None and self.high is not None
        return self.low, self.high

    @property
    def extremes(self) -> Sequence[Any]:
        """All choices, or both ends of the range."""
        return self.ends if self.choices is None else self.choices

    def contains(self, value: Any) -> bool:
        if self.choices is not None:
            return any(value == choice and type(value) is type(choice) for choice in self.choices)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return False
        low, high = self.ends
        return low <= value <= high

    def halfway(self, value: float) -> float:
        """The middle between a value and the farther end of the range, on the range's scale.

        It is a whole number where the value is one.
        """
        low, high = self.ends
        if self.log:
            farther = low if value * value > low * high else high
            middle = math.sqrt(max(value, low) * farther)
        else:
            farther = low if 2 * value > low + high else high
            middle = (value + farther) / 2
        return round(middle) if isinstance(value, int) else middle

    def covers(self, other: "Parameter") -> bool:
        """Whether this one allows every value of `other`, so that a study may be extended to it."""
        if self.choices is not None or other.choices is not None:
            # Optuna cannot change the choices of a study.
            return self == other
        low, high = self.ends
        other_low, other_high = other.ends
        wide_enough = low <= other_low and other_high <= high
        return wide_enough and self.log == other.log and self.when == other.when

    def __str__(self) -> str:
        if self.choices is not None:
            return str(self.choices)
        scale = " (log)" if self.log else ""
        return f"{self.low:g}..{self.high:g}{scale}"
