"""The GRU decoder of neural_seq_decoder: features to CTC logits.

Shape suffixes: B sentences, T bins, C features, W windows (GRU inputs), H hidden, I inputs of a layer, K classes + blank.

Departures from the reference, all of them:
- Sentences end where they end: the backward GRU starts at a sentence's own end, and beyond it smoothing reads zeros. The
  reference lets both read padding, and its scores move with the batch (.0886 at batch size 1, .0875 at 240, on the spoken
  digits). `padding: reference` does as it does.
- smoothing_width 0 means no smoothing (the reference raises).
- The GRU is a list of one-layer GRUs with dropout between, so that all randomness is PyTorch's own generator, which a
  checkpoint holds; cuDNN's own dropout keeps its state to itself. Same weights, same function.
- The unused per-day `inpLayer` of the reference is not there.
"""

import torch
from torch import nn
from torch.nn.functional import conv1d, dropout, pad, softsign
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from hpo.decoder.config import ModelConfig
from hpo.decoder.data import frames
from hpo.decoder.gru import reversal, run_layer


class GruDecoder(nn.Module):
    """Smoothing, a linear layer per day, softsign, (LayerNorm,) windows, GRU, linear.

    Initialised as the reference: day layers to the identity, GRU recurrent weights orthogonal, GRU input weights
    Xavier-uniform, the rest PyTorch's defaults.
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
        inputs = [n_features * config.kernel] + [width] * (config.layers - 1)
        self.gru = nn.ModuleList(
            nn.GRU(size, config.units, batch_first=True, bidirectional=config.bidirectional)
            for size in inputs
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
        """x_BTC: zero behind each sentence's end. lengths_B: bins, on the CPU, each >= kernel. days_B: day numbers.

        Returns (logits_BWK, frames_B): of sentence b the first frames_B[b] windows count; frames_B is on the CPU.
        """
        config = self.config
        x_BTC = smooth(x_BTC, self.smoothing_K) if config.smoothing_width > 0 else x_BTC
        x_BTC = softsign(torch.baddbmm(self.day_bias[days_B], x_BTC, self.day_weights[days_B]))
        x_BTC = self.input_dropout(self.layer_norm(x_BTC))
        x_BWI = x_BTC.unfold(1, config.kernel, config.stride).flatten(
            start_dim=2
        )  # I: feature-major, as in nn.Unfold
        frames_B = frames(lengths_B, config)
        windows_B = (
            frames_B + 1
            if config.padding == "masked"
            else torch.full_like(frames_B, x_BWI.shape[1])
        )
        run = self._packed if x_BWI.is_cuda else self._padded
        return self.output(run(x_BWI, windows_B)), frames_B

    def _packed(self, x_BWI: torch.Tensor, windows_B: torch.Tensor) -> torch.Tensor:
        """The GRU by cuDNN, which skips what is behind a sentence's end."""
        order_B = windows_B.argsort(
            descending=True, stable=True
        )  # sorted here: PyTorch's own sorting waits for the GPU
        with torch.autocast(
            x_BWI.device.type, enabled=False
        ):  # autocast would give cuDNN fp16, whose gradients underflow
            x_BWI = x_BWI.float()[order_B.to(x_BWI.device, non_blocking=True)]
            packed = pack_padded_sequence(x_BWI, windows_B[order_B], batch_first=True)
            for number, layer in enumerate(self.gru):
                if number:
                    packed = PackedSequence(
                        dropout(packed.data, self.config.dropout, self.training), packed.batch_sizes
                    )
                packed, _ = layer(packed)
        return pad_packed_sequence(packed, batch_first=True)[0][
            order_B.argsort().to(x_BWI.device, non_blocking=True)
        ]

    def _padded(self, x_BWI: torch.Tensor, windows_B: torch.Tensor) -> torch.Tensor:
        """The same by our own GRU for the CPU (gru.py)."""
        x_WBI = x_BWI.transpose(0, 1)
        turned = reversal(len(x_WBI), windows_B)
        for number, layer in enumerate(self.gru):
            assert isinstance(layer, nn.GRU)
            x_WBI = run_layer(
                layer, dropout(x_WBI, self.config.dropout, self.training and number > 0), turned
            )
        return x_WBI.transpose(0, 1)


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
    x_NT = pad(
        x_BTC.transpose(1, 2).reshape(batch * features, 1, bins), ((size - 1) // 2, size // 2)
    )
    return conv1d(x_NT, kernel_K[None, None]).reshape(batch, features, bins).transpose(1, 2)
