"""The names that a study may have."""

from hpo.errors import StudyError

NAME_LENGTH = 100


def check_name(name: str) -> None:
    """Raises StudyError for a study name that a folder, a URL or a shell could not hold."""
    valid = (
        name[:1].isalnum()
        and len(name) <= NAME_LENGTH
        and all(letter.isalnum() or letter in "._-" for letter in name)
    )
    if not (valid and name.isascii()):
        raise StudyError(
            f"study name {name!r}. Valid: letters, digits, '.', '_', '-'; first a letter or digit; {NAME_LENGTH} at most"
        )
