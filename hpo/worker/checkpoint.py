"""Checkpoints of a training: written whole or not at all, and checked when they are read.

A file is named `checkpoint-STEP-DIGEST.pt`. DIGEST is that of its bytes, so the name reveals a file
that was cut or changed. The two newest are kept: a damaged one costs the work since the one before.
A thread writes them, while the training continues.
"""

import hashlib
import os
import shutil
import stat
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch

from hpo.curve import Point
from hpo.data.pickles import check_torch_file
from hpo.errors import shortened
from hpo.settings import Config
from hpo.space.upgrade import upgraded_curve
from hpo.trainer import Training, Weights
from hpo.worker.device import first_line, is_memory_short

# How many checkpoints are kept.
KEPT = 2
# Subclasses of these, such as NumPy's numbers, cannot be read back.
PLAIN = (bool, int, float, str, bytes, type(None))


class Writer:
    """Writes files in a thread, one at a time. The training only pays for a copy in memory."""

    def __init__(self, on_fault: Callable[[str, Exception], None]):
        """on_fault: is told, in that thread, what could not be written and why.

        The error is an OSError or torch's RuntimeError.
        """
        self._pool = ThreadPoolExecutor(1, "writer")
        self._last: Future[None] | None = None
        self._on_fault = on_fault

    @property
    def busy(self) -> bool:
        return self._last is not None and not self._last.done()

    def submit(self, what: str, write: Callable[..., object], *arguments: Any) -> None:
        """Call `write(*arguments)` soon, with the tensors as they are now.

        Waits for the write before. what: names the file in an error.
        """
        self.wait()
        self._last = self._pool.submit(self.now, what, write, *_copied(arguments))

    def now(self, what: str, write: Callable[..., object], *arguments: Any) -> None:
        """Call `write(*arguments)` in this thread."""
        try:
            write(*arguments)
        except (OSError, RuntimeError) as error:
            self._on_fault(what, error)

    def wait(self) -> None:
        if self._last is not None:
            self._last.result()

    def close(self) -> None:
        self._pool.shutdown()


def _copied(value: Any) -> Any:
    """The value with every tensor copied to the CPU, where the training cannot change it."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_copied(item) for item in value)
    return value


def remove_drafts(folder: Path) -> None:
    """Remove half-written files and folders of processes that were killed.

    No other process may be writing in the folder.
    """
    for pattern in ("*.tmp", "*.tmp.*"):
        for draft in folder.glob(pattern):
            if draft.is_dir():
                shutil.rmtree(draft, ignore_errors=True)
            else:
                draft.unlink(missing_ok=True)


def write_atomically(
    path: Path, write: Callable[[Path], None], may_replace: Callable[[], bool]
) -> bool:
    """Write under a temporary name, then rename the file if `may_replace` returns True.

    Returns whether the file was renamed. Raises what `write` raises.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # A process id would not do: they repeat in containers and on other hosts. The draft keeps the
    # suffix, because some writers add it where it is missing.
    draft = path.with_name(f"{path.stem}.{uuid4().hex}.tmp{path.suffix}")
    try:
        draft.touch(0o666, exist_ok=False)
        mode = draft.stat().st_mode
        write(draft)
        _share(draft, mode)
        if not may_replace():
            return False
        draft.replace(path)
        return True
    finally:
        draft.unlink(missing_ok=True)


def _share(path: Path, mode: int) -> None:
    """Let those read the file who may read its folder: some writers make it private.

    mode: what the umask gives to a new file.
    """
    group = path.parent.stat().st_gid
    # Others, such as the file systems of Windows, have no owners and no modes.
    with suppress(OSError):
        path.chmod(stat.S_IMODE(mode))
    with suppress(OSError):
        os.chown(path, -1, group)


def _state_of(training: Training) -> dict[str, Any]:
    return training.state_dict()


def _write_state(
    path: Path, collected: dict[str, Any], config: Config, facts: dict[str, Any]
) -> None:
    torch.save({"state": collected, "config": config.flat(), "facts": facts}, path)


TORCH_WEIGHTS = Weights(".pt", _state_of, _write_state)
"""The weights of a trainer that does not say how to write its own."""


