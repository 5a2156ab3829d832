"""What training scripts write about their progress: in real formats, and cut at every place."""

import csv
import io
import json
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpo.errors import CallerError, SpecError
from hpo.script.curve_check import check_curve
from hpo.script.row import Row, RowsError
from hpo.script.rows import LONGEST_LINE, Rows
from hpo.script.settings import CurveSettings

NAN = math.nan
INF = math.inf
B2T25 = (
    r"Val batch (?P<step>\d+): PER \(avg\): (?P<value>[\d.]+) "
    r"CTC Loss \(avg\): (?P<validation_loss>[\d.]+)"
)
HYDRA = r"batch (?P<step>\d+), ctc loss: (?P<validation_loss>[\d.]+), cer: (?P<value>[\d.]+)"
PER = r"step (?P<step>\d+) per (?P<value>[\d.]+)"
ANY_PER = r"step (?P<step>\S+) per (?P<value>\S+)"


def read(folder: Path, text: str | bytes, last: bool = True, **curve: Any) -> list[Row]:
    """The rows of a file that has this text."""
    section = CurveSettings(**curve)
    check_curve(section, "t15.yaml")
    path = folder / Path(section.file).name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return Rows(section, path).read(last)


def same(one: float | None, other: float | None) -> bool:
    if one is None or other is None:
        return one is other
    return one == other or (math.isnan(one) and math.isnan(other))


def points(rows: Sequence[Row]) -> list[tuple[int, float | None]]:
    return [(row.step, row.value) for row in rows]


def facts_of(row: Row) -> str:
    """All that is known at a step, without the line that gave it."""
    known = [row.step, row.value, row.loss, row.validation_loss, row.errors, row.lengths]
    return json.dumps([*known, sorted(row.metrics.items())])


def curve_of(rows: Sequence[Row]) -> dict[int, str]:
    """The last facts of each step."""
    return {row.step: facts_of(row) for row in rows}


def over_json(place: Mapping[str, Any]) -> Any:
    """As a database keeps it, which has no NaN."""
    return json.loads(json.dumps(place, allow_nan=False))


# ---- real formats


def test_the_log_of_the_brain_to_text_25_trainer(tmp_path: Path) -> None:
    log = (
        "2025-07-03 10:01:11,251: Using device: cuda:0\n"
        "2025-07-03 10:01:12,001: Train batch 0: loss: 612.33 grad norm: 71.22 time: 0.512\n"
        "2025-07-03 10:01:55,120: Running test after training batch: 0\n"
        "10:02:36,912: Val batch 0: PER (avg): 1.2155 CTC Loss (avg): 501.2345 time: 41.2\n"
        "2025-07-03 10:02:36,913: t15.2023.08.13 val PER: 1.0959\n"
        "2025-07-03 10:02:36,913: New best test PER inf --> 1.2155\n"
        "10:22:36,912: Val batch 2000: PER (avg): 0.1234 CTC Loss (avg): 12.3456 time: 12.3\n"
        "2025-07-03 10:42:36,912: Val batch 4000: PER (avg): nan CTC Loss (avg): nan time: 12.1\n"
    )
    rows = read(tmp_path, log, file="run/training_log", pattern=B2T25)
    assert points(rows[:2]) == [(0, 1.2155), (2000, 0.1234)]
    assert [row.validation_loss for row in rows[:2]] == [501.2345, 12.3456]
    assert rows[2].step == 4000
    assert same(rows[2].value, NAN)
    assert same(rows[2].validation_loss, NAN)
    assert rows[1].loss is None
    assert rows[1].line.endswith("time: 12.3")


def test_several_patterns_of_one_log(tmp_path: Path) -> None:
    log = (
        "Train batch 0: loss: 612.33 grad norm: 71.22 time: 0.512\n"
        "Train batch 200: loss: 1e-05 grad norm: inf time: 0.512\n"
        "Val batch 200: PER (avg): 0.5 CTC Loss (avg): 3.5 time: 12.3\n"
    )
    train = r"Train batch (?P<step>\d+): loss: (?P<loss>[\d.]+)"
    rows = read(tmp_path, log, file="training_log", pattern=[train, B2T25])
    assert points(rows) == [(0, None), (200, 0.5)]
    assert [row.loss for row in rows] == [612.33, 1e-05]


def test_the_output_of_neural_seq_decoder(tmp_path: Path) -> None:
    log = (
        "batch 0, ctc loss: 98.1, cer: 1.02, time/batch: 1.9\n"
        "batch 100, ctc loss: 3.21, cer: 0.87, time/batch: 0.35\n"
    )
    rows = read(tmp_path, log, file="log", pattern=HYDRA)
    assert points(rows) == [(0, 1.02), (100, 0.87)]
    assert rows[1].validation_loss == 3.21


def test_the_table_of_pytorch_lightning(tmp_path: Path) -> None:
    """Training and validation have rows of their own; a new column rewrites the whole file."""
    names = {"value": "val/per", "validation_loss": "val_loss", "loss": "train_loss"}
    path = tmp_path / "metrics.csv"
    rows = Rows(CurveSettings(file="metrics.csv", names=names), path)
    path.write_text("epoch,step,train_loss\n0,49,2.5\n0,99,1.5\n")
    assert [(row.step, row.loss, row.value) for row in rows.read()] == [
        (49, 2.5, None),
        (99, 1.5, None),
    ]
    whole = "epoch,lr,step,train_loss,val/per,val_loss\n0,,49,2.5,,\n0,,99,1.5,,\n0,,99,,0.4,1.1\n"
    path.write_text("")
    assert rows.read() == []
    path.write_text(whole[:60])
    assert rows.read() == []
    path.write_text(whole)
    (row,) = rows.read()
    assert (row.step, row.loss, row.value, row.validation_loss) == (99, 1.5, 0.4, 1.1)
    assert dict(row.metrics) == {"epoch": 0.0}
    with path.open("a") as file:
        file.write("1,0.001,149,1.25,,\n")
    (row,) = rows.read(last=True)
    assert (row.step, row.loss, row.metrics["lr"]) == (149, 1.25, 0.001)


TRAINER_STATE: dict[str, Any] = {
    "best_metric": None,
    "epoch": 2.0,
    "global_step": 20,
    "log_history": [
        {"epoch": 1.0, "grad_norm": 1.5, "learning_rate": 5e-5, "loss": 2.5, "step": 10},
        {"epoch": 1.0, "eval_loss": 2.25, "eval_wer": 0.5, "eval_runtime": 3.2, "step": 10},
        {"epoch": 2.0, "grad_norm": NAN, "learning_rate": 0.0, "loss": 1.5, "step": 20},
        {"epoch": 2.0, "eval_loss": 2.0, "eval_wer": 0.25, "eval_runtime": 3.1, "step": 20},
    ],
}
HF_NAMES = {"value": "eval_wer", "validation_loss": "eval_loss"}


