"""The configuration of a script's training: its fields by their dotted names, beside `steps` and `seed`."""

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
    """A subclass for each study has the values of its base as the default of `values`."""

    values: dict[str, Any] = {}

    evaluates_regularly: ClassVar[bool] = False
    any_kind: ClassVar[frozenset[str]] = frozenset()
    """Fields that take any value, because the study file lists their choices."""
    written_by: ClassVar[Mapping[str, str]] = {}
    """A field of the script -> the name that writes it."""

    def with_values(self, values: Mapping[str, Any], place: str = "") -> Self:
        changed = dict(self.values)
        own: dict[str, Any] = {name: getattr(self, name) for name in OWN}
        for given, value in values.items():
            # `base: {epochs: 20}` means steps, where `script: steps: epochs` says so.
            writer = self.written_by.get(given, "")
            name = writer if writer in OWN and given not in self.values else given
            self.check_name(name, f"{place}{name}")
            if name in OWN:
                own[name] = _whole(value, f"{place}{name}")
                if own[name] < 0:
                    raise SpecError(f"{place}{name}: {value!r}. Valid: a whole number from 0")
            else:
                changed[name] = self._of_its_kind(name, value, place)
        return type(self)(values=changed, **own)

    def flat(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in OWN} | self.values

    @classmethod
    @cache
    def names(cls) -> tuple[str, ...]:
        return (*OWN, *cls().values)

    @classmethod
    def check_name(cls, name: str, place: str) -> None:
        if name in cls.written_by and name not in cls.names():
            raise SpecError(
                f"{place}: {cls.written_by[name]} writes it. Give {cls.written_by[name]}"
            )
        super().check_name(name, place)

    def _of_its_kind(self, name: str, value: Any, place: str) -> Any:
        """The value as the base has it: a whole number, a number, a flag, text or a list."""
        default = type(self).model_fields["values"].default[name]
        value = _plain(value, f"{place}{name}")
        if name in self.any_kind or default is None or _is_reference(default):
            return exponent_number(value) if isinstance(default, (int, float)) else value
        if isinstance(default, bool) or not isinstance(default, (int, float)):
            if type(value) is type(default):
                return value
            raise SpecError(
                f"{place}{name}: {value!r}. Valid: a {_kind(default)}, as the base has it ({default!r})"
            )
        number = number_in_text(value)
        if isinstance(number, bool) or not isinstance(number, (int, float)):
            raise SpecError(
                f"{place}{name}: {value!r}. Valid: a number, as the base has it ({default!r})"
            )
        return float(number) if isinstance(default, float) else _whole(number, f"{place}{name}")


def config_of(
    fields: Mapping[str, Any],
    steps: int,
    seed: int,
    any_kind: frozenset[str],
    written_by: Mapping[str, str],
) -> type[ScriptConfig]:
    """The configuration's type, whose defaults are the base."""
    made = create_model(
        "ScriptConfig",
        __base__=ScriptConfig,
        values=(dict[str, Any], dict(fields)),
        steps=(Whole, Field(default=steps, ge=0)),
        seed=(Whole, Field(default=seed, ge=0)),
    )
    made.any_kind = any_kind
    made.written_by = dict(written_by)
    return made


def exponent_number(value: Any) -> Any:
    """PyYAML reads 1e-6 as text, because it lacks a dot. Other text stays text: somebody put it in quotes."""
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
    """`${other.field}` of OmegaConf: the field may be of any kind."""
    return isinstance(value, str) and "${" in value


def _whole(value: Any, place: str) -> int:
    number = number_in_text(value)
    is_number = isinstance(number, (int, float)) and not isinstance(number, bool)
    if not is_number or number != int(number):
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
