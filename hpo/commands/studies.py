"""All the studies of a database: studies, delete."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hpo.commands.shared import (
    database_option,
    echo_json,
    json_option,
    open_study,
    study_option,
)

if TYPE_CHECKING:
    from rich.table import Table

    from hpo.store.database import Database
    from hpo.study.foreign import ForeignStudy
    from hpo.study.study import Study
    from hpo.study.study_list import StudySummary


@click.command()
@click.option(
    "--disk", is_flag=True, help="What the files of each study take on this machine, and where."
)
@database_option
@json_option
def studies(disk: bool, database: str | None, as_json: bool) -> None:
    """List the studies with their state, best PER and last activity."""
    if disk:
        _show_disk(database, as_json)
        return
    from rich.console import Console

    from hpo.store.database import open_database
    from hpo.study.study_list import all_studies

    listed = all_studies(open_database(database))
    if as_json:
        echo_json([_as_json(line) for line in listed])
    elif listed:
        Console(highlight=False).print(_table(listed))
    else:
        click.echo("There is no study yet. hpo launch creates one")


def _show_disk(database: str | None, as_json: bool) -> None:
    from dataclasses import asdict

    from hpo.store.database import home, open_database
    from hpo.study.paths import study_folder
    from hpo.study.reader import open_reader
    from hpo.study.study_list import all_studies
    from hpo.worker.disk import disk_use, size

    opened = open_database(database)
    folders: dict[Path, str] = {}
    for line in all_studies(opened):
        if line.state != "foreign":
            reader = open_reader(opened, line.name)
            folders[study_folder(reader)] = line.name
            # Each has connections of its own, of which a server allows about a hundred.
            reader.engine.dispose()
    for path in sorted((home() / "studies").glob("*-*")):
        if path.is_dir():
            folders.setdefault(path, "")
    found = [(name, path, disk_use(path)) for path, name in folders.items()]
    found.sort(key=lambda line: line[2].total, reverse=True)
    if as_json:
        echo_json(
            [
                {"study": name or None, "folder": str(path), "bytes": asdict(use)}
                for name, path, use in found
            ]
        )
        return
    for name, path, use in found:
        click.echo(f"{name or '(no study of this database)'}  {use}\n    {path}")
    total = sum(use.total for _, _, use in found)
    click.echo(f"{size(total)} in all on this machine; hpo delete removes a study with its files")


def _as_json(line: "StudySummary") -> dict[str, Any]:
    from dataclasses import asdict

    from hpo.trainer import named

    content = asdict(line)
    content["last"] = line.last.isoformat() if line.last else None
    content["metric"] = line.metric.name if line.metric else None
    if line.metric is None:
        return content
    renamed: dict[str, Any] = named(content, line.metric)
    return renamed


def _table(lines: "Sequence[StudySummary]") -> "Table":
    from rich.table import Table
    from rich.text import Text

    from hpo.study.names import shown_name
    from hpo.text import local

    names = {line.metric.name for line in lines if line.metric}
    best = f"best {names.pop()}" if len(names) == 1 else "best"
    table = Table(box=None, pad_edge=False)
    table.add_column("study", overflow="fold")
    table.add_column("state", no_wrap=True)
    for title in ("trials", "run", "failed", best, "last activity"):
        table.add_column(title, justify="right", no_wrap=True)
    for line in lines:
        trials = str(line.ended)
        if line.budget is not None:
            trials += f" of {line.budget}"
        table.add_row(
            Text(shown_name(line.name)),
            line.state,
            trials,
            str(line.running),
            str(line.failed),
            _best(line),
            local(line.last) if line.last else "",
        )
    return table


def _best(line: "StudySummary") -> str:
    if line.metric is None or line.best_value is None:
        return ""
    return line.metric.text(line.best_value)


@click.command()
@study_option
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@click.option(
    "--force", is_flag=True, help="Even while workers run: their trials are lost, and they leave."
)
@database_option
def delete(study: str, yes: bool, force: bool, database: str | None) -> None:
    """Delete a study with its trials, results and files. This cannot be undone.

    A study that hpo did not make can be deleted, too, whatever its name is.
    """
    from hpo.store.database import open_database
    from hpo.study.foreign import find_foreign

    reached = open_database(database)
    foreign = find_foreign(reached, study)
    if foreign is None:
        _delete_ours(study, database, yes, force)
    else:
        _delete_foreign(reached, foreign, yes, force)


def _delete_ours(study: str, database: str | None, yes: bool, force: bool) -> None:
    opened = open_study(study, database)
    from hpo.store.database import open_database
    from hpo.study.names import shown_name
    from hpo.study.paths import study_folder
    from hpo.study.studies import refuse_if_running, remove
    from hpo.study.study_list import children
    from hpo.worker.disk import disk_use, size

    if not force:
        refuse_if_running(opened)
    folder = study_folder(opened)
    files = "none on this machine"
    if folder.is_dir():
        files = f"{size(disk_use(folder).total)} of weights, checkpoints and logs"
    click.echo(f"study {study}: {_contents(opened)}")
    click.echo(f"files       {folder}: {files}")
    for child in map(shown_name, children(open_database(database), study)):
        click.echo(f"kept        {child}, which was made from it: hpo delete --study {child}")
    if not yes:
        click.confirm("Delete all of this for good?", abort=True)
    remove(opened, folder)
    click.echo(
        f"deleted study {study} and its files on this machine; other hosts may have files, too"
    )


def _contents(study: "Study") -> str:
    from hpo.errors import StudyError
    from hpo.study.pick import best_of

    try:
        metric = study.spec.metric
        records = study.records()
    except StudyError as error:
        # It can be deleted, although this version cannot read it.
        return str(error)
    text = f"{len(records)} trials"
    best = best_of(records, metric)
    if best and best.value is not None:
        text += f", best {metric.name} {metric.text(best.value)}"
    return text


def _delete_foreign(database: "Database", study: "ForeignStudy", yes: bool, force: bool) -> None:
    from hpo.errors import StudyError
    from hpo.study.studies import remove_foreign

    if study.running and not force:
        raise StudyError(
            f"study {study.name}: {study.running} trials run in another program. "
            "Stop that, or take --force"
        )
    click.echo(f"study {study.name}: {study.trials} trials, not made by hpo")
    click.echo("files       none of hpo's; what another program wrote stays")
    if not yes:
        click.confirm("Delete all of this for good?", abort=True)
    remove_foreign(database, study)
    click.echo(f"deleted study {study.name}")
