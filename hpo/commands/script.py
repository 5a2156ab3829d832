"""Studies of a training script: try, recipe, script-helper."""

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hpo.commands.shared import data_option, device_option
from hpo.errors import CallerError, SpecError

if TYPE_CHECKING:
    from hpo.script.trying import Tryout, TryResult
    from hpo.space.spec import StudySpec
    from hpo.trainer import Site


@click.command(name="try")
@click.option(
    "--study", "space", required=True, metavar="FILE", help="A study file with a script: section."
)
@click.option(
    "--set", "settings", multiple=True, metavar="FIELD=VALUE", help="Set a field of the base."
)
@data_option
@device_option
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Where to write the findings. Default: FILE.try.json.",
)
def try_(
    space: str, settings: tuple[str, ...], data: Path | None, device: str | None, out: Path | None
) -> None:
    """Run a script in a few short trainings, and report what hpo can rely on.

    Does it start, does hpo find its values, and does it resume where it was interrupted? The
    findings are written next to the study file, where hpo launch looks for them.
    """
    from hpo.script.section import CompleteScript, try_file
    from hpo.script.trying import ScriptToTry, Tryout, write_result
    from hpo.space.load import find_space, load_spec, parse_settings
    from hpo.text import duration
    from hpo.worker.dataset import look_at_data

    path = find_space(space)
    spec = load_spec(path, None, parse_settings(settings))
    if spec.script is None:
        raise SpecError(
            f"{path}: no script: section, and hpo try is for scripts. "
            f"Run hpo launch --study {space}"
        )
    dataset = look_at_data(data, spec)
    click.echo("\n".join(dataset.lines))
    script = CompleteScript.model_validate(spec.script)
    config: Any = spec.config()
    to_try = ScriptToTry(script, config, _loaded(spec, data), _site(path, spec, device))
    findings = _run_alone(Tryout(to_try, spec.alternatives(), click.echo))
    click.echo(
        f"takes      about {duration(findings.seconds)} per training, estimated from the short ones"
    )
    file = out or try_file(path)
    try:
        write_result(file, findings, dataset.facts["script"]["digest"])
    except OSError as error:
        raise CallerError(
            f"{file}: cannot be written ({error.strerror}). "
            f"Put `resume: {findings.resume or 'none'}` into the script: section by hand"
        ) from None
    click.echo(f"wrote {file}: resume {findings.resume or 'not known'}")
    click.echo(f"Next: hpo launch --study {space}")


def _run_alone(tryout: "Tryout") -> "TryResult":
    """Run it under a lock: two at the same time would end each other's scripts."""
    from filelock import FileLock, Timeout

    folder = tryout.site.folder
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / "lock", timeout=0):
            return tryout.run()
    except Timeout:
        raise CallerError(
            f"another hpo try of this study file is running ({folder}). Wait until it ends"
        ) from None


def _loaded(spec: "StudySpec", data: Path | None) -> Any:
    from hpo.worker.dataset import load_dataset

    return load_dataset(spec, data, "cpu")


def _site(path: Path, spec: "StudySpec", device: str | None) -> "Site":
    from hpo.launch.launcher import plan_workers
    from hpo.store.database import home
    from hpo.store.url import secrets_of
    from hpo.trainer import Site
    from hpo.worker.device import choose_device, held_gpus, visible_devices

    first = plan_workers(1, device, None, spec.load_trainer().gpus).devices[0]
    gpus = held_gpus(first, choose_device(first))
    digest = hashlib.sha256(str(path.absolute()).encode()).hexdigest()[:8]
    folder = home() / "tries" / f"{path.stem}-{digest}"
    secrets = secrets_of(os.environ.get("HPO_DATABASE_URL", ""))
    return Site(folder, folder / "log", path.stem, 0, 1, first, visible_devices(gpus), secrets)


@click.command()
@click.argument("name", required=False)
def recipe(name: str | None) -> None:
    """Print a ready study file for a kind of training script; without a name, list them.

    hpo recipe brain-to-text-25 > t15.yaml
    """
    from hpo.script.recipes import recipe_names, recipe_text

    if name:
        click.echo(recipe_text(name), nl=False)
    else:
        click.echo("\n".join(recipe_names()))


@click.command(name="script-helper")
def script_helper() -> None:
    """Print hpo_report.py, a file without dependencies that a script may use to report.

    It runs under Python 3.6 or later:

    hpo script-helper > hpo_report.py
    """
    import hpo.script

    helper = Path(str(hpo.script.__file__)).parent / "hpo_report.py"
    click.echo(helper.read_text(encoding="utf-8"), nl=False)
