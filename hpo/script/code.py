"""The state of a lab's code: its commit, what differs from it, and a digest, equal for equal code.

With git, tracked files of source and configuration count, and untracked ones of source. Without
it, all files of source. Study files, and what trainings leave behind, never count.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from hpo.errors import SpecError, os_error_text

MAX_DIFF_BYTES = 100_000
MAX_FILE_BYTES = 1_000_000
MAX_FILES = 20_000
# Data may lie beside the code, but a walk through all of it would take minutes on a network disk.
MAX_LOOKED_AT = 200_000
GIT_SECONDS = 60.0
SOURCE_SUFFIXES = frozenset(
    (
        *(".py", ".pyx", ".pyi", ".pxd", ".jl", ".m", ".r", ".lua", ".sh"),
        *(".c", ".cc", ".cpp", ".cu", ".h", ".hh", ".hpp", ".cuh"),
    )
)
# Count where git tracks them. Else a training, or a person beside it, may have written them.
SETTINGS_SUFFIXES = frozenset((".yaml", ".yml", ".json", ".toml", ".cfg", ".ini"))
# Lines of a study file. It may lie among the code, and its budget may change.
STUDY_KEYS = (re.compile(rb"^script:", re.MULTILINE), re.compile(rb"^parameters:", re.MULTILINE))
# Of environments, caches, and what trainings and their trackers write; hidden folders as well.
NOT_CODE = frozenset(
    (
        *("__pycache__", "venv", "site-packages", "node_modules"),
        *("wandb", "runs", "outputs", "multirun", "mlruns", "lightning_logs"),
    )
)


@dataclass(frozen=True)
class CodeState:
    """What the code was, as a study records it."""

    commit: str
    """Of git; empty: none is known, and `note` says why."""
    changed: bool
    """The files differ from that commit."""
    digest: str
    """8 hex digits, of the names and contents of the files that count."""
    diff: str
    """What differs from the commit, for people; of untracked files the names."""
    files: int
    """That count."""
    note: str = ""
    """Why there is no commit."""


class _NoGitError(Exception):
    """Git says nothing of this code. The text says why, for people."""


def code_state(code: Path) -> CodeState:
    """The state of a folder, or of a single file. Raises SpecError if it is not there."""
    try:
        if code.is_file():
            return _file_state(code.resolve())
        if code.is_dir():
            return _folder_state(code)
    except OSError as error:
        raise SpecError(os_error_text(error)) from None
    raise SpecError(f"{code}: there is no such file or folder. Give the code of the training")


def _folder_state(folder: Path) -> CodeState:
    try:
        return _tracked_state(folder)
    except _NoGitError as reason:
        files = _hashed(folder, _walk(folder), "sha1")
        return CodeState("", False, _digest(files), "", len(files), note=str(reason))


def _tracked_state(folder: Path) -> CodeState:
    """Raises _NoGitError."""
    with _git_in(folder) as git:
        commit = git.commit()
        files = git.committed_files()
        untracked = _untracked(git)
        differing = git.names("diff", *_PLAIN_DIFF, "--name-only", "-z", "HEAD")
        changed = bool(untracked) or any(_counts_if_tracked(folder / name) for name in differing)
        diff = git.difference(".", untracked) if changed else ""
    for name in differing:
        files.pop(name, None)
    tracked = [name for name in differing if _counts_if_tracked(folder / name)]
    present = [folder / name for name in [*tracked, *untracked]]
    files = {name: hash for name, hash in files.items() if _counts_if_tracked(folder / name)}
    files |= _hashed(folder, present, "sha1" if len(commit) == 40 else "sha256")
    return CodeState(commit, changed, _digest(files), diff, len(files))


def _file_state(file: Path) -> CodeState:
    """Of one file the content alone counts: its name and its neighbours may change."""
    digest = _digest({"": _hash(file, "sha1")})
    name = f"./{file.name}"
    try:
        with _git_in(file.parent) as git:
            commit = git.commit()
            tracked = git.names("ls-files", "-z", "--", name)
            diff = git.difference(name, [] if tracked else [file.name])
    except _NoGitError as reason:
        return CodeState("", False, digest, "", 1, note=str(reason))
    return CodeState(commit, bool(diff), digest, diff, 1)


def _digest(files: Mapping[str, str]) -> str:
    listing = json.dumps(sorted(files.items()))
    return hashlib.sha256(listing.encode()).hexdigest()[:8]


# -------------------------------------------------------------------------------------- git

# Whatever a person configured for looking at differences.
_PLAIN_DIFF = (
    *("--no-ext-diff", "--no-textconv", "--no-color", "--no-renames", "--relative"),
    *("--submodule=short", "--ignore-submodules=untracked"),
)


class _Git:
    """Git in one folder. Every method raises _NoGitError if it fails."""

    def __init__(self, folder: Path, index: Path | None = None) -> None:
        self.folder = folder
        # Without what makes git take another repository for this one, as within a hook.
        self._environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("GIT_") or name.startswith("GIT_CONFIG_")
        }
        self._environment |= {
            "GIT_OPTIONAL_LOCKS": "0",
            "GIT_LITERAL_PATHSPECS": "1",
            "GIT_NO_LAZY_FETCH": "1",
            "GIT_TERMINAL_PROMPT": "0",
            "LC_ALL": "C",
        }
        if index is not None:
            self._environment["GIT_INDEX_FILE"] = str(index)

    def output(self, *words: str) -> bytes:
        """What it prints."""
        command = ["git", "-c", "core.fsmonitor=false", *words]
        try:
            done = subprocess.run(
                command,
                cwd=self.folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                check=False,
                timeout=GIT_SECONDS,
            )
        except FileNotFoundError:
            raise _NoGitError("git is not installed") from None
        except subprocess.TimeoutExpired:
            raise _NoGitError(f"git {words[0]} takes more than {GIT_SECONDS:.0f} s") from None
        if done.returncode != 0:
            raise _NoGitError(self._why(done.stderr.decode(errors="replace")))
        return done.stdout

    def names(self, *words: str) -> list[str]:
        """The names that it prints, each ended by a NUL."""
        return [os.fsdecode(name) for name in self.output(*words).split(b"\0") if name]

    def commit(self) -> str:
        self.output("rev-parse", "--is-inside-work-tree")
        try:
            return self.output("rev-parse", "--verify", "HEAD").decode().strip()
        except _NoGitError:
            raise _NoGitError("its git repository has no commit yet") from None

    def committed_files(self) -> dict[str, str]:
        """Name -> hash, of the files in this folder that the commit has."""
        files = {}
        for line in self.names("ls-tree", "-r", "-z", "HEAD"):
            facts, _, name = line.partition("\t")
            files[name] = facts.split()[2]
        if not files:
            raise _NoGitError("its git repository does not track it")
        return files

    def difference(self, name: str, untracked: list[str]) -> str:
        """What differs from the commit, as text of bounded length."""
        content = self.output("diff", *_PLAIN_DIFF, "HEAD", "--", name)
        content += b"".join(b"Untracked: " + os.fsencode(name) + b"\n" for name in untracked)
        # Postgres stores no NUL.
        text = content[:MAX_DIFF_BYTES].decode(errors="replace").replace("\0", "\ufffd")
        if len(content) > MAX_DIFF_BYTES:
            text += f"\n... cut here: what differs is longer than {MAX_DIFF_BYTES // 1000} kB\n"
        return text

    def _why(self, errors: str) -> str:
        """A refusal as one line for people."""
        if "dubious ownership" in errors:
            return (
                f"{self.folder} belongs to another account, so git does not trust it. To record "
                f"its commit: git config --global --add safe.directory {self.folder}"
            )
        if "not a git repository" in errors:
            return "not in a git repository"
        lines = errors.strip().splitlines() or ["git fails"]
        return lines[0].removeprefix("fatal: ")


@contextmanager
def _git_in(folder: Path) -> Iterator[_Git]:
    """Git with a copy of the index: `git diff` would lock and refresh the lab's own.

    Raises _NoGitError.
    """
    found = _Git(folder).output("rev-parse", "--git-path", "index")
    index = folder / os.fsdecode(found.removesuffix(b"\n"))
    with TemporaryDirectory(prefix="hpo-code-") as temporary:
        copy = Path(temporary, "index")
        if index.exists():
            shutil.copy2(index, copy)
        yield _Git(folder, copy)


def _untracked(git: _Git) -> list[str]:
    """Files of code that git neither tracks nor ignores. Raises _NoGitError, SpecError."""
    folder = git.folder
    found = []
    for name in git.names("ls-files", "--others", "--exclude-standard", "-z"):
        path = folder / name
        if name.endswith("/"):
            # A repository within this one.
            found += [str(inner.relative_to(folder)) for inner in _walk(path)]
        elif all(map(_may_hold_code, Path(name).parts)) and _is_code(path):
            found.append(name)
    if len(found) > MAX_FILES:
        raise SpecError(_too_many(folder, MAX_FILES))
    return sorted(found)


# ------------------------------------------------------------------------------------ files


def _walk(folder: Path) -> Iterator[Path]:
    """The files of code in a folder. Raises SpecError if there are more than code has."""
    looked_at = counted = 0
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if _may_hold_code(name))
        looked_at += len(names) + len(folders)
        for name in sorted(names):
            path = Path(place, name)
            if not name.startswith(".") and _is_code(path):
                counted += 1
                yield path
                if counted > MAX_FILES:
                    raise SpecError(_too_many(folder, MAX_FILES))
        if looked_at > MAX_LOOKED_AT:
            raise SpecError(_too_many(folder, MAX_LOOKED_AT))


def _too_many(folder: Path, limit: int) -> str:
    return (
        f"{folder}: has more than {limit} files. "
        f"Give the folder of the code alone, or commit the code to git"
    )


def _may_hold_code(name: str) -> bool:
    return not name.startswith(".") and name not in NOT_CODE


def _counts_if_tracked(path: Path) -> bool:
    """Whether a tracked file is source or configuration, and no study file. A link or a submodule counts."""
    suffix = path.suffix.lower()
    if suffix in (".yaml", ".yml") and path.is_file():
        content = path.read_bytes()
        return not all(key.search(content) for key in STUDY_KEYS)
    return not suffix or suffix in SOURCE_SUFFIXES or suffix in SETTINGS_SUFFIXES


def _is_code(path: Path) -> bool:
    """Whether a file is source, by its suffix, or a program in text."""
    if path.suffix and path.suffix.lower() not in SOURCE_SUFFIXES:
        return False
    try:
        if not path.is_file() or path.stat().st_size >= MAX_FILE_BYTES:
            return False
        return bool(path.suffix) or (os.access(path, os.X_OK) and _is_text(path))
    except (FileNotFoundError, PermissionError):
        return False


def _is_text(path: Path) -> bool:
    with path.open("rb") as file:
        return b"\0" not in file.read(1024)


def _hashed(folder: Path, paths: Iterable[Path], algorithm: str) -> dict[str, str]:
    """Name within the folder -> hash, of the files that are there and may be read."""
    found = {}
    for path in paths:
        try:
            found[path.relative_to(folder).as_posix()] = _hash(path, algorithm)
        except (FileNotFoundError, PermissionError):
            continue
    return found


def _hash(path: Path, algorithm: str) -> str:
    """As git hashes a file, so that a change has the same hash before and after its commit.

    A folder stands where git has a repository within this one, a submodule.
    """
    if path.is_symlink():
        return _blob_hash(algorithm, os.fsencode(path.readlink()))
    if path.is_dir():
        return _digest(_hashed(path, _walk(path), algorithm))
    return _blob_hash(algorithm, path.read_bytes())


def _blob_hash(algorithm: str, content: bytes) -> str:
    head = b"blob %d\0" % len(content)
    return hashlib.new(algorithm, head + content, usedforsecurity=False).hexdigest()
