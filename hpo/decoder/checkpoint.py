"""Checkpoints of a training: written whole or not at all, beside the training, checked when read, the one before kept.

A file is named `checkpoint-STEP-DIGEST.pt`, where DIGEST is of its bytes, so a file that was cut or changed is known by
its name. The two newest are kept: a damaged one costs the work since the one before.
"""

import hashlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch

from hpo.decoder.train import TrainState

KEPT = 2


class Writer:
    """Writes files in a thread of its own, one at a time; the training pays for a copy in memory only."""

    def __init__(self, on_fault: Callable[[str, Exception], None]):
        """on_fault: is told, in that thread, what could not be written and why: OSError, or torch's RuntimeError."""
        self._pool = ThreadPoolExecutor(1, "writer")
        self._last: Future[None] | None = None
        self._on_fault = on_fault

    @property
    def busy(self) -> bool:
        return self._last is not None and not self._last.done()

    def submit(self, what: str, write: Callable[..., object], *arguments: Any) -> None:
        """write(*arguments) soon, with tensors as they are now. Waits for the write before."""
        self.wait()
        self._last = self._pool.submit(self.now, what, write, *_copied(arguments))

    def now(self, what: str, write: Callable[..., object], *arguments: Any) -> None:
        """In this thread."""
        try:
            write(*arguments)
        except (OSError, RuntimeError) as error:
            self._on_fault(what, error)

    def wait(self) -> None:
        if self._last is not None:
            self._last.result()

    def close(self) -> None:
        self._pool.shutdown()


def remove_drafts(folder: Path) -> None:
    """Half-written files of processes that were killed. For the only process that writes there."""
    for draft in folder.glob("*.tmp"):
        draft.unlink(missing_ok=True)


def _copied(value: Any) -> Any:
    """The same with every tensor copied to the CPU, which the training does not change any more."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_copied(item) for item in value)
    return value


def save_checkpoint(saved: dict[str, Any], folder: Path, beside: Any = None, still: Callable[[], bool] = lambda: True) -> None:
    """saved: of TrainState.state_dict(); beside: plain values that are kept with it.

    Written under a temporary name, then renamed if `still` it should be; older ones but one are removed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    draft = folder / f"checkpoint.{uuid4().hex}.tmp"  # process ids repeat: in containers, on other hosts
    try:
        torch.save(saved | {"beside": beside}, draft)
        if not still():
            return
        draft.replace(folder / f"checkpoint-{saved['step']:08d}-{_digest(draft)}.pt")
    finally:
        draft.unlink(missing_ok=True)
    by_age = sorted(checkpoints(folder), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    for old in by_age[KEPT:]:  # not by step: one that this version cannot use may be of a later step
        old.unlink(missing_ok=True)


def checkpoints(folder: Path) -> list[Path]:
    """The newest first."""
    return sorted(folder.glob("checkpoint-*.pt"), reverse=True)


def load_checkpoint(state: TrainState, folder: Path) -> tuple[list[str], Any]:
    """Go on where the newest whole checkpoint was; without one, `state` stays as it is.

    Returns a line for each checkpoint that could not be used (damaged: such a file is removed; unreadable; of another
    configuration or another version), and what was kept beside the one that was used.
    """
    faults: list[str] = []
    for path in checkpoints(folder):
        try:
            if _digest(path) != path.stem.rpartition("-")[2]:
                faults.append(f"{path.name}: {path.stat().st_size:,} bytes that are not those that were written")
                path.unlink()
                continue
            saved = torch.load(path, map_location="cpu", weights_only=True)  # generators want their states there
        except OSError as error:
            faults.append(f"{path.name}: cannot be read ({error.strerror})")
            continue
        beside = saved.pop("beside", None)
        if saved.keys() != state.state_dict().keys() or saved["config"] != state.config.model_dump():
            faults.append(f"{path.name}: of another configuration, or of another version of hpo")
            continue
        state.load_state_dict(saved)
        return faults, beside
    return faults, None


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
