"""Past runs: every trap of real run folders is a warning, and what an import does to a study."""

import json
import math
import pickle
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from helpers.studies import decoder_config, report

from hpo.cli import main
from hpo.decoder.config import DecoderConfig
from hpo.decoder.lab import from_lab_arguments, lab_arguments
from hpo.decoder.trainer import PER
from hpo.errors import DataError
from hpo.past.lab_runs import read_lab_run
from hpo.past.past_runs import PastRun
from hpo.past.read import read_runs
from hpo.process import Process
from hpo.report.report import as_text, build_report
from hpo.space.spec import StudySpec, load_spec
from hpo.study.pick import best_of, pick_trial
from hpo.study.study import Study
from hpo.study.trial import Completed
from hpo.trainer import Score

RECORD = {"device": "cpu", "code_version": "0", "data": "f"}
CONFIG = DecoderConfig().with_values(
    {"steps": 1000, "optimizer.name": "adamw", "optimizer.lr": 0.002, "optimizer.eps": 1e-8}
)
ARGS = lab_arguments(CONFIG, 3, 2)
Rows = list[dict[str, Any]]


def rows(
    pers: Sequence[float] = (0.9, 0.7, 0.5, 0.4, 0.35, 0.3, 0.28, 0.27, 0.26, 0.25),
    every: int = 100,
) -> Rows:
    return [
        {"step": every * n, "per": per, "ctc_loss": 3 * per, "lr": 0.002, "time_per_batch": 0.5}
        for n, per in enumerate(pers)
    ]


def write(
    folder: Path,
    entries: Rows | None = None,
    arguments: Mapping[str, Any] | None = ARGS,
    stats: Any = None,
    tail: str = "",
) -> Path:
    folder.mkdir(parents=True)
    if arguments is not None:
        (folder / "args").write_bytes(pickle.dumps(dict(arguments)))
    if entries is not None:
        (folder / "metrics.jsonl").write_text(
            "".join(json.dumps(entry) + "\n" for entry in entries) + tail
        )
    if stats is not None:
        (folder / "trainingStats").write_bytes(pickle.dumps(stats))
    return folder


def without(arguments: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if name not in names}


