"""The model of the reference implementation, from its description, with its parameter names.

Weights that hpo exports must fit it.
"""

from typing import Any

import torch
from torch.nn.functional import conv1d, pad, softsign, unfold


class Reference(torch.nn.Module):
    """Built from `args` as loadModel of the reference builds it."""

    def __init__(self, args: dict[str, Any], days: int):
        super().__init__()
        features = args["nInputFeatures"]
        self.kernel, self.stride = args["kernelLen"], args["strideLen"]
        self.gaussianSmoother = torch.nn.Module()
        self.gaussianSmoother.register_buffer("weight", torch.empty(features, 1, 20))
        self.dayWeights = torch.nn.Parameter(torch.empty(days, features, features))
        self.dayBias = torch.nn.Parameter(torch.empty(days, 1, features))
        if args.get("use_layer_norm"):
            self.ln = torch.nn.LayerNorm(features)
        directions = 2 if args["bidirectional"] else 1
        self.gru_decoder = torch.nn.GRU(
            features * self.kernel,
            args["nUnits"],
            args["nLayers"],
            batch_first=True,
            bidirectional=args["bidirectional"],
        )
        for day in range(days):
            self.add_module(f"inpLayer{day}", torch.nn.Linear(features, features))
        self.fc_decoder_out = torch.nn.Linear(args["nUnits"] * directions, args["nClasses"] + 1)

    def forward(self, x_BTC: torch.Tensor, days_B: torch.Tensor) -> torch.Tensor:
        x_BCT = x_BTC.transpose(1, 2)
        smoother = self.gaussianSmoother.get_buffer("weight")
        # The same as padding "same", which warns about kernels of even length.
        padded_BCT = pad(x_BCT, (9, 10))
        x_BTC = conv1d(padded_BCT, smoother, groups=x_BCT.shape[1]).transpose(1, 2)
        x_BTC = torch.einsum("btc,bcd->btd", x_BTC, self.dayWeights[days_B]) + self.dayBias[days_B]
        x_BTC = softsign(x_BTC)
        if hasattr(self, "ln"):
            x_BTC = self.ln(x_BTC)
        windows = unfold(x_BTC.transpose(1, 2)[..., None], (self.kernel, 1), stride=self.stride)
        hidden = self.gru_decoder(windows.transpose(1, 2))[0]
        logits: torch.Tensor = self.fc_decoder_out(hidden)
        return logits
