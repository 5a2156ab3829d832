"""What a study's numbers are worth: confirm, ablate."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hpo.commands.shared import (
    code_option,
    data_option,
    database_option,
    device_option,
    json_option,
    per_gpu_option,
    study_option,
)
from hpo.errors import CallerError

if TYPE_CHECKING:
    from hpo.analysis.retrain import Train
    from hpo.store.database import Database
    from hpo.study.study import Study

LOOK_SECONDS = 2.0  # at trials that run elsewhere


def training_options(command: Callable[..., None]) -> Callable[..., None]:
    workers = click.option(
        "--workers",
        type=int,
        metavar="N",
        help="Worker processes here. Default: one per GPU, else one per two CPU cores.",
    )
    for option in reversed(
        (
            data_option,
            workers,
            per_gpu_option,
            device_option,
            code_option,
            database_option,
            json_option,
        )
    ):
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
    help="How many of the search's best to retrain, beside the starts.",
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
    """Retrain the best configurations and the starts with fresh seeds and score them on test.

    Ctrl-C stops the workers; the same line goes on. Other machines may join by hpo worker --study STUDY.confirm.
    """
    from hpo.analysis.confirm import as_text, choose
    from hpo.analysis.confirm import confirm as confirmed
    from hpo.trainer import named

    opened, parent = _opened(study, database)
    chosen = choose(parent, top)
    has_test = parent.spec.load_trainer().cuts_validation
    train, workers = _ready(parent, opened, as_json, score_test=has_test, **how)
    child = _child(parent, opened, "confirm", workers, len(chosen) * seeds, as_json)
    finding = confirmed(parent, child, top, seeds, train)
    metric = parent.spec.metric
    click.echo(
        json.dumps(named(finding.model_dump(mode="json"), metric), indent=2)
        if as_json
        else as_text(study, finding, metric)
    )


def _opened(study: str, database: str | None) -> "tuple[Database, Study]":
    from hpo.store.database import open_database
    from hpo.study.study import Study

    opened = open_database(database)
    return opened, Study.open(opened, study)


def _child(
    parent: "Study", opened: "Database", kind: Any, workers: int, trainings: int, as_json: bool
) -> "Study":
    from hpo.analysis.child import open_child
    from hpo.analysis.retrain import cost
    from hpo.study.version import code_version
    from hpo.worker.trackers import choose, chosen

    has_test = parent.spec.load_trainer().cuts_validation
    child = open_child(opened, parent, kind, ("test",) if kind == "confirm" and has_test else ())
    child.settle(parent.artifacts, code_version(parent.spec))
    choose(child, chosen(parent)[0])
    if not as_json:
        left = sum(record.state == "waiting" for record in child.records())
        click.echo(f"study      {child.name}: at most {cost(parent, trainings, workers)}; what it has already is not trained again"
                   f"{f', {left} that an earlier line left waiting are done too' * bool(left)}")  # fmt: skip
    return child


def _ready(parent: "Study", opened: "Database", as_json: bool, score_test: bool, data: Path | None, workers: int | None,
           per_gpu: str | None, device: str | None, allow_different_code: bool) -> "tuple[Train, int]":  # fmt: skip
    """Look at what training needs. Returns what runs a child's waiting trials to their end here, and how many workers it has."""
    from rich.console import Console

    from hpo.analysis.retrain import check_data
    from hpo.errors import StudyError
    from hpo.launch.launcher import Launcher, plan_workers
    from hpo.study.version import check_code
    from hpo.terminal.live import LiveView

    plan = plan_workers(workers, device, per_gpu, parent.spec.load_trainer().gpus)
    check_code(parent, allow_different_code)
    check_data(parent, data, score_test)

    def train(child: "Study") -> None:
        check_code(child, allow_different_code)
        while open_ones := [
            record for record in child.records() if record.state in ("waiting", "running")
        ]:
            if all(
                record.state == "running" for record in open_ones
            ):  # elsewhere, or its worker has died
                time.sleep(LOOK_SECONDS)
                child.sweep()
                continue
            if over := child.why_over():
                raise StudyError(f"study {child.name}: {over}")
            with LiveView(child, Console(highlight=False, quiet=as_json), tell_all=False) as view:
                end = Launcher(
                    child, opened, plan, data, allow_different_code=allow_different_code
                ).run(view.look)
            if end == "interrupted":
                click.echo(
                    "Stopped. What was trained is kept; the same line goes on with it.", err=True
                )
                raise SystemExit(130)

    return train, len(plan.devices)


@click.command()
@study_option
@click.option(
    "--from",
    "start",
    metavar="START|N|best",
    help="Where the path begins: a start, a trial's number or best.",
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
    help="Other seeds, to choose the next change with.",
)
@click.option("--rounds", type=click.IntRange(min=0), metavar="N",
              help="Rounds of choosing; the rest follows the last one's order, with 0 the space's. Default: to the end.")  # fmt: skip
@training_options
def ablate(study: str, start: str | None, end: str, ask: bool, seeds: int, select_seeds: int, rounds: int | None, database: str | None,
           as_json: bool, **how: Any) -> None:  # fmt: skip
    """Say which difference between two configurations explains how much, by retraining, on validation.

    Ctrl-C stops the workers; the same line goes on. Other machines may join by hpo worker --study STUDY.ablate.
    """
    from hpo.analysis import ablate as path
    from hpo.trainer import named

    if start is None and not ask:
        raise CallerError(
            "neither --from nor --questions. Valid: --from START for the path to --to (best), --questions, or both"
        )
    opened, parent = _opened(study, database)
    path.check_seeds(seeds, select_seeds)
    count = 0
    if start is not None:
        changes = path.differences(
            parent.spec, path.named(parent, start)[1], path.named(parent, end)[1]
        )
        count += path.trainings(len(changes), seeds, select_seeds, rounds)
    count += sum(2 * seeds * len(question.compare) for question in parent.spec.questions if ask)
    train, workers = _ready(parent, opened, as_json, score_test=False, **how)
    child = _child(parent, opened, "ablate", workers, count, as_json)
    metric = parent.spec.metric
    ablation = (
        path.ablate(parent, child, (start, end), seeds, select_seeds, rounds, train)
        if start is not None
        else None
    )
    answers = path.measure(parent, child, parent.spec.questions, seeds, train) if ask else None
    if as_json:
        findings = {"ablation": ablation, "questions": answers}
        facts = {
            kind: finding.model_dump(mode="json", by_alias=True)
            for kind, finding in findings.items()
            if finding
        }
        click.echo(json.dumps(named(facts, metric), indent=2))
        return
    if ablation:
        click.echo(path.path_text(study, ablation, metric))
    if answers:
        click.echo(path.questions_text(study, answers, metric))
