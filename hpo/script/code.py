"""The state of a lab's code: its commit, the differences from it, and a digest of its files.

Equal code has equal digests. In a git repository, tracked files of source and configuration count,
and untracked files of source. Elsewhere all files of source count. Study files and the output of
trainings never count.
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
# Data may lie next to the code, and a walk through it would take minutes on a network disk.
MAX_LOOKED_AT = 200_000
GIT_SECONDS = 60.0
_SCRIPT_SUFFIXES = (".py", ".pyx", ".pyi", ".pxd", ".jl", ".m", ".r", ".lua", ".sh")
_C_SUFFIXES = (".c", ".cc", ".cpp", ".cu", ".h", ".hh", ".hpp", ".cuh")
SOURCE_SUFFIXES = frozenset(_SCRIPT_SUFFIXES + _C_SUFFIXES)
# These count only if git tracks them: otherwise a training may have written them.
SETTINGS_SUFFIXES = frozenset((".yaml", ".yml", ".json", ".toml", ".cfg", ".ini"))
# Every study file has these lines. It may lie among the code, and its budget may change.
STUDY_KEYS = (re.compile(rb"^script:", re.MULTILINE), re.compile(rb"^parameters:", re.MULTILINE))
# Folders of environments and caches, and those that trainings and trackers write to.
NOT_CODE = frozenset(
    (
        "__pycache__",
        "venv",
        "site-packages",
        "node_modules",
        "wandb",
        "runs",
        "outputs",
        "multirun",
        "mlruns",
        "lightning_logs",
    )
)


@dataclass(frozen=True)
class CodeState:
    """The code as a study records it."""

    # The git commit. Empty if none is known; `note` says why.
    commit: str
    # Whether the files differ from that commit.
    changed: bool
    # 8 hex digits, from the names and contents of the files that count.
    digest: str
    # The differences from the commit, to be read by people. Of untracked files only the names.
    diff: str
    # The number of files that count.
    files: int
    # Why there is no commit.
    note: str = ""


class _NoGitError(Exception):
    """Git knows nothing about this code. The text says why, in words for the user."""


def code_state(code: Path) -> CodeState:
    """The state of a folder, or of a single file. Raises SpecError if it does not exist."""
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
        hashes = _hashes(folder, _walk(folder), "sha1")
        return CodeState("", False, _digest(hashes), "", len(hashes), note=str(reason))


def _tracked_state(folder: Path) -> CodeState:
    """Raises _NoGitError."""
    with _git_in(folder) as git:
        commit = git.commit()
        committed = git.committed_files()
        untracked = _untracked(git)
        differing = git.names("diff", *_PLAIN_DIFF, "--name-only", "-z", "HEAD")
        edited = [name for name in differing if _counts_if_tracked(folder / name)]
        changed = bool(untracked or edited)
        diff = git.difference(".", untracked) if changed else ""
    for name in differing:
        committed.pop(name, None)
    hashes = {
        name: blob_hash
        for name, blob_hash in committed.items()
        if _counts_if_tracked(folder / name)
    }
    not_committed = [folder / name for name in [*edited, *untracked]]
    algorithm = "sha1" if len(commit) == 40 else "sha256"
    hashes |= _hashes(folder, not_committed, algorithm)
    return CodeState(commit, changed, _digest(hashes), diff, len(hashes))


def _file_state(file: Path) -> CodeState:
    """Only the content of a single file counts: its name and its neighbours may change."""
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


def _digest(hashes: Mapping[str, str]) -> str:
    """hashes: name -> hash of the content."""
    listing = json.dumps(sorted(hashes.items()))
    return hashlib.sha256(listing.encode()).hexdigest()[:8]


# -------------------------------------------------------------------------------------- git

# These override the user's configuration of `git diff`.
_PLAIN_DIFF = (
    "--no-ext-diff",
    "--no-textconv",
    "--no-color",
    "--no-renames",
    "--relative",
    "--submodule=short",
    "--ignore-submodules=untracked",
)


class _Git:
    """Git in one folder. Every method raises _NoGitError if git fails."""

    def __init__(self, folder: Path, index: Path | None = None) -> None:
        self.folder = folder
        # Other variables may point git to another repository, as they do within a hook.
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
        """Run `git WORDS` and return its output."""
        command = ["git", "-c", "core.fsmonitor=false", *words]
        try:
            completed = subprocess.run(
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
        if completed.returncode != 0:
            raise _NoGitError(self._fault(completed.stderr.decode(errors="replace")))
        return completed.stdout

    def names(self, *words: str) -> list[str]:
        """Run `git WORDS`, which prints names separated by NUL characters."""
        return [os.fsdecode(name) for name in self.output(*words).split(b"\0") if name]

    def commit(self) -> str:
        self.output("rev-parse", "--is-inside-work-tree")
        try:
            return self.output("rev-parse", "--verify", "HEAD").decode().strip()
        except _NoGitError:
            raise _NoGitError("its git repository has no commit yet") from None

    def committed_files(self) -> dict[str, str]:
        """Name -> hash of the files in this folder, as the commit has them."""
        files = {}
        for line in self.names("ls-tree", "-r", "-z", "HEAD"):
            # MODE TYPE HASH, a tab, and the name.
            attributes, _, name = line.partition("\t")
            files[name] = attributes.split()[2]
        if not files:
            raise _NoGitError("its git repository does not track it")
        return files

    def difference(self, name: str, untracked: list[str]) -> str:
        """The differences from the commit, as text of bounded length."""
        content = self.output("diff", *_PLAIN_DIFF, "HEAD", "--", name)
        for untracked_name in untracked:
            content += b"Untracked: " + os.fsencode(untracked_name) + b"\n"
        # Postgres cannot store NUL.
        text = content[:MAX_DIFF_BYTES].decode(errors="replace").replace("\0", "\ufffd")
        if len(content) > MAX_DIFF_BYTES:
            text += f"\n... cut here: the diff is longer than {MAX_DIFF_BYTES // 1000} kB\n"
        return text

    def _fault(self, errors: str) -> str:
        """What git printed to stderr, as one line for the user."""
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
    """Git with a copy of the index, because `git diff` would lock and refresh the lab's own.

    Raises _NoGitError.
    """
    index_path = _Git(folder).output("rev-parse", "--git-path", "index")
    index = folder / os.fsdecode(index_path.removesuffix(b"\n"))
    with TemporaryDirectory(prefix="hpo-code-") as temporary:
        copy = Path(temporary, "index")
        if index.exists():
            shutil.copy2(index, copy)
        yield _Git(folder, copy)


def _untracked(git: _Git) -> list[str]:
    """Source files that git neither tracks nor ignores, sorted. Raises _NoGitError, SpecError."""
    folder = git.folder
    names = []
    for name in git.names("ls-files", "--others", "--exclude-standard", "-z"):
        path = folder / name
        if name.endswith("/"):
            # A repository within this one.
            names += [str(inner.relative_to(folder)) for inner in _walk(path)]
            continue
        may_be_code = all(_may_hold_code(part) for part in Path(name).parts)
        if may_be_code and _is_code(path):
            names.append(name)
    if len(names) > MAX_FILES:
        raise SpecError(_too_many(folder, MAX_FILES))
    return sorted(names)


# ------------------------------------------------------------------------------------ files


def _walk(folder: Path) -> Iterator[Path]:
    """The source files in a folder. Raises SpecError for more files than code has."""
    looked_at = 0
    source_files = 0
    for parent, folders, names in os.walk(folder):
        # os.walk descends into the folders that are left in this list, in their order.
        folders[:] = sorted(name for name in folders if _may_hold_code(name))
        looked_at += len(names) + len(folders)
        for name in sorted(names):
            path = Path(parent, name)
            if not name.startswith(".") and _is_code(path):
                source_files += 1
                yield path
                if source_files > MAX_FILES:
                    raise SpecError(_too_many(folder, MAX_FILES))
        if looked_at > MAX_LOOKED_AT:
            raise SpecError(_too_many(folder, MAX_LOOKED_AT))


def _too_many(folder: Path, limit: int) -> str:
    return (
        f"{folder}: has more than {limit} files. "
        f"Give the folder of the code only, or commit the code to git"
    )


def _may_hold_code(name: str) -> bool:
    return not name.startswith(".") and name not in NOT_CODE


def _counts_if_tracked(path: Path) -> bool:
    """Whether a tracked file is source or configuration, but not a study file.

    Links and submodules count.
    """
    suffix = path.suffix.lower()
    if suffix in (".yaml", ".yml") and path.is_file():
        content = path.read_bytes()
        return not all(key.search(content) for key in STUDY_KEYS)
    return not suffix or suffix in SOURCE_SUFFIXES or suffix in SETTINGS_SUFFIXES


def _is_code(path: Path) -> bool:
    """Whether a file is source by its suffix, or an executable text file without a suffix."""
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


def _hashes(folder: Path, paths: Iterable[Path], algorithm: str) -> dict[str, str]:
    """Name within the folder -> hash, for the files that exist and may be read."""
    hashes = {}
    for path in paths:
        try:
            hashes[path.relative_to(folder).as_posix()] = _hash(path, algorithm)
        except (FileNotFoundError, PermissionError):
            continue
    return hashes


def _hash(path: Path, algorithm: str) -> str:
    """The hash that git gives a file, so that it is the same before and after a commit."""
    if path.is_symlink():
        return _blob_hash(algorithm, os.fsencode(path.readlink()))
    # A submodule: git lists it as one entry.
    if path.is_dir():
        return _digest(_hashes(path, _walk(path), algorithm))
    return _blob_hash(algorithm, path.read_bytes())


def _blob_hash(algorithm: str, content: bytes) -> str:
    head = b"blob %d\0" % len(content)
    return hashlib.new(algorithm, head + content, usedforsecurity=False).hexdigest()
