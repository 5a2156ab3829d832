"""Translates configurations to and from the argument names of the lab's own trainer.

That trainer is neural_seq_decoder and its descendants. It counts batches, but the schedules of its
descendants advance once per update.
"""

from collections.abc import Mapping
from typing import Any

from hpo.decoder.config import DecoderConfig


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


def from_lab_arguments(arguments: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Translate an `args` dict.

    Returns (dotted name -> value, what our configuration cannot express). A field that `args` does
    not record is left out, never guessed. The values are copied unchecked.
    """
    recorded = {name: value for name, value in arguments.items() if value is not None}
    config = {field: recorded[name] for name, field in SAME_VALUE.items() if name in recorded}
    accumulation = int(recorded.get("gradient_accumulation_steps", 1))
    for name, field in COUNTS_BATCHES.items():
        if name in recorded:
            config[field] = recorded[name] // accumulation
    decay = "weight_decay" if recorded.get("optimizer") == "adamw" else "l2_decay"
    if decay in recorded:
        config["optimizer.weight_decay"] = recorded[decay]
    for name, field in ZERO_IS_NULL.items():
        if name in recorded:
            config[field] = recorded[name] or None
    if recorded.get("use_ema") is False:
        config["optimizer.ema_decay"] = None
    for lab_word, word in MASKS.items():
        config |= _masks(recorded, lab_word, word)
    schedule, inexpressible = _schedule(recorded, config.get("steps"))
    return config | schedule, inexpressible


def _masks(recorded: Mapping[str, Any], lab_word: str, word: str) -> dict[str, Any]:
    p = recorded.get(f"{lab_word}_mask_prob")
    count = recorded.get(f"{lab_word}_mask_max_masks")
    if p == 0 or count == 0:
        return {f"augment.{word}_masks": 0}
    if p is None or count is None:
        return {}
    masks = {f"augment.{word}_masks": count, f"augment.{word}_mask_p": p}
    width = f"{lab_word}_mask_width"
    if width in recorded:
        masks[f"augment.{word}_mask_width"] = recorded[width]
    return masks


def _schedule(recorded: Mapping[str, Any], steps: int | None) -> tuple[dict[str, Any], list[str]]:
    """lr and schedule under our names, and why our configuration cannot express the schedule."""
    lr = recorded.get("peak_lr", recorded.get("lrStart"))
    config = {} if lr is None else {"optimizer.lr": lr}
    inexpressible = [
        f"{name} in args: not among our schedules"
        for name in ("sgdr_T0", "use_swa", "adaptive_lr")
        if recorded.get(name)
    ]
    if inexpressible or lr is None:
        return config, inexpressible
    if recorded.get("use_plateau_scheduler"):
        settings = {field: recorded[name] for name, field in PLATEAU.items() if name in recorded}
        return config | {"schedule.name": "plateau"} | settings, []
    last_lr = recorded.get("lrEnd")
    warmup = recorded.get("warmup_steps", 0)
    cosine = recorded.get("cosine_T_max")
    if last_lr == lr and not warmup:
        return config | {"schedule.name": "constant"}, []
    if last_lr is None or not steps:
        return config, []
    # neural_seq_decoder itself: lr runs linearly from lrStart to lrEnd.
    if cosine is None:
        return config | {"schedule.name": "linear", "schedule.end_factor": last_lr / lr}, []
    if warmup + cosine != steps:
        reason = (
            f"warmup of {warmup} and cosine of {cosine} updates in a run of {steps}: "
            f"the schedule does not end with the run"
        )
        return config, [reason]
    config["schedule.name"] = "warmup-cosine"
    config["schedule.warmup"] = warmup / steps
    config["schedule.end_factor"] = last_lr / lr
    return config, []
