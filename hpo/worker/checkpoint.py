"""Checkpoints of a training: written whole or not at all, beside the training, checked when read, the one before kept.

A file is named `checkpoint-STEP-DIGEST.pt`, where DIGEST is of its bytes, so a file that was cut or changed is known by
its name. The two newest are kept: a damaged one costs the work since the one before.
"""

import hashlib
import pickle
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch

from hpo.curve import Point
from hpo.settings import Config
from hpo.space.upgrade import upgraded_curve
from hpo.trainer import Training, Weights
from hpo.worker.device import first_line, is_memory_short

KEPT = 2
# What a subclass of these is, such as a number of NumPy, is not read back.
PLAIN = (bool, int, float, str, bytes, type(None))


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
    for pattern in ("*.tmp", "*.tmp.*"):
        for draft in folder.glob(pattern):
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


def written(path: Path, write: Callable[[Path], None], still: Callable[[], bool]) -> bool:
    """Write under a temporary name, then rename if `still` it should be; returns whether. Raises what `write` raises."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Process ids repeat: in containers, on other hosts. The suffix stays: some writers add it where it is missing.
    draft = path.with_name(f"{path.stem}.{uuid4().hex}.tmp{path.suffix}")
    try:
        write(draft)
        if renamed := still():
            draft.replace(path)
        return renamed
    finally:
        draft.unlink(missing_ok=True)


def _state_of(training: Training) -> dict[str, Any]:
    return training.state_dict()


def _write_state(
    path: Path, collected: dict[str, Any], config: Config, facts: dict[str, Any]
) -> None:
    torch.save({"state": collected, "config": config.flat(), "facts": facts}, path)


TORCH_WEIGHTS = Weights(".pt", _state_of, _write_state)
"""What is kept of a trainer that names nothing else."""


def check_state(state: Mapping[str, Any], place: str = "state_dict()") -> None:
    """Raises TypeError, with the place, for what a checkpoint cannot give back: anything but tensors and plain values."""
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
            f"{place} is a {type(value).__name__}, which a checkpoint cannot give back. Valid: tensors, numbers, text, "
            f"None, and lists, tuples and dicts of them (of an array: torch.from_numpy)"
        )


def save_checkpoint(
    step: int,
    state: dict[str, Any],
    curve: Sequence[Point],
    folder: Path,
    still: Callable[[], bool] = lambda: True,
) -> None:
    """state: of Training.state_dict() after `step`; curve: up to there.

    Written under a temporary name, then renamed if `still` it should be; older ones but one are removed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    draft = (
        folder / f"checkpoint.{uuid4().hex}.tmp"
    )  # process ids repeat: in containers, on other hosts
    try:
        torch.save(
            {"step": step, "state": state, "curve": [asdict(point) for point in curve]}, draft
        )
        if not still():
            return
        draft.replace(folder / f"checkpoint-{step:08d}-{_digest(draft)}.pt")
    finally:
        draft.unlink(missing_ok=True)
    by_age = sorted(checkpoints(folder), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    for old in by_age[
        KEPT:
    ]:  # not by step: one that this version cannot use may be of a later step
        old.unlink(missing_ok=True)


def checkpoints(folder: Path) -> list[Path]:
    """The newest first."""
    return sorted(folder.glob("checkpoint-*.pt"), reverse=True)


@dataclass(frozen=True)
class Begun:
    """A training where it begins or goes on, the curve before that, and a line for each checkpoint that could not be used."""

    training: Training
    curve: list[Point]
    faults: list[str]


def begin(start: Callable[[], Training], folder: Path) -> Begun:
    """Go on where the newest whole checkpoint was; without one, at step 0.

    start: makes a training at step 0. A checkpoint that is damaged is removed; one that is unreadable or does not fit the
    training, because it is of another configuration or version, is left alone.
    """
    faults: list[str] = []
    for path in checkpoints(folder):
        try:
            if _digest(path) != path.stem.rpartition("-")[2]:
                faults.append(
                    f"{path.name}: {path.stat().st_size:,} bytes that are not those that were written"
                )
                path.unlink()
                continue
            saved = torch.load(
                path, map_location="cpu", weights_only=True
            )  # generators want their states there
        except OSError as error:
            faults.append(f"{path.name}: cannot be read ({error.strerror})")
            continue
        except (pickle.UnpicklingError, EOFError) as error:
            faults.append(f"{path.name}: {first_line(error)}")
            continue
        training = start()
        try:
            state, curve = _parts(saved)
            training.load_state_dict(state)
        except Exception as error:  # of anybody's trainer
            if is_memory_short(error):
                raise
            faults.append(f"{path.name}: {first_line(error)}")
            continue
        return Begun(training, upgraded_curve(curve), faults)
    return Begun(start(), [], faults)


def _parts(saved: dict[str, Any]) -> tuple[dict[str, Any], list[Any]]:
    """(state, curve); an earlier version kept the curve among the state's values."""
    if "beside" in saved:
        curve = saved.pop("beside")
        return saved, curve or []
    return saved["state"], saved["curve"]


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
