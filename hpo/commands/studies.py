"""All the studies of a database: studies, delete."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from hpo.commands.shared import database_option, json_option, open_study, study_option

if TYPE_CHECKING:
    from rich.table import Table

    from hpo.study.study_list import Line


@click.command()
@database_option
@json_option
def studies(database: str | None, as_json: bool) -> None:
    """List the studies with their state, best PER and last activity."""
    from rich.console import Console

    from hpo.store.database import open_database
    from hpo.study.study_list import all_studies

    found = all_studies(open_database(database))
    if as_json:
        click.echo(json.dumps([_facts(line) for line in found], indent=2))
    elif found:
        Console(highlight=False).print(_table(found))
    else:
        click.echo("There is no study. hpo launch makes one")


def _facts(line: "Line") -> dict[str, Any]:
    from dataclasses import asdict

    from hpo.trainer import named

    facts = asdict(line) | {
        "last": line.last and line.last.isoformat(),
        "metric": line.metric and line.metric.name,
    }
    found: dict[str, Any] = named(facts, line.metric) if line.metric else facts
    return found


def _table(lines: "Sequence[Line]") -> "Table":
    from rich.table import Table
    from rich.text import Text

    from hpo.text import local

    names = {line.metric.name for line in lines if line.metric}
    best = f"best {names.pop()}" if len(names) == 1 else "best"
    table = Table(box=None, pad_edge=False)
    for title in ("study", "state", "trials", "run", "failed", best, "last activity"):
        table.add_column(
            title,
            justify="left" if title in ("study", "state") else "right",
            no_wrap=title != "study",
            overflow="fold",
        )
    for line in lines:
        of = "" if line.budget is None else f" of {line.budget}"
        table.add_row(Text(line.name), line.state, f"{line.ended}{of}", str(line.running), str(line.failed),
                      _best(line), local(line.last) if line.last else "")  # fmt: skip
    return table


def _best(line: "Line") -> str:
    if line.metric is None or line.best_value is None:
        return ""
    return line.metric.text(line.best_value)


@click.command()
@study_option
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option(
    "--force", is_flag=True, help="Also while workers run: their trials are lost, and they leave."
)
@database_option
def delete(study: str, yes: bool, force: bool, database: str | None) -> None:
    """Remove a study: its trials, results and files. There is no way back."""
    found = open_study(study, database)
    from hpo.store.database import open_database
    from hpo.study.paths import study_folder
    from hpo.study.pick import best_of
    from hpo.study.studies import refuse_if_running, remove
    from hpo.study.study_list import children

    if not force:
        refuse_if_running(found)
    records, folder = found.records(), study_folder(found)
    metric = found.spec.metric
    best = best_of(records, metric)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    files = (
        f"{size / 1e6:.1f} MB of weights, checkpoints and logs" if folder.is_dir() else "none here"
    )
    shown = f"study {study}: {len(records)} trials"
    if best and best.value is not None:
        shown += f", best {metric.name} {metric.text(best.value)}"
    click.echo(shown)
    click.echo(f"files       {folder}: {files}")
    for child in children(open_database(database), study):
        click.echo(f"stays       {child}, made from it: hpo delete --study {child}")
    if not yes:
        click.confirm("Remove all of it, for good?", abort=True)
    remove(found, folder)
    click.echo(f"removed study {study} and its files here; other hosts may hold some of their own")