def state(rows: int) -> str:
    history = TRAINER_STATE["log_history"][:rows]
    return json.dumps(TRAINER_STATE | {"log_history": history}, indent=2)


def test_the_state_of_a_hugging_face_trainer(tmp_path: Path) -> None:
    path = tmp_path / "trainer_state.json"
    curve = CurveSettings(file="trainer_state.json", rows="log_history", names=HF_NAMES)
    rows = Rows(curve, path)
    assert rows.read() == []
    path.write_text(state(1))
    assert [(row.step, row.loss, row.value) for row in rows.read()] == [(10, 2.5, None)]
    path.write_text(state(2)[:-40])
    assert rows.read() == []
    path.write_text(state(2))
    assert [(row.step, row.loss, row.value) for row in rows.read()] == [(10, 2.5, 0.5)]
    rows = Rows(curve, path, over_json(rows.place()))
    assert rows.read() == []
    path.write_text(state(4))
    (row,) = rows.read()
    assert (row.step, row.loss, row.value, row.validation_loss) == (20, 1.5, 0.25, 2.0)
    assert same(row.metrics["grad_norm"], NAN)


def test_the_newest_checkpoint_of_a_hugging_face_trainer(tmp_path: Path) -> None:
    file = "out/checkpoint-*/trainer_state.json"
    rows = Rows(CurveSettings(file=file, rows="log_history", names=HF_NAMES), tmp_path / file)

    def save(checkpoint: str, count: int, seconds: int) -> Path:
        path = tmp_path / "out" / checkpoint / "trainer_state.json"
        path.parent.mkdir(parents=True)
        path.write_text(state(count))
        os.utime(path, (seconds, seconds))
        return path

    assert rows.read() == []
    save("checkpoint-9", 2, 1000)
    assert points(rows.read()) == [(10, 0.5)]
    newest = save("checkpoint-10", 4, 1001)
    assert points(rows.read()) == [(20, 0.25)]
    assert rows.read() == []
    newest.unlink()
    assert rows.read() == []


def test_a_trainer_that_returns_to_its_checkpoint(tmp_path: Path) -> None:
    """The list becomes shorter, and grows again with other numbers."""
    path = tmp_path / "s.json"
    rows = Rows(CurveSettings(file="s.json"), path)
    path.write_text(json.dumps([{"step": step, "value": 0.5} for step in (1, 2, 3)]))
    assert len(rows.read()) == 3
    rows = Rows(CurveSettings(file="s.json"), path, over_json(rows.place()))
    path.write_text(json.dumps([{"step": step, "value": 0.25} for step in (1, 2)]))
    assert rows.read() == []
    path.write_text(json.dumps([{"step": step, "value": 0.25} for step in (1, 2, 3, 4)]))
    assert points(rows.read()) == [(3, 0.25), (4, 0.25)]


def test_lines_like_those_of_wandb(tmp_path: Path) -> None:
    log = (
        '{"_step": 0, "_runtime": 3.2, "_timestamp": 1.75e9, "train": {"loss": 4.5}, "ok": true}\n'
        '{"_step": 100, "_runtime": 9.2, "train": {"loss": "NaN"}, "per_0": 0.25, "per_1": 0.75,'
        ' "note": "inference", "tags": [1, 2], "nothing": null}\n'
    )
    names = {"step": "_step", "loss": "train/loss"}
    rows = read(tmp_path, log, names=names, expression="mean(per_0, per_1)")
    assert points(rows) == [(0, None), (100, 0.5)]
    assert rows[0].loss == 4.5
    assert same(rows[1].loss, NAN)
    assert dict(rows[1].metrics) == {"_runtime": 9.2, "per_0": 0.25, "per_1": 0.75}
    assert dict(rows[0].metrics) == {"_runtime": 3.2, "_timestamp": 1.75e9}


# ---- one line, one row

JSON_LINES = [
    ('{"step": 1, "value": 0.5}', 1, 0.5),
    ('{"step": 3.0, "value": 1}', 3, 1.0),
    ('{"step": "3", "value": "0.25"}', 3, 0.25),
    ('{"step": 1e3, "value": 1E-3}', 1000, 1e-3),
    ('{"step": 1, "value": NaN}', 1, NAN),
    ('{"step": 1, "value": nan}', 1, NAN),
    ('{"step": 1, "value": -nan}', 1, NAN),
    ('{"step": 1, "value": -nan(ind)}', 1, NAN),
    ('{"step": 1, "value": Infinity, "note": "banana nan"}', 1, INF),
    ('{"step": 1, "value": -Infinity}', 1, -INF),
    ('{"step": 1, "value": inf}', 1, INF),
    ('{"step": 1, "value": -inf, "info": "inf"}', 1, -INF),
    ('{"step": 1, "value": 1.#QNAN}', 1, NAN),
    ('{"step": 1, "value": 1.#INF}', 1, INF),
    ('{"step": 1, "value": -1.#INF00}', 1, -INF),
    ('{"step": 1, "value": "nan"}', 1, NAN),
    ('{"step": 1, "value": " -Infinity "}', 1, -INF),
    ('{"step": 1, "value": "+3"}', 1, 3.0),
    ('{"step": 1, "value": 1e999}', 1, INF),
    (f'{{"step": 1, "value": -1{"0" * 400}}}', 1, -INF),
    ('{"step": 1, "value": null, "loss": 1}', 1, None),
    ('{"step": 1, "value": "", "loss": 1}', 1, None),
    ('\ufeff{"step": 1, "value": 0.5}', 1, 0.5),
    ('  {"step": 1, "value": 0.5}  ', 1, 0.5),
    ('{"step": 1, "step": 2, "value": 0.5}', 2, 0.5),
    ('{"step": 0, "value": 0.5}', 0, 0.5),
]


@pytest.mark.parametrize(("line", "step", "value"), JSON_LINES)
def test_a_line_of_json(tmp_path: Path, line: str, step: int, value: float | None) -> None:
    (row,) = read(tmp_path, f"{line}\n")
    assert row.step == step
    assert same(row.value, value)


