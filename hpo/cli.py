"""The commands: parse, call one function, print. Nothing heavy is imported before a command needs it, so --help is quick."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from shutil import which
from typing import TYPE_CHECKING, Any

import click

from hpo import __version__
from hpo.errors import CallerError, HpoError, MachineError, SlurmError, WorkerError

if TYPE_CHECKING:
    from hpo.decoder.formats import Partition
    from hpo.search.database import Database
    from hpo.search.slurm import Element, Job
    from hpo.search.spec import StudySpec
    from hpo.search.study import Study


class Commands(click.Group):
    """An HpoError ends a command with one line on standard error and its exit code, never with a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except HpoError as error:
            click.echo(f"hpo: {' '.join(str(error).split())}", err=True)
            ctx.exit(error.exit_code)
        except OSError as error:
            if isinstance(error, BrokenPipeError):
                raise
            named = f" {error.filename}" if error.filename else ""
            click.echo(f"hpo:{named} {error.strerror or error}. Free the space or give another place", err=True)
            ctx.exit(MachineError.exit_code)


def _warn_of_password(ctx: click.Context, parameter: click.Parameter, url: str | None) -> str | None:
    if url:
        from hpo.search.database import has_password

        if has_password(url):
            click.echo("hpo: warning: other users of this machine can read the password of --database in `ps`. Set HPO_DATABASE_URL "
                       "instead, or leave the password out of the URL and put it into ~/.pgpass", err=True)  # fmt: skip
    return url


database_option = click.option("--database", metavar="URL", callback=_warn_of_password,
                               help="Postgres to use instead of the embedded one (or set HPO_DATABASE_URL).")  # fmt: skip
study_option = click.option("--study", required=True, metavar="NAME", help="The study's name, as hpo launch gave it.")
device_option = click.option("--device", metavar="DEVICE", help="cpu, cuda or cuda:N. Default: CUDA when there is one, else the CPU.")
data_option = click.option("--data", type=click.Path(path_type=Path), metavar="PATH",
                           help="A ptDecoder_ctc pickle, a folder with train/*.mat, a Brain-to-Text '25 folder (SESSION/data_train.hdf5), "
                                "or a store of hpo data convert.")  # fmt: skip
weights_option = click.option("--weights", type=click.Choice(["last", "best"]), default="last", show_default=True,
                              help="At the end of the training (what the PER is of), or at the curve's lowest PER.")  # fmt: skip
artifacts_option = click.option("--artifacts", type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
                                help="A folder that all machines of the study see, for checkpoints, weights and logs. "
                                     "Default: the study's, else under HPO_HOME.")  # fmt: skip
code_option = click.option("--allow-different-code", is_flag=True, help="Join though the study was made with other code.")
json_option = click.option("--json", "as_json", is_flag=True, help="JSON instead of text.")
per_gpu_option = click.option("--per-gpu", metavar="auto|N",
                              help="Workers on each GPU. auto: more join while the total step rate grows by 10 %.")  # fmt: skip


def slurm_options(command: Callable[..., None]) -> Callable[..., None]:
    """They reach the command as `cluster`."""
    for option in reversed((
        click.option("--slurm", is_flag=True, help="Submit workers to SLURM and return; the options below are for this."),
        click.option("--nodes", type=int, metavar="N", help="How many nodes. Default: 1."),
        click.option("--gpus-per-node", metavar="[TYPE:]N", help="GPUs of each. Default: 1."),
        click.option("--partition", metavar="NAME", help="SLURM's partition. Default: the cluster's."),
        click.option("--time", metavar="TIME", help="Wall limit as in sbatch, such as 8:00:00. Default: the partition's."),
        click.option("--account", metavar="NAME", help="SLURM's account. Default: yours."),
        click.option("--slurm-option", "options", multiple=True, metavar="K=V", help="Another option of sbatch, such as cpus-per-gpu=4."),
        click.option("--slurm-more", "more", is_flag=True, help="Submit also while jobs of this study wait or run."),
    )):  # fmt: skip
        command = option(command)
    return command


@click.group(cls=Commands)
@click.version_option(__version__, prog_name="hpo")
def main() -> None:
    """Hyperparameter optimization for speech-BCI phoneme decoders.

    Start with: hpo launch --study lr-aug
    """


