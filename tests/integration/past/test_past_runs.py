"""Past runs: every trap of real run folders is a warning, and imports reach a study."""

import json
import math
import pickle
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.commands import invoke
from helpers.lines import refusal
from helpers.studies import RECORD, decoder_config, report

from hpo.decoder.config import DecoderConfig
from hpo.decoder.lab import from_lab_arguments, lab_arguments
from hpo.decoder.trainer import PER
from hpo.errors import DataError
from hpo.past.lab_runs import read_lab_run
from hpo.past.past_runs import PastRun
from hpo.past.read import read_runs
from hpo.process import Process
from hpo.report.report import as_text, build_report
from hpo.space.load import load_spec
from hpo.space.spec import StudySpec
from hpo.study.pick import best_of, pick_trial
from hpo.study.study import Study
from hpo.study.trial import Completed
from hpo.trainer import Score, Translated

CONFIG = DecoderConfig().with_values(
    {"steps": 1000, "optimizer.name": "adamw", "optimizer.lr": 0.002, "optimizer.eps": 1e-8}
)
ARGS = lab_arguments(CONFIG, 3, 2)
PERS = (0.9, 0.7, 0.5, 0.4, 0.35, 0.3, 0.28, 0.27, 0.26, 0.25)
Rows = list[dict[str, Any]]


def rows(pers: Sequence[float] = PERS, every: int = 100) -> Rows:
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
        lines = "".join(json.dumps(entry) + "\n" for entry in entries)
        (folder / "metrics.jsonl").write_text(lines + tail)
    if stats is not None:
        (folder / "trainingStats").write_bytes(pickle.dumps(stats))
    return folder


def without(arguments: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if name not in names}


# ---- real runs


@pytest.fixture(scope="module")
def lab_runs(shared_data: Path) -> dict[str, PastRun]:
    runs, refused = read_runs(shared_data / "lab_runs")
    assert not refused
    return {run.name: run for run in runs}


# From shared/data/lab_runs/README.md: run, evaluations, best PER, last step in batches, batches
# per update.
LAB = [
    ("gru_ctc_reg2", 14, 0.4723, 1300, 1),
    ("gru_ctc_reg5", 19, 0.5736, 1800, 1),
    ("gru_ctc_reg6", 62, 0.5117, 6100, 1),
    ("run12_baseline_hybrid", 8, 0.9626, 700, 1),
    ("run15_warmup_cosine_safe", 100, 0.2690, 9900, 2),
    ("run16_3", 64, 0.2152, 6300, 2),
    ("run17_greedy_ema_fastcos", 52, 0.3501, 5100, 2),
]


@pytest.mark.parametrize("facts", LAB, ids=[name for name, *_ in LAB])
def test_curves_of_real_runs(
    lab_runs: dict[str, PastRun], facts: tuple[str, int, float, int, int]
) -> None:
    name, evaluations, best, last, accumulation = facts
    run = lab_runs[name]
    assert len(run.curve) == evaluations
    assert round(run.best_value or 0, 4) == best
    assert run.curve[-1].step == last // accumulation
    assert run.curve[0].seconds == 0
    assert run.curve[-1].seconds
    assert "optimizer.eps" not in run.config
    assert any("do not record eps" in warning for warning in run.warnings)
    assert any("first row's time_per_batch" in warning for warning in run.warnings)
    halved = any("divided by 2 to updates" in warning for warning in run.warnings)
    assert halved == (accumulation == 2)


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
    run = lab_runs[name]
    assert any(warning in text for text in run.warnings), run.warnings
    assert (run.split == "validation") == (name == "run17_greedy_ema_fastcos")


def test_the_import_command_shows_real_runs(shared_data: Path) -> None:
    done = invoke("import", shared_data / "lab_runs")
    assert done.exit_code == 0, done.output
    assert "run16_3" in done.output
    assert "all: args do not record eps" in done.output
    printed = json.loads(invoke("import", shared_data / "lab_runs", "--json").output)
    assert len(printed["runs"]) == 8


# ---- traps, on small folders


def test_a_clean_run_has_only_the_warning_that_every_run_has(tmp_path: Path) -> None:
    run = read_lab_run(write(tmp_path / "a", rows()))
    assert all("time_per_batch" in warning for warning in run.warnings)
    assert run.config["optimizer.eps"] == 1e-8
    assert run.reached_its_plan
    assert run.curve[-1].seconds == 9 * 100 * 0.5


TWO_STARTS = [*rows((0.9, 0.8, 0.6)), *rows()]
REWOUND = [*rows()[:7], *rows()[4:]]
WITH_A_GAP = rows()[:3] + rows()[5:]