PATTERN_LINES = [
    ("step 5 per 0.25", PER, 5, 0.25),
    ("step 5 per nan", PER, 5, NAN),
    ("step 5 per NaN,", PER, 5, NAN),
    ("step 5 per -nan", PER, 5, NAN),
    ("step 5 per inf", PER, 5, INF),
    ("step 5 per -inf", PER, 5, -INF),
    ("step 5 per +Infinity", PER, 5, INF),
    ("step 5 per .inf", PER, 5, INF),
    ("step 5 per 1.#QNAN", PER, 5, NAN),
    ("step 5 per -1.#IND", PER, 5, NAN),
    ("step 5 per 1.#INF", PER, 5, INF),
    ("step 5 per -nan(ind)", PER, 5, NAN),
    ("step 5 per 1e-05", PER, 5, 1e-05),
    ("step 5 per 2.5E+2 ", PER, 5, 250.0),
    ("step 1e3 per 0.5", r"step (?P<step>[\d.]+) per (?P<value>[\d.]+)", 1000, 0.5),
    ("lr 1e-4 step 5 per nan", r"lr \de-\d step (?P<step>\d+) per (?P<value>[\d.]+)", 5, NAN),
    ("lr 1e-4 step 5 per nan", r"lr [\d.]+ step (?P<step>\d+) per (?P<value>[\d.]+)", 5, NAN),
    ("nan inf step 5 per nan", PER, 5, NAN),
    ("step 5 per tensor(nan)", r"step (?P<step>\d+) per tensor\((?P<value>[\d.]+)\)", 5, NAN),
    ("lr nan step 5 per 0.5", r"lr [\d.]+ step (?P<step>\d+) per (?P<value>[\d.]+)", 5, 0.5),
    ("lr 1e-4 step 5 per 0.5", r"lr [\d.]+ step (?P<step>\d+) per (?P<value>[\d.]+)", 5, 0.5),
    ("step 5 per -1e-5", r"step (?P<step>\d+) per (?P<value>-?[\d.]+)", 5, -1e-05),
    ("step 3.0 per +3", ANY_PER, 3, 3.0),
    ("step 5 per 1E5", ANY_PER, 5, 1e5),
    ("step 5 per .5", ANY_PER, 5, 0.5),
    ("step 5 per 5.", ANY_PER, 5, 5.0),
    ("step 5 per -infinity", ANY_PER, 5, -INF),
    ("STEP 5 PER 0.5", f"(?i){PER}", 5, 0.5),
]


@pytest.mark.parametrize(("line", "pattern", "step", "value"), PATTERN_LINES)
def test_a_line_of_a_log(tmp_path: Path, line: str, pattern: str, step: int, value: float) -> None:
    (row,) = read(tmp_path, f"noise\n{line}\nnoise\n", file="log", pattern=pattern)
    assert row.step == step
    assert same(row.value, value)


@pytest.mark.parametrize(
    "line",
    [
        "step 5 per inference",
        "step 5 per banana",
        "step 5 per info: 3",
        "step 5 per nan_count",
        "step 5 per inf2",
        "step 5 per xnan",
        "step 5 per ",
        "step nanny per 0.5",
        "",
        "\x00\x01\x02",
    ],
)
def test_a_word_is_not_a_number(tmp_path: Path, line: str) -> None:
    assert read(tmp_path, f"{line}\n", file="log", pattern=PER) == []


