"""What the files of a study take on the disk."""

import errno
import os
import shutil
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import astuple, dataclass
from pathlib import Path

# In bytes. PyTorch does not say why it could not write; with less than this, the disk is full.
NO_SPACE = 1_000_000


def is_disk_full(error: BaseException, folder: Path) -> bool:
    """Whether an error in writing to the folder comes from a full disk or a spent quota."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    text = str(error)
    if "No space left on device" in text or "Disk quota exceeded" in text:
        return True
    if not isinstance(error, (OSError, RuntimeError)) or "write" not in text.lower():
        return False
    with suppress(OSError):
        existing = next(place for place in (folder, *folder.parents) if place.exists())
        return shutil.disk_usage(existing).free < NO_SPACE
    return False


@dataclass(frozen=True)
class DiskUse:
    """Bytes by the kind of file."""

    weights: int = 0
    checkpoints: int = 0
    logs: int = 0
    other: int = 0

    @property
    def total(self) -> int:
        return self.weights + self.checkpoints + self.logs + self.other

    def __add__(self, more: "DiskUse") -> "DiskUse":
        return DiskUse(*map(sum, zip(astuple(self), astuple(more), strict=True)))

    def __str__(self) -> str:
        return (
            f"{size(self.total)}: weights {size(self.weights)}, checkpoints "
            f"{size(self.checkpoints)}, logs {size(self.logs)}, other files {size(self.other)}"
        )


def size(count: int) -> str:
    """1.1 GB"""
    if count >= 1e9:
        return f"{count / 1e9:.1f} GB"
    return f"{count / 1e6:.1f} MB"


def disk_use(folder: Path) -> DiskUse:
    """What the folder of a study takes. Files that go meanwhile are left out."""
    counted = {"weights": 0, "checkpoints": 0, "logs": 0, "other": 0}
    for place, _, names in os.walk(folder):
        within = Path(place).relative_to(folder).parts
        for name in names:
            with suppress(OSError):
                counted[_kind(within, name)] += (Path(place) / name).lstat().st_size
    return DiskUse(**counted)


def _kind(within: tuple[str, ...], name: str) -> str:
    """within: the folders from that of the study to the file's."""
    if within[:1] == ("logs",):
        return "logs"
    # A script's own checkpoints lie in attempt-N/checkpoints.
    if "checkpoints" in within or name.startswith("checkpoint"):
        return "checkpoints"
    in_trial = len(within) == 1 and within[0].startswith("trial-")
    if in_trial and name.startswith(("best.", "last.")):
        return "weights"
    return "other"


def largest(uses: Iterable[tuple[Path, DiskUse]]) -> tuple[Path, DiskUse] | None:
    """The folder that takes most; None if there is none."""
    return max(uses, key=lambda pair: pair[1].total, default=None)