def hpo(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


# ---- real runs


@pytest.fixture(scope="module")
def lab_runs(shared_data: Path) -> dict[str, PastRun]:
    runs, refused = read_runs(shared_data / "lab_runs")
    assert not refused
    return {run.name: run for run in runs}


LAB = [  # from shared/data/lab_runs/README.md: run, evaluations, best PER, last step in batches, batches an update
    ("gru_ctc_reg2", 14, 0.4723, 1300, 1),
    ("gru_ctc_reg5", 19, 0.5736, 1800, 1),
    ("gru_ctc_reg6", 62, 0.5117, 6100, 1),
    ("run12_baseline_hybrid", 8, 0.9626, 700, 1),
    ("run15_warmup_cosine_safe", 100, 0.2690, 9900, 2),
    ("run16_3", 64, 0.2152, 6300, 2),
    ("run17_greedy_ema_fastcos", 52, 0.3501, 5100, 2),
]


@pytest.mark.parametrize(("name", "evaluations", "best", "last", "accumulation"), LAB)
def test_curves_of_real_runs(
    lab_runs: dict[str, PastRun],
    name: str,
    evaluations: int,
    best: float,
    last: int,
    accumulation: int,
) -> None:
    run = lab_runs[name]
    assert len(run.curve) == evaluations
    assert round(run.best_value or 0, 4) == best
    assert run.curve[-1].step == last // accumulation
    assert run.curve[0].seconds == 0
    assert run.curve[-1].seconds
    assert "optimizer.eps" not in run.config
    assert any("do not record eps" in warning for warning in run.warnings)
    assert any("first row's time_per_batch" in warning for warning in run.warnings)
    assert any("divided by 2 to updates" in warning for warning in run.warnings) == (
        accumulation == 2
    )


@pytest.mark.parametrize(
    ("name", "warning"),
    [
        ("gru_ctc_reg2", "grad_norm_avg is NaN or Infinity at step 600, 1200"),
        ("gru_ctc_reg2", "ended at step 1300 of 10000 planned"),
        ("gru_ctc_reg5", "trainingStats has 18 values, metrics.jsonl 19"),
        ("gru_ctc_reg6", "the trainer skipped 3 updates"),
        ("run15_warmup_cosine_safe", "warmup of 1200 and cosine of 8800 updates in a run of 5000"),
        ("run16_3", "averaged weights (EMA 0.999)"),
        ("run17_greedy_ema_fastcos", "scored on the split validation"),
        ("run18_long_sgdr_swa", "never started"),
    ],
)
def test_warnings_about_real_runs(lab_runs: dict[str, PastRun], name: str, warning: str) -> None:
    assert any(warning in text for text in lab_runs[name].warnings), lab_runs[name].warnings
    assert (lab_runs[name].split == "validation") == (name == "run17_greedy_ema_fastcos")


def test_the_import_command_shows_real_runs(shared_data: Path) -> None:
    done = hpo("import", shared_data / "lab_runs")
    assert done.exit_code == 0, done.output
    assert "run16_3" in done.output
    assert "all: args do not record eps" in done.output
    found = json.loads(hpo("import", shared_data / "lab_runs", "--json").output)
    assert len(found["runs"]) == 8


# ---- traps, on small folders


def test_a_clean_run_raises_only_the_warning_that_every_run_does(tmp_path: Path) -> None:
    run = read_lab_run(write(tmp_path / "a", rows()))
    assert [warning for warning in run.warnings if "time_per_batch" not in warning] == []
    assert run.config["optimizer.eps"] == 1e-8
    assert run.reached_its_plan
    assert run.curve[-1].seconds == 9 * 100 * 0.5


def doubled(entries: Rows) -> Rows:
    return [*rows((0.9, 0.8, 0.6)), *entries]


def changed(number: int, **values: Any) -> Rows:
    return [entry | values if n == number else entry for n, entry in enumerate(rows())]


STATS = {
    "testPER": np.array([entry["per"] for entry in rows()]),
    "testLoss": np.array([entry["ctc_loss"] for entry in rows()]),
}


@pytest.mark.parametrize(
    ("contents", "warning", "evaluations"),
    [
        ({"entries": [without(row, "per") | {"cer": row["per"]} for row in rows()]}, "`cer` in place of `per`", 10),
        ({"entries": changed(4, per=math.nan)}, "per is NaN or Infinity at step 400", 10),
        ({"entries": changed(4, ctc_loss=math.inf)}, "ctc_loss is NaN or Infinity at step 400", 10),
        ({"entries": doubled(rows())}, "two runs in one file: the step falls back from 200 to 0", 10),
        ({"entries": [*rows()[:7], *rows()[4:]]}, "the step goes backwards from 600 to 400", 10),
        ({"entries": rows()[:3] + rows()[5:]}, "no evaluation at step 300, 400,", 8),
        ({"stats": STATS}, "no metrics.jsonl: the curve is trainingStats's", 10),
        ({"stats": without(STATS, "testPER") | {"testCER": STATS["testPER"]}}, "`testCER` in place of `testPER`", 10),
        ({"stats": {"testLoss": STATS["testLoss"]}}, "trainingStats holds no testPER", 0),
        ({"entries": rows(), "stats": {"testPER": STATS["testPER"] + 0.01}}, "trainingStats has another per than", 10),
        ({"entries": rows(), "arguments": without(ARGS, "eps")}, "args do not record eps", 10),
        ({"entries": rows(), "arguments": None}, "no args", 10),
        ({"entries": rows()[:6]}, "ended at step 500 of 1000 planned", 6),
        ({"entries": [row | {"eval_split": "valid"} for row in rows()]}, "scored on the split validation", 10),
        ({"entries": changed(9, eval_split="valid")}, "scored on several splits", 10),
        ({}, "never started", 0),
        ({"entries": changed(0, per=1.2)}, "PER above 1 at step 0, highest 1.2", 10),
        ({"entries": changed(3, per=-0.1)}, "negative PER at step 300", 10),
        ({"entries": rows()[:9], "tail": '{"step": 900, "per": 0.2'}, "line 10: cut off in mid-line", 9),
        ({"entries": rows()[:3], "tail": "what?\n" + json.dumps(rows()[3]) + "\n"}, "line 4: no evaluation", 4),
        ({"entries": changed(5, step=None)}, "line 6: no evaluation", 9),
        ({"entries": changed(5, step=10**400)}, "line 6: no evaluation", 9),
        ({"entries": changed(5, per=[0.3])}, "line 6: no evaluation", 9),
        ({"entries": rows(), "tail": "[" * 100_000 + "\n" + "3\n"}, "line 11: no evaluation", 10),
        ({"entries": rows(), "tail": "x\n" * 300}, "metrics.jsonl lines 11, 12, 13, 14, 15 and 295 more: left out, the first because", 10),
        ({"entries": changed(4, time_per_batch=math.nan)}, "GPU time is unknown", 10),
        ({"entries": [row | {"skipped_updates": n // 4} for n, row in enumerate(rows())]}, "the trainer skipped 2 updates", 10),
        ({"entries": [row | {"per": 100 * row["per"]} for row in rows()]}, "no PER at or below 1, the lowest is 25: percent?", 10),
        ({"entries": [row | {"eval_split": "\x1b[31mred"} for row in rows()]}, "scored on the split ?[31mred", 10),
        ({"entries": rows(), "arguments": ARGS | {"run_name": "\x1b]0;b\x07"}}, "args call the run ?]0;b?", 10),
        ({"entries": rows(), "stats": STATS | {"testPER": np.ones((10, 2))}}, "trainingStats holds no testPER", 10),
        ({"entries": rows(), "stats": STATS | {"testPER": np.array(["a"] * 10, dtype=object)}}, "trainingStats holds no testPER", 10),
        ({"entries": rows(), "stats": STATS | {"testPER": 0.5}}, "trainingStats holds no testPER", 10),
        ({"entries": [without(row, "time_per_batch") for row in rows()]}, "GPU time is unknown", 10),
        ({"entries": [without(row, "ctc_loss") for row in rows()]}, "no loss is recorded", 10),
        ({"entries": [row | {"lr": 0.002 / (n + 1)} for n, row in enumerate(rows())]}, "learning rate 0.001 at step 100, where args's", 10),
        ({"entries": rows(), "arguments": ARGS | {"run_name": "b"}}, "args call the run b", 10),
        ({"entries": rows(), "arguments": ARGS | {"dropout": 7}}, "left out: model.dropout", 10),
        ({"entries": rows(), "arguments": ARGS | {"sgdr_T0": 100}}, "sgdr_T0 in args: not among our schedules", 10),
    ],
)  # fmt: skip
def test_a_trap_is_a_warning(
    tmp_path: Path, contents: dict[str, Any], warning: str, evaluations: int
) -> None:
    run = read_lab_run(write(tmp_path / "a", **contents))
    assert any(warning in text for text in run.warnings), run.warnings
    assert len(run.curve) == evaluations


def test_of_two_starts_the_last_counts(tmp_path: Path) -> None:
    run = read_lab_run(write(tmp_path / "a", [*rows((0.1, 0.1, 0.1)), *rows()]))
    assert [point.value for point in run.curve] == [row["per"] for row in rows()]
    assert run.curve[-1].seconds == 9 * 100 * 0.5


class Evil:
    def __reduce__(self) -> Any:
        return (print, ("run",))


def test_what_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evil = write(tmp_path / "evil", rows())
    (evil / "args").write_bytes(pickle.dumps({"nBatch": Evil()}))
    with pytest.raises(DataError, match=r"builtins\.print.*nothing was run"):
        read_lab_run(evil)
    assert capsys.readouterr().out == ""
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").touch()
    with pytest.raises(
        DataError, match=r"cat\.png.*Valid: a folder with args, metrics\.jsonl, trainingStats"
    ):
        read_runs(tmp_path / "photos")
    with pytest.raises(DataError, match="a value makes no sense"):
        read_lab_run(write(tmp_path / "text", rows(), ARGS | {"nBatch": "many"}))
    with pytest.raises(DataError, match="a value makes no sense"):
        read_lab_run(
            write(tmp_path / "huge", rows(), ARGS | {"gradient_accumulation_steps": 10**400})
        )
    write(tmp_path / "good", rows())
    runs, refused = read_runs(tmp_path)
    assert [run.name for run in runs] == ["good"]
    assert set(refused) == {"evil", "huge", "photos", "text"}
    done = hpo("import", tmp_path)
    assert done.exit_code == 0
    assert "refused evil" in done.output


@pytest.mark.parametrize("values", [
    {},
    {"optimizer.name": "sgd", "optimizer.momentum": 0.8, "schedule.name": "plateau", "augment.time_masks": 2},
    {"optimizer.name": "adamw", "schedule.name": "warmup-cosine", "schedule.warmup": 0.2},
    {"accumulation": 2, "optimizer.grad_clip_norm": 1.5},
    {"optimizer.ema_decay": 0.99, "augment.feature_masks": 1, "augment.feature_mask_p": 0.3, "model.layer_norm": True},
])  # fmt: skip
def test_the_labs_arguments_there_and_back(values: dict[str, Any]) -> None:
    config = DecoderConfig().with_values(values).flat()
    back, foreign = from_lab_arguments(lab_arguments(DecoderConfig().with_values(values), 256, 24))
    assert not foreign
    assert back == {name: config[name] for name in back}
    assert set(values) <= set(back)


# ---- tables


def test_a_table_of_many_runs(tmp_path: Path) -> None:
    table = tmp_path / "runs.csv"
    lines = [
        f"{run},{100 * n},{0.9 - 0.1 * n - 0.01 * run},{lr},{50 * n}"
        for run, lr in ((1, "1e-3"), (2, "2e-3"))
        for n in range(5)
    ]
    table.write_text("\n".join(["run,iter,val_per,lr,time", *lines]))
    maps = [
        part
        for text in ("run=name", "iter=step", "val_per=per", "lr=optimizer.lr", "time=seconds")
        for part in ("--map", text)
    ]
    found = json.loads(hpo("import", table, *maps, "--json").output)["runs"]
    assert [run["name"] for run in found] == ["1", "2"]
    assert [run["config"]["optimizer.lr"] for run in found] == [1e-3, 2e-3]
    assert [run["evaluations"] for run in found] == [5, 5]
    assert found[0]["gpu_seconds"] == 200
    assert any("split" in warning for warning in found[0]["doubts"])


def test_one_table_a_run_with_our_names(tmp_path: Path) -> None:
    for name in ("a", "b"):
        entries = [
            {"step": 10 * n, "per": 0.5, "loss": 1.0, "steps": 20, "optimizer.lr": 0.1 * (n + 1)}
            for n in range(3)
        ]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(json.dumps(entry) for entry in entries))
    runs, _ = read_runs(tmp_path, {"step": "step"})
    assert [(run.name, run.steps, len(run.curve)) for run in runs] == [("a", 20, 3), ("b", 20, 3)]
    assert any("optimizer.lr changes along the run" in warning for warning in runs[0].warnings)
    assert "optimizer.lr" not in runs[0].config


def test_runs_of_one_name_in_two_tables_are_told_apart(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.csv").write_text(f"name,step,per\n1,0,0.9\n1,100,0.5\n{name}2,0,0.9\n")
    runs, _ = read_runs(tmp_path, {"step": "step"})
    assert [run.name for run in runs] == ["a/1", "a2", "b/1", "b2"]


@pytest.mark.parametrize(("options", "parts"), [
    (("--map", "per"), ("--map per: no field", "COLUMN=FIELD")),
    (("--map", "a=perr"), ("there is no 'perr'", "Did you mean per?")),
    (("--map", "itre=step"), ("there is no 'itre'", "Did you mean iter?")),
    (("--map", "iter=step", "--map", "val=step"), ("another column is step already",)),
    (("--map", "iter=step"), ("no column is per", "--map COLUMN=per")),
    (("--map", "iter=step", "--map", "val=per", "--same-data"), ("--same-data without --study",)),
    (("--map", "iter=step", "--map", "val=per", "--set", "optimizer.lr=-1"), ("optimizer.lr", "greater than 0")),
])  # fmt: skip
def test_mistakes_are_one_line(
    tmp_path: Path, options: tuple[str, ...], parts: tuple[str, ...]
) -> None:
    table = tmp_path / "runs.csv"
    table.write_text("iter,val\n0,0.9\n")
    done = hpo("import", table, *options)
    assert done.exit_code == 2
    assert done.stderr.count("\n") == 1
    for part in parts:
        assert part in done.stderr


# ---- into a study


@pytest.fixture
def spec(tiny_space: Path) -> StudySpec:
    """As tiny_space, with runs of ten evaluations."""
    tiny_space.write_text(
        tiny_space.read_text().replace(
            "steps: 6, evaluate_every: 2", "steps: 1000, evaluate_every: 100"
        )
    )
    return load_spec(tiny_space)


@pytest.fixture
def arguments(spec: StudySpec) -> dict[str, Any]:
    return lab_arguments(decoder_config(spec, {"optimizer.lr": 0.002, "optimizer.eps": 1e-8}), 3, 2)


Make = Callable[..., Study]
RISING = (0.9, 0.5, 0.3, 0.3, 0.5, 0.6, 0.7, 0.8, 0.8, 0.8)  # own-past stops it at step 600


def validated(*given: Any) -> Rows:
    return [row | {"eval_split": "valid"} for row in rows(*given)]


def test_imported_runs_inform_the_sampler_and_count_nowhere(
    make_study: Make, spec: StudySpec, arguments: dict[str, Any], tmp_path: Path
) -> None:
    study = make_study(spec)
    runs = tmp_path / "runs"
    write(runs / "good", validated(), without(arguments, "eps"))
    write(runs / "risen", validated(RISING), arguments)
    line = ("import", runs, "--study", "s", "--same-data", "--set", "optimizer.eps=1e-8")
    done = hpo(*line, "--json")
    assert done.exit_code == 0, done.output
    found = {run["name"]: run for run in json.loads(done.stdout)["runs"]}
    assert [found["good"]["why_not"], found["risen"]["why_not"]] == ["", ""]
    assert "optimizer.eps = 1e-08 is stated by hand" in found["good"]["doubts"]
    assert any(
        "taken as the study's: model.padding" in warning or "model.smoothing_kernel" in warning
        for warning in found["good"]["doubts"]
    )

    past = {record.imported: record for record in study.imported()}
    assert (past["good"].state, past["good"].value) == ("complete", 0.25)
    assert past["good"].params == {
        "optimizer.lr": 0.002,
        "optimizer.name": "adam",
        "optimizer.eps": 1e-8,
    }
    assert (past["risen"].state, past["risen"].cause, past["risen"].rule) == (
        "stopped",
        "per",
        "own-past",
    )
    assert past["risen"].step == 600
    trial = study.optuna.get_trials(deepcopy=False)[past["risen"].number]
    assert trial.constraints == {"diverged": 1.0}  # as Study.finish leaves a stopped one
    assert len(study.curves(study.imported())[past["good"].number]) == 10

    assert hpo(*line).exit_code == 0  # again
    assert [record.id for record in study.imported()] == [record.id for record in past.values()]
    assert len(study.results()["past_runs"]["runs"]) == 2

    # budget, best, starts, compute and reports
    standing = study.standing()
    assert (standing.ended, standing.gpu_seconds, standing.typical) == (0, 0, None)
    assert best_of(study.records(), PER) is None
    number = 0
    while own := study.claim(Process.this(), RECORD):
        study.finish(own, Completed(Score((50,), (100,))), 7.0)
        number += 1
    assert number == spec.budget.trials
    standing = study.standing()
    assert (standing.ended, standing.typical) == (spec.budget.trials, 7.0)
    assert pick_trial(study, "best").value == 0.5  # not the imported 0.25
    report = build_report(study)
    assert report["trials"]["complete"] == spec.budget.trials
    assert report["gpu_seconds"] == {"spent": 28.0, "saved": 0, "lost": 0.0}
    assert {past["run"] for past in report["imported"]} == {"good", "risen"}
    assert "Imported for the sampler alone" in as_text(report, PER)
    status = hpo("status", "--study", "s").stdout
    assert f"{spec.budget.trials}/{spec.budget.trials} trials done" in status
    assert "past run good, complete" in status


def test_a_study_begins_with_what_another_has_found(make_study: Make, spec: StudySpec) -> None:
    other, study = make_study(spec, "other"), make_study(spec, "s")
    while trial := other.claim(Process.this(), RECORD):
        for step in range(100, 1001, 100):
            assert report(other, trial, step, 0.5, 1.0 * step)
        other.finish(trial, Completed(Score((50,), (100,))), 6.0)
    before = hpo("import", "--from-study", "other", "--study", "s")
    assert before.exit_code == 0, before.output
    assert {record.imported for record in study.imported()} == {
        f"other:{number}" for number in range(spec.budget.trials)
    }
    assert [record.params for record in study.imported()] == [
        record.params for record in other.records()
    ]
    assert {len(curve) for curve in study.curves(study.imported()).values()} == {10}
    assert hpo("import", "--from-study", "other", "--study", "s").exit_code == 0
    assert len(study.imported()) == spec.budget.trials, "told twice it is there once"
    elsewhere = make_study(
        spec.model_copy(update={"validation": spec.validation.model_copy(update={"seed": 1})}),
        "elsewhere",
    )
    one_line(
        hpo("import", "--from-study", "other", "--study", "elsewhere"), "trained on other sentences"
    )
    assert not elsewhere.imported()
    one_line(hpo("import", "--from-study", "s", "--study", "s"), "that is the study itself")
    one_line(hpo("import", "--from-study", "other"), "Add --study NAME")
    one_line(hpo("import"), "give either RUNS_DIR or --from-study NAME")


def one_line(done: Any, part: str) -> None:
    assert done.exit_code == 2 and part in done.output and done.output.strip().count("\n") == 0, (
        done.output
    )


def refuse(arguments: dict[str, Any], **values: Any) -> dict[str, Any]:
    return {"entries": validated(), "arguments": arguments | values}


def test_what_is_not_comparable_is_kept_with_the_reason(
    make_study: Make, spec: StudySpec, arguments: dict[str, Any], tmp_path: Path
) -> None:
    study = make_study(spec)
    cases: dict[str, tuple[dict[str, Any], str]] = {
        "on_test": ({"entries": rows(), "arguments": arguments}, "scored on test"),
        "eps": (
            {"entries": validated(), "arguments": without(arguments, "eps")},
            "optimizer.eps is searched but not known",
        ),
        "lr": (
            {
                "entries": [row | {"lr": 0.5} for row in validated()],
                "arguments": arguments | {"lrStart": 0.5, "peak_lr": 0.5, "lrEnd": 0.5},
            },
            "optimizer.lr = 0.5 is outside the space",
        ),
        "units": (refuse(arguments, nUnits=64), "model.units = 64, the study has 8"),
        "days": (refuse(arguments, nDays=24), "24 days, the study's data have 2"),
        "channels": (refuse(arguments, nInputFeatures=256), "256 channels"),
        "swa": (refuse(arguments, use_swa=True), "use_swa in args"),
        "short": (
            {"entries": validated()[:5], "arguments": arguments},
            "ended at step 400 of 1000",
        ),
        "none": ({"arguments": arguments}, "no evaluation is recorded"),
        "negative": (
            {"entries": validated((0.9, 0.7, -0.1, *[0.3] * 7)), "arguments": arguments},
            "negative PER at step 200",
        ),
        "percent": (
            {"entries": validated([100 * row["per"] for row in rows()]), "arguments": arguments},
            "no PER at or below 1",
        ),
    }
    for name, (contents, _) in cases.items():
        write(tmp_path / "runs" / name, **contents)
    found = {
        run["name"]: run
        for run in json.loads(
            hpo("import", tmp_path / "runs", "--study", "s", "--same-data", "--json").stdout
        )["runs"]
    }
    for name, (_, reason) in cases.items():
        assert reason in found[name]["why_not"], name
    assert not study.imported()
    assert {run["name"] for run in study.results()["past_runs"]["runs"]} == set(cases)
    shutil.rmtree(tmp_path / "runs")
    write(tmp_path / "runs" / "good", validated(), arguments)
    shown = hpo("import", tmp_path / "runs", "--study", "s")
    assert "--same-data states that" in " ".join(shown.stdout.split())
    assert not study.imported()


def test_the_sampler_avoids_where_imported_runs_diverged(
    make_study: Make, spec: StudySpec, arguments: dict[str, Any], tmp_path: Path
) -> None:
    """20 runs spread evenly over log lr: above 0.002 (half of the range) all diverge, so few of the first draws lie there."""
    study = make_study(
        spec.model_copy(
            update={"starts": {}, "budget": spec.budget.model_copy(update={"trials": 12})}
        )
    )
    for n, lr in enumerate(np.geomspace(1.1e-4, 4.5e-2, 20)):
        pers = (
            RISING
            if lr > 0.002
            else [
                per + 0.001 * (n % 5)
                for per in (0.9, 0.7, 0.5, 0.4, 0.35, 0.3, 0.28, 0.27, 0.26, 0.25)
            ]
        )
        rate = {"lrStart": lr, "peak_lr": lr, "lrEnd": lr}
        write(
            tmp_path / "runs" / f"r{n}",
            [row | {"lr": lr} for row in validated(pers)],
            arguments | rate,
        )
    assert hpo("import", tmp_path / "runs", "--study", "s", "--same-data").exit_code == 0
    assert len(study.imported()) == 20
    drawn = []
    for _ in range(12):
        trial = study.claim(Process.this(), RECORD)
        assert trial is not None
        drawn.append(trial.config.flat()["optimizer.lr"])
    assert np.mean(np.array(drawn) > 0.002) < 0.5 / 2
