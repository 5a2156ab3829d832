"""Typed settings: dotted names, numbers as people write them, and errors that name the place.

A setting is addressed by its dotted name (`optimizer.lr`) in study files, on the command line and
in reports.
"""

import difflib
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Annotated, Any, ClassVar, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from hpo.errors import SpecError, UnknownFieldError, shortened, shown


def number_in_text(value: Any) -> Any:
    """The number in a text, if it holds one: PyYAML (YAML 1.1) reads `1e-4` as text."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _whole_number(value: Any) -> Any:
    value = number_in_text(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


Real = Annotated[float, BeforeValidator(number_in_text), Field(strict=True, allow_inf_nan=False)]
Whole = Annotated[int, BeforeValidator(_whole_number), Field(strict=True)]
Flag = Annotated[bool, Field(strict=True)]
Fraction = Annotated[Real, Field(ge=0, le=1)]
Positive = Annotated[Real, Field(gt=0)]
NotNegative = Annotated[Real, Field(ge=0)]
Count = Annotated[Whole, Field(ge=1)]


class Settings(BaseModel):
    """A frozen group of settings. Unknown names are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Config(Settings):
    """Every number that shapes one training, each with one default.

    The configuration of a trainer is a subclass whose fields are numbers, flags, names or groups of
    `Settings`. It is frozen; `with_values` makes a changed copy.
    """

    steps: Whole = Field(default=1000, ge=0, description="optimizer updates of a whole training")
    evaluate_every: Count = Field(default=100, description="updates between two evaluations")
    seed: Whole = Field(default=0, ge=0, description="of everything that is drawn at random")

    evaluates_regularly: ClassVar[bool] = True
    """False if the steps of evaluations are not known, so that `evaluate_every` means nothing."""

    def with_values(self, values: Mapping[str, Any], place: str = "") -> Self:
        """A copy with some fields replaced.

        values: dotted name -> value. place: where they come from, for the message.
        Raises SpecError for a name that does not exist or a value that is not allowed.
        """
        tree = self.model_dump()
        for name, value in values.items():
            self.check_name(name, f"{place}{name}")
            *groups, leaf = name.split(".")
            branch = tree
            for group in groups:
                branch = branch[group]
            branch[leaf] = value
        try:
            return type(self).model_validate(tree)
        except ValidationError as error:
            raise SpecError(explain(error, place)) from None
        # A validator that a lab wrote may raise anything.
        except Exception as error:
            raise SpecError(
                f"{place}{type(self).__name__}: its check ended with "
                f"{type(error).__name__}: {shortened(error)}"
            ) from error

    def flat(self) -> dict[str, Any]:
        """Dotted name -> JSON-ready value, every field."""
        return flatten(self.model_dump(mode="json"))

    @classmethod
    @cache
    def names(cls) -> tuple[str, ...]:
        """The dotted names of all fields."""
        return tuple(cls().flat())

    @classmethod
    def check_name(cls, name: str, place: str) -> None:
        """Raises SpecError if there is no such field; the message suggests the most similar one."""
        if name not in cls.names():
            raise UnknownFieldError(unknown(name, cls.names(), place))


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}"""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


MAX_BYTES = 1_000_000
MAX_VALUES = 10_000
MAX_DEPTH = 50
# No float is larger, and no setting needs to be.
MAX_BITS = 1024


def check_size(root: Any, children_of: Callable[[Any], Sequence[Any]], place: str) -> None:
    """Raises SpecError for a tree with more values or more levels than a configuration has.

    Each value counts as often as the tree contains it: a few lines of YAML can repeat one a million
    times. children_of: the values inside a value.
    """
    leaves = 0
    pending = [(root, 0)]
    while pending:
        value, depth = pending.pop()
        if depth > MAX_DEPTH:
            raise SpecError(too_deep(place))
        children = children_of(value)
        if not children:
            leaves += 1
        if isinstance(value, int) and value.bit_length() > MAX_BITS:
            raise SpecError(
                f"{place}: has a whole number of {value.bit_length():,} bits. "
                f"Valid: at most {MAX_BITS}"
            )
        if leaves > MAX_VALUES:
            raise SpecError(
                f"{place}: has more than {MAX_VALUES} values. Give a configuration, not data"
            )
        pending += [(child, depth + 1) for child in children]


def children(value: Any) -> list[Any]:
    """The values inside a group or a list. A single value has none."""
    if isinstance(value, Mapping):
        return list(value.values())
    return list(value) if isinstance(value, list) else []


def too_deep(place: str) -> str:
    """The message for a file that is nested too deeply."""
    return (
        f"{place}: is nested deeper than {MAX_DEPTH} groups. "
        f"Valid: fewer levels, and no alias that contains itself"
    )


def unknown(name: str, valid: tuple[str, ...], place: str) -> str:
    """The message for a name that does not exist."""
    place = shortened(place)
    return f"{place}: there is no {shown(name)}.{guess(name, valid)} Valid: {', '.join(valid)}"


def guess(name: str, valid: Sequence[str]) -> str:
    """The most similar name as a question, with a space before it; empty if none is similar."""
    close = difflib.get_close_matches(name, valid, n=1, cutoff=0.6)
    return f" Did you mean {close[0]}?" if close else ""


def explain(error: ValidationError, place: str = "") -> str:
    """The first fault of a pydantic error as one line: the place, what was given, what is valid."""
    fault = error.errors()[0]
    parts = [str(part) for part in fault["loc"]]
    # pydantic names the validators of a field in its location.
    name = ".".join(part for part in parts if not part.startswith("function-"))
    message = fault["msg"].removeprefix("Value error, ")
    line = shortened(f"{place}{name}".rstrip("."))
    line += f": {message[:1].lower()}{message[1:]}"
    given = fault["input"]
    if not isinstance(given, (dict, BaseModel)):
        line += f" (given: {shown(given)})"
    others = error.error_count() - 1
    if others:
        line += f" (and {others} more)"
    return line
