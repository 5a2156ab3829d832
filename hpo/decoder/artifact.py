"""A trained decoder in a file (safetensors), and as the folder that neural_seq_decoder's loadModel reads.

The file holds the weights and, as JSON in its header, all that is needed to build the model: no code is run to read it.
"""

import json
import os
import pickle
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from hpo.data.pickles import check_torch_file, unpickle
from hpo.decoder.config import DecoderConfig
from hpo.decoder.lab import lab_arguments
from hpo.decoder.model import GruDecoder
from hpo.errors import CallerError, DataError, SpecError

HEADER = "hpo_decoder"  # the key of the JSON in the file's header
REFERENCE_KERNEL = 20  # bins; neural_seq_decoder has this number in its code


@dataclass(frozen=True)
class Decoder:
    """A model in evaluation mode, and what is known of it: config (dotted name -> value), n_days, n_features, and whatever
    was given when it was saved (study, trial, step, per, ...)."""

    model: GruDecoder
    config: DecoderConfig
    facts: dict[str, Any]


def save_decoder(
    path: Path, weights: dict[str, torch.Tensor], config: DecoderConfig, facts: dict[str, Any]
) -> None:
    """weights: of GruDecoder.state_dict(), on the CPU. Raises OSError, also where the disk is full."""
    header = {"config": config.flat(), **facts}
    try:
        save_file(weights, path, metadata={HEADER: json.dumps(header)})
    except SafetensorError as error:
        # Its writer's word for a full disk: "... (os error 28)".
        if number := re.search(r"os error (\d+)", str(error)):
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from None
        raise OSError(f"{path}: {error}") from None


def load_decoder(path: Path) -> Decoder:
    """A file of `save_decoder`, or a folder of neural_seq_decoder (`args` and `modelWeights`). Raises DataError."""
    if (path / "modelWeights").is_file():
        return _load_reference(path)
    if not path.is_file():
        raise DataError(
            f"--model {path}: no such file. Valid: a .safetensors file of hpo, or a folder with args and modelWeights"
        )
    try:
        with safe_open(path, "pt") as file:
            header = json.loads((file.metadata() or {}).get(HEADER, "null"))
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (it is no dict)
    except (SafetensorError, OSError, ValueError) as error:
        raise DataError(
            f"{path}: not a whole safetensors file ({str(error).splitlines()[0]}). Copy it again"
        ) from None
    if not isinstance(header, dict) or "config" not in header:
        raise DataError(
            f"{path}: a safetensors file, but not one of hpo (its header has no {HEADER})"
        )
    config = DecoderConfig().with_values(header.pop("config"), f"{path}: ")
    return Decoder(_built(path, config, weights), config, header)


def _built(path: Path, config: DecoderConfig, weights: dict[str, torch.Tensor]) -> GruDecoder:
    try:
        n_days, n_features, _ = weights["day_weights"].shape
        model = GruDecoder(config.model, n_days, n_features)
        model.load_state_dict(weights)
    except (KeyError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"{path}: its weights are not those of its configuration ({reason[:200]})"
        ) from None
    return model.eval()


# ---- the folder of neural_seq_decoder


def reference_folder(decoder: Decoder, folder: Path) -> None:
    """Write `args` (a pickled plain dict) and `modelWeights` (a state dict), from which loadModel(folder, nInputLayers=n_days)
    builds the same function. Raises CallerError for what its code cannot be."""
    model = decoder.config.model
    if model.smoothing_width == 0 or model.smoothing_kernel != REFERENCE_KERNEL:
        raise CallerError(
            f"--format neural_seq_decoder: its code smooths with {REFERENCE_KERNEL} taps and a width above 0; this model has "
            f"model.smoothing_kernel {model.smoothing_kernel}, model.smoothing_width {model.smoothing_width:g}. Take --format yaml"
        )
    if folder.exists():
        raise CallerError(f"--out {folder}: is there already. Give a new folder")
    weights = reference_weights(decoder.model)
    n_days, n_features, _ = weights["dayWeights"].shape
    folder.mkdir(parents=True)
    with (folder / "args").open("wb") as file:
        pickle.dump(lab_arguments(decoder.config, n_features, n_days), file, protocol=4)
    torch.save(weights, folder / "modelWeights")


