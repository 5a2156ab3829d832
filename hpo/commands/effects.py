"""What a study's trials say together: effects, ensemble, plan."""

import json
from pathlib import Path

import click

from hpo.commands.shared import data_option, database_option, device_option, json_option, open_study, study_option
from hpo.errors import CallerError


@click.command()
@study_option
@click.option("--plot", type=click.Path(path_type=Path), metavar="FILE", help="Draw the interactions as heat maps: FILE.svg or FILE.png.")
@database_option
@json_option
def effects(study: str, plot: Path | None, database: str | None, as_json: bool) -> None:
    """Show which parameters matter, which pairs of them interact, and whether that is more than noise."""
    from hpo.evidence.effects import build_effects, effects_text

    if plot:
        from hpo.evidence.heatmap import check_plot

        check_plot(plot)
    found = build_effects(open_study(study, database))
    if plot:
        from hpo.evidence.heatmap import draw

        draw(found, plot)
    click.echo(json.dumps(found, indent=2) if as_json else effects_text(found) + (f"\nwrote {plot}" if plot else ""))


@click.command()
@study_option
@click.option("--trials", metavar="N,N,...", help="Choose among these only. Default: the best 40 whose weights are here.")
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
    from hpo.evidence.ensemble import build_ensemble, ensemble_text

    numbers = [part.strip() for part in trials.split(",")] if trials is not None else []
    if not all(number.isdecimal() for number in numbers):
        raise CallerError(f"--trials {trials}: not trial numbers. Valid: such as 3,7,9")
    found = build_ensemble(open_study(study, database), [int(number) for number in numbers], max_size, device, data)
    click.echo(json.dumps(found, indent=2) if as_json else ensemble_text(found))


@click.command()
@study_option
@click.option("--gpus", type=click.IntRange(min=1), required=True, metavar="N", help="That work at once.")
@click.option("--hours", type=click.FloatRange(min=0, min_open=True), required=True, metavar="H", help="So long.")
@database_option
@json_option
def plan(study: str, gpus: int, hours: float, database: str | None, as_json: bool) -> None:
    """Show how many trials fit into some GPUs and hours, by what the trials so far have cost."""
    from hpo.evidence.plan import build_plan, plan_text

    found = build_plan(open_study(study, database), gpus, hours)
    click.echo(found.model_dump_json(indent=2) if as_json else plan_text(found))
