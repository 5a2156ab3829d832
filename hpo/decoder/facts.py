"""What a data set holds and what is wrong with it, as plain values for `hpo data check`.

Reads the features one sentence at a time, so that it can check a store larger than memory.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpo.data.formats import open_source
from hpo.data.sentences import Sentences
from hpo.decoder.config import ModelConfig
from hpo.decoder.data import check, check_days, split, too_short
from hpo.decoder.repeated import features_digest
from hpo.errors import DataError

BIN_SECONDS = 0.02
# The defaults of spaces: can every day be cut with them?
VALIDATION_FRACTION = 0.1
VALIDATION_SEED = 0


@dataclass(frozen=True)
class _Scan:
    """The result of one pass over the features of a partition."""

    # Each channel's lowest and highest value on each day: NaN where a value is NaN, inf and -inf on
    # a day without bins.
    low_DC: NDArray[np.float32]
    high_DC: NDArray[np.float32]
    # How many sentences have the features with this digest.
    digests: Counter[bytes]


@dataclass(frozen=True)
class _Digests:
    """How many sentences of a partition have these features and these labels, by digest."""

    features: Counter[bytes]
    labels: Counter[bytes]


def inspect_data(path: Path | None, model: ModelConfig) -> dict[str, Any]:
    """Facts about all partitions, in JSON's types.

    `fault` says in one line why the data set cannot be trained on, or is None; each partition has a
    `fault` of its own. Raises DataError if the data set cannot be opened at all.
    """
    source = open_source(path)
    partitions: dict[str, dict[str, Any]] = {}
    guessed_words: Counter[str] = Counter()
    digests: dict[str, _Digests] = {}
    channels: int | None = None
    # The first partition is train.
    for partition in source.partitions:
        try:
            sentences = source.sentences(partition)
        except DataError as error:
            partitions[partition] = {"fault": str(error)}
            continue
        scan = _scan(sentences)
        part = _partition_facts(sentences, scan, model)
        part["fault"] = _fault(sentences, model, partition == "train")
        channels = channels or part["channels"]
        if part["channels"] != channels:
            part["fault"] = (
                f"{sentences.source}: {part['channels']} features, but train has {channels}. "
                f"Valid: as many as train"
            )
        partitions[partition] = part
        guessed_words += Counter(sentences.guessed)
        digests[partition] = _Digests(scan.digests, _label_digests(sentences))
    return {
        "path": str(path) if path else None,
        "source": source.name,
        "n_days": source.n_days,
        "channels": channels,
        "kernel": model.kernel,
        "stride": model.stride,
        "partitions": partitions,
        "absent": dict(source.absent),
        "guessed_words": dict(guessed_words),
        "duplicates": _duplicates(digests),
        "fault": partitions["train"]["fault"],
    }


def _fault(sentences: Sentences, model: ModelConfig, trains: bool) -> str | None:
    try:
        if trains:
            check_days(sentences)
            split(sentences, VALIDATION_FRACTION, VALIDATION_SEED)
        check(sentences, model)
    except DataError as error:
        return str(error)
    return None


def _partition_facts(sentences: Sentences, scan: _Scan, model: ModelConfig) -> dict[str, Any]:
    labels, counts = np.unique(sentences.labels_L, return_counts=True)
    classes = dict(zip(labels.tolist(), counts.tolist(), strict=True))
    return {
        "sentences": len(sentences),
        "hours": float(sentences.lengths_S.sum() * BIN_SECONDS / 3600),
        "bins": _spread(sentences.lengths_S),
        "channels": sentences.features_NC.shape[1],
        "labels": {"count": len(sentences.labels_L)} | _spread(sentences.label_lengths_S),
        "classes": {str(label): count for label, count in classes.items()},
        "missing_classes": [label for label in range(1, model.classes + 1) if label not in classes],
        "too_short": int(too_short(sentences, model).sum()),
        "days": _day_facts(sentences, scan),
    }


def _scan(sentences: Sentences) -> _Scan:
    n_features = sentences.features_NC.shape[1]
    low_DC = np.full((sentences.n_days, n_features), np.inf, dtype=np.float32)
    high_DC = -low_DC
    digests: Counter[bytes] = Counter()
    ends_S = np.cumsum(sentences.lengths_S)
    for day, end, bins in zip(sentences.days_S, ends_S, sentences.lengths_S, strict=True):
        x_TC = sentences.features_NC[end - bins : end]
        if bins:
            low_DC[day] = np.minimum(low_DC[day], x_TC.min(axis=0))
            high_DC[day] = np.maximum(high_DC[day], x_TC.max(axis=0))
        digests[features_digest(x_TC)] += 1
    return _Scan(low_DC, high_DC, digests)


def _day_facts(sentences: Sentences, scan: _Scan) -> list[dict[str, Any]]:
    """Per day: sentences, hours, the channels that are constant and those with NaN or inf."""
    counts_D = np.bincount(sentences.days_S, minlength=sentences.n_days)
    bins_D = np.bincount(sentences.days_S, weights=sentences.lengths_S, minlength=sentences.n_days)
    days = []
    for day in range(sentences.n_days):
        low_C = scan.low_DC[day]
        high_C = scan.high_DC[day]
        not_finite: list[int] = []
        if bins_D[day]:
            not_finite = np.flatnonzero(~np.isfinite(low_C + high_C)).tolist()
        days.append(
            {
                "name": sentences.day_name(day),
                "sentences": int(counts_D[day]),
                "hours": float(bins_D[day] * BIN_SECONDS / 3600),
                "constant_channels": np.flatnonzero(low_C == high_C).tolist(),
                "not_finite_channels": not_finite,
            }
        )
    return days


def _label_digests(sentences: Sentences) -> Counter[bytes]:
    ends_S = np.cumsum(sentences.label_lengths_S)
    return Counter(
        sentences.labels_L[end - n : end].tobytes()
        for end, n in zip(ends_S, sentences.label_lengths_S, strict=True)
    )


def _duplicates(digests: dict[str, _Digests]) -> dict[str, int]:
    """How many sentences of train repeat the features of another one.

    For each other partition, how many of its sentences have the features of a sentence of train,
    and how many the labels.
    """
    if "train" not in digests:
        return {}
    train = digests["train"]
    duplicates = {"train": sum(count - 1 for count in train.features.values())}
    for partition, own in digests.items():
        if partition != "train":
            duplicates[f"{partition}_in_train"] = _count_shared(own.features, train.features)
            duplicates[f"{partition}_labels_in_train"] = _count_shared(own.labels, train.labels)
    return duplicates


def _count_shared(own: Counter[bytes], others: Counter[bytes]) -> int:
    return sum(count for digest, count in own.items() if digest in others)


def _spread(numbers_S: NDArray[np.int64]) -> dict[str, float]:
    return {
        "min": int(numbers_S.min()),
        "mean": round(float(numbers_S.mean()), 1),
        "max": int(numbers_S.max()),
    }
