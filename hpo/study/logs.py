"""The log of a trial: a file of its own, to which the worker of each attempt appends."""

import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from hpo.store import trials
from hpo.study.paths import study_folder
from hpo.study.reader import StudyReader
from hpo.study.trial import Record

FORMAT = "%(asctime)s %(message)s"


def log_path(folder: Path, number: int) -> Path:
    """The log of trial `number` in the folder of the study's files."""
    return folder / "logs" / f"trial-{number}.log"


class _TrialLogHandler(logging.FileHandler):
    # The name is logging's.
    def handleError(self, record: logging.LogRecord) -> None:
        """Say nothing about a line that cannot be written: the worker's output has it, too."""
        if not isinstance(sys.exception(), OSError):
            super().handleError(record)


@contextmanager
def logged(path: Path) -> Iterator[None]:
    """Append what this process logs meanwhile to the file.

    If the file cannot be written, the log is lost and the training continues.
    """
    root = logging.getLogger()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = _TrialLogHandler(path, encoding="utf-8")
    except OSError as error:
        root.warning(
            "%s: cannot be written (%s); the log of this attempt is in the worker's output",
            path,
            error.strerror,
        )
        yield
        return
    handler.setFormatter(logging.Formatter(FORMAT))
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
        # What is still in memory goes to the disk, which may be full.
        with suppress(OSError):
            handler.close()


@dataclass
class TrialLog:
    """A trial's log on this machine, read piece by piece."""

    path: Path
    number: int
    # How many attempts the log has shown so far.
    attempts: int = 0
    # Up to which byte the log was read.
    _position: int = 0

    @classmethod
    def of(cls, study: StudyReader, number: int) -> "TrialLog":
        """The log of the study's trial `number`."""
        return cls(log_path(study_folder(study), number), number)

    def read(self) -> list[str]:
        """The whole lines that are new since the last call."""
        if not self.path.is_file():
            return []
        with self.path.open("rb") as file:
            file.seek(self._position)
            whole, _, _ = file.read().rpartition(b"\n")
        if not whole:
            return []
        self._position += len(whole) + 1
        lines = whole.decode(errors="replace").splitlines()
        first_line = re.compile(rf"\S+ \S+ trial {self.number}: begins")
        self.attempts += sum(1 for line in lines if first_line.match(line))
        return lines

    def missing_attempts(self, study: StudyReader, record: Record) -> str | None:
        """Where to look for the attempts whose lines are not here; None if all are."""
        missing = record.attempts - self.attempts
        if missing <= 0:
            return None
        with study.engine.begin() as connection:
            rows = trials.attempts_of(connection, [record.id])[record.id]
        hosts = {row.host.split(" ")[0] for row in rows}
        places = ", ".join(sorted(f"{host}:{self.path}" for host in hosts))
        return (
            f"{missing} of {record.attempts} attempts are not in {self.path} here. Look in {places}"
        )
