"""Small decoders and their training."""

import torch

from hpo.decoder.config import DecoderConfig
from hpo.decoder.data import Data
from hpo.decoder.train import TrainState, Updates, train

CPU = torch.device("cpu")
SMALL = {
    "model.layers": 2,
    "model.units": 8,
    "model.kernel": 4,
    "model.stride": 2,
    "batch_size": 4,
    "steps": 12,
    "evaluate_every": 5,
}


def config(**values: object) -> DecoderConfig:
    """A small decoder with these values; `model__units=4` is `model.units`."""
    dotted = {name.replace("__", "."): value for name, value in values.items()}
    return DecoderConfig().with_values(SMALL | dotted)


def run(state: TrainState, data: Data) -> list[Updates]:
    """Train to the end."""
    return list(train(state, data))
