"""The GRU decoder of neural_seq_decoder: features to CTC logits.

Shape suffixes: B sentences, T bins, C features, W windows (GRU inputs), H hidden, K classes + blank.

Departures from the reference, all of them:
- Sentences are packed, so that the backward GRU starts at a sentence's own end; the reference lets it read padding, and
  its scores move with the batch (.0886 at batch size 1, .0875 at 240, on the spoken digits).
- Padding is zero when smoothing (the reference has noise there), which equals a sentence smoothed alone.
- smoothing_width 0 means no smoothing (the reference raises).
- The unused per-day `inpLayer` of the reference is not there.
"""

import torch
from torch import nn
from torch.nn.functional import conv1d, pad, softsign
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from hpo.decoder.config import ModelConfig
from hpo.decoder.data import frames


class GruDecoder(nn.Module):
    """Smoothing, a linear layer per day, softsign, (LayerNorm,) windows, GRU, linear.

    Initialised as the reference: day layers to the identity, GRU recurrent weights orthogonal, GRU input weights
    Xavier-uniform, the rest PyTorch's defaults.
    """

    smoothing_K: torch.Tensor

    def __init__(self, config: ModelConfig, n_days: int, n_features: int):
        super().__init__()
        self.config = config
        self.register_buffer("smoothing_K", gaussian_kernel(config.smoothing_kernel, config.smoothing_width))
        self.day_weights = nn.Parameter(torch.eye(n_features).repeat(n_days, 1, 1))
        self.day_bias = nn.Parameter(torch.zeros(n_days, 1, n_features))
        self.layer_norm = nn.LayerNorm(n_features) if config.layer_norm else nn.Identity()
        self.input_dropout = nn.Dropout(config.input_dropout)
        self.gru = nn.GRU(
            n_features * config.kernel,
            config.units,
            config.layers,
            batch_first=True,
            dropout=config.dropout if config.layers > 1 else 0.0,
            bidirectional=config.bidirectional,
        )
        for name, weight in self.gru.named_parameters():
            if "weight_hh" in name:
                nn.init.orthogonal_(weight)
            if "weight_ih" in name:
                nn.init.xavier_uniform_(weight)
        self.output = nn.Linear(config.units * (2 if config.bidirectional else 1), config.classes + 1)

    def forward(self, x_BTC: torch.Tensor, lengths_B: torch.Tensor, days_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """x_BTC: zero behind each sentence's end. lengths_B: bins, on the CPU, each >= kernel. days_B: day numbers.

        Returns (logits_BWK, frames_B): of sentence b the first frames_B[b] windows count; frames_B is on the CPU.
        """
        config = self.config
        x_BTC = smooth(x_BTC, self.smoothing_K) if config.smoothing_width > 0 else x_BTC
        x_BTC = softsign(torch.baddbmm(self.day_bias[days_B], x_BTC, self.day_weights[days_B]))
        x_BTC = self.input_dropout(self.layer_norm(x_BTC))
        x_BWI = x_BTC.unfold(1, config.kernel, config.stride).flatten(start_dim=2)  # I: feature-major, as in nn.Unfold
        frames_B = frames(lengths_B, config)
        packed = pack_padded_sequence(x_BWI, frames_B + 1, batch_first=True, enforce_sorted=False)
        hidden, _ = self.gru(packed)
        logits = PackedSequence(self.output(hidden.data), hidden.batch_sizes, hidden.sorted_indices, hidden.unsorted_indices)
        logits_BWK, _ = pad_packed_sequence(logits, batch_first=True)
        return logits_BWK, frames_B


def gaussian_kernel(size: int, width: float) -> torch.Tensor:
    """`size` taps of a Gaussian of standard deviation `width` bins, summing to 1; for width 0 a placeholder of zeros."""
    if width == 0:
        return torch.zeros(size)
    taps_K = torch.exp(-0.5 * ((torch.arange(size) - (size - 1) / 2) / width) ** 2)
    return taps_K / taps_K.sum()


def smooth(x_BTC: torch.Tensor, kernel_K: torch.Tensor) -> torch.Tensor:
    """Convolve each feature over time; same length, zeros beyond the ends, an even kernel's extra tap on the right."""
    batch, bins, features = x_BTC.shape
    size = len(kernel_K)
    x_NT = pad(x_BTC.transpose(1, 2).reshape(batch * features, 1, bins), ((size - 1) // 2, size // 2))
    return conv1d(x_NT, kernel_K[None, None]).reshape(batch, features, bins).transpose(1, 2)
