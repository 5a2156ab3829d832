"""Saves and loads trained decoders: safetensors files, and folders of neural_seq_decoder.

The file holds the weights and, as JSON in its header, everything needed to build the model.
Reading it runs no code.
"""

import json
import os
import pickle
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from hpo.data.kinds import TORCH_STARTS, unreadable
from hpo.data.pickles import check_torch_file, unpickle
from hpo.decoder.config import DecoderConfig
from hpo.decoder.lab import lab_arguments, plain_arguments, unknown_words
from hpo.decoder.model import GruDecoder
from hpo.errors import CallerError, DataError, SpecError, shortened

# The key of the JSON in the file's header.
HEADER = "hpo_decoder"
# Taps of the smoothing, which neural_seq_decoder fixes in its code.
REFERENCE_KERNEL = 20
# Parts of names that are added when a model is wrapped: by DataParallel and by torch.compile.
WRAPPERS = ("module", "_orig_mod")
# Where checkpoints have the weights of the model.
IN_CHECKPOINTS = ("model_state_dict", "state_dict", "model")
# neural_seq_decoder has these for each day and never uses them.
_UNUSED = re.compile(r"inpLayer\d+\.(weight|bias)")
# Names that a message shows, and letters of each.
SHOWN = 5
LONGEST_NAME = 80
# Argument -> the field that the shapes of the weights give.
GIVEN_BY_WEIGHTS = {
    "nUnits": "model.units",
    "nLayers": "model.layers",
    "bidirectional": "model.bidirectional",
    "kernelLen": "model.kernel",
    "use_layer_norm": "model.layer_norm",
    "nClasses": "model.classes",
}


@dataclass(frozen=True)
class Decoder:
    """A model in evaluation mode, its configuration and the metadata that was saved with it."""

    model: GruDecoder
    config: DecoderConfig
    # study, trial, step, per, ...
    metadata: dict[str, Any]
    # What is doubtful about the weights or the configuration, in words.
    warnings: tuple[str, ...] = ()


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
            written = (file.metadata() or {}).get(HEADER, "null")
            # The file is no dict: it cannot be iterated over.
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, MemoryError) as error:
        raise unreadable(path, "safetensors file", error, ()) from None
    try:
        header = json.loads(written)
    # Not JSON, a number of too many digits, or nested without end.
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict) or not isinstance(header.get("config"), dict):
        raise DataError(
            f"{path}: a safetensors file, but not one of hpo (its header has no {HEADER})"
        )
    try:
        config = DecoderConfig().with_values(header.pop("config"), f"{path}: ")
    except SpecError as error:
        raise DataError(str(error)) from None
    model = _build_model(path, config, weights)
    return Decoder(model, config, header, tuple(_not_finite(weights)))


def _not_finite(weights: Mapping[str, torch.Tensor]) -> list[str]:
    """A warning that names the weights with values that are no numbers."""
    names = [name for name, weight in weights.items() if not weight.isfinite().all()]
    return [f"NaN or infinite values in its weights {_some(names)}"] if names else []


