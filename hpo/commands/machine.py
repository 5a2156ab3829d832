"""The machine, its data sets and its database: doctor, data, database."""

from pathlib import Path

import click

from hpo.commands.shared import data_option, database_option, echo_json, json_option
from hpo.errors import DatabaseError, MachineError


@click.command()
@click.option(
    "--study", metavar="NAME", help="Also compare code and data with those of this study's workers."
)
@data_option
@click.option(
    "--artifacts",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="The folder that the machines share. Default: $HPO_HOME/studies.",
)
@database_option
@json_option
def doctor(
    study: str | None,
    data: Path | None,
    artifacts: Path | None,
    database: str | None,
    as_json: bool,
) -> None:
    """Check what a worker on this machine needs.

    These are GPUs, database, clock, TLS, folders, and the study's code and data. The exit code is 1
    if something is missing.
    """
    from dataclasses import asdict

    from hpo.launch.doctor import as_text, examine

    findings = examine(study, database, data, artifacts)
    if as_json:
        echo_json([asdict(finding) for finding in findings])
    else:
        click.echo(as_text(findings))
    if any(finding.level == "fail" for finding in findings):
        raise SystemExit(MachineError.exit_code)


@click.group()
def data() -> None:
    """Check data sets, and convert them so that they open quickly."""


@data.command(name="check")
@click.argument("path", type=click.Path(path_type=Path), required=False)
@click.option(
    "--kernel",
    type=click.IntRange(min=1),
    metavar="N",
    help="The decoder's kernel in bins: CTC needs enough outputs for each sentence. Default: 32.",
)
@click.option(
    "--stride",
    type=click.IntRange(min=1),
    metavar="N",
    help="The decoder's stride in bins. Default: 4.",
)
@json_option
def data_check(path: Path | None, kernel: int | None, stride: int | None, as_json: bool) -> None:
    """Describe the data set PATH and what is wrong with it. Without PATH: the bundled recordings.

    The exit code is 2 if a decoder cannot be trained on it.
    """
    from hpo.decoder.config import ModelConfig
    from hpo.decoder.facts import inspect_data
    from hpo.errors import DataError

    settings = {}
    if kernel:
        settings["kernel"] = kernel
    if stride:
        settings["stride"] = stride
    facts = inspect_data(path, ModelConfig.model_validate(settings))
    if as_json:
        echo_json(facts)
    else:
        from rich.console import Console

        from hpo.terminal.data import data_picture

        Console(highlight=False).print(data_picture(facts))
    if facts["fault"]:
        raise DataError(facts["fault"])
    if not as_json:
        option = f" --data {path}" if path else ""
        click.echo(f"\nNext: hpo launch --study lr-aug{option}")


@data.command(name="convert")
@click.argument("source", metavar="SRC", type=click.Path(path_type=Path))
@click.argument("out", metavar="OUT", type=click.Path(path_type=Path))
def data_convert(source: Path, out: Path) -> None:
    """Write the data set SRC as the folder OUT, which opens at once.

    All workers of a machine share one copy of it in memory.
    """
    from hpo.data.formats import open_source
    from hpo.data.store import convert

    try:
        manifest = convert(open_source(source), out)
    except KeyboardInterrupt:
        click.echo(f"Stopped. Nothing was written to {out}", err=True)
        raise SystemExit(130) from None
    for name, part in manifest.partitions.items():
        click.echo(
            f"{name:<12}{part.sentences} sentences, {part.features} features, "
            f"fingerprint {part.fingerprint}"
        )
        if part.guessed:
            click.echo(
                f"            {len(part.guessed)} words are not in the dictionary; "
                "their phonemes are guessed from the spelling"
            )
    click.echo(f"wrote {out}, {manifest.bytes() / 1e9:.2f} GB")
    click.echo(f"Next: hpo data check {out}, or hpo launch --study lr-aug --data {out}")


@click.group()
def database() -> None:
    """The embedded Postgres of this HPO_HOME, and upgrades of any database."""


@database.command(name="status")
def database_status() -> None:
    """Show whether the server runs and where its data are."""
    from hpo.store.database import home
    from hpo.store.embedded import EmbeddedServer

    server = EmbeddedServer(home())
    url = server.url()
    state = "not running"
    if url:
        _, _, address = url.rpartition("@")
        state = f"running at {address}"
    else:
        owner = server.owner_elsewhere()
        if owner:
            state = f"not running here: it belongs to {owner}"
    click.echo(f"{state}; data in {server.where()}")


@database.command(name="stop")
def database_stop() -> None:
    """Stop the server for every process that uses it. The next command that needs it starts it."""
    from hpo.store.database import home
    from hpo.store.embedded import EmbeddedServer

    was_running = EmbeddedServer(home()).stop()
    click.echo("stopped" if was_running else "it was not running")


@database.command(name="adopt")
@click.option("--yes", is_flag=True, help="Do not ask.")
def database_adopt(yes: bool) -> None:
    """Let this machine run the server, if the machine that ran it is gone for good."""
    from hpo.store.database import home
    from hpo.store.embedded import EmbeddedServer

    server = EmbeddedServer(home())
    if server.url():
        click.echo("nothing to adopt: it runs here")
        return
    try:
        owner = server.owner()
    except DatabaseError as error:
        owner = None
        click.echo(error)
    if owner and owner.is_here():
        click.echo("nothing to adopt: it belongs to this machine, and the next command starts it")
        return
    if owner:
        click.echo(f"It belongs to {owner}.")
    if server.has_data():
        click.echo(
            f"Two servers on {server.data} would destroy its data. "
            "Adopt it only if no other machine or container runs one."
        )
    else:
        click.echo(
            f"Its files in {server.data} are not on this machine. "
            "If you adopt it, it starts here without any study."
        )
    if not yes:
        click.confirm("Adopt it?", abort=True)
    server.adopt()
    click.echo("adopted: the next command starts it here")


@database.command(name="upgrade")
@database_option
def database_upgrade(database: str | None) -> None:
    """Dump the database, then upgrade its tables to those of this version of hpo and Optuna.

    Stop all workers first.
    """
    from hpo.store.database import home, open_database
    from hpo.store.upgrade import upgrade

    opened = open_database(database)
    done = upgrade(opened, home() / "dumps")
    if done is None:
        click.echo("nothing to upgrade: its tables are those of this version")
        return
    click.echo(f"upgraded from Optuna's tables {done.before}; as it was: {done.dump}")
    click.echo(f"Back to it: pg_restore --clean --if-exists --dbname=URL {done.dump}")
