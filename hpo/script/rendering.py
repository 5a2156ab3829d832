"""Renders a configuration for a script: its files, its command and its environment."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpo.script.config import ScriptConfig
from hpo.script.files import Base, kind_of, nested, rendered
from hpo.script.process import STOP_FILE
from hpo.script.recipes import recipes_folder
from hpo.script.section import CompleteScript, file_name
from hpo.script.settings import CHECKPOINTS, CONFIG, METRICS_FILE
from hpo.script.words import fill, words
from hpo.trainer import Site

# Beginnings of variables that mean nothing outside of a trial.
TRIAL_VARIABLES = (
    "PYTHONUNBUFFERED",
    "HPO_STUDY",
    "HPO_TRIAL",
    "HPO_ATTEMPT",
    "HPO_STOP",
    "HPO_RESUME",
    "HPO_FOLDER",
    "CUDA_VISIBLE_DEVICES",
)


@dataclass(frozen=True)
class Attempt:
    """Where an attempt runs. data: the path of the data, if there is one.

    resuming: the attempt has the checkpoints of an earlier one.
    """

    site: Site
    # In which the script starts, with its files.
    folder: Path
    data: Path | None
    resuming: bool = False


@dataclass(frozen=True)
class Rendered:
    """What a script gets for one configuration."""

    command: tuple[str, ...]
    # Name in the attempt's folder -> content.
    files: Mapping[str, str]
    # Variables in addition to those of the worker.
    environment: Mapping[str, str]
    # In which the script starts.
    folder: Path

    def shell_line(self) -> str:
        """A line for a shell that runs the command in the folder of the files."""
        variables = [
            f"{name}={shlex.quote(value)}"
            for name, value in self.environment.items()
            if not name.startswith(TRIAL_VARIABLES)
        ]
        folder = shlex.quote(str(self.folder))
        command = shlex.join(self.command)
        line = " ".join(["env", *variables, command])
        return f"cd {folder} && mkdir -p {CHECKPOINTS} && {line}"


def render(settings: CompleteScript, config: ScriptConfig, attempt: Attempt) -> Rendered:
    """Raises SpecError for values that a file or a command cannot hold."""
    places = _places(settings, config, attempt)
    fixed = {
        name: _filled(value, places, f"fixed.{name}") for name, value in settings.fixed.items()
    }
    values = fixed | fields_of(settings, config)
    base = settings.base() if settings.base_text else None
    tree = base.changed(values) if base else nested(values, CONFIG)
    # This file is for hpo_report.config(). It is nested as the base is.
    files = {CONFIG: rendered(tree, "json", CONFIG)}
    if settings.config is not None:
        name = file_name(settings.config)
        files[name] = rendered(tree, kind_of(name, settings.base_kind), name)
    command = [fill(word, places, "command") for word in settings.command]
    if settings.flag is not None:
        command += words(settings.flag, _flagged(base, values))
    if attempt.resuming:
        command += [fill(word, places, "resume_words") for word in settings.resume_words]
    environment = _environment(settings, config, attempt, places)
    return Rendered(tuple(command), files, environment, attempt.folder)


def fields_of(settings: CompleteScript, config: ScriptConfig) -> dict[str, Any]:
    """Field of the script -> value of this configuration."""
    values = {}
    for name, value in config.flat().items():
        for field in settings.targets(name):
            values[field] = value
    return values


def _flagged(base: Base | None, values: Mapping[str, Any]) -> Mapping[str, Any]:
    """The values for the command line: those that differ from the base, if the script reads it."""
    if base is None:
        return values
    existing = base.values()
    return {
        name: value
        for name, value in values.items()
        if name not in existing or existing[name] != value
    }


def _places(settings: CompleteScript, config: ScriptConfig, attempt: Attempt) -> dict[str, str]:
    """Placeholder -> what replaces it."""
    name = CONFIG
    if settings.config is not None:
        name = file_name(settings.config)
    return {
        "here": settings.here,
        "recipes": str(recipes_folder()),
        "code": settings.code,
        "attempt": str(attempt.folder),
        "checkpoints": str(attempt.folder / CHECKPOINTS),
        "config": str(attempt.folder / name),
        "data": str(attempt.data) if attempt.data else "",
        "trial": str(attempt.site.trial),
        "seed": str(config.seed),
        "steps": str(config.steps),
        "study": attempt.site.study,
    }


def _filled(value: Any, places: Mapping[str, str], place: str) -> Any:
    if isinstance(value, str):
        return fill(value, places, place)
    if isinstance(value, list):
        return [_filled(item, places, place) for item in value]
    if isinstance(value, dict):
        return {name: _filled(item, places, f"{place}.{name}") for name, item in value.items()}
    return value


def _environment(
    settings: CompleteScript,
    config: ScriptConfig,
    attempt: Attempt,
    places: Mapping[str, str],
) -> dict[str, str]:
    site = attempt.site
    folder = attempt.folder
    own = {
        "HPO_CONFIG": str(folder / CONFIG),
        "HPO_METRICS": str(folder / METRICS_FILE),
        "HPO_CHECKPOINTS": str(folder / CHECKPOINTS),
        "HPO_STOP": str(folder / STOP_FILE),
        "HPO_RESUME": "1" if attempt.resuming else "",
        "HPO_STUDY": site.study,
        "HPO_TRIAL": str(site.trial),
        "HPO_ATTEMPT": str(site.attempt),
        "HPO_SEED": str(config.seed),
        "HPO_FOLDER": str(folder),
        "CUDA_VISIBLE_DEVICES": site.gpus,
        # A buffered line comes late, and is lost if the script is killed.
        "PYTHONUNBUFFERED": "1",
    }
    section = {
        name: fill(text, places, f"environment.{name}")
        for name, text in settings.environment.items()
    }
    return own | section
