"""Saves and loads trained decoders: safetensors files, and folders of neural_seq_decoder.

The file holds the weights and, as JSON in its header, everything needed to build the model.
Reading it runs no code.
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

# The key of the JSON in the file's header.
HEADER = "hpo_decoder"
# Taps of the smoothing, which neural_seq_decoder fixes in its code.
REFERENCE_KERNEL = 20


@dataclass(frozen=True)
class Decoder:
    """A model in evaluation mode, its configuration and the metadata that was saved with it."""

    model: GruDecoder
    config: DecoderConfig
    # study, trial, step, per, ...
    metadata: dict[str, Any]


def save_decoder(
    path: Path, weights: dict[str, torch.Tensor], config: DecoderConfig, metadata: dict[str, Any]
) -> None:
    """Write a decoder. weights: a GruDecoder's state_dict(), on the CPU. Raises OSError."""
    header = {"config": config.flat(), **metadata}
    try:
        save_file(weights, path, metadata={HEADER: json.dumps(header)})
    except SafetensorError as error:
        # Safetensors reports a full disk as "... (os error 28)".
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise OSError(f"{path}: {error}") from None
        code = int(number[1])
        raise OSError(code, os.strerror(code), str(path)) from None


def load_decoder(path: Path) -> Decoder:
    """Load a file of `save_decoder`, or a folder of neural_seq_decoder. Raises DataError."""
    if (path / "modelWeights").is_file():
        return _load_reference(path)
    if not path.is_file():
        raise DataError(
            f"--model {path}: no such file. "
            f"Valid: a .safetensors file of hpo, or a folder with args and modelWeights"
        )
    try:
        with safe_open(path, "pt") as file:
            header = json.loads((file.metadata() or {}).get(HEADER, "null"))
            # The file is no dict: it cannot be iterated over.
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path}: not a whole safetensors file ({reason}). Copy it again") from None
    if not isinstance(header, dict) or "config" not in header:
        raise DataError(
            f"{path}: a safetensors file, but not one of hpo (its header has no {HEADER})"
        )
    config = DecoderConfig().with_values(header.pop("config"), f"{path}: ")
    return Decoder(_build_model(path, config, weights), config, header)


def _build_model(path: Path, config: DecoderConfig, weights: dict[str, torch.Tensor]) -> GruDecoder:
    try:
        n_days, n_features, _ = weights["day_weights"].shape
        model = GruDecoder(config.model, n_days, n_features)
        model.load_state_dict(weights)
    except (KeyError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"{path}: its weights do not fit its configuration ({reason[:200]})"
        ) from None
    return model.eval()


# ---- the folder of neural_seq_decoder


def reference_folder(decoder: Decoder, folder: Path) -> None:
    """Write the folder from which loadModel(folder, nInputLayers=n_days) builds the same function.

    `args` is a pickled plain dict, `modelWeights` a state dict. Raises CallerError for a model that
    the code of neural_seq_decoder cannot build, and OSError.
    """
    model = decoder.config.model
    if model.smoothing_width == 0 or model.smoothing_kernel != REFERENCE_KERNEL:
        raise CallerError(
            f"--format neural_seq_decoder: its code smooths with {REFERENCE_KERNEL} taps and a "
            f"width above 0; this model has model.smoothing_kernel {model.smoothing_kernel}, "
            f"model.smoothing_width {model.smoothing_width:g}. Take --format yaml"
        )
    if folder.exists():
        raise CallerError(f"--out {folder}: already exists. Give a new folder")
    weights = reference_weights(decoder.model)
    n_days, n_features, _ = weights["dayWeights"].shape
    folder.mkdir(parents=True)
    with (folder / "args").open("wb") as file:
        pickle.dump(lab_arguments(decoder.config, n_features, n_days), file, protocol=4)
    torch.save(weights, folder / "modelWeights")


