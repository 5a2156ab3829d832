"""What commands share: options, errors as one line, opening a study, JSON.

Nothing heavy is imported here, so that `hpo --help` is quick.
"""

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hpo.errors import CallerError, HpoError, MachineError, os_error_text

if TYPE_CHECKING:
    from hpo.study.reader import StudyReader
    from hpo.study.study import Study
    from hpo.trainer import Metric


class Commands(click.Group):
    """A group whose commands end with one line on standard error when they raise an HpoError.

    The error gives the exit code. There is no traceback.
    """

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except HpoError as error:
            click.echo(f"hpo: {' '.join(str(error).split())}", err=True)
            ctx.exit(error.exit_code)
        except OSError as error:
            if isinstance(error, BrokenPipeError):
                raise
            click.echo(f"hpo: {os_error_text(error)}", err=True)
            ctx.exit(MachineError.exit_code)


def _warn_of_password(
    ctx: click.Context, parameter: click.Parameter, url: str | None
) -> str | None:
    if url:
        from hpo.store.url import has_password

        if has_password(url):
            click.echo(
                "hpo: warning: other users of this machine can read the password of --database "
                "in `ps`. Set HPO_DATABASE_URL instead, or leave the password out of the URL and "
                "put it into ~/.pgpass",
                err=True,
            )
    return url


def complete_study(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Names for the shell's Tab key. Errors are swallowed: nobody could read them there."""
    with suppress(Exception):
        from hpo.store.database import study_names

        names = study_names(ctx.params.get("database"))
        return [name for name in names if name.startswith(incomplete)]
    return []


database_option = click.option(
    "--database",
    metavar="URL",
    callback=_warn_of_password,
    help="Postgres to use instead of the embedded one (or set HPO_DATABASE_URL).",
)
study_option = click.option(
    "--study",
    required=True,
    metavar="NAME",
    shell_complete=complete_study,
    help="The study's name, as hpo launch gave it.",
)
device_option = click.option(
    "--device",
    metavar="DEVICE",
    help="cpu, cuda or cuda:N. Default: CUDA if there is a GPU, otherwise the CPU.",
)
data_option = click.option(
    "--data",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="A ptDecoder_ctc pickle, a folder with train/*.mat, a Brain-to-Text '25 folder "
    "(SESSION/data_train.hdf5), or the output of hpo data convert.",
)
weights_option = click.option(
    "--weights",
    type=click.Choice(["last", "best"]),
    default="last",
    show_default=True,
    help="Weights from the end of the training, which the PER belongs to, or from the lowest PER "
    "of the curve.",
)
artifacts_option = click.option(
    "--artifacts",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="A folder that all machines of the study share, for checkpoints, weights and logs. "
    "Default: the one the study already uses, otherwise one in HPO_HOME.",
)
code_option = click.option(
    "--allow-different-code",
    is_flag=True,
    help="Join even though the study was made with other code.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
per_gpu_option = click.option(
    "--per-gpu",
    metavar="auto|N",
    help="Workers on each GPU. auto: add workers as long as the total step rate grows by 10 %.",
)


def slurm_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options of SLURM. They reach the command as `cluster`."""
    options = (
        click.option(
            "--slurm",
            is_flag=True,
            help="Submit the workers to SLURM and return. The options below go with it.",
        ),
        click.option("--nodes", type=int, metavar="N", help="Number of nodes. Default: 1."),
        click.option("--gpus-per-node", metavar="[TYPE:]N", help="GPUs of each node. Default: 1."),
        click.option(
            "--partition", metavar="NAME", help="SLURM's partition. Default: the cluster's default."
        ),
        click.option(
            "--time",
            metavar="TIME",
            help="Wall limit as in sbatch, such as 8:00:00. Default: the partition's limit.",
        ),
        click.option("--account", metavar="NAME", help="SLURM's account. Default: yours."),
        click.option(
            "--slurm-option",
            "options",
            multiple=True,
            metavar="K=V",
            help="Another option of sbatch, such as cpus-per-gpu=4.",
        ),
        click.option(
            "--slurm-more",
            "more",
            is_flag=True,
            help="Submit even if jobs of this study are waiting or running.",
        ),
    )
    # Each option puts itself before those that are there, so the last one goes first.
    for option in reversed(options):
        command = option(command)
    return command


def ensure_folder(folder: Path | None) -> Path | None:
    """The folder of --artifacts, made if it does not exist. Raises CallerError."""
    if folder is None:
        return None
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CallerError(f"--artifacts {folder}: cannot be made ({error.strerror})") from None
    return folder


def echo_json(content: Any, metric: "Metric | None" = None) -> None:
    """Print indented JSON. With a metric, its values are given under the metric's name, too."""
    if metric is not None:
        from hpo.trainer import named

        content = named(content, metric)
    click.echo(json.dumps(content, indent=2))


def open_study(study: str, database: str | None) -> "Study":
    """Raises StudyError if there is no such study, before Optuna is imported."""
    read_study(study, database).engine.dispose()
    from hpo.study import study as studies

    return studies.open_study(study, database)


def read_study(study: str, database: str | None) -> "StudyReader":
    """The study for commands that only read. They start much sooner without Optuna."""
    from hpo.study import reader

    return reader.read_study(study, database)
