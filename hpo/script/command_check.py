"""Finds the faults of a script's command, resume words and environment before anything runs."""

import os
import shutil
from pathlib import Path

from hpo.errors import SpecError
from hpo.script.recipes import recipes_folder
from hpo.script.settings import ScriptSettings
from hpo.script.words import fill

# What a study file may write in braces: in the command, in variables and in text of `fixed`.
PLACEHOLDERS = (
    "here",
    "recipes",
    "code",
    "attempt",
    "checkpoints",
    "config",
    "data",
    "trial",
    "seed",
    "steps",
    "study",
)
SCRIPT_SUFFIXES = (".py", ".sh", ".jl")


def check_command(settings: ScriptSettings, code: Path, folder: Path, place: str) -> None:
    """Raises SpecError for an unknown placeholder, a missing program or a misplaced file.

    code, folder: of the script and of the study file. place: the section, for messages.
    """
    places = dict.fromkeys(PLACEHOLDERS, "")
    places |= {"here": str(folder), "recipes": str(recipes_folder())}
    for word in settings.command:
        fill(word, places, f"{place}.command")
    for word in settings.resume_words:
        fill(word, places, f"{place}.resume_words")
    for name, text in settings.environment.items():
        fill(text, places, f"{place}.environment.{name}")
    places["code"] = str(code)
    program = fill(settings.command[0], places, f"{place}.command")
    if shutil.which(program, path=settings.environment.get("PATH")) is None:
        raise SpecError(f"{place}.command: {program}: {_why_not_runnable(program)}")
    for word in settings.command[1:]:
        _check_file_word(word, code, folder, f"{place}.command")


def _check_file_word(word: str, code: Path, folder: Path, place: str) -> None:
    """Raises SpecError for a relative file name that was meant for another folder.

    The script starts in the folder of its attempt, which holds none of the lab's files.
    """
    looks_like_file = "/" in word or word.endswith(SCRIPT_SUFFIXES)
    if not looks_like_file or Path(word).is_absolute() or "{" in word:
        return
    if (code / word).is_file():
        valid = f"{{code}}/{word}"
    elif (folder / word).is_file():
        valid = str(folder / word)
    else:
        return
    raise SpecError(
        f"{place}: {word} is relative to the attempt's folder, which does not have it. "
        f"Valid: {valid}"
    )


def _why_not_runnable(program: str) -> str:
    path = Path(program)
    if "/" not in program:
        return "there is no such program on PATH. Valid: a program on PATH, or an absolute path"
    if not path.is_absolute():
        return "is a relative path. Valid: an absolute path, or one that begins with {code}/"
    if not path.exists():
        return "there is no such file"
    if path.is_dir():
        return "it is a folder"
    if not os.access(path, os.X_OK):
        return "it is not executable (chmod +x, or name the interpreter first)"
    return "it cannot be run"
