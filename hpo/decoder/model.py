"""The GRU decoder of neural_seq_decoder: features to CTC logits.

Shape suffixes: B sentences, T bins, C features, W windows (GRU inputs), I inputs of a layer,
K classes + blank, N sentences x features.

All departures from the reference:
- Padding is never read: the backward GRU starts at a sentence's own end, and beyond it smoothing
  reads zeros. The reference lets both read padding, and its scores depend on the batch (.0886 at
  batch size 1, .0875 at 240, on the spoken digits). `padding: reference` does the same.
- smoothing_width 0 means no smoothing (the reference raises).
- The GRU is a list of one-layer GRUs with dropout between them, so that all randomness comes from
  PyTorch's own generator, which a checkpoint holds; the state of cuDNN's own dropout is out of
  reach. The weights and the function are the same.
- The reference's `inpLayer` of each day, which it never uses, is left out.
"""

import torch
from torch import nn
from torch.nn.functional import conv1d, dropout, pad, softsign
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from hpo.decoder.config import ModelConfig
from hpo.decoder.data import frames
from hpo.decoder.gru import reversal, run_layer


class GruDecoder(nn.Module):
    """Smoothing, a linear layer per day, softsign, LayerNorm if configured, windows, GRU, linear.

    Initialised as the reference: day layers to the identity, GRU recurrent weights orthogonal, GRU
    input weights Xavier-uniform, the rest to PyTorch's defaults.
    """

    smoothing_K: torch.Tensor

    def __init__(self, config: ModelConfig, n_days: int, n_features: int):
        super().__init__()
        self.config = config
        self.register_buffer(
            "smoothing_K", gaussian_kernel(config.smoothing_kernel, config.smoothing_width)
        )
        self.day_weights = nn.Parameter(torch.eye(n_features).repeat(n_days, 1, 1))
        self.day_bias = nn.Parameter(torch.zeros(n_days, 1, n_features))
        self.layer_norm = nn.LayerNorm(n_features) if config.layer_norm else nn.Identity()
        self.input_dropout = nn.Dropout(config.input_dropout)
        width = config.units * (2 if config.bidirectional else 1)
        input_sizes = [n_features * config.kernel] + [width] * (config.layers - 1)
        self.gru = nn.ModuleList(
            nn.GRU(size, config.units, batch_first=True, bidirectional=config.bidirectional)
            for size in input_sizes
        )
        for name, weight in self.gru.named_parameters():
            if "weight_hh" in name:
                nn.init.orthogonal_(weight)
            if "weight_ih" in name:
                nn.init.xavier_uniform_(weight)
        self.output = nn.Linear(width, config.classes + 1)

    def forward(
        self, x_BTC: torch.Tensor, lengths_B: torch.Tensor, days_B: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """x_BTC: zero behind each sentence's end. lengths_B: bins, on the CPU, each >= kernel.

        Returns (logits_BWK, frames_B). frames_B, on the CPU, is how many windows of each sentence
        are scored.
        """
        config = self.config
        if config.smoothing_width > 0:
            x_BTC = smooth(x_BTC, self.smoothing_K)
        x_BTC = softsign(torch.baddbmm(self.day_bias[days_B], x_BTC, self.day_weights[days_B]))
        x_BTC = self.input_dropout(self.layer_norm(x_BTC))
        # I runs over features first and then over the bins of the window, as in nn.Unfold.
        x_BWI = x_BTC.unfold(1, config.kernel, config.stride).flatten(start_dim=2)
        frames_B = frames(lengths_B, config)
        if config.padding == "masked":
            windows_B = frames_B + 1
        else:
            windows_B = torch.full_like(frames_B, x_BWI.shape[1])
        run_gru = self.run_packed if x_BWI.is_cuda else self.run_padded
        return self.output(run_gru(x_BWI, windows_B)), frames_B

    def run_packed(self, x_BWI: torch.Tensor, windows_B: torch.Tensor) -> torch.Tensor:
        """Run the GRU with cuDNN, which skips the padding behind each sentence's end."""
        device = x_BWI.device
        # PyTorch could sort, but would wait for the GPU.
        order_B = windows_B.argsort(descending=True, stable=True)
        # Autocast would give cuDNN fp16, whose gradients underflow.
        with torch.autocast(device.type, enabled=False):
            x_BWI = x_BWI.float()[order_B.to(device, non_blocking=True)]
            packed = pack_padded_sequence(x_BWI, windows_B[order_B], batch_first=True)
            for number, layer in enumerate(self.gru):
                if number > 0:
                    dropped = dropout(packed.data, self.config.dropout, self.training)
                    packed = PackedSequence(dropped, packed.batch_sizes)
                packed, _ = layer(packed)
        sorted_BWH, _ = pad_packed_sequence(packed, batch_first=True)
        return sorted_BWH[order_B.argsort().to(device, non_blocking=True)]

    def run_padded(self, x_BWI: torch.Tensor, windows_B: torch.Tensor) -> torch.Tensor:
        """Run the GRU with our own code for the CPU (gru.py)."""
        x_WBI = x_BWI.transpose(0, 1)
        reversed_rows = reversal(len(x_WBI), windows_B)
        for number, layer in enumerate(self.gru):
            assert isinstance(layer, nn.GRU)
            drops = self.training and number > 0
            x_WBI = run_layer(layer, dropout(x_WBI, self.config.dropout, drops), reversed_rows)
        return x_WBI.transpose(0, 1)


def gaussian_kernel(size: int, width: float) -> torch.Tensor:
    """`size` taps of a Gaussian with a standard deviation of `width` bins, which sum to 1.

    For width 0, a placeholder of zeros.
    """
    if width == 0:
        return torch.zeros(size)
    distances_K = torch.arange(size) - (size - 1) / 2
    taps_K = torch.exp(-0.5 * (distances_K / width) ** 2)
    return taps_K / taps_K.sum()


def smooth(x_BTC: torch.Tensor, kernel_K: torch.Tensor) -> torch.Tensor:
    """Convolve each feature over time, with zeros beyond the ends; the length stays the same.

    The extra tap of an even kernel is on the right.
    """
    batch, bins, features = x_BTC.shape
    size = len(kernel_K)
    x_N1T = x_BTC.transpose(1, 2).reshape(batch * features, 1, bins)
    x_N1T = pad(x_N1T, ((size - 1) // 2, size // 2))
    smoothed_N1T = conv1d(x_N1T, kernel_K[None, None])
    return smoothed_N1T.reshape(batch, features, bins).transpose(1, 2)
