"""The store, the facts of a data set, and the two commands about data."""

import json
import pickle
import re
import resource
import time
import tracemalloc
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from helpers.data import tiny_contents

from hpo.cli import main
from hpo.data.formats import open_source, read_sentences
from hpo.data.sentences import Partition, Row, Stream
from hpo.data.store import convert
from hpo.decoder.config import ModelConfig
from hpo.decoder.data import load_data, load_for_scoring
from hpo.decoder.facts import inspect_data
from hpo.errors import CallerError, DataError, MachineError

MODEL = ModelConfig(layers=1, units=8, kernel=4, stride=2)
CPU = torch.device("cpu")


def hpo(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, list(map(str, arguments)))


def one_line(done: Result, code: int, expected: str) -> None:
    assert done.exit_code == code, done.output
    assert re.fullmatch(f"hpo: .*{expected}.*\n", done.stderr), done.stderr


class Given(Stream):
    """Rows that a test makes up."""

    def __init__(self, rows: Callable[[], Iterator[Row]]):
        self.name, self.n_days, self.partitions, self._rows = "given", 1, ("train",), rows

    def rows(self, partition: Partition) -> Iterator[Row]:
        return self._rows()


@pytest.fixture
def store(tiny_data: Path, tmp_path: Path) -> Path:
    convert(open_source(tiny_data), tmp_path / "store")
    return tmp_path / "store"


# ---- what a store holds


