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
    ensure_folder,
    per_gpu_option,
    read_study,
    slurm_options,
    study_option,
)
from hpo.errors import CallerError, WorkerError

if TYPE_CHECKING:
    from hpo.launch.launcher import Launcher
    from hpo.launch.slurm import Job
    from hpo.space.spec import StudySpec
    from hpo.store.database import Database
    from hpo.study.reader import StudyReader
    from hpo.study.study import Study

# Options of SLURM whose parameter has another name.
OPTION_NAMES = {"options": "slurm-option", "more": "slurm-more"}


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
@click.option("--name", metavar="NAME", help="The study's name. Default: that of the space.")
@data_option
@click.option(
    "--profile",
    metavar="NAME",
    help="A profile of the space. Default: demo for the bundled recordings, otherwise none.",
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
    help="The budget: how many trials are started, failed ones not counted. Default: the space's.",
)
@click.option(
    "--policy", metavar="gp|tpe|random", help="How configurations are drawn. Default: the space's."
)
@click.option(
    "--extend", is_flag=True, help="Continue a study with a larger budget or wider ranges."
)
@click.option(
    "--workers",
    type=int,
    metavar="N",
    help="Worker processes here. Default: one per GPU, or one per two CPU cores without a GPU.",
)
@per_gpu_option
@device_option
@artifacts_option
@code_option
@click.option(
    "--notify",
    metavar="URL",
    envvar="HPO_NOTIFY_URL",
    callback=_checked_url,
    help="POST JSON to this URL at a new best, at trouble and at the end (or set HPO_NOTIFY_URL). "
    "Slack's webhooks accept it.",
)
@click.option(
    "--track",
    multiple=True,
    metavar="tensorboard|mlflow|wandb|none",
    callback=_checked_trackers,
    help="Also write every trial to this tracker, from now on; may be repeated. none: stop doing "
    "so.",
)
@database_option
@slurm_options
def launch(
    space: str,
    name: str | None,
    data: Path | None,
    profile: str | None,
    settings: tuple[str, ...],
    trials: int | None,
    policy: str | None,
    extend: bool,
    workers: int | None,
    per_gpu: str | None,
    device: str | None,
    artifacts: Path | None,
    allow_different_code: bool,
    notify: str | None,
    track: list[str] | None,
    database: str | None,
    **cluster: Any,
) -> None:
    """Search: create or continue a study, run workers here or on a SLURM cluster, and report.

    Ctrl-C stops the workers at their next step; run the same command to continue. A second Ctrl-C
    ends them at once.
    """
    from hpo.space.load import find_space
    from hpo.study.names import check_name

    path = find_space(space)
    study_name = name or path.stem
    check_name(study_name)
    spec = _spec(path, data, profile, settings, trials, policy)

    # Optuna and PyTorch are imported only now, when the spec is known to be valid.
    from hpo.launch.launcher import Launcher, Plan, plan_workers
    from hpo.store.database import open_database
    from hpo.study import control
    from hpo.study.study import Study
    from hpo.study.version import check_code_of, code_version
    from hpo.worker.dataset import look_at_data

    gpus = spec.load_trainer().gpus
    plan: Job | Plan
    job = _slurm_job(cluster, workers, device, per_gpu, database)
    if job is None:
        plan = plan_workers(workers, device, per_gpu, gpus)
    else:
        plan = job
        if device != "cpu":
            job.check_gpus(gpus)
    dataset = look_at_data(data, spec)
    opened = open_database(database)
    code = code_version(spec)
    check_code_of(opened, study_name, code, allow_different_code)
    study = Study.create_or_open(opened, study_name, spec, dataset.facts, extend)
    study.settle(ensure_folder(artifacts), code)
    tracker_lines = _track(study, track)
    halt = study.halt
    if halt and halt.state == "stopped":
        control.resume(study)

    click.echo(f"study      {study.name}: {path}, budget {study.budget}")
    click.echo(f"kept in    {opened}")
    for line in [*tracker_lines, *dataset.lines, *_weights_lines(study)]:
        click.echo(line)
    click.echo(f"workers    {plan}")
    if halt:
        effect = f"workers wait for hpo resume --study {study.name}"
        if halt.state == "stopped":
            effect = "it continues now"
        click.echo(f"           {halt}; {effect}")

    ending = "done"
    why_over = study.why_over()
    if why_over is not None:
        click.echo(f"Nothing is left to do: {why_over}")
    elif isinstance(plan, Plan):
        launcher = Launcher(study, opened, plan, data, allow_different_code=allow_different_code)
        _announce_neighbours(launcher)
        ending = _run(launcher, notify)
    else:
        if notify:
            click.echo(
                "--notify: no process stays here to send messages. Run hpo launch without --slurm "
                "for that"
            )
        _submit(study, opened, plan, data, device, per_gpu, allow_different_code)
        return
    click.echo()
    print_report(study, database)
    _conclude(study, ending, worked=why_over is None)


