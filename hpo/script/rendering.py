"""What a script gets for one configuration: its files, its words and its environment."""

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

# Variables that tell a script nothing outside of a trial.
OURS = (
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
class Rendered:
    command: tuple[str, ...]
    files: Mapping[str, str]
    """Name in the attempt's folder -> content."""
    environment: Mapping[str, str]
    """What the script's environment has beside the worker's."""
    folder: Path
    """Where the script starts."""

    def shell_line(self) -> str:
        """The command for a person's shell, started where the files are."""
        variables = [
            f"{name}={shlex.quote(value)}"
            for name, value in self.environment.items()
            if not name.startswith(OURS)
        ]
        words = [shlex.quote(word) for word in self.command]
        return f"cd {shlex.quote(str(self.folder))} && mkdir -p {CHECKPOINTS} && env {' '.join([*variables, *words])}"


def render(
    settings: CompleteScript,
    config: ScriptConfig,
    site: Site,
    folder: Path,
    data: Path | None,
    resuming: bool = False,
) -> Rendered:
    """folder: of the attempt. Raises SpecError for values that a file or a command cannot hold."""
    places = _places(settings, config, site, folder, data)
    fixed = {
        name: _filled(value, places, f"fixed.{name}") for name, value in settings.fixed.items()
    }
    values = fixed | fields_of(settings, config)
    base = settings.base() if settings.base_text else None
    tree = base.changed(values) if base else nested(values, CONFIG)
    # For hpo_report.config(): nested as the base is.
    files = {CONFIG: rendered(tree, "json", CONFIG)}
    if settings.config is not None:
        name = file_name(settings.config)
        files[name] = rendered(tree, kind_of(name, settings.base_kind), name)
    command = [fill(word, places, "command") for word in settings.command]
    if settings.flag is not None:
        command += words(settings.flag, _flagged(base, values))
    if resuming:
        command += [fill(word, places, "resume_words") for word in settings.resume_words]
    environment = _environment(settings, config, site, folder, places, resuming)
    return Rendered(tuple(command), files, environment, folder)


def fields_of(settings: CompleteScript, config: ScriptConfig) -> dict[str, Any]:
    """Field of the script -> value of this configuration."""
    return {
        field: value for name, value in config.flat().items() for field in settings.targets(name)
    }


def _flagged(base: Base | None, values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Beside a file that has them all, only the values that are not the base's."""
    if base is None:
        return values
    existing = base.values()
    return {
        name: value
        for name, value in values.items()
        if name not in existing or existing[name] != value
    }


def _places(
    settings: CompleteScript, config: ScriptConfig, site: Site, folder: Path, data: Path | None
) -> dict[str, str]:
    name = CONFIG
    if settings.config is not None:
        name = file_name(settings.config)
    return {
        "here": settings.here,
        "recipes": str(recipes_folder()),
        "code": settings.code,
        "attempt": str(folder),
        "checkpoints": str(folder / CHECKPOINTS),
        "config": str(folder / name),
        "data": str(data) if data else "",
        "trial": str(site.trial),
        "seed": str(config.seed),
        "steps": str(config.steps),
        "study": site.study,
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
    site: Site,
    folder: Path,
    places: Mapping[str, str],
    resuming: bool,
) -> dict[str, str]:
    own = {
        "HPO_CONFIG": str(folder / CONFIG),
        "HPO_METRICS": str(folder / METRICS_FILE),
        "HPO_CHECKPOINTS": str(folder / CHECKPOINTS),
        "HPO_STOP": str(folder / STOP_FILE),
        "HPO_RESUME": "1" if resuming else "",
        "HPO_STUDY": site.study,
        "HPO_TRIAL": str(site.trial),
        "HPO_ATTEMPT": str(site.attempt),
        "HPO_SEED": str(config.seed),
        "HPO_FOLDER": str(folder),
        "CUDA_VISIBLE_DEVICES": site.gpus,
        # A line that waits in a buffer is not seen, and lost if the script is killed.
        "PYTHONUNBUFFERED": "1",
    }
    section = {
        name: fill(text, places, f"environment.{name}")
        for name, text in settings.environment.items()
    }
    return own | section
