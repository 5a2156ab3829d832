"""Lets a training script talk to hpo, the hyperparameter search. Python 3.6 or later, no packages.

Copy this file next to your script. Outside of a search the functions do nothing, so that the script
still runs on its own. In a training loop:

    import hpo_report

    settings = hpo_report.config({"lr": 0.001, "model": {"layers": 5}})
    for step in range(1, steps + 1):
        loss = ...
        if step % 100 == 0:
            hpo_report.report(step, error_rate, loss=loss)
            if hpo_report.should_stop():
                break

With several processes (torchrun, accelerate), call `report` only in the first one.
"""

import json
import os
from pathlib import Path
from typing import Any


def config(default: Any = None) -> Any:
    """The values of this trial, nested as in your base file, or `default` outside of a search."""
    path = os.environ.get("HPO_CONFIG")
    if not path:
        return default
    return json.loads(Path(path).read_text(encoding="utf-8"))


def report(step: int, value: Any = None, **more: Any) -> None:
    """Report how far the training is, as often as you like.

    step: the number of updates (or epochs) done, which never decreases. value: the figure that the
    search optimizes; omit it to report only a loss. more: `loss=...`, `validation_loss=...`, or
    other numbers to plot. With `errors=[...], lengths=[...]`, one of each per validation sentence,
    results get confidence intervals. NumPy, PyTorch and JAX values are fine.
    """
    path = os.environ.get("HPO_METRICS")
    if not path:
        return
    row = {"step": int(step)}  # type: dict[str, Any]
    if value is not None:
        row["value"] = float(value)
    for name, item in more.items():
        row[name] = _plain(item)
    line = json.dumps(row) + "\n"
    # Unbuffered: hpo sees each line at once, and whole even if several processes report.
    with Path(path).open("ab", buffering=0) as file:
        file.write(line.encode())


def checkpoints() -> "str | None":
    """The folder for your checkpoints, or None outside of a search.

    It contains the files that an earlier attempt at the same trial saved. See `resuming`.
    """
    return os.environ.get("HPO_CHECKPOINTS") or None


def resuming() -> bool:
    """Whether an earlier attempt was interrupted, so that you can resume from its checkpoint."""
    return os.environ.get("HPO_RESUME") == "1"


def should_stop() -> bool:
    """Whether to save a checkpoint and exit now. hpo ends the script soon after."""
    path = os.environ.get("HPO_STOP")
    return bool(path) and Path(str(path)).exists()


def seed(default: int = 0) -> int:
    """The seed of this trial, or `default` outside of a search."""
    return int(os.environ.get("HPO_SEED") or default)


def _plain(value: Any) -> Any:
    """The value for JSON: arrays and tensors as lists, arrays of a single number as that number."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return float(value)
