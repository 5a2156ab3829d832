"""The `script:` section of a study file made complete: its base file read, its fields known, its mistakes found."""

import json
import os
import re
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from hpo.errors import SpecError
from hpo.script.code import code_state
from hpo.script.config import OWN, exponent_number
from hpo.script.curve_check import check_curve
from hpo.script.files import Base, kind_of, parse_base, read_base
from hpo.script.process import END_FILE, KEEPER_FILE, ROWS_FILE, STOP_FILE
from hpo.script.recipes import recipes_folder
from hpo.script.settings import (
    CHECKPOINTS,
    COMMAND,
    CONFIG,
    METRICS_FILE,
    ConfigFile,
    CurveSettings,
    FlagSettings,
    ScriptMetric,
    ScriptSettings,
)
from hpo.script.words import check_flag, fill
from hpo.settings import Settings, explain, guess, unknown
from hpo.trainer import SectionOfFile

# What a study file may write in braces: in words of the command, in variables and in text of `fixed`.
PLACES = (
    "here",
    "recipes",
    "code",
    "attempt",
    "checkpoints",
    "config",
    "data",
    "trial",
    "seed",
    "steps",
    "study",
)
MOST_GPUS = 64
# Postgres keeps steps in four bytes.
MOST_STEPS = 2**31 - 1
# In an attempt's folder.
RESERVED = (
    *(CHECKPOINTS, COMMAND, CONFIG, METRICS_FILE),
    *(END_FILE, KEEPER_FILE, ROWS_FILE, STOP_FILE),
)


class CompleteScript(ScriptSettings):
    """The section with all that a worker on another host needs of the lab's files."""

    here: str = ""
    """The folder of the study file."""
    base_text: str = ""
    """Of the base file; empty: there is none."""
    base_kind: str = "yaml"
    fields: dict[str, Any] = Field(
        default={}, description="field or parameter -> its value in the base"
    )
    writes: dict[str, list[str]] = Field(
        default={}, description="parameter -> the fields that take its value"
    )
    any_kind: list[str] = Field(
        default=[], description="parameters with choices, whose values may be of any kind"
    )
    whole_steps: int = Field(default=0, description="the steps of the base")
    base_seed: int = Field(default=0, description="the seed of the base")

    @property
    def steps_field(self) -> str | None:
        return self.steps if isinstance(self.steps, str) else None

    def base(self) -> Base:
        """Raises SpecError."""
        return parse_base(self.base_text or "{}", self.base_kind, "the base of the script")

    def targets(self, name: str) -> list[str]:
        """The fields of the script that take the value of a name of the configuration."""
        if name == "steps":
            return [self.steps_field] if self.steps_field else []
        if name == "seed":
            return list(self.seed)
        return self.writes.get(name, [name])


def resolve(of: SectionOfFile) -> dict[str, Any]:
    """The section as JSON-ready values of a CompleteScript. Raises SpecError, one line with the place."""
    place = f"{of.path.name}: script"
    settings = read_section(of.section, place)
    folder = of.path.parent
    code = _code(settings.code, folder, place)
    base = _base(settings, code, folder, place)
    checked = _Checked(settings, base, of, place)
    complete = {
        **settings.model_dump(mode="json", by_alias=True),
        "code": str(code),
        "here": str(folder),
        "fixed": checked.fixed,
        "resume": settings.resume or measured_resume(of.path, code),
        "base_text": base.text if base else "",
        "base_kind": base.kind if base else "yaml",
        "fields": checked.fields(),
        "writes": checked.writes,
        "any_kind": checked.any_kind,
        "whole_steps": checked.whole("steps", settings.steps),
        "base_seed": checked.whole("seed", settings.seed[0]) if settings.seed else 0,
    }
    _check_command(settings, code, folder, place)
    return complete


def read_section(section: Mapping[str, Any], place: str) -> ScriptSettings:
    """Raises SpecError."""
    try:
        settings = ScriptSettings.model_validate(section)
    except ValidationError as error:
        raise SpecError(_explained(error, place)) from None
    check_curve(settings.curve, place.removesuffix(": script"))
    if settings.flag:
        check_flag(settings.flag, f"{place}.flag")
    if settings.gpus > MOST_GPUS:
        raise SpecError(
            f"{place}.gpus: {settings.gpus}. Valid: 0 to {MOST_GPUS}, the GPUs of one machine"
        )
    _check_inside(settings.curve.file, f"{place}.curve.file")
    if settings.config is not None:
        _check_inside(file_name(settings.config), f"{place}.config.file", RESERVED)
    for name in settings.environment:
        if name.startswith("HPO_"):
            raise SpecError(
                f"{place}.environment.{name}: names that begin with HPO_ are ours. Valid: another name"
            )
    for name in ("diverged", "memory"):
        _check_expression(getattr(settings, name), f"{place}.{name}")
    return settings