def _track(study: "Study", names: list[str] | None) -> list[str]:
    """Store which trackers the study uses; None changes nothing. Returns lines to print."""
    from hpo.study.paths import study_folder
    from hpo.worker.trackers import FOLDER, choose, chosen

    if names is not None:
        choose(study, names)
    trackers, _ = chosen(study)
    if not trackers:
        return []
    return [f"tracked    {', '.join(trackers)} in {study_folder(study) / FOLDER}"]


def _weights_lines(study: "Study") -> list[str]:
    from hpo.worker.keeping import rule_of

    rule = rule_of(study.spec)
    return [f"weights    {rule}"] if rule else []


def _announce_neighbours(launcher: "Launcher") -> None:
    from hpo.launch.neighbours import announcement, still_to_start

    found = launcher.neighbours()
    if found:
        missing = still_to_start(launcher.plan.devices, found)
        click.echo(f"           {announcement(found, missing)}")


def _run(launcher: "Launcher", notify: str | None) -> str:
    """Run the workers and show the trials. Returns how it ended: "done" or "interrupted"."""
    from rich.console import Console

    from hpo.launch.notify import notifying
    from hpo.terminal.live import LiveView

    def warn(problem: str) -> None:
        click.echo(f"hpo: {problem}", err=True)

    view = LiveView(launcher.study, Console(highlight=False), with_history=False)
    with notifying(notify, launcher.study, warn) as notifier, view:
        ending = launcher.run(view.look, notifier if notify else None)
    for line in launcher.shared():
        click.echo(line)
    return ending


def _conclude(study: "Study", ending: str, worked: bool) -> None:
    """Say why the workers left, unless the whole budget is spent. Raises WorkerError.

    worked: workers ran in this command.
    """
    if ending == "interrupted":
        click.echo("Stopped. The study is kept; run the same command to continue.")
        # The exit code of a program that Ctrl-C ended.
        raise SystemExit(130)
    if ending != "done":
        return
    if not study.budget_spent():
        if study.runs_elsewhere():
            click.echo("The last trials are running under another launch or worker.")
            return
        # The last trial may have ended elsewhere between these looks.
        if not study.budget_spent():
            why = study.why_over() or "trials wait for a worker; run the same command to continue"
            raise WorkerError(f"study {study.name} is not done: {why}")
    elif worked and study.standing().ended < study.budget.trials:
        # GPU-hours or the deadline ended the study before its number of trials did.
        click.echo(f"The workers left: {study.why_over()}")


def _spec(
    path: Path,
    data: Path | None,
    profile: str | None,
    settings: tuple[str, ...],
    trials: int | None,
    policy: str | None,
) -> "StudySpec":
    from hpo.space.load import DEMO_PROFILE, has_profile, load_spec, parse_settings

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
    """The job that the options of SLURM describe, or None without --slurm. Raises CallerError."""
    # 0 is kept: it was given, and is refused below.
    options = {
        name: value
        for name, value in cluster.items()
        if value is not None and value is not False and value != ()
    }
    if not options.pop("slurm", False):
        for name in options:
            option = OPTION_NAMES.get(name, name.replace("_", "-"))
            raise CallerError(
                f"--{option} without --slurm: it is for a cluster. "
                "Add --slurm to submit workers to one"
            )
        return None
    from hpo.launch.launcher import check_per_gpu, check_whole_node
    from hpo.launch.slurm import Job, check_surroundings

    if workers is not None:
        raise CallerError(
            f"--workers {workers} with --slurm: a node runs one worker per GPU. "
            "Give --nodes, --gpus-per-node or --per-gpu"
        )
    check_per_gpu(per_gpu)
    check_whole_node(device)
    job = Job(**options)
    check_surroundings(database)
    return job


