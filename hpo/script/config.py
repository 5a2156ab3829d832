"""The configuration of a script's training: `steps`, `seed` and its fields by dotted names."""

import json
import re
from collections.abc import Mapping
from functools import cache
from typing import Any, ClassVar, Self

from pydantic import Field, create_model

from hpo.errors import SpecError
from hpo.settings import Config, Whole, number_in_text

OWN = ("steps", "seed")
EXPONENT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")


class ScriptConfig(Config):
    """Each study has a subclass whose default of `values` is the base.

    any_kind: fields that take any value, because the study file lists their choices. written_by:
    a field of the script -> the parameter that writes it.
    """

    values: dict[str, Any] = {}

    evaluates_regularly: ClassVar[bool] = False
    any_kind: ClassVar[frozenset[str]] = frozenset()
    written_by: ClassVar[Mapping[str, str]] = {}

    def with_values(self, values: Mapping[str, Any], place: str = "") -> Self:
        """A copy with some fields replaced.

        values: dotted name -> value; names of the script's fields of steps and seed are accepted
        too. Raises SpecError for an unknown name, or for a value of another kind than the base's.
        """
        changed = dict(self.values)
        own: dict[str, Any] = {name: getattr(self, name) for name in OWN}
        for given_name, value in values.items():
            name = self._own_name(given_name)
            self.check_name(name, f"{place}{name}")
            if name in OWN:
                own[name] = _whole(value, f"{place}{name}")
                if own[name] < 0:
                    raise SpecError(f"{place}{name}: {value!r}. Valid: a whole number from 0")
            else:
                changed[name] = self._of_kind_of_base(name, value, place)
        return type(self)(values=changed, **own)

    def _own_name(self, name: str) -> str:
        """`steps` for `epochs` if the study file says `script: steps: epochs`; else the name."""
        writer = self.written_by.get(name, "")
        if writer in OWN and name not in self.values:
            return writer
        return name

    def flat(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in OWN} | self.values

    @classmethod
    @cache
    def names(cls) -> tuple[str, ...]:
        return (*OWN, *cls().values)

    @classmethod
    def check_name(cls, name: str, place: str) -> None:
        if name in cls.written_by and name not in cls.names():
            writer = cls.written_by[name]
            raise SpecError(f"{place}: is written by {writer}. Give {writer} instead")
        super().check_name(name, place)

    def _of_kind_of_base(self, name: str, value: Any, place: str) -> Any:
        """The value in the kind of its default: whole number, number, flag, text or list.

        Raises SpecError for a value of another kind.
        """
        default = type(self).model_fields["values"].default[name]
        value = _plain(value, f"{place}{name}")
        if name in self.any_kind or default is None or _is_reference(default):
            return exponent_number(value) if isinstance(default, (int, float)) else value
        kind = "number" if _is_number(default) else _kind(default)
        fault = f"{place}{name}: {value!r}. Valid: a {kind}, as in the base ({default!r})"
        if not _is_number(default):
            if type(value) is not type(default):
                raise SpecError(fault)
            return value
        number = number_in_text(value)
        if not _is_number(number):
            raise SpecError(fault)
        if isinstance(default, float):
            return float(number)
        return _whole(number, f"{place}{name}")


def config_of(
    fields: Mapping[str, Any],
    steps: int,
    seed: int,
    any_kind: frozenset[str],
    written_by: Mapping[str, str],
) -> type[ScriptConfig]:
    """A subclass of ScriptConfig whose defaults are the base. fields: name -> value."""
    config = create_model(
        "ScriptConfig",
        __base__=ScriptConfig,
        values=(dict[str, Any], dict(fields)),
        steps=(Whole, Field(default=steps, ge=0)),
        seed=(Whole, Field(default=seed, ge=0)),
    )
    config.any_kind = any_kind
    config.written_by = dict(written_by)
    return config


def exponent_number(value: Any) -> Any:
    """The number in a text such as 1e-6, which PyYAML reads as text because it has no dot.

    Other text stays text, because somebody put it in quotes.
    """
    if isinstance(value, str) and EXPONENT.fullmatch(value):
        return float(value)
    return value


def _plain(value: Any, place: str) -> Any:
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError):
        raise SpecError(
            f"{place}: {value!r}. Valid: a number, true, false, null, text or a list of them"
        ) from None


def _is_reference(value: Any) -> bool:
    """Whether a value is `${other.field}` of OmegaConf, so that its field may be of any kind."""
    return isinstance(value, str) and "${" in value


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _whole(value: Any, place: str) -> int:
    number = number_in_text(value)
    if not _is_number(number) or number != int(number):
        raise SpecError(f"{place}: {value!r}. Valid: a whole number")
    return int(number)


def _kind(value: Any) -> str:
    names: dict[type, str] = {
        bool: "flag (true or false)",
        str: "text",
        list: "list",
        dict: "group",
    }
    return names.get(type(value), type(value).__name__)