# ---- lines that cannot be read


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"step": 2.5, "value": 1}', "step: 2.5 is not a whole number from 0"),
        ('{"step": -1, "value": 1}', "step: -1 is not a whole number"),
        ('{"step": NaN, "value": 1}', "step: NaN is not a whole number"),
        ('{"step": "inf", "value": 1}', "step: inf is not a whole number"),
        ('{"step": 1e300, "value": 1}', "step: 1e\\+300 is not a whole number"),
        ('{"step": true, "value": 1}', "step: true is not a whole number"),
        ('{"step": [1], "value": 1}', r"step: \[1\] is not a whole number"),
        ('{"step": 1, "value": "good"}', "value: good is not a number"),
        ('{"step": 1, "value": false}', "value: false is not a number"),
        ('{"step": 1, "value": [0.5]}', r"value: \[0.5\] is not a number"),
        ('{"step": 1, "value": "1,234"}', "value: 1,234 is not a number"),
        ('{"step": 1, "value": "12 %"}', "value: 12 % is not a number"),
        ('{"step": 1, "value": "1_000"}', "value: 1_000 is not a number"),
        ('{"step": 1, "value": "0x1f"}', "value: 0x1f is not a number"),
        ("[1, 2]", "not an object"),
        ("3", "not an object"),
        ("null", "not an object"),
        ('"nan"', "not an object"),
        ("nan", "not an object"),
        ("{'step': 1}", "not valid JSON"),
        ('{"step": 1, "value"', "not valid JSON"),
        ('{"step": 1} {"step": 2}', "not valid JSON"),
        ("Epoch 1 of 3", "not valid JSON"),
        ("[" * 100_000, "too deep"),
        ("\x00\x00\x00\x00", r"The line: \?\?\?\?"),
        ('{"step": 1, "errors": [1, 2], "lengths": [3]}', "2 errors and 1 lengths"),
        ('{"step": 1, "errors": [1, 2]}', "errors without lengths"),
        ('{"step": 1, "lengths": [1, 2]}', "lengths without errors"),
        ('{"step": 1, "errors": [], "lengths": []}', "with the sum 0"),
        ('{"step": 1, "errors": [1], "lengths": [0]}', "with the sum 0"),
        ('{"step": 1, "errors": 1, "lengths": 2}', "errors: 1 is not a list of numbers"),
        ('{"step": 1, "errors": [[1]], "lengths": [2]}', "errors: .* is not a list of numbers"),
        ('{"step": 1, "errors": [null], "lengths": [2]}', "errors: .* is not a list of numbers"),
    ],
)
def test_a_line_of_json_that_cannot_be_read(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(RowsError, match=message) as raised:
        read(tmp_path, f"{line}\n")
    text = str(raised.value)
    assert text.startswith("metrics.jsonl: ")
    assert "\n" not in text
    assert text.isprintable()
    assert len(text) < 700
    assert issubclass(RowsError, CallerError)


@pytest.mark.parametrize(
    ("line", "pattern", "message"),
    [
        ("step 1,234 per 0.5", ANY_PER, "step: 1,234 is not a whole number"),
        ("step 2.5 per 0.5", ANY_PER, "step: 2.5 is not a whole number"),
        ("step nan per 0.5", ANY_PER, "step: nan is not a whole number"),
        ("step nan per 0.5", PER.replace(r"\d+", r"[\d.]+"), "step: nan is not a whole number"),
        ("step 5 per 12%", ANY_PER, "value: 12% is not a number"),
        ("step 5 per 0.5.", PER, r"value: 0.5. is not a number"),
        (
            "step 5 per 1e-05",
            r"step (?P<step>\d+) per (?P<value>\d)(?!\.)",
            "matches only a part of 1e-05",
        ),
    ],
)
def test_a_line_of_a_log_that_cannot_be_read(
    tmp_path: Path, line: str, pattern: str, message: str
) -> None:
    with pytest.raises(RowsError, match=message) as raised:
        read(tmp_path, f"{line}\n", file="log", pattern=pattern)
    assert line in str(raised.value)


def test_steps_that_go_backwards_quote_both_lines(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 200, "value": 0.25}\n')
    rows = Rows(CurveSettings(), path)
    assert points(rows.read()) == [(200, 0.25)]
    with path.open("a") as file:
        file.write('{"step": 300, "lr": 1}\n{"step": 100, "value": 0.5}\n')
    # A second read finds the same fault.
    for _ in range(2):
        with pytest.raises(RowsError, match="from 300 to 100") as raised:
            rows.read()
        assert '{"step": 300, "lr": 1} | {"step": 100, "value": 0.5}' in str(raised.value)


@pytest.mark.parametrize("ending", ["", "\n"])
def test_a_line_that_is_too_long_is_an_error(tmp_path: Path, ending: str) -> None:
    text = "x" * (LONGEST_LINE + 1) + ending
    with pytest.raises(RowsError, match=r"longer than 10 MB.*xxxx"):
        read(tmp_path, text, last=False, file="log", pattern=PER)


def test_a_line_of_almost_the_greatest_length_is_read(tmp_path: Path) -> None:
    text = '{"step": 1, "value": 0.5, "note": "' + "x" * (LONGEST_LINE - 100) + '"}\n'
    assert points(read(tmp_path, text)) == [(1, 0.5)]


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_a_folder_or_a_pipe_is_an_error(tmp_path: Path, make: Any) -> None:
    path = tmp_path / "metrics.jsonl"
    make(path)
    with pytest.raises(RowsError, match="not a regular file"):
        Rows(CurveSettings(), path).read()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_read_permission_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("{}\n")
    path.chmod(0)
    with pytest.raises(RowsError, match="Permission denied"):
        Rows(CurveSettings(), path).read()


# ---- rows of several lines


def test_rows_of_one_step_are_merged(tmp_path: Path) -> None:
    lines = [
        '{"step": 1, "loss": 2, "lr": 0.5}',
        '{"step": 1, "value": 0.25}',
        '{"step": 1, "lr": 0.75}',
    ]
    (row,) = read(tmp_path, "\n".join(lines))
    assert row.value == 0.25
    assert row.loss == 2.0
    assert dict(row.metrics) == {"lr": 0.75}
    assert row.line == lines[-1]


def test_a_step_is_given_again_when_more_is_known(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    rows = Rows(CurveSettings(), path)
    reads = []
    for line in (
        '{"step": 1, "loss": 2}',
        '{"step": 1, "value": NaN}',
        '{"step": 1, "value": NaN}',
        '{"step": 1}',
    ):
        with path.open("a") as file:
            file.write(f"{line}\n")
        reads.append([(row.loss, str(row.value)) for row in rows.read()])
    assert reads == [[(2.0, "None")], [(2.0, "nan")], [], []]


def test_a_match_without_a_step_belongs_to_the_last_step(tmp_path: Path) -> None:
    log = "PER: 0.99\nEpoch 3\nloss 1.5\nPER: 0.5\nEpoch 4\nEpoch 5\nloss 1.25\n"
    patterns = [r"Epoch (?P<step>\d+)", r"PER: (?P<value>\S+)", r"loss (?P<loss>\S+)"]
    rows = read(tmp_path, log, file="log", pattern=patterns)
    assert [(row.step, row.value, row.loss) for row in rows] == [(3, 0.5, 1.5), (5, None, 1.25)]


def test_patterns_may_match_the_same_line(tmp_path: Path) -> None:
    patterns = [r"PER=(?P<value>[\d.]+)", r"it=(?P<step>\d+)", r"(?P<value>\d+) (?P<loss>\d+)"]
    rows = read(tmp_path, "it=7 PER=0.5, 1 2\n", file="log", pattern=patterns)
    assert [(row.step, row.value, row.loss) for row in rows] == [(7, 0.5, 2.0)]


def test_progress_bars_end_their_lines_with_a_carriage_return(tmp_path: Path) -> None:
    log = "  1%| step 1 per 0.9\r 50%| step 2 per 0.8\r100%| step 3 per 0.7\r\nstep 4 per 0.6"
    rows = read(tmp_path, log, last=False, file="log", pattern=PER)
    assert points(rows) == [(1, 0.9), (2, 0.8), (3, 0.7)]
    rows = read(tmp_path, log, last=True, file="log", pattern=PER)
    assert points(rows)[-1] == (4, 0.6)


def test_bytes_that_are_not_text_are_read(tmp_path: Path) -> None:
    log = b"\xff\xfe\x00 garbage \x80\nstep 1 per 0.5 \xff\n\x1b[31mstep 2 per 0.25\x1b[0m\n"
    rows = read(tmp_path, log, file="log", pattern=PER)
    assert points(rows) == [(1, 0.5), (2, 0.25)]
    assert all(row.line.isprintable() for row in rows)


def test_errors_and_lengths_of_json(tmp_path: Path) -> None:
    line = '{"step": 1, "value": 0.5, "errors": [1, 0, "nan"], "lengths": [2.0, 1, 3]}\n'
    (row,) = read(tmp_path, line)
    assert row.errors is not None
    assert row.errors[:2] == (1.0, 0.0)
    assert same(row.errors[2], NAN)
    assert row.lengths == (2.0, 1.0, 3.0)
    assert row.metrics == {}


def test_errors_and_lengths_of_a_log(tmp_path: Path) -> None:
    log = "step 1 per 0.5\nerrors [1, 0]\nlengths 3 2\nstep 2 per 0.5\nerrors [1]\n"
    patterns = [PER, r"errors (?P<errors>.*)", r"lengths (?P<lengths>.*)"]
    rows = read(tmp_path, log, file="log", pattern=patterns)
    assert [(row.errors, row.lengths) for row in rows] == [((1.0, 0.0), (3.0, 2.0)), (None, None)]


def test_errors_and_lengths_of_a_table(tmp_path: Path) -> None:
    table = 'step,value,errors,lengths\n1,0.5,"[1, 0]","[3, 2]"\n'
    (row,) = read(tmp_path, table, file="m.csv")
    assert row.errors == (1.0, 0.0)
    assert row.lengths == (3.0, 2.0)


def test_errors_and_lengths_of_two_lines_must_be_of_one_length(tmp_path: Path) -> None:
    patterns = [PER, r"errors (?P<errors>.*)", r"lengths (?P<lengths>.*)"]
    with pytest.raises(RowsError, match="step 1 has 2 errors and 3 lengths"):
        read(tmp_path, "step 1 per 0.5\nerrors 1 0\nlengths 3 2 1\n", file="log", pattern=patterns)


def test_at_most_32_numbers_are_metrics(tmp_path: Path) -> None:
    many = {f"m{index}": index for index in range(100)}
    deep: Any = 1.0
    for _ in range(50):
        deep = {"d": deep}
    entry = {"step": 1, "value": 1, "flag": True, "text": "7", "list": [1], "deep": deep, **many}
    (row,) = read(tmp_path, json.dumps(entry))
    assert len(row.metrics) == 32
    assert set(row.metrics) <= set(many)


def test_nested_metrics_have_names_with_slashes(tmp_path: Path) -> None:
    (row,) = read(tmp_path, '{"step": 1, "value": 1, "a": {"b": {"c": 2}, "d": 3}}')
    assert dict(row.metrics) == {"a/b/c": 2.0, "a/d": 3.0}


# ---- expressions


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("mean(per_0, per_1)", 0.5),
        ("(per_0 + 3 * per_1) / 4", 0.625),
        ("-per_0 + +1", 0.75),
        ("max(per_0, per_1, 0.5)", 0.75),
        ("min(per_0, per_1)", 0.25),
        ("sum(per_0, per_1)", 1.0),
        ("1 - val_acc", 0.1),
        ("1 - value", -1.0),
        ("eval_wer / 100", 0.5),
        ("per_0 / zero", NAN),
        ("zero / zero", NAN),
        ("max(per_0, nothing)", None),
        ("max(bad, per_0)", NAN),
        ("min(per_0, bad)", NAN),
        ("mean(bad, per_0)", NAN),
        ("step / 2", 5.0),
        ("huge * huge", INF),
    ],
)
def test_an_expression(tmp_path: Path, expression: str, value: float | None) -> None:
    entry = {
        "step": 10,
        "value": 2,
        "per_0": 0.25,
        "per_1": "0.75",
        "val/acc": 0.9,
        "zero": 0,
        "bad": NAN,
    }
    line = json.dumps({**entry, "huge": 1e300, "nothing": None, "eval": {"wer": 50}})
    (row,) = read(tmp_path, line, expression=expression)
    assert row.value == pytest.approx(value, nan_ok=True)


