"""Several decoders as one: the mean of their frame probabilities, decoded greedily; which of them to take.

Shape suffixes: N frames of all sentences of a partition, K classes + blank, S sentences. N is the same for all decoders of
one kernel and stride. The log-probabilities of each are kept in memory: 30 MB for 880 sentences of 200 frames.
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
    """What decoders of one kernel and stride say of one partition, by a number of each."""

    data: Data
    model: ModelConfig  # of any of them
    log_probs_NK: Mapping[
        int, torch.Tensor
    ]  # on the CPU, sentences in the order of data.validation


def frame_log_probs(decoder: Decoder, data: Data) -> tuple[torch.Tensor, float]:
    """log_probs_NK of `data.validation`, and the seconds that they took."""
    set_precision(decoder.config)
    model = decoder.model.to(data.device)
    begin = time.perf_counter()
    found: dict[int, torch.Tensor] = {}
    for numbers_B, _, logits_BWK, frames_B in outputs(model, data, decoder.config.precision):
        log_probs_BWK = logits_BWK.float().log_softmax(dim=2).cpu()
        found |= {
            number: log_probs_BWK[b, : frames_B[b]] for b, number in enumerate(numbers_B.tolist())
        }
    return torch.cat(
        [found[number] for number in data.validation.tolist()]
    ), time.perf_counter() - begin


def outputs_of(
    recordings: Recordings, paths: Mapping[int, Path]
) -> tuple[Outputs, dict[int, tuple[float, int]]]:
    """What decoders say of the data; the seconds and the parameters of each. One model is in memory at a time.

    paths: files of weights, by number; at least one. Raises DataError if the data are not such as they were trained on.
    """
    data = recordings.data
    found, costs = {}, {}
    for number, path in paths.items():
        decoder = load_decoder(path)
        check_fit(decoder, data.n_features, data.n_days)
        found[number], seconds = frame_log_probs(decoder, data)
        costs[number] = seconds, sum(weight.numel() for weight in decoder.model.parameters())
    return Outputs(data, decoder.config.model, found), costs


def select(outputs: Outputs, mean: Mean, max_size: int) -> list[int]:
    """Decoders in the order in which a greedy forward selection with replacement adds them, the best single one first.

    Each is the one with which the mean has the lowest PER; the first of equals. Caruana et al. 2004, "Ensemble selection from
    libraries of models". It goes on to max_size even if the PER rises: the caller picks a size.
    """
    path: list[int] = []
    sum_NK: torch.Tensor | float = 0.0
    for _ in range(max_size):
        pers = {
            number: _score(sum_NK + _term(log_probs, mean), outputs).value
            for number, log_probs in outputs.log_probs_NK.items()
        }
        path.append(min(pers, key=lambda number: pers[number]))
        sum_NK = sum_NK + _term(outputs.log_probs_NK[path[-1]], mean)
    return path


def scores_along(path: Sequence[int], outputs: Outputs, mean: Mean) -> list[Score]:
    """The score of the first decoder of the path, of the mean of the first two, and so on."""
    scores = []
    sum_NK: torch.Tensor | float = 0.0
    for number in path:
        sum_NK = sum_NK + _term(outputs.log_probs_NK[number], mean)
        scores.append(_score(sum_NK, outputs))
    return scores


def _term(log_probs_NK: torch.Tensor, mean: Mean) -> torch.Tensor:
    """What is summed. Greedy decoding takes each frame's largest: dividing by the number of members, or normalising the
    geometric mean over the classes, would not change it."""
    return log_probs_NK.exp() if mean == "arithmetic" else log_probs_NK


def _score(sum_NK: torch.Tensor, outputs: Outputs) -> Score:
    data = outputs.data
    numbers = data.validation.tolist()
    frames_S = frames(data.lengths_S[data.validation], outputs.model)
    parts = torch.split(sum_NK, frames_S.tolist())
    decoded: list[list[int]] = []
    for begin in range(0, len(parts), SCORING_BATCH):
        batch = slice(begin, begin + SCORING_BATCH)
        decoded += greedy_decode(
            pad_sequence(list(parts[batch]), batch_first=True), frames_S[batch]
        )
    references = [data.labels(number) for number in numbers]
    return Score(tuple(edit_distances(references, decoded)), tuple(map(len, references)))
