"""Sentences that are both trained on and scored."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from helpers.data import tiny_contents

from hpo.data.formats import open_source
from hpo.data.store import convert
from hpo.decoder.data import split
from hpo.decoder.repeated import warn_of_repeated
from hpo.space.load import load_spec
from hpo.worker.dataset import look_at_data

Write = Callable[[Any], Path]
COLUMNS = ("sentenceDat", "phonemes", "phoneLens")


def copy(source: dict[str, Any], number: int, target: dict[str, Any], to: int) -> None:
    for column in COLUMNS:
        target[column][to] = source[column][number]


def with_repeats(write_data: Write) -> Path:
    """One sentence of the first day's validation part, and two of test, are trained on too."""
    contents = tiny_contents()
    day = contents["train"][0]
    sentences = open_source(write_data(contents)).sentences("train")
    trained, scored = split(sentences, 0.2, 0)
    copy(day, int(trained[0]), day, int(scored[0]))
    copy(day, int(trained[0]), contents["test"][0], 0)
    copy(day, int(trained[1]), contents["test"][1], 0)
    return write_data(contents)


def test_data_without_repeats_have_no_warning(write_data: Write) -> None:
    assert warn_of_repeated(write_data(tiny_contents()), 0.2, 0) == []
    assert warn_of_repeated(None, 0.1, 0) == []


def test_repeated_sentences_are_counted(write_data: Write, tmp_path: Path) -> None:
    path = with_repeats(write_data)
    (line,) = warn_of_repeated(path, 0.2, 0)
    assert line.startswith("warning: 1 of ")
    assert " validation sentences and 2 of " in line
    assert line.endswith(" test sentences are also trained on, so scores are too good")
    convert(open_source(path), tmp_path / "store")
    assert warn_of_repeated(tmp_path / "store", 0.2, 0) == [line]


def test_a_sentence_with_one_other_bin_is_another(write_data: Write) -> None:
    contents = tiny_contents()
    copy(contents["train"][0], 0, contents["test"][0], 0)
    changed = contents["test"][0]["sentenceDat"][0].copy()
    changed[len(changed) // 2] += 1
    contents["test"][0]["sentenceDat"][0] = changed
    assert warn_of_repeated(write_data(contents), 0.2, 0) == []


def test_a_test_partition_that_cannot_be_read_is_no_matter_of_the_search(write_data: Write) -> None:
    contents = tiny_contents()
    contents["test"] = contents["test"][:1]
    assert warn_of_repeated(write_data(contents), 0.2, 0) == []


def test_a_launch_says_it(write_data: Write, tiny_space: Path) -> None:
    spec = load_spec(tiny_space)
    contents = tiny_contents()
    sentences = open_source(write_data(contents)).sentences("train")
    trained, _ = split(sentences, spec.validation.fraction, spec.validation.seed)
    copy(contents["train"][0], int(trained[0]), contents["test"][0], 0)
    lines = look_at_data(write_data(contents), spec).lines
    assert [
        line for line in lines if "warning: 1 of " in line and "test sentences are also" in line
    ]
