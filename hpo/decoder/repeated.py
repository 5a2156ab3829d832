"""Sentences that are both trained on and scored, with identical features: they flatter a score."""

import hashlib
from collections import defaultdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hpo.data.formats import open_source
from hpo.data.sentences import Sentences
from hpo.decoder.data import split
from hpo.errors import DataError


def warn_of_repeated(path: Path | None, fraction: float, seed: int) -> list[str]:
    """A line if sentences of the validation part or of the test partition are also trained on.

    fraction, seed: how the validation part is cut. Reads the partitions again. Raises DataError if
    the training partition cannot be read.
    """
    source = open_source(path)
    sentences = source.sentences("train")
    trained, scored = split(sentences, fraction, seed)
    seen = _Trained(sentences, trained)
    counts = {"validation": (seen.count(sentences, scored), len(scored))}
    if "test" in source.partitions:
        try:
            test = source.sentences("test")
        # The search does not need the test partition; `hpo data check` says what is wrong with it.
        except DataError:
            pass
        else:
            counts["test"] = (seen.count(test, np.arange(len(test))), len(test))
    texts = [f"{some:,} of {of:,} {part} sentences" for part, (some, of) in counts.items() if some]
    if not texts:
        return []
    return [f"warning: {' and '.join(texts)} are also trained on, so scores are too good"]


class _Trained:
    """The sentences that train, to be compared with others.

    Most sentences are told apart by their first and last bin, so that a data set larger than memory
    need not be read whole.
    """

    def __init__(self, sentences: Sentences, numbers: NDArray[np.int64]):
        self._sentences = sentences
        self._starts_S = _starts(sentences)
        self._by_ends: dict[bytes, list[int]] = defaultdict(list)
        for number in numbers.tolist():
            x_TC = _features(sentences, self._starts_S, number)
            self._by_ends[_ends(x_TC)].append(number)

    def count(self, others: Sentences, numbers: NDArray[np.int64]) -> int:
        """How many of these sentences have the features of one that trains."""
        starts_S = _starts(others)
        found = 0
        for number in numbers.tolist():
            x_TC = _features(others, starts_S, number)
            alike = self._by_ends.get(_ends(x_TC), [])
            digest = features_digest(x_TC) if alike else b""
            found += any(digest == self._digest_of(candidate) for candidate in alike)
        return found

    def _digest_of(self, number: int) -> bytes:
        return features_digest(_features(self._sentences, self._starts_S, number))


def _starts(sentences: Sentences) -> NDArray[np.int64]:
    starts_S: NDArray[np.int64] = np.cumsum(sentences.lengths_S) - sentences.lengths_S
    return starts_S


def _features(
    sentences: Sentences, starts_S: NDArray[np.int64], number: int
) -> NDArray[np.float32]:
    start = int(starts_S[number])
    return sentences.features_NC[start : start + int(sentences.lengths_S[number])]


def _ends(x_TC: NDArray[np.float32]) -> bytes:
    return b"%d:" % len(x_TC) + x_TC[:1].tobytes() + x_TC[-1:].tobytes()


def features_digest(x_TC: NDArray[np.float32]) -> bytes:
    """Equal for sentences with identical features."""
    return hashlib.blake2b(np.ascontiguousarray(x_TC).data, digest_size=16).digest()
