"""A configuration in the words of the lab's own trainer (the argument names of neural_seq_decoder and its descendants)."""

from typing import Any

from hpo.decoder.config import DecoderConfig


def lab_arguments(config: DecoderConfig, n_features: int, n_days: int) -> dict[str, Any]:
    """The `args` dict. `eps`, `momentum` and `nesterov` have no name there: those trainers have them in their code."""
    model, optimizer, schedule, augment = config.model, config.optimizer, config.schedule, config.augment
    warmup_steps = round(schedule.warmup * config.steps) if schedule.name == "warmup-cosine" else 0
    decays = schedule.name in ("linear", "warmup-cosine")
    return {
        "seed": config.seed,
        "nBatch": config.steps,
        "batchSize": config.batch_size,
        "gradient_accumulation_steps": config.accumulation,
        "eval_every": config.evaluate_every,
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
