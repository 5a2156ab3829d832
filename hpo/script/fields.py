"""Which parameter of a study file writes which field of its script, with the values of the base."""

from collections.abc import Collection
from typing import Any

from hpo.errors import SpecError
from hpo.script.config import OWN, exponent_number
from hpo.script.files import Base
from hpo.script.settings import ScriptSettings
from hpo.settings import guess
from hpo.trainer import SectionOfFile

# Postgres stores steps in four bytes.
MOST_STEPS = 2**31 - 1
# Field names that a message lists at most.
SHOWN_FIELDS = 40


class ScriptFields:
    """The fields of a script and the parameters that write them.

    fixed: field -> value for every trial. writes: parameter -> its fields, where the study file
    lists them. any_kind: the parameters with choices. Raises SpecError for a field that does not
    exist, or that is written twice.
    """

    def __init__(
        self,
        settings: ScriptSettings,
        base: Base | None,
        study_file: SectionOfFile,
        place: str,
    ):
        """base: None without a base file. place: the section, for messages."""
        self._settings = settings
        self._base = base
        self._study_file = study_file
        self._parameters = study_file.parameters
        self._place = place
        self._base_values = base.values() if base else {}
        self.writes = {
            name: list(parameter.writes)
            for name, parameter in self._parameters.items()
            if parameter.writes is not None
        }
        self.any_kind = [
            name for name, parameter in self._parameters.items() if parameter.choices is not None
        ]
        self._check_fixed()
        self._check_written_once()
        self.fixed = {
            field: self._as_number_if_base_has_one(field, value)
            for field, value in settings.fixed.items()
        }

    def whole_number(self, name: str, number_or_field: str | int) -> int:
        """The value of `steps` or `seed` in the base.

        number_or_field: as the section gives it. A field has its value in the base.
        """
        if isinstance(number_or_field, int):
            return self._checked_whole(name, number_or_field)
        field = number_or_field
        base_of_study = self._study_file.base
        value = self._base_values.get(field)
        if name in base_of_study:
            value = base_of_study[name]
        elif field in base_of_study:
            value = base_of_study[field]
        if name == "seed" and value is None:
            return 0
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            fault = f"the base has {value!r} for it"
            if value is None:
                fault = "the base has no value for it"
            raise SpecError(
                f"{self._place}.{name}: {field}: {fault}. "
                f"Valid: a whole number, which `base: {{{name}: N}}` gives too"
            )
        return self._checked_whole(name, value)

    def defaults(self) -> dict[str, Any]:
        """Field or parameter -> its value in the base: all that a configuration may change."""
        taken = self._fields_written_by_others()
        values = self._base_values if self._base else self._study_file.base
        defaults = {
            name: value for name, value in values.items() if not _is_taken_or_inside(name, taken)
        }
        for name, parameter in self._parameters.items():
            if name not in OWN:
                defaults[name] = self._default(name, parameter)
        return defaults

    # ---- checks

    def _check_fixed(self) -> None:
        for field in self._settings.fixed:
            if not field.startswith("+"):
                self._check_exists(field, f"{self._place}.fixed")

    def _check_exists(self, field: str, place: str) -> None:
        # Without a base file, nobody knows the fields of the script.
        if self._base is None or field in self._base.paths or field in self._base_values:
            return
        assert self._settings.config is not None
        names = tuple(self._base_values)
        shown = ", ".join(names[:SHOWN_FIELDS])
        if len(names) > SHOWN_FIELDS:
            shown += ", ..."
        raise SpecError(
            f"{place}: {self._settings.config.origin} has no {field!r}.{guess(field, names)} "
            f"It has: {shown}"
        )

    def _check_written_once(self) -> None:
        """Every parameter writes fields that exist, and no field is written twice."""
        writers = {field.lstrip("+"): "fixed" for field in self._settings.fixed}
        own_fields = [("seed", field) for field in self._settings.seed]
        if isinstance(self._settings.steps, str):
            own_fields.insert(0, ("steps", self._settings.steps))
        for name, field in own_fields:
            self._check_exists(field, f"{self._place}.{name}")
            self._claim(writers, field, name)
        for name in self._parameters:
            if name in OWN:
                self._check_own_parameter(name)
                continue
            for field in self.writes.get(name, [name]):
                self._check_exists(field, self._parameter_place(name))
                self._claim(writers, field, f"parameters.{name}")

    def _claim(self, writers: dict[str, str], field: str, writer: str) -> None:
        if field in writers:
            raise SpecError(
                f"{self._place}: the field {field} is written by {writers[field]} and by {writer}. "
                f"Valid: by one of them"
            )
        writers[field] = writer

    def _check_own_parameter(self, name: str) -> None:
        """Check that a search over `steps` or `seed` reaches the script.

        The base must have no other field of that name either.
        """
        field: str | int | None = self._settings.steps
        if name == "seed":
            field = next(iter(self._settings.seed), None)
        place = self._parameter_place(name)
        if not isinstance(field, str):
            raise SpecError(
                f"{place}: no field of the script takes it. "
                f"Valid: {self._place}.{name} names the field"
            )
        if name in self._base_values and name != field:
            raise SpecError(
                f"{place}: the base has a field {name}, and {self._place}.{name} is {field}. "
                f"Valid: a parameter of another name with `writes: [{name}]`"
            )

    def _checked_whole(self, name: str, value: int) -> int:
        if not 0 <= value <= MOST_STEPS:
            raise SpecError(
                f"{self._place}.{name}: {value}. Valid: a whole number from 0 to {MOST_STEPS}"
            )
        return value

    # ---- values

    def _as_number_if_base_has_one(self, field: str, value: Any) -> Any:
        """PyYAML reads 1e-6 as text; it is a number where the base has a number."""
        if isinstance(self._base_values.get(field), (int, float)):
            return exponent_number(value)
        return value

    def _fields_written_by_others(self) -> set[str]:
        """Fields that are not set under their own name."""
        taken = {*OWN, *self._settings.seed}
        taken |= {field.lstrip("+") for field in self._settings.fixed}
        if isinstance(self._settings.steps, str):
            taken.add(self._settings.steps)
        for name, targets in self.writes.items():
            taken |= set(targets) - {name}
        return taken

    def _default(self, name: str, parameter: Any) -> Any:
        """The value of a parameter in the base: a number if the parameter has a range."""
        value = self._base_value(name)
        if parameter.choices is not None:
            return value
        value = exponent_number(value)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise SpecError(
                f"{self._parameter_place(name)}: has a range, but its field is {value!r} in the "
                f"base. Valid: choices, or a number for it under `base:`"
            )
        has_whole_ends = float(parameter.low).is_integer() and float(parameter.high).is_integer()
        if isinstance(value, int) and not has_whole_ends:
            return float(value)
        return value

    def _base_value(self, name: str) -> Any:
        """From `base:` of the study file, the base file, or the first start that has it."""
        base_of_study = self._study_file.base
        if name in base_of_study:
            return base_of_study[name]
        field = self.writes.get(name, [name])[0]
        if field in self._base_values:
            return self._base_values[field]
        for start in self._study_file.starts.values():
            if name in start:
                return start[name]
        raise SpecError(
            f"{self._parameter_place(name)}: has no default value. "
            f"Valid: `base: {{{name}: VALUE}}`, or a start that has it"
        )

    def _parameter_place(self, name: str) -> str:
        return f"{self._study_file.path.name}: parameters.{name}"


def _is_taken_or_inside(name: str, taken: Collection[str]) -> bool:
    """Whether a name is one of these, or lies within one that is a group."""
    return name in taken or any(name.startswith(f"{group}.") for group in taken)
