"""The store of hpo data convert, the facts of a data set, and the commands about data."""

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
from helpers.commands import Done, one_line, run_hpo
from helpers.data import SMALL_MODEL, assert_refused, tiny_contents
from helpers.decoders import CPU

from hpo.data.formats import open_source, read_sentences
from hpo.data.sentences import Partition, Row, Stream
from hpo.data.store import convert
from hpo.decoder.config import ModelConfig
from hpo.decoder.data import load_data, load_for_scoring
from hpo.decoder.facts import inspect_data
from hpo.errors import CallerError, DataError, MachineError


class GivenRows(Stream):
    """A source of rows that a test makes up."""

    def __init__(self, make_rows: Callable[[], Iterator[Row]]):
        self.name = "given"
        self.n_days = 1
        self.partitions = ("train",)
        self.make_rows = make_rows

    def rows(self, partition: Partition) -> Iterator[Row]:
        return self.make_rows()


@pytest.fixture
def store(tiny_data: Path, tmp_path: Path) -> Path:
    convert(open_source(tiny_data), tmp_path / "store")
    return tmp_path / "store"


# ---- what a store holds


def assert_same_sentences(source: Path, store: Path, partition: Partition) -> None:
    original = read_sentences(source, partition)
    stored = read_sentences(store, partition)
    assert original.stored_fingerprint is None
    assert stored.fingerprint() == original.fingerprint()
    for name in ("features_NC", "lengths_S", "labels_L", "label_lengths_S", "days_S"):
        array = getattr(stored, name)
        expected = getattr(original, name)
        np.testing.assert_array_equal(array, expected)
        assert array.dtype == expected.dtype
    assert stored.n_days == original.n_days
    assert stored.day_names == original.day_names
    assert stored.guessed == original.guessed
    last = len(original) - 1
    name_in_partition = original.name_of(last).partition(",")[2]
    assert stored.name_of(last).partition(",")[2] == name_in_partition


def test_a_store_of_a_pickle_holds_the_same_sentences(tiny_data: Path, store: Path) -> None:
    assert_same_sentences(tiny_data, store, "train")
    assert_same_sentences(tiny_data, store, "test")
    message = r"competition cannot be read: no such partition. Valid: train, test"
    with pytest.raises(DataError, match=message):
        read_sentences(store, "competition")


def test_a_store_of_mat_files_holds_the_same_sentences(shared_data: Path, tmp_path: Path) -> None:
    convert(open_source(shared_data / "spoken_digits_mat"), tmp_path / "store")
    for partition in ("train", "test", "competition"):
        assert_same_sentences(shared_data / "spoken_digits_mat", tmp_path / "store", partition)