def same(source: Path, store: Path, partition: Partition) -> None:
    one, other = read_sentences(source, partition), read_sentences(store, partition)
    assert one.stored_fingerprint is None
    assert other.fingerprint() == one.fingerprint()
    for name in ("features_NC", "lengths_S", "labels_L", "label_lengths_S", "days_S"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
        assert getattr(one, name).dtype == getattr(other, name).dtype
    assert (one.n_days, one.day_names, one.guessed) == (
        other.n_days,
        other.day_names,
        other.guessed,
    )
    sentence = len(one) - 1
    assert one.name_of(sentence).partition(",")[2] == other.name_of(sentence).partition(",")[2]


def test_a_store_of_a_pickle_holds_the_same(tiny_data: Path, store: Path) -> None:
    same(tiny_data, store, "train")
    same(tiny_data, store, "test")
    with pytest.raises(
        DataError, match=r"competition cannot be read: no such partition. Valid: train, test"
    ):
        read_sentences(store, "competition")


def test_a_store_of_mat_files_holds_the_same(shared_data: Path, tmp_path: Path) -> None:
    convert(open_source(shared_data / "spoken_digits_mat"), tmp_path / "store")
    for partition in ("train", "test", "competition"):
        same(shared_data / "spoken_digits_mat", tmp_path / "store", partition)


def test_batches_of_a_store_are_those_of_its_source(tiny_data: Path, store: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mapped, _ = load_data(store, MODEL, 0.2, 0, CPU)
    memory, _ = load_data(tiny_data, MODEL, 0.2, 0, CPU)
    assert mapped.validation.tolist() == memory.validation.tolist()
    for one, other in zip(
        vars(mapped.batch(mapped.train)).values(),
        vars(memory.batch(memory.train)).values(),
        strict=True,
    ):
        assert torch.equal(one, other)
    assert len(load_for_scoring(store, "test", MODEL, CPU).validation) == 24


def enlarge(store: Path, sentences: int, bins: int, features: int) -> int:
    """Make it a store of that size whose features are a hole in a file. Returns its bytes."""
    total = sentences * bins
    with (store / "train_features.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "<f4", "fortran_order": False, "shape": (total, features)}
        )
        file.truncate(file.tell() + total * features * 4)
    small = {
        "lengths": np.full(sentences, bins),
        "labels": np.ones(sentences),
        "label_lengths": np.ones(sentences),
        "days": np.zeros(sentences),
    }
    small["days"][sentences // 2 :] = 1
    for name, array in small.items():
        np.save(store / f"train_{name}.npy", array.astype(np.int64))
    change_json(store, lambda part: part.update(sentences=sentences, bins=total, features=features, labels=sentences,
                                                bytes={file.name: file.stat().st_size for file in store.glob("train_*")}))  # fmt: skip
    return total * features * 4


def change_json(store: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    manifest = json.loads((store / "store.json").read_text())
    change(manifest["partitions"]["train"])
    (store / "store.json").write_text(json.dumps(manifest))


def test_opening_does_not_depend_on_the_size(store: Path) -> None:
    """82 GB, more than most memories; reading them would take the better part of a minute, copying them would fail."""
    fingerprint = read_sentences(store, "train").fingerprint()
    assert enlarge(store, sentences=20_000, bins=2_000, features=512) > 80e9
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    data, sentences = load_data(store, MODEL, 0.1, 0, CPU)
    assert sentences.fingerprint() == fingerprint
    assert time.monotonic() - start < 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KB
    assert data.batch(data.train[-2:]).x_BTC.shape == (2, 2_000, 512)


# ---- damage


def cut(store: Path) -> None:
    path = store / "train_features.npy"
    path.write_bytes(path.read_bytes()[:-100])


def save(name: str, change: Callable[[Any], Any]) -> Callable[[Path], None]:
    def replace(store: Path) -> None:
        np.save(store / name, change(np.load(store / name)))
        change_json(store, lambda part: part["bytes"].update({name: (store / name).stat().st_size}))

    return replace


def no_array(store: Path) -> None:
    (store / "train_days.npy").write_bytes(pickle.dumps({}))
    change_json(
        store,
        lambda part: part["bytes"].update(
            {"train_days.npy": (store / "train_days.npy").stat().st_size}
        ),
    )


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (
            cut,
            r"train_features.npy: [\d,]+ bytes, but store.json says [\d,]+: a copy that was cut short\? Copy the store again",
        ),
        (
            lambda store: (store / "train_days.npy").unlink(),
            r"train_days.npy: cannot be read \(No such file or directory\)",
        ),
        (
            lambda store: change_json(store, lambda part: part["bytes"].pop("train_days.npy")),
            r"train_days.npy: 320 bytes, but",
        ),
        (no_array, r"train_days.npy: cannot be read"),
        (
            save("train_features.npy", lambda x: x.astype(np.float64)),
            r"train_features.npy: holds float64. Valid: float32",
        ),
        (
            save("train_features.npy", lambda x: x[:-1]),
            r"train_features.npy is \(\d+, 3\), store.json says \(\d+, 3\)",
        ),
        (
            save("train_days.npy", lambda x: x + 1),
            r"lengths, label_lengths or days of train do not fit",
        ),
        (
            save("train_lengths.npy", lambda x: x + 1),
            r"lengths, label_lengths or days of train do not fit",
        ),
        (
            save("train_label_lengths.npy", lambda x: np.append(x[:-2], [x[-2:].sum() + 1, -1])),
            r"lengths, label_lengths or days of train",
        ),
        (
            save("train_labels.npy", lambda x: x + 40),
            r"store, train: day 0 sentence 0 has label 4\d",
        ),
        (
            lambda store: (store / "store.json").write_text("{"),
            r"store.json: not JSON \(.*\)\. Copy the store again",
        ),
        (
            lambda store: (store / "store.json").write_text('{"format": 2}'),
            r"store.json: format: input should be 1 \(given: 2\)",
        ),
    ],
)
def test_a_damaged_store(store: Path, damage: Callable[[Path], Any], expected: str) -> None:
    damage(store)
    with pytest.raises(DataError, match=expected) as caught:
        load_data(store, MODEL, 0.2, 0, CPU)
    assert "\n" not in str(caught.value)


# ---- converting: whole or not at all, in little memory


def alone(path: Path) -> bool:
    """Nothing was left beside `path`, and it is not there itself."""
    return not [name for name in path.parent.iterdir() if name.name.startswith(path.name)]


def row(bins: int = 10, value: float = 1.0) -> Row:
    return Row(0, np.full((bins, 4), value, dtype=np.float32), np.array([1, 2], dtype=np.int64))


def test_converting_takes_the_memory_of_a_few_sentences(tmp_path: Path) -> None:
    """100 MB in sentences of 1 MB."""
    source = Given(lambda: (row(bins=62_500, value=number) for number in range(100)))
    tracemalloc.start()
    try:
        assert convert(source, tmp_path / "out").bytes() > 100e6
        assert tracemalloc.get_traced_memory()[1] < 8e6
    finally:
        tracemalloc.stop()


def breaks_off(error: BaseException) -> Callable[[], Iterator[Row]]:
    def rows() -> Iterator[Row]:
        yield row()
        raise error

    return rows


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), DataError("broken"), RuntimeError("unforeseen")]
)
def test_nothing_is_left_of_a_conversion_that_ends_early(
    tmp_path: Path, error: BaseException
) -> None:
    with pytest.raises(type(error)):
        convert(Given(breaks_off(error)), tmp_path / "out")
    assert alone(tmp_path / "out")


