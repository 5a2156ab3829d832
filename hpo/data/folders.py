"""Which files and folders in a folder are nobody's data: systems and editors leave them there."""

from collections.abc import Iterable
from pathlib import Path

# In small letters.
OF_SYSTEMS = frozenset(
    {"__macosx", "thumbs.db", "desktop.ini", "$recycle.bin", "system volume information", "@eadir"}
)
# Office writes ~$x next to an open x.
BEGINNINGS = (".", "~$")
BACKUPS = ("~", ".bak", ".orig", ".swp", ".swo")


def is_stray(name: str) -> bool:
    """Whether a file or folder of this name is left by a system or an editor, or hidden: macOS's
    ._x, .ipynb_checkpoints, Thumbs.db, x.bak.
    """
    return name.startswith(BEGINNINGS) or name.lower() in OF_SYSTEMS or is_backup(name)


def is_backup(name: str) -> bool:
    """Whether an editor or a person has named it as an earlier version of something."""
    lower = name.lower()
    return lower.endswith(BACKUPS) or (name.startswith("#") and name.endswith("#"))


def without_stray(root: Path, paths: Iterable[Path]) -> list[Path]:
    """The sorted paths below `root`, without those of which any part below `root` is stray."""
    return sorted(path for path in paths if not any(map(is_stray, path.relative_to(root).parts)))


def contents_text(folder: Path, shown: int = 3) -> str:
    """The first names in a folder, for messages: a, b, c, ...

    Stray ones are shown only if there are no others.
    """
    all_names = sorted(entry.name for entry in folder.iterdir())
    names = [name for name in all_names if not is_stray(name)] or all_names
    if not names:
        return "nothing"
    text = ", ".join(names[:shown])
    return f"{text}, ..." if len(names) > shown else text
