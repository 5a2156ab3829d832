"""The log of a trial: a file of its own, to which the worker of each attempt appends."""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hpo.store import trials
from hpo.study.paths import study_folder
from hpo.study.reader import StudyReader
from hpo.study.trial import Record

FORMAT = "%(asctime)s %(message)s"


def log_path(folder: Path, number: int) -> Path:
    """folder: of the study's files."""
    return folder / "logs" / f"trial-{number}.log"


@contextmanager
def logged(path: Path) -> Iterator[None]:
    """What this process logs meanwhile goes there too. A disk that does not take it costs the log, not the training."""
    root = logging.getLogger()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(path, encoding="utf-8")
    except OSError as error:
        root.warning(
            "%s: cannot be written (%s); what is logged of this attempt is in the worker's output",
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
        handler.close()


@dataclass
class TrialLog:
    """`read` gives what is new of it."""

    path: Path
    number: int
    attempts: int = 0  # whose lines were found
    _place: int = 0

    @classmethod
    def of(cls, study: StudyReader, number: int) -> "TrialLog":
        return cls(log_path(study_folder(study), number), number)

    def read(self) -> list[str]:
        """The new whole lines."""
        if not self.path.is_file():
            return []
        with self.path.open("rb") as file:
            file.seek(self._place)
            whole, _, _ = file.read().rpartition(b"\n")
        if not whole:
            return []
        self._place += len(whole) + 1
        lines = whole.decode(errors="replace").splitlines()
        begins = re.compile(rf"\S+ \S+ trial {self.number}: begins")
        self.attempts += sum(begins.match(line) is not None for line in lines)
        return lines

    def elsewhere(self, study: StudyReader, record: Record) -> str | None:
        """Where the lines of the attempts are that are not here; None: all are here."""
        if self.attempts >= record.attempts:
            return None
        with study.engine.begin() as connection:
            hosts = [
                row.host.split(" ")[0]
                for row in trials.attempts_of(connection, [record.id])[record.id]
            ]
        places = ", ".join(sorted({f"{host}:{self.path}" for host in hosts}))
        return f"{record.attempts - self.attempts} of {record.attempts} attempts are not in {self.path} here. Look in {places}"
