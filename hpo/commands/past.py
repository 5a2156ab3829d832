"""Runs that were trained elsewhere: import, backtest."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hpo.commands.shared import database_option, echo_json, json_option, open_study
from hpo.errors import CallerError, SpecError

if TYPE_CHECKING:
    from hpo.past.past_runs import PastRun
    from hpo.past.script_runs import Fields, ScriptRuns
    from hpo.script.section import CompleteScript
    from hpo.script.settings import CurveSettings, ScriptSettings
    from hpo.study.study import Study
    from hpo.trainer import Metric, Trainer

# The lines that the Brain-to-Text '25 trainer writes into training_log, except those of sessions.
BRAIN_TO_TEXT_25 = (
    r"Val batch (?P<step>\d+): PER \(avg\): (?P<value>\S+) "
    r"CTC Loss \(avg\): (?P<validation_loss>\S+)",
    r"Train batch (?P<step>\d+): loss: (?P<loss>\S+)",
)

path_argument = click.Path(path_type=Path)
map_option = click.option(
    "--map",
    "maps",
    multiple=True,
    metavar="COLUMN=FIELD",
    help="What a column of a CSV, TSV or JSONL table means: name, split, step (updates), per, "
    "loss, seconds (since the start), lr, or a field such as optimizer.lr. Columns with these "
    "names need no --map.",
)
curve_option = click.option(
    "--curve",
    "study_file",
    type=path_argument,
    metavar="STUDYFILE.yaml",
    help="Read the runs with the curve, metric and config in the script: section of this study "
    "file.",
)


# ---- how runs are read


def _scripts_of_study(settings: "CompleteScript", study: "Study") -> "ScriptRuns":
    """The runs of a study's script."""
    from hpo.past.script_runs import Fields

    names = study.spec.load_trainer().config.names()
    fields = Fields(
        targets={name: settings.targets(name) for name in names},
        fixed=_fixed(settings),
        config=study.spec.load_trainer().config,
        steps=settings.steps,
    )
    return _scripts(settings, fields, study.spec.metric)


def _scripts_of_file(path: Path) -> "ScriptRuns":
    """The runs of the script of a study file. Its code need not exist here. Raises SpecError."""
    from hpo.past.script_runs import Fields
    from hpo.script.files import read_base
    from hpo.script.section import read_section

    if not path.is_file():
        raise SpecError(f"--curve {path}: no such file. Give a study file with a script: section")
    tree = read_base(path).tree
    if not isinstance(tree.get("script"), dict):
        raise SpecError(f"--curve {path}: no script: section. Give a study file that has one")
    settings = read_section(tree["script"], f"{path.name}: script")
    fields = Fields(_own_fields(settings) | _writes(tree), _fixed(settings), None, settings.steps)
    return _scripts(settings, fields, settings.metric)


def _own_fields(settings: "ScriptSettings") -> dict[str, list[str]]:
    """The script's fields for steps and seed, if it has them."""
    own: dict[str, list[str]] = {}
    if isinstance(settings.steps, str):
        own["steps"] = [settings.steps]
    if settings.seed:
        own["seed"] = list(settings.seed)
    return own


def _writes(tree: Mapping[Any, Any]) -> dict[str, list[str]]:
    """The parameters of a study file that write other fields than the one they are named after."""
    parameters = tree.get("parameters")
    if not isinstance(parameters, dict):
        return {}
    written: dict[str, list[str]] = {}
    for name, parameter in parameters.items():
        fields = parameter.get("writes") if isinstance(parameter, dict) else None
        if isinstance(fields, list):
            written[str(name)] = [str(field) for field in fields]
    return written


def _fixed(settings: "ScriptSettings") -> frozenset[str]:
    return frozenset(field.lstrip("+") for field in settings.fixed)


def _scripts(settings: "ScriptSettings", fields: "Fields", metric: "Metric") -> "ScriptRuns":
    from hpo.past.script_runs import CONFIG_FILES, ScriptRuns
    from hpo.script.files import read_base

    config_files = list(CONFIG_FILES)
    if settings.config:
        own_files = [settings.config.file]
        if settings.config.origin:
            own_files.append(Path(settings.config.origin).name)
        config_files = [*filter(None, own_files), *CONFIG_FILES]
    return ScriptRuns(
        curve_file=settings.curve.file,
        form=_form(settings.curve),
        has_pattern=bool(settings.curve.pattern),
        read_config=lambda path: read_base(path).values(),
        config_files=tuple(dict.fromkeys(config_files)),
        fields=fields,
        metric=metric,
        split=settings.partition,
    )