@main.command()
@click.option("--study", "space", required=True, metavar="SPACE", help="A search space: a bundled name (lr-aug, lr-only) or a YAML file.")
@click.option("--name", metavar="NAME", help="The study's name. Default: the space's.")
@data_option
@click.option("--profile", metavar="NAME", help="A profile of the space. Default: demo for the bundled recordings, else none.")
@click.option("--set", "settings", multiple=True, metavar="FIELD=VALUE", help="Set a field of the base, such as model.units=128.")
@click.option("--trials", type=int, metavar="N", help="The budget: trials completed or stopped by a rule. Default: the space's.")
@click.option("--extend", is_flag=True, help="Go on with a study whose budget or ranges grew.")
@click.option("--workers", type=int, metavar="N", help="Worker processes here. Default: one per GPU, else one per two CPU cores.")
@per_gpu_option
@device_option
@artifacts_option
@code_option
@database_option
@slurm_options
def launch(space: str, name: str | None, data: Path | None, profile: str | None, settings: tuple[str, ...], trials: int | None,
           extend: bool, workers: int | None, per_gpu: str | None, device: str | None, artifacts: Path | None,
           allow_different_code: bool, database: str | None, **cluster: Any) -> None:  # fmt: skip
    """Search: make the study or go on with it, run workers here or with --slurm on a cluster, report.

    Ctrl-C stops the workers at their next step; the same line goes on from there. A second Ctrl-C ends at once.
    """
    from hpo.search.spec import find_space
    from hpo.search.study import check_name

    path = find_space(space)
    check_name(name or path.stem)
    spec = _spec(path, data, profile, settings, trials)
    from rich.console import Console

    from hpo.display import Display
    from hpo.search.database import open_database
    from hpo.search.launch import Launcher, Plan, look_at_data, plan_workers
    from hpo.search.study import Study
    from hpo.search.worker import check_code, code_version

    plan = _slurm_job(cluster, workers, device, per_gpu, database) or plan_workers(workers, device, per_gpu)
    facts, notes = look_at_data(data, spec)
    opened = open_database(database)
    study = Study.create_or_open(opened, name or path.stem, spec, facts, extend)
    study.settle(_made(artifacts), code_version())
    check_code(study, allow_different_code)
    for line in (f"study      {study.name}: {path}, budget {study.budget}", f"kept in    {opened}", *notes, f"workers    {plan}"):
        click.echo(line)
    console = Console(highlight=False)
    end = "done"
    over = study.why_over()
    if over is None and not isinstance(plan, Plan):
        _submit(study, opened, plan, data, device, per_gpu, allow_different_code)
        return
    if over is None and isinstance(plan, Plan):
        with Display(console) as display:
            launcher = Launcher(study, opened, plan, data, allow_different_code=allow_different_code)
            end = launcher.run(display)
        for line in launcher.shared():
            click.echo(line)
    else:
        click.echo(f"Nothing is left to do: {over}")
    click.echo()
    _print_report(study, database)
    if end == "done" and not study.budget_spent():
        if study.runs_elsewhere():
            click.echo("The last trials run under another launch or worker.")
        else:
            raise WorkerError(f"study {study.name} is not done: {study.why_over() or 'trials wait for a worker; the same line goes on'}")
    if end == "interrupted":
        click.echo("Stopped. The study is kept; the same line goes on with it.")
        raise SystemExit(130)  # as shells say it of Ctrl-C


def _spec(path: Path, data: Path | None, profile: str | None, settings: tuple[str, ...], trials: int | None) -> "StudySpec":
    from hpo.search.spec import DEMO_PROFILE, has_profile, load_spec, parse_settings

    if profile is None and data is None and has_profile(path, DEMO_PROFILE):
        profile = DEMO_PROFILE
    return load_spec(path, profile, parse_settings(settings), trials)


def _slurm_job(cluster: dict[str, Any], workers: int | None, device: str | None, per_gpu: str | None, database: str | None) -> "Job | None":
    given = {key: value for key, value in cluster.items() if value is not None and value is not False and value != ()}
    if not given.pop("slurm", False):
        for key in given:
            option = {"options": "slurm-option", "more": "slurm-more"}.get(key, key.replace("_", "-"))
            raise CallerError(f"--{option} without --slurm: it is for a cluster. Add --slurm to submit workers to one")
        return None
    from hpo.search.launch import check_per_gpu, check_whole_node
    from hpo.search.slurm import Job, check_surroundings

    if workers is not None:
        raise CallerError(f"--workers {workers} with --slurm: a node runs a worker per GPU. Give --nodes, --gpus-per-node, --per-gpu")
    check_per_gpu(per_gpu)
    check_whole_node(device)
    job = Job(**given)
    check_surroundings(database)
    return job