def test_nothing_is_left_when_the_disk_is_full(tmp_path: Path) -> None:
    """A limit on the size of files stands for it: the same call fails, at the same place."""
    source = Given(lambda: (row(bins=62_500) for _ in range(10)))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3_500_000, hard))
    try:
        with pytest.raises(
            MachineError,
            match=r"out: cannot be written: .*File too large. Raise the limit of file sizes",
        ):
            convert(source, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert alone(tmp_path / "out")


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([row(), row(value=np.nan)], "given, train: day 0 sentence 1 has NaN or infinite features"),
        (
            [row(), row()._replace(x_TC=np.ones((9, 5), np.float32))],
            "day 0 sentence 1 has 5 features, the first 4",
        ),
        ([], "given, train: no sentences at all"),
        ([row(bins=0)], "given, train: no sentences at all, or none with bins"),
    ],
)
def test_what_is_not_converted(tmp_path: Path, rows: list[Row], expected: str) -> None:
    with pytest.raises(DataError, match=expected):
        convert(Given(lambda: iter(rows)), tmp_path / "out")
    assert alone(tmp_path / "out")


def test_where_nothing_is_converted_to(tiny_data: Path, store: Path, tmp_path: Path) -> None:
    source = open_source(tiny_data)
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for taken in (store, tiny_data, tmp_path / "link"):
        with pytest.raises(
            CallerError, match=f"{taken.name}: already exists. Give a new path"
        ):
            convert(source, taken)
    with pytest.raises(CallerError, match=r"there is no folder .*missing to write it in"):
        convert(source, tmp_path / "missing" / "out")
    for opens_at_once in (store, None):
        with pytest.raises(DataError, match="nothing to convert"):
            convert(open_source(opens_at_once), tmp_path / "out")


# ---- facts


def write(path: Path, contents: Any) -> Path:
    path.write_bytes(pickle.dumps(contents))
    return path


def test_facts_of_the_spoken_digits(shared_data: Path) -> None:
    """The figures in the data's README."""
    facts = inspect_data(
        shared_data / "spoken_digits" / "ptDecoder_ctc", ModelConfig(kernel=14, stride=4)
    )
    train = facts["partitions"]["train"]
    assert (train["sentences"], train["labels"]["count"], train["channels"]) == (1120, 21372, 32)
    assert train["bins"] == {"min": 45, "mean": 114.7, "max": 212}
    assert train["hours"] == pytest.approx(2569.0 / 3600, abs=1e-4)
    assert train["too_short"] / train["sentences"] == pytest.approx(0.104, abs=5e-4)
    assert len(train["missing_classes"]) == 20  # 19 of the phonemes, and SIL, occur
    assert (train["labels"]["min"], train["labels"]["max"]) == (9, 32)
    assert facts["absent"].keys() == {"competition"}
    assert facts["fault"] is None


