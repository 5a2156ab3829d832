"""The trainer of a study file with a `script:` section."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hpo.script import data
from hpo.script.code import code_state
from hpo.script.config import ScriptConfig, config_of
from hpo.script.data import ScriptData
from hpo.script.rendering import Attempt, Rendered, render
from hpo.script.section import CompleteScript, resolve
from hpo.trainer import DataRequest, Site, Trainer, TrainerMaker

# Beyond the grace of a script: until its last process is gone and its checkpoints are copied.
ENDING_SECONDS = 60.0
# The files of this package that shape results.
CODE_FILES = (
    "rows.py",
    "forms.py",
    "names.py",
    "steps.py",
    "row.py",
    "numerals.py",
    "expression.py",
    "rendering.py",
    "files.py",
    "words.py",
)


def make(section: Mapping[str, Any]) -> Trainer:
    """The trainer of a complete section. Raises SpecError."""
    settings = CompleteScript.model_validate(section)
    config = config_of(
        settings.fields,
        settings.whole_steps,
        settings.base_seed,
        frozenset(settings.any_kind),
        _written_by(settings),
    )
    program = _program(settings.command)

    def load_data(request: DataRequest) -> ScriptData:
        return data.load_data(settings, request)

    def start(config: ScriptConfig, dataset: ScriptData, site: Site) -> Any:
        from hpo.script.training import ScriptTraining

        return ScriptTraining(settings, config, dataset, site)

    def state_of_code() -> str:
        return code_state(Path(settings.code)).digest

    def render_in_folder(
        config: ScriptConfig, folder: Path, study: str, trial: int, data_path: str | None
    ) -> Rendered:
        site = Site(folder.parent, folder / "log", study, trial, 1, "cpu")
        data_of_study = Path(data_path) if data_path else None
        return render(settings, config, Attempt(site, folder, data_of_study))

    def summary(config: ScriptConfig) -> str:
        return f"{program}, {_steps_text(config)}"

    def sizes(config: ScriptConfig) -> dict[str, str]:
        return {"steps": _steps_text(config)}

    return Trainer(
        config=config,
        load_data=load_data,
        start=start,
        metric=settings.metric,
        free=(),
        code=CODE_FILES,
        bundled="what the script reads itself",
        what=f"the model of {program}",
        summary=summary,
        sizes=sizes,
        needs_site=True,
        keeps_files=True,
        partition=settings.partition,
        cuts_validation=False,
        take=settings.curve.take,
        seeded=bool(settings.seed),
        gpus=settings.gpus,
        ending_seconds=settings.grace_seconds + ENDING_SECONDS,
        resume=settings.resume or "not known",
        state_of_code=state_of_code,
        offers={"script": settings, "render_in_folder": render_in_folder},
    )


def _written_by(settings: CompleteScript) -> dict[str, str]:
    """Field of the script -> the name that writes it, where that is another name."""
    writers = {}
    for name in ("steps", "seed", *settings.writes):
        for field in settings.targets(name):
            if field != name:
                writers[field] = name
    return writers


def _steps_text(config: ScriptConfig) -> str:
    return f"{config.steps:,} steps"


def _program(command: Sequence[str]) -> str:
    """The name of what runs: the first word that may be a script, else the program."""
    scripts = [word for word in command[1:] if re.fullmatch(r"[^-\s]\S*", word)]
    return Path(scripts[0] if scripts else command[0]).name


script = TrainerMaker(resolve, make)
