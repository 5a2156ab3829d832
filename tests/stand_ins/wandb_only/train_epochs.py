"""Behaves as a script does that tells its progress to Weights & Biases alone: two participants, one
row of each epoch in two calls, some of it no number. It knows no resuming. What it trains is a
formula: its error falls the lower the nearer lr is to 0.001.
"""

import argparse
import math
import os
import random
import time

import wandb

SECONDS = float(os.environ.get("STAND_IN_SECONDS", "0.002"))

parser = argparse.ArgumentParser()
parser.add_argument("--data", required=True)
parser.add_argument("--lr", type=float, default=0.0005)
parser.add_argument("--l2", type=float, default=1e-5)
parser.add_argument("--dropout", type=float, default=0.3)
parser.add_argument("--epochs", type=int, default=100)
parser.add_argument("--seed", type=int, default=0)
args = parser.parse_args()
assert os.path.exists(args.data), args.data

run = wandb.init(project="decoder", config=vars(args), settings=wandb.Settings(silent=True))
wandb.define_metric("per_*", summary="min")
config = wandb.config
dice = random.Random(config.seed)
away = 0.1 * abs(math.log10(config.lr / 0.001)) + 0.1 * abs(config["dropout"] - 0.3)
for epoch in range(config.epochs):
    time.sleep(SECONDS)
    per = 0.9 * math.exp(-5 * epoch / config.epochs) + 0.1 + away + 0.003 * dice.random()
    wandb.log({"train": {"loss": 10 * per, "lr": config.lr}, "epoch": epoch}, commit=False)
    wandb.log(
        {"per_0": per - 0.02, "per_1": per + 0.02, "sentences": wandb.Table(columns=["text"])}
    )
run.summary["best_per"] = per
model = wandb.Artifact("model", type="model")
model.add_file("model.pt")
run.log_artifact(model)
wandb.finish()
