"""A training script as a trainer: what a study file says of it, as the search asks for it."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hpo.script import data
from hpo.script.code import code_state
from hpo.script.config import ScriptConfig, config_of
from hpo.script.data import ScriptData
from hpo.script.rendering import Rendered, render
from hpo.script.section import CompleteScript, resolve
from hpo.trainer import DataRequest, Site, Trainer, TrainerMaker

# Over the grace of a script: until the last of its processes is gone, and its checkpoints are copied.
ENDING_SECONDS = 60.0


def _steps(config: ScriptConfig) -> str:
    return f"{config.steps:,} steps"


def _program(command: Sequence[str]) -> str:
    """What runs, in a word: the first word that may be a script, or the program."""
    scripts = [word for word in command[1:] if re.fullmatch(r"[^-\s]\S*", word)]
    return Path(scripts[0] if scripts else command[0]).name


def make(section: Mapping[str, Any]) -> Trainer:
    """Of a complete section. Raises SpecError."""
    settings = CompleteScript.model_validate(section)
    written_by = {
        field: name
        for name in ("steps", "seed", *settings.writes)
        for field in settings.targets(name)
        if field != name
    }
    config = config_of(
        settings.fields,
        settings.whole_steps,
        settings.base_seed,
        frozenset(settings.any_kind),
        written_by,
    )

    def load_data(request: DataRequest) -> ScriptData:
        return data.load_data(settings, request)

    def start(config: ScriptConfig, dataset: ScriptData, site: Site) -> Any:
        from hpo.script.training import ScriptTraining

        return ScriptTraining(settings, config, dataset, site)

    def state_of_code() -> str:
        return code_state(Path(settings.code)).digest

    def launched(
        config: ScriptConfig, folder: Path, study: str, trial: int, path: str | None
    ) -> Rendered:
        site = Site(folder.parent, folder / "log", study, trial, 1, "cpu")
        return render(settings, config, site, folder, Path(path) if path else None)

    program = _program(settings.command)
    return Trainer(
        config=config,
        load_data=load_data,
        start=start,
        metric=settings.metric,
        free=(),
        code=(
            *("rows.py", "forms.py", "names.py", "steps.py", "row.py"),
            *("numerals.py", "expression.py", "rendering.py", "files.py", "words.py"),
        ),
        bundled="what the script reads itself",
        what=f"the model of {program}",
        summary=lambda config: f"{program}, {_steps(config)}",
        sizes=lambda config: {"steps": _steps(config)},
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
        offers={"script": settings, "launched": launched},
    )


script = TrainerMaker(resolve, make)