def changed(number: int, **values: Any) -> Rows:
    """The usual rows, one with other values."""
    entries = rows()
    entries[number] |= values
    return entries


def with_each(**values: Any) -> Rows:
    """The usual rows, all with these values."""
    return [row | values for row in rows()]


def with_cer() -> Rows:
    return [without(row, "per") | {"cer": row["per"]} for row in rows()]


def in_percent() -> Rows:
    return [row | {"per": 100 * row["per"]} for row in rows()]


def with_skipped_updates() -> Rows:
    return [row | {"skipped_updates": n // 4} for n, row in enumerate(rows())]


def with_falling_rate() -> Rows:
    return [row | {"lr": 0.002 / (n + 1)} for n, row in enumerate(rows())]


STATS = {
    "testPER": np.array([entry["per"] for entry in rows()]),
    "testLoss": np.array([entry["ctc_loss"] for entry in rows()]),
}


# metrics.jsonl beside the usual args, the warning, the number of evaluations that are read.
CURVES: list[tuple[Rows, str, int]] = [
    (with_cer(), "`cer` in place of `per`", 10),
    (changed(4, per=math.nan), "per is NaN or Infinity at step 400", 10),
    (changed(4, ctc_loss=math.inf), "ctc_loss is NaN or Infinity at step 400", 10),
    (TWO_STARTS, "two runs in one file: the step falls back from 200 to 0", 10),
    (REWOUND, "the step goes backwards from 600 to 400", 10),
    (WITH_A_GAP, "no evaluation at step 300, 400,", 8),
    (rows()[:6], "ended at step 500 of 1000 planned", 6),
    (with_each(eval_split="valid"), "scored on the split validation", 10),
    (changed(9, eval_split="valid"), "scored on several splits", 10),
    (changed(0, per=1.2), "PER above 1 at step 0, highest 1.2", 10),
    (changed(3, per=-0.1), "negative PER at step 300", 10),
    (changed(5, step=None), "line 6: no evaluation", 9),
    (changed(5, step=10**400), "line 6: no evaluation", 9),
    (changed(5, per=[0.3]), "line 6: no evaluation", 9),
    (changed(4, time_per_batch=math.nan), "GPU time is unknown", 10),
    (with_skipped_updates(), "the trainer skipped 2 updates", 10),
    (in_percent(), "no PER at or below 1, the lowest is 25: percent?", 10),
    (with_each(eval_split="\x1b[31mred"), "scored on the split ?[31mred", 10),
    ([without(row, "time_per_batch") for row in rows()], "GPU time is unknown", 10),
    ([without(row, "ctc_loss") for row in rows()], "no loss is recorded", 10),
    (with_falling_rate(), "learning rate 0.001 at step 100, where args's", 10),
]
# What `write` takes besides, such as the end of metrics.jsonl or another file.
STATS_WITH_CER = without(STATS, "testPER") | {"testCER": STATS["testPER"]}
OTHER_STATS = {"testPER": STATS["testPER"] + 0.01}
STATS_OF_TEXT = STATS | {"testPER": np.array(["a"] * 10, dtype=object)}
LEFT_OUT = "metrics.jsonl lines 11, 12, 13, 14, 15 and 295 more: left out, the first because"
FOLDERS: list[tuple[dict[str, Any], str, int]] = [
    ({}, "never started", 0),
    ({"stats": STATS}, "no metrics.jsonl: the curve is trainingStats's", 10),
    ({"stats": STATS_WITH_CER}, "`testCER` in place of `testPER`", 10),
    ({"stats": {"testLoss": STATS["testLoss"]}}, "trainingStats holds no testPER", 0),
    (
        {"entries": rows()[:9], "tail": '{"step": 900, "per": 0.2'},
        "line 10: cut off in mid-line",
        9,
    ),
    (
        {"entries": rows()[:3], "tail": "what?\n" + json.dumps(rows()[3]) + "\n"},
        "line 4: no evaluation",
        4,
    ),
]
WITH_ROWS: list[tuple[dict[str, Any], str]] = [
    ({"stats": OTHER_STATS}, "trainingStats has another per than"),
    ({"stats": STATS | {"testPER": np.ones((10, 2))}}, "trainingStats holds no testPER"),
    ({"stats": STATS_OF_TEXT}, "trainingStats holds no testPER"),
    ({"stats": STATS | {"testPER": 0.5}}, "trainingStats holds no testPER"),
    ({"tail": "[" * 100_000 + "\n" + "3\n"}, "line 11: no evaluation"),
    ({"tail": "x\n" * 300}, LEFT_OUT),
    ({"arguments": None}, "no args"),
    ({"arguments": without(ARGS, "eps")}, "args do not record eps"),
    ({"arguments": ARGS | {"run_name": "\x1b]0;b\x07"}}, "args call the run ?]0;b?"),
    ({"arguments": ARGS | {"run_name": "b"}}, "args call the run b"),
    ({"arguments": ARGS | {"dropout": 7}}, "left out: model.dropout"),
    (
        {"arguments": ARGS | {"timeMaskNum": 20, "model": "transformer"}},
        "args have words that hpo does not know: timeMaskNum = 20, model = 'transformer'",
    ),
    (
        {"arguments": ARGS | {"a\x1b": "x" * 10_000}},
        "that hpo does not know: a? = 'xxxxxxxxxxxx...",
    ),
    ({"arguments": ARGS | {3: 10**5000}}, "that hpo does not know: 3 = 'a number of"),
    ({"arguments": ARGS | {(1, 10**5000): [10**5000]}}, "hpo does not know: a tuple = a list"),
    ({"arguments": ARGS | {"nUnits": 10**5000}}, "left out: model.units"),
    ({"arguments": ARGS | {"sgdr_T0": 100}}, "sgdr_T0 in args: not among our schedules"),
]
TRAPS = [
    *(({"entries": entries}, warning, count) for entries, warning, count in CURVES),
    *(({"entries": rows(), **files}, warning, 10) for files, warning in WITH_ROWS),
    *FOLDERS,
]


@pytest.mark.parametrize(("contents", "warning", "evaluations"), TRAPS)
def test_a_trap_is_a_warning(
    tmp_path: Path, contents: dict[str, Any], warning: str, evaluations: int
) -> None:
    run = read_lab_run(write(tmp_path / "a", **contents))
    assert any(warning in text for text in run.warnings), run.warnings
    assert len(run.curve) == evaluations


def test_the_last_of_two_starts_counts(tmp_path: Path) -> None:
    run = read_lab_run(write(tmp_path / "a", [*rows((0.1, 0.1, 0.1)), *rows()]))
    assert [point.value for point in run.curve] == [row["per"] for row in rows()]
    assert run.curve[-1].seconds == 9 * 100 * 0.5


class Evil:
    def __reduce__(self) -> Any:
        return (print, ("run",))


def test_folders_that_are_no_runs_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evil = write(tmp_path / "evil", rows())
    (evil / "args").write_bytes(pickle.dumps({"nBatch": Evil()}))
    with pytest.raises(DataError, match=r"builtins\.print.*nothing was run"):
        read_lab_run(evil)
    assert capsys.readouterr().out == ""

    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").touch()
    valid = r"cat\.png.*Valid: a folder with args, metrics\.jsonl, trainingStats"
    with pytest.raises(DataError, match=valid):
        read_runs(tmp_path / "photos")

    for name, arguments in (
        ("text", {"nBatch": "many"}),
        ("huge", {"gradient_accumulation_steps": 10**400}),
    ):
        folder = write(tmp_path / name, rows(), ARGS | arguments)
        with pytest.raises(DataError, match="a value makes no sense"):
            read_lab_run(folder)

    write(tmp_path / "good", rows())
    runs, refused = read_runs(tmp_path)
    assert [run.name for run in runs] == ["good"]
    assert set(refused) == {"evil", "huge", "photos", "text"}
    done = invoke("import", tmp_path)
    assert done.exit_code == 0
    assert "refused evil" in done.output


def test_what_systems_and_editors_leave_is_no_run(tmp_path: Path) -> None:
    write(tmp_path / "good", rows())
    for name in (".ipynb_checkpoints", "__MACOSX", "._good", ".good.bak"):
        write(tmp_path / name, rows())
    write(tmp_path / "good.bak", rows())
    (tmp_path / "photos~").mkdir()
    runs, refused = read_runs(tmp_path)
    assert [run.name for run in runs] == ["good"]
    # A person may have named it so, and it would be missed.
    assert set(refused) == {"good.bak"}
    assert "named as a backup, so it is not read. Rename it if it is a run" in refused["good.bak"]
    assert read_runs(tmp_path / "good.bak")[0][0].name == "good.bak"


def test_what_systems_and_editors_leave_is_no_table(tmp_path: Path) -> None:
    for name in ("a.csv", "._a.csv", ".a.csv", "~$a.csv", "b.csv~", "b.csv.bak"):
        (tmp_path / name).write_text("step,per\n0,0.9\n")
    runs, _ = read_runs(tmp_path, {"step": "step"})
    assert [run.name for run in runs] == ["a"]


SETTINGS_OF_A_LAB: list[dict[str, Any]] = [
    {},
    {
        "optimizer.name": "sgd",
        "optimizer.momentum": 0.8,
        "schedule.name": "plateau",
        "augment.time_masks": 2,
    },
    {"optimizer.name": "adamw", "schedule.name": "warmup-cosine", "schedule.warmup": 0.2},
    {"accumulation": 2, "optimizer.grad_clip_norm": 1.5},
    {
        "optimizer.ema_decay": 0.99,
        "augment.feature_masks": 1,
        "augment.feature_mask_p": 0.3,
        "model.layer_norm": True,
    },
]


@pytest.mark.parametrize("values", SETTINGS_OF_A_LAB)
def test_the_labs_arguments_survive_a_round_trip(values: dict[str, Any]) -> None:
    config = DecoderConfig().with_values(values)
    expected = config.flat()
    translated = from_lab_arguments(lab_arguments(config, 256, 24))
    back = translated.config
    assert not translated.inexpressible
    assert not translated.unknown
    assert back == {name: expected[name] for name in back}
    assert set(values) <= set(back)


def translated(**values: Any) -> Translated:
    """The translation of the usual arguments, some with other values; without those that are None
    here.
    """
    return from_lab_arguments(ARGS | {"schedule": None} | values)


def test_every_argument_of_real_runs_is_known(lab_runs: dict[str, PastRun]) -> None:
    assert {name: run.unknown for name, run in lab_runs.items()} == dict.fromkeys(lab_runs, ())


# Arguments whose numbers are those of a training that the study does not do -> field, reason.
INEXPRESSIBLE: list[tuple[dict[str, Any], str, str]] = [
    ({"schedule": "step"}, "schedule.name", "schedule step in args"),
    ({"schedule": "linear", "use_plateau_scheduler": True}, "schedule.name", "are of plateau"),
    ({"use_plateau_scheduler": True, "warmup_steps": 9}, "schedule.name", "warmup of 9 updates"),
    ({"warmup_steps": 9}, "schedule.name", "warmup of 9 updates without a cosine"),
    ({"warmup_steps": 9, "lrEnd": None}, "schedule.name", "warmup_steps in args without lrEnd"),
    ({"lrEnd": 1e-5, "nBatch": None}, "schedule.name", "lrEnd in args without nBatch"),
    ({"lrStart": 0.1}, "schedule.name", "lrStart = 0.1 and peak_lr = 0.002"),
    ({"plateau_guard_enable": True}, "schedule.name", "plateau_guard_enable in args"),
    ({"use_beam_search": True}, "", "we decode greedily"),
    ({"use_ema": True, "ema_decay": None}, "optimizer.ema_decay", "use_ema in args without"),
    (
        {"weight_decay": None, "l2_decay": 0.1},
        "optimizer.weight_decay",
        "l2_decay = 0.1 in args, but adamw takes weight_decay",
    ),
    (
        {"time_mask_prob": 0.1, "time_mask_max_masks": None},
        "augment.time_masks",
        "time_mask_prob and time_mask_width in args without time_mask_max_masks",
    ),
]


@pytest.mark.parametrize(("values", "field", "reason"), INEXPRESSIBLE)
def test_what_no_configuration_expresses_is_said(
    tmp_path: Path, values: dict[str, Any], field: str, reason: str
) -> None:
    (inexpressible,) = translated(**values).inexpressible
    assert inexpressible.field == field
    assert reason in inexpressible.why
    run = read_lab_run(write(tmp_path / "a", rows(), ARGS | {"schedule": None} | values))
    assert run.foreign == (inexpressible.why,)
    # What args say in some way, they do record.
    assert not any(
        "do not record" in warning and field in warning for warning in run.warnings if field
    )


@pytest.mark.parametrize(
    "values",
    [
        {"schedule": "constant"},
        {"schedule": "linear"},
        {"schedule": "warmup-cosine"},
        {"use_swa": False, "swa_lr": 5e-5},
        {"adaptive_lr": False, "use_amp": True, "use_beam_search": False, "beam_size": 20},
        {"use_ema": False},
    ],
)
def test_what_is_switched_off_or_without_effect_keeps_no_run_out(values: dict[str, Any]) -> None:
    assert not translated(**values).inexpressible
    assert not translated(**values).unknown


def test_settings_of_a_switch_that_is_not_recorded_are_unknown() -> None:
    assert translated(swa_lr=5e-5).unknown == ("swa_lr",)


def test_numbers_and_booleans_of_numpy_are_those_of_python(tmp_path: Path) -> None:
    kinds: dict[type, Callable[[Any], Any]] = {
        bool: np.bool_,
        int: np.int64,
        float: np.float32,
        str: np.str_,
        type(None): lambda nothing: nothing,
    }
    of_numpy = {name: kinds[type(value)](value) for name, value in ARGS.items()}
    of_numpy["dropout"] = np.array(ARGS["dropout"])
    expected = read_lab_run(write(tmp_path / "a" / "run", rows()))
    run = read_lab_run(write(tmp_path / "b" / "run", rows(), of_numpy))
    assert run.config == expected.config
    assert {type(value) for value in run.config.values()} <= {int, float, bool, str, type(None)}
    assert (run.n_features, run.n_days, run.warnings) == (3, 2, expected.warnings)


def test_a_value_that_no_field_can_have_is_not_the_studys(tmp_path: Path) -> None:
    run = read_lab_run(write(tmp_path / "a", rows(), ARGS | {"optimizer": "lion"}))
    assert "optimizer.name" in run.foreign[0]
    assert not any("do not record" in warning for warning in run.warnings)
    table = tmp_path / "t.csv"
    table.write_text("step,per,optimizer.name,model.units\n0,0.9,lion,8\n9,0.8,lion,9\n")
    (of_table,), _ = read_runs(table)
    assert "model.units changes along the run" in of_table.foreign[0]
    assert "optimizer.name" in of_table.foreign[1]


def test_several_evaluations_at_one_update_are_one(tmp_path: Path) -> None:
    entries = [row | {"time_per_batch": 0.5} for row in rows()]
    run = read_lab_run(write(tmp_path / "a", entries, ARGS | {"gradient_accumulation_steps": 200}))
    assert [(point.step, point.value) for point in run.curve] == [
        (0, 0.7),
        (1, 0.4),
        (2, 0.3),
        (3, 0.27),
        (4, 0.25),
    ]
    assert "several evaluations at step 0, 1, 2, 3, 4: the last of each counts" in run.warnings
    assert [point.metrics.get("step_seconds") for point in run.points] == [None, *[100.0] * 4]
    table = tmp_path / "t.csv"
    table.write_text("step,per,seconds\n0,0.9,1\n1.2,0.8,2\n1.7,0.7,3\n2,0.6,4\n")
    (of_table,), _ = read_runs(table)
    assert [point.value for point in of_table.points] == [0.9, 0.7, 0.6]


def test_trainingstats_names_the_steps_that_differ(tmp_path: Path) -> None:
    """A row without a loss shifts nothing."""
    entries = rows()
    del entries[1]["ctc_loss"]
    losses = np.array([3 * per for per in PERS])
    losses[4] += 1
    run = read_lab_run(write(tmp_path / "a", entries, stats=STATS | {"testLoss": losses}))
    (warning,) = [warning for warning in run.warnings if "trainingStats" in warning]
    assert "another loss than metrics.jsonl at step 400:" in warning


def test_trainingstats_of_another_length_is_not_compared(tmp_path: Path) -> None:
    run = read_lab_run(write(tmp_path / "a", changed(2, step=None), stats=STATS))
    warnings = [warning for warning in run.warnings if "trainingStats" in warning]
    assert warnings == [
        "trainingStats has 10 values, metrics.jsonl 9: not compared, metrics.jsonl counts"
    ]


def test_a_line_that_is_left_out_has_no_cer(tmp_path: Path) -> None:
    tail = '{"step": null, "cer": 0.5}\n{"cer": 0.5}\n'
    run = read_lab_run(write(tmp_path / "a", rows(), tail=tail))
    assert len(run.curve) == 10
    assert not any("cer" in warning for warning in run.warnings)


# ---- tables


def test_a_table_holds_many_runs(tmp_path: Path) -> None:
    table = tmp_path / "runs.csv"
    lines = ["run,iter,val_per,lr,time"]
    for run, lr in ((1, "1e-3"), (2, "2e-3")):
        for n in range(5):
            lines.append(f"{run},{100 * n},{0.9 - 0.1 * n - 0.01 * run},{lr},{50 * n}")
    table.write_text("\n".join(lines))
    options = ["--map", "run=name", "--map", "iter=step", "--map", "val_per=per"]
    options += ["--map", "lr=optimizer.lr", "--map", "time=seconds"]
    runs = json.loads(invoke("import", table, *options, "--json").output)["runs"]
    assert [run["name"] for run in runs] == ["1", "2"]
    assert [run["config"]["optimizer.lr"] for run in runs] == [1e-3, 2e-3]
    assert [run["evaluations"] for run in runs] == [5, 5]
    assert runs[0]["gpu_seconds"] == 200
    assert any("split" in warning for warning in runs[0]["doubts"])


def test_a_table_per_run_with_our_names_is_read(tmp_path: Path) -> None:
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


def test_runs_of_one_name_in_two_tables_get_different_names(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.csv").write_text(f"name,step,per\n1,0,0.9\n1,100,0.5\n{name}2,0,0.9\n")
    runs, _ = read_runs(tmp_path, {"step": "step"})
    assert [run.name for run in runs] == ["a/1", "a2", "b/1", "b2"]


ITER_AND_VAL = ("--map", "iter=step", "--map", "val=per")


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (("--map", "per"), ("--map per: no field", "COLUMN=FIELD")),
        (("--map", "a=perr"), ("there is no 'perr'", "Did you mean per?")),
        (("--map", "itre=step"), ("there is no 'itre'", "Did you mean iter?")),
        (("--map", "iter=step", "--map", "val=step"), ("another column is step already",)),
        (("--map", "iter=step"), ("no column is per", "--map COLUMN=per")),
        ((*ITER_AND_VAL, "--same-data"), ("--same-data without --study",)),
        ((*ITER_AND_VAL, "--set", "optimizer.lr=-1"), ("optimizer.lr", "greater than 0")),
    ],
)
def test_mistakes_are_one_line(
    tmp_path: Path, options: tuple[str, ...], parts: tuple[str, ...]
) -> None:
    table = tmp_path / "runs.csv"
    table.write_text("iter,val\n0,0.9\n")
    line = refusal("import", table, *options)
    for part in parts:
        assert part in line


# ---- into a study


@pytest.fixture
def spec(tiny_space: Path) -> StudySpec:
    """As tiny_space, with runs of ten evaluations."""
    text = tiny_space.read_text()
    tiny_space.write_text(
        text.replace("steps: 6, evaluate_every: 2", "steps: 1000, evaluate_every: 100")
    )
    return load_spec(tiny_space)


@pytest.fixture
def arguments(spec: StudySpec) -> dict[str, Any]:
    return lab_arguments(decoder_config(spec, {"optimizer.lr": 0.002, "optimizer.eps": 1e-8}), 3, 2)


Make = Callable[..., Study]
# own-past stops it at step 600.
RISING = (0.9, 0.5, 0.3, 0.3, 0.5, 0.6, 0.7, 0.8, 0.8, 0.8)


def validated(pers: Sequence[float] = PERS) -> Rows:
    return [row | {"eval_split": "valid"} for row in rows(pers)]


@pytest.fixture
def import_good_and_risen(arguments: dict[str, Any], tmp_path: Path) -> tuple[str | Path, ...]:
    """The line that imports two runs into study `s`: one good, one whose PER rose."""
    runs = tmp_path / "runs"
    write(runs / "good", validated(), without(arguments, "eps"))
    write(runs / "risen", validated(RISING), arguments)
    return ("import", runs, "--study", "s", "--same-data", "--set", "optimizer.eps=1e-8")


def test_imported_runs_inform_the_sampler(
    make_study: Make, spec: StudySpec, import_good_and_risen: tuple[str | Path, ...]
) -> None:
    study = make_study(spec)
    done = invoke(*import_good_and_risen, "--json")
    assert done.exit_code == 0, done.output
    printed = {run["name"]: run for run in json.loads(done.stdout)["runs"]}
    assert [printed["good"]["why_not"], printed["risen"]["why_not"]] == ["", ""]
    doubts = printed["good"]["doubts"]
    assert "optimizer.eps = 1e-08 is stated by hand" in doubts
    assert any(
        "taken as the study's: model.padding" in doubt or "model.smoothing_kernel" in doubt
        for doubt in doubts
    )

    past = {record.imported: record for record in study.imported()}
    good, risen = past["good"], past["risen"]
    assert (good.state, good.value) == ("complete", 0.25)
    assert good.params == {
        "optimizer.lr": 0.002,
        "optimizer.name": "adam",
        "optimizer.eps": 1e-8,
    }
    assert (risen.state, risen.cause, risen.rule) == ("stopped", "per", "own-past")
    assert risen.step == 600
    trial = study.optuna.get_trials(deepcopy=False)[risen.number]
    # As Study.finish leaves a stopped trial.
    assert trial.constraints == {"diverged": 1.0}
    assert len(study.curves(study.imported())[good.number]) == 10

    # A second import adds nothing.
    assert invoke(*import_good_and_risen).exit_code == 0
    assert [record.id for record in study.imported()] == [record.id for record in past.values()]
    assert len(study.results()["past_runs"]["runs"]) == 2


def test_imported_runs_count_neither_in_the_budget_nor_in_reports(
    make_study: Make, spec: StudySpec, import_good_and_risen: tuple[str | Path, ...]
) -> None:
    study = make_study(spec)
    assert invoke(*import_good_and_risen).exit_code == 0
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
    # The best is not the imported run of 0.25.
    assert pick_trial(study, "best").value == 0.5
    report = build_report(study)
    assert report["trials"]["complete"] == spec.budget.trials
    assert report["gpu_seconds"] == {"spent": 28.0, "saved": 0, "lost": 0.0}
    assert {past["run"] for past in report["imported"]} == {"good", "risen"}
    assert "Imported for the sampler alone" in as_text(report, PER)
    status = invoke("status", "--study", "s").stdout
    assert f"{spec.budget.trials}/{spec.budget.trials} trials done" in status
    assert "past run good, complete" in status


@pytest.mark.slow
def test_a_study_starts_from_the_trials_of_another(make_study: Make, spec: StudySpec) -> None:
    other, study = make_study(spec, "other"), make_study(spec, "s")
    while trial := other.claim(Process.this(), RECORD):
        for step in range(100, 1001, 100):
            assert report(other, trial, step, 0.5, 1.0 * step)
        other.finish(trial, Completed(Score((50,), (100,))), 6.0)
    first = invoke("import", "--from-study", "other", "--study", "s")
    assert first.exit_code == 0, first.output
    trials = range(spec.budget.trials)
    assert {record.imported for record in study.imported()} == {f"other:{n}" for n in trials}
    imported_params = [record.params for record in study.imported()]
    assert imported_params == [record.params for record in other.records()]
    assert {len(curve) for curve in study.curves(study.imported()).values()} == {10}
    assert invoke("import", "--from-study", "other", "--study", "s").exit_code == 0
    assert len(study.imported()) == spec.budget.trials, "a second import adds nothing"

    other_split = spec.validation.model_copy(update={"seed": 1})
    elsewhere = make_study(spec.model_copy(update={"validation": other_split}), "elsewhere")
    line = refusal("import", "--from-study", "other", "--study", "elsewhere")
    assert "trained on other sentences" in line
    assert not elsewhere.imported()
    line = refusal("import", "--from-study", "s", "--study", "s")
    assert "that is the study itself" in line
    assert "Add --study NAME" in refusal("import", "--from-study", "other")
    assert "give either RUNS_DIR or --from-study NAME" in refusal("import")


def with_arguments(arguments: dict[str, Any], **values: Any) -> dict[str, Any]:
    return {"entries": validated(), "arguments": arguments | values}


def incomparable(arguments: dict[str, Any]) -> dict[str, tuple[dict[str, Any], str]]:
    """Run -> its files, and why it cannot join the study."""
    fast = {"lrStart": 0.5, "peak_lr": 0.5, "lrEnd": 0.5}
    rows_of_fast = [row | {"lr": 0.5} for row in validated()]
    without_eps = {"entries": validated(), "arguments": without(arguments, "eps")}
    negative = validated((0.9, 0.7, -0.1, *[0.3] * 7))
    percent = validated([100 * per for per in PERS])
    return {
        "on_test": ({"entries": rows(), "arguments": arguments}, "scored on test"),
        "eps": (without_eps, "optimizer.eps is searched but not known"),
        "lr": (
            {"entries": rows_of_fast, "arguments": arguments | fast},
            "optimizer.lr = 0.5 is outside the space",
        ),
        "units": (with_arguments(arguments, nUnits=64), "model.units = 64, the study has 8"),
        "days": (with_arguments(arguments, nDays=24), "24 days, the study's data have 2"),
        "channels": (with_arguments(arguments, nInputFeatures=256), "256 channels"),
        "swa": (with_arguments(arguments, use_swa=True), "use_swa in args"),
        "lion": (with_arguments(arguments, optimizer="lion"), "optimizer.name"),
        "transformer": (
            with_arguments(arguments, model="transformer", timeMaskNum=20),
            "unknown settings: model, timeMaskNum. If they change nothing, or --set says what they "
            "mean: --accept-unknown model,timeMaskNum",
        ),
        "short": (
            {"entries": validated()[:5], "arguments": arguments},
            "ended at step 400 of 1000",
        ),
        "none": ({"arguments": arguments}, "no evaluation is recorded"),
        "negative": (
            {"entries": negative, "arguments": arguments},
            "negative PER at step 200",
        ),
        "percent": ({"entries": percent, "arguments": arguments}, "no PER at or below 1"),
    }


def test_incomparable_runs_are_listed_with_the_reason(
    make_study: Make, spec: StudySpec, arguments: dict[str, Any], tmp_path: Path
) -> None:
    study = make_study(spec)
    runs = tmp_path / "runs"
    cases = incomparable(arguments)
    for name, (contents, _) in cases.items():
        write(runs / name, **contents)
    printed = json.loads(invoke("import", runs, "--study", "s", "--same-data", "--json").stdout)
    reasons = {run["name"]: run["why_not"] for run in printed["runs"]}
    for name, (_, reason) in cases.items():
        assert reason in reasons[name], name
    assert not study.imported()
    assert {run["name"] for run in study.results()["past_runs"]["runs"]} == set(cases)

    shutil.rmtree(runs)
    write(runs / "good", validated(), arguments)
    shown = invoke("import", runs, "--study", "s")
    assert "--same-data states that" in " ".join(shown.stdout.split())
    assert not study.imported()


def test_unknown_settings_that_the_user_accepts_keep_no_run_out(
    make_study: Make, spec: StudySpec, arguments: dict[str, Any], tmp_path: Path
) -> None:
    study = make_study(spec)
    runs = tmp_path / "runs"
    write(runs / "one", validated(), arguments | {"my_note": "x"})
    write(runs / "two", validated(), arguments | {"my_note": "x", "warmupSteps": 5})
    line = refusal("import", runs, "--study", "s", "--same-data", "--accept-unknown", "my_not")
    assert "there is no 'my_not'. Did you mean my_note? Valid: my_note, warmupSteps" in line
    assert not study.results()

    into_study = ("import", runs, "--study", "s", "--same-data", "--json")
    done = invoke(*into_study, "--accept-unknown", "my_note")
    one, two = json.loads(done.stdout)["runs"]
    assert one["why_not"] == ""
    assert "taken as without effect, as stated by hand: my_note" in one["doubts"]
    assert "unknown settings: warmupSteps. If" in two["why_not"]
    assert two["unknown"] == ["warmupSteps"]
    assert [record.imported for record in study.imported()] == ["one"]

    done = invoke(*into_study, "--accept-unknown", " my_note, warmupSteps")
    assert [run["why_not"] for run in json.loads(done.stdout)["runs"]] == ["", ""]
    assert len(study.imported()) == 2


def test_accept_unknown_needs_runs_that_have_unknown_settings(tmp_path: Path) -> None:
    run = write(tmp_path / "a", rows())
    line = refusal("import", run, "--accept-unknown", "x")
    assert "--accept-unknown x: the runs have no settings that hpo does not know" in line
    line = refusal("import", "--from-study", "a", "--study", "b", "--accept-unknown", "x")
    assert "--accept-unknown is about the runs in RUNS_DIR" in line


@pytest.mark.slow
def test_the_sampler_avoids_where_imported_runs_diverged(
    make_study: Make, spec: StudySpec, arguments: dict[str, Any], tmp_path: Path
) -> None:
    """20 runs spread evenly over log lr: above 0.002, half of the range, all diverge.

    So few of the first draws lie there.
    """
    budget = spec.budget.model_copy(update={"trials": 12})
    study = make_study(spec.model_copy(update={"starts": {}, "budget": budget}))
    for n, lr in enumerate(np.geomspace(1.1e-4, 4.5e-2, 20)):
        falling = [per + 0.001 * (n % 5) for per in PERS]
        pers = RISING if lr > 0.002 else falling
        rate = {"lrStart": lr, "peak_lr": lr, "lrEnd": lr}
        entries = [row | {"lr": lr} for row in validated(pers)]
        write(tmp_path / "runs" / f"r{n}", entries, arguments | rate)
    assert invoke("import", tmp_path / "runs", "--study", "s", "--same-data").exit_code == 0
    assert len(study.imported()) == 20
    drawn = []
    for _ in range(12):
        trial = study.claim(Process.this(), RECORD)
        assert trial is not None
        drawn.append(trial.config.flat()["optimizer.lr"])
    assert np.mean(np.array(drawn) > 0.002) < 0.5 / 2