def _check_inside(name: str, place: str, reserved: Collection[str] = ()) -> None:
    """Raises SpecError for a file that is not in the attempt's folder, or that is ours."""
    path = Path(name)
    if path.is_absolute() or ".." in path.parts:
        raise SpecError(
            f"{place}: {name}: it is not in the folder of the attempt, so that attempts would share it. Valid: a name "
            f"seen from that folder, such as run/{path.name}"
        )
    if path.parts and path.parts[0] in reserved:
        raise SpecError(f"{place}: {name}: hpo writes a file of this name. Valid: another name")


def _check_expression(pattern: str, place: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise SpecError(f"{place}: {pattern!r} is no regular expression ({error})") from None


def _explained(error: ValidationError, place: str) -> str:
    """As one line; of a name that does not exist, with those that do."""
    groups: dict[str, type[Settings]] = {
        "config": ConfigFile,
        "flag": FlagSettings,
        "curve": CurveSettings,
        "metric": ScriptMetric,
    }
    for fault in error.errors():
        if fault["type"] == "extra_forbidden":
            *above, key = (str(part) for part in fault["loc"])
            model = groups.get(above[0], ScriptSettings) if above else ScriptSettings
            valid = tuple(field.alias or name for name, field in model.model_fields.items())
            return unknown(key, valid, ".".join([place, *above]))
        if fault["type"] == "missing":
            return f"{place}: {'.'.join(map(str, fault['loc']))} is missing. Valid: a script: with code, command, metric and steps"
    return explain(error, f"{place}.")


def _code(code: str, folder: Path, place: str) -> Path:
    path = (folder / Path(code).expanduser()).resolve()
    if not path.exists():
        raise SpecError(f"{place}.code: {code}: there is no such folder or file ({path})")
    return path


def _base(settings: ScriptSettings, code: Path, folder: Path, place: str) -> Base | None:
    if settings.config is None:
        return None
    base = None
    if settings.config.origin is not None:
        origin = fill(
            settings.config.origin, {"code": str(code), "here": str(folder)}, f"{place}.config.from"
        )
        base = read_base(folder / origin)
    # Raises for a name that does not say in which form the file is.
    kind_of(file_name(settings.config), base.kind if base else "")
    return base


def file_name(config: ConfigFile) -> str:
    """Of the configuration file in an attempt's folder."""
    return config.file or Path(str(config.origin)).name


class _Checked:
    """The fields of a script, and which parameter writes which. Raises SpecError."""

    def __init__(self, settings: ScriptSettings, base: Base | None, of: SectionOfFile, place: str):
        self.settings = settings
        self.base = base
        self.of = of
        self.place = place
        self.values = base.values() if base else {}
        self.writes = {
            name: list(parameter.writes)
            for name, parameter in of.parameters.items()
            if parameter.writes is not None
        }
        self.any_kind = [
            name for name, parameter in of.parameters.items() if parameter.choices is not None
        ]
        self._check_fixed()
        self._check_written()
        self.fixed = {field: self._meant(field, value) for field, value in settings.fixed.items()}

    def _meant(self, field: str, value: Any) -> Any:
        """PyYAML reads 1e-6 as text: a number, where the base has one."""
        base = self.values.get(field)
        return exponent_number(value) if isinstance(base, (int, float)) else value

    def known(self, field: str) -> bool:
        """Whether the script has such a field. Without a base file nobody knows."""
        return self.base is None or field in self.base.paths or field in self.values

    def check_field(self, field: str, place: str) -> None:
        if not self.known(field):
            assert self.settings.config is not None
            names = tuple(self.values)
            shown = ", ".join(names[:40]) + (", ..." if len(names) > 40 else "")
            raise SpecError(
                f"{place}: {self.settings.config.origin} has no {field!r}.{guess(field, names)} It has: {shown}"
            )

    def _check_fixed(self) -> None:
        for field in self.settings.fixed:
            if not field.startswith("+"):
                self.check_field(field, f"{self.place}.fixed")

    def _check_written(self) -> None:
        """Every parameter writes fields that exist, and no field is written twice."""
        taken: dict[str, str] = {field.lstrip("+"): "fixed" for field in self.settings.fixed}
        if isinstance(self.settings.steps, str):
            self._take(taken, self.settings.steps, "steps")
        for field in self.settings.seed:
            self._take(taken, field, "seed")
        for name in self.of.parameters:
            if name in OWN:
                self._check_own(name)
                continue
            for field in self.writes.get(name, [name]):
                self.check_field(field, f"{self.of.path.name}: parameters.{name}")
                self._take(taken, field, f"parameters.{name}")

    def _check_own(self, name: str) -> None:
        """`steps` and `seed` may be searched where they reach the script, and no other field has that name."""
        field = {"steps": self.settings.steps, "seed": next(iter(self.settings.seed), None)}[name]
        if not isinstance(field, str):
            raise SpecError(
                f"{self.of.path.name}: parameters.{name}: no field of the script takes it. Valid: {self.place}.{name} names the field"
            )
        if name in self.values and name != field:
            raise SpecError(
                f"{self.of.path.name}: parameters.{name}: the base has a field {name}, and {self.place}.{name} is {field}. "
                f"Valid: a parameter of another name with `writes: [{name}]`"
            )

    def _take(self, taken: dict[str, str], field: str, by: str) -> None:
        if by in OWN:
            self.check_field(field, f"{self.place}.{by}")
        if field in taken:
            raise SpecError(
                f"{self.place}: the field {field} is written by {taken[field]} and by {by}. Valid: by one of them"
            )
        taken[field] = by

    def whole(self, what: str, given: str | int) -> int:
        """Of `steps` or `seed`: the number that is given, or that the base has in the field that is given."""
        if isinstance(given, int):
            return self._checked_whole(what, given)
        value = self.of.base.get(what, self.of.base.get(given, self.values.get(given)))
        if what == "seed" and value is None:
            return 0
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            where = (
                "the base has no value for it"
                if value is None
                else f"the base has {value!r} for it"
            )
            raise SpecError(
                f"{self.place}.{what}: {given}: {where}. Valid: a whole number, which `base: {{{what}: N}}` gives too"
            )
        return self._checked_whole(what, value)

    def _checked_whole(self, what: str, value: int) -> int:
        if not 0 <= value <= MOST_STEPS:
            raise SpecError(
                f"{self.place}.{what}: {value}. Valid: a whole number from 0 to {MOST_STEPS}"
            )
        return value

    def fields(self) -> dict[str, Any]:
        """The script's fields and the parameters that are no fields, with their values in the base."""
        taken = {*OWN, *self.settings.seed, *(field.lstrip("+") for field in self.settings.fixed)}
        if isinstance(self.settings.steps, str):
            taken.add(self.settings.steps)
        for name, targets in self.writes.items():
            taken |= {*targets} - {name}
        values = self.values if self.base else self.of.base
        found = {name: value for name, value in values.items() if not _is_in(name, taken)}
        for name, parameter in self.of.parameters.items():
            if name not in OWN:
                found[name] = self._default(name, parameter)
        return found

    def _default(self, name: str, parameter: Any) -> Any:
        """The value of a parameter in the base, of the kind that its range asks for."""
        field = self.writes.get(name, [name])[0]
        value = self.of.base.get(name, self.values.get(field))
        if name not in self.of.base and field not in self.values:
            given = [start[name] for start in self.of.starts.values() if name in start]
            if not given:
                raise SpecError(
                    f"{self.of.path.name}: parameters.{name}: nothing says which value it has by default. Valid: "
                    f"`base: {{{name}: VALUE}}`, or a start that has it"
                )
            value = given[0]
        if parameter.choices is not None:
            return value
        return self._number(name, exponent_number(value), parameter)

    def _number(self, name: str, value: Any, parameter: Any) -> int | float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise SpecError(
                f"{self.of.path.name}: parameters.{name}: a range for a field that is {value!r} in the base. Valid: choices, or a "
                f"number for it under `base:`"
            )
        ends = (parameter.low, parameter.high)
        if isinstance(value, int) and not all(float(end).is_integer() for end in ends):
            return float(value)
        return value


def _is_in(name: str, taken: Collection[str]) -> bool:
    """Whether a name is one of these, or within one that is a group."""
    return name in taken or any(name.startswith(f"{other}.") for other in taken)


def measured_resume(study_file: Path, code: Path) -> str | None:
    """What `hpo try` has found for this state of the code, if it was run."""
    path = try_file(study_file)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["code"] == code_state(code).digest:
            return None if found["resume"] is None else str(found["resume"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


def try_file(study_file: Path) -> Path:
    """Where `hpo try` writes what it found."""
    return study_file.with_suffix(".try.json")


def _check_command(settings: ScriptSettings, code: Path, folder: Path, place: str) -> None:
    """Raises SpecError for a program that is not here, and for words that mean a file of another folder."""
    known = dict.fromkeys(PLACES, "") | {"here": str(folder), "recipes": str(recipes_folder())}
    for key, texts in (("command", settings.command), ("resume_words", settings.resume_words)):
        for text in texts:
            fill(text, known, f"{place}.{key}")
    for name, text in settings.environment.items():
        fill(text, known, f"{place}.environment.{name}")
    program = fill(settings.command[0], known | {"code": str(code)}, f"{place}.command")
    path = settings.environment.get("PATH")
    if shutil.which(program, path=path) is None:
        raise SpecError(f"{place}.command: {program}: {_why_not(program)}")
    for word in settings.command[1:]:
        looks_like_file = "/" in word or word.endswith((".py", ".sh", ".jl"))
        if looks_like_file and not Path(word).is_absolute() and "{" not in word:
            near = next((where for where in (code, folder) if (where / word).is_file()), None)
            if near is not None:
                raise SpecError(
                    f"{place}.command: {word} is seen from the folder of the attempt, where it is not. Valid: "
                    f"{'{code}/' + word if near == code else near / word}"
                )


def _why_not(program: str) -> str:
    path = Path(program)
    if "/" not in program:
        return "there is no such program on PATH. Valid: a program on PATH, or a whole path"
    if not path.is_absolute():
        return "a program's path is whole, or begins with {code}/"
    if not path.exists():
        return "there is no such file"
    if path.is_dir():
        return "it is a folder"
    return (
        "it is not executable (chmod +x, or name the interpreter first)"
        if not os.access(path, os.X_OK)
        else "it cannot be run"
    )
