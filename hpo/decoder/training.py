"""The built-in decoder as a search sees it: its data, ready on one device, and a training of it."""

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
    """One partition on a device, with its fingerprint. Only `data` holds the features."""

    data: Data
    fingerprint: str
    # Without features.
    _sentences: Sentences

    @cached_property
    def facts(self) -> Mapping[str, Any]:
        return {"n_features": self.data.n_features, "n_days": self.data.n_days}

    def describe(self, config: DecoderConfig) -> list[str]:
        """Lines for people about these data.

        Raises DataError if a sentence is shorter than the kernel or has a label that is no class.
        """
        data = self.data
        check(self._sentences, config.model)
        lines = [
            f"{len(data.train):,} training and {len(data.validation):,} validation sentences; "
            f"{data.n_days} days, {data.n_features} features"
        ]
        short = share_too_short(self._sentences, config.model)
        if short:
            lines.append(
                f"{100 * short:.1f} % of the sentences have more labels than output frames: "
                f"CTC learns nothing from them"
            )
        return lines


def load_recordings(request: DataRequest) -> Recordings:
    """Load the training partition, with a validation part cut from it, or one that is only scored.

    Loading the training partition does not read the test partition. Raises DataError.
    """
    sentences = read_sentences(request.path, cast(Partition, request.partition))
    model = cast(DecoderConfig, request.config).model
    if request.partition == "train":
        check_days(sentences)
        check(sentences, model)
        trained, scored = split(sentences, request.fraction, request.seed)
    else:
        check(sentences, model)
        trained = np.empty(0, dtype=np.int64)
        scored = np.arange(len(sentences))
    data = Data(sentences, trained, scored, torch.device(request.device))
    no_features = np.empty((0, data.n_features), dtype=np.float32)
    return Recordings(data, sentences.fingerprint(), replace(sentences, features_NC=no_features))


class GruTraining:
    """A training of the decoder. `state` holds everything that changes."""

    def __init__(self, config: DecoderConfig, recordings: Recordings):
        self.state = TrainState(config, recordings.data)
        self._data = recordings.data

    @property
    def step(self) -> int:
        return self.state.step

    def train(self) -> Iterator[Progress]:
        since_evaluation: list[Updates] = []
        for updates in train(self.state, self._data):
            since_evaluation.append(updates)
            yield _progress(since_evaluation)
            if updates.score is not None:
                since_evaluation = []

    def evaluate(self, data: Recordings) -> Score:
        score, _ = evaluate(self.state.scored, data.data, self.state.config.precision)
        return score

    def state_dict(self) -> dict[str, Any]:
        return self.state.state_dict()

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        same_keys = saved.keys() == self.state.state_dict().keys()
        if not same_keys or saved["config"] != self.state.config.model_dump():
            raise ValueError("saved with another configuration or by another version of hpo")
        self.state.load_state_dict(saved)


def _progress(since_evaluation: list[Updates]) -> Progress:
    """The progress after the last of these updates, which all came after the last evaluation."""
    last = since_evaluation[-1]
    diverged = ""
    if not last.finite:
        diverged = f"training loss {last.loss:.3g}, gradient norm {last.grad_norm:.3g}"
    steps = sum(updates.steps for updates in since_evaluation)
    seconds = sum(updates.seconds * updates.steps for updates in since_evaluation)
    metrics = {
        "lr": last.lr,
        "grad_norm": max(updates.grad_norm for updates in since_evaluation),
        "step_seconds": seconds / steps,
    }
    return Progress(
        step=last.step,
        loss=last.loss,
        metrics=metrics,
        score=last.score,
        validation_loss=last.validation_loss,
        diverged=diverged,
    )