def check_state(state: Mapping[str, Any], place: str = "state_dict()") -> None:
    """Raises TypeError, with the place, for a value that a checkpoint cannot restore.

    A checkpoint restores tensors, plain values, and lists, tuples and dicts of them.
    """
    for key, value in state.items():
        _check_value(value, f"{place}[{key!r}]")


def _check_value(value: Any, place: str) -> None:
    if isinstance(value, Mapping):
        check_state(value, place)
    elif type(value) in (list, tuple, torch.Size):
        for index, item in enumerate(value):
            _check_value(item, f"{place}[{index}]")
    elif not isinstance(value, torch.Tensor) and type(value) not in PLAIN:
        raise TypeError(
            f"{place} is a {type(value).__name__}, which a checkpoint cannot restore. Valid: "
            f"tensors, numbers, text, None, and lists, tuples and dicts of them (for an array: "
            f"torch.from_numpy)"
        )


def save_checkpoint(
    step: int,
    state: dict[str, Any],
    curve: Sequence[Point],
    folder: Path,
    may_write: Callable[[], bool] = lambda: True,
) -> None:
    """Write a checkpoint under a temporary name, then rename it if `may_write` returns True.

    state: Training.state_dict() after `step`. curve: all points up to there. Older checkpoints
    except one are removed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # A process id would not do: they repeat in containers and on other hosts.
    draft = folder / f"checkpoint.{uuid4().hex}.tmp"
    points = [asdict(point) for point in curve]
    try:
        torch.save({"step": step, "state": state, "curve": points}, draft)
        if not may_write():
            return
        draft.replace(folder / f"checkpoint-{step:08d}-{_digest(draft)}.pt")
    finally:
        draft.unlink(missing_ok=True)
    # Not by step: a checkpoint that this version cannot use may be of a later step.
    by_age = sorted(checkpoints(folder), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    for old in by_age[KEPT:]:
        old.unlink(missing_ok=True)


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, the highest step first."""
    return sorted(folder.glob("checkpoint-*.pt"), reverse=True)


@dataclass(frozen=True)
class Begun:
    """A training at the step where it begins or resumes."""

    training: Training
    # Up to that step.
    curve: list[Point]
    # A line for each checkpoint that could not be used.
    faults: list[str]


def begin(start: Callable[[], Training], folder: Path) -> Begun:
    """Resume from the newest whole checkpoint; without one, begin at step 0.

    start: makes a training at step 0. Damaged checkpoints are removed. Those that are unreadable,
    or that do not fit the training because they are of another configuration or version, are left
    alone.
    """
    faults: list[str] = []
    for path in checkpoints(folder):
        saved = _read(path, faults)
        if saved is None:
            continue
        training = start()
        try:
            state, curve = _parts(saved)
            training.load_state_dict(state)
        # A lab's own trainer may raise anything.
        except Exception as error:
            if is_memory_short(error):
                raise
            faults.append(f"{path.name}: {first_line(error)}")
            continue
        return Begun(training, upgraded_curve(curve), faults)
    return Begun(start(), [], faults)


def _read(path: Path, faults: list[str]) -> dict[str, Any] | None:
    """The contents of a checkpoint; None, with a line added to `faults`, if it is unusable."""
    try:
        if _digest(path) != path.stem.rpartition("-")[2]:
            size = path.stat().st_size
            faults.append(f"{path.name}: damaged, its {size:,} bytes do not match its digest")
            path.unlink()
            return None
        # Without a limit of its size: a lab's own trainer may keep long lists in its state.
        check_torch_file(path, largest=path.stat().st_size)
        # Random generators take their states on the CPU only.
        saved: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        return saved
    except OSError as error:
        faults.append(f"{path.name}: cannot be read ({error.strerror})")
    # A file whose digest fits its content may still hold anything.
    except Exception as error:
        if is_memory_short(error):
            raise
        faults.append(f"{path.name}: {shortened(first_line(error))}")
    return None


def _parts(saved: dict[str, Any]) -> tuple[dict[str, Any], list[Any]]:
    """(state, curve). An earlier version kept the curve among the values of the state."""
    if "beside" in saved:
        curve = saved.pop("beside")
        return saved, curve or []
    return saved["state"], saved["curve"]


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
