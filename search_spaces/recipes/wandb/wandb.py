"""Stands in for the package `wandb`: sends what a script logs to hpo, and nothing to W&B.

Put the folder of this file first on PYTHONPATH, for trials of hpo only. Each call of `log`
appends a line of JSON to the file HPO_METRICS, with `step` and the logged numbers. `config` has
the values of the trial instead of those that the script gives, as in a sweep of W&B. Everything
else that a script asks `wandb` for does nothing. Needs Python 3.6 or later and no packages.
"""

import json
import os
import sys
import types
from pathlib import Path
from typing import Any

__version__ = "0.0.0"

# hpo reads these names in its own way: a number that the script calls so is kept as wandb/step.
RESERVED = ("step", "errors", "lengths")


class Nothing:
    """Whatever a script asks for: called, entered, iterated or asked for more, it does nothing."""

    def __init__(self, *words: Any, **named: Any) -> None:
        pass

    def __call__(self, *words: Any, **named: Any) -> "Nothing":
        return self

    def __getattr__(self, name: str) -> "Nothing":
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __setattr__(self, name: str, value: Any) -> None:
        pass

    def __getitem__(self, key: Any) -> "Nothing":
        return self

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def __iter__(self) -> Any:
        return iter(())

    def __len__(self) -> int:
        return 0

    def __enter__(self) -> "Nothing":
        return self

    def __exit__(self, *error: Any) -> None:
        pass

    def __str__(self) -> str:
        return ""


class Values(dict):  # type: ignore[type-arg]
    """A dict whose items are attributes too: `config` and `summary`."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def update(  # type: ignore[override]
        self, given: Any = None, allow_val_change: Any = None, **named: Any
    ) -> None:
        """given: a dict, or what argparse returns."""
        super().update(_items(given), **named)

    def setdefaults(self, given: Any) -> None:
        super().update({**_items(given), **self})


class Config(Values):
    """The values of the trial stay, whatever the script sets."""

    def update(  # type: ignore[override]
        self, given: Any = None, allow_val_change: Any = None, **named: Any
    ) -> None:
        super().update(_merged({**_items(given), **named}, _trial()))


class Run:
    """What `init` returns."""

    id = name = "hpo"
    project = entity = group = url = notes = ""
    tags = ()  # type: tuple[str, ...]
    resumed = False
    dir = "."

    def __init__(self) -> None:
        self.config = Config()
        self.config.update()
        self.summary = Values()
        self.step = 0

    def log(self, data: Any, step: Any = None, commit: Any = None, sync: Any = None) -> None:
        """As W&B counts: without `step` each call is a step, unless `commit` is False; with `step`
        calls belong to one step until another is given, and what is of an earlier one is dropped.
        """
        if step is not None:
            if int(step) < self.step:
                return _say(f"log: step {step} is before step {self.step}, it is dropped")
            self.step = int(step)
        numbers = _numbers(data)
        self.summary.update(numbers)
        if numbers:
            _append({"step": self.step, **numbers})
        if commit or (commit is None and step is None):
            self.step += 1
        return None

    def finish(self, *words: Any, **named: Any) -> None:
        finish()

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *error: Any) -> None:
        finish()

    def __getattr__(self, name: str) -> Nothing:
        if name.startswith("__"):
            raise AttributeError(name)
        return Nothing()


run = None  # type: Run | None
config = Config()
summary = Values()


def init(*words: Any, **named: Any) -> Run:
    """Begin a run whose steps count from 0. A run that goes on already is returned, as by W&B."""
    global run, config, summary
    if run is None:
        if not os.environ.get("HPO_METRICS"):
            _say("no trial of hpo runs here (HPO_METRICS is not set), so nothing is recorded")
        run = Run()
        config = run.config
        summary = run.summary
    config.update(named.get("config"))
    return run


def log(data: Any, step: Any = None, commit: Any = None, sync: Any = None) -> None:
    """Of the run; without `init` it begins here."""
    (run or init()).log(data, step, commit, sync)


def finish(*words: Any, **named: Any) -> None:
    """The next `init` begins another run."""
    global run
    run = None


def _items(given: Any) -> "dict[str, Any]":
    """Of a dict, of what argparse returns, or of nothing."""
    if given is None or isinstance(given, (str, Path)):
        return {}
    return dict(given) if hasattr(given, "keys") else dict(vars(given))


def _merged(given: "dict[str, Any]", over: "dict[str, Any]") -> "dict[str, Any]":
    """Groups within groups too."""
    found = dict(given)
    for name, value in over.items():
        below = found.get(name)
        if isinstance(value, dict) and isinstance(below, dict):
            value = _merged(below, value)
        found[name] = value
    return found


def _trial() -> "dict[str, Any]":
    """The values of the trial."""
    path = os.environ.get("HPO_CONFIG")
    if not path:
        return {}
    found = json.loads(Path(path).read_text(encoding="utf-8"))
    return dict(found)


def _numbers(data: Any, prefix: str = "") -> "dict[str, float]":
    """{"train": {"loss": 0.1}} -> {"train/loss": 0.1}, without all that is no number."""
    found = {}  # type: dict[str, float]
    for name, value in dict(data).items():
        key = f"{prefix}{name}"
        if isinstance(value, dict):
            found.update(_numbers(value, key + "/"))
        elif not isinstance(value, (bool, str, bytes, list, tuple)):
            # A loss of PyTorch as it comes out of the model.
            plain = value.detach() if hasattr(value, "detach") else value
            try:
                found["wandb/" + key if key in RESERVED else key] = float(plain)
            except (TypeError, ValueError, RuntimeError):
                # An image, a table, or an array of several numbers.
                continue
    return found


def _append(row: "dict[str, Any]") -> None:
    """In one unbuffered write: hpo reads the file meanwhile."""
    path = os.environ.get("HPO_METRICS")
    if path:
        with Path(path).open("ab", buffering=0) as file:
            file.write((json.dumps(row) + "\n").encode())


def _say(what: str) -> None:
    print("wandb (the stand-in of hpo): " + what, file=sys.stderr)


class _Module(types.ModuleType):
    """Gives Python 3.6, too, what is not written above: classes such as Image, or functions."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Nothing if name[:1].isupper() else Nothing()


sys.modules[__name__].__class__ = _Module