def _submit(study: "Study", opened: "Database", job: "Job", data: Path | None, device: str | None, per_gpu: str | None,
            allow_different_code: bool) -> None:  # fmt: skip
    from hpo.search.slurm import after_submission, elements, in_words, submit

    there = [element for element in elements(study) if element.state != "COMPLETING"]
    if there and not job.more:
        click.echo(f"In SLURM's queue already: {in_words(there)}. Nothing was submitted; --slurm-more submits further ones")
        return
    absolute = data.absolute() if data else None
    options = {"--data": absolute, "--device": device, "--per-gpu": per_gpu}
    arguments = [str(part) for name, value in options.items() if value for part in (name, value)]
    number = submit(job, study, opened, [*arguments, *["--allow-different-code"] * allow_different_code])
    click.echo("\n".join(after_submission(number, study, opened, absolute)))


@main.command()
@study_option
@data_option
@device_option
@click.option("--threads", type=click.IntRange(min=1), metavar="N", help="CPU threads. Default: PyTorch's own choice.")
@artifacts_option
@code_option
@click.option("--all-gpus", is_flag=True, help="A process for every GPU of this machine, as hpo launch starts them.")
@per_gpu_option
@click.option("--requeue", is_flag=True, help="In a SLURM job: back into the queue if a signal or the wall limit came before the end.")
@database_option
def worker(study: str, data: Path | None, device: str | None, threads: int | None, artifacts: Path | None, allow_different_code: bool,
           all_gpus: bool, per_gpu: str | None, requeue: bool, database: str | None) -> None:  # fmt: skip
    """Join a study from this machine and run trials until its budget is spent.

    In a SLURM job it leaves before the wall limit. A signal (INT, TERM, USR1, USR2) makes it leave at its next step.
    """
    import logging

    from hpo.search import slurm
    from hpo.search.database import open_database
    from hpo.search.launch import plan_node
    from hpo.search.reporter import persistently
    from hpo.search.study import Study
    from hpo.search.worker import StopFlag, choose_device, run_worker

    if (per_gpu or requeue) and not all_gpus:
        raise CallerError("--per-gpu and --requeue are for all the workers of a machine: add --all-gpus")
    if threads and all_gpus:
        raise CallerError(f"--threads {threads} with --all-gpus: the CPU cores are divided between the workers. Give one of them")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    flag = StopFlag(slurm.leave_at())
    if all_gpus:
        plan = plan_node(device, per_gpu)
        opened = persistently(lambda: open_database(database), flag, logging.warning, limit=60)
        early = slurm.run_node(Study.open(opened, study), opened, plan, data, flag, allow_different_code)
        click.echo(f"The workers left{' before the study was done' if early else ''}")
        if early and requeue and (element := slurm.requeue()):
            click.echo(f"{element} goes back into SLURM's queue, unless it was cancelled")
        return
    flag.catch_signals()
    found = persistently(lambda: Study.open(open_database(database), study), flag, logging.warning, limit=60)
    done = run_worker(found, data, choose_device(device), threads, flag, _made(artifacts), allow_different_code)
    click.echo(f"{done} trials came to an end here; {'stopped by a signal or the wall limit' if flag() else 'nothing is left to do'}")


@main.command()
@study_option
@database_option
@json_option
def status(study: str, database: str | None, as_json: bool) -> None:
    """Show the trials of a study as they are now."""
    from dataclasses import asdict

    from rich.console import Console

    from hpo.display import trial_table

    found = _open(study, database)
    found.sweep()
    records = found.records()
    jobs = _jobs(found)
    if as_json:
        trials = [asdict(record) for record in records]
        parts = {"study": found.name, "budget": found.budget.model_dump(mode="json"), "trials": trials}
        click.echo(json.dumps(parts | ({} if jobs is None else {"jobs": [asdict(job) for job in jobs]}), indent=2))
    else:
        Console(highlight=False).print(trial_table(records, found.budget.trials))
        for job in jobs or []:
            click.echo(f"SLURM {job}")
        if jobs == []:
            click.echo("SLURM none of this study's jobs waits or runs")


