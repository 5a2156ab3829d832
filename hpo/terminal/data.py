"""What a data set holds and what is wrong with it, as tables."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from hpo.data.phonemes import CLASSES
from hpo.text import percent

WORDS_SHOWN = 18


def data_picture(facts: Mapping[str, Any]) -> Group:
    """What `hpo data check` shows: a table of the partitions, one of the days, and what is worth knowing, a line each."""
    parts = {name: part for name, part in facts["partitions"].items() if "sentences" in part}
    table = Table("", *parts, box=None, pad_edge=False)
    rows: dict[str, list[object]] = {
        "sentences": [part["sentences"] for part in parts.values()],
        "hours": [f"{part['hours']:.2f}" for part in parts.values()],
        "channels": [part["channels"] for part in parts.values()],
        "bins (min / mean / max)": [_spread(part["bins"]) for part in parts.values()],
        "labels": [part["labels"]["count"] for part in parts.values()],
        "labels a sentence": [_spread(part["labels"]) for part in parts.values()],
        "too short for CTC": [
            f"{part['too_short']} ({percent(part['too_short'] / part['sentences'])})"
            for part in parts.values()
        ],
    }
    for title, cells in rows.items():
        table.add_row(title, *map(str, cells))
    notes = Table.grid(padding=(0, 2))
    for title, text in _data_notes(facts, parts):
        notes.add_row(title, Text(text))
    return Group(
        Text(f"{facts['path'] or facts['source']}\n"),
        table,
        Text(),
        _day_table(parts),
        Text(),
        notes,
    )


def _day_table(parts: Mapping[str, Any]) -> Table:
    table = Table("day", box=None, pad_edge=False)
    for title in (*parts, "hours", "constant channels", "NaN or inf"):
        table.add_column(title, justify="right")
    for days in zip(*(part["days"] for part in parts.values()), strict=True):
        faulty = [
            len({channel for day in days for channel in day[kind]})
            for kind in ("constant_channels", "not_finite_channels")
        ]
        cells = [
            *(day["sentences"] for day in days),
            f"{sum(day['hours'] for day in days):.2f}",
            *faulty,
        ]
        table.add_row(days[0]["name"].removeprefix("day "), *map(str, cells))
    return table


def _data_notes(facts: Mapping[str, Any], parts: Mapping[str, Any]) -> list[tuple[str, str]]:
    notes = [("too short", f"more labels than output frames at kernel {facts['kernel']}, stride {facts['stride']} (--kernel, --stride): "
                           "CTC learns nothing there")]  # fmt: skip
    if train := parts.get("train"):
        ranked = sorted(train["classes"].items(), key=lambda item: -item[1])
        notes.append(
            (
                "labels",
                "train has "
                + ", ".join(f"{_class(int(label))} {count}" for label, count in ranked),
            )
        )
        if train["missing_classes"]:
            notes.append(("", "train lacks " + ", ".join(map(_class, train["missing_classes"]))))
    for kind, title in (("constant_channels", "constant"), ("not_finite_channels", "NaN or inf")):
        if channels := sorted(
            {channel for part in parts.values() for day in part["days"] for channel in day[kind]}
        ):
            notes.append(
                (title, f"channels {_ranges(channels)}, counted from 0, on one day at least")
            )
    same = facts["duplicates"]
    if same:
        others = [name for name in parts if name != "train"]
        shared = [f"{same[f'{name}_in_train']} of {name} are in train too" for name in others]
        notes.append(
            (
                "duplicates",
                "; ".join([f"{same['train']} of train are there twice", *shared])
                + " (identical features)",
            )
        )
        labels = [f"{same[f'{name}_labels_in_train']} of {name}" for name in others]
        if labels:
            notes.append(
                (
                    "same text",
                    f"{', '.join(labels)} have the labels of a sentence of train: no fault, but good to know",
                )
            )
    if words := facts["guessed_words"]:
        ranked = sorted(words.items(), key=lambda item: -item[1])
        shown = ", ".join(f"{word} {count}" for word, count in ranked[:WORDS_SHOWN]) + ", ..." * (
            len(words) > WORDS_SHOWN
        )
        notes.append(
            (
                "words",
                f"{len(words)} are in no dictionary, their phonemes guessed from their letters: {shown}",
            )
        )
    notes += [("left out", f"{name}: {reason}") for name, reason in facts["absent"].items()]
    return notes + [
        ("fault", part["fault"])
        for name, part in facts["partitions"].items()
        if part["fault"] and name != "train"
    ]


def _spread(numbers: Mapping[str, float]) -> str:
    return f"{numbers['min']} / {numbers['mean']} / {numbers['max']}"


def _class(label: int) -> str:
    return CLASSES[label - 1] if 1 <= label <= len(CLASSES) else str(label)


def _ranges(numbers: Sequence[int]) -> str:
    """[1, 2, 3, 7] -> 1-3, 7"""
    starts = [number for number in numbers if number - 1 not in numbers]
    ends = [number for number in numbers if number + 1 not in numbers]
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True))
