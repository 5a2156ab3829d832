"""What commands share: options, errors as one line, opening a study. Nothing heavy is imported here."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hpo.errors import CallerError, HpoError, MachineError, os_error_text

if TYPE_CHECKING:
    from hpo.study.reader import StudyReader
    from hpo.study.study import Study


class Commands(click.Group):
    """An HpoError ends a command with one line on standard error and its exit code, never with a traceback."""

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
            click.echo("hpo: warning: other users of this machine can read the password of --database in `ps`. Set HPO_DATABASE_URL "
                       "instead, or leave the password out of the URL and put it into ~/.pgpass", err=True)  # fmt: skip
    return url


def complete_study(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """For the shell's Tab key, where nobody can read an error."""
    with suppress(Exception):
        from hpo.store.database import study_names

        return [
            name for name in study_names(ctx.params.get("database")) if name.startswith(incomplete)
        ]
    return []


database_option = click.option("--database", metavar="URL", callback=_warn_of_password,
                               help="Postgres to use instead of the embedded one (or set HPO_DATABASE_URL).")  # fmt: skip
study_option = click.option("--study", required=True, metavar="NAME", shell_complete=complete_study,
                            help="The study's name, as hpo launch gave it.")  # fmt: skip
device_option = click.option(
    "--device",
    metavar="DEVICE",
    help="cpu, cuda or cuda:N. Default: CUDA when there is one, else the CPU.",
)
data_option = click.option("--data", type=click.Path(path_type=Path), metavar="PATH",
                           help="A ptDecoder_ctc pickle, a folder with train/*.mat, a Brain-to-Text '25 folder (SESSION/data_train.hdf5), "
                                "or a store of hpo data convert.")  # fmt: skip
weights_option = click.option("--weights", type=click.Choice(["last", "best"]), default="last", show_default=True,
                              help="At the end of the training (what the PER is of), or at the curve's lowest PER.")  # fmt: skip
artifacts_option = click.option("--artifacts", type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
                                help="A folder that all machines of the study see, for checkpoints, weights and logs. "
                                     "Default: the study's, else under HPO_HOME.")  # fmt: skip
code_option = click.option(
    "--allow-different-code", is_flag=True, help="Join though the study was made with other code."
)
json_option = click.option("--json", "as_json", is_flag=True, help="JSON instead of text.")
per_gpu_option = click.option("--per-gpu", metavar="auto|N",
                              help="Workers on each GPU. auto: more join while the total step rate grows by 10 %.")  # fmt: skip


def slurm_options(command: Callable[..., None]) -> Callable[..., None]:
    """They reach the command as `cluster`."""
    for option in reversed((
        click.option("--slurm", is_flag=True, help="Submit workers to SLURM and return; the options below are for this."),
        click.option("--nodes", type=int, metavar="N", help="How many nodes. Default: 1."),
        click.option("--gpus-per-node", metavar="[TYPE:]N", help="GPUs of each. Default: 1."),
        click.option("--partition", metavar="NAME", help="SLURM's partition. Default: the cluster's."),
        click.option("--time", metavar="TIME", help="Wall limit as in sbatch, such as 8:00:00. Default: the partition's."),
        click.option("--account", metavar="NAME", help="SLURM's account. Default: yours."),
        click.option("--slurm-option", "options", multiple=True, metavar="K=V", help="Another option of sbatch, such as cpus-per-gpu=4."),
        click.option("--slurm-more", "more", is_flag=True, help="Submit also while jobs of this study wait or run."),
    )):  # fmt: skip
        command = option(command)
    return command


def made(folder: Path | None) -> Path | None:
    if folder:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CallerError(f"--artifacts {folder}: cannot be made ({error.strerror})") from None
    return folder


def open_study(study: str, database: str | None) -> "Study":
    # A study that is not there is told before Optuna is imported.
    read_study(study, database).engine.dispose()
    from hpo.study import study as studies

    return studies.open_study(study, database)


def read_study(study: str, database: str | None) -> "StudyReader":
    """For commands that only read: without Optuna they start much sooner."""
    from hpo.study import reader

    return reader.read_study(study, database)