def test_an_expression_over_groups_and_over_renamed_columns(tmp_path: Path) -> None:
    pattern = [r"step (?P<step>\d+) acc (?P<value>\S+)", r"other (?P<other>\S+)"]
    log = "step 1 acc 0.75\nother 0.25\nstep 2 acc nan\n"
    rows = read(tmp_path, log, file="log", pattern=pattern, expression="1 - value - other")
    assert points(rows) == [(1, 0.0), (2, None)]
    line = '{"step": 1, "acc": 0.75, "loss": 3}\n'
    names = {"value": "acc", "validation_loss": "loss"}
    (row,) = read(tmp_path, line, names=names, expression="1 - value")
    assert (row.value, row.validation_loss, row.loss) == (0.25, 3.0, None)


def test_text_in_an_expression_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RowsError, match="per_0: good is not a number"):
        read(tmp_path, '{"step": 1, "per_0": "good"}', expression="1 - per_0")


# ---- tables


def test_a_table_with_unusual_cells(tmp_path: Path) -> None:
    text = (
        '\ufeffstep, value ,"note, long",lr\r\n'
        "\r\n"
        '1,0.5,"a comma, and a ""quote""",1e-3\r\n'
        "2, ,x,\r\n"
        'step, value ,"note, long",lr\r\n'
        '3,nan,5" disk,-inf,\r\n'
        "4,0.25\r\n"
    )
    rows = read(tmp_path, text, file="m.csv")
    assert [row.step for row in rows] == [1, 3, 4]
    assert [str(row.value) for row in rows] == ["0.5", "nan", "0.25"]
    assert [dict(row.metrics) for row in rows] == [{"lr": 1e-3}, {"lr": -INF}, {}]


def test_a_table_with_tabs(tmp_path: Path) -> None:
    text = "epoch\tval PER\tloss\n1\t0.5\t3,5\n2\t\t2.5\n"
    with pytest.raises(RowsError, match="loss: 3,5 is not a number"):
        read(tmp_path, text, file="m.TSV", names={"step": "epoch", "value": "val PER"})
    text = text.replace("3,5", "3.5")
    rows = read(tmp_path, text, file="m.TSV", names={"step": "epoch", "value": "val PER"})
    assert [(row.step, row.value, row.loss) for row in rows] == [(1, 0.5, 3.5), (2, None, 2.5)]


