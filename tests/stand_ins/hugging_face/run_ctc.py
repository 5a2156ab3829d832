"""Behaves as a script with Hugging Face's Trainer does, as a process: takes TrainingArguments as
flags, writes `checkpoint-N/trainer_state.json` with the whole history after each evaluation, goes
on exactly with `--resume_from_checkpoint OUTPUT_DIR/checkpoint-N`, and with nothing else. What it
trains is a formula: its WER falls the lower the nearer learning_rate is to 1e-4.

No code of that library is in here.
"""

import argparse
import json
import math
import os
import random
import shutil
import time
from typing import Any

SECONDS = float(os.environ.get("STAND_IN_SECONDS", "0.002"))
FLAGS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}

parser = argparse.ArgumentParser()
parser.add_argument("--output_dir", required=True)
parser.add_argument("--dataset_name", required=True)
parser.add_argument("--learning_rate", type=float, default=5e-5)
parser.add_argument("--weight_decay", type=float, default=0.0)
parser.add_argument("--warmup_steps", type=int, default=0)
parser.add_argument("--lr_scheduler_type", default="linear", choices=["linear", "cosine"])
parser.add_argument("--max_steps", type=int, default=-1)
parser.add_argument("--seed", type=int, default=42)
for name in ("--eval_strategy", "--save_strategy", "--report_to"):
    parser.add_argument(name, default="no")
for name in ("--eval_steps", "--save_steps", "--logging_steps", "--save_total_limit"):
    parser.add_argument(name, type=int, default=500)
for name in ("--do_train", "--do_eval", "--disable_tqdm", "--fp16"):
    parser.add_argument(
        name, type=lambda text: FLAGS[text.lower()], nargs="?", const=True, default=False
    )
parser.add_argument("--resume_from_checkpoint")
args = parser.parse_args()
assert args.do_train and os.path.exists(args.dataset_name), args
assert args.eval_strategy == args.save_strategy == "steps" and args.eval_steps == args.save_steps

dice = random.Random(args.seed)
history: list[dict[str, Any]] = []
begin = 0
if args.resume_from_checkpoint:
    with open(f"{args.resume_from_checkpoint}/rng_state.json", encoding="utf-8") as file:
        dice.setstate((3, tuple(json.load(file)), None))
    with open(f"{args.resume_from_checkpoint}/trainer_state.json", encoding="utf-8") as file:
        state = json.load(file)
    begin, history = state["global_step"], state["log_history"]
    print(f"goes on after step {begin}", flush=True)


def save(step: int, folder: str) -> None:
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "rng_state.json"), "w", encoding="utf-8") as file:
        json.dump(dice.getstate()[1], file)
    state = {"epoch": step / 100, "global_step": step, "log_history": history}
    with open(os.path.join(folder, "trainer_state.json"), "w", encoding="utf-8") as file:
        json.dump(state | {"max_steps": args.max_steps}, file, indent=2)


away = 0.1 * abs(math.log10(args.learning_rate / 1e-4)) + args.weight_decay
for step in range(begin + 1, args.max_steps + 1):
    wer = 0.9 * math.exp(-5 * step / args.max_steps) + 0.1 + away + 0.003 * dice.random()
    if step % args.logging_steps == 0:
        history.append({"epoch": step / 100, "loss": 8 * wer, "learning_rate": 1e-5, "step": step})
    if step % args.eval_steps == 0:
        time.sleep(SECONDS)
        history.append({"epoch": step / 100, "eval_loss": 9 * wer, "eval_wer": wer, "step": step})
        save(step, f"{args.output_dir}/checkpoint-{step}")
        old = step - args.save_total_limit * args.save_steps
        shutil.rmtree(f"{args.output_dir}/checkpoint-{old}", ignore_errors=True)
history.append({"epoch": args.max_steps / 100, "step": args.max_steps, "train_loss": 1.0})
save(args.max_steps, args.output_dir)
