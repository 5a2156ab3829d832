"""What a study's trials say together: effects, ensemble, plan."""

import json
from pathlib import Path

import click

from hpo.commands.shared import (
    data_option,
    database_option,
    device_option,
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
    """Show which parameters matter, which pairs of them interact, and whether that is more than noise."""
    from hpo.analysis.effects import build_effects, effects_text
    from hpo.trainer import named

    if plot:
        from hpo.report.heatmap import check_plot

        check_plot(plot)
    opened = open_study(study, database)
    metric = opened.spec.metric
    found = build_effects(opened)
    if plot:
        from hpo.report.heatmap import draw

        draw(found.model_dump(mode="json"), plot, metric)
    shown = (
        json.dumps(named(found.model_dump(mode="json"), metric), indent=2)
        if as_json
        else effects_text(found, metric)
    )
    click.echo(shown + (f"\nwrote {plot}" if plot and not as_json else ""))


@click.command()
@study_option
@click.option(
    "--trials",
    metavar="N,N,...",
    help="Choose among these only. Default: the best 40 whose weights are here.",
)
@click.option(
    "--max-size",
    type=click.IntRange(min=2),
    default=10,
    show_default=True,
    metavar="N",
    help="Members, counted as often as they are taken.",
)
@data_option
@device_option
@database_option
@json_option
def ensemble(study: str, trials: str | None, max_size: int, data: Path | None, device: str | None, database: str | None,
             as_json: bool) -> None:  # fmt: skip
    """Combine finished trials, chosen on validation, and score the combination on test beside the best single one."""
    from hpo.analysis.ensemble import build_ensemble, ensemble_text
    from hpo.trainer import named

    numbers = [part.strip() for part in trials.split(",")] if trials is not None else []
    if not all(number.isdecimal() for number in numbers):
        raise CallerError(f"--trials {trials}: not trial numbers. Valid: such as 3,7,9")
    opened = open_study(study, database)
    opened.spec.offered("ensemble", "ensembles")
    found = build_ensemble(opened, [int(number) for number in numbers], max_size, device, data)
    metric = opened.spec.metric
    click.echo(
        json.dumps(named(found.model_dump(mode="json"), metric), indent=2)
        if as_json
        else ensemble_text(found, metric)
    )


@click.command()
@study_option
@click.option(
    "--gpus", type=click.IntRange(min=1), required=True, metavar="N", help="That work at once."
)
@click.option(
    "--hours",
    type=click.FloatRange(min=0, min_open=True),
    required=True,
    metavar="H",
    help="So long.",
)
@database_option
@json_option
def plan(study: str, gpus: int, hours: float, database: str | None, as_json: bool) -> None:
    """Show how many trials fit into some GPUs and hours, by what the trials so far have cost."""
    from hpo.analysis.plan import build_plan, plan_text
    from hpo.trainer import named

    opened = read_study(study, database)
    metric = opened.spec.metric
    found = build_plan(opened, gpus, hours)
    click.echo(
        json.dumps(named(found.model_dump(mode="json"), metric), indent=2)
        if as_json
        else plan_text(found, metric)
    )
