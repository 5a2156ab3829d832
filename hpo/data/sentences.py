"""What every reader of data gives: Source, a data set on disk, and Sentences, one partition of it.

Formats that are read sentence by sentence are a Stream of Rows, so that a data set larger than memory can be converted.
Shape suffixes: T bins, C features (channels), L labels, N bins of all sentences, S sentences.
"""

import hashlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, final

import numpy as np
from numpy.typing import NDArray

from hpo.errors import DataError

Partition = Literal["train", "test", "competition"]


class Row(NamedTuple):
    """One sentence."""

    day: int
    x_TC: NDArray[np.float32]
    labels_L: NDArray[np.int64]
    guessed: tuple[
        str, ...
    ] = ()  # words of its text that no dictionary has, so that their labels are guesses


@dataclass(frozen=True)
class Sentences:
    """One partition. N bins in all, S sentences, L labels in all, C features."""

    features_NC: NDArray[np.float32]  # read-only where they are mapped from a store
    lengths_S: NDArray[np.int64]  # bins
    labels_L: NDArray[np.int64]  # 1..classes
    label_lengths_S: NDArray[np.int64]
    days_S: NDArray[np.int64]  # 0..n_days - 1
    n_days: int
    source: str  # what messages call this
    day_names: tuple[str, ...] = ()  # empty where days have numbers only
    guessed: Mapping[str, int] = field(default_factory=dict)  # see Row -> how often
    stored_fingerprint: str | None = (
        None  # from a store: computed, and all features found finite, when it was written
    )

    def __len__(self) -> int:
        return len(self.lengths_S)

    def fingerprint(self) -> str:
        """The same for the same sentences, whatever file they came from."""
        if self.stored_fingerprint:
            return self.stored_fingerprint
        digest = hashlib.sha256()
        for array in (
            self.features_NC,
            self.lengths_S,
            self.labels_L,
            self.label_lengths_S,
            self.days_S,
        ):
            digest.update(str(array.shape).encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()[:16]

    def day_name(self, day: int) -> str:
        return name_day(day, self.day_names)

    def name_of(self, sentence: int) -> str:
        """`day 3 sentence 17`: the day's number or name, the sentence counted from 0 within it, as in the file."""
        day = int(self.days_S[sentence])
        first = int(np.flatnonzero(self.days_S == day)[0])
        return f"{self.source}: {self.day_name(day)} sentence {sentence - first}"


def name_day(day: int, names: tuple[str, ...]) -> str:
    return f"day {names[day] if names else day}"


class Source(ABC):
    """A data set. `absent` says of partitions that exist but cannot be used why that is."""

    name: str
    n_days: int  # of train: a decoder has an input layer for each
    day_names: tuple[str, ...] = ()
    partitions: tuple[Partition, ...]
    absent: Mapping[str, str] = {}

    @abstractmethod
    def sentences(self, partition: Partition) -> Sentences:
        """All of `partition`, one of `partitions`. Raises DataError."""


class Stream(Source):
    @abstractmethod
    def rows(self, partition: Partition) -> Iterator[Row]:
        """The sentences in order, by day. Raises DataError."""

    @final
    def checked_rows(self, partition: Partition, finite: bool = False) -> Iterator[Row]:
        """The rows, which all have as many features as the first; and, if `finite`, no NaN or inf. Raises DataError."""
        width: int | None = None
        bins, day, number = 0, -1, 0
        for row in self.rows(partition):
            number, day = (number + 1, day) if row.day == day else (0, row.day)
            place = f"{self.name}, {partition}: {name_day(day, self.day_names)} sentence {number}"
            width = row.x_TC.shape[1] if width is None else width
            bins += len(row.x_TC)
            if row.x_TC.shape[1] != width:
                raise DataError(
                    f"{place} has {row.x_TC.shape[1]} features, the first {width}. Valid: the same in all sentences"
                )
            if finite and not np.isfinite(row.x_TC).all():
                raise DataError(f"{place} has NaN or infinite features. Valid: finite numbers")
            yield row
        if not bins or not width:
            raise DataError(
                f"{self.name}, {partition}: no sentences at all, or none with bins and features"
            )

    @final
    def sentences(self, partition: Partition) -> Sentences:
        rows = list(self.checked_rows(partition))
        return Sentences(
            features_NC=np.concatenate([row.x_TC for row in rows]),
            lengths_S=np.array([len(row.x_TC) for row in rows], dtype=np.int64),
            labels_L=np.concatenate([row.labels_L for row in rows]),
            label_lengths_S=np.array([len(row.labels_L) for row in rows], dtype=np.int64),
            days_S=np.array([row.day for row in rows], dtype=np.int64),
            n_days=self.n_days,
            source=f"{self.name}, {partition}",
            day_names=self.day_names,
            guessed=Counter(word for row in rows for word in row.guessed),
        )
