"""What a study found, and its decoders: report, export, evaluate."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from hpo.commands.shared import (
    data_option,
    database_option,
    device_option,
    echo_json,
    json_option,
    read_study,
    study_option,
    weights_option,
)
from hpo.errors import CallerError

if TYPE_CHECKING:
    from hpo.data.formats import Partition
    from hpo.study.reader import StudyReader


@click.command()
@study_option
@database_option
@json_option
@click.option(
    "--html",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write the whole report as one page with pictures.",
)
@click.option(
    "--md",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write the same as Markdown, without pictures.",
)
def report(
    study: str, database: str | None, as_json: bool, html: Path | None, md: Path | None
) -> None:
    """Report the best PER and that of the starts, what was stopped and why, and the compute."""
    opened = read_study(study, database)
    if as_json or not (html or md):
        print_report(opened, database, as_json)
    if not (html or md):
        return
    from hpo.report.page import as_html, as_markdown
    from hpo.report.report_data import read_report_data
    from hpo.report.report_page import page_of

    page = page_of(read_report_data(opened))
    for option, path, render in (("--html", html, as_html), ("--md", md, as_markdown)):
        if path:
            _write(option, path, render(*page))
            click.echo(f"wrote {path}", err=as_json)


def _write(option: str, path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise CallerError(f"{option} {path}: cannot be written ({error.strerror})") from None


@click.command()
@study_option
@click.option("--trial", default="best", show_default=True, metavar="best|N", help="Which trial.")
@click.option(
    "--format",
    "kind",
    type=click.Choice(["yaml", "neural_seq_decoder", "script"]),
    default="yaml",
    show_default=True,
    help="The configuration, a folder that loadModel of the reference code reads, or the files of "
    "a script.",
)
@weights_option
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    metavar="PATH",
    help="The YAML file or the folder to write.",
)
@database_option
def export(
    study: str, trial: str, kind: str, weights: str, out: Path, database: str | None
) -> None:
    """Write a trial's configuration as YAML, or its model for the lab's own code."""
    from hpo.report.export import export_script, export_text

    opened = read_study(study, database)
    if kind == "script":
        click.echo("\n".join(export_script(opened, trial, out)))
        return
    if kind == "neural_seq_decoder":
        opened.spec.offered("reference folder", "export to neural_seq_decoder")
        from hpo.analysis.weights import weights_of
        from hpo.decoder.scoring import export_reference

        click.echo("\n".join(export_reference(weights_of(opened, trial, weights), out)))
        return
    _write("--out", out, export_text(opened, trial))
    click.echo(f"wrote {out}")


@click.command()
@click.option(
    "--model",
    required=True,
    metavar="PATH|best|N",
    help="A .safetensors file, a neural_seq_decoder folder, or with --study a trial.",
)
@click.option("--study", metavar="NAME", help="The study, if --model is a trial.")
@weights_option
@data_option
@click.option(
    "--partition",
    type=click.Choice(["train", "test", "competition"]),
    required=True,
    help="What to score on.",
)
@click.option(
    "--padding",
    type=click.Choice(["masked", "reference"]),
    help="How padding is treated. Default: as in the training of the model.",
)
@device_option
@database_option
@json_option
def evaluate(
    model: str,
    study: str | None,
    weights: str,
    data: Path | None,
    partition: "Partition",
    padding: str | None,
    device: str | None,
    database: str | None,
    as_json: bool,
) -> None:
    """Score one decoder on a partition: PER, and the errors of each sentence.

    Do not select anything by its score on test or competition.
    """
    from hpo.analysis.weights import weights_of
    from hpo.decoder.scoring import score, score_text
    from hpo.worker.device import choose_device, device_name

    path = Path(model)
    if study:
        trained = read_study(study, database)
        trained.spec.offered("evaluate", "scoring of its weights here")
        path = weights_of(trained, model, weights)
        data = data or trained.data_path
    chosen = choose_device(device)
    result = score(path, data, partition, chosen, padding)
    result = result | {"device": device_name(chosen)}
    if as_json:
        echo_json(result)
    else:
        for warning in result["warnings"]:
            click.echo(f"hpo: warning: {warning}", err=True)
        click.echo(score_text(result))


def print_report(study: "StudyReader", database: str | None, as_json: bool = False) -> None:
    from hpo.report.report import as_text, build_report, next_command

    metric = study.spec.metric
    content = build_report(study)
    if as_json:
        echo_json(content, metric)
        return
    click.echo(as_text(content, metric))
    click.echo(f"Next: {next_command(content, database)}")