def _brain_to_text_25() -> "ScriptRuns":
    """The runs of the Brain-to-Text '25 trainer, which need no study to be read."""
    from hpo.past.script_runs import Fields, ScriptRuns
    from hpo.script.files import read_base
    from hpo.script.settings import CurveSettings

    return ScriptRuns(
        curve_file="training_log",
        form=_form(CurveSettings(file="training_log", pattern=list(BRAIN_TO_TEXT_25))),
        has_pattern=True,
        read_config=lambda path: read_base(path).values(),
        config_files=("args.yaml",),
        fields=Fields(steps="num_training_batches"),
        # The trainer counts batches from 0, and evaluates at its last one.
        steps_missing=1,
        foreign="a run of the Brain-to-Text '25 trainer, which the study does not train",
    )


def _form(curve: "CurveSettings") -> "Any":
    from hpo.past.logs import Form
    from hpo.script.rows import Rows

    ending = "" if curve.pattern else Path(curve.file).suffix.lower()
    return Form(
        follow=lambda path: Rows(curve, path),
        delimiter={".csv": ",", ".tsv": "\t"}.get(ending, ""),
        whole=ending == ".json",
    )


def _scripts_for(
    study: "Study | None", study_file: Path | None, maps: tuple[str, ...]
) -> "ScriptRuns | None":
    """How to read the runs of a script, from its study or from a study file.

    None if neither is given. Raises CallerError and SpecError.
    """
    of_script = study is not None and study.spec.script is not None
    if study_file and study:
        raise CallerError(
            "--curve and --study: the study already says how to read runs. Give one of the two"
        )
    if maps and (of_script or study_file):
        raise CallerError(
            "--map is for tables; the runs of a script are read as its curve: section says. Leave "
            "--map out"
        )
    if study_file:
        return _scripts_of_file(study_file)
    if study is None or not of_script:
        return None
    return _scripts_of_study(study.spec.offered("script", "reading of past runs"), study)


def _trainer(study: "Study | None") -> "Trainer":
    from hpo.trainer import DEFAULT_TRAINER, load_trainer

    return study.spec.load_trainer() if study else load_trainer(DEFAULT_TRAINER)


def _read(
    path: Path, maps: tuple[str, ...], scripts: "ScriptRuns | None", study: "Study | None"
) -> "tuple[list[PastRun], dict[str, str]]":
    from hpo.past.past_tables import parse_maps
    from hpo.past.read import read_runs, read_study_runs

    if scripts:
        return read_study_runs(path, scripts)
    if study:
        study.spec.offered("past_runs", "reading of past runs")
    return read_runs(path, parse_maps(maps), _brain_to_text_25())


def _split(names: str) -> list[str]:
    """a,b -> the names, without white space around them."""
    return [name.strip() for name in names.split(",") if name.strip()]


# ---- the commands


@click.command("import")
@click.argument("runs_dir", type=path_argument, required=False)
@click.option(
    "--study", metavar="NAME", help="Add the comparable runs to this study, for its sampler."
)
@click.option(
    "--from-study",
    "other",
    metavar="NAME",
    help="Take the trials of this study instead of RUNS_DIR: a warm start.",
)
@click.option(
    "--same-data",
    is_flag=True,
    help="You confirm that the runs used the study's data and were scored on its validation part; "
    "the runs themselves do not record that.",
)
@curve_option
@map_option
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="FIELD=VALUE",
    help="The value of a field in runs that do not record it, such as optimizer.eps=1e-8.",
)
@click.option(
    "--accept-unknown",
    "accepted",
    multiple=True,
    metavar="NAMES",
    help="Settings of the runs that hpo does not know and that you take as without effect, "
    "separated by commas. A run with others informs no study.",
)
@database_option
@json_option
def import_(
    runs_dir: Path | None,
    study: str | None,
    other: str | None,
    same_data: bool,
    study_file: Path | None,
    maps: tuple[str, ...],
    settings: tuple[str, ...],
    accepted: tuple[str, ...],
    database: str | None,
    as_json: bool,
) -> None:
    """Show past runs with warnings about them; with --study, its sampler learns from them.

    RUNS_DIR is a run folder of neural_seq_decoder or a descendant (args, metrics.jsonl,
    trainingStats) or of the Brain-to-Text '25 trainer (training_log), a folder of such folders, or
    a table. With --study of a script, or with --curve, it holds runs of that script. --from-study
    takes another study's trials on the same data. Imported runs are never reported as the best and
    do not count in the budget. Importing the same runs again adds nothing.
    """
    from rich.console import Console

    from hpo.past.importing import facts, import_runs, runs_of, stated, with_accepted
    from hpo.space.load import parse_settings
    from hpo.terminal.past import past_picture

    if same_data and not study:
        raise CallerError(
            "--same-data without --study: it is about the data of a study. Add --study NAME"
        )
    if (runs_dir is None) == (other is None):
        raise CallerError("give either RUNS_DIR or --from-study NAME")
    if other and not study:
        raise CallerError(
            f"--from-study {other} without --study: the study whose sampler learns is missing. Add "
            "--study NAME"
        )
    if accepted and runs_dir is None:
        raise CallerError("--accept-unknown is about the runs in RUNS_DIR. Leave it out")
    opened = open_study(study, database) if study else None
    scripts = _scripts_for(opened, study_file, maps)
    trainer = _trainer(opened)
    metric = scripts.metric if scripts else trainer.metric
    if runs_dir is not None:
        runs, refused = _read(runs_dir, maps, scripts, opened)
        config = None if study_file else trainer.config
        values = parse_settings(settings, names=config.names() if config else None)
        runs = [stated(run, values, config) for run in runs]
        runs = with_accepted(runs, [name for names in accepted for name in _split(names)])
    else:
        assert opened and other
        runs = runs_of(open_study(other, database), opened)
        refused = {}
        same_data = True
    rows = import_runs(opened, runs, same_data) if opened else [facts(run) for run in runs]
    if as_json:
        echo_json({"runs": rows, "refused": refused}, metric)
    else:
        Console(highlight=False).print(past_picture(rows, refused, metric))