def reference_weights(model: GruDecoder) -> dict[str, torch.Tensor]:
    """The model's weights under the names of neural_seq_decoder."""
    weights = {
        reference_name(name): weight
        for name, weight in model.state_dict().items()
        if name != "smoothing_K"
    }
    n_days, n_features, _ = weights["dayWeights"].shape
    weights["gaussianSmoother.weight"] = model.smoothing_K.repeat(n_features, 1, 1)
    # neural_seq_decoder never uses these, but its strict load requires them.
    for day in range(n_days):
        weights[f"inpLayer{day}.weight"] = torch.eye(n_features)
        weights[f"inpLayer{day}.bias"] = torch.zeros(n_features)
    return weights


def reference_name(name: str) -> str:
    """The name that neural_seq_decoder has for a weight of GruDecoder."""
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
    arguments = unpickle(folder / "args")
    reference = _read_state_dict(folder / "modelWeights")
    if not isinstance(arguments, dict) or "strideLen" not in arguments:
        raise DataError(f"{folder / 'args'}: no pickled dict with strideLen")
    try:
        config = DecoderConfig().with_values(_model_values(reference, arguments), f"{folder}: ")
        weights = _own_weights(reference, config)
    except SpecError as error:
        raise DataError(str(error)) from None
    except (LookupError, AttributeError, ValueError, TypeError, ArithmeticError) as error:
        raise DataError(
            f"{folder / 'modelWeights'}: not the weights of neural_seq_decoder's model "
            f"(missing or odd: {error})"
        ) from None
    model = _build_model(folder, config, weights)
    return Decoder(model, config, {"step": None, "per": None})


def _read_state_dict(path: Path) -> dict[str, Any]:
    check_torch_file(path)
    try:
        state_dict = torch.load(path, map_location="cpu", weights_only=True)
    # A broken file can raise nearly anything.
    except Exception as error:
        raise DataError(
            f"{path}: not a state dict of torch ({type(error).__name__}). Copy it again"
        ) from None
    if not isinstance(state_dict, dict):
        raise DataError(f"{path}: a {type(state_dict).__name__}, not a state dict. Copy it again")
    return state_dict


def _model_values(reference: dict[str, Any], arguments: dict[str, Any]) -> dict[str, Any]:
    """The fields of the model, by dotted name, taken from the weights' shapes where possible.

    Only the stride and the width of the smoothing are in `args` alone.
    """
    _, n_features, _ = reference["dayWeights"].shape
    recurrent = [name for name in reference if name.startswith("gru_decoder.weight_hh")]
    bidirectional = any(name.endswith("_reverse") for name in recurrent)
    directions = 2 if bidirectional else 1
    return {
        "model.layers": len(recurrent) // directions,
        "model.units": reference["gru_decoder.weight_hh_l0"].shape[1],
        "model.bidirectional": bidirectional,
        "model.kernel": reference["gru_decoder.weight_ih_l0"].shape[1] // n_features,
        "model.stride": arguments["strideLen"],
        "model.layer_norm": "ln.weight" in reference,
        "model.smoothing_kernel": len(reference["gaussianSmoother.weight"][0, 0]),
        "model.smoothing_width": arguments.get("gaussianSmoothWidth", 2.0),
        "model.classes": len(reference["fc_decoder_out.bias"]) - 1,
    }


def _own_weights(reference: dict[str, Any], config: DecoderConfig) -> dict[str, torch.Tensor]:
    """The weights of neural_seq_decoder under the names of GruDecoder."""
    n_days, n_features, _ = reference["dayWeights"].shape
    weights = {
        name: reference[reference_name(name)]
        for name in GruDecoder(config.model, n_days, n_features).state_dict()
        if name != "smoothing_K"
    }
    weights["smoothing_K"] = reference["gaussianSmoother.weight"][0, 0]
    return weights


def reference_notes(config: DecoderConfig, n_days: int) -> list[str]:
    """What someone who loads the folder must know, as lines."""
    notes = [f"load it with loadModel(FOLDER, nInputLayers={n_days})"]
    if config.model.padding == "masked":
        notes.append(
            "its scores move a little with the batch size, because that code reads padding; "
            "at batch size 1 they are the same as here"
        )
    if config.model.layer_norm:
        notes.append(
            "it has a LayerNorm (ln.weight, ln.bias) after softsign: "
            "load it with a descendant of that code that has use_layer_norm"
        )
    return notes
