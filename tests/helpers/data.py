"""Small data sets, and readers of data that expect to succeed or to be refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.decoders import CPU
from hpo.decoder.config import ModelConfig
from hpo.decoder.data import load_data
from hpo.decoder.training import Recordings, load_recordings
from hpo.errors import DataError
from hpo.space.spec import StudySpec
from hpo.trainer import DataRequest

SMALL_MODEL = ModelConfig(layers=1, units=8, kernel=4, stride=2)


def load(path: Path) -> None:
    """Read data as a training of a small model does."""
    load_data(path, SMALL_MODEL, 0.2, 0, CPU)


def assert_refused(path: Path, message: str) -> None:
    """Assert that these data cannot be trained on, for a reason of one line that matches."""
    with pytest.raises(DataError, match=message) as caught:
        load(path)
    assert "\n" not in str(caught.value)


def recordings(
    path: Path | None, spec: StudySpec, fraction: float = 0.2, partition: str = "train"
) -> Recordings:
    """The data as a worker loads them, with `fraction` of the sentences for validation."""
    return load_recordings(DataRequest(path, spec.config(), "cpu", fraction, 0, partition))


def tiny_contents(sentences: int = 12, days: int = 2, features: int = 3) -> dict[str, Any]:
    """A ptDecoder_ctc dict of noise in which the mean of a bin is its phoneme (1..5)."""
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
            noise = generator.normal(size=(8 * len(labels), features))
            bins = np.repeat(labels, 8)[:, None] + noise
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
