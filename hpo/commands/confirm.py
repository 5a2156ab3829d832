"""What a study's numbers are worth: confirm, ablate."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from hpo.commands.shared import (
    code_option,
    data_option,
    database_option,
    device_option,
    echo_json,
    json_option,
    per_gpu_option,
    study_option,
)
from hpo.errors import CallerError

if TYPE_CHECKING:
    from hpo.analysis.retrain import Train
    from hpo.store.database import Database
    from hpo.study.study import Study

# Between looks at trials that run elsewhere.
LOOK_SECONDS = 2.0


@dataclass(frozen=True)
class Parent:
    """The study whose configurations are retrained, with its database."""

    study: "Study"
    database: "Database"


def training_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options of commands that train."""
    workers = click.option(
        "--workers",
        type=int,
        metavar="N",
        help="Worker processes here. Default: one per GPU, or one per two CPU cores without a GPU.",
    )
    options = (
        data_option,
        workers,
        per_gpu_option,
        device_option,
        code_option,
        database_option,
        json_option,
    )
    for option in reversed(options):
        command = option(command)
    return command


@click.command()
@study_option
@click.option(
    "--top",
    type=int,
    default=3,
    show_default=True,
    metavar="N",
    help="How many of the best trials to retrain, in addition to the starts.",
)
@click.option(
    "--seeds",
    type=int,
    default=5,
    show_default=True,
    metavar="N",
    help="Fresh seeds of each configuration.",
)
@training_options
def confirm(
    study: str, top: int, seeds: int, database: str | None, as_json: bool, **how: Any
) -> None:
    """Retrain the best configurations and the starts with fresh seeds, and score them on test.

    Ctrl-C stops the workers; run the same command to continue. Other machines may join with
    hpo worker --study STUDY.confirm.
    """
    from hpo.analysis.confirm import as_text, choose
    from hpo.analysis.confirm import confirm as retrain

    parent = _open_parent(study, database)
    chosen = choose(parent.study, top)
    has_test = parent.study.spec.load_trainer().cuts_validation
    train, workers = _prepare_training(parent, as_json, score_test=has_test, **how)
    child = _open_child(parent, "confirm", workers, len(chosen) * seeds, as_json)
    finding = retrain(parent.study, child, top, seeds, train)
    metric = parent.study.spec.metric
    if as_json:
        echo_json(finding.model_dump(mode="json"), metric)
    else:
        click.echo(as_text(study, finding, metric))


def _open_parent(study: str, database: str | None) -> Parent:
    from hpo.store.database import open_database
    from hpo.study.study import Study

    opened = open_database(database)
    return Parent(Study.open(opened, study), opened)


def _open_child(parent: Parent, kind: Any, workers: int, trainings: int, as_json: bool) -> "Study":
    """The study that holds the retrainings. Prints what it may cost."""
    from hpo.analysis.child import open_child
    from hpo.analysis.retrain import cost
    from hpo.study.version import code_version
    from hpo.worker.trackers import choose, chosen

    study = parent.study
    partitions: tuple[Literal["test"], ...] = ()
    if kind == "confirm" and study.spec.load_trainer().cuts_validation:
        partitions = ("test",)
    child = open_child(parent.database, study, kind, partitions)
    child.settle(study.artifacts, code_version(study.spec))
    trackers, _ = chosen(study)
    choose(child, trackers)
    if not as_json:
        line = (
            f"study      {child.name}: at most {cost(study, trainings, workers)}; "
            "finished trainings are not repeated"
        )
        waiting = sum(record.state == "waiting" for record in child.records())
        if waiting:
            line += f", {waiting} that an earlier command left waiting are done, too"
        click.echo(line)
    return child


