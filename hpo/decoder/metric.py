"""The parts of the phoneme error rate: greedy CTC decoding and edit distance."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rapidfuzz.distance import Levenshtein
from rapidfuzz.process import cpdist

if TYPE_CHECKING:  # commands that only read a study should not wait for torch
    import torch

BLANK = 0


def greedy_decode(logits_BWK: "torch.Tensor", frames_B: "torch.Tensor") -> list[list[int]]:
    """The best class of each frame, repeats merged, blanks dropped; of sentence b the first frames_B[b] frames count.

    logits_BWK: sentences x frames x (classes + blank). Decoded where the logits are; only the labels leave the device.
    """
    path_BW = logits_BWK.argmax(dim=-1)
    kept_BW = path_BW != BLANK
    kept_BW[:, 1:] &= path_BW[:, 1:] != path_BW[:, :-1]
    kept_BW &= path_BW.new_ones(path_BW.shape).cumsum(dim=1) <= frames_B.to(path_BW.device)[:, None]
    labels = path_BW[kept_BW].tolist()
    ends = kept_BW.sum(dim=1).cumsum(dim=0).tolist()
    return [labels[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]


def edit_distances(
    references: Sequence[Sequence[int]], decoded: Sequence[Sequence[int]]
) -> list[int]:
    """Levenshtein distance of each pair: insertions, deletions and substitutions count 1 each."""
    return [int(distance) for distance in cpdist(references, decoded, scorer=Levenshtein.distance)]
