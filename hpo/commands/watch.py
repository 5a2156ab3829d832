"""Looking at a study that runs: status, logs."""

import json
import os
import select
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from shutil import which
from typing import TYPE_CHECKING

import click

from hpo.commands.shared import database_option, json_option, open_study, read_study, study_option
from hpo.errors import CallerError, DatabaseError, SlurmError, StudyError

if TYPE_CHECKING:
    from hpo.launch.slurm import Element
    from hpo.study.reader import StudyReader

FOLLOW_SECONDS = 1.0  # between looks at a log


@click.command()
@study_option
@click.option(
    "--watch",
    is_flag=True,
    help="Stay and look again every two seconds: full screen, or a line a change. q leaves.",
)
@database_option
@json_option
def status(study: str, watch: bool, database: str | None, as_json: bool) -> None:
    """Show the trials of a study as they are now."""
    from dataclasses import asdict

    from rich.console import Console

    from hpo.terminal.status import trial_table
    from hpo.trainer import named

    if watch and as_json:
        raise CallerError(
            "--watch with --json: give one of them; --watch prints a line a change where the output is no terminal"
        )
    found = read_study(study, database)
    if watch:
        with suppress(KeyboardInterrupt):
            _watch(found)
        return
    if found.has_orphans():
        open_study(study, database).sweep()
    records, imported = found.records(), found.imported()
    jobs = _jobs(found)
    if as_json:
        trials = [asdict(record) for record in records]
        parts = {"study": found.name, "budget": found.budget.model_dump(mode="json"), "trials": trials,
                 "imported": [asdict(record) for record in imported]}  # fmt: skip
        parts |= {} if jobs is None else {"jobs": [asdict(job) for job in jobs]}
        click.echo(json.dumps(named(parts, found.spec.metric), indent=2))
    else:
        Console(highlight=False).print(trial_table(records, found.budget, found.spec.metric))
        for record in imported:
            click.echo(
                f"imported trial {record.number}: past run {record.imported}, {record.state}"
            )
        if halted := found.halt:
            click.echo(f"The study is {halted}. hpo resume --study {found.name} goes on")
        for job in jobs or []:
            click.echo(f"SLURM {job}")
        if jobs == []:
            click.echo("SLURM none of this study's jobs waits or runs")


def _jobs(study: "StudyReader") -> "list[Element] | None":
    """In SLURM's queue; None: there is no SLURM here, or it has not to do with this study."""
    if not which("squeue"):
        return None
    from hpo.launch.slurm import known_elements

    try:
        return known_elements(study)
    except SlurmError as error:  # the trials are worth showing without it
        click.echo(f"hpo: {error}", err=True)
        return None


def _watch(study: "StudyReader") -> None:
    from rich.console import Console

    from hpo.terminal.live import LOOK_SECONDS, LiveView

    console = Console(highlight=False)
    wait = _keys if console.is_terminal else _no_keys
    with wait() as pressed, LiveView(study, console, screen=True) as view:
        while True:
            view.look(at_once=True)
            if not console.is_terminal and view.seen and not view.seen.running and _is_over(study):
                return
            if pressed(LOOK_SECONDS):
                return


def _is_over(study: "StudyReader") -> bool:
    try:
        return study.why_over() is not None
    except DatabaseError:
        return False


@contextmanager
def _no_keys() -> Iterator[Callable[[float], object]]:
    yield time.sleep


@contextmanager
def _keys() -> Iterator[Callable[[float], object]]:
    """pressed(seconds) waits so long for a `q` and says whether it came."""
    import termios
    import tty

    if not sys.stdin.isatty():
        yield time.sleep
        return

    def pressed(seconds: float) -> bool:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if (
                select.select([sys.stdin], [], [], left)[0]
                and b"q" in os.read(sys.stdin.fileno(), 64).lower()
            ):
                return True
        return False

    before = termios.tcgetattr(sys.stdin)
    tty.setcbreak(sys.stdin)
    try:
        yield pressed
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


@click.command()
@study_option
@click.option(
    "--trial", required=True, type=click.IntRange(min=0), metavar="N", help="The trial's number."
)
@click.option(
    "-f", "--follow", is_flag=True, help="Go on with what is logged until the trial is over."
)
@database_option
def logs(study: str, trial: int, follow: bool, database: str | None) -> None:
    """Print what workers logged of a trial, over all its attempts."""
    from hpo.study.logs import TrialLog

    found = read_study(study, database)
    log = TrialLog.of(found, trial)
    while True:
        record = next((record for record in found.records() if record.number == trial), None)
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
        click.echo(f"trial {trial} has not begun: no worker has logged anything of it", err=True)
    elif place := log.elsewhere(found, record):
        click.echo(place, err=True)
