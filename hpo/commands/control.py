"""Steering a study that runs: pause, resume, stop, kill, enqueue, note."""

import shutil
from typing import TYPE_CHECKING, Any

import click

from hpo.commands.shared import database_option, open_study, read_study, study_option

if TYPE_CHECKING:
    from hpo.study.study import Study

reason_option = click.option(
    "--reason", default="", metavar="TEXT", help="Why; kept, and shown with it."
)
trial_option = click.option(
    "--trial", type=click.IntRange(min=0), metavar="N", help="The trial's number."
)


@click.command()
@study_option
@reason_option
@database_option
def pause(study: str, reason: str, database: str | None) -> None:
    """Hand all running trials back with a checkpoint. Workers wait, with their data loaded, for hpo resume."""
    from hpo.study import control

    found = read_study(study, database)
    running = found.standing().running
    click.echo(
        f"{control.halt(found, 'paused', reason)}\n{_handed_back(running)} Workers wait for: hpo resume --study {study}"
    )


@click.command()
@study_option
@database_option
def resume(study: str, database: str | None) -> None:
    """Go on with a study that was paused or stopped."""
    from hpo.study import control

    ended = control.resume(read_study(study, database))
    if ended is None:
        click.echo(f"study {study} is neither paused nor stopped")
    elif ended.state == "paused":
        click.echo(f"was {ended}\nWorkers that wait go on within seconds")
    else:
        click.echo(
            f"was {ended}\nIts workers have left. Start some: the same launch line, or hpo worker --study {study}"
        )


@click.command()
@study_option
@reason_option
@database_option
def stop(study: str, reason: str, database: str | None) -> None:
    """Hand all running trials back with a checkpoint, and let the workers leave. The same launch line goes on with the study."""
    from hpo.study import control

    found = read_study(study, database)
    running = found.standing().running
    click.echo(
        f"{control.halt(found, 'stopped', reason)}\n{_handed_back(running)} Workers leave. To go on: the same launch line"
    )


def _handed_back(running: int) -> str:
    return (
        f"{running} running trials are handed back with a checkpoint within seconds."
        if running
        else "No trial runs."
    )


@click.command()
@study_option
@click.option(
    "--trial", required=True, type=click.IntRange(min=0), metavar="N", help="The trial's number."
)
@reason_option
@database_option
def kill(study: str, trial: int, reason: str, database: str | None) -> None:
    """End one trial, running or waiting: stopped by hand, with who and why. Its worker takes the next one."""
    found = open_study(study, database)
    from hpo.study import control

    ran = control.kill(found, trial, reason)
    if not ran:  # else its worker removes the checkpoints
        from hpo.study.paths import study_folder, trial_folder

        shutil.rmtree(trial_folder(study_folder(found), trial), ignore_errors=True)
    click.echo(f"trial {trial} is stopped by hand; {'its worker takes the next one within seconds' if ran else 'it did not run'}. "
               f"It counts as one of the budget's {found.budget.trials}")  # fmt: skip


@click.command()
@study_option
@click.argument("values", nargs=-1, metavar="FIELD=VALUE...")
@click.option(
    "--like",
    metavar="best|START|N",
    help="The trial whose values the other parameters get. Default: they are sampled.",
)
@database_option
def enqueue(study: str, values: tuple[str, ...], like: str | None, database: str | None) -> None:
    """Try a configuration of your own: the next trial to begin. The budget stays as it is."""
    from hpo.errors import CallerError
    from hpo.space.spec import parse_settings
    from hpo.study import control

    if not values and not like:
        raise CallerError(
            "hpo enqueue: no values. Valid: FIELD=VALUE such as optimizer.lr=0.01, or --like best"
        )
    found = open_study(study, database)
    given = parse_settings(values, "hpo enqueue ", found.spec.base, found.spec.parameters)
    chosen, sampled = control.chosen_values(
        found.spec, given, _values_of(found, like) if like else {}
    )
    number = control.enqueue(found, chosen)
    click.echo(
        f"trial {number} begins next: {', '.join(f'{name}={value}' for name, value in chosen.items())}"
    )
    if sampled:
        click.echo(f"sampled by Optuna: {', '.join(sampled)}")
    click.echo(
        f"It is one of the budget's {found.budget.trials} trials"
        + (f": {over}" if (over := found.why_over()) else "")
    )


def _values_of(study: "Study", like: str) -> dict[str, Any]:
    from hpo.study.pick import pick_trial

    return (
        study.spec.start_values(like)
        if like in study.spec.starts
        else pick_trial(study, like).params
    )


@click.command()
@study_option
@trial_option
@click.argument("text")
@database_option
def note(study: str, trial: int | None, text: str, database: str | None) -> None:
    """Add TEXT to the note of the study, or of a trial, that optuna-dashboard shows, with your name and the time."""
    from hpo.study import control

    control.note(open_study(study, database), text, trial)
    click.echo(f"noted on {'study ' + study if trial is None else f'trial {trial}'}")
