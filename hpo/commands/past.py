"""Runs that were trained elsewhere: import, backtest."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hpo.commands.shared import database_option, json_option, open_study
from hpo.errors import CallerError

if TYPE_CHECKING:
    from hpo.past.past_runs import PastRun

path_argument = click.Path(path_type=Path)
map_option = click.option("--map", "maps", multiple=True, metavar="COLUMN=FIELD",
                          help="What a column of a CSV, TSV or JSONL table is: name, split, step (updates), per, loss, seconds (since the "
                               "start), lr, or a field such as optimizer.lr. Columns of these names need none.")  # fmt: skip


def _read(path: Path, maps: tuple[str, ...]) -> "tuple[list[PastRun], dict[str, str]]":
    from hpo.past.past_tables import parse_maps
    from hpo.past.read import read_runs

    return read_runs(path, parse_maps(maps))


@click.command("import")
@click.argument("runs_dir", type=path_argument, required=False)
@click.option(
    "--study", metavar="NAME", help="Add those that are comparable to this study, for its sampler."
)
@click.option(
    "--from-study",
    "other",
    metavar="NAME",
    help="Take the trials of this study instead of RUNS_DIR: a warm start.",
)
@click.option("--same-data", is_flag=True,
              help="I say that they were trained on the study's data and scored on its validation part: no run records that.")  # fmt: skip
@map_option
@click.option("--set", "settings", multiple=True, metavar="FIELD=VALUE",
              help="What a field was in the runs that do not record it, such as optimizer.eps=1e-8.")  # fmt: skip
@database_option
@json_option
def import_(runs_dir: Path | None, study: str | None, other: str | None, same_data: bool, maps: tuple[str, ...],
            settings: tuple[str, ...], database: str | None, as_json: bool) -> None:  # fmt: skip
    """Show past runs and what is doubtful about them; with --study, let its sampler learn from them.

    RUNS_DIR is a run folder of neural_seq_decoder or a descendant (args, metrics.jsonl, trainingStats), a folder of such, or a
    table; --from-study takes another study's trials on the same data. Imported runs are never best and count in no budget.
    The same import twice adds nothing.
    """
    from rich.console import Console

    from hpo.past.importing import facts, import_runs, runs_of, stated
    from hpo.space.spec import parse_settings
    from hpo.terminal.past import past_picture
    from hpo.trainer import DEFAULT_TRAINER, load_trainer, named, offered

    if same_data and not study:
        raise CallerError(
            "--same-data without --study: it says which study's data the runs are of. Add --study NAME"
        )
    if (runs_dir is None) == (other is None):
        raise CallerError("give RUNS_DIR or --from-study NAME, one of them")
    if other and not study:
        raise CallerError(
            f"--from-study {other} without --study: it says whose sampler is to learn. Add --study NAME"
        )
    found = open_study(study, database) if study else None
    reference = found.spec.trainer if found else DEFAULT_TRAINER
    metric = load_trainer(reference).metric
    if runs_dir is not None:
        offered(reference, "past_runs", "reading of past runs")
        runs, refused = _read(runs_dir, maps)
        values = parse_settings(settings, names=load_trainer(reference).config.names())
        runs = [stated(run, values) for run in runs]
    else:
        assert found and other
        runs, refused, same_data = runs_of(open_study(other, database), found), {}, True
    rows = import_runs(found, runs, same_data) if found else [facts(run) for run in runs]
    if as_json:
        click.echo(json.dumps(named({"runs": rows, "refused": refused}, metric), indent=2))
    else:
        Console(highlight=False).print(past_picture(rows, refused, metric))


@click.command()
@click.argument("runs_dir", type=path_argument, required=False)
@click.option(
    "--study", metavar="NAME", help="Replay the trials of this study instead of past runs."
)
@click.option("--rule", "rules", multiple=True, metavar="RULE",
              help="own-past, median, asha, hyperband or patient; several times for several. Default: own-past, median, asha.")  # fmt: skip
@click.option(
    "--sweep",
    "with_sweep",
    is_flag=True,
    help="Show how far each constant of own-past may move before it errs on these runs.",
)
@click.option(
    "--plot",
    type=path_argument,
    metavar="FILE",
    help="Draw the curves and where each rule stops them: .svg, .png or .pdf.",
)
@map_option
@database_option
@json_option
def backtest(runs_dir: Path | None, study: str | None, rules: tuple[str, ...], with_sweep: bool, plot: Path | None, maps: tuple[str, ...],
             database: str | None, as_json: bool) -> None:  # fmt: skip
    """Replay stopping rules on past runs: what each would have stopped, saved and thrown away.

    RUNS_DIR as for hpo import. own-past is the rule that runs live (with --study as the study has it); the others are Optuna's
    pruners.
    """
    from hpo.past.backtest import DEFAULT_RULES, past_curves, study_curves, sweep
    from hpo.past.backtest import backtest as replay
    from hpo.trainer import DEFAULT_TRAINER, load_trainer, named

    if (runs_dir is None) == (study is None):
        raise CallerError(
            "hpo backtest takes RUNS_DIR or --study NAME, one of them: what to replay"
        )
    opened = open_study(study, database) if study else None
    metric = opened.spec.metric if opened else load_trainer(DEFAULT_TRAINER).metric
    own_past = opened.spec.stopping if opened else None
    refused: dict[str, str] = {}
    if opened:
        curves, left_out = study_curves(opened)
    else:
        assert runs_dir is not None
        runs, refused = _read(runs_dir, maps)
        curves, left_out = past_curves(runs, metric)
    found = replay(curves, rules or DEFAULT_RULES, own_past)
    not_replayable = left_out | refused
    ranges = sweep(curves, own_past) if with_sweep else ()
    if plot:
        from hpo.past.pictures import backtest_picture

        backtest_picture(found, curves, plot)
    facts = found.model_dump(mode="json") | {"not_replayable": not_replayable}
    swept = {"sweep": [row.model_dump(mode="json") for row in ranges]} if with_sweep else {}
    if opened:
        opened.keep_result("backtest", facts | swept)
    if as_json:
        click.echo(json.dumps(named(facts, metric) | swept, indent=2))
        return
    from rich.console import Console

    from hpo.terminal import past as terminal

    Console(highlight=False).print(terminal.backtest_picture(found, ranges, not_replayable, metric))
    if plot:
        click.echo(f"wrote {plot}")