def test_batches_of_a_store_are_those_of_its_source(tiny_data: Path, store: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mapped, _ = load_data(store, SMALL_MODEL, 0.2, 0, CPU)
    in_memory, _ = load_data(tiny_data, SMALL_MODEL, 0.2, 0, CPU)
    assert mapped.validation.tolist() == in_memory.validation.tolist()
    tensors = vars(mapped.batch(mapped.train))
    expected = vars(in_memory.batch(in_memory.train))
    assert tensors.keys() == expected.keys()
    for name, tensor in tensors.items():
        assert torch.equal(tensor, expected[name])
    assert len(load_for_scoring(store, "test", SMALL_MODEL, CPU).validation) == 24


def enlarge(store: Path, sentences: int, bins: int, features: int) -> int:
    """Give the store this size, with features that are a hole in a file. Returns their bytes."""
    total = sentences * bins
    header = {"descr": "<f4", "fortran_order": False, "shape": (total, features)}
    with (store / "train_features.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
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
    sizes = {file.name: file.stat().st_size for file in store.glob("train_*")}
    counts = {"sentences": sentences, "bins": total, "features": features, "labels": sentences}
    change_json(store, lambda part: part.update(counts | {"bytes": sizes}))
    return total * features * 4


def change_json(store: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    manifest = json.loads((store / "store.json").read_text())
    change(manifest["partitions"]["train"])
    (store / "store.json").write_text(json.dumps(manifest))


def memory_peak_kb() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def test_opening_does_not_depend_on_the_size(store: Path) -> None:
    """These are 82 GB, more than most memories.

    To read them would take almost a minute, and to copy them would fail.
    """
    fingerprint = read_sentences(store, "train").fingerprint()
    assert enlarge(store, sentences=20_000, bins=2_000, features=512) > 80e9
    memory_before = memory_peak_kb()
    start = time.monotonic()
    data, sentences = load_data(store, SMALL_MODEL, 0.1, 0, CPU)
    assert sentences.fingerprint() == fingerprint
    assert time.monotonic() - start < 2
    assert memory_peak_kb() - memory_before < 200_000
    assert data.batch(data.train[-2:]).x_BTC.shape == (2, 2_000, 512)


# ---- damage


def cut(store: Path) -> None:
    path = store / "train_features.npy"
    path.write_bytes(path.read_bytes()[:-100])


def update_size(store: Path, name: str) -> None:
    size = (store / name).stat().st_size
    change_json(store, lambda part: part["bytes"].update({name: size}))


def replace(name: str, change: Callable[[Any], Any]) -> Callable[[Path], None]:
    """Replace an array of train by what `change` makes of it."""

    def replace_array(store: Path) -> None:
        np.save(store / name, change(np.load(store / name)))
        update_size(store, name)

    return replace_array


def replace_by_pickle(store: Path) -> None:
    (store / "train_days.npy").write_bytes(pickle.dumps({}))
    update_size(store, "train_days.npy")


def remove(store: Path) -> None:
    (store / "train_days.npy").unlink()


def remove_size(store: Path) -> None:
    change_json(store, lambda part: part["bytes"].pop("train_days.npy"))


def write_manifest(text: str) -> Callable[[Path], None]:
    def write(store: Path) -> None:
        (store / "store.json").write_text(text)

    return write


def move_a_label_to_the_sentence_before(lengths: Any) -> Any:
    """The sum is right, but the last sentence has -1 labels."""
    return np.append(lengths[:-2], [lengths[-2:].sum() + 1, -1])


def with_header(name: str, header: str) -> Callable[[Path], None]:
    """Replace the header of an .npy file; nothing else of it changes."""

    def write(store: Path) -> None:
        path = store / name
        whole = path.read_bytes()
        path.write_bytes(whole[:10] + header.encode().ljust(117)[:117] + b"\n" + whole[128:])
        update_size(store, name)

    return write


DAYS = "train_days.npy"
HUGE = "{'descr': '<i8', 'fortran_order': False, 'shape': (%s,)}"
DO_NOT_FIT = r"lengths, label_lengths or days of train do not fit"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            cut,
            r"train_features.npy: [\d,]+ bytes, but store.json says [\d,]+: "
            r"a copy that was cut short\? Copy the store again",
        ),
        (remove, r"train_days.npy: cannot be read \(No such file or directory\)"),
        (remove_size, r"train_days.npy: 320 bytes, but"),
        (replace_by_pickle, r"train_days.npy: cannot be read"),
        (
            replace("train_features.npy", lambda x: x.astype(np.float64)),
            r"train_features.npy: holds float64. Valid: float32",
        ),
        (
            replace("train_features.npy", lambda x: x[:-1]),
            r"train_features.npy is \(\d+, 3\), store.json says \(\d+, 3\)",
        ),
        (with_header(DAYS, "{'descr': '<i8"), r"train_days.npy: cannot be read \(.*\)\. Convert"),
        (with_header(DAYS, "((((((((("), r"train_days.npy: cannot be read"),
        (with_header(DAYS, HUGE % 10**12), r"train_days.npy: cannot be read"),
        (with_header(DAYS, HUGE % 10**50), r"train_days.npy: cannot be read"),
        (with_header("train_features.npy", HUGE % 10**15), r"train_features.npy: cannot be read"),
        (write_manifest("[" * 100_000), r"store.json: not JSON \(.*\)\. Copy the store again"),
        (write_manifest('{"format": "' + "x" * 10**6), r"store.json: not JSON \(.{,210}\)\. Copy"),
        (
            write_manifest('{"format": "' + "x" * 10**6 + '"}'),
            r"store.json: format: input should be 1 \(given: .{,200}\)",
        ),
        (replace("train_days.npy", lambda x: x + 1), DO_NOT_FIT),
        (replace("train_lengths.npy", lambda x: x + 1), DO_NOT_FIT),
        (
            replace("train_label_lengths.npy", move_a_label_to_the_sentence_before),
            r"lengths, label_lengths or days of train",
        ),
        (
            replace("train_labels.npy", lambda x: x + 40),
            r"store, train: day 0 sentence 0 has label 4\d",
        ),
        (write_manifest("{"), r"store.json: not JSON \(.*\)\. Copy the store again"),
        (write_manifest('{"format": 2}'), r"store.json: format: input should be 1 \(given: 2\)"),
    ],
)
def test_a_damaged_store_is_refused(
    store: Path, damage: Callable[[Path], Any], message: str
) -> None:
    damage(store)
    assert_refused(store, message)


