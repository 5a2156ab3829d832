"""What a person writes in a study file, or types as a value, is what counts."""

import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.studies import TINY
from hypothesis import example, given
from hypothesis import strategies as st

from hpo.errors import SpecError
from hpo.report.export import as_yaml_text
from hpo.space.file import value_in_text
from hpo.space.load import load_spec
from hpo.space.yaml_text import YamlFault, parse_yaml

# Text -> value.
WRITTEN: dict[str, Any] = {
    "010": 10,
    "09": 9,
    "0o10": 8,
    "0x1f": 31,
    "1e-4": 1e-4,
    "1e5": 100_000.0,
    "+1.5E3": 1500.0,
    ".5": 0.5,
    "-3": -3,
    "true": True,
    "null": None,
    "~": None,
    "-.inf": -math.inf,
    # Text in YAML 1.2, and not a number, a flag or a date.
    "1:30": "1:30",
    "1:30:00.5": "1:30:00.5",
    "0b11": "0b11",
    "1_000": "1_000",
    "16_3": "16_3",
    "yes": "yes",
    "NO": "NO",
    "on": "on",
    "Off": "Off",
    "y": "y",
    "2027-01-31": "2027-01-31",
    "2027-13-45": "2027-13-45",
    "2027-01-31T08:00:00Z": "2027-01-31T08:00:00Z",
    "=": "=",
    "1e": "1e",
    "nan": "nan",
    "٣": "٣",
}


@pytest.mark.parametrize("text", WRITTEN)
def test_a_value_is_what_a_person_wrote(text: str) -> None:
    expected = WRITTEN[text]
    for value in (parse_yaml(f"a: {text}")["a"], value_in_text(text, "--set a")):
        assert (value, type(value)) == (expected, type(expected))
    # The directive changes nothing.
    assert parse_yaml(f"%YAML 1.1\n---\na: {text}")["a"] == expected


def test_a_typed_value_has_no_comment() -> None:
    assert value_in_text("#fff", "--set a") == "#fff"
    assert value_in_text("a #b", "--set a") == "a #b"
    assert value_in_text("'010'", "--set a") == "010"
    assert value_in_text("[1, yes]", "--set a") == [1, "yes"]
    assert value_in_text("", "--set a") is None


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: 1\na: 2", "'a' appears twice"),
        ("{yes: 1, 'yes': 2}", "'yes' appears twice"),
        ("1: a\n1.0: b", "1.0 appears twice"),
        ("010: a\n10: b", "10 appears twice"),
        ("b: {c: 1, d: {c: 2, c: 2}}", "'c' appears twice"),
        ("a: !!python/name:os.system x", "could not determine a constructor"),
        ("a: !!binary aGVsbG8=", "could not determine a constructor"),
        ("a: !!int five", "a value does not fit"),
        ("a: !!bool maybe", "a value does not fit"),
        ("--- 1\n--- 2", "but found another document"),
        ("a: [" + "[" * 60 + "]" * 61, "nested more than 50 levels"),
        ("[" * 5000, "nested more than 50 levels"),
        ("a: &a [*a]", "nested more than 50 levels"),
        ("a: '" + "x" * 1_000_001 + "'", "longer than 1,000,000 letters"),
    ],
)
def test_what_is_no_plain_yaml_is_refused_in_a_short_line(text: str, problem: str) -> None:
    with pytest.raises(YamlFault, match=problem) as caught:
        parse_yaml(text)
    assert len(str(caught.value)) < 250
    with pytest.raises(SpecError) as refused:
        value_in_text(text, f"--set x={text}")
    assert len(str(refused.value)) < 600


def test_aliases_do_not_make_a_file_huge() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    for level in range(1, 9):
        lines.append(f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]")
    with pytest.raises(YamlFault, match="more than 100,000 values"):
        parse_yaml("\n".join(lines))
    # Merged keys are used by labs.
    assert parse_yaml("b: &b {x: 1, y: 1}\nc: {<<: *b, y: 2}")["c"] == {"x": 1, "y": 2}


@pytest.mark.parametrize(
    ("choices", "same"),
    [
        ("[adam, adam]", "'adam' is the same as 'adam'"),
        ("[adam, sgd, 'adam']", "'adam' is the same"),
    ],
)
def test_choices_are_distinct(tiny_space: Path, choices: str, same: str) -> None:
    tiny_space.write_text(TINY.replace("[adam, sgd]", choices))
    with pytest.raises(SpecError, match=f"parameters.optimizer.name: choice {same}"):
        load_spec(tiny_space)


def test_numbers_of_a_budget_are_what_was_written(tiny_space: Path) -> None:
    tiny_space.write_text(TINY.replace("trials: 4", "trials: 010, gpu_hours: 2h30m"))
    budget = load_spec(tiny_space).budget
    assert (budget.trials, budget.gpu_hours) == (10, 2.5)
    tiny_space.write_text(TINY.replace("trials: 4", "trials: 4, gpu_hours: 1:30"))
    with pytest.raises(SpecError, match="gpu_hours: not a number of hours") as refused:
        load_spec(tiny_space)
    assert "'1:30'" in str(refused.value)


@given(st.text(max_size=12))
@example("0o17")
@example("1e5")
@example("yes")
@example("1:30")
@example("<<")
@example("x: y")
def test_exported_text_is_read_as_the_same_text(text: str) -> None:
    written = as_yaml_text({"a": text})
    if yaml.safe_load(written) != {"a": text}:
        # PyYAML itself does not write every control character so that it can read it.
        return
    assert parse_yaml(written) == {"a": text}