def _submit(
    study: "Study",
    opened: "Database",
    job: "Job",
    data: Path | None,
    device: str | None,
    per_gpu: str | None,
    allow_different_code: bool,
) -> None:
    from hpo.launch.slurm import after_submission, count_by_state, queued_elements, submit

    queued = [element for element in queued_elements(study) if element.state != "COMPLETING"]
    if queued and not job.more:
        click.echo(
            f"Already in SLURM's queue: {count_by_state(queued)}. "
            "Nothing was submitted; --slurm-more submits more"
        )
        return
    absolute = data.absolute() if data else None
    arguments: list[str] = []
    for option, value in (("--data", absolute), ("--device", device), ("--per-gpu", per_gpu)):
        if value:
            arguments += [option, str(value)]
    if allow_different_code:
        arguments.append("--allow-different-code")
    number = submit(job, study, opened, arguments)
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
    help="Start a worker on every GPU of this machine, as hpo launch does.",
)
@per_gpu_option
@click.option(
    "--requeue",
    is_flag=True,
    help="In a SLURM job: requeue it if a signal or the wall limit comes before the study is done.",
)
@database_option
def worker(
    study: str,
    data: Path | None,
    device: str | None,
    threads: int | None,
    artifacts: Path | None,
    allow_different_code: bool,
    all_gpus: bool,
    per_gpu: str | None,
    requeue: bool,
    database: str | None,
) -> None:
    """Join a study from this machine and run trials until its budget is spent.

    In a SLURM job the worker leaves before the wall limit. A signal (INT, TERM, USR1, USR2) makes
    it leave at its next step.
    """
    import logging

    from hpo.launch import slurm_element
    from hpo.launch.launcher import plan_node
    from hpo.launch.neighbours import remove_mark
    from hpo.store.database import open_database
    from hpo.study.study import Study
    from hpo.worker.device import check_gpus, choose_device, held_gpus
    from hpo.worker.reporter import ask_until_answered
    from hpo.worker.signals import StopFlag
    from hpo.worker.worker import run_worker

    remove_mark()
    if (per_gpu or requeue) and not all_gpus:
        raise CallerError(
            "--per-gpu and --requeue apply to all workers of a machine: add --all-gpus"
        )
    if threads and all_gpus:
        raise CallerError(
            f"--threads {threads} with --all-gpus: the CPU cores are divided between the workers. "
            "Give one of the two"
        )
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    flag = StopFlag(slurm_element.leave_at())
    if all_gpus:
        # A machine without a GPU is refused before the database is asked.
        plan_node(device, per_gpu)
        opened = ask_until_answered(
            lambda: open_database(database), flag, logging.warning, limit=60
        )
        opened_study = Study.open(opened, study)
        plan = plan_node(device, per_gpu, opened_study.spec.load_trainer().gpus)
        left_early = slurm_element.run_node(
            opened_study, opened, plan, data, flag, allow_different_code
        )
        if not left_early:
            click.echo("The workers left")
            return
        click.echo("The workers left before the study was done")
        element = slurm_element.requeue() if requeue else None
        if element:
            click.echo(f"{element} goes back into SLURM's queue, unless it was cancelled")
        return

    flag.catch_signals()
    opened_study = ask_until_answered(
        lambda: Study.open(open_database(database), study), flag, logging.warning, limit=60
    )
    chosen_device = choose_device(device)
    check_gpus(device, chosen_device, opened_study.spec.load_trainer().gpus)
    notes: list[str] = []
    trials_run = run_worker(
        opened_study,
        data,
        chosen_device,
        threads,
        flag,
        ensure_folder(artifacts),
        allow_different_code,
        held_gpus(device, chosen_device),
        notes,
    )
    if flag():
        why = "stopped by a signal or the wall limit"
    else:
        why = str(opened_study.halt or "nothing is left to do")
    click.echo("; ".join([f"{trials_run} trials ended here", why, *notes]))


@click.command()
@study_option
@click.option("--trials", metavar="N|+N", help="Trials that complete or are stopped by a rule.")
@click.option("--failures", metavar="N|+N", help="Failed trials that are replaced.")
@click.option(
    "--gpu-hours",
    metavar="H|+H|none",
    help="GPU-hours of all workers, such as 8 or 2h30m; trainings that share a GPU share its "
    "hours, and on CPUs they are worker-hours.",
)
@click.option(
    "--deadline",
    metavar="TIME|+TIME|none",
    help="Such as 2027-01-31T08:00, tomorrow 8:00 or 18:30, in this machine's time zone; 8h is 8 "
    "hours from now, +8h moves the deadline by 8 hours.",
)
@database_option
def budget(
    study: str,
    trials: str | None,
    failures: str | None,
    gpu_hours: str | None,
    deadline: str | None,
    database: str | None,
) -> None:
    """Show a study's budget and how much of it is spent; raise or lower it, even during a search.

    -N lowers by N, +N raises by N. Workers notice within ten seconds. Running trials beyond a
    lower number of trials are finished; those beyond the GPU-hours or the deadline are handed back
    with a checkpoint.
    """
    opened = read_study(study, database)
    options = {"trials": trials, "failures": failures, "gpu_hours": gpu_hours, "deadline": deadline}
    changes = {name: value for name, value in options.items() if value is not None}
    unit = opened.standing().unit
    if not changes:
        click.echo(f"budget {opened.budget.in_words(unit)}")
    else:
        before, after = opened.change_budget(changes)
        click.echo(f"was {before.in_words(unit)}\nnow {after.in_words(unit)}")
        why_over = opened.why_over()
        if why_over:
            click.echo(f"Nothing new starts: {why_over}.{_fate_of_running(opened)}")
    click.echo(f"spent  {opened.standing()}")


def _fate_of_running(study: "StudyReader") -> str:
    if not study.standing().running:
        return ""
    if study.why_hand_back():
        return " Running trials are handed back."
    return " Running trials are finished."
