"""What hpo knows about the data and the code of a script."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpo.errors import DataError
from hpo.script.code import code_state
from hpo.script.rendering import Attempt, Rendered, render
from hpo.script.section import CompleteScript
from hpo.trainer import DataRequest, Site

MOST_FILES = 100_000
# Of a command, when it is shown.
MOST_WORDS = 12
LONGEST_WORD = 80


@dataclass(frozen=True)
class ScriptData:
    """The data of a study's scripts. facts: plain values that the study keeps."""

    settings: CompleteScript
    # None if the study has no --data.
    path: Path | None
    fingerprint: str
    # Digest of the script's code at the time of loading.
    code: str
    facts: Mapping[str, Any]

    def describe(self, config: Any) -> list[str]:
        """Lines for the user: the command, its code, and whether it can resume.

        Raises SpecError for a configuration that cannot be written.
        """
        site = Site(Path("TRIAL"), Path("log"), "STUDY", 0, 1, "cpu")
        attempt = Attempt(site, Path("TRIAL/attempt-1"), self.path)
        rendered = render(self.settings, config, attempt)
        return [
            _command_text(rendered),
            _code_text(self.facts["script"]),
            _resume_text(self.settings.resume),
        ]


def _command_text(rendered: Rendered) -> str:
    """The command, shortened."""
    words = [" ".join(word.split())[:LONGEST_WORD] for word in rendered.command]
    if len(words) >= MOST_WORDS:
        words = [*words[:MOST_WORDS], "..."]
    return " ".join(words)


def _code_text(script: Mapping[str, Any]) -> str:
    if not script["commit"]:
        note = f" ({script['note']})" if script["note"] else ""
        return f"code {script['folder']}, state {script['digest']}{note}"
    changes = " with uncommitted changes" if script["changed"] else ""
    return f"code {script['folder']}, commit {script['commit'][:10]}{changes}"


def _resume_text(resume: str | None) -> str:
    if resume is None:
        return "it is not known whether an interrupted trial can resume: run hpo try"
    if resume == "none":
        return "an interrupted trial starts over: the script cannot resume (hpo try)"
    return f"an interrupted trial resumes: {resume} (hpo try)"


def load_data(settings: CompleteScript, request: DataRequest) -> ScriptData:
    """Raises DataError for data that do not exist, or that a script cannot use."""
    if request.partition != "train":
        raise DataError(
            f"a script scores only its own {settings.partition} part; "
            f"there is no {request.partition} part to load"
        )
    if request.path is None and _uses_data(settings):
        raise DataError("the script: section uses {data}, but no data are given. Add --data PATH")
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


def _uses_data(settings: CompleteScript) -> bool:
    texts = [
        *settings.command,
        *settings.resume_words,
        *settings.environment.values(),
        *settings.fixed.values(),
    ]
    return any("{data}" in text for text in texts if isinstance(text, str))


def _fingerprint(path: Path | None) -> str:
    """A digest of the names and sizes of the files. Their contents are not read."""
    if path is None:
        return "not recorded"
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    digest = hashlib.sha256()
    for name, size in sorted(_sizes(path)):
        digest.update(f"{name}\0{size}\0".encode())
    return digest.hexdigest()[:16]


def _sizes(path: Path) -> list[tuple[str, int]]:
    """Name and bytes of each file. Raises DataError for too many files."""
    if path.is_file():
        return [("", path.stat().st_size)]
    sizes: list[tuple[str, int]] = []
    for folder, _, names in os.walk(path):
        for name in names:
            file = Path(folder) / name
            if file.is_file():
                sizes.append((file.relative_to(path).as_posix(), file.stat().st_size))
        if len(sizes) > MOST_FILES:
            raise DataError(
                f"{path}: has more than {MOST_FILES:,} files. "
                f"Give --data a folder or a file of its own"
            )
    return sizes