# ---- converting: whole or not at all, in little memory


def nothing_is_left(path: Path) -> bool:
    """Neither `path` nor a draft of it exists."""
    return not any(file.name.startswith(path.name) for file in path.parent.iterdir())


def row(bins: int = 10, value: float = 1.0) -> Row:
    return Row(0, np.full((bins, 4), value, dtype=np.float32), np.array([1, 2], dtype=np.int64))


def test_converting_takes_the_memory_of_a_few_sentences(tmp_path: Path) -> None:
    """The data are 100 MB, in sentences of 1 MB."""
    source = GivenRows(lambda: (row(bins=62_500, value=number) for number in range(100)))
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
        convert(GivenRows(breaks_off(error)), tmp_path / "out")
    assert nothing_is_left(tmp_path / "out")


def test_nothing_is_left_when_the_disk_is_full(tmp_path: Path) -> None:
    """A limit on the size of files stands in for it: the same call fails, at the same place."""
    source = GivenRows(lambda: (row(bins=62_500) for _ in range(10)))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3_500_000, hard))
    try:
        message = r"out: cannot be written: .*File too large. Raise the limit of file sizes"
        with pytest.raises(MachineError, match=message):
            convert(source, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert nothing_is_left(tmp_path / "out")


@pytest.mark.parametrize(
    ("rows", "message"),
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
def test_data_that_cannot_be_trained_on_are_not_converted(
    tmp_path: Path, rows: list[Row], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        convert(GivenRows(lambda: iter(rows)), tmp_path / "out")
    assert nothing_is_left(tmp_path / "out")


def test_an_existing_path_is_not_overwritten(tiny_data: Path, store: Path, tmp_path: Path) -> None:
    source = open_source(tiny_data)
    dangling_link = tmp_path / "link"
    dangling_link.symlink_to(tmp_path / "nowhere")
    for taken in (store, tiny_data, dangling_link):
        with pytest.raises(CallerError, match=f"{taken.name}: already exists. Give a new path"):
            convert(source, taken)


def test_a_store_needs_an_existing_folder(tiny_data: Path, tmp_path: Path) -> None:
    with pytest.raises(CallerError, match=r"there is no folder .*missing to write it in"):
        convert(open_source(tiny_data), tmp_path / "missing" / "out")


def test_data_that_open_at_once_are_not_converted(store: Path, tmp_path: Path) -> None:
    for opens_at_once in (store, None):
        with pytest.raises(DataError, match="nothing to convert"):
            convert(open_source(opens_at_once), tmp_path / "out")


# ---- facts


def write(path: Path, contents: Any) -> Path:
    path.write_bytes(pickle.dumps(contents))
    return path


def test_facts_of_the_spoken_digits(shared_data: Path) -> None:
    """The figures in the README of the data."""
    path = shared_data / "spoken_digits" / "ptDecoder_ctc"
    facts = inspect_data(path, ModelConfig(kernel=14, stride=4))
    train = facts["partitions"]["train"]
    assert train["sentences"] == 1120
    assert train["labels"]["count"] == 21372
    assert train["channels"] == 32
    assert train["bins"] == {"min": 45, "mean": 114.7, "max": 212}
    assert train["hours"] == pytest.approx(2569.0 / 3600, abs=1e-4)
    assert train["too_short"] / train["sentences"] == pytest.approx(0.104, abs=5e-4)
    # 19 of the phonemes, and SIL, occur.
    assert len(train["missing_classes"]) == 20
    assert train["labels"]["min"] == 9
    assert train["labels"]["max"] == 32
    assert facts["absent"].keys() == {"competition"}
    assert facts["fault"] is None


def copy_sentence(source: dict[str, Any], number: int, target: dict[str, Any], to: int) -> None:
    for column in ("sentenceDat", "phonemes", "phoneLens"):
        target[column][to] = source[column][number]


def test_facts_include_faults_and_duplicates(tmp_path: Path) -> None:
    contents = tiny_contents()
    train, test = contents["train"], contents["test"]
    for features in train[1]["sentenceDat"]:
        features[:, 2] = 5
    train[0]["sentenceDat"][3][4, 1] = np.inf
    # Sentence 7 is in train three times, and once in test.
    copy_sentence(train[0], 7, train[0], 5)
    copy_sentence(train[0], 7, train[0], 6)
    copy_sentence(train[0], 7, test[1], 0)
    test[1]["sentenceDat"][2] = test[1]["sentenceDat"][2][:3]

    facts = inspect_data(write(tmp_path / "data", contents), SMALL_MODEL)
    days = facts["partitions"]["train"]["days"]
    assert [day["constant_channels"] for day in days] == [[], [2]]
    assert [day["not_finite_channels"] for day in days] == [[1], []]
    assert facts["duplicates"]["train"] == 2
    assert facts["duplicates"]["test_in_train"] == 1
    assert facts["duplicates"]["test_labels_in_train"] >= 1
    fault = "data, train: day 0 sentence 3 has NaN or infinite features. Valid: finite numbers"
    assert facts["fault"] == fault
    fault = "data, test: day 1 sentence 2 has 3 bins, fewer than model.kernel 4 (1 such)"
    assert facts["partitions"]["test"]["fault"].startswith(fault)


# ---- the commands


def check(path: Path, *more: str) -> Done:
    return run_hpo("data", "check", path, "--kernel", "4", *more)


def test_check_of_the_bundled_recordings() -> None:
    done = run_hpo("data", "check", "--kernel", "8", "--stride", "2")
    assert done.returncode == 0
    assert done.stderr == ""
    for part in (
        "bundled recordings",
        "1120",
        "45 / 114.7 / 212",
        "0 (0.00 %)",
        "train lacks AA, AE",
        "Next: hpo launch --study lr-aug\n",
    ):
        assert part in done.stdout
    facts = json.loads(run_hpo("data", "check", "--json").stdout)
    assert facts["kernel"] == 32
    assert facts["stride"] == 4
    assert facts["partitions"]["train"]["too_short"] == 471


def test_check_shows_what_it_can_of_data_that_cannot_be_trained_on(tmp_path: Path) -> None:
    contents = tiny_contents()
    contents["train"][1]["sentenceDat"][3][5, 0] = np.nan
    path = write(tmp_path / "data", contents)
    done = check(path)
    one_line(done, 2, "data, train: day 1 sentence 3 has NaN or infinite features")
    assert re.search(r"NaN or inf +channels 0, counted from 0", done.stdout)
    assert "Next:" not in done.stdout
    done = check(path, "--json")
    one_line(done, 2, "NaN or infinite")
    assert json.loads(done.stdout)["fault"] in done.stderr
    contents["train"] = [{}]
    without_columns = run_hpo("data", "check", write(path, contents))
    one_line(without_columns, 2, "day 0 has no 'sentenceDat'")
    missing = run_hpo("data", "check", tmp_path / "missing")
    one_line(missing, 2, "no such file or folder. Give a ptDecoder_ctc pickle")


def test_check_shows_faults_of_test_without_failing(tmp_path: Path) -> None:
    contents = tiny_contents()
    contents["test"].pop()
    done = check(write(tmp_path / "data", contents))
    assert done.returncode == 0
    assert re.search(r"fault +data, test: 1 days, but train has 2", done.stdout)
    contents["test"] = tiny_contents(features=5)["test"]
    done = check(write(tmp_path / "data", contents))
    assert done.returncode == 0
    assert re.search(r"fault +data, test: 5 features, but train has 3", done.stdout)


def test_convert_writes_a_store_with_the_same_facts(tiny_data: Path, tmp_path: Path) -> None:
    out = tmp_path / "store"
    done = run_hpo("data", "convert", tiny_data, out)
    assert done.returncode == 0
    assert done.stderr == ""
    fingerprint = read_sentences(tiny_data, "train").fingerprint()
    assert f"train       24 sentences, 3 features, fingerprint {fingerprint}" in done.stdout
    assert f"Next: hpo data check {out}, or hpo launch --study lr-aug --data {out}" in done.stdout
    facts = json.loads(check(out, "--json").stdout)
    facts_of_source = json.loads(check(tiny_data, "--json").stdout)
    assert facts["partitions"] == facts_of_source["partitions"]


def test_convert_refuses_an_existing_store_and_a_folder_without_data(
    tiny_data: Path, store: Path, tmp_path: Path
) -> None:
    one_line(run_hpo("data", "convert", tiny_data, store), 2, "store: already exists")
    done = run_hpo("data", "convert", tmp_path, tmp_path / "x")
    one_line(done, 2, "a folder with data.pickle, store. Valid: a ptDecoder_ctc pickle")
