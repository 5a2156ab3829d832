"""Translates configurations to and from the argument names of the lab's own trainer.

That trainer is neural_seq_decoder and its descendants. It counts batches, but the schedules of its
descendants advance once per update.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from hpo.decoder.config import DecoderConfig
from hpo.trainer import Inexpressible, Translated


def lab_arguments(config: DecoderConfig, n_features: int, n_days: int) -> dict[str, Any]:
    """The `args` dict of the lab's trainer.

    Those trainers have no argument for `eps`, `momentum` and `nesterov`, which they fix in their
    code; they are included for readers.
    """
    model = config.model
    optimizer = config.optimizer
    schedule = config.schedule
    augment = config.augment
    warmup_steps = 0
    cosine_steps = None
    if schedule.name == "warmup-cosine":
        warmup_steps = round(schedule.warmup * config.steps)
        cosine_steps = config.steps - warmup_steps
    last_lr = optimizer.lr
    if schedule.name in ("linear", "warmup-cosine"):
        last_lr = optimizer.lr * schedule.end_factor
    is_sgd = optimizer.name == "sgd"
    return {
        "seed": config.seed,
        "nBatch": config.steps * config.accumulation,
        "batchSize": config.batch_size,
        "gradient_accumulation_steps": config.accumulation,
        "eval_every": config.evaluate_every * config.accumulation,
        "nUnits": model.units,
        "nLayers": model.layers,
        "bidirectional": model.bidirectional,
        "kernelLen": model.kernel,
        "strideLen": model.stride,
        "dropout": model.dropout,
        "input_dropout": model.input_dropout,
        "use_layer_norm": model.layer_norm,
        "gaussianSmoothWidth": model.smoothing_width,
        "nClasses": model.classes,
        "nInputFeatures": n_features,
        "nDays": n_days,
        "optimizer": optimizer.name,
        "lrStart": optimizer.lr,
        "peak_lr": optimizer.lr,
        "lrEnd": last_lr,
        "eps": None if is_sgd else optimizer.eps,
        "momentum": optimizer.momentum if is_sgd else None,
        "nesterov": optimizer.nesterov if is_sgd else None,
        "l2_decay": optimizer.weight_decay if optimizer.name != "adamw" else 0.0,
        "weight_decay": optimizer.weight_decay,
        "grad_clip_norm": optimizer.grad_clip_norm or 0.0,
        "ema_decay": optimizer.ema_decay or 0.0,
        "schedule": schedule.name,
        "warmup_steps": warmup_steps,
        "cosine_T_max": cosine_steps,
        "use_plateau_scheduler": schedule.name == "plateau",
        "plateau_patience": schedule.patience,
        "plateau_factor": schedule.factor,
        "plateau_min_lr": schedule.min_lr,
        "whiteNoiseSD": augment.white_noise_sd,
        "constantOffsetSD": augment.constant_offset_sd,
        "time_mask_prob": augment.time_mask_p if augment.time_masks else 0.0,
        "time_mask_width": augment.time_mask_width,
        "time_mask_max_masks": augment.time_masks,
        "freq_mask_prob": augment.feature_mask_p if augment.feature_masks else 0.0,
        "freq_mask_width": augment.feature_mask_width,
        "freq_mask_max_masks": augment.feature_masks,
    }


# The lab's name -> our field, where the value is the same.
SAME_VALUE = {
    "seed": "seed",
    "batchSize": "batch_size",
    "gradient_accumulation_steps": "accumulation",
    "nUnits": "model.units",
    "nLayers": "model.layers",
    "bidirectional": "model.bidirectional",
    "kernelLen": "model.kernel",
    "strideLen": "model.stride",
    "dropout": "model.dropout",
    "input_dropout": "model.input_dropout",
    "use_layer_norm": "model.layer_norm",
    "gaussianSmoothWidth": "model.smoothing_width",
    "nClasses": "model.classes",
    "optimizer": "optimizer.name",
    "eps": "optimizer.eps",
    "momentum": "optimizer.momentum",
    "nesterov": "optimizer.nesterov",
    "whiteNoiseSD": "augment.white_noise_sd",
    "constantOffsetSD": "augment.constant_offset_sd",
}
# The same, where the lab's 0 is our null.
ZERO_IS_NULL = {
    "grad_clip_norm": "optimizer.grad_clip_norm",
    "ema_decay": "optimizer.ema_decay",
}
# The same, where the lab counts batches and we count updates.
COUNTS_BATCHES = {"nBatch": "steps", "eval_every": "evaluate_every"}
# The lab's word in the names of masks -> ours.
MASKS = {"time": "time", "freq": "feature"}
PLATEAU = {
    "plateau_patience": "schedule.patience",
    "plateau_factor": "schedule.factor",
    "plateau_min_lr": "schedule.min_lr",
}
# Of a whole number in args.
MOST_BITS = 64
# How a mask is described, after the words of MASKS.
MASK_WORDS = ("mask_prob", "mask_width", "mask_max_masks")
SCHEDULES = ("constant", "linear", "warmup-cosine", "plateau")
# The lab's words that are translated in functions of their own.
SPECIAL = (
    "lrStart",
    "lrEnd",
    "peak_lr",
    "warmup_steps",
    "cosine_T_max",
    "schedule",
    "use_plateau_scheduler",
    "use_ema",
    "l2_decay",
    "weight_decay",
)
# What is about names, places, data or speed. It changes neither the training nor its score, except
# for use_amp, the precision, which a study leaves free.
WITHOUT_EFFECT = (
    "outputDir",
    "datasetPath",
    "seqLen",
    "maxTimeSeriesLen",
    "nInputFeatures",
    "nDays",
    "run_name",
    "run_number",
    "run_purpose",
    "num_workers",
    "device",
    "per_ma_window",
    "use_amp",
)
# Switch -> (its settings, our field that it makes unknown, why we cannot express it).
NO_SCHEDULE = "not among our schedules"
SWITCHES: dict[str, tuple[tuple[str, ...], str, str]] = {
    "sgdr_T0": (("sgdr_Tmult",), "schedule.name", NO_SCHEDULE),
    "use_swa": (("swa_start", "swa_update_every", "swa_lr"), "schedule.name", NO_SCHEDULE),
    "adaptive_lr": ((), "schedule.name", NO_SCHEDULE),
    "plateau_guard_enable": (
        ("plateau_patience_evals", "plateau_delta", "plateau_shorten_factor"),
        "schedule.name",
        NO_SCHEDULE,
    ),
    "use_beam_search": (("beam_size",), "", "we decode greedily"),
}


def plain_arguments(arguments: Mapping[Any, Any]) -> dict[Any, Any]:
    """The same, with numbers, booleans and texts of numpy as those of Python. Names are texts."""
    return {_name(name): _plain(value) for name, value in arguments.items()}


def _name(name: Any) -> str:
    plain_name = _plain(name)
    if isinstance(plain_name, str):
        return plain_name
    if isinstance(plain_name, int | float | None):
        return str(plain_name)
    return f"a {type(plain_name).__name__}"


def _plain(value: Any) -> Any:
    """A short float becomes the number that a person would write: float32(0.05) is 0.05. A number
    that is too large for any argument becomes its description.
    """
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]
    if isinstance(value, int) and value.bit_length() > MOST_BITS:
        return f"a number of {value.bit_length()} bits"
    if isinstance(value, np.floating):
        return float(str(value))
    if isinstance(value, np.generic):
        return value.item()
    return value


def from_lab_arguments(arguments: Mapping[str, Any]) -> Translated:
    """Translate an `args` dict.

    A field that `args` does not record is left out, never guessed. The values are copied unchecked.
    """
    recorded = {name: value for name, value in arguments.items() if value is not None}
    config = {field: recorded[name] for name, field in SAME_VALUE.items() if name in recorded}
    accumulation = int(recorded.get("gradient_accumulation_steps", 1))
    for name, field in COUNTS_BATCHES.items():
        if name in recorded:
            config[field] = recorded[name] // accumulation
    for name, field in ZERO_IS_NULL.items():
        if name in recorded:
            config[field] = recorded[name] or None
    lr = recorded.get("peak_lr", recorded.get("lrStart"))
    if lr is not None:
        config["optimizer.lr"] = lr
    inexpressible = list(_switched_on(recorded))
    parts = [_averaging(recorded), _decay(recorded), *(_masks(recorded, word) for word in MASKS)]
    if not any(reason.field == "schedule.name" for reason in inexpressible):
        parts.append(_schedule(recorded, config.get("steps")))
    for part in parts:
        if isinstance(part, Inexpressible):
            inexpressible.append(part)
        else:
            config |= part
    return Translated(config, tuple(inexpressible), tuple(unknown_words(arguments)))


def unknown_words(arguments: Mapping[str, Any]) -> list[str]:
    """The arguments of which nobody here knows what they do to a training."""
    known = {*SAME_VALUE, *ZERO_IS_NULL, *COUNTS_BATCHES, *PLATEAU, *SPECIAL, *WITHOUT_EFFECT}
    known |= {f"{lab_word}_{word}" for lab_word in MASKS for word in MASK_WORDS}
    for switch, (settings, _, _) in SWITCHES.items():
        if switch in arguments:
            known |= {switch, *settings}
    return [name for name in arguments if name not in known]


def _switched_on(recorded: Mapping[str, Any]) -> Iterator[Inexpressible]:
    for switch, (_, field, why) in SWITCHES.items():
        if recorded.get(switch):
            yield Inexpressible(field, f"{switch} in args: {why}")


def _averaging(recorded: Mapping[str, Any]) -> dict[str, Any] | Inexpressible:
    """What `use_ema` says beyond `ema_decay`."""
    field = "optimizer.ema_decay"
    if recorded.get("use_ema") is False:
        return {field: None}
    if recorded.get("use_ema") and "ema_decay" not in recorded:
        return Inexpressible(field, "use_ema in args without ema_decay")
    return {}


def _decay(recorded: Mapping[str, Any]) -> dict[str, Any] | Inexpressible:
    """The weight decay: `weight_decay` counts with adamw, `l2_decay` with the others."""
    field = "optimizer.weight_decay"
    name, other = "l2_decay", "weight_decay"
    if recorded.get("optimizer") == "adamw":
        name, other = other, name
    if name in recorded:
        return {field: recorded[name]}
    if recorded.get(other):
        optimizer = recorded.get("optimizer", "adam")
        return Inexpressible(
            field, f"{other} = {recorded[other]} in args, but {optimizer} takes {name}"
        )
    return {}


def _masks(recorded: Mapping[str, Any], lab_word: str) -> dict[str, Any] | Inexpressible:
    word = MASKS[lab_word]
    p = recorded.get(f"{lab_word}_mask_prob")
    count = recorded.get(f"{lab_word}_mask_max_masks")
    width = recorded.get(f"{lab_word}_mask_width")
    if p == 0 or count == 0:
        return {f"augment.{word}_masks": 0}
    if p is None or count is None:
        given = [
            f"{lab_word}_{mask_word}"
            for mask_word in MASK_WORDS
            if f"{lab_word}_{mask_word}" in recorded
        ]
        if not given:
            return {}
        missing = "mask_prob" if p is None else "mask_max_masks"
        return Inexpressible(
            f"augment.{word}_masks",
            f"{' and '.join(given)} in args without {lab_word}_{missing}",
        )
    masks = {f"augment.{word}_masks": count, f"augment.{word}_mask_p": p}
    if width is not None:
        masks[f"augment.{word}_mask_width"] = width
    return masks


def _schedule(recorded: Mapping[str, Any], steps: int | None) -> dict[str, Any] | Inexpressible:
    """The schedule under our names, or why our configuration cannot express it."""
    found = _schedule_of_rates(recorded, steps)
    word = recorded.get("schedule")
    if word is None or isinstance(found, str):
        return Inexpressible("schedule.name", found) if isinstance(found, str) else found
    if word not in SCHEDULES:
        return Inexpressible("schedule.name", f"schedule {word} in args: {NO_SCHEDULE}")
    name = found.get("schedule.name", word)
    if name == "constant" and word == "linear":
        return {"schedule.name": word, "schedule.end_factor": 1.0}
    if name == "constant" and word == "warmup-cosine":
        return {"schedule.name": word, "schedule.end_factor": 1.0, "schedule.warmup": 0.0}
    if name != word:
        return Inexpressible(
            "schedule.name", f"schedule {word} in args, whose other values are of {name}"
        )
    return {"schedule.name": word} | found


def _schedule_of_rates(recorded: Mapping[str, Any], steps: int | None) -> dict[str, Any] | str:
    """The schedule as its numbers say, or why our configuration cannot express it."""
    lr = recorded.get("peak_lr", recorded.get("lrStart"))
    first_lr = recorded.get("lrStart", lr)
    if first_lr != lr:
        return f"lrStart = {first_lr} and peak_lr = {lr} in args: {NO_SCHEDULE}"
    last_lr = recorded.get("lrEnd")
    warmup = recorded.get("warmup_steps", 0)
    cosine = recorded.get("cosine_T_max")
    if recorded.get("use_plateau_scheduler"):
        if warmup:
            return f"warmup of {warmup} updates before a plateau schedule: {NO_SCHEDULE}"
        settings = {field: recorded[name] for name, field in PLATEAU.items() if name in recorded}
        return {"schedule.name": "plateau"} | settings
    if lr is not None and last_lr == lr and not warmup:
        return {"schedule.name": "constant"}
    if lr is None or last_lr is None or not steps:
        return _part_of_schedule(recorded)
    # neural_seq_decoder itself: lr runs linearly from lrStart to lrEnd.
    if cosine is None:
        if warmup:
            return f"warmup of {warmup} updates without a cosine: {NO_SCHEDULE}"
        return {"schedule.name": "linear", "schedule.end_factor": last_lr / lr}
    if warmup + cosine != steps:
        return (
            f"warmup of {warmup} and cosine of {cosine} updates in a run of {steps}: "
            "the schedule does not end with the run"
        )
    return {
        "schedule.name": "warmup-cosine",
        "schedule.warmup": warmup / steps,
        "schedule.end_factor": last_lr / lr,
    }


def _part_of_schedule(recorded: Mapping[str, Any]) -> dict[str, Any] | str:
    """Empty if nothing is recorded of a schedule, otherwise why that is not enough."""
    given = [name for name in ("lrEnd", "warmup_steps", "cosine_T_max") if recorded.get(name)]
    if not given:
        return {}
    needed = [name for name in ("lrStart", "lrEnd", "nBatch") if name not in recorded]
    if "peak_lr" in recorded and "lrStart" in needed:
        needed.remove("lrStart")
    missing = " and ".join(needed) or "a number of steps"
    return f"{' and '.join(given)} in args without {missing}: the schedule is not known"