def test_facts_of_what_is_wrong(tmp_path: Path) -> None:
    contents = tiny_contents()
    train, test = contents["train"], contents["test"]
    for x in train[1]["sentenceDat"]:
        x[:, 2] = 5
    train[0]["sentenceDat"][3][4, 1] = np.inf
    for column in ("sentenceDat", "phonemes"):
        train[0][column][5] = train[0][column][6] = train[0][column][7]  # there three times
        test[1][column][0] = train[0][column][7]
    for length in (5, 6, 7):
        train[0]["phoneLens"][length] = train[0]["phoneLens"][7]
    test[1]["phoneLens"][0] = train[0]["phoneLens"][7]
    test[1]["sentenceDat"][2] = test[1]["sentenceDat"][2][:3]
    facts = inspect_data(write(tmp_path / "data", contents), MODEL)
    days = facts["partitions"]["train"]["days"]
    assert [day["constant_channels"] for day in days] == [[], [2]]
    assert [day["not_finite_channels"] for day in days] == [[1], []]
    assert (facts["duplicates"]["train"], facts["duplicates"]["test_in_train"]) == (2, 1)
    assert facts["duplicates"]["test_labels_in_train"] >= 1
    assert (
        facts["fault"]
        == "data, train: day 0 sentence 3 has NaN or infinite features. Valid: finite numbers"
    )
    assert facts["partitions"]["test"]["fault"].startswith(
        "data, test: day 1 sentence 2 has 3 bins, fewer than model.kernel 4 (1 such)"
    )


# ---- the commands


def test_check_of_the_bundled_recordings() -> None:
    done = hpo("data", "check", "--kernel", "8", "--stride", "2")
    assert (done.exit_code, done.stderr) == (0, "")
    for part in (
        "bundled recordings",
        "1120",
        "45 / 114.7 / 212",
        "0 (0.00 %)",
        "train lacks AA, AE",
        "Next: hpo launch --study lr-aug\n",
    ):
        assert part in done.stdout
    facts = json.loads(hpo("data", "check", "--json").stdout)
    assert (facts["kernel"], facts["stride"], facts["partitions"]["train"]["too_short"]) == (
        32,
        4,
        471,
    )


def test_check_tells_what_it_can_of_data_that_cannot_be_trained_on(tmp_path: Path) -> None:
    contents = tiny_contents()
    contents["train"][1]["sentenceDat"][3][5, 0] = np.nan
    path = write(tmp_path / "data", contents)
    done = hpo("data", "check", path, "--kernel", "4")
    one_line(done, 2, "data, train: day 1 sentence 3 has NaN or infinite features")
    assert re.search(r"NaN or inf +channels 0, counted from 0", done.stdout)
    assert "Next:" not in done.stdout
    done = hpo("data", "check", path, "--kernel", "4", "--json")
    one_line(done, 2, "NaN or infinite")
    assert json.loads(done.stdout)["fault"] in done.stderr
    contents["train"] = [{}]
    one_line(hpo("data", "check", write(path, contents)), 2, "day 0 has no 'sentenceDat'")
    one_line(
        hpo("data", "check", tmp_path / "missing"),
        2,
        "no such file or folder. Give a ptDecoder_ctc pickle",
    )


def test_check_shows_faults_of_test_without_failing(tmp_path: Path) -> None:
    contents = tiny_contents()
    contents["test"].pop()
    done = hpo("data", "check", write(tmp_path / "data", contents), "--kernel", "4")
    assert done.exit_code == 0
    assert re.search(r"fault +data, test: 1 days, but train has 2", done.stdout)
    contents["test"] = tiny_contents(features=5)["test"]
    done = hpo("data", "check", write(tmp_path / "data", contents), "--kernel", "4")
    assert done.exit_code == 0
    assert re.search(r"fault +data, test: 5 features, but train has 3", done.stdout)


def test_convert_and_check_what_came_of_it(tiny_data: Path, tmp_path: Path) -> None:
    out = tmp_path / "store"
    done = hpo("data", "convert", tiny_data, out)
    assert (done.exit_code, done.stderr) == (0, "")
    fingerprint = read_sentences(tiny_data, "train").fingerprint()
    assert f"train       24 sentences, 3 features, fingerprint {fingerprint}" in done.stdout
    assert f"Next: hpo data check {out}, or hpo launch --study lr-aug --data {out}" in done.stdout
    one, other = (
        json.loads(hpo("data", "check", path, "--kernel", "4", "--json").stdout)
        for path in (tiny_data, out)
    )
    assert one["partitions"] == other["partitions"]
    one_line(hpo("data", "convert", tiny_data, out), 2, "store: already exists")
    one_line(
        hpo("data", "convert", tmp_path, tmp_path / "x"),
        2,
        "a folder with data.pickle, store. Valid: a ptDecoder_ctc pickle",
    )
