"""Ensembles: several decoders as one, and the choice of their members.

The frame probabilities of the members are averaged and decoded greedily. The log-probabilities of
every decoder are kept in memory: 30 MB for 880 sentences of 200 frames.

Shape suffixes: B sentences of a batch, W frames of a sentence, N frames of all sentences of a
partition, K classes + blank, S sentences. N is the same for all decoders of one kernel and stride.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch.nn.utils.rnn import pad_sequence

from hpo.decoder.artifact import Decoder, load_decoder
from hpo.decoder.config import ModelConfig
from hpo.decoder.data import Data, frames
from hpo.decoder.metric import edit_distances, greedy_decode
from hpo.decoder.scoring import check_fit
from hpo.decoder.train import SCORING_BATCH, outputs, set_precision
from hpo.decoder.training import Recordings
from hpo.trainer import Score

Mean = Literal["geometric", "arithmetic"]


@dataclass(frozen=True)
class Outputs:
    """The outputs of numbered decoders, all of one kernel and stride, on one partition."""

    data: Data
    # The model settings of one of them: the frames of all are the same.
    model: ModelConfig
    # By number; on the CPU, with the sentences in the order of data.validation.
    log_probs_NK: Mapping[int, torch.Tensor]


def frame_log_probs(decoder: Decoder, data: Data) -> tuple[torch.Tensor, float]:
    """The decoder's log_probs_NK of `data.validation`, and the seconds that they took."""
    set_precision(decoder.config)
    model = decoder.model.to(data.device)
    begin = time.perf_counter()
    by_sentence: dict[int, torch.Tensor] = {}
    for numbers_B, _, logits_BWK, frames_B in outputs(model, data, decoder.config.precision):
        log_probs_BWK = logits_BWK.float().log_softmax(dim=2).cpu()
        for position, number in enumerate(numbers_B.tolist()):
            by_sentence[number] = log_probs_BWK[position, : frames_B[position]]
    log_probs_NK = torch.cat([by_sentence[number] for number in data.validation.tolist()])
    return log_probs_NK, time.perf_counter() - begin


def outputs_of(
    recordings: Recordings, paths: Mapping[int, Path]
) -> tuple[Outputs, dict[int, tuple[float, int]]]:
    """The outputs of decoders on the data, and the cost of each: (seconds, parameters).

    paths: files of weights, by number; at least one. Only one model is in memory at a time. Raises
    DataError if a decoder was trained on data of another shape.
    """
    data = recordings.data
    log_probs: dict[int, torch.Tensor] = {}
    costs: dict[int, tuple[float, int]] = {}
    for number, path in paths.items():
        decoder = load_decoder(path)
        check_fit(decoder, data.n_features, data.n_days)
        log_probs[number], seconds = frame_log_probs(decoder, data)
        n_parameters = sum(weight.numel() for weight in decoder.model.parameters())
        costs[number] = (seconds, n_parameters)
    return Outputs(data, decoder.config.model, log_probs), costs


def select(outputs: Outputs, mean: Mean, max_size: int) -> list[int]:
    """The numbers of the members in the order in which they are selected, the best decoder first.

    Greedy forward selection with replacement: each step adds the decoder that gives the ensemble
    the lowest PER, the first of equals. Continues to `max_size` even if the PER rises; the caller
    picks a size. Caruana et al. 2004, "Ensemble selection from libraries of models".
    """
    members: list[int] = []
    sum_NK: torch.Tensor | float = 0.0
    for _ in range(max_size):
        pers = {
            number: _score(sum_NK + _term(log_probs_NK, mean), outputs).value
            for number, log_probs_NK in outputs.log_probs_NK.items()
        }
        best = min(pers, key=lambda number: pers[number])
        members.append(best)
        sum_NK = sum_NK + _term(outputs.log_probs_NK[best], mean)
    return members


def scores_along(members: Sequence[int], outputs: Outputs, mean: Mean) -> list[Score]:
    """The scores of the first member, of the mean of the first two, and so on."""
    scores = []
    sum_NK: torch.Tensor | float = 0.0
    for number in members:
        sum_NK = sum_NK + _term(outputs.log_probs_NK[number], mean)
        scores.append(_score(sum_NK, outputs))
    return scores


def _term(log_probs_NK: torch.Tensor, mean: Mean) -> torch.Tensor:
    """A member's term in the sum that is decoded.

    Greedy decoding takes each frame's largest value. It would not change if the sum were divided
    by the number of members, or if the geometric mean were normalised over the classes.
    """
    return log_probs_NK.exp() if mean == "arithmetic" else log_probs_NK


def _score(sum_NK: torch.Tensor, outputs: Outputs) -> Score:
    data = outputs.data
    frames_S = frames(data.lengths_S[data.validation], outputs.model)
    sentences = torch.split(sum_NK, frames_S.tolist())
    decoded: list[list[int]] = []
    for begin in range(0, len(sentences), SCORING_BATCH):
        batch = slice(begin, begin + SCORING_BATCH)
        sum_BWK = pad_sequence(list(sentences[batch]), batch_first=True)
        decoded += greedy_decode(sum_BWK, frames_S[batch])
    references = [data.labels(number) for number in data.validation.tolist()]
    lengths = [len(reference) for reference in references]
    return Score(tuple(edit_distances(references, decoded)), tuple(lengths))
