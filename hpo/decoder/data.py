"""Sentences made ready for training: checked, split into training and validation, on a device, in batches.

Shape suffixes: B sentences of a batch, T bins, C features, L labels, S sentences of the partition.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from hpo.data.formats import read_sentences
from hpo.data.sentences import Partition, Sentences
from hpo.decoder.config import ModelConfig
from hpo.errors import DataError

Lengths = TypeVar("Lengths", NDArray[np.int64], torch.Tensor)
GPU_SHARE = 0.5  # the features live on the GPU if they take at most this part of its free memory


@dataclass(frozen=True)
class Batch:
    x_BTC: torch.Tensor  # zeros behind each sentence's end
    lengths_B: torch.Tensor  # bins, on the CPU: packing wants it there
    labels_L: torch.Tensor  # concatenated
    label_lengths_B: torch.Tensor  # on the CPU
    days_B: torch.Tensor


class Data:
    """One partition on a device, with the sentences that train and those that score.

    `train` and `validation` are sentence numbers. With `read_for_scoring`, all sentences score and none train.
    """

    def __init__(
        self,
        sentences: Sentences,
        train: NDArray[np.int64],
        validation: NDArray[np.int64],
        device: torch.device,
    ):
        self.device = device
        self.n_days = sentences.n_days
        self.n_features = sentences.features_NC.shape[1]
        self.train = torch.from_numpy(train)
        self.validation = validation
        self.lengths_S = torch.from_numpy(sentences.lengths_S)
        with (
            warnings.catch_warnings()
        ):  # a store is mapped read-only, so that workers share its pages; nothing here writes
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            self._features_NC = torch.from_numpy(sentences.features_NC)
        if (
            device.type == "cuda"
            and self._features_NC.nbytes <= GPU_SHARE * torch.cuda.mem_get_info(device)[0]
        ):
            self._features_NC = self._features_NC.to(device)
        self._starts_S = torch.from_numpy(np.cumsum(sentences.lengths_S) - sentences.lengths_S)
        self._label_lengths_S = torch.from_numpy(sentences.label_lengths_S)
        self._labels_S = torch.split(
            torch.from_numpy(sentences.labels_L), sentences.label_lengths_S.tolist()
        )
        self._days_S = torch.from_numpy(sentences.days_S)

    def batch(self, numbers_B: torch.Tensor) -> Batch:
        """Gather sentences by number. Padding is zero. Nothing here waits for the GPU."""
        lengths_B = self.lengths_S[numbers_B]
        bins = int(lengths_B.max())
        home = self._features_NC.device
        starts_B, ends_B = (
            _sent(numbers, home) for numbers in (self._starts_S[numbers_B], lengths_B)
        )
        bins_T = torch.arange(bins, device=home)
        inside_BT = bins_T < ends_B[:, None]
        x_BTC = (
            self._features_NC[torch.where(inside_BT, starts_B[:, None] + bins_T, 0)]
            * inside_BT[..., None]
        )
        return Batch(
            x_BTC=_sent(x_BTC, self.device),
            lengths_B=lengths_B,
            labels_L=_sent(
                torch.cat([self._labels_S[number] for number in numbers_B.tolist()]), self.device
            ),
            label_lengths_B=self._label_lengths_S[numbers_B],
            days_B=_sent(self._days_S[numbers_B], self.device),
        )

    def labels(self, number: int) -> list[int]:
        """The phonemes of a sentence."""
        return list(self._labels_S[number].tolist())


def _sent(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """To the device, without waiting for what it still has to do."""
    return tensor.to(device, non_blocking=True)


def load_data(
    path: Path | None, model: ModelConfig, fraction: float, seed: int, device: torch.device
) -> tuple[Data, Sentences]:
    """The training partition, with a validation part cut from it. The test partition is not looked at.

    fraction, seed: of the cut, see `split`. Raises DataError. Returns the raw sentences too, for their fingerprint.
    """
    sentences = read_sentences(path, "train")
    check_days(sentences)
    check(sentences, model)
    train, validation = split(sentences, fraction, seed)
    return Data(sentences, train, validation, device), sentences


def load_for_scoring(
    path: Path | None, partition: Partition, model: ModelConfig, device: torch.device
) -> Data:
    """A partition of which every sentence is scored and none trains."""
    sentences = read_sentences(path, partition)
    check(sentences, model)
    return Data(sentences, np.empty(0, dtype=np.int64), np.arange(len(sentences)), device)


def split(
    sentences: Sentences, fraction: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Cut `fraction` of each day's sentences off, at random but the same for one seed. Returns (train, validation)."""
    generator = np.random.default_rng(seed)
    train: list[int] = []
    validation: list[int] = []
    for day in range(sentences.n_days):
        order = generator.permutation(np.flatnonzero(sentences.days_S == day))
        count = min(max(1, round(fraction * len(order))), len(order) - 1)
        validation += order[:count].tolist()
        train += order[count:].tolist()
    if not validation:
        raise DataError(
            f"{sentences.source}: one sentence a day leaves none to validate on. Needed: 2 in at least one day"
        )
    return np.sort(np.array(train, dtype=np.int64)), np.sort(np.array(validation, dtype=np.int64))