def _prepare_training(
    parent: Parent,
    as_json: bool,
    score_test: bool,
    data: Path | None,
    workers: int | None,
    per_gpu: str | None,
    device: str | None,
    allow_different_code: bool,
) -> "tuple[Train, int]":
    """Check what training needs.

    Returns a function that trains the waiting trials of a child study, and its number of workers.
    """
    from rich.console import Console

    from hpo.analysis.retrain import check_data
    from hpo.errors import StudyError
    from hpo.launch.launcher import Launcher, plan_workers
    from hpo.study.version import check_code
    from hpo.terminal.live import LiveView

    plan = plan_workers(workers, device, per_gpu, parent.study.spec.load_trainer().gpus)
    check_code(parent.study, allow_different_code)
    check_data(parent.study, data, score_test)

    def train(child: "Study") -> None:
        check_code(child, allow_different_code)
        launcher = Launcher(
            child, parent.database, plan, data, allow_different_code=allow_different_code
        )
        while True:
            states = {record.state for record in child.records()}
            if not states & {"waiting", "running"}:
                return
            if "waiting" not in states:
                # They run elsewhere, or their workers have died.
                time.sleep(LOOK_SECONDS)
                child.sweep()
                continue
            why_over = child.why_over()
            if why_over:
                raise StudyError(f"study {child.name}: {why_over}")
            with LiveView(
                child, Console(highlight=False, quiet=as_json), with_history=False
            ) as view:
                ending = launcher.run(view.look)
            if ending == "interrupted":
                click.echo(
                    "Stopped. Finished trainings are kept; run the same command to continue.",
                    err=True,
                )
                raise SystemExit(130)

    return train, len(plan.devices)


@click.command()
@study_option
@click.option(
    "--from",
    "start",
    metavar="START|N|best",
    help="Where the path begins: a start, a trial's number, or best.",
)
@click.option(
    "--to", "end", default="best", show_default=True, metavar="START|N|best", help="Where it ends."
)
@click.option(
    "--questions", "ask", is_flag=True, help="Measure the questions of the study's space."
)
@click.option(
    "--seeds",
    type=int,
    default=3,
    show_default=True,
    metavar="N",
    help="Fresh seeds of each measured configuration.",
)
@click.option(
    "--select-seeds",
    type=int,
    default=1,
    show_default=True,
    metavar="N",
    help="Other seeds, which choose the next change.",
)
@click.option(
    "--rounds",
    type=click.IntRange(min=0),
    metavar="N",
    help="Rounds in which the next change is chosen; the rest follows the order of the last round, "
    "or with 0 the order of the space. Default: choose to the end.",
)
@training_options
def ablate(
    study: str,
    start: str | None,
    end: str,
    ask: bool,
    seeds: int,
    select_seeds: int,
    rounds: int | None,
    database: str | None,
    as_json: bool,
    **how: Any,
) -> None:
    """Measure how much each difference between two configurations explains, by retraining.

    Scores are on the validation part. Ctrl-C stops the workers; run the same command to continue.
    Other machines may join with hpo worker --study STUDY.ablate.
    """
    from hpo.analysis import ablate as path

    if start is None and not ask:
        raise CallerError(
            "neither --from nor --questions. Valid: --from START for the path to --to (best), "
            "--questions, or both"
        )
    parent = _open_parent(study, database)
    spec = parent.study.spec
    effort = path.Effort(seeds, select_seeds, rounds)
    effort.check()
    trainings = 0
    if start is not None:
        _, first = path.named(parent.study, start)
        _, last = path.named(parent.study, end)
        changes = path.differences(spec, first, last)
        trainings += effort.trainings(len(changes))
    if ask:
        trainings += sum(2 * seeds * len(question.compare) for question in spec.questions)
    train, workers = _prepare_training(parent, as_json, score_test=False, **how)
    child = _open_child(parent, "ablate", workers, trainings, as_json)

    findings: dict[str, Any] = {}
    texts = []
    if start is not None:
        ablation = path.ablate(parent.study, child, (start, end), effort, train)
        findings["ablation"] = ablation
        texts.append(path.path_text(study, ablation, spec.metric))
    if ask:
        answers = path.measure(parent.study, child, spec.questions, seeds, train)
        findings["questions"] = answers
        texts.append(path.questions_text(study, answers, spec.metric))
    if as_json:
        content = {
            kind: finding.model_dump(mode="json", by_alias=True)
            for kind, finding in findings.items()
        }
        echo_json(content, spec.metric)
    else:
        for text in texts:
            click.echo(text)
