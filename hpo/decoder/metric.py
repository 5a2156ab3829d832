"""The parts of the phoneme error rate: greedy CTC decoding and edit distance."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rapidfuzz.distance import Levenshtein
from rapidfuzz.process import cpdist

# Commands that only read a study should not wait for torch.
if TYPE_CHECKING:
    import torch

BLANK = 0


def greedy_decode(logits_BWK: "torch.Tensor", frames_B: "torch.Tensor") -> list[list[int]]:
    """The best class of each frame, repeats merged and blanks dropped.

    logits_BWK: sentences x frames x (classes + blank). frames_B: how many frames of each sentence
    are decoded. Decodes on the device of the logits; only the labels leave it.
    """
    path_BW = logits_BWK.argmax(dim=-1)
    frame_BW = path_BW.new_ones(path_BW.shape).cumsum(dim=1)
    kept_BW = path_BW != BLANK
    kept_BW[:, 1:] &= path_BW[:, 1:] != path_BW[:, :-1]
    kept_BW &= frame_BW <= frames_B.to(path_BW.device)[:, None]
    labels = path_BW[kept_BW].tolist()
    ends = kept_BW.sum(dim=1).cumsum(dim=0).tolist()
    decoded = []
    begin = 0
    for end in ends:
        decoded.append(labels[begin:end])
        begin = end
    return decoded


def edit_distances(
    references: Sequence[Sequence[int]], decoded: Sequence[Sequence[int]]
) -> list[int]:
    """Levenshtein distance of each pair: insertions, deletions and substitutions count 1 each."""
    return [int(distance) for distance in cpdist(references, decoded, scorer=Levenshtein.distance)]
