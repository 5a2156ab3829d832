"""What a study's trials say together: effects, ensemble, plan."""

from pathlib import Path

import click

from hpo.commands.shared import (
    data_option,
    database_option,
    device_option,
    echo_json,
    json_option,
    open_study,
    read_study,
    study_option,
)
from hpo.errors import CallerError


@click.command()
@study_option
@click.option(
    "--plot",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Draw the interactions as heat maps: FILE.svg or FILE.png.",
)
@database_option
@json_option
def effects(study: str, plot: Path | None, database: str | None, as_json: bool) -> None:
    """Show which parameters matter, which pairs interact, and whether that is more than noise."""
    from hpo.analysis.effects import build_effects, effects_text

    if plot:
        from hpo.report.heatmap import check_plot

        check_plot(plot)
    opened = open_study(study, database)
    metric = opened.spec.metric
    finding = build_effects(opened)
    if plot:
        from hpo.report.heatmap import draw

        draw(finding.model_dump(mode="json"), plot, metric)
    if as_json:
        echo_json(finding.model_dump(mode="json"), metric)
        return
    click.echo(effects_text(finding, metric))
    if plot:
        click.echo(f"wrote {plot}")


@click.command()
@study_option
@click.option(
    "--trials",
    metavar="N,N,...",
    help="Choose among these only. Default: the best 40 with weights on this machine.",
)
@click.option(
    "--max-size",
    type=click.IntRange(min=2),
    default=10,
    show_default=True,
    metavar="N",
    help="Members at most; one that is taken twice counts twice.",
)
@data_option
@device_option
@database_option
@json_option
def ensemble(
    study: str,
    trials: str | None,
    max_size: int,
    data: Path | None,
    device: str | None,
    database: str | None,
    as_json: bool,
) -> None:
    """Combine finished trials, chosen on validation, and score them on test.

    The score of the best single trial is given for comparison.
    """
    from hpo.analysis.ensemble import build_ensemble, ensemble_text

    numbers = []
    if trials is not None:
        numbers = [part.strip() for part in trials.split(",")]
    if not all(number.isdecimal() for number in numbers):
        raise CallerError(f"--trials {trials}: not trial numbers. Valid: such as 3,7,9")
    opened = open_study(study, database)
    opened.spec.offered("ensemble", "ensembles")
    finding = build_ensemble(opened, [int(number) for number in numbers], max_size, device, data)
    metric = opened.spec.metric
    if as_json:
        echo_json(finding.model_dump(mode="json"), metric)
    else:
        click.echo(ensemble_text(finding, metric))


def _hours(_context: click.Context, _option: click.Parameter, text: str) -> float:
    from hpo.errors import CallerError
    from hpo.space.times import hours_in

    try:
        return hours_in(text)
    except ValueError as error:
        raise CallerError(f"--hours {text}: {error}") from None


@click.command()
@study_option
@click.option(
    "--gpus",
    type=click.IntRange(min=1),
    required=True,
    metavar="N",
    help="GPUs in use at the same time.",
)
@click.option(
    "--hours",
    callback=_hours,
    required=True,
    metavar="H",
    help="How long they are used, such as 8 or 2h30m.",
)
@database_option
@json_option
def plan(study: str, gpus: int, hours: float, database: str | None, as_json: bool) -> None:
    """Estimate how many trials fit into some GPU-hours, from the cost of the trials so far."""
    from hpo.analysis.plan import build_plan, plan_text

    opened = read_study(study, database)
    metric = opened.spec.metric
    finding = build_plan(opened, gpus, hours)
    if as_json:
        echo_json(finding.model_dump(mode="json"), metric)
    else:
        click.echo(plan_text(finding, metric))
