"""Behaves as neural_seq_decoder does, as a process: takes Hydra overrides, works in the folder that
`outputDir` names, prints a line every 100 batches, keeps its best weights alone and knows no
resuming. What it trains is a formula: its error falls the lower the nearer lrStart is to 0.01.

No code of that project or of Hydra is in here.
"""

import json
import math
import os
import random
import re
import sys
import time
from typing import Any

import yaml

SECONDS = float(os.environ.get("STAND_IN_SECONDS", "0.002"))
SPECIAL = re.compile(r"(?<!\\)[\[\]{}():=,]")


def value_of(text: str) -> Any:
    """As Hydra reads the part behind `=`."""
    text = text.strip()
    if text[:1] in ("'", '"'):
        if len(text) < 2 or text[-1] != text[0]:
            sys.exit(f"no viable alternative at input {text!r}")
        return text[1:-1]
    if text.startswith("[") and text.endswith("]"):
        return [value_of(item) for item in text[1:-1].split(",") if item]
    if SPECIAL.search(text.replace(":", "")):
        sys.exit(f"mismatched input in {text!r} expecting <EOF>")
    if text.lower() in ("true", "false", "null"):
        return {"true": True, "false": False, "null": None}[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return re.sub(r"\\(.)", r"\1", text)


def configured(overrides: list[str]) -> dict[str, Any]:
    path = os.path.join(os.path.dirname(__file__), "conf", "config.yaml")
    with open(path, encoding="utf-8") as file:
        config = yaml.safe_load(file)
    for override in overrides:
        match = re.fullmatch(r"(\+{0,2})([\w.]+)=(.*)", override, re.DOTALL)
        plus, name, text = match.groups()
        if not plus and name not in config:
            sys.exit(f"Could not override '{name}'. To append to your config use +{override}")
        if plus == "+" and name in config:
            sys.exit(f"Could not append to config. An item is already at '{name}'.")
        config[name] = value_of(text)
    return dict(config)


args = configured(sys.argv[1:])
os.makedirs(args["outputDir"], exist_ok=True)
os.chdir(args["outputDir"])
with open("args.json", "w", encoding="utf-8") as file:
    json.dump(args, file)
assert os.path.exists(args["datasetPath"]), args["datasetPath"]
assert args["lrStart"] == args["lrEnd"], (args["lrStart"], args["lrEnd"])
dice = random.Random(args["seed"])
away = abs(math.log10(args["lrStart"] / 0.01)) + abs(args["whiteNoiseSD"] - 0.8)
for batch in range(0, args["nBatch"], 100):
    time.sleep(SECONDS)
    done = batch / args["nBatch"]
    cer = 0.9 * math.exp(-4 * done) + 0.1 + 0.1 * away * done + 0.003 * dice.random()
    loss = math.nan if args["lrStart"] > 0.09 and batch else 3 * cer
    print(f"batch {batch}, ctc loss: {loss:>7f}, cer: {cer:>7f}, time/batch: {0.01:>7.3f}")