def reference_weights(model: GruDecoder) -> dict[str, torch.Tensor]:
    weights = {
        reference_name(name): weight
        for name, weight in model.state_dict().items()
        if name != "smoothing_K"
    }
    n_days, n_features, _ = weights["dayWeights"].shape
    weights["gaussianSmoother.weight"] = model.smoothing_K.repeat(n_features, 1, 1)
    for day in range(n_days):  # never used there, but a strict load wants them
        weights[f"inpLayer{day}.weight"], weights[f"inpLayer{day}.bias"] = (
            torch.eye(n_features),
            torch.zeros(n_features),
        )
    return weights


def reference_name(name: str) -> str:
    """What neural_seq_decoder calls one of our weights."""
    match name.split("."):
        case ["gru", layer, kind]:
            return f"gru_decoder.{kind.replace('_l0', f'_l{layer}')}"
        case ["layer_norm", kind]:
            return f"ln.{kind}"
        case ["output", kind]:
            return f"fc_decoder_out.{kind}"
        case _:
            return {"day_weights": "dayWeights", "day_bias": "dayBias"}[name]


def _load_reference(folder: Path) -> Decoder:
    """The weights say what the model is; only the stride is in `args` alone."""
    arguments = unpickle(folder / "args")
    check_torch_file(folder / "modelWeights")
    try:
        theirs = torch.load(folder / "modelWeights", map_location="cpu", weights_only=True)
    except Exception as error:  # a broken file can raise nearly anything
        raise DataError(
            f"{folder / 'modelWeights'}: not a state dict of torch ({type(error).__name__}). Copy it again"
        ) from None
    if not isinstance(theirs, dict):
        raise DataError(
            f"{folder / 'modelWeights'}: a {type(theirs).__name__}, not a state dict. Copy it again"
        )
    if not isinstance(arguments, dict) or "strideLen" not in arguments:
        raise DataError(f"{folder / 'args'}: no pickled dict with strideLen")
    try:
        n_days, n_features, _ = theirs["dayWeights"].shape
        recurrent = [name for name in theirs if name.startswith("gru_decoder.weight_hh")]
        bidirectional = any(name.endswith("_reverse") for name in recurrent)
        smoothing_K = theirs["gaussianSmoother.weight"][0, 0]
        values = {
            "model.layers": len(recurrent) // (2 if bidirectional else 1),
            "model.units": theirs["gru_decoder.weight_hh_l0"].shape[1],
            "model.bidirectional": bidirectional,
            "model.kernel": theirs["gru_decoder.weight_ih_l0"].shape[1] // n_features,
            "model.stride": arguments["strideLen"],
            "model.layer_norm": "ln.weight" in theirs,
            "model.smoothing_kernel": len(smoothing_K),
            "model.smoothing_width": arguments.get("gaussianSmoothWidth", 2.0),
            "model.classes": len(theirs["fc_decoder_out.bias"]) - 1,
        }
        config = DecoderConfig().with_values(values, f"{folder}: ")
        ours = GruDecoder(config.model, n_days, n_features).state_dict()
        weights = {name: theirs[reference_name(name)] for name in ours if name != "smoothing_K"}
    except SpecError as error:
        raise DataError(str(error)) from None
    except (LookupError, AttributeError, ValueError, TypeError, ArithmeticError) as error:
        raise DataError(
            f"{folder / 'modelWeights'}: not the weights of neural_seq_decoder's model (missing or odd: {error})"
        ) from None
    return Decoder(
        _built(folder, config, weights | {"smoothing_K": smoothing_K}),
        config,
        {"step": None, "per": None},
    )


def reference_notes(config: DecoderConfig, n_days: int) -> list[str]:
    """What a person must know who loads the folder."""
    notes = [f"load it with loadModel(FOLDER, nInputLayers={n_days})"]
    if config.model.padding == "masked":
        notes.append(
            "its scores move a little with the batch size, because that code lets padding in; at batch size 1 they are these"
        )
    if config.model.layer_norm:
        notes.append(
            "it has a LayerNorm (ln.weight, ln.bias) after softsign: for a descendant of that code with use_layer_norm"
        )
    return notes
