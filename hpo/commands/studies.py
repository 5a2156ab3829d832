"""All the studies of a database: studies, delete."""

import json

import click

from hpo.commands.shared import database_option, json_option, open_study, study_option


@click.command()
@database_option
@json_option
def studies(database: str | None, as_json: bool) -> None:
    """List the studies with their state, best PER and last activity."""
    from dataclasses import asdict

    from rich.console import Console

    from hpo.display import studies_table
    from hpo.search.database import open_database
    from hpo.search.studies import all_studies

    found = all_studies(open_database(database))
    if as_json:
        click.echo(json.dumps([asdict(line) | {"last": line.last and line.last.isoformat()} for line in found], indent=2))
    elif found:
        Console(highlight=False).print(studies_table(found))
    else:
        click.echo("There is no study. hpo launch makes one")


@click.command()
@study_option
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--force", is_flag=True, help="Also while workers run: their trials are lost, and they leave.")
@database_option
def delete(study: str, yes: bool, force: bool, database: str | None) -> None:
    """Remove a study: its trials, results and files. There is no way back."""
    from hpo.search.database import open_database
    from hpo.search.paths import study_folder
    from hpo.search.pick import best_of
    from hpo.search.studies import children, refuse_if_running, remove
    from hpo.text import percent

    found = open_study(study, database)
    if not force:
        refuse_if_running(found)
    records, folder = found.records(), study_folder(found)
    best = best_of(records)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    files = f"{size / 1e6:.1f} MB of weights, checkpoints and logs" if folder.is_dir() else "none here"
    click.echo(f"study {study}: {len(records)} trials" + (f", best PER {percent(best.per)}" if best and best.per is not None else ""))
    click.echo(f"files       {folder}: {files}")
    for child in children(open_database(database), study):
        click.echo(f"stays       {child}, made from it: hpo delete --study {child}")
    if not yes:
        click.confirm("Remove all of it, for good?", abort=True)
    remove(found, folder)
    click.echo(f"removed study {study} and its files here; other hosts may hold some of their own")