def check_days(sentences: Sentences) -> None:
    """Raises DataError if a day has no sentences. Asked of what trains only: a partition that is scored may lack days."""
    days = np.bincount(sentences.days_S, minlength=sentences.n_days)
    if not days.all():
        raise DataError(f"{sentences.source}: {sentences.day_name(int(days.argmin()))} has no sentences, so its input layer would never "
                        f"be trained. Remove the day or add its sentences")  # fmt: skip


def check(sentences: Sentences, model: ModelConfig) -> None:
    """Raises DataError for what cannot be trained on or scored: the first sentence at fault, and how many there are."""
    short = np.flatnonzero(sentences.lengths_S < model.kernel)
    if len(short):
        raise DataError(f"{sentences.name_of(short[0])} has {sentences.lengths_S[short[0]]} bins, fewer than model.kernel "
                        f"{model.kernel} ({len(short)} such). Remove them or take a kernel that fits")  # fmt: skip
    owner_L = np.repeat(np.arange(len(sentences)), sentences.label_lengths_S)
    outside = np.flatnonzero((sentences.labels_L < 1) | (sentences.labels_L > model.classes))
    if len(outside):
        raise DataError(f"{sentences.name_of(owner_L[outside[0]])} has label {sentences.labels_L[outside[0]]} ({len(outside)} such). "
                        f"Valid: 1..{model.classes} (model.classes; 0 is the CTC blank)")  # fmt: skip
    if not len(sentences.labels_L):
        raise DataError(
            f"{sentences.source}: no labels at all, so there is nothing to learn or score"
        )
    if sentences.stored_fingerprint:
        return  # a store holds finite features only; looking at them would read all of it
    finite_N = np.isfinite(sentences.features_NC).all(axis=1)
    if not finite_N.all():
        owner = np.searchsorted(
            np.cumsum(sentences.lengths_S), np.flatnonzero(~finite_N)[0], side="right"
        )
        raise DataError(
            f"{sentences.name_of(int(owner))} has NaN or infinite features. Valid: finite numbers"
        )


def too_short(sentences: Sentences, model: ModelConfig) -> NDArray[np.bool_]:
    """Of each sentence, whether CTC cannot align it: it needs a frame a label, and a blank between equal neighbours."""
    owner_L = np.repeat(np.arange(len(sentences)), sentences.label_lengths_S)
    repeats = (sentences.labels_L[1:] == sentences.labels_L[:-1]) & (owner_L[1:] == owner_L[:-1])
    needed_S = sentences.label_lengths_S + np.bincount(
        owner_L[1:][repeats], minlength=len(sentences)
    )
    return frames(sentences.lengths_S, model) < needed_S


def share_too_short(sentences: Sentences, model: ModelConfig) -> float:
    """The part of the sentences that are `too_short`: their loss counts as 0."""
    return float(too_short(sentences, model).mean())


def frames(lengths: Lengths, model: ModelConfig) -> Lengths:
    """T_eff = int((T - kernel) / stride), the scored output frames of a sentence of T bins, as in neural_seq_decoder.

    One fewer than the windows that fit. A lab's variant floors with `//`: the same for every T >= kernel.
    """
    return (lengths - model.kernel) // model.stride


def by_length(
    numbers: Sequence[int] | NDArray[np.int64] | torch.Tensor, lengths_S: torch.Tensor, size: int
) -> list[torch.Tensor]:
    """Batches of at most `size` sentence numbers of similar length, so that little is padded."""
    numbers_S = torch.as_tensor(np.asarray(numbers))
    return list(torch.split(numbers_S[lengths_S[numbers_S].argsort(stable=True)], size))
