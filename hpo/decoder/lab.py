"""A configuration in the words of the lab's own trainer (the argument names of neural_seq_decoder and its descendants).

That trainer counts batches; the schedules of its descendants, however, are stepped once per update.
"""

from collections.abc import Mapping
from typing import Any

from hpo.decoder.config import DecoderConfig


def lab_arguments(config: DecoderConfig, n_features: int, n_days: int) -> dict[str, Any]:
    """The `args` dict. `eps`, `momentum` and `nesterov` have no name there: those trainers have them in their code."""
    model, optimizer, schedule, augment = (
        config.model,
        config.optimizer,
        config.schedule,
        config.augment,
    )
    warmup_steps = round(schedule.warmup * config.steps) if schedule.name == "warmup-cosine" else 0
    decays = schedule.name in ("linear", "warmup-cosine")
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
        "lrEnd": optimizer.lr * schedule.end_factor if decays else optimizer.lr,
        "eps": optimizer.eps if optimizer.name != "sgd" else None,
        "momentum": optimizer.momentum if optimizer.name == "sgd" else None,
        "nesterov": optimizer.nesterov if optimizer.name == "sgd" else None,
        "l2_decay": optimizer.weight_decay if optimizer.name != "adamw" else 0.0,
        "weight_decay": optimizer.weight_decay,
        "grad_clip_norm": optimizer.grad_clip_norm or 0.0,
        "ema_decay": optimizer.ema_decay or 0.0,
        "schedule": schedule.name,
        "warmup_steps": warmup_steps,
        "cosine_T_max": config.steps - warmup_steps if schedule.name == "warmup-cosine" else None,
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


SAME = {  # the lab's name -> ours, where the value is the same
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
OFF = {
    "grad_clip_norm": "optimizer.grad_clip_norm",
    "ema_decay": "optimizer.ema_decay",
}  # 0 there is null here
MASKS = {"time": "time", "freq": "feature"}  # the lab's word -> ours
PLATEAU = {
    "plateau_patience": "schedule.patience",
    "plateau_factor": "schedule.factor",
    "plateau_min_lr": "schedule.min_lr",
}


def from_lab_arguments(arguments: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """(dotted name -> value as far as `args` tells, what of it our configuration cannot say). Nothing is guessed: a field that
    `args` does not record is left out. The values are as they stand there, not checked.
    """
    given = {name: value for name, value in arguments.items() if value is not None}
    config = {ours: given[theirs] for theirs, ours in SAME.items() if theirs in given}
    accumulation = int(given.get("gradient_accumulation_steps", 1))
    for theirs, ours in (("nBatch", "steps"), ("eval_every", "evaluate_every")):
        if theirs in given:
            config[ours] = given[theirs] // accumulation
    decay = "weight_decay" if given.get("optimizer") == "adamw" else "l2_decay"
    if decay in given:
        config["optimizer.weight_decay"] = given[decay]
    for theirs, ours in OFF.items():
        if theirs in given:
            config[ours] = given[theirs] or None
    if given.get("use_ema") is False:
        config["optimizer.ema_decay"] = None
    for theirs, ours in MASKS.items():
        p, masks = given.get(f"{theirs}_mask_prob"), given.get(f"{theirs}_mask_max_masks")
        if p == 0 or masks == 0:
            config[f"augment.{ours}_masks"] = 0
        elif p is not None and masks is not None:
            config |= {f"augment.{ours}_masks": masks, f"augment.{ours}_mask_p": p}
            if f"{theirs}_mask_width" in given:
                config[f"augment.{ours}_mask_width"] = given[f"{theirs}_mask_width"]
    schedule, foreign = _schedule(given, config.get("steps"))
    return config | schedule, foreign


def _schedule(given: Mapping[str, Any], steps: int | None) -> tuple[dict[str, Any], list[str]]:
    """lr and schedule in our names, and why the schedule cannot be said."""
    lr, end = given.get("peak_lr", given.get("lrStart")), given.get("lrEnd")
    config = {} if lr is None else {"optimizer.lr": lr}
    foreign = [
        f"{name} in args: not among our schedules"
        for name in ("sgdr_T0", "use_swa", "adaptive_lr")
        if given.get(name)
    ]
    if foreign or lr is None:
        return config, foreign
    if given.get("use_plateau_scheduler"):
        return config | {"schedule.name": "plateau"} | {
            ours: given[theirs] for theirs, ours in PLATEAU.items() if theirs in given
        }, []
    warmup, cosine = given.get("warmup_steps", 0), given.get("cosine_T_max")
    if end == lr and not warmup:
        return config | {"schedule.name": "constant"}, []
    if end is None or not steps:
        return config, []
    if cosine is None:  # neural_seq_decoder: lr runs in a line from lrStart to lrEnd
        return config | {"schedule.name": "linear", "schedule.end_factor": end / lr}, []
    if warmup + cosine != steps:
        return config, [
            f"warmup of {warmup} and cosine of {cosine} updates in a run of {steps}: the schedule does not end with the run"
        ]
    return config | {
        "schedule.name": "warmup-cosine",
        "schedule.warmup": warmup / steps,
        "schedule.end_factor": end / lr,
    }, []
