"""The folders of a trial's attempts, and the checkpoints that one attempt inherits from another."""

import shutil
import subprocess
from pathlib import Path

from hpo.script.settings import CHECKPOINTS
from hpo.trainer import Site, TrainingFailedError


class AttemptFolders:
    """`attempt-1`, `attempt-2`, ... in the folder of a trial. `own` is that of this attempt."""

    def __init__(self, site: Site):
        self._site = site
        self.own = self.of(site.attempt)

    def of(self, attempt: int) -> Path:
        return self._site.folder / f"attempt-{attempt}"

    def earlier(self) -> list[int]:
        """The earlier attempts that have a folder, the oldest first."""
        names = [path.name.removeprefix("attempt-") for path in self._site.folder.glob("attempt-*")]
        numbers = sorted(int(name) for name in names if name.isdecimal())
        return [number for number in numbers if number < self._site.attempt]

    def remove_earlier(self) -> None:
        for attempt in self.earlier():
            shutil.rmtree(self.of(attempt), ignore_errors=True)

    def new_draft(self) -> Path:
        """An empty folder for the files of this attempt. Renamed to `own` once it is complete."""
        draft = self._site.folder / f"attempt-{self._site.attempt}.tmp"
        for leftover in (draft, self.own):
            shutil.rmtree(leftover, ignore_errors=True)
        draft.mkdir(parents=True)
        return draft

    def last_checkpoints(self) -> Path | None:
        """The checkpoint folder of the attempt before, or None if it holds nothing."""
        attempts = self.earlier()
        if not attempts:
            return None
        folder = self.of(attempts[-1]) / CHECKPOINTS
        if not folder.is_dir() or not any(folder.iterdir()):
            return None
        return folder

    def copy_last_checkpoints(self, goal: Path) -> bool:
        """Copy the checkpoints of the attempt before, and remove those of older attempts.

        They are copied, never hard-linked, because a script may write to them in place. Returns
        whether there are any. Raises TrainingFailedError.
        """
        source = self.last_checkpoints()
        if source is None:
            return False
        copied = subprocess.run(
            ["cp", "-a", "--reflink=auto", str(source), str(goal)],
            capture_output=True,
            text=True,
            check=False,
        )
        if copied.returncode:
            fault = " ".join(copied.stderr.split())
            raise TrainingFailedError(f"{source} cannot be copied: {fault}")
        for attempt in self.earlier()[:-1]:
            shutil.rmtree(self.of(attempt) / CHECKPOINTS, ignore_errors=True)
        return True
