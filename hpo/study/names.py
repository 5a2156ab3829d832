"""The names that a study may have, and how those of others are shown."""

from hpo.errors import StudyError

NAME_LENGTH = 100


def check_name(name: str) -> None:
    """Raises StudyError for a study name that a folder, a URL or a shell could not hold."""
    if not _is_valid(name):
        raise StudyError(
            f"study name {name!r}. Valid: letters, digits, '.', '_', '-'; "
            f"first a letter or digit; {NAME_LENGTH} at most"
        )


def _is_valid(name: str) -> bool:
    if not name.isascii() or len(name) > NAME_LENGTH:
        return False
    if not name[:1].isalnum():
        return False
    return all(letter.isalnum() or letter in "._-" for letter in name)


def shown_name(name: str) -> str:
    """The name of any study as one line of text, also of one that hpo did not make.

    A terminal could obey what is not printable.
    """
    letters = [
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in name
    ]
    return "".join(letters) or '""'
