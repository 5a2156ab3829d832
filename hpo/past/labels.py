"""What runs are called in tables and pictures: by their names, or by numbers where the names are
long.
"""

from collections.abc import Iterable, Mapping, Sequence

# Letters. Longer names leave a table of 100 columns no room for its numbers.
LONGEST_NAME = 24


def labels(names: Sequence[str]) -> dict[str, str]:
    """Name -> what it is called; a number if one of the names is long."""
    if max(map(len, names), default=0) <= LONGEST_NAME:
        return {name: name for name in names}
    return {name: f"#{number}" for number, name in enumerate(names, 1)}


def legend(called: Mapping[str, str]) -> list[tuple[str, str]]:
    """(number, name), where runs have numbers."""
    return [(label, name) for name, label in called.items() if label != name]


def joined(names: Iterable[str], called: Mapping[str, str]) -> str:
    return ", ".join(called.get(name, name) for name in names)
