"""The common types of all readers: Source, a data set on disk, and Sentences, one partition of it.

Formats that are read sentence by sentence are a Stream of Rows, so that a data set larger than
memory can be converted. Shape suffixes: T bins, C features (channels), L labels, N bins of all
sentences, S sentences.
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
    # Words of its text that the dictionary lacks, so that their labels are guesses.
    guessed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sentences:
    """One partition: N bins and L labels in all, S sentences, C features."""

    # Read-only where it is mapped from a store.
    features_NC: NDArray[np.float32]
    # In bins.
    lengths_S: NDArray[np.int64]
    # From 1 to the number of classes.
    labels_L: NDArray[np.int64]
    label_lengths_S: NDArray[np.int64]
    # From 0 to n_days - 1.
    days_S: NDArray[np.int64]
    n_days: int
    # The name of these data in messages.
    source: str
    # Empty where days only have numbers.
    day_names: tuple[str, ...] = ()
    # How often each word of Row.guessed occurs.
    guessed: Mapping[str, int] = field(default_factory=dict)
    # Only from a store, which has computed it, and found all features finite, when it was written.
    stored_fingerprint: str | None = None

    def __len__(self) -> int:
        return len(self.lengths_S)

    def fingerprint(self) -> str:
        """Equal for equal sentences, whatever file they came from."""
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
        """SOURCE: day 3 sentence 17, counted from 0 within the day, as in the file."""
        day = int(self.days_S[sentence])
        first = int(np.flatnonzero(self.days_S == day)[0])
        return f"{self.source}: {self.day_name(day)} sentence {sentence - first}"


def name_day(day: int, names: tuple[str, ...]) -> str:
    """`day 3`, or `day NAME` where days have names."""
    return f"day {names[day] if names else day}"


class Source(ABC):
    """A data set."""

    name: str
    # Days of train: a decoder has an input layer for each of them.
    n_days: int
    day_names: tuple[str, ...] = ()
    partitions: tuple[Partition, ...]
    # Partition -> why it cannot be used, although it may exist.
    absent: Mapping[str, str] = {}

    @abstractmethod
    def sentences(self, partition: Partition) -> Sentences:
        """All sentences of one of `partitions`. Raises DataError."""


class Stream(Source):
    """A data set that is read sentence by sentence."""

    @abstractmethod
    def rows(self, partition: Partition) -> Iterator[Row]:
        """The sentences, ordered by day. Raises DataError."""

    @final
    def checked_rows(self, partition: Partition, finite: bool = False) -> Iterator[Row]:
        """The rows, checked to have equally many features.

        finite: also check that no feature is NaN or infinite. Raises DataError.
        """
        width: int | None = None
        bins = 0
        day = -1
        number = 0
        for row in self.rows(partition):
            number = number + 1 if row.day == day else 0
            day = row.day
            place = f"{self.name}, {partition}: {name_day(day, self.day_names)} sentence {number}"
            n_bins, n_features = row.x_TC.shape
            bins += n_bins
            if width is None:
                width = n_features
            if n_features != width:
                raise DataError(
                    f"{place} has {n_features} features, the first {width}. "
                    f"Valid: the same in all sentences"
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
        guessed: Counter[str] = Counter()
        for row in rows:
            guessed.update(row.guessed)
        return Sentences(
            features_NC=np.concatenate([row.x_TC for row in rows]),
            lengths_S=np.array([len(row.x_TC) for row in rows], dtype=np.int64),
            labels_L=np.concatenate([row.labels_L for row in rows]),
            label_lengths_S=np.array([len(row.labels_L) for row in rows], dtype=np.int64),
            days_S=np.array([row.day for row in rows], dtype=np.int64),
            n_days=self.n_days,
            source=f"{self.name}, {partition}",
            day_names=self.day_names,
            guessed=guessed,
        )
