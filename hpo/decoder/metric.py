"""Phoneme error rate: greedy CTC decoding and edit distance, kept per sentence so that intervals can be computed later."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from rapidfuzz.distance import Levenshtein

if TYPE_CHECKING:  # commands that only read a study should not wait for torch
    import torch

BLANK = 0


@dataclass(frozen=True)
class Score:
    """Edit errors and reference lengths, one entry per sentence, in the order of the partition."""

    errors: tuple[int, ...]
    lengths: tuple[int, ...]  # labels

    @property
    def per(self) -> float:
        """Total edit distance / total reference length (a ratio of sums, as in neural_seq_decoder)."""
        return sum(self.errors) / sum(self.lengths)


def greedy_decode(logits_BWK: "torch.Tensor", frames_B: "torch.Tensor") -> list[list[int]]:
    """The best class of each frame, repeats merged, blanks dropped; of sentence b the first frames_B[b] frames count.

    logits_BWK: sentences x frames x (classes + blank).
    """
    paths = zip(logits_BWK.argmax(dim=-1).tolist(), frames_B.tolist(), strict=True)
    return [[label for label, _ in groupby(path[:count]) if label != BLANK] for path, count in paths]


def edit_distance(reference: Sequence[int], decoded: Sequence[int]) -> int:
    """Levenshtein distance: insertions, deletions and substitutions count 1 each."""
    return int(Levenshtein.distance(reference, decoded))
