"""The built-in decoder as a search sees it: its data ready for one device, and a training of it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch

from hpo.data.formats import read_sentences
from hpo.data.sentences import Partition, Sentences
from hpo.decoder.config import DecoderConfig
from hpo.decoder.data import Data, check, check_days, share_too_short, split
from hpo.decoder.train import TrainState, Updates, evaluate, train
from hpo.trainer import DataRequest, Progress, Score


@dataclass(frozen=True)
class Recordings:
    """One partition on a device, and what is known of it. The features are in `data` alone."""

    data: Data
    fingerprint: str
    _sentences: Sentences
    """Without features."""

    @cached_property
    def facts(self) -> Mapping[str, Any]:
        return {"n_features": self.data.n_features, "n_days": self.data.n_days}

    def describe(self, config: DecoderConfig) -> list[str]:
        """Raises DataError if a sentence is too short for the kernel, or has a label that is no class."""
        data = self.data
        check(self._sentences, config.model)
        lines = [
            f"{len(data.train)} sentences train, {len(data.validation)} validate; {data.n_days} days, {data.n_features} features"
        ]
        short = share_too_short(self._sentences, config.model)
        if short:
            lines.append(
                f"{100 * short:.1f} % of the sentences have more labels than output frames: CTC learns nothing there"
            )
        return lines


def load_recordings(request: DataRequest) -> Recordings:
    """The training partition with a validation part cut from it, or another one that is only scored.

    Of the training partition the test partition is not looked at. Raises DataError.
    """
    sentences = read_sentences(request.path, cast(Partition, request.partition))
    if request.partition == "train":
        check_days(sentences)
        check(sentences, request.config.model)  # type: ignore[attr-defined]
        trained, scored = split(sentences, request.fraction, request.seed)
    else:
        check(sentences, request.config.model)  # type: ignore[attr-defined]
        trained, scored = np.empty(0, dtype=np.int64), np.arange(len(sentences))
    data = Data(sentences, trained, scored, torch.device(request.device))
    nothing = np.empty((0, data.n_features), dtype=np.float32)
    return Recordings(data, sentences.fingerprint(), replace(sentences, features_NC=nothing))


class GruTraining:
    """A training of the decoder. `state` holds all that changes."""

    def __init__(self, config: DecoderConfig, recordings: Recordings):
        self.state = TrainState(config, recordings.data)
        self._data = recordings.data

    @property
    def step(self) -> int:
        return self.state.step

    def train(self) -> Iterator[Progress]:
        since: list[Updates] = []
        for updates in train(self.state, self._data):
            since.append(updates)
            yield _progress(updates, since)
            if updates.score is not None:
                since = []

    def evaluate(self, data: Recordings) -> Score:
        return evaluate(self.state.scored, data.data, self.state.config.precision)[0]

    def state_dict(self) -> dict[str, Any]:
        return self.state.state_dict()

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        if (
            saved.keys() != self.state.state_dict().keys()
            or saved["config"] != self.state.config.model_dump()
        ):
            raise ValueError("of another configuration, or of another version of hpo")
        self.state.load_state_dict(saved)


def _progress(updates: Updates, since: list[Updates]) -> Progress:
    """since: all updates after the evaluation before, these included."""
    diverged = ""
    if not updates.finite:
        diverged = f"training loss {updates.loss:.3g}, gradient norm {updates.grad_norm:.3g}"
    steps = sum(part.steps for part in since)
    metrics = {
        "lr": updates.lr,
        "grad_norm": max(part.grad_norm for part in since),
        "step_seconds": sum(part.seconds * part.steps for part in since) / steps,
    }
    return Progress(
        updates.step, updates.loss, metrics, updates.score, updates.validation_loss, diverged
    )
