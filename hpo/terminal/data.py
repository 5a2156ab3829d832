"""What a data set holds and what is wrong with it, as tables."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from hpo.data.phonemes import CLASSES
from hpo.text import percent

WORDS_SHOWN = 18
# Kinds of faulty channels in the report of a day, and what they are called.
FAULTS = {"constant_channels": "constant", "not_finite_channels": "NaN or inf"}

Partitions = Mapping[str, Mapping[str, Any]]
# A title and a text.
Note = tuple[str, str]


def data_picture(report: Mapping[str, Any]) -> Group:
    """What `hpo data check` shows: the partitions, the days, and notes of one line each."""
    readable = {name: part for name, part in report["partitions"].items() if "sentences" in part}
    notes = Table.grid(padding=(0, 2))
    for title, text in _notes(report, readable):
        notes.add_row(title, Text(text))
    return Group(
        Text(f"{report['path'] or report['source']}\n"),
        _partition_table(readable),
        Text(),
        _day_table(readable),
        Text(),
        notes,
    )


def _partition_table(partitions: Partitions) -> Table:
    """A column for each partition."""
    table = Table("", *partitions, box=None, pad_edge=False)
    parts = partitions.values()
    rows: dict[str, Iterable[object]] = {
        "sentences": [part["sentences"] for part in parts],
        "hours": [f"{part['hours']:.2f}" for part in parts],
        "channels": [part["channels"] for part in parts],
        "bins (min / mean / max)": [_spread(part["bins"]) for part in parts],
        "labels": [part["labels"]["count"] for part in parts],
        "labels per sentence": [_spread(part["labels"]) for part in parts],
        "too short for CTC": [_too_short(part) for part in parts],
    }
    for title, cells in rows.items():
        table.add_row(title, *map(str, cells))
    return table


def _spread(numbers: Mapping[str, float]) -> str:
    return f"{numbers['min']} / {numbers['mean']} / {numbers['max']}"


def _too_short(part: Mapping[str, Any]) -> str:
    return f"{part['too_short']} ({percent(part['too_short'] / part['sentences'])})"


def _day_table(partitions: Partitions) -> Table:
    """A row for each day, with what all partitions have of it."""
    table = Table("day", box=None, pad_edge=False)
    for title in (*partitions, "hours", "constant channels", "NaN or inf"):
        table.add_column(title, justify="right")
    for same_day in zip(*(part["days"] for part in partitions.values()), strict=True):
        name = same_day[0]["name"].removeprefix("day ")
        hours = sum(day["hours"] for day in same_day)
        sentences = [str(day["sentences"]) for day in same_day]
        faulty = [str(len(_faulty_channels(same_day, kind))) for kind in FAULTS]
        table.add_row(name, *sentences, f"{hours:.2f}", *faulty)
    return table


def _faulty_channels(days: Iterable[Mapping[str, Any]], kind: str) -> set[int]:
    return {channel for day in days for channel in day[kind]}


# ---- notes


def _notes(report: Mapping[str, Any], partitions: Partitions) -> list[Note]:
    cause = (
        f"more labels than output frames at kernel {report['kernel']}, stride {report['stride']} "
        "(--kernel, --stride): CTC learns nothing from them"
    )
    notes = [("too short", cause)]
    if "train" in partitions:
        notes += _label_notes(partitions["train"])
    notes += _channel_notes(partitions)
    if report["duplicates"]:
        others = [name for name in partitions if name != "train"]
        notes += _duplicate_notes(report["duplicates"], others)
    if report["guessed_words"]:
        notes.append(("words", _guessed_words(report["guessed_words"])))
    notes += [("left out", f"{name}: {reason}") for name, reason in report["absent"].items()]
    for name, part in report["partitions"].items():
        if part["fault"] and name != "train":
            notes.append(("fault", part["fault"]))
    return notes


def _label_notes(train: Mapping[str, Any]) -> list[Note]:
    counts = ", ".join(
        f"{_class_name(int(label))} {count}" for label, count in _largest_first(train["classes"])
    )
    notes = [("labels", f"train has {counts}")]
    if train["missing_classes"]:
        missing = ", ".join(map(_class_name, train["missing_classes"]))
        notes.append(("", f"train lacks {missing}"))
    return notes


def _channel_notes(partitions: Partitions) -> list[Note]:
    days = [day for part in partitions.values() for day in part["days"]]
    notes = []
    for kind, title in FAULTS.items():
        channels = sorted(_faulty_channels(days, kind))
        if channels:
            text = f"channels {_ranges(channels)}, counted from 0, on at least one day"
            notes.append((title, text))
    return notes


def _duplicate_notes(duplicates: Mapping[str, int], others: Sequence[str]) -> list[Note]:
    """others: the partitions except train."""
    features = [f"{duplicates['train']} of train occur twice"]
    features += [f"{duplicates[f'{name}_in_train']} of {name} are also in train" for name in others]
    notes = [("duplicates", f"{'; '.join(features)} (identical features)")]
    if others:
        labels = ", ".join(f"{duplicates[f'{name}_labels_in_train']} of {name}" for name in others)
        text = f"{labels} have the labels of a sentence of train: no fault, but good to know"
        notes.append(("same text", text))
    return notes


def _guessed_words(words: Mapping[str, int]) -> str:
    shown = [f"{word} {count}" for word, count in _largest_first(words)[:WORDS_SHOWN]]
    if len(words) > WORDS_SHOWN:
        shown.append("...")
    return (
        f"{len(words)} are in no dictionary, so their phonemes were guessed from their letters: "
        f"{', '.join(shown)}"
    )


def _largest_first(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: -item[1])


def _class_name(label: int) -> str:
    return CLASSES[label - 1] if 1 <= label <= len(CLASSES) else str(label)


def _ranges(numbers: Sequence[int]) -> str:
    """[1, 2, 3, 7] -> 1-3, 7"""
    firsts = [number for number in numbers if number - 1 not in numbers]
    lasts = [number for number in numbers if number + 1 not in numbers]
    ranges = []
    for first, last in zip(firsts, lasts, strict=True):
        ranges.append(str(first) if first == last else f"{first}-{last}")
    return ", ".join(ranges)
