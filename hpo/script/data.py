"""What a script trains on and which code it is, as far as we know."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpo.errors import DataError
from hpo.script.code import code_state
from hpo.script.rendering import Rendered, render
from hpo.script.section import CompleteScript
from hpo.trainer import DataRequest, Site

MOST_FILES = 100_000
MOST_WORDS = 12
LONGEST_WORD = 80


@dataclass(frozen=True)
class ScriptData:
    """What the scripts of a study train on, as far as we know."""

    settings: CompleteScript
    path: Path | None
    fingerprint: str
    code: str
    """The state of the script's code when this was loaded."""
    facts: Mapping[str, Any]

    def describe(self, config: Any) -> list[str]:
        """Raises SpecError for a configuration that cannot be written down."""
        site = Site(Path("TRIAL"), Path("log"), "STUDY", 0, 1, "cpu")
        rendered = render(self.settings, config, site, Path("TRIAL/attempt-1"), self.path)
        return [
            " ".join(_shown(rendered)),
            _commit(self.facts["script"]),
            _resumes(self.settings.resume),
        ]


def _shown(rendered: Rendered) -> tuple[str, ...]:
    """The command, cut where it is long."""
    words = tuple(" ".join(word.split())[:LONGEST_WORD] for word in rendered.command)
    return words if len(words) < MOST_WORDS else (*words[:MOST_WORDS], "...")


def _commit(script: Mapping[str, Any]) -> str:
    if not script["commit"]:
        return f"code {script['folder']}, state {script['digest']}{_noted(script['note'])}"
    changed = " with changes that are not committed" if script["changed"] else ""
    return f"code {script['folder']}, commit {script['commit'][:10]}{changed}"


def _noted(note: str) -> str:
    return f" ({note})" if note else ""


def _resumes(resume: str | None) -> str:
    if resume is None:
        return "whether it can go on where it was interrupted is not known: see hpo try"
    if resume == "none":
        return "it cannot go on where it was interrupted: such a trial begins again (hpo try)"
    return f"it goes on where it was interrupted: {resume} (hpo try)"


def load_data(settings: CompleteScript, request: DataRequest) -> ScriptData:
    if request.partition != "train":
        raise DataError(
            f"a script scores its own {settings.partition} part alone; there is no {request.partition} to load"
        )
    if request.path is None and _asks_for_data(settings):
        raise DataError("the script: section says {data}, and no data are given. Add --data PATH")
    state = code_state(Path(settings.code))
    facts = {
        "script": {
            "folder": settings.code,
            "commit": state.commit,
            "changed": state.changed,
            "digest": state.digest,
            "diff": state.diff,
            "note": state.note,
        }
    }
    return ScriptData(settings, request.path, _fingerprint(request.path), state.digest, facts)


def _asks_for_data(settings: CompleteScript) -> bool:
    texts = [
        *settings.command,
        *settings.resume_words,
        *settings.environment.values(),
        *settings.fixed.values(),
    ]
    return any("{data}" in text for text in texts if isinstance(text, str))


def _fingerprint(path: Path | None) -> str:
    """Of the names and sizes of the files: their contents are the script's matter."""
    if path is None:
        return "not recorded"
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    digest = hashlib.sha256()
    for name, size in sorted(_sizes(path)):
        digest.update(f"{name}\0{size}\0".encode())
    return digest.hexdigest()[:16]


def _sizes(path: Path) -> list[tuple[str, int]]:
    if path.is_file():
        return [("", path.stat().st_size)]
    found: list[tuple[str, int]] = []
    for folder, _, names in os.walk(path):
        for name in names:
            file = Path(folder) / name
            if file.is_file():
                found.append((file.relative_to(path).as_posix(), file.stat().st_size))
        if len(found) > MOST_FILES:
            raise DataError(
                f"{path}: has more than {MOST_FILES:,} files. Give a folder or a file of its own to --data"
            )
    return found
