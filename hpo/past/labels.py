"""Labels of runs in tables and pictures: their names, or numbers where a name is long."""

from collections.abc import Iterable, Mapping, Sequence

# Letters. Longer names leave a table of 100 columns no room for its numbers.
LONGEST_NAME = 24


def labels(names: Sequence[str]) -> dict[str, str]:
    """Name -> label: the name itself, or a number if any of the names is long."""
    if all(len(name) <= LONGEST_NAME for name in names):
        return {name: name for name in names}
    return {name: f"#{number}" for number, name in enumerate(names, 1)}


def legend(labels_of_runs: Mapping[str, str]) -> list[tuple[str, str]]:
    """(number, name) of the runs whose label is a number."""
    return [(label, name) for name, label in labels_of_runs.items() if label != name]


def joined(names: Iterable[str], labels_of_runs: Mapping[str, str]) -> str:
    return ", ".join(labels_of_runs.get(name, name) for name in names)
