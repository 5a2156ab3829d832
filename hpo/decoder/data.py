"""Prepares sentences for training: checks and splits them, moves them to a device, makes batches.

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
# The features are kept on the GPU if they take at most this fraction of its free memory.
GPU_SHARE = 0.5


@dataclass(frozen=True)
class Batch:
    """Sentences on the device of the training; their lengths stay on the CPU."""

    # Zeros behind each sentence's end.
    x_BTC: torch.Tensor
    # In bins. On the CPU, where packing needs them.
    lengths_B: torch.Tensor
    # The labels of all sentences, concatenated.
    labels_L: torch.Tensor
    # On the CPU.
    label_lengths_B: torch.Tensor
    days_B: torch.Tensor


class Data:
    """One partition on a device, with the sentences that train and those that score.

    `train` and `validation` are sentence numbers. With `load_for_scoring`, all sentences score and
    none train.
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
        self._features_NC = _features_on(device, sentences.features_NC)
        self._starts_S = torch.from_numpy(np.cumsum(sentences.lengths_S) - sentences.lengths_S)
        self._label_lengths_S = torch.from_numpy(sentences.label_lengths_S)
        self._labels_S = torch.split(
            torch.from_numpy(sentences.labels_L), sentences.label_lengths_S.tolist()
        )
        self._days_S = torch.from_numpy(sentences.days_S)

    def batch(self, numbers_B: torch.Tensor) -> Batch:
        """Gather sentences by number. Padding is zero. Nothing here waits for the GPU."""
        lengths_B = self.lengths_S[numbers_B]
        labels = [self._labels_S[number] for number in numbers_B.tolist()]
        return Batch(
            x_BTC=_move(self._gather_features(numbers_B, lengths_B), self.device),
            lengths_B=lengths_B,
            labels_L=_move(torch.cat(labels), self.device),
            label_lengths_B=self._label_lengths_S[numbers_B],
            days_B=_move(self._days_S[numbers_B], self.device),
        )

    def _gather_features(self, numbers_B: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
        """x_BTC on the device where the features are kept."""
        bins = int(lengths_B.max())
        home = self._features_NC.device
        starts_B = _move(self._starts_S[numbers_B], home)
        ends_B = _move(lengths_B, home)
        bins_T = torch.arange(bins, device=home)
        inside_BT = bins_T < ends_B[:, None]
        rows_BT = torch.where(inside_BT, starts_B[:, None] + bins_T, 0)
        return self._features_NC[rows_BT] * inside_BT[..., None]

    def labels(self, number: int) -> list[int]:
        """The phonemes of a sentence."""
        return list(self._labels_S[number].tolist())


def _features_on(device: torch.device, features_NC: NDArray[np.float32]) -> torch.Tensor:
    """The features as a tensor, on the GPU if they fit there."""
    with warnings.catch_warnings():
        # A store is mapped read-only, so that workers share its pages; nothing here writes to it.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        tensor = torch.from_numpy(features_NC)
    if device.type != "cuda":
        return tensor
    free_bytes, _ = torch.cuda.mem_get_info(device)
    if tensor.nbytes > GPU_SHARE * free_bytes:
        return tensor
    return tensor.to(device)


def _move(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor on the device, without waiting for the copy."""
    return tensor.to(device, non_blocking=True)


def load_data(
    path: Path | None, model: ModelConfig, fraction: float, seed: int, device: torch.device
) -> tuple[Data, Sentences]:
    """The training partition, with a validation part cut from it, and its sentences.

    fraction, seed: see `split`. Does not read the test partition. Raises DataError.
    """
    sentences = read_sentences(path, "train")
    check_days(sentences)
    check(sentences, model)
    train, validation = split(sentences, fraction, seed)
    return Data(sentences, train, validation, device), sentences


def load_for_scoring(
    path: Path | None, partition: Partition, model: ModelConfig, device: torch.device
) -> Data:
    """A partition in which every sentence is scored and none trains. Raises DataError."""
    sentences = read_sentences(path, partition)
    check(sentences, model)
    return Data(sentences, np.empty(0, dtype=np.int64), np.arange(len(sentences)), device)


def split(
    sentences: Sentences, fraction: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Cut off `fraction` of each day's sentences at random; one seed always cuts the same ones.

    Returns (train, validation), the sentence numbers of both parts in ascending order. Raises
    DataError if no day has two sentences.
    """
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
            f"{sentences.source}: one sentence a day leaves none to validate on. "
            f"Needed: 2 in at least one day"
        )
    return np.sort(np.array(train, dtype=np.int64)), np.sort(np.array(validation, dtype=np.int64))


def check_days(sentences: Sentences) -> None:
    """Raises DataError if a day has no sentences.

    Only training needs all days; a partition that is scored may lack some.
    """
    counts_D = np.bincount(sentences.days_S, minlength=sentences.n_days)
    if not counts_D.all():
        empty = sentences.day_name(int(counts_D.argmin()))
        raise DataError(
            f"{sentences.source}: {empty} has no sentences, so its input layer would never be "
            f"trained. Remove the day or add its sentences"
        )


def check(sentences: Sentences, model: ModelConfig) -> None:
    """Raises DataError for sentences that can be neither trained on nor scored.

    The message names the first sentence at fault and says how many there are.
    """
    _check_lengths(sentences, model)
    _check_labels(sentences, model)
    # A store was checked for finite features when it was written; a check would read all of it.
    if not sentences.stored_fingerprint:
        _check_finite(sentences)


def _check_lengths(sentences: Sentences, model: ModelConfig) -> None:
    short = np.flatnonzero(sentences.lengths_S < model.kernel)
    if len(short):
        first = short[0]
        raise DataError(
            f"{sentences.name_of(first)} has {sentences.lengths_S[first]} bins, fewer than "
            f"model.kernel {model.kernel} ({len(short)} such). "
            f"Remove them or take a kernel that fits"
        )


def _check_labels(sentences: Sentences, model: ModelConfig) -> None:
    owner_L = np.repeat(np.arange(len(sentences)), sentences.label_lengths_S)
    outside = np.flatnonzero((sentences.labels_L < 1) | (sentences.labels_L > model.classes))
    if len(outside):
        first = outside[0]
        raise DataError(
            f"{sentences.name_of(owner_L[first])} has label {sentences.labels_L[first]} "
            f"({len(outside)} such). Valid: 1..{model.classes} (model.classes; 0 is the CTC blank)"
        )
    if not len(sentences.labels_L):
        raise DataError(
            f"{sentences.source}: no labels at all, so there is nothing to learn or score"
        )


def _check_finite(sentences: Sentences) -> None:
    finite_N = np.isfinite(sentences.features_NC).all(axis=1)
    if finite_N.all():
        return
    first_bin = np.flatnonzero(~finite_N)[0]
    owner = np.searchsorted(np.cumsum(sentences.lengths_S), first_bin, side="right")
    raise DataError(
        f"{sentences.name_of(int(owner))} has NaN or infinite features. Valid: finite numbers"
    )


def too_short(sentences: Sentences, model: ModelConfig) -> NDArray[np.bool_]:
    """For each sentence, whether it has too few frames for CTC to align it.

    CTC needs a frame per label, and one for a blank between equal neighbours.
    """
    owner_L = np.repeat(np.arange(len(sentences)), sentences.label_lengths_S)
    same_label = sentences.labels_L[1:] == sentences.labels_L[:-1]
    same_owner = owner_L[1:] == owner_L[:-1]
    owners_of_repeats = owner_L[1:][same_label & same_owner]
    repeats_S = np.bincount(owners_of_repeats, minlength=len(sentences))
    return frames(sentences.lengths_S, model) < sentences.label_lengths_S + repeats_S


def share_too_short(sentences: Sentences, model: ModelConfig) -> float:
    """The fraction of the sentences that are `too_short`: their loss counts as 0."""
    return float(too_short(sentences, model).mean())


def frames(lengths: Lengths, model: ModelConfig) -> Lengths:
    """The scored output frames of sentences of T bins, as in neural_seq_decoder.

    int((T - kernel) / stride), which is one fewer than the windows that fit. A lab's variant floors
    with `//`: the same for every T >= kernel.
    """
    return (lengths - model.kernel) // model.stride


def by_length(
    numbers: Sequence[int] | NDArray[np.int64] | torch.Tensor, lengths_S: torch.Tensor, size: int
) -> list[torch.Tensor]:
    """Batches of at most `size` sentence numbers of similar length, so that little is padded."""
    numbers_S = torch.as_tensor(np.asarray(numbers))
    order = lengths_S[numbers_S].argsort(stable=True)
    return list(torch.split(numbers_S[order], size))
