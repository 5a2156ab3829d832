"""Opens a data set by its path, and reads ptDecoder_ctc pickles and the bundled recordings.

Files come from other people, so nothing in them is run: see pickles.py. The readers of the other
formats are imported when a file needs them.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpo.data.folders import contents_text, without_stray
from hpo.data.pickles import unpickle
from hpo.data.sentences import Partition, Row, Sentences, Source, Stream
from hpo.errors import DataError

__all__ = ["DEMO_FILE", "FORMATS", "Partition", "Sentences", "open_source", "read_sentences"]

DEMO_FILE = Path(__file__).parent / "demo" / "spoken_digits.npz"
COLUMNS = ("sentenceDat", "phonemes", "phoneLens")
FORMATS = (
    "a ptDecoder_ctc pickle of neural_seq_decoder, a competition folder (train/*.mat), "
    "a Brain-to-Text '25 folder (SESSION/data_train.hdf5), a store of hpo data convert"
)


def read_sentences(path: Path | None, partition: Partition) -> Sentences:
    """Read one partition. path: None for the bundled recordings. Raises DataError."""
    source = open_source(path)
    if partition not in source.partitions:
        reason = source.absent.get(partition, "no such partition")
        valid = ", ".join(source.partitions)
        raise DataError(f"{source.name}: {partition} cannot be read: {reason}. Valid: {valid}")
    return source.sentences(partition)


def open_source(path: Path | None) -> Source:
    """The data set at `path`, or the bundled recordings for None.

    Raises DataError if the path is in none of FORMATS.
    """
    if path is None:
        return Demo()
    if path.is_file():
        return Pickle(path)
    if (path / "store.json").is_file():
        from hpo.data.store import Store

        return Store(path)
    if without_stray(path, path.glob("train/*.mat")):
        from hpo.data.mat import MatFolder

        return MatFolder(path)
    # The published archive unpacks to a folder hdf5_data_final.
    for folder in (path, path / "hdf5_data_final"):
        if without_stray(folder, folder.glob("*/data_train.hdf5")):
            from hpo.data.hdf5 import Hdf5Folder

            return Hdf5Folder(folder)
    if not path.is_dir():
        raise DataError(f"{path}: no such file or folder. Give {FORMATS}")
    raise DataError(f"{path}: a folder with {contents_text(path)}. Valid: {FORMATS}")


class Demo(Source):
    name = "bundled recordings"
    partitions = ("train", "test")
    n_days = 4

    def sentences(self, partition: Partition) -> Sentences:
        with np.load(DEMO_FILE, allow_pickle=False) as arrays:
            part = {
                name: arrays[f"{partition}_{name}"]
                for name in ("features", "lengths", "labels", "label_lengths", "days")
            }
        return Sentences(
            features_NC=part["features"].astype(np.float32),
            lengths_S=part["lengths"].astype(np.int64),
            labels_L=part["labels"].astype(np.int64),
            label_lengths_S=part["label_lengths"].astype(np.int64),
            days_S=part["days"].astype(np.int64),
            n_days=self.n_days,
            source=f"{self.name}, {partition}",
        )


class Pickle(Stream):
    absent = {
        "competition": (
            "the file does not say which days it has (positions in its list are not day numbers)"
        )
    }

    def __init__(self, path: Path):
        self.name = path.name
        self._path = path
        self._contents = unpickle(path)
        self.n_days = len(self._days("train"))
        self.partitions = ("train", "test") if "test" in self._contents else ("train",)

    def _days(self, partition: Partition) -> list[Any]:
        days = None
        if isinstance(self._contents, dict):
            days = self._contents.get(partition)
        if not isinstance(days, list) or not days:
            raise DataError(
                f"{self._path}: no list of days under {partition!r}. "
                f"Valid: a dict with 'train', 'test', 'competition'"
            )
        return days

    def rows(self, partition: Partition) -> Iterator[Row]:
        days = self._days(partition)
        source = f"{self.name}, {partition}"
        if len(days) != self.n_days:
            raise DataError(
                f"{source}: {len(days)} days, but train has {self.n_days}, so their positions are "
                f"not day numbers. Valid: the days of train"
            )
        for number, day in enumerate(days):
            place = f"{source}: day {number}"
            for sentence, entry in enumerate(_entries(day, place)):
                x_TC, labels_L = _sentence(entry, f"{place} sentence {sentence}")
                yield Row(number, x_TC, labels_L)


def _entries(day: Any, place: str) -> list[tuple[Any, ...]]:
    """The sentences of a day, each as its entries in COLUMNS."""
    for column in COLUMNS:
        if not isinstance(day, dict) or column not in day:
            raise DataError(f"{place} has no {column!r}. Needed: {', '.join(COLUMNS)}")
    columns = [day[column] for column in COLUMNS]
    try:
        return list(zip(*columns, strict=True))
    # A column that is no list, or columns of unequal length.
    except (TypeError, ValueError):
        raise DataError(
            f"{place}: the columns {', '.join(COLUMNS)} are not lists of one length, "
            f"an entry a sentence"
        ) from None


def _sentence(entry: tuple[Any, ...], place: str) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The features and labels of one sentence. Raises DataError for wrong shapes or types."""
    features, phonemes, length = entry
    try:
        x_TC = np.asarray(features)
        labels = np.asarray(phonemes)
        count = int(length)
    except (TypeError, ValueError):
        raise DataError(
            f"{place}: sentenceDat, phonemes or phoneLens {length} is no array of numbers"
        ) from None
    if x_TC.ndim != 2 or x_TC.dtype.kind not in "fiu":
        raise DataError(
            f"{place}: sentenceDat is {x_TC.dtype} {x_TC.shape}. Valid: numbers, bins x features"
        )
    if labels.ndim != 1 or labels.dtype.kind not in "fiu" or not 0 <= count <= len(labels):
        raise DataError(
            f"{place}: phoneLens {count} and phonemes {labels.dtype} {labels.shape}. "
            f"Valid: numbers, at least phoneLens of them"
        )
    whole_L = labels[:count].astype(np.int64)
    if not np.array_equal(labels[:count], whole_L):
        raise DataError(f"{place}: phonemes that are no whole numbers")
    return x_TC.astype(np.float32, copy=False), whole_L
