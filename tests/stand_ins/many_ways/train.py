"""A training script that behaves as its configuration asks. It imports only hpo_report.py."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import hpo_report

args = hpo_report.config()
way = args["way"]
folder = hpo_report.checkpoints()
saved = os.path.join(folder, "state.json")
dice = random.Random(hpo_report.seed())
value = 1.0
first = 1


def sleep(seconds: float) -> None:
    if seconds:
        time.sleep(seconds)


def save(step: int) -> None:
    state = dice.getstate()
    with open(saved + ".draft", "w") as file:
        json.dump(
            {"step": step, "value": value, "dice": [state[0], list(state[1]), state[2]]}, file
        )
    os.replace(saved + ".draft", saved)


if way in ("exact", "longer") and hpo_report.resuming():
    with open(saved) as file:
        before = json.load(file)
    first = before["step"] + 1
    value = before["value"]
    dice.setstate((before["dice"][0], tuple(before["dice"][1]), before["dice"][2]))
if way == "broken-resume" and hpo_report.resuming():
    sys.exit("the checkpoint cannot be read")
if way == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    children = [
        subprocess.Popen(
            [sys.executable, "-c", "import signal, time; signal.signal(15, 1); time.sleep(600)"]
        )
    ]
if way == "leaves":
    code = "import os, time; os.setsid(); time.sleep(600)"
    subprocess.Popen([sys.executable, "-c", code])
if way == "obeys":
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
if args.get("dangles"):
    # As when the checkpoint that a link names is renamed.
    os.symlink("gone", os.path.join(folder, "last"))
if way == "hangs":
    time.sleep(600)
if way == "binary":
    sys.stdout.buffer.write(bytes(range(256)) * 100)
    sys.stdout.flush()

last = args["steps"] + (first - 1 if way == "longer" else 0)
for step in range(first, last + 1):
    sleep(args["seconds"])
    value = max(0.05, value - args["lr"] * dice.random())
    if step % args["every"] == 0 or step == last:
        shown = value
        if way == "nan" and step > last // 2:
            shown = float("nan")
        if way == "negative":
            shown = -value
        if way == "percent":
            shown = 100 * value
        if args.get("rows_among_checkpoints"):
            with open(os.path.join(folder, "rows.jsonl"), "a") as file:
                file.write(json.dumps({"step": step, "value": shown}) + "\n")
        if way == "once-bad" and os.environ.get("HPO_ATTEMPT") == "1" and step == 10:
            shown = -1.0
        if way != "silent":
            hpo_report.report(step, shown, loss=2 * value, lr=args["lr"])
        saves = way in ("exact", "longer", "broken-resume") and not args.get("forgets")
        if saves and step % args.get("saves_every", 1) == 0:
            save(step)
        if way == "loud":
            for _ in range(args["megabytes"]):
                sys.stdout.write(("x" * 99 + "\n") * 10000)
            print("the end of a loud script")
    if way == "out-of-memory" and step == last // 2:
        sys.exit("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 GiB")
    if way == "fails" and step == last // 2:
        raise ValueError("a fault of the script")
    if way == "backwards" and step == last // 2:
        hpo_report.report(1, value)
    if way == "killed" and step == last // 2:
        os.kill(os.getpid(), signal.SIGKILL)
if way == "loss-at-the-end":
    hpo_report.report(last + 3, loss=1.0)