@click.command()
@click.argument("runs_dir", type=path_argument, required=False)
@click.option(
    "--study",
    metavar="NAME",
    help="Replay the trials of this study; with RUNS_DIR, read and judge past runs the way this "
    "study does.",
)
@click.option(
    "--rule",
    "rules",
    multiple=True,
    metavar="RULE",
    help="own-past, median, asha, hyperband or patient; may be repeated. Default: own-past, "
    "median, asha.",
)
@click.option(
    "--sweep",
    "with_sweep",
    is_flag=True,
    help="Show how far each constant of own-past can be changed before it stops a healthy run or "
    "misses a diverged one.",
)
@click.option(
    "--plot",
    type=path_argument,
    metavar="FILE",
    help="Draw the curves and where each rule stops them: .svg, .png or .pdf.",
)
@curve_option
@map_option
@database_option
@json_option
def backtest(
    runs_dir: Path | None,
    study: str | None,
    rules: tuple[str, ...],
    with_sweep: bool,
    plot: Path | None,
    study_file: Path | None,
    maps: tuple[str, ...],
    database: str | None,
    as_json: bool,
) -> None:
    """Replay stopping rules on past runs: what each would have stopped, saved and thrown away.

    RUNS_DIR is the same as for hpo import. own-past is the rule that hpo applies during a search,
    with the constants of --study; the others are Optuna's pruners.
    """
    from hpo.past.backtest import DEFAULT_RULES, past_curves, study_curves, sweep
    from hpo.past.backtest import backtest as replay
    from hpo.trainer import named

    if runs_dir is None and study is None:
        raise CallerError("hpo backtest: nothing to replay. Give RUNS_DIR, --study NAME or both")
    if runs_dir is None and (study_file or maps):
        raise CallerError("--curve and --map say how to read RUNS_DIR. Add RUNS_DIR")
    opened = open_study(study, database) if study else None
    own_past = opened.spec.stopping if opened else None
    refused: dict[str, str] = {}
    if runs_dir is not None:
        scripts = _scripts_for(opened, study_file, maps)
        metric = scripts.metric if scripts else _trainer(opened).metric
        runs, refused = _read(runs_dir, maps, scripts, opened)
        curves, left_out = past_curves(runs, metric)
    else:
        assert opened
        metric = opened.spec.metric
        curves, left_out = study_curves(opened)
    finding = replay(curves, rules or DEFAULT_RULES, own_past)
    not_replayable = left_out | refused
    ranges = sweep(curves, own_past) if with_sweep else ()
    if plot:
        from hpo.past.pictures import backtest_picture

        backtest_picture(finding, curves, plot)
    content = finding.model_dump(mode="json") | {"not_replayable": not_replayable}
    # Names in the sweep are those of the rule's constants, whatever the metric is called.
    swept = {}
    if with_sweep:
        swept["sweep"] = [row.model_dump(mode="json") for row in ranges]
    if opened and runs_dir is None:
        opened.keep_result("backtest", content | swept)
    if as_json:
        echo_json(named(content, metric) | swept)
        return
    from rich.console import Console

    from hpo.terminal import past as terminal

    Console(highlight=False).print(
        terminal.backtest_picture(finding, ranges, not_replayable, metric)
    )
    if plot:
        click.echo(f"wrote {plot}")
