"""A process that behaves like the Brain-to-Text '25 trainer.

It reads rnn_args.yaml in the folder where it is started, refuses an output folder that exists,
writes `training_log`, fails at a gradient that is not finite, and cannot resume. It trains a
formula, whose PER falls faster the nearer the learning rate is to 0.004. It contains no code of
that trainer.
"""

import logging
import math
import os
import random
import sys
import time
from typing import Any

import yaml

with open("rnn_args.yaml", encoding="utf-8") as file:
    args = yaml.safe_load(file)


def resolved(value: Any) -> Any:
    """`${name}` of another field."""
    if isinstance(value, str) and value.startswith("${"):
        return resolved(args[value[2:-1]])
    return value


os.makedirs(args["output_dir"], exist_ok=False)
log = logging.getLogger("trainer")
log.setLevel(logging.INFO)
for handler in (
    logging.FileHandler(os.path.join(args["output_dir"], "training_log")),
    logging.StreamHandler(sys.stdout),
):
    handler.setFormatter(logging.Formatter("%(asctime)s: %(message)s"))
    log.addHandler(handler)

lr = args["lr_max"]
assert isinstance(lr, float), f"lr_max is {lr!r}"
assert args["lr_max_day"] == lr, (args["lr_max_day"], lr)
assert resolved(args["lr_decay_steps"]) == args["num_training_batches"]
dropout = args["model"]["rnn_dropout"]
# The real one draws its first weights from the one, and its batches and noise from the other.
dice = random.Random(f"{args['seed']} {resolved(args['dataset']['seed'])}")
every = args["batches_per_val_step"]
log.info("Using device: %s", os.environ.get("CUDA_VISIBLE_DEVICES") or "cpu")
for batch in range(args["num_training_batches"]):
    time.sleep(args.get("stand_in_seconds", 0.0))
    loss = 100 * math.exp(-batch * lr * 20 / args["num_training_batches"]) + dice.random()
    if lr > 0.03 and batch > every:
        raise RuntimeError(
            "The total norm of order 2.0 for gradients from `parameters` is non-finite, "
            "so it cannot be clipped."
        )
    if batch % args["batches_per_train_log"] == 0:
        log.info(
            "Train batch %d: loss: %.2f grad norm: %.2f time: %.3f", batch, loss, dice.random(), 0.1
        )
    if batch % every == 0 or batch == args["num_training_batches"] - 1:
        time.sleep(float(os.environ.get("STAND_IN_SECONDS", "0")))
        done = batch / args["num_training_batches"]
        away = abs(math.log10(lr / 0.004)) * 0.2 + abs(dropout - 0.35) * 0.2
        per = 1.05 * math.exp(-4 * done) + 0.1 + away * done + 0.003 * dice.random()
        log.info(
            "Val batch %d: PER (avg): %.4f CTC Loss (avg): %.4f time: %.3f",
            batch,
            per,
            30 * per,
            1.0,
        )
        for session in ("t15.2023.08.11", "t15.2023.08.13"):
            log.info("%s val PER: %.4f", session, per)
log.info("Best avg val PER achieved: %.5f", per)
