"""Readers of data files: the ptDecoder_ctc pickle of neural_seq_decoder and the recordings bundled with this package.

Every reader gives Sentences. Files come from other people, so nothing in them is run: pickles go through an unpickler
that knows plain containers and numpy arrays only.
"""

import hashlib
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from hpo.errors import DataError

Partition = Literal["train", "test"]
DEMO_FILE = Path(__file__).parent / "demo" / "spoken_digits.npz"
COLUMNS = ("sentenceDat", "phonemes", "phoneLens")


@dataclass(frozen=True)
class Sentences:
    """One partition. N bins in all, S sentences, L labels in all, C features."""

    features_NC: NDArray[np.float32]
    lengths_S: NDArray[np.int64]  # bins
    labels_L: NDArray[np.int64]  # 1..classes
    label_lengths_S: NDArray[np.int64]
    days_S: NDArray[np.int64]  # 0..n_days - 1
    n_days: int
    source: str  # what messages call this

    def __len__(self) -> int:
        return len(self.lengths_S)

    def fingerprint(self) -> str:
        """The same for the same sentences, whatever file they came from."""
        digest = hashlib.sha256()
        for array in (self.features_NC, self.lengths_S, self.labels_L, self.label_lengths_S, self.days_S):
            digest.update(str(array.shape).encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()[:16]

    def name_of(self, sentence: int) -> str:
        """`day 3 sentence 17`, both counted from 0 as in the file."""
        day = self.days_S[sentence]
        first = int(np.flatnonzero(self.days_S == day)[0])
        return f"{self.source}: day {day} sentence {sentence - first}"


def read_sentences(path: Path | None, partition: Partition) -> Sentences:
    """Read one partition; `path` None is the bundled demo. Raises DataError."""
    if path is None:
        return _read_demo(partition)
    if not path.is_file():
        raise DataError(f"--data {path}: no such file. Give a ptDecoder_ctc pickle of neural_seq_decoder")
    contents = _unpickle(path)
    days = contents.get(partition) if isinstance(contents, dict) else None
    if not isinstance(days, list) or not days:
        raise DataError(f"{path}: no list of days under {partition!r}. Valid: a dict with 'train', 'test', 'competition'")
    return _from_days(days, f"{path.name}, {partition}")


def _read_demo(partition: Partition) -> Sentences:
    with np.load(DEMO_FILE, allow_pickle=False) as arrays:
        part = {name: arrays[f"{partition}_{name}"] for name in ("features", "lengths", "labels", "label_lengths", "days")}
    return Sentences(
        features_NC=part["features"].astype(np.float32),
        lengths_S=part["lengths"].astype(np.int64),
        labels_L=part["labels"].astype(np.int64),
        label_lengths_S=part["label_lengths"].astype(np.int64),
        days_S=part["days"].astype(np.int64),
        n_days=int(part["days"].max()) + 1,
        source=f"bundled recordings, {partition}",
    )


def _from_days(days: Sequence[Any], source: str) -> Sentences:
    features: list[NDArray[np.float32]] = []
    labels: list[NDArray[np.int64]] = []
    day_numbers: list[int] = []
    for number, day in enumerate(days):
        missing = [column for column in COLUMNS if not isinstance(day, dict) or column not in day]
        if missing:
            raise DataError(f"{source}: day {number} has no {missing[0]!r}. Needed: {', '.join(COLUMNS)}")
        for sentence, row in enumerate(_rows(day, f"{source}: day {number}")):
            x_TC, labels_L = _sentence(row, f"{source}: day {number} sentence {sentence}")
            if features and x_TC.shape[1] != features[0].shape[1]:
                raise DataError(
                    f"{source}: day {number} sentence {sentence} has {x_TC.shape[1]} features, the first {features[0].shape[1]}"
                )
            features.append(x_TC)
            labels.append(labels_L)
            day_numbers.append(number)
    if not features:
        raise DataError(f"{source}: no sentences at all")
    return Sentences(
        features_NC=np.concatenate(features),
        lengths_S=np.array([len(x) for x in features], dtype=np.int64),
        labels_L=np.concatenate(labels),
        label_lengths_S=np.array([len(x) for x in labels], dtype=np.int64),
        days_S=np.array(day_numbers, dtype=np.int64),
        n_days=len(days),
        source=source,
    )


def _rows(day: dict[str, Any], place: str) -> list[tuple[Any, ...]]:
    try:
        return list(zip(*(day[column] for column in COLUMNS), strict=True))
    except (TypeError, ValueError):  # a column that is no list, or columns of unequal length
        raise DataError(f"{place}: the columns {', '.join(COLUMNS)} are not lists of one length, an entry a sentence") from None


def _sentence(row: tuple[Any, ...], place: str) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """(features, labels) of one row. Raises DataError for anything but bins x features of numbers and whole-numbered labels."""
    try:
        x_TC, labels, count = np.asarray(row[0]), np.asarray(row[1]), int(row[2])
    except (TypeError, ValueError):
        raise DataError(f"{place}: sentenceDat, phonemes or phoneLens {row[2]} is no array of numbers") from None
    if x_TC.ndim != 2 or x_TC.dtype.kind not in "fiu":
        raise DataError(f"{place}: sentenceDat is {x_TC.dtype} {x_TC.shape}. Valid: numbers, bins x features")
    if labels.ndim != 1 or labels.dtype.kind not in "fiu" or not 0 <= count <= len(labels):
        raise DataError(
            f"{place}: phoneLens {count} and phonemes {labels.dtype} {labels.shape}. Valid: numbers, at least phoneLens of them"
        )
    if not np.array_equal(labels[:count], labels[:count].astype(np.int64)):
        raise DataError(f"{place}: phonemes that are no whole numbers")
    return x_TC.astype(np.float32, copy=False), labels[:count].astype(np.int64)


class _Ndarray:
    """Stands for numpy.ndarray in a pickle. The real one, called with a buffer, would make pointers of the file's bytes."""


def _empty_array(kind: Any, shape: Any, dtype: Any) -> NDArray[Any]:
    """What numpy's `_reconstruct` makes before the array's state is set."""
    if kind is not _Ndarray:
        raise DataError(f"asks for an array of {kind}. Valid: plain numpy arrays; nothing was run")
    return np.empty(0, dtype=np.int8)


class _PlainUnpickler(pickle.Unpickler):
    """Allows plain containers and numpy arrays (protocols 0 to 5, numpy 1 and 2); everything else is refused unrun."""

    ALLOWED = frozenset(
        {("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")}
        | {
            (f"numpy.{core}.{module}", name)
            for core in ("core", "_core")
            for module, name in (("multiarray", "_reconstruct"), ("multiarray", "scalar"), ("numeric", "_frombuffer"))
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise DataError(f"asks to load {module}.{name}. Valid: plain containers and numpy arrays; nothing was run")
        replaced = {"ndarray": _Ndarray, "_reconstruct": _empty_array}.get(name)
        return replaced or super().find_class(module.replace("numpy.core", "numpy._core"), name)


def _unpickle(path: Path) -> Any:
    file: BinaryIO
    try:
        with path.open("rb") as file:
            return _PlainUnpickler(file).load()
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    except Exception as error:  # a broken pickle can raise nearly anything: EOFError, IndexError, UnicodeDecodeError, ...
        size = path.stat().st_size
        raise DataError(f"{path}: not a whole pickle ({size:,} bytes; {type(error).__name__}: {error}). Copy it again") from None