def _jobs(study: "Study") -> "list[Element] | None":
    """In SLURM's queue; None: there is no SLURM here, or it has not to do with this study."""
    if not which("squeue"):
        return None
    from hpo.search.slurm import known_elements

    try:
        return known_elements(study)
    except SlurmError as error:  # the trials are worth showing without it
        click.echo(f"hpo: {error}", err=True)
        return None


@main.command()
@study_option
@click.option("--trials", metavar="N|+N", help="Completed or stopped by a rule.")
@click.option("--failures", metavar="N|+N", help="Failed trials that are replaced.")
@click.option("--gpu-hours", metavar="H|+H|none", help="Of all workers; trainings that share a GPU share its hours.")
@click.option("--deadline", metavar="TIME|none", help="Such as 2027-01-31T08:00, in this machine's time zone.")
@database_option
def budget(study: str, trials: str | None, failures: str | None, gpu_hours: str | None, deadline: str | None,
           database: str | None) -> None:  # fmt: skip
    """Show a study's budget and what of it is spent; raise or lower it, also while it runs.

    -N lowers by N, +N raises by N. Workers notice within ten seconds; trials that a lower number of trials would cut are
    finished, those that are beyond the GPU-hours or the deadline are handed back with a checkpoint.
    """
    found = _open(study, database)
    given = {"trials": trials, "failures": failures, "gpu_hours": gpu_hours, "deadline": deadline}
    changes = {name: value for name, value in given.items() if value is not None}
    if changes:
        before, now = found.change_budget(changes)
        click.echo(f"was {before}\nnow {now}")
    else:
        click.echo(f"budget {found.budget}")
    click.echo(f"spent  {found.standing()}")


@main.command()
@study_option
@database_option
@json_option
def report(study: str, database: str | None, as_json: bool) -> None:
    """Report the best PER beside the starts, what was stopped and why, and the compute."""
    _print_report(_open(study, database), database, as_json)


@main.command()
@study_option
@click.option("--trial", default="best", show_default=True, metavar="best|N", help="Which trial.")
@click.option("--format", "kind", type=click.Choice(["yaml", "neural_seq_decoder"]), default="yaml", show_default=True,
              help="The configuration, or the folder that the reference code's loadModel reads.")  # fmt: skip
@weights_option
@click.option("--out", type=click.Path(path_type=Path), required=True, metavar="PATH", help="The YAML file or the folder to write.")
@database_option
def export(study: str, trial: str, kind: str, weights: str, out: Path, database: str | None) -> None:
    """Write a trial's configuration as YAML, or its model for the lab's own code."""
    from hpo.evidence.report import export_text

    found = _open(study, database)
    if kind == "neural_seq_decoder":
        from hpo.evidence.weights import export_reference

        click.echo("\n".join(export_reference(found, trial, weights, out)))
        return
    text = export_text(found, trial)
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise CallerError(f"--out {out}: cannot be written ({error.strerror})") from None
    click.echo(f"wrote {out}")


@main.command()
@click.option("--model", required=True, metavar="PATH|best|N",
              help="A .safetensors file, a neural_seq_decoder folder, or with --study a trial.")  # fmt: skip
@click.option("--study", metavar="NAME", help="The study, when --model is a trial.")
@weights_option
@data_option
@click.option("--partition", type=click.Choice(["train", "test", "competition"]), required=True, help="What to score on.")
@click.option("--padding", type=click.Choice(["masked", "reference"]), help="How padding is treated. Default: as the model was trained.")
@device_option
@database_option
@json_option
def evaluate(model: str, study: str | None, weights: str, data: Path | None, partition: "Partition", padding: str | None,
             device: str | None, database: str | None, as_json: bool) -> None:  # fmt: skip
    """Score one decoder on a partition: PER, and the errors of each sentence. Select nothing on test or competition."""
    from hpo.evidence.weights import score, score_text, weights_of

    path = Path(model)
    if study:
        trained = _open(study, database)
        path, data = weights_of(trained, model, weights), data or trained.data_path
    found = score(path, data, partition, device, padding)
    click.echo(json.dumps(found, indent=2) if as_json else score_text(found))


@main.command()
@click.option("--study", metavar="NAME", help="Compare code and data with those of this study's workers too.")
@data_option
@click.option("--artifacts", type=click.Path(path_type=Path), metavar="DIR",
              help="The folder that the machines share. Default: $HPO_HOME/studies.")  # fmt: skip
