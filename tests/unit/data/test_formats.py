"""Data sets as pickles: what is read, and what is refused in one line."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.data import SMALL_MODEL, assert_refused, load, tiny_contents
from helpers.decoders import CPU
from hypothesis import given, settings
from hypothesis import strategies as st

from hpo.data.formats import COLUMNS, Sentences, read_sentences
from hpo.decoder.config import ModelConfig
from hpo.decoder.data import load_for_scoring, share_too_short, too_short
from hpo.errors import DataError

Write = Callable[[Any], Path]


def test_sentences_are_read_with_their_features_labels_and_days(write_data: Write) -> None:
    contents = tiny_contents(sentences=5, days=3, features=4)
    sentences = read_sentences(write_data(contents), "train")
    assert len(sentences) == 15
    assert sentences.n_days == 3
    assert sentences.features_NC.shape[1] == 4
    assert sentences.days_S.tolist() == [0] * 5 + [1] * 5 + [2] * 5

    # The first sentence of day 1 is the sixth of all.
    day = contents["train"][1]
    start = int(sentences.lengths_S[:5].sum())
    features = sentences.features_NC[start : start + len(day["sentenceDat"][0])]
    np.testing.assert_array_equal(features, day["sentenceDat"][0])
    start = int(sentences.label_lengths_S[:5].sum())
    count = day["phoneLens"][0]
    labels = sentences.labels_L[start : start + count]
    assert labels.tolist() == day["phonemes"][0][:count].tolist()


@pytest.mark.parametrize("protocol", range(6))
def test_every_pickle_protocol_is_read(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "data"
    path.write_bytes(pickle.dumps(tiny_contents(), protocol=protocol))
    assert len(read_sentences(path, "train")) == 24


def test_pickles_of_numpy_1_are_read(tmp_path: Path) -> None:
    """Its modules were called numpy.core. The public data file is such a pickle."""
    path = tmp_path / "data"
    written = pickle.dumps(tiny_contents(), protocol=2)
    path.write_bytes(written.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert len(read_sentences(path, "train")) == 24


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_pickle_is_refused(write_data: Write, share: float) -> None:
    path = write_data(tiny_contents())
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    message = r"data.pickle: not a whole pickle \([\d,]+ bytes; .*\)\. Copy it again"
    with pytest.raises(DataError, match=message):
        load(path)


@pytest.mark.parametrize(
    "junk", [b"hello", b"\x89HDF\r\n\x1a\n" + bytes(100), b"\x80\x04K\x01.", os.urandom(1000)]
)
def test_bytes_that_are_not_a_data_set_are_refused(tmp_path: Path, junk: bytes) -> None:
    path = tmp_path / "junk"
    path.write_bytes(junk)
    with pytest.raises(DataError, match="junk"):
        load(path)


class RunsCode:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("it-ran",)


def test_a_pickle_that_would_run_code_does_not(
    write_data: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    contents = tiny_contents() | {"extra": RunsCode()}
    message = (
        r"asks to load posix.mkdir. "
        r"Valid: plain containers and numpy arrays; nothing was run"
    )
    with pytest.raises(DataError, match=message):
        load(write_data(contents))
    assert not Path("it-ran").exists()


class PointersFromBytes:
    def __reduce__(self) -> tuple[Any, ...]:
        return np.ndarray, ((3,), "O", b"A" * 24)


class ArrayOfAnotherClass:
    def __reduce__(self) -> tuple[Any, ...]:
        # Pickles of arrays name this private function of numpy.
        reconstruct = np._core.multiarray._reconstruct  # type: ignore[attr-defined]  # noqa: SLF001
        return reconstruct, (dict, (0,), b"b")


@pytest.mark.parametrize("bad", [PointersFromBytes(), ArrayOfAnotherClass()])
def test_a_pickle_that_would_make_pointers_of_its_bytes_does_not(
    write_data: Write, bad: object
) -> None:
    with pytest.raises(DataError, match=r"data.pickle: "):
        load(write_data(tiny_contents() | {"extra": bad}))


# Each changes day 1 of train, mostly its sentence 3.


def day(contents: dict[str, Any]) -> dict[str, Any]:
    columns: dict[str, Any] = contents["train"][1]
    return columns


def drop_column(contents: dict[str, Any]) -> None:
    del day(contents)["phoneLens"]


def drop_partition(contents: dict[str, Any]) -> None:
    del contents["train"]


def shorten(contents: dict[str, Any]) -> None:
    day(contents)["sentenceDat"][3] = day(contents)["sentenceDat"][3][:3]


def mislabel(contents: dict[str, Any]) -> None:
    day(contents)["phonemes"][3][1] = 57


def label_blank(contents: dict[str, Any]) -> None:
    day(contents)["phonemes"][3][0] = 0


def empty_day(contents: dict[str, Any]) -> None:
    for column in day(contents):
        day(contents)[column] = []


def other_width(contents: dict[str, Any]) -> None:
    day(contents)["sentenceDat"][3] = day(contents)["sentenceDat"][3][:, :2]


def not_a_number(contents: dict[str, Any]) -> None:
    day(contents)["sentenceDat"][3][5, 0] = np.nan


def too_many_labels(contents: dict[str, Any]) -> None:
    day(contents)["phoneLens"][3] = 99


def unequal_columns(contents: dict[str, Any]) -> None:
    day(contents)["sentenceDat"].pop()


def no_list(contents: dict[str, Any]) -> None:
    day(contents)["phoneLens"] = None


def half_a_phoneme(contents: dict[str, Any]) -> None:
    day(contents)["phonemes"][3] = day(contents)["phonemes"][3] + 0.5


def words(contents: dict[str, Any]) -> None:
    day(contents)["phonemes"][3] = ["a", "b", "c"]
    day(contents)["phoneLens"][3] = 3


def nothing(contents: dict[str, Any]) -> None:
    day(contents)["sentenceDat"][3] = None


def ragged(contents: dict[str, Any]) -> None:
    day(contents)["sentenceDat"][3] = [[1.0, 2.0, 3.0], [1.0]]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (drop_column, r"train: day 1 has no 'phoneLens'. Needed: sentenceDat, phonemes, phoneLens"),
        (drop_partition, r"no list of days under 'train'"),
        (shorten, r"train: day 1 sentence 3 has 3 bins, fewer than model.kernel 4 \(1 such\)"),
        (mislabel, r"train: day 1 sentence 3 has label 57 \(1 such\)\. Valid: 1\.\.40"),
        (
            label_blank,
            r"train: day 1 sentence 3 has label 0 \(1 such\)\. "
            r"Valid: 1\.\.40 \(model.classes; 0 is the CTC blank\)",
        ),
        (empty_day, r"train: day 1 has no sentences"),
        (other_width, r"train: day 1 sentence 3 has 2 features, the first 3"),
        (not_a_number, r"train: day 1 sentence 3 has NaN or infinite features"),
        (too_many_labels, r"train: day 1 sentence 3: phoneLens 99 and phonemes int32 \(20,\)"),
        (
            unequal_columns,
            r"train: day 1: the columns sentenceDat, phonemes, phoneLens "
            r"are not lists of one length",
        ),
        (no_list, r"train: day 1: the columns"),
        (half_a_phoneme, r"train: day 1 sentence 3: phonemes that are no whole numbers"),
        (words, r"train: day 1 sentence 3: phoneLens 3 and phonemes <U1"),
        (nothing, r"train: day 1 sentence 3: sentenceDat is object \(\)"),
        (
            ragged,
            r"train: day 1 sentence 3: sentenceDat, phonemes or phoneLens \d "
            r"is no array of numbers",
        ),
    ],
)
def test_data_that_cannot_be_trained_on_are_refused(
    write_data: Write, spoil: Callable[[dict[str, Any]], None], message: str
) -> None:
    contents = tiny_contents()
    spoil(contents)
    assert_refused(write_data(contents), message)


VALID = (
    "ptDecoder_ctc pickle.*competition folder.*Brain-to-Text '25 folder.*store of hpo data convert"
)


def test_a_path_in_none_of_the_formats_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"missing: no such file or folder. Give .*{VALID}"):
        load(tmp_path / "missing")
    with pytest.raises(DataError, match=f"a folder with nothing. Valid: .*{VALID}"):
        load(tmp_path)
    for name in ("train", "b.txt", "c", "d"):
        (tmp_path / name).mkdir()
    with pytest.raises(DataError, match=rf"a folder with b.txt, c, d, \.\.\.. Valid: .*{VALID}"):
        load(tmp_path)


def test_the_competition_partition_of_a_pickle_names_no_days(write_data: Write) -> None:
    message = (
        r"competition cannot be read: the file does not say which days it has .*"
        r" Valid: train, test"
    )
    with pytest.raises(DataError, match=message):
        read_sentences(write_data(tiny_contents()), "competition")


def test_the_bundled_recordings_have_no_competition_partition() -> None:
    message = (
        r"bundled recordings: competition cannot be read: no such partition. Valid: train, test"
    )
    with pytest.raises(DataError, match=message):
        read_sentences(None, "competition")


def test_a_test_partition_with_other_days_than_train_is_refused(write_data: Write) -> None:
    contents = tiny_contents()
    contents["test"].pop()
    message = "test: 1 days, but train has 2, so their positions are not day numbers"
    with pytest.raises(DataError, match=message):
        read_sentences(write_data(contents), "test")


def test_a_partition_that_is_scored_may_lack_a_day(write_data: Write) -> None:
    contents = tiny_contents()
    for column in COLUMNS:
        contents["test"][0][column] = []
    data = load_for_scoring(write_data(contents), "test", SMALL_MODEL, CPU)
    assert len(data.validation) == 12
    assert data.n_days == 2


def test_the_fingerprint_tells_sentences_apart(write_data: Write) -> None:
    contents = tiny_contents()
    fingerprint = read_sentences(write_data(contents), "train").fingerprint()
    assert read_sentences(write_data(tiny_contents()), "train").fingerprint() == fingerprint
    day(contents)["phonemes"][3][0] += 1
    assert read_sentences(write_data(contents), "train").fingerprint() != fingerprint


def test_the_search_does_not_need_the_test_partition(write_data: Write) -> None:
    contents = tiny_contents()
    contents["test"] = "nothing that could be read"
    load(write_data(contents))
    with pytest.raises(DataError, match="no list of days under 'test'"):
        load_for_scoring(write_data(contents), "test", SMALL_MODEL, CPU)


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 3), min_size=1, max_size=8),
    st.integers(0, 12),
    st.integers(1, 3),
    st.integers(0, 2),
)
def test_too_short_is_where_pytorchs_ctc_loss_is_infinite(
    labels: list[int], frames: int, stride: int, extra: int
) -> None:
    """Repeated labels count within a sentence only.

    So the next sentence begins with the label that this one ends with.
    """
    model = ModelConfig(kernel=4, stride=stride)
    bins = 4 + frames * stride + extra % stride
    both = Sentences(
        features_NC=np.zeros((bins + 100, 1), dtype=np.float32),
        lengths_S=np.array([bins, 100]),
        labels_L=np.array([*labels, labels[-1]]),
        label_lengths_S=np.array([len(labels), 1]),
        days_S=np.zeros(2, dtype=np.int64),
        n_days=1,
        source="two",
    )
    log_probs = torch.zeros(max(frames, 1), 1, 4).log_softmax(2)
    loss = torch.nn.functional.ctc_loss(
        log_probs,
        torch.tensor([labels]),
        torch.tensor([frames]),
        torch.tensor([len(labels)]),
        reduction="none",
    )
    assert too_short(both, model).tolist() == [bool(loss.isinf()), False]


def test_share_too_short_for_ctc() -> None:
    """The figure in the README of the data is 42.1 % at kernel 32, stride 4."""
    sentences = read_sentences(None, "train")
    at_the_defaults = share_too_short(sentences, ModelConfig(kernel=32, stride=4))
    assert at_the_defaults == pytest.approx(0.421, abs=0.0005)
    with_short_windows = share_too_short(sentences, ModelConfig(kernel=8, stride=3))
    assert with_short_windows == pytest.approx(0.001, abs=0.0005)
