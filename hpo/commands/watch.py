"""Looking at a study that runs: status, logs."""

import os
import select
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from shutil import which
from typing import TYPE_CHECKING, Any

import click

from hpo.commands.shared import (
    database_option,
    echo_json,
    json_option,
    open_study,
    read_study,
    study_option,
)
from hpo.errors import CallerError, DatabaseError, SlurmError, StudyError

if TYPE_CHECKING:
    from hpo.launch.slurm import Element
    from hpo.study.reader import StudyReader

# Between looks at a log.
FOLLOW_SECONDS = 1.0


@click.command()
@study_option
@click.option(
    "--watch",
    is_flag=True,
    help="Refresh every two seconds: full screen on a terminal, otherwise a line for each change. "
    "Press q to leave.",
)
@database_option
@json_option
def status(study: str, watch: bool, database: str | None, as_json: bool) -> None:
    """Show the trials of a study."""
    from dataclasses import asdict

    from rich.console import Console

    from hpo.terminal.status import trial_table

    if watch and as_json:
        raise CallerError(
            "--watch with --json: give one of the two. "
            "--watch prints a line for each change if the output is not a terminal"
        )
    opened = read_study(study, database)
    if watch:
        with suppress(KeyboardInterrupt):
            _watch(opened)
        return
    if opened.has_orphans():
        open_study(study, database).sweep()
    records = opened.records()
    imported = opened.imported()
    jobs = _jobs(opened)
    metric = opened.spec.metric
    if as_json:
        content: dict[str, Any] = {
            "study": opened.name,
            "budget": opened.budget.model_dump(mode="json"),
            "trials": [asdict(record) for record in records],
            "imported": [asdict(record) for record in imported],
        }
        if jobs is not None:
            content["jobs"] = [asdict(job) for job in jobs]
        echo_json(content, metric)
        return
    Console(highlight=False).print(trial_table(records, opened.budget, metric))
    for record in imported:
        click.echo(f"imported trial {record.number}: past run {record.imported}, {record.state}")
    if opened.halt:
        click.echo(f"The study is {opened.halt}. hpo resume --study {opened.name} continues it")
    for job in jobs or []:
        click.echo(f"SLURM {job}")
    if jobs == []:
        click.echo("SLURM no job of this study is waiting or running")


def _jobs(study: "StudyReader") -> "list[Element] | None":
    """The study's jobs in SLURM's queue; None without SLURM, or if the study never used it."""
    if not which("squeue"):
        return None
    from hpo.launch.slurm import known_elements

    try:
        return known_elements(study)
    except SlurmError as error:
        # The trials are worth showing without the jobs.
        click.echo(f"hpo: {error}", err=True)
        return None


def _watch(study: "StudyReader") -> None:
    from rich.console import Console

    from hpo.terminal.live import LOOK_SECONDS, LiveView

    console = Console(highlight=False)
    keys = _read_keys if console.is_terminal else _ignore_keys
    with keys() as q_pressed_within, LiveView(study, console, screen=True) as view:
        while True:
            view.look(at_once=True)
            nothing_runs = view.latest is not None and not view.latest.running
            if not console.is_terminal and nothing_runs and _is_over(study):
                return
            if q_pressed_within(LOOK_SECONDS):
                return


def _is_over(study: "StudyReader") -> bool:
    try:
        return study.why_over() is not None
    except DatabaseError:
        return False


@contextmanager
def _ignore_keys() -> Iterator[Callable[[float], object]]:
    yield time.sleep


@contextmanager
def _read_keys() -> Iterator[Callable[[float], object]]:
    """A function that waits some seconds for the key q, and returns whether it was pressed."""
    import termios
    import tty

    if not sys.stdin.isatty():
        yield time.sleep
        return

    def q_pressed_within(seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            readable, _, _ = select.select([sys.stdin], [], [], left)
            if readable and b"q" in os.read(sys.stdin.fileno(), 64).lower():
                return True

    before = termios.tcgetattr(sys.stdin)
    tty.setcbreak(sys.stdin)
    try:
        yield q_pressed_within
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


@click.command()
@study_option
@click.option(
    "--trial", required=True, type=click.IntRange(min=0), metavar="N", help="The trial's number."
)
@click.option("-f", "--follow", is_flag=True, help="Keep printing new lines until the trial ends.")
@database_option
def logs(study: str, trial: int, follow: bool, database: str | None) -> None:
    """Print what workers logged about a trial, over all its attempts."""
    from hpo.study.logs import TrialLog

    opened = read_study(study, database)
    log = TrialLog.of(opened, trial)
    while True:
        records = {record.number: record for record in opened.records()}
        record = records.get(trial)
        if record is None:
            raise StudyError(f"study {study}: there is no trial {trial}")
        for line in log.read():
            click.echo(line)
        if not follow or record.state not in ("running", "waiting"):
            break
        try:
            time.sleep(FOLLOW_SECONDS)
        except KeyboardInterrupt:
            break
    if not record.attempts:
        click.echo(f"trial {trial} has not started, so no worker has logged anything", err=True)
        return
    elsewhere = log.missing_attempts(opened, record)
    if elsewhere:
        click.echo(elsewhere, err=True)
