"""Steering a study that runs: pause, resume, stop, kill, enqueue, note."""

import shutil
from typing import TYPE_CHECKING, Any

import click

from hpo.commands.shared import database_option, open_study, read_study, study_option

if TYPE_CHECKING:
    from hpo.study.study import Study

reason_option = click.option(
    "--reason", default="", metavar="TEXT", help="Why. It is stored and shown."
)
trial_option = click.option(
    "--trial", type=click.IntRange(min=0), metavar="N", help="The trial's number."
)


@click.command()
@study_option
@reason_option
@database_option
def pause(study: str, reason: str, database: str | None) -> None:
    """Hand all running trials back with a checkpoint. Workers keep their data loaded and wait."""
    from hpo.study import control

    opened = read_study(study, database)
    running = opened.standing().running
    click.echo(control.halt(opened, "paused", reason))
    click.echo(f"{_handed_back(running)} Workers wait for: hpo resume --study {study}")


@click.command()
@study_option
@database_option
def resume(study: str, database: str | None) -> None:
    """Continue a study that was paused or stopped."""
    from hpo.study import control

    halt = control.resume(read_study(study, database))
    if halt is None:
        click.echo(f"study {study} is neither paused nor stopped")
        return
    click.echo(f"was {halt}")
    if halt.state == "paused":
        click.echo("Waiting workers continue within seconds")
    else:
        click.echo(
            "Its workers have left. Start new ones with the same hpo launch command, "
            f"or with hpo worker --study {study}"
        )


@click.command()
@study_option
@reason_option
@database_option
def stop(study: str, reason: str, database: str | None) -> None:
    """Hand all running trials back with a checkpoint, and let the workers leave.

    The same hpo launch command continues the study.
    """
    from hpo.study import control

    opened = read_study(study, database)
    running = opened.standing().running
    click.echo(control.halt(opened, "stopped", reason))
    click.echo(
        f"{_handed_back(running)} Workers leave. To continue, run the same hpo launch command"
    )


def _handed_back(running: int) -> str:
    if not running:
        return "No trial is running."
    return f"{running} running trials are handed back with a checkpoint within seconds."


@click.command()
@study_option
@click.option(
    "--trial", required=True, type=click.IntRange(min=0), metavar="N", help="The trial's number."
)
@reason_option
@database_option
def kill(study: str, trial: int, reason: str, database: str | None) -> None:
    """Stop one trial, running or waiting. Its worker takes the next one.

    The record says that it was stopped by hand, by whom, and why.
    """
    opened = open_study(study, database)
    from hpo.study import control

    was_running = control.kill(opened, trial, reason)
    if was_running:
        # The worker removes the checkpoints.
        effect = "its worker takes the next one within seconds"
    else:
        from hpo.study.paths import study_folder, trial_folder

        shutil.rmtree(trial_folder(study_folder(opened), trial), ignore_errors=True)
        effect = "it was not running"
    click.echo(
        f"trial {trial} is stopped by hand; {effect}. "
        f"It counts as one of the budget's {opened.budget.trials} trials"
    )


@click.command()
@study_option
@click.argument("values", nargs=-1, metavar="FIELD=VALUE...")
@click.option(
    "--like",
    metavar="best|START|N",
    help="Take the other parameters from this trial. Default: they are sampled.",
)
@database_option
def enqueue(study: str, values: tuple[str, ...], like: str | None, database: str | None) -> None:
    """Run a configuration of your own as the next trial. The budget stays the same."""
    from hpo.errors import CallerError
    from hpo.space.load import parse_settings
    from hpo.study import control

    if not values and not like:
        raise CallerError(
            "hpo enqueue: no values. Valid: FIELD=VALUE such as optimizer.lr=0.01, or --like best"
        )
    opened = open_study(study, database)
    typed = parse_settings(values, "hpo enqueue ", opened.spec.base, opened.spec.parameters)
    others = _values_of(opened, like) if like else {}
    chosen, sampled = control.chosen_values(opened.spec, typed, others)
    number = control.enqueue(opened, chosen)
    shown = ", ".join(f"{name}={value}" for name, value in chosen.items())
    click.echo(f"trial {number} runs next: {shown}")
    if sampled:
        click.echo(f"sampled by Optuna: {', '.join(sampled)}")
    line = f"It is one of the budget's {opened.budget.trials} trials"
    why_over = opened.why_over()
    if why_over:
        line += f": {why_over}"
    click.echo(line)


def _values_of(study: "Study", like: str) -> dict[str, Any]:
    """The parameters of a start, of the best trial, or of a trial by its number."""
    from hpo.study.pick import pick_trial

    if like in study.spec.starts:
        return study.spec.start_values(like)
    return pick_trial(study, like).params


@click.command()
@study_option
@trial_option
@click.argument("text")
@database_option
def note(study: str, trial: int | None, text: str, database: str | None) -> None:
    """Add TEXT, with your name and the time, to the note of a study or of a trial.

    optuna-dashboard shows the notes.
    """
    from hpo.study import control

    control.note(open_study(study, database), text, trial)
    noted = f"study {study}" if trial is None else f"trial {trial}"
    click.echo(f"noted on {noted}")