@database_option
@json_option
def doctor(study: str | None, data: Path | None, artifacts: Path | None, database: str | None, as_json: bool) -> None:
    """Look at what a worker on this machine needs: GPUs, database, clock, TLS, folders, the study's code and data.

    Exit code 1 if something is missing.
    """
    from dataclasses import asdict

    from hpo.search.doctor import as_text, examine

    findings = examine(study, database, data, artifacts)
    click.echo(json.dumps([asdict(finding) for finding in findings], indent=2) if as_json else as_text(findings))
    if any(finding.level == "fail" for finding in findings):
        raise SystemExit(MachineError.exit_code)


@main.group()
def data() -> None:
    """Look at data sets, and make them quick to open."""


@data.command(name="check")
@click.argument("path", type=click.Path(path_type=Path), required=False)
@click.option("--kernel", type=click.IntRange(min=1), metavar="N", help="Of the decoder, in bins, for CTC's needs. Default: 32.")
@click.option("--stride", type=click.IntRange(min=1), metavar="N", help="Of the decoder, in bins. Default: 4.")
@json_option
def data_check(path: Path | None, kernel: int | None, stride: int | None, as_json: bool) -> None:
    """Say what is in PATH and what is wrong with it. Without PATH: the bundled recordings.

    Exit code 2 if it cannot be trained on.
    """
    from hpo.decoder.config import ModelConfig
    from hpo.decoder.facts import data_facts
    from hpo.errors import DataError

    given = {name: value for name, value in (("kernel", kernel), ("stride", stride)) if value}
    facts = data_facts(path, ModelConfig.model_validate(given))
    if as_json:
        click.echo(json.dumps(facts, indent=2))
    else:
        from rich.console import Console

        from hpo.display import data_picture

        Console(highlight=False).print(data_picture(facts))
    if facts["fault"]:
        raise DataError(facts["fault"])
    if not as_json:
        click.echo(f"\nNext: hpo launch --study lr-aug{f' --data {path}' if path else ''}")


@data.command(name="convert")
@click.argument("source", metavar="SRC", type=click.Path(path_type=Path))
@click.argument("out", metavar="OUT", type=click.Path(path_type=Path))
def data_convert(source: Path, out: Path) -> None:
    """Write the data set SRC as OUT, a folder that opens at once and that all workers of a machine share in memory."""
    from hpo.decoder.formats import open_source
    from hpo.decoder.store import convert

    try:
        manifest = convert(open_source(source), out)
    except KeyboardInterrupt:
        click.echo(f"Stopped. Nothing was written to {out}", err=True)
        raise SystemExit(130) from None
    for name, part in manifest.partitions.items():
        click.echo(f"{name:<12}{part.sentences} sentences, {part.features} features, fingerprint {part.fingerprint}")
        if part.guessed:
            click.echo(f"            {len(part.guessed)} words are in no dictionary, their phonemes guessed from their letters")
    click.echo(f"wrote {out}, {manifest.bytes() / 1e9:.2f} GB\nNext: hpo data check {out}, or hpo launch --study lr-aug --data {out}")


@main.group()
def database() -> None:
    """The embedded Postgres of this HPO_HOME."""


@database.command(name="status")
def database_status() -> None:
    """Say whether it runs and where its data are."""
    from hpo.search.database import EmbeddedServer, home

    server = EmbeddedServer(home())
    url = server.url()
    click.echo(f"{'running at ' + url.rpartition('@')[2] if url else 'not running'}; data in {server.data}")


@database.command(name="stop")
def database_stop() -> None:
    """Stop it, for every process that uses it. The next command that needs it starts it again."""
    from hpo.search.database import EmbeddedServer, home

    click.echo("stopped" if EmbeddedServer(home()).stop() else "it was not running")


def _made(folder: Path | None) -> Path | None:
    if folder:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CallerError(f"--artifacts {folder}: cannot be made ({error.strerror})") from None
    return folder


def _open(study: str, database: str | None) -> "Study":
    from hpo.search.database import open_database
    from hpo.search.study import Study

    return Study.open(open_database(database), study)


def _print_report(study: "Study", database: str | None, as_json: bool = False) -> None:
    from hpo.evidence.report import as_text, build_report, next_command

    report = build_report(study)
    click.echo(json.dumps(report, indent=2) if as_json else f"{as_text(report)}\nNext: {next_command(report, database)}")


if __name__ == "__main__":
    main()