def _some(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    more = len(names) - SHOWN
    text = ", ".join(_shown(name) for name in names[:SHOWN]) or "nothing"
    return f"{text} and {more} more" if more > 0 else text


def _shown(text: str) -> str:
    """A text of a file, cut, without characters that could steer a terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in text[:LONGEST_NAME])


def _build_model(path: Path, config: DecoderConfig, weights: dict[str, torch.Tensor]) -> GruDecoder:
    try:
        n_days, n_features, _ = weights["day_weights"].shape
        _check_shapes(config, weights)
        model = GruDecoder(config.model, n_days, n_features)
        model.load_state_dict(weights)
    except (KeyError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"{path}: its weights do not fit its configuration ({shortened(reason)})"
        ) from None
    return model.eval()


def _outline(config: DecoderConfig, n_days: int, n_features: int, n_weights: int) -> GruDecoder:
    """The model without memory for its weights: only their names and shapes.

    n_weights: how many the file has. Raises ValueError if it has too few for the layers.
    """
    if config.model.layers > n_weights:
        raise ValueError(f"{config.model.layers:,} layers, but {n_weights} weights")
    with torch.device("meta"):
        return GruDecoder(config.model, n_days, n_features)


def _check_shapes(config: DecoderConfig, weights: dict[str, torch.Tensor]) -> None:
    """Raises ValueError before memory is taken for weights that the file does not have."""
    n_days, n_features, _ = weights["day_weights"].shape
    expected = _outline(config, n_days, n_features, len(weights)).state_dict()
    for name, outline in expected.items():
        if weights[name].shape != outline.shape:
            shapes = f"{tuple(weights[name].shape)}, not {tuple(outline.shape)}"
            raise ValueError(f"{name} has the shape {shapes}")


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
    if not isinstance(arguments, dict) or "strideLen" not in arguments:
        raise DataError(f"{folder / 'args'}: no pickled dict with strideLen")
    arguments = plain_arguments(arguments)
    reference = _read_state_dict(folder / "modelWeights")
    config = _config_of(folder, reference, arguments)
    faults = _reference_faults(reference, arguments, config)
    if faults:
        raise DataError(f"{folder}: {faults[0]}")
    model = _build_model(folder, config, _own_weights(reference, config))
    warnings = _reference_warnings(reference)
    unknown = unknown_words(arguments)
    if unknown:
        warnings.append(
            f"its args have words that hpo does not know: {_some(unknown)}. If one of them changes "
            "the model, the score is not that of the model that was trained"
        )
    return Decoder(model, config, {"step": None, "per": None}, tuple(warnings))


def weight_faults(folder: Path, warnings: list[str]) -> list[str]:
    """Why the modelWeights in a run's folder are those of another model than its args describe, a
    line for each reason. Empty if there are none or if they cannot be read.

    warnings: gets what is doubtful otherwise.
    """
    path = folder / "modelWeights"
    if not path.is_file():
        return []
    try:
        reference = _read_state_dict(path)
        arguments = unpickle(folder / "args") if (folder / "args").is_file() else {}
    except DataError as error:
        warnings.append(f"its weights are not checked: {error}")
        return []
    # The stride is not needed to compare names and shapes.
    arguments = {"strideLen": 1} | plain_arguments(arguments)
    try:
        config = _config_of(folder, reference, arguments)
    except DataError as error:
        return [str(error)]
    warnings += [f"modelWeights: {warning}" for warning in _reference_warnings(reference)]
    return [f"modelWeights: {fault}" for fault in _reference_faults(reference, arguments, config)]


def _reference_warnings(reference: Mapping[str, torch.Tensor]) -> list[str]:
    used = {name: weight for name, weight in reference.items() if not _UNUSED.fullmatch(name)}
    return _not_finite(used)


def _config_of(
    folder: Path, reference: Mapping[str, torch.Tensor], arguments: Mapping[str, Any]
) -> DecoderConfig:
    """The configuration of the model whose weights these are. Raises DataError."""
    try:
        return DecoderConfig().with_values(_model_values(reference, arguments), f"{folder}: ")
    except SpecError as error:
        raise DataError(str(error)) from None
    except (LookupError, AttributeError, ValueError, TypeError, ArithmeticError) as error:
        raise DataError(
            f"{folder / 'modelWeights'}: not the weights of neural_seq_decoder's model "
            f"(missing or odd: {shortened(error)}). It has {_some(list(reference))}"
        ) from None


def _reference_faults(
    reference: Mapping[str, torch.Tensor], arguments: Mapping[str, Any], config: DecoderConfig
) -> list[str]:
    """Why these are not the weights of neural_seq_decoder's model with these arguments."""
    faults: list[str] = []
    shapes = _reference_shapes(reference, config)
    unused = [name for name in reference if name not in shapes and not _UNUSED.fullmatch(name)]
    if unused:
        faults.append(f"weights that the model does not use: {_some(unused)}")
    missing = [name for name in shapes if name not in reference]
    if missing:
        faults.append(f"weights that the model needs are missing: {_some(missing)}")
    misshapen = [
        f"{name} {list(reference[name].shape)} in place of {list(shape)}"
        for name, shape in shapes.items()
        if name in reference and reference[name].shape != shape
    ]
    if misshapen:
        faults.append(f"weights of another model than the GRU decoder: {_some(misshapen)}")
    no_floats = [
        name for name in shapes if name in reference and not reference[name].is_floating_point()
    ]
    if no_floats:
        faults.append(f"weights that are no floating-point numbers: {_some(no_floats)}")
    smoothing = reference["gaussianSmoother.weight"]
    first = smoothing[:1].expand_as(smoothing)
    if not torch.allclose(smoothing, first, rtol=0, atol=0, equal_nan=True):
        faults.append(
            "gaussianSmoother.weight differs between features; the model smooths all alike"
        )
    return [*faults, *_contradictions(arguments, config)]


def _contradictions(arguments: Mapping[str, Any], config: DecoderConfig) -> list[str]:
    """Where args say something else than the shapes of the weights."""
    contradictions: list[str] = []
    for name, field in GIVEN_BY_WEIGHTS.items():
        stated = arguments.get(name)
        if stated is None:
            continue
        actual = config.flat()[field]
        try:
            agrees = DecoderConfig().with_values({field: stated}).flat()[field] == actual
        except SpecError:
            agrees = False
        if not agrees:
            contradictions.append(
                f"args say {name} = {_shown(str(stated))}, its weights are of {actual}: args or "
                "weights are those of another run"
            )
    return contradictions


def _reference_shapes(
    reference: Mapping[str, torch.Tensor], config: DecoderConfig
) -> dict[str, torch.Size]:
    """The weights that such a model has, under the names of neural_seq_decoder, and their
    shapes.
    """
    n_days, n_features, _ = reference["dayWeights"].shape
    # On no device, so that large models take neither time nor memory.
    with torch.device("meta"):
        model = GruDecoder(config.model, n_days, n_features)
    shapes = {
        reference_name(name): weight.shape
        for name, weight in model.state_dict().items()
        if name != "smoothing_K"
    }
    taps = config.model.smoothing_kernel
    return shapes | {"gaussianSmoother.weight": torch.Size((n_features, 1, taps))}


def _read_state_dict(path: Path) -> dict[str, Any]:
    check_torch_file(path)
    try:
        state_dict = torch.load(path, map_location="cpu", weights_only=True)
    # A broken file can raise nearly anything.
    except Exception as error:
        raise unreadable(path, "state dict of torch", type(error).__name__, TORCH_STARTS) from None
    if not isinstance(state_dict, dict):
        raise DataError(
            f"{path}: a {type(state_dict).__name__}, not a state dict. "
            f"Save it with torch.save(model.state_dict(), ...)"
        )
    return _unwrapped(path, state_dict)


def _unwrapped(path: Path, state_dict: Mapping[Any, Any]) -> dict[str, torch.Tensor]:
    """The weights under the names that they had before the model was wrapped. Raises DataError for
    what is no state dict.
    """
    for name in IN_CHECKPOINTS:
        if isinstance(state_dict.get(name), dict):
            raise DataError(
                f"{path}: a checkpoint with {_some([str(key) for key in state_dict])}, not a state "
                f"dict. Save what it has under {name!r} alone, with torch.save"
            )
    weights: dict[str, torch.Tensor] = {}
    for name, weight in state_dict.items():
        if not _is_plain(weight):
            kind = type(weight).__name__
            raise DataError(
                f"{path}: {_shown(str(name))!r} is a {kind}, not plain weights. Valid: a "
                "state dict of neural_seq_decoder's model"
            )
        parts = [part for part in str(name).split(".") if part not in WRAPPERS]
        bare_name = ".".join(parts)
        if bare_name in weights:
            raise DataError(
                f"{path}: two weights are {_shown(bare_name)}, one of them in a wrapped "
                "model. Valid: a state dict of one model"
            )
        weights[bare_name] = weight
    return weights


def _is_plain(weight: Any) -> bool:
    """Whether this is a tensor in memory that is as large as its shape says."""
    if not isinstance(weight, torch.Tensor) or weight.layout != torch.strided:
        return False
    size = weight.numel() * weight.element_size()
    return weight.device.type == "cpu" and size <= weight.untyped_storage().nbytes()


def _model_values(
    reference: Mapping[str, torch.Tensor], arguments: Mapping[str, Any]
) -> dict[str, Any]:
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


def _own_weights(
    reference: Mapping[str, torch.Tensor], config: DecoderConfig
) -> dict[str, torch.Tensor]:
    """The weights of neural_seq_decoder under the names of GruDecoder."""
    with torch.device("meta"):
        names = GruDecoder(config.model, 1, 1).state_dict()
    weights = {name: reference[reference_name(name)] for name in names if name != "smoothing_K"}
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
