"""Running a study: launch, worker, budget."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hpo.commands.results import print_report
from hpo.commands.shared import (
    artifacts_option,
    code_option,
    data_option,
    database_option,
    device_option,
    made,
    per_gpu_option,
    read_study,
    slurm_options,
    study_option,
)  # fmt: skip
from hpo.errors import CallerError, WorkerError

if TYPE_CHECKING:
    from hpo.launch.launcher import Launcher
    from hpo.launch.slurm import Job
    from hpo.space.spec import StudySpec
    from hpo.store.database import Database
    from hpo.study.study import Study


def _checked_url(ctx: click.Context, parameter: click.Parameter, url: str | None) -> str | None:
    if not url:
        return None
    from hpo.launch.notify import check_url

    return check_url(url)


def _checked_trackers(
    ctx: click.Context, parameter: click.Parameter, names: tuple[str, ...]
) -> list[str] | None:
    if not names:
        return None
    from hpo.worker.trackers import check

    return check(names)


@click.command()
@click.option(
    "--study",
    "space",
    required=True,
    metavar="SPACE",
    help="A search space: a bundled name (lr-aug, lr-only) or a YAML file.",
)
@click.option("--name", metavar="NAME", help="The study's name. Default: the space's.")
@data_option
@click.option(
    "--profile",
    metavar="NAME",
    help="A profile of the space. Default: demo for the bundled recordings, else none.",
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="FIELD=VALUE",
    help="Set a field of the base, such as model.units=128.",
)
@click.option(
    "--trials",
    type=int,
    metavar="N",
    help="The budget: trials that are begun and do not fail. Default: the space's.",
)
@click.option(
    "--policy", metavar="gp|tpe|random", help="How configurations are drawn. Default: the space's."
)
@click.option("--extend", is_flag=True, help="Go on with a study whose budget or ranges grew.")
@click.option(
    "--workers",
    type=int,
    metavar="N",
    help="Worker processes here. Default: one per GPU, else one per two CPU cores.",
)
@per_gpu_option
@device_option
@artifacts_option
@code_option
@click.option("--notify", metavar="URL", envvar="HPO_NOTIFY_URL", callback=_checked_url,
              help="POST a JSON there at a new best, at trouble and the end (or set HPO_NOTIFY_URL); fits Slack's webhooks.")  # fmt: skip
@click.option("--track", multiple=True, metavar="tensorboard|mlflow|wandb|none", callback=_checked_trackers,
              help="Write every trial there too, from now on; may be repeated. none: no more.")  # fmt: skip
@database_option
@slurm_options
def launch(space: str, name: str | None, data: Path | None, profile: str | None, settings: tuple[str, ...], trials: int | None,
           policy: str | None, extend: bool, workers: int | None, per_gpu: str | None, device: str | None, artifacts: Path | None,
           allow_different_code: bool, notify: str | None, track: list[str] | None, database: str | None,
           **cluster: Any) -> None:  # fmt: skip
    """Search: make the study or go on with it, run workers here or with --slurm on a cluster, report.

    Ctrl-C stops the workers at their next step; the same line goes on from there. A second Ctrl-C ends at once.
    """
    from hpo.space.spec import find_space
    from hpo.study.names import check_name

    path = find_space(space)
    check_name(name or path.stem)
    spec = _spec(path, data, profile, settings, trials, policy)
    from hpo.launch.launcher import Launcher, Plan, plan_workers
    from hpo.store.database import open_database
    from hpo.study import control
    from hpo.study.study import Study
    from hpo.study.version import check_code_of, code_version
    from hpo.worker.dataset import look_at_data

    gpus = spec.load_trainer().gpus
    job = _slurm_job(cluster, workers, device, per_gpu, database)
    if job and device != "cpu":
        job.check_gpus(gpus)
    plan = job or plan_workers(workers, device, per_gpu, gpus)
    looked = look_at_data(data, spec)
    opened = open_database(database)
    code = code_version(spec)
    check_code_of(opened, name or path.stem, code, allow_different_code)
    study = Study.create_or_open(opened, name or path.stem, spec, looked.facts, extend)
    study.settle(made(artifacts), code)
    tracked = _track(study, track)
    halted = study.halt
    if halted and halted.state == "stopped":
        control.resume(study)
    lines = [
        f"study      {study.name}: {path}, budget {study.budget}",
        f"kept in    {opened}",
        *tracked,
        *looked.lines,
        f"workers    {plan}",
    ]
    click.echo("\n".join(lines))
    if halted:
        goes_on = (
            "it goes on now"
            if halted.state == "stopped"
            else f"workers wait for hpo resume --study {study.name}"
        )
        click.echo(f"           {halted}; {goes_on}")
    end = "done"
    over = study.why_over()
    if over is None and not isinstance(plan, Plan):
        if notify:
            click.echo(
                "--notify: no process stays here that could; run hpo launch without --slurm for that"
            )
        _submit(study, opened, plan, data, device, per_gpu, allow_different_code)
        return
    if over is None and isinstance(plan, Plan):
        end = _run(
            Launcher(study, opened, plan, data, allow_different_code=allow_different_code), notify
        )
    else:
        click.echo(f"Nothing is left to do: {over}")
    click.echo()
    print_report(study, database)
    _conclude(study, end, over is None)


def _track(study: "Study", names: list[str] | None) -> list[str]:
    """Remember the trackers; None: what they were. Returns lines for people."""
    from hpo.study.paths import study_folder
    from hpo.worker.trackers import FOLDER, choose, chosen

    if names is not None:
        choose(study, names)
    there, _ = chosen(study)
    return [f"tracked    {', '.join(there)} in {study_folder(study) / FOLDER}"] if there else []


def _run(launcher: "Launcher", notify: str | None) -> str:
    """Run the workers and show the trials. Returns how that ended."""
    from rich.console import Console

    from hpo.launch.notify import notifying
    from hpo.terminal.live import LiveView

    def say(problem: str) -> None:
        click.echo(f"hpo: {problem}", err=True)

    view = LiveView(launcher.study, Console(highlight=False), tell_all=False)
    with notifying(notify, launcher.study, say) as news, view:
        end = launcher.run(view.look, news if notify else None)
    for line in launcher.shared():
        click.echo(line)
    return end


def _conclude(study: "Study", end: str, worked: bool) -> None:
    """Say why the workers left, where that is not because all is done. Raises WorkerError."""
    if end == "done" and not study.budget_spent():
        if study.runs_elsewhere():
            click.echo("The last trials run under another launch or worker.")
        else:
            raise WorkerError(
                f"study {study.name} is not done: {study.why_over() or 'trials wait for a worker; the same line goes on'}"
            )
    elif (
        end == "done" and worked and study.standing().ended < study.budget.trials
    ):  # GPU-hours or deadline
        click.echo(f"The workers left: {study.why_over()}")
    if end == "interrupted":
        click.echo("Stopped. The study is kept; the same line goes on with it.")
        raise SystemExit(130)  # as shells say it of Ctrl-C


def _spec(path: Path, data: Path | None, profile: str | None, settings: tuple[str, ...], trials: int | None,
          policy: str | None) -> "StudySpec":  # fmt: skip
    from hpo.space.spec import DEMO_PROFILE, has_profile, load_spec, parse_settings

    if profile is None and data is None and has_profile(path, DEMO_PROFILE):
        profile = DEMO_PROFILE
    return load_spec(path, profile, parse_settings(settings), trials, policy)


def _slurm_job(
    cluster: dict[str, Any],
    workers: int | None,
    device: str | None,
    per_gpu: str | None,
    database: str | None,
) -> "Job | None":
    given = {
        key: value
        for key, value in cluster.items()
        if value is not None and value is not False and value != ()
    }
    if not given.pop("slurm", False):
        for key in given:
            option = {"options": "slurm-option", "more": "slurm-more"}.get(
                key, key.replace("_", "-")
            )
            raise CallerError(
                f"--{option} without --slurm: it is for a cluster. Add --slurm to submit workers to one"
            )
        return None
    from hpo.launch.launcher import check_per_gpu, check_whole_node
    from hpo.launch.slurm import Job, check_surroundings

    if workers is not None:
        raise CallerError(
            f"--workers {workers} with --slurm: a node runs a worker per GPU. Give --nodes, --gpus-per-node, --per-gpu"
        )
    check_per_gpu(per_gpu)
    check_whole_node(device)
    job = Job(**given)
    check_surroundings(database)
    return job


def _submit(study: "Study", opened: "Database", job: "Job", data: Path | None, device: str | None, per_gpu: str | None,
            allow_different_code: bool) -> None:  # fmt: skip
    from hpo.launch.slurm import after_submission, elements, in_words, submit

    there = [element for element in elements(study) if element.state != "COMPLETING"]
    if there and not job.more:
        click.echo(
            f"In SLURM's queue already: {in_words(there)}. Nothing was submitted; --slurm-more submits further ones"
        )
        return
    absolute = data.absolute() if data else None
    options = {"--data": absolute, "--device": device, "--per-gpu": per_gpu}
    arguments = [str(part) for name, value in options.items() if value for part in (name, value)]
    number = submit(
        job, study, opened, [*arguments, *["--allow-different-code"] * allow_different_code]
    )
    click.echo("\n".join(after_submission(number, study, opened, absolute)))


@click.command()
@study_option
@data_option
@device_option
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    metavar="N",
    help="CPU threads. Default: PyTorch's own choice.",
)
@artifacts_option
@code_option
@click.option(
    "--all-gpus",
    is_flag=True,
    help="A process for every GPU of this machine, as hpo launch starts them.",
)
@per_gpu_option
@click.option(
    "--requeue",
    is_flag=True,
    help="In a SLURM job: back into the queue if a signal or the wall limit came before the end.",
)
@database_option
def worker(study: str, data: Path | None, device: str | None, threads: int | None, artifacts: Path | None, allow_different_code: bool,
           all_gpus: bool, per_gpu: str | None, requeue: bool, database: str | None) -> None:  # fmt: skip
    """Join a study from this machine and run trials until its budget is spent.

    In a SLURM job it leaves before the wall limit. A signal (INT, TERM, USR1, USR2) makes it leave at its next step.
    """
    import logging

    from hpo.launch import slurm_element
    from hpo.launch.launcher import plan_node
    from hpo.store.database import open_database
    from hpo.study.study import Study
    from hpo.worker.device import check_gpus, choose_device, held_gpus
    from hpo.worker.reporter import persistently
    from hpo.worker.signals import StopFlag
    from hpo.worker.worker import run_worker

    if (per_gpu or requeue) and not all_gpus:
        raise CallerError(
            "--per-gpu and --requeue are for all the workers of a machine: add --all-gpus"
        )
    if threads and all_gpus:
        raise CallerError(
            f"--threads {threads} with --all-gpus: the CPU cores are divided between the workers. Give one of them"
        )
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    flag = StopFlag(slurm_element.leave_at())
    if all_gpus:
        # A machine without a GPU says so before the database is asked.
        plan_node(device, per_gpu)
        opened = persistently(lambda: open_database(database), flag, logging.warning, limit=60)
        joined = Study.open(opened, study)
        plan = plan_node(device, per_gpu, joined.spec.load_trainer().gpus)
        early = slurm_element.run_node(joined, opened, plan, data, flag, allow_different_code)
        click.echo(f"The workers left{' before the study was done' if early else ''}")
        if early and requeue and (element := slurm_element.requeue()):
            click.echo(f"{element} goes back into SLURM's queue, unless it was cancelled")
        return
    flag.catch_signals()
    found = persistently(
        lambda: Study.open(open_database(database), study), flag, logging.warning, limit=60
    )
    chosen = choose_device(device)
    check_gpus(device, chosen, found.spec.load_trainer().gpus)
    held = held_gpus(device, chosen)
    done = run_worker(
        found, data, chosen, threads, flag, made(artifacts), allow_different_code, held
    )
    click.echo(f"{done} trials came to an end here; "
               f"{'stopped by a signal or the wall limit' if flag() else found.halt or 'nothing is left to do'}")  # fmt: skip


@click.command()
@study_option
@click.option("--trials", metavar="N|+N", help="That are completed or stopped by a rule.")
@click.option("--failures", metavar="N|+N", help="Failed trials that are replaced.")
@click.option(
    "--gpu-hours",
    metavar="H|+H|none",
    help="Of all workers; trainings that share a GPU share its hours.",
)
@click.option(
    "--deadline", metavar="TIME|none", help="Such as 2027-01-31T08:00, in this machine's time zone."
)
@database_option
def budget(study: str, trials: str | None, failures: str | None, gpu_hours: str | None, deadline: str | None,
           database: str | None) -> None:  # fmt: skip
    """Show a study's budget and what of it is spent; raise or lower it, also while it runs.

    -N lowers by N, +N raises by N. Workers notice within ten seconds; trials that a lower number of trials would cut are
    finished, those that are beyond the GPU-hours or the deadline are handed back with a checkpoint.
    """
    found = read_study(study, database)
    given = {"trials": trials, "failures": failures, "gpu_hours": gpu_hours, "deadline": deadline}
    changes = {name: value for name, value in given.items() if value is not None}
    if changes:
        before, now = found.change_budget(changes)
        click.echo(f"was {before}\nnow {now}")
        if changes and (over := found.why_over()):
            handed = (
                " Trials that run are handed back."
                if found.over()
                else " Trials that run are finished."
            )
            click.echo(f"Nothing new starts: {over}.{handed * bool(found.standing().running)}")
    else:
        click.echo(f"budget {found.budget}")
    click.echo(f"spent  {found.standing()}")
