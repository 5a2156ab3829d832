"""The `script:` section of a study file: validated and completed with what lies around the file.

A complete section holds everything that a worker on another host needs: the text of the base file,
the fields of the script and the absolute paths.
"""

import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from hpo.errors import SpecError
from hpo.script.code import code_state
from hpo.script.command_check import check_command
from hpo.script.curve_check import check_curve
from hpo.script.fields import ScriptFields
from hpo.script.files import Base, kind_of, parse_base, read_base
from hpo.script.process import END_FILE, KEEPER_FILE, ROWS_FILE, STOP_FILE
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
from hpo.settings import Settings, explain, unknown
from hpo.trainer import SectionOfFile

# The GPUs of one machine.
MOST_GPUS = 64
# Names in an attempt's folder that hpo itself uses.
RESERVED = (
    CHECKPOINTS,
    COMMAND,
    CONFIG,
    METRICS_FILE,
    END_FILE,
    KEEPER_FILE,
    ROWS_FILE,
    STOP_FILE,
)


class CompleteScript(ScriptSettings):
    """A `script:` section with everything that a worker on another host needs."""

    here: str = Field(default="", description="the folder of the study file")
    base_text: str = Field(
        default="", description="the text of the base file; empty without a base file"
    )
    base_kind: str = Field(default="yaml", description="yaml, json or toml")
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
        """The field that takes the number of steps, or None if the script takes none."""
        return self.steps if isinstance(self.steps, str) else None

    def base(self) -> Base:
        """Parse the base file. Raises SpecError."""
        return parse_base(self.base_text or "{}", self.base_kind, "the base of the script")

    def targets(self, name: str) -> list[str]:
        """The fields of the script that take the value of this name of the configuration."""
        if name == "steps":
            return [self.steps_field] if self.steps_field else []
        if name == "seed":
            return list(self.seed)
        return self.writes.get(name, [name])


def resolve(study_file: SectionOfFile) -> dict[str, Any]:
    """Complete a section: JSON-ready values of a CompleteScript.

    Raises SpecError, one line with the place.
    """
    place = f"{study_file.path.name}: script"
    settings = read_section(study_file.section, place)
    folder = study_file.path.parent
    code = _code_path(settings.code, folder, place)
    base = _read_base(settings, code, folder, place)
    fields = ScriptFields(settings, base, study_file, place)
    defaults = fields.defaults()
    whole_steps = fields.whole_number("steps", settings.steps)
    base_seed = fields.whole_number("seed", settings.seed[0]) if settings.seed else 0
    complete = {
        **settings.model_dump(mode="json", by_alias=True),
        "code": str(code),
        "here": str(folder),
        "fixed": fields.fixed,
        "resume": settings.resume or measured_resume(study_file.path, code),
        "base_text": base.text if base else "",
        "base_kind": base.kind if base else "yaml",
        "fields": defaults,
        "writes": fields.writes,
        "any_kind": fields.any_kind,
        "whole_steps": whole_steps,
        "base_seed": base_seed,
    }
    check_command(settings, code, folder, place)
    return complete


def read_section(section: Mapping[str, Any], place: str) -> ScriptSettings:
    """Validate a section on its own, without its code and base file. Raises SpecError."""
    try:
        settings = ScriptSettings.model_validate(section)
    except ValidationError as error:
        raise SpecError(_validation_message(error, place)) from None
    check_curve(settings.curve, place.removesuffix(": script"))
    if settings.flag:
        check_flag(settings.flag, f"{place}.flag")
    if settings.gpus > MOST_GPUS:
        raise SpecError(
            f"{place}.gpus: {settings.gpus}. Valid: 0 to {MOST_GPUS}, the GPUs of one machine"
        )
    _check_file_name(settings.curve.file, f"{place}.curve.file")
    if settings.config is not None:
        _check_file_name(file_name(settings.config), f"{place}.config.file", RESERVED)
    for name in settings.environment:
        if name.startswith("HPO_"):
            raise SpecError(
                f"{place}.environment.{name}: names that begin with HPO_ are reserved. "
                f"Valid: another name"
            )
    _check_regular_expression(settings.diverged, f"{place}.diverged")
    _check_regular_expression(settings.memory, f"{place}.memory")
    return settings


def _check_file_name(name: str, place: str, reserved: Collection[str] = ()) -> None:
    """Raises SpecError for a file outside the attempt's folder, or one that hpo itself writes."""
    path = Path(name)
    if path.is_absolute() or ".." in path.parts:
        raise SpecError(
            f"{place}: {name}: is outside the attempt's folder, so attempts would share it. "
            f"Valid: a path relative to that folder, such as run/{path.name}"
        )
    if path.parts and path.parts[0] in reserved:
        raise SpecError(f"{place}: {name}: hpo writes a file of this name. Valid: another name")


def _check_regular_expression(pattern: str, place: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise SpecError(f"{place}: {pattern!r} is not a regular expression ({error})") from None


def _validation_message(error: ValidationError, place: str) -> str:
    """One line about the first fault; for an unknown key it lists the valid ones."""
    groups: dict[str, type[Settings]] = {
        "config": ConfigFile,
        "flag": FlagSettings,
        "curve": CurveSettings,
        "metric": ScriptMetric,
    }
    for fault in error.errors():
        location = [str(part) for part in fault["loc"]]
        if fault["type"] == "missing":
            return (
                f"{place}: {'.'.join(location)} is missing. "
                f"Valid: a script: with code, command, metric and steps"
            )
        if fault["type"] == "extra_forbidden":
            *parents, key = location
            model = groups.get(parents[0], ScriptSettings) if parents else ScriptSettings
            valid = tuple(field.alias or name for name, field in model.model_fields.items())
            return unknown(key, valid, ".".join([place, *parents]))
    return explain(error, f"{place}.")


def _code_path(code: str, folder: Path, place: str) -> Path:
    path = (folder / Path(code).expanduser()).resolve()
    if not path.exists():
        raise SpecError(f"{place}.code: {code}: there is no such folder or file ({path})")
    return path


def _read_base(settings: ScriptSettings, code: Path, folder: Path, place: str) -> Base | None:
    if settings.config is None:
        return None
    base = None
    if settings.config.origin is not None:
        places = {"code": str(code), "here": str(folder)}
        origin = fill(settings.config.origin, places, f"{place}.config.from")
        base = read_base(folder / origin)
    # Raises SpecError for a name that does not tell the kind of the file.
    kind_of(file_name(settings.config), base.kind if base else "")
    return base


def file_name(config: ConfigFile) -> str:
    """The name of the configuration file in an attempt's folder."""
    return config.file or Path(str(config.origin)).name


def measured_resume(study_file: Path, code: Path) -> str | None:
    """The `resume` that `hpo try` measured for this state of the code, or None."""
    path = try_file(study_file)
    try:
        measured = json.loads(path.read_text(encoding="utf-8"))
        is_current = measured["code"] == code_state(code).digest
        resume = measured["resume"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if not is_current or resume is None:
        return None
    return str(resume)


def try_file(study_file: Path) -> Path:
    """The file in which `hpo try` keeps its result: next to the study file."""
    return study_file.with_suffix(".try.json")
