"""The machine, its data sets and its database: doctor, data, database."""

import json
from pathlib import Path

import click

from hpo.commands.shared import data_option, database_option, json_option
from hpo.errors import DatabaseError, MachineError


@click.command()
@click.option(
    "--study", metavar="NAME", help="Compare code and data with those of this study's workers too."
)
@data_option
@click.option("--artifacts", type=click.Path(path_type=Path), metavar="DIR",
              help="The folder that the machines share. Default: $HPO_HOME/studies.")  # fmt: skip
@database_option
@json_option
def doctor(
    study: str | None,
    data: Path | None,
    artifacts: Path | None,
    database: str | None,
    as_json: bool,
) -> None:
    """Look at what a worker on this machine needs: GPUs, database, clock, TLS, folders, the study's code and data.

    Exit code 1 if something is missing.
    """
    from dataclasses import asdict

    from hpo.launch.doctor import as_text, examine

    findings = examine(study, database, data, artifacts)
    click.echo(
        json.dumps([asdict(finding) for finding in findings], indent=2)
        if as_json
        else as_text(findings)
    )
    if any(finding.level == "fail" for finding in findings):
        raise SystemExit(MachineError.exit_code)


@click.group()
def data() -> None:
    """Look at data sets, and make them quick to open."""


@data.command(name="check")
@click.argument("path", type=click.Path(path_type=Path), required=False)
@click.option(
    "--kernel",
    type=click.IntRange(min=1),
    metavar="N",
    help="Of the decoder, in bins, for CTC's needs. Default: 32.",
)
@click.option(
    "--stride", type=click.IntRange(min=1), metavar="N", help="Of the decoder, in bins. Default: 4."
)
@json_option
def data_check(path: Path | None, kernel: int | None, stride: int | None, as_json: bool) -> None:
    """Say what is in PATH and what is wrong with it. Without PATH: the bundled recordings.

    Exit code 2 if it cannot be trained on.
    """
    from hpo.decoder.config import ModelConfig
    from hpo.decoder.facts import data_facts
    from hpo.errors import DataError

    given = {name: value for name, value in (("kernel", kernel), ("stride", stride)) if value}
    facts = data_facts(path, ModelConfig.model_validate(given))
    if as_json:
        click.echo(json.dumps(facts, indent=2))
    else:
        from rich.console import Console

        from hpo.terminal.data import data_picture

        Console(highlight=False).print(data_picture(facts))
    if facts["fault"]:
        raise DataError(facts["fault"])
    if not as_json:
        click.echo(f"\nNext: hpo launch --study lr-aug{f' --data {path}' if path else ''}")


@data.command(name="convert")
@click.argument("source", metavar="SRC", type=click.Path(path_type=Path))
@click.argument("out", metavar="OUT", type=click.Path(path_type=Path))
def data_convert(source: Path, out: Path) -> None:
    """Write the data set SRC as OUT, a folder that opens at once and that all workers of a machine share in memory."""
    from hpo.data.formats import open_source
    from hpo.data.store import convert

    try:
        manifest = convert(open_source(source), out)
    except KeyboardInterrupt:
        click.echo(f"Stopped. Nothing was written to {out}", err=True)
        raise SystemExit(130) from None
    for name, part in manifest.partitions.items():
        click.echo(
            f"{name:<12}{part.sentences} sentences, {part.features} features, fingerprint {part.fingerprint}"
        )
        if part.guessed:
            click.echo(
                f"            {len(part.guessed)} words are in no dictionary, their phonemes guessed from their letters"
            )
    click.echo(
        f"wrote {out}, {manifest.bytes() / 1e9:.2f} GB\nNext: hpo data check {out}, or hpo launch --study lr-aug --data {out}"
    )


@click.group()
def database() -> None:
    """The embedded Postgres of this HPO_HOME."""


@database.command(name="status")
def database_status() -> None:
    """Say whether it runs and where its data are."""
    from hpo.store.database import home
    from hpo.store.embedded import EmbeddedServer

    server = EmbeddedServer(home())
    url = server.url()
    if not url and (owner := server.owner_elsewhere()):
        click.echo(f"not running here: it belongs to {owner}; data in {server.where()}")
        return
    click.echo(
        f"{'running at ' + url.rpartition('@')[2] if url else 'not running'}; data in {server.where()}"
    )


@database.command(name="stop")
def database_stop() -> None:
    """Stop it, for every process that uses it. The next command that needs it starts it again."""
    from hpo.store.database import home
    from hpo.store.embedded import EmbeddedServer

    click.echo("stopped" if EmbeddedServer(home()).stop() else "it was not running")


@database.command(name="adopt")
@click.option("--yes", is_flag=True, help="Do not ask.")
def database_adopt(yes: bool) -> None:
    """Let this machine run it from now on, when the machine that ran it is gone for good."""
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
            f"Two servers on {server.data} destroy what is in it. Adopt it only if no other machine or container runs one."
        )
    else:
        click.echo(
            f"Its files, {server.data}, are not on this machine. Adopted, it begins here without studies."
        )
    if not yes:
        click.confirm("Adopt it?", abort=True)
    server.adopt()
    click.echo("adopted: the next command starts it here")
