"""A process that behaves like a script with a LightningCLI: `fit --config FILE [--ckpt_path FILE]`.

Like a CSVLogger it rewrites its table when a column is added, and like a ModelCheckpoint it
writes `last.ckpt` after each validation. It resumes exactly. It trains a formula, whose PER falls
lower the nearer lr is to 0.003. It contains no code of Lightning.
"""

import argparse
import csv
import json
import math
import os
import random
import time
from typing import Any

import yaml

SECONDS = float(os.environ.get("STAND_IN_SECONDS", "0.002"))

parser = argparse.ArgumentParser()
parser.add_argument("subcommand", choices=["fit", "validate", "test", "predict"])
parser.add_argument("--config", required=True)
parser.add_argument("--ckpt_path")
words = parser.parse_args()
with open(words.config, encoding="utf-8") as file:
    config = yaml.safe_load(file)
assert set(config) == {"seed_everything", "trainer", "model", "data", "ckpt_path"}, set(config)
model, trainer = config["model"], config["trainer"]
logger, checkpoint = trainer["logger"], trainer["callbacks"][0]
assert logger["class_path"].endswith("CSVLogger"), logger
assert checkpoint["class_path"].endswith("ModelCheckpoint"), checkpoint
assert type(model["lr"]) is float, model["lr"]
assert len(model["betas"]) == 2, model["betas"]
assert os.path.exists(config["data"]["path"]), config["data"]

place = logger["init_args"]
folder = os.path.join(place["save_dir"], place["name"], place["version"])
last = os.path.join(checkpoint["init_args"]["dirpath"], "last.ckpt")
os.makedirs(folder, exist_ok=True)
# The real one saves its configuration there, and ends if there is one.
with open(os.path.join(folder, "config.yaml"), "x", encoding="utf-8") as file:
    yaml.safe_dump(config, file)
rows: list[dict[str, Any]] = []


def log(step: int, **metrics: float) -> None:
    rows.append({"epoch": step // 100, "step": step, **metrics})
    columns = sorted({name for row in rows for name in row})
    with open(os.path.join(folder, "metrics.csv"), "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


dice = random.Random(config["seed_everything"])
done = 0
if words.ckpt_path:
    with open(words.ckpt_path, encoding="utf-8") as file:
        saved = json.load(file)
    done = saved["global_step"]
    print(f"goes on after step {done}", flush=True)
    dice.setstate((saved["dice"][0], tuple(saved["dice"][1]), None))
away = abs(math.log10(model["lr"] / 0.003)) * 0.1 + abs(model["dropout"] - 0.2) * 0.1
for step in range(done, trainer["max_steps"]):
    noise = 0.003 * dice.random()
    per = 0.9 * math.exp(-5 * (step + 1) / trainer["max_steps"]) + 0.1 + away + noise
    if (step + 1) % 50 == 0:
        log(step, train_loss=10 * per)
    if (step + 1) % trainer["val_check_interval"] == 0:
        time.sleep(SECONDS)
        log(step, val_per=per, val_loss=20 * per)
        if checkpoint["init_args"]["save_last"]:
            os.makedirs(os.path.dirname(last), exist_ok=True)
            with open(last + ".part", "w", encoding="utf-8") as file:
                json.dump({"global_step": step + 1, "dice": dice.getstate()[:2]}, file)
            os.replace(last + ".part", last)
print(f"`Trainer.fit` stopped: `max_steps={trainer['max_steps']}` reached.")
