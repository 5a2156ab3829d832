"""Small data sets."""

from pathlib import Path
from typing import Any

import numpy as np

from hpo.decoder.training import Recordings, load_recordings
from hpo.space.spec import StudySpec
from hpo.trainer import DataRequest


def recordings(
    path: Path | None, spec: StudySpec, fraction: float = 0.2, partition: str = "train"
) -> Recordings:
    """As a worker has them, with `fraction` of the sentences for validation."""
    return load_recordings(DataRequest(path, spec.config(), "cpu", fraction, 0, partition))


def tiny_contents(sentences: int = 12, days: int = 2, features: int = 3) -> dict[str, Any]:
    """A ptDecoder_ctc dict of noise in which a bin's mean tells its phoneme (1..5)."""
    generator = np.random.default_rng(0)

    def day() -> dict[str, Any]:
        columns: dict[str, Any] = {
            "sentenceDat": [],
            "phonemes": [],
            "phoneLens": [],
            "transcriptions": [],
        }
        for _ in range(sentences):
            labels = generator.integers(1, 6, size=generator.integers(2, 5))
            bins = np.repeat(labels, 8)[:, None] + generator.normal(
                size=(8 * len(labels), features)
            )
            columns["sentenceDat"].append((bins - 3).astype(np.float32))
            columns["phonemes"].append(np.pad(labels, (0, 20 - len(labels))).astype(np.int32))
            columns["phoneLens"].append(len(labels))
            columns["transcriptions"].append("?")
        columns["phoneLens"] = np.array(columns["phoneLens"])
        return columns

    return {
        "train": [day() for _ in range(days)],
        "test": [day() for _ in range(days)],
        "competition": [],
    }
