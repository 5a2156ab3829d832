"""What workers logged of one trial, found in the files that `hpo launch` has them write.

A worker runs one trial at a time, so all between two lines that say which trial begins is about the first of them,
tracebacks and warnings included.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from hpo.store import ledger
from hpo.study.paths import study_folder
from hpo.study.study import Study
from hpo.study.trial import Record

_begins = re.compile(r"^(\S+ \S+) trial (\d+): begins")


@dataclass
class LogFile:
    """One worker's. `read` gives what is new of a trial."""

    path: Path
    number: int
    _place: int = 0
    _when: str = ""  # since when the lines are of our trial; empty: they are not

    def read(self) -> list[tuple[str, str]]:
        """(when the attempt began, line) of each new whole line."""
        with self.path.open("rb") as file:
            file.seek(self._place)
            whole, _, _ = file.read().rpartition(b"\n")
        self._place += len(whole) + 1 if whole else 0
        found = []
        for line in whole.decode(errors="replace").splitlines():
            if begin := _begins.match(line):
                self._when = begin[1] if int(begin[2]) == self.number else ""
            if self._when:
                found.append((self._when, line))
        return found


class TrialLog:
    def __init__(self, study: Study, number: int):
        self.folder = study_folder(study) / "logs"
        self._number = number
        self._files: dict[Path, LogFile] = {}
        self.attempts = 0  # whose lines were found

    def read(self) -> list[str]:
        """The new lines, an attempt after the other."""
        for path in self.folder.glob("worker-*.log"):
            self._files.setdefault(path, LogFile(path, self._number))
        found = [line for file in self._files.values() for line in file.read()]
        self.attempts += sum(bool(_begins.match(line)) for _, line in found)
        return [line for _, line in sorted(found, key=lambda pair: pair[0])]  # stable: the lines of one attempt stay in order

    def elsewhere(self, study: Study, record: Record) -> str | None:
        """Where the lines of the attempts are that are not here; None: all are here."""
        if self.attempts >= record.attempts:
            return None
        with study._engine.begin() as connection:
            hosts = [row.host.split(" ")[0] for row in ledger.attempts_of(connection, [record.id])[record.id]]
        places = ", ".join(sorted({f"{host}:{self.folder}" for host in hosts}))
        return f"{record.attempts - self.attempts} of {record.attempts} attempts are not in {self.folder} here. Look in {places}; " \
               "a worker that was started by hand wrote to its own output"  # fmt: skip
