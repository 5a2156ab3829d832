"""What a data set holds and what is wrong with it, as plain values for `hpo data check`.

Goes through the features a sentence at a time, so that a store larger than memory can be looked at too.
"""

import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpo.data.formats import open_source
from hpo.data.sentences import Sentences
from hpo.decoder.config import ModelConfig
from hpo.decoder.data import check, check_days, split, too_short
from hpo.errors import DataError

BIN_SECONDS = 0.02
SPLIT = 0.1, 0  # the share and seed of validation that spaces have by default: can each day be cut?


def data_facts(path: Path | None, model: ModelConfig) -> dict[str, Any]:
    """Facts of all partitions, in JSON's types. Raises DataError if the data set cannot be opened at all.

    `fault` is why it cannot be trained on, as one line, or None; a partition's `fault` the same for that partition.
    """
    source = open_source(path)
    facts: dict[str, Any] = {
        "path": str(path) if path else None,
        "source": source.name,
        "n_days": source.n_days,
        "channels": None,
        "kernel": model.kernel,
        "stride": model.stride,
        "partitions": {},
        "absent": dict(source.absent),
        "guessed_words": {},
        "duplicates": {},
        "fault": None,
    }
    seen: dict[str, tuple[Counter[bytes], Counter[bytes]]] = {}
    for partition in source.partitions:
        try:
            sentences = source.sentences(partition)
        except DataError as error:
            facts["partitions"][partition] = {"fault": str(error)}
            continue
        part, features = _partition(sentences, model)
        part["fault"] = _fault(sentences, model, partition == "train")
        facts["channels"] = facts["channels"] or part["channels"]  # train comes first
        if part["channels"] != facts["channels"]:
            part["fault"] = (
                f"{sentences.source}: {part['channels']} features, but train has {facts['channels']}. Valid: as many as train"
            )
        facts["partitions"][partition] = part
        facts["guessed_words"] = dict(Counter(facts["guessed_words"]) + Counter(sentences.guessed))
        seen[partition] = features, _label_digests(sentences)
    facts["fault"] = facts["partitions"]["train"]["fault"]
    facts["duplicates"] = _duplicates(seen)
    return facts


def _fault(sentences: Sentences, model: ModelConfig, trains: bool) -> str | None:
    try:
        if trains:
            check_days(sentences)
            split(sentences, *SPLIT)
        check(sentences, model)
    except DataError as error:
        return str(error)
    return None


def _partition(sentences: Sentences, model: ModelConfig) -> tuple[dict[str, Any], Counter[bytes]]:
    """(facts of one partition, digests of its sentences' features)."""
    lengths_S, label_lengths_S = sentences.lengths_S, sentences.label_lengths_S
    days, features = _days(sentences)
    classes = {
        int(label): int(count)
        for label, count in zip(*np.unique(sentences.labels_L, return_counts=True), strict=True)
    }
    return {
        "sentences": len(sentences),
        "hours": float(lengths_S.sum() * BIN_SECONDS / 3600),
        "bins": _spread(lengths_S),
        "channels": sentences.features_NC.shape[1],
        "labels": {"count": len(sentences.labels_L)} | _spread(label_lengths_S),
        "classes": {str(label): count for label, count in classes.items()},
        "missing_classes": [label for label in range(1, model.classes + 1) if label not in classes],
        "too_short": int(too_short(sentences, model).sum()),
        "days": days,
    }, features


def _days(sentences: Sentences) -> tuple[list[dict[str, Any]], Counter[bytes]]:
    """Per day: sentences, hours, the channels that are constant there and those with NaN or inf."""
    n_features = sentences.features_NC.shape[1]
    low_DC = np.full((sentences.n_days, n_features), np.inf, dtype=np.float32)
    high_DC = -low_DC
    features: Counter[bytes] = Counter()
    ends_S = np.cumsum(sentences.lengths_S)
    for day, end, bins in zip(sentences.days_S, ends_S, sentences.lengths_S, strict=True):
        x_TC = sentences.features_NC[end - bins : end]
        if bins:  # min and max pass NaN on
            low_DC[day] = np.minimum(low_DC[day], x_TC.min(axis=0))
            high_DC[day] = np.maximum(high_DC[day], x_TC.max(axis=0))
        features[hashlib.blake2b(np.ascontiguousarray(x_TC).data, digest_size=16).digest()] += 1
    counts_D = np.bincount(sentences.days_S, minlength=sentences.n_days)
    bins_D = np.bincount(sentences.days_S, weights=sentences.lengths_S, minlength=sentences.n_days)
    return [
        {
            "name": sentences.day_name(day),
            "sentences": int(counts_D[day]),
            "hours": float(bins_D[day] * BIN_SECONDS / 3600),
            "constant_channels": np.flatnonzero(low_DC[day] == high_DC[day]).tolist(),
            "not_finite_channels": np.flatnonzero(~np.isfinite(low_DC[day] + high_DC[day])).tolist()
            if bins_D[day]
            else [],
        }
        for day in range(sentences.n_days)
    ], features


def _label_digests(sentences: Sentences) -> Counter[bytes]:
    ends_S = np.cumsum(sentences.label_lengths_S)
    return Counter(
        sentences.labels_L[end - n : end].tobytes()
        for end, n in zip(ends_S, sentences.label_lengths_S, strict=True)
    )


def _duplicates(seen: dict[str, tuple[Counter[bytes], Counter[bytes]]]) -> dict[str, int]:
    """Sentences of train whose features are there more than once; of the others, those that train has too."""
    if "train" not in seen:
        return {}
    features, labels = seen["train"]
    found = {"train": sum(count - 1 for count in features.values())}
    for partition, (own_features, own_labels) in seen.items():
        if partition != "train":
            found[f"{partition}_in_train"] = sum(
                count for digest, count in own_features.items() if digest in features
            )
            found[f"{partition}_labels_in_train"] = sum(
                count for digest, count in own_labels.items() if digest in labels
            )
    return found


def _spread(numbers_S: NDArray[np.int64]) -> dict[str, float]:
    return {
        "min": int(numbers_S.min()),
        "mean": round(float(numbers_S.mean()), 1),
        "max": int(numbers_S.max()),
    }