def test_a_header_that_comes_again_with_other_columns(tmp_path: Path) -> None:
    text = "step,value\n1,0.5\nstep,loss,value\n2,3,0.25\n"
    assert points(read(tmp_path, text, file="m.csv")) == [(1, 0.5), (2, 0.25)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("step,value\n1,0.5,0.7\n", "3 cells, but the header has 2 columns.*1,0.5,0.7"),
        ("step,value\n1,good\n", "value: good is not a number.*1,good"),
        ("step,value\n1.5,0.5\n", "step: 1.5 is not a whole number"),
        ('step,value,note\n1,0.5,"two\nlines"\n', "step: lines. is not a whole number"),
        ("step,value,note\n1,0.5," + "x" * 200_000 + "\n", "not a row of a table"),
    ],
)
def test_a_table_that_cannot_be_read(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(RowsError, match=message):
        read(tmp_path, text, file="m.csv")


def test_the_last_row_of_a_killed_script(tmp_path: Path) -> None:
    """Half a row does not count; a row that lacks only its line ending does."""
    assert points(read(tmp_path, "step,value\n1,0.5\n2", file="m.csv")) == [(1, 0.5)]
    assert points(read(tmp_path, "step,value\n1,0.5\n2,0.2", file="m.csv")) == [(1, 0.5), (2, 0.2)]
    text = '{"step": 1, "value": 0.5}\n{"step": 2, "val'
    assert points(read(tmp_path, text)) == [(1, 0.5)]
    text = '{"step": 1, "value": 0.5}\n{"step": 2, "value": 0.2}'
    assert points(read(tmp_path, text)) == [(1, 0.5), (2, 0.2)]
    assert points(read(tmp_path, text, last=False)) == [(1, 0.5)]


# ---- JSON files that are written whole


@pytest.mark.parametrize(
    ("text", "rows", "expected"),
    [
        ('[{"step": 1, "value": 0.5}]', "", [(1, 0.5)]),
        ('{"a": {"b": [{"step": 1, "value": nan}]}}', "a.b", [(1, NAN)]),
        ('{"a": {}}', "a.b", []),
        ('{"a": 3}', "a.b", []),
        ("", "a", []),
        ("[]", "", []),
        ('\ufeff[{"step": 1, "value": 0.5}]', "", [(1, 0.5)]),
    ],
)
def test_a_json_file(
    tmp_path: Path, text: str, rows: str, expected: list[tuple[int, float]]
) -> None:
    found = points(read(tmp_path, text, file="m.json", rows=rows))
    # As text, because NaN is not equal to itself.
    assert str(found) == str(expected)


@pytest.mark.parametrize(
    ("text", "rows", "message"),
    [
        ('[{"step": 1, "value": 0.5}', "", "is not valid JSON"),
        ("not at all", "", "is not valid JSON .*The line: not at all"),
        ("[" * 100_000, "", "too deep"),
        ('{"log_history": [], "x": 1}', "", "curve.rows. Lists in the file: log_history"),
        ("3", "", "not a list of rows.*in the file: none"),
        ('{"log_history": {}}', "log_history", "log_history is not a list of rows"),
        ("[1]", "", "a row is not an object"),
        ('[{"step": 2}, {"step": 1, "value": 1}]', "", "steps go backwards"),
    ],
)
def test_a_json_file_that_cannot_be_read(
    tmp_path: Path, text: str, rows: str, message: str
) -> None:
    with pytest.raises(RowsError, match=message):
        read(tmp_path, text, file="m.json", rows=rows)


# ---- the file while it is written


def test_a_missing_file_has_no_rows(tmp_path: Path) -> None:
    rows = Rows(CurveSettings(file="run/m.jsonl"), tmp_path / "run" / "m.jsonl")
    assert rows.read() == []
    assert rows.read(last=True) == []
    (tmp_path / "run").write_text("a file in the place of the folder")
    assert rows.read() == []
    assert Rows(CurveSettings(), tmp_path / "m", over_json(rows.place())).read() == []


def test_a_half_line_waits(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    rows = Rows(CurveSettings(), path)
    reads = []
    for part in ('{"step": 1, "va', 'lue": 0.5}', "\n", '{"step": 2, "value": 0.2', "5}\n"):
        with path.open("a") as file:
            file.write(part)
        reads.append(points(rows.read()))
    assert reads == [[], [], [(1, 0.5)], [], [(2, 0.25)]]


def test_a_rewritten_file_is_read_from_its_beginning(tmp_path: Path) -> None:
    """Steps that were given are not given again; the last one is, if there is more of it."""
    path = tmp_path / "metrics.jsonl"
    rows = Rows(CurveSettings(), path)
    lines = [f'{{"step": {step}, "value": 0.5}}\n' for step in range(1, 6)]
    path.write_text("".join(lines[:3]))
    assert len(rows.read()) == 3
    path.write_text(lines[0])
    assert rows.read() == []
    path.write_text("".join(lines[:3]) + '{"step": 3, "loss": 2}\n' + lines[3])
    assert [(row.step, row.value, row.loss) for row in rows.read()] == [
        (3, 0.5, 2.0),
        (4, 0.5, None),
    ]
    # Longer than before, with other bytes.
    path.write_text("".join(f'{{"step": {step}, "value": 0.250}}\n' for step in range(1, 7)))
    assert points(rows.read()) == [(4, 0.25), (5, 0.25), (6, 0.25)]


BEFORE_KILL = [f'{{"step": {step}, "value": 0.5}}\n' for step in (1, 2, 3)]
AFTER_RESTART = [f'{{"step": {step}, "value": 0.25}}\n' for step in (2, 3, 4)]


@pytest.fixture
def killed(tmp_path: Path) -> tuple[Path, Any]:
    """The file of a script that was killed in the middle of a line, and the place of its reader."""
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(BEFORE_KILL) + '{"step": 4, "val')
    rows = Rows(CurveSettings(), path)
    assert len(rows.read()) == 3
    return path, over_json(rows.place())


@pytest.mark.parametrize("ending", ["", "\n"])
def test_a_restarted_script_returns_to_its_checkpoint(
    killed: tuple[Path, Any], ending: str
) -> None:
    """It appends to the file."""
    path, place = killed
    with path.open("a") as file:
        file.write(ending + "".join(AFTER_RESTART))
    rows = Rows(CurveSettings(), path, place, restarts=1)
    assert points(rows.read()) == [(3, 0.25), (4, 0.25)]


def test_a_restarted_script_may_go_back_only_once(killed: tuple[Path, Any]) -> None:
    path, place = killed
    with path.open("a") as file:
        file.write("\n" + "".join(AFTER_RESTART) + BEFORE_KILL[0])
    for start in (place, None):
        with pytest.raises(RowsError, match="from 4 to 1"):
            Rows(CurveSettings(), path, start, restarts=1).read()


@pytest.mark.slow
def test_a_read_without_news_is_quick(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(f'{{"step": {step}, "value": 0.5}}\n' for step in range(50_000)))
    rows = Rows(CurveSettings(), path)
    assert len(rows.read()) == 50_000
    began = process_time()
    for _ in range(1000):
        assert rows.read() == []
    assert process_time() - began < 0.5


def test_a_large_log_is_read_quickly(tmp_path: Path) -> None:
    noise = "2025-07-03 10:01:12,001: Train batch 7: loss: 6.33 grad norm: 71.22 time: 0.512\n"
    log = ""
    for step in range(1000):
        log += noise * 100
        log += f"Val batch {step}: PER (avg): 0.5 CTC Loss (avg): 3.5\n"
    began = perf_counter()
    assert len(read(tmp_path, log, file="log", pattern=B2T25)) == 1000
    assert perf_counter() - began < 5


@pytest.mark.parametrize(
    "torn", ['{"step": 4, "m": {"a', "\x00\x00\x00", '{"step": 4, "value": 0.12']
)
def test_half_a_line_before_a_whole_one(tmp_path: Path, torn: str) -> None:
    """It is skipped only if a script was restarted, and appends to the file of the killed one."""
    path = tmp_path / "metrics.jsonl"
    path.write_text(torn)
    rows = Rows(CurveSettings(), path)
    assert rows.read() == []
    place = over_json(rows.place())
    with path.open("a") as file:
        file.write('{"step": 2, "value": 0.5, "m": {"a": 1}}\n')
    for start in (place, None):
        (row,) = Rows(CurveSettings(), path, start, restarts=1).read()
        assert (row.step, row.value) == (2, 0.5)
        assert dict(row.metrics) == {"m/a": 1.0}
    with pytest.raises(RowsError, match="not valid JSON"):
        rows.read()


# ---- advice


def advice(folder: Path, text: str | None, **curve: Any) -> str:
    """The advice about a file with this text; a second reader gives the same."""
    section = CurveSettings(**curve)
    path = folder / Path(section.file).name
    if text is not None:
        path.write_text(text)
    rows = Rows(section, path)
    rows.read(last=True)
    again = Rows(section, path, over_json(rows.place()))
    again.read(last=True)
    assert again.advice() == rows.advice()
    return rows.advice()


def test_advice(tmp_path: Path) -> None:
    assert "metrics.jsonl does not exist" in advice(tmp_path, None)
    assert advice(tmp_path, '{"step": 1, "value": 0.5}\n') == ""
    text = advice(tmp_path, '{"step": 1, "values": 0.5, "lr": 1}\n')
    assert "has 'value' as its value. Did you mean values? They have step, values, lr." in text
    assert "curve.names: {value: ...}" in text
    text = advice(tmp_path, '{"Step": 1, "value": 0.5}\n')
    assert "has 'step' as its step. Did you mean Step?" in text
    text = advice(tmp_path, "epoch,per\n1,0.5\n", file="m.csv", names={"value": "val_per"})
    assert "'step' as its step" in text
    text = advice(tmp_path, '{"step": 1, "per_0": 0.5}\n', expression="mean(per_0, per_1)")
    assert "expression: per_1. Did you mean per_0? They have step, per_0" in text
    text = advice(tmp_path, json.dumps(TRAINER_STATE), file="m.json", rows="log_histroy")
    assert "m.json has no list log_histroy. Did you mean log_history? It has best_metric" in text


def test_advice_about_a_pattern(tmp_path: Path) -> None:
    assert "log does not exist, or is empty" in advice(tmp_path, None, file="log", pattern=PER)
    text = advice(tmp_path, "one\ntwo\n\n", file="log", pattern=PER)
    assert text == f"none of 2 lines in log matches the pattern {PER}"
    patterns = [r"Epoch (?P<step>\d+)", r"PER (?P<value>\S+)"]
    text = advice(tmp_path, "PER 0.5\n", file="log", pattern=patterns)
    assert text.startswith("1 line of log gave value, but no step. The pattern: Epoch")
    text = advice(tmp_path, "Epoch 5\n", file="log", pattern=patterns)
    assert "1 line of log gave step, but no value" in text


# ---- the section of the study file


@pytest.mark.parametrize(
    ("curve", "message"),
    [
        ({"pattern": "("}, "pattern: '(': missing ), unterminated subpattern at position 0"),
        ({"pattern": r"(?P<value>\d+)"}, "pattern: no group `step`"),
        ({"pattern": r"(?P<step>\d+)"}, "pattern: no group `value`"),
        ({"pattern": r"step (\d+)"}, "has no named group"),
        ({"pattern": [PER, "nothing"]}, "'nothing' has no named group"),
        ({"pattern": r"(?P<step>\d)(?P<step>\d)"}, "redefinition of group name 'step'"),
        (
            {"pattern": r"(?P<step>\d)(?P<val>\d)"},
            "no group 'val'. Did you mean value? Valid: step, value",
        ),
        ({"pattern": r"(?P<step>\d)(?P<per>\d)"}, "there is no group 'per'"),
        (
            {"pattern": r"(?P<step>\d)(?P<per_0>\d)", "expression": "per_0 + per_1"},
            "expression: there is no group 'per_1'. Did you mean per_0?",
        ),
        ({"pattern": PER, "expression": "step / 2"}, "does not use `value`"),
        ({"pattern": PER, "names": {"value": "per"}}, "names: a pattern already names its groups"),
        ({"pattern": PER, "rows": "log"}, "rows: 'log' does not apply to metrics.jsonl"),
        ({"pattern": PER, "file": "a*.log"}, "file: a*.log contains a *"),
        ({"pattern": "(?P<step>" + "x{99999999999999999999}"}, "pattern: "),
        ({"file": "m.csv", "rows": "log"}, "Valid: rows for a .json file"),
        ({"file": "*.csv"}, "contains a *"),
        ({"file": " "}, "file: is empty"),
        ({"file": "log"}, "The output of a script needs a pattern"),
        (
            {"names": {"vlaue": "per"}},
            "names: there is no field 'vlaue'. Did you mean value? Valid: step",
        ),
        ({"names": {"value": ""}}, "names.value: is empty"),
        ({"names": {"value": "per"}, "expression": "1 - acc"}, "does not use `value`"),
        ({"expression": "mean(a,"}, "expression: 'mean(a,': it cannot be read ("),
        ({"expression": "a ** 2"}, "it uses a ** 2. Valid: numbers"),
        ({"expression": "a // 2"}, "it uses a // 2"),
        ({"expression": "__import__('os')"}, "it uses __import__(...)"),
        ({"expression": "maen(a, b)"}, "it uses maen(...). Did you mean mean?"),
        ({"expression": "a.b"}, "it uses a.b"),
        ({"expression": "a[0]"}, "it uses a[0]"),
        ({"expression": "'a'"}, "it uses 'a'"),
        ({"expression": "True + a"}, "it uses True"),
        ({"expression": "1j * a"}, "it uses 1j"),
        ({"expression": "a if b else c"}, "it uses a if b else c"),
        ({"expression": "lambda: a"}, "it uses lambda"),
        ({"expression": "mean(*a)"}, "it uses *a"),
        ({"expression": "mean(a, x=b)"}, "it uses mean(a, x=b)"),
        ({"expression": "mean()"}, "mean takes one or more numbers"),
        ({"expression": "(a := 1)"}, "it uses (a := 1)"),
        ({"expression": "~a"}, "it uses ~a"),
        ({"expression": "not a"}, "it uses not a"),
        ({"expression": "0.5"}, "it uses no name"),
        ({"expression": "a" + " + a" * 500}, "deeper than"),
        ({"expression": "(" * 300 + "a" + ")" * 300}, "cannot be read"),
        ({"expression": "val/per; 1"}, "cannot be read"),
        ({"expression": "a\x00"}, "cannot be read"),
    ],
)
def test_a_fault_in_the_section_is_one_line(curve: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError) as raised:
        check_curve(CurveSettings(**curve), "t15.yaml")
    text = str(raised.value)
    assert message in text
    assert text.startswith("t15.yaml: script.curve.")
    assert "\n" not in text
    with pytest.raises(SpecError, match=r"^script\.curve\."):
        check_curve(CurveSettings(**curve), "")


@pytest.mark.parametrize(
    "curve",
    [
        {},
        {"file": "log", "pattern": PER},
        {"file": "m.json", "pattern": PER},
        {"file": "m.json"},
        {"file": "checkpoint-*/trainer_state.json", "rows": "log_history"},
        {
            "pattern": [r"(?P<step>\d)", r"(?P<per_0>\d) (?P<per_1>\d)"],
            "expression": "mean(per_0, per_1)",
        },
        {"pattern": PER, "expression": "1 - value"},
        {"names": {"value": "acc"}, "expression": "1 - value"},
        {"names": {"step": "_step", "errors": "e", "lengths": "l"}},
        {"expression": " + ".join(f"per_t15_2023_08_{day}" for day in range(45))},
    ],
)
def test_a_section_without_a_fault_passes(curve: dict[str, Any]) -> None:
    check_curve(CurveSettings(**curve), "t15.yaml")


# ---- cut at every place

NUMBERS = st.sampled_from([0.5, 1.25, 3.0, 1e-05, -2.5, NAN, INF, -INF]) | st.none()


@st.composite
def entries(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Rows whose steps do not decrease; some have the same step, some have none."""
    step = draw(st.integers(0, 3))
    rows: list[dict[str, Any]] = []
    for _ in range(draw(st.integers(1, 12))):
        step += draw(st.sampled_from([0, 0, 1, 100]))
        row: dict[str, Any] = {"step": step if draw(st.integers(0, 4)) else None}
        for name in ("value", "loss", "validation_loss", "lr/é", "per_1"):
            row[name] = draw(NUMBERS)
        rows.append(row)
    return rows


def as_lines(rows: list[dict[str, Any]]) -> str:
    lines = []
    for index, row in enumerate(rows):
        items = [1.0] * (1 + index % 3)
        more = {"errors": items, "lengths": items} if index % 2 else {"note": "nan é\\n"}
        lines.append(json.dumps(row | more, ensure_ascii=index % 2 == 0))
    return "\n".join(lines)


def as_table(rows: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, ["note, é", *rows[0]])
    writer.writeheader()
    for index, row in enumerate(rows):
        writer.writerow({"note, é": 'a "q", b' if index % 2 else f"{index}"} | row)
    return text.getvalue()


def as_log(rows: list[dict[str, Any]]) -> str:
    text = "start é\r\n"
    for index, row in enumerate(rows):
        if row["step"] is not None:
            text += f"step {row['step']} "
        for name in ("value", "loss"):
            if row[name] is not None:
                text += f"{name}={row[name]} "
        text += ("\n", "\r", "\r\n", "\nnoise é 1e-5 nan\n")[index % 4]
    return text


LOG_PATTERNS = [r"step (?P<step>\d+)", r"value=(?P<value>-?[\d.]+)", r"loss=(?P<loss>-?[\d.]+)"]
FORMATS: dict[str, tuple[Any, dict[str, Any]]] = {
    "lines": (as_lines, {}),
    "expression": (as_lines, {"expression": "1 - per_1 / 2"}),
    "table": (as_table, {"file": "m.csv"}),
    "log": (as_log, {"file": "log", "pattern": LOG_PATTERNS}),
}


def steps_never_decrease(rows: Sequence[Row]) -> bool:
    steps = [row.step for row in rows]
    return steps == sorted(steps)


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=120, deadline=None, database=None)
@given(rows=entries(), data=st.data())
def test_a_file_read_in_parts_is_the_file_read_whole(
    name: str, rows: Any, data: st.DataObject
) -> None:
    """Cut at any byte, and read by one process after another."""
    write, section = FORMATS[name]
    curve = CurveSettings(**section)
    text = write(rows).encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    handovers = data.draw(st.lists(st.booleans(), min_size=len(cuts), max_size=len(cuts)))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "whole")
        path.write_bytes(text)
        whole = Rows(curve, path)
        expected = whole.read(last=True)
        path = Path(folder, "parts")
        reader = Rows(curve, path)
        rows_read: list[Row] = []
        done = 0
        for cut, is_handed_over in zip(cuts, handovers, strict=True):
            with path.open("ab") as file:
                file.write(text[done:cut])
            done = cut
            rows_read += reader.read()
            if is_handed_over:
                reader = Rows(curve, path, over_json(reader.place()))
        with path.open("ab") as file:
            file.write(text[done:])
        rows_read += reader.read(last=True)
        assert reader.read(last=True) == []
    assert curve_of(rows_read) == curve_of(expected)
    assert steps_never_decrease(rows_read)
    assert len({row.step for row in expected}) == len(expected)
    assert reader.advice() == whole.advice()


@settings(max_examples=100, deadline=None, database=None)
@given(rows=entries(), data=st.data())
def test_a_table_that_is_rewritten_at_every_row(rows: Any, data: st.DataObject) -> None:
    """It has the columns that are known so far, and is read while it is half written."""
    curve = CurveSettings(file="m.csv")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "m.csv")
        reader = Rows(curve, path)
        rows_read: list[Row] = []
        for count in range(1, len(rows) + 1):
            known = {"step"}
            for row in rows[:count]:
                known |= {name for name, value in row.items() if value is not None}
            columns = sorted(known)
            text = io.StringIO()
            writer = csv.DictWriter(text, columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows[:count])
            written = text.getvalue().encode()
            path.write_bytes(written[: data.draw(st.integers(0, len(written)))])
            rows_read += reader.read()
            path.write_bytes(written)
            rows_read += reader.read()
            if data.draw(st.booleans()):
                reader = Rows(curve, path, over_json(reader.place()))
        expected = Rows(curve, path).read(last=True)
    assert steps_never_decrease(rows_read)
    assert curve_of(rows_read) == curve_of(expected)


@pytest.mark.slow
@settings(max_examples=200, deadline=None, database=None)
@given(data=st.binary(max_size=400), name=st.sampled_from(list(FORMATS)))
def test_garbage_gives_rows_or_one_printable_line(data: bytes, name: str) -> None:
    _, section = FORMATS[name]
    curve = CurveSettings(**section)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "m")
        path.write_bytes(data)
        fault = ""
        try:
            Rows(curve, path).read(last=True)
        except RowsError as error:
            fault = str(error)
    assert fault.isprintable()
