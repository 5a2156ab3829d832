"""Base files and command lines of scripts: what is written is read back the same."""

import json
import math
import re
import time
import tomllib
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from hpo.errors import SpecError
from hpo.script.files import (
    Base,
    kind_of,
    nested,
    parse_base,
    read_base,
    rendered,
)
from hpo.script.settings import FlagSettings
from hpo.script.words import check_flag, fill, words

KINDS = ("yaml", "json", "toml")
TREE = """
lr: 1e-3
model:
  layers: 5
  dropout: 0.4
  bias: true
optimizer: {betas: [0.9, 0.999], eps: 1E-1, name: adam}
scheduler: null
steps: ${num_batches}
callbacks:
  - class_path: Stopping
    init_args: {patience: 3}
  - plain
empty: {}
none: []
"""


def base(text: str, kind: str = "yaml") -> Base:
    return parse_base(text, kind, "args.yaml")


def fault(text: str, kind: str = "yaml") -> str:
    """The message for this text: one line that begins with the file."""
    with pytest.raises(SpecError) as caught:
        parse_base(text, kind, "args.yaml")
    message = str(caught.value)
    assert message.startswith("args.yaml: ")
    assert "\n" not in message
    return message.removeprefix("args.yaml: ")


def read_back(text: str, kind: str) -> Any:
    """As a script reads it."""
    readers: dict[str, Any] = {"yaml": yaml.safe_load, "json": json.loads, "toml": tomllib.loads}
    return readers[kind](text)


def same(one: Any, other: Any) -> bool:
    """Equal in type and order too, and NaN is NaN."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        pairs = zip(one.items(), other.items(), strict=False)
        return len(one) == len(other) and all(same(a, b) for a, b in pairs)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float):
        return repr(one) == repr(other)
    return bool(one == other)


def assert_same(one: Any, other: Any) -> None:
    assert same(one, other), f"{one!r} is not {other!r}"


# ---- names and values


def test_fields_by_their_dotted_names() -> None:
    assert_same(
        base(TREE).values(),
        {
            "lr": 0.001,
            "model.layers": 5,
            "model.dropout": 0.4,
            "model.bias": True,
            "optimizer.betas": [0.9, 0.999],
            "optimizer.eps": 0.1,
            "optimizer.name": "adam",
            "scheduler": None,
            "steps": "${num_batches}",
            "callbacks.0.class_path": "Stopping",
            "callbacks.0.init_args.patience": 3,
            "callbacks.1": "plain",
            "empty": {},
            "none": [],
        },
    )


def test_values_are_copies() -> None:
    file = base(TREE)
    file.values()["optimizer.betas"].append(1)
    file.values()["empty"]["a"] = 1
    assert file.values()["optimizer.betas"] == [0.9, 0.999]
    assert file.values()["empty"] == {}


def test_names_of_keys_that_are_not_text() -> None:
    file = base("0: a\n2: {2: b}\ntrue: c\nnull: d\n1.5: e\na.b: {c.d: f}\n'': g\n")
    assert file.values() == {
        "0": "a",
        "2.2": "b",
        "true": "c",
        "null": "d",
        "1.5": "e",
        "a.b.c.d": "f",
        "": "g",
    }
    changed = file.changed({"2.2": "x", "a.b.c.d": "y"})
    assert changed[2] == {2: "x"}
    assert changed["a.b"] == {"c.d": "y"}


def test_lists_of_lists_are_one_field() -> None:
    file = base("a: [[1, 2], [3]]\nb: [[{c: 1}], 2]\n")
    assert file.values() == {"a": [[1, 2], [3]], "b.0.0.c": 1, "b.1": 2}


def test_values_that_json_cannot_hold_are_not_fields_but_stay_in_the_file() -> None:
    file = base("a: .nan\nb: [1, -.inf]\nc: 1e999\nd: 1\n")
    assert file.values() == {"d": 1}
    assert_same(read_back(rendered(file.changed({"d": 2}), "yaml"), "yaml")["b"], [1, -math.inf])
    dated = base("day = 2026-01-02\nat = 2026-01-02T03:04:05Z\nhour = 01:02:03\nn = 1\n", "toml")
    assert dated.values() == {"n": 1}
    assert_same(read_back(rendered(dated.tree, "toml"), "toml"), dated.tree)
    for kind in ("yaml", "json"):
        written = read_back(rendered(dated.tree, kind), kind)
        assert written["day"] == "2026-01-02"
        assert written["at"] == "2026-01-02T03:04:05+00:00"


@pytest.mark.parametrize("kind", KINDS)
def test_the_stored_text_gives_the_same_base(kind: str) -> None:
    text = rendered({"a": {"b": 1.5}, "c": [1, 2], "d": "é"}, kind)
    file = parse_base(text, kind, "here")
    elsewhere = parse_base(file.text, file.kind, "there")
    assert file == elsewhere
    assert_same(file.tree, elsewhere.tree)
    assert file.values() == {"a.b": 1.5, "c": [1, 2], "d": "é"}
    json.dumps(file.values(), allow_nan=False)


# ---- changed


def test_changed_values_keep_their_types_and_all_else_stays() -> None:
    file = base(TREE)
    tree = file.changed(
        {
            "lr": 5.0,
            "model.layers": 7,
            "optimizer.betas.1": 0.99,
            "callbacks.0.init_args.patience": None,
            "callbacks.1": {"a": [True]},
            "scheduler": {"name": "cosine"},
            "none": "x",
        }
    )
    expected = {
        "lr": 5.0,
        "model": {"layers": 7, "dropout": 0.4, "bias": True},
        "optimizer": {"betas": [0.9, 0.99], "eps": 0.1, "name": "adam"},
        "scheduler": {"name": "cosine"},
        "steps": "${num_batches}",
        "callbacks": [
            {"class_path": "Stopping", "init_args": {"patience": None}},
            {"a": [True]},
        ],
        "empty": {},
        "none": "x",
    }
    assert_same(tree, expected)
    assert file == base(TREE)
    assert_same(file.tree, base(TREE).tree)


def test_a_group_is_replaced_before_what_is_in_it() -> None:
    file = base(TREE)
    for values in (
        {"optimizer": {"name": "sgd"}, "optimizer.eps": 2},
        {"optimizer.eps": 2, "optimizer": {"name": "sgd"}},
    ):
        assert file.changed(values)["optimizer"] == {"name": "sgd", "eps": 2}
    with pytest.raises(SpecError, match=r"args.yaml: optimizer.eps is in a group that another"):
        file.changed({"optimizer": "sgd", "optimizer.eps": 2})
    with pytest.raises(SpecError, match=r"callbacks.0.init_args.patience is in a group"):
        file.changed({"callbacks": [], "callbacks.0.init_args.patience": 2})


def test_a_group_of_the_caller_is_copied() -> None:
    group = {"name": "sgd"}
    base(TREE).changed({"optimizer": group, "optimizer.eps": 2})
    assert group == {"name": "sgd"}


def test_new_fields_are_added() -> None:
    tree = base(TREE).changed(
        {
            "+seed": 1,
            "+model.norm.kind": "layer",
            "+model.norm.eps": 1e-5,
            "+callbacks.0.init_args.mode": "min",
            "+empty.a": 1,
        }
    )
    assert tree["seed"] == 1
    assert tree["model"]["norm"] == {"kind": "layer", "eps": 1e-5}
    assert tree["callbacks"][0]["init_args"] == {"patience": 3, "mode": "min"}
    assert tree["empty"] == {"a": 1}
    assert list(tree)[-1] == "seed"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("+lr", "+lr exists already. Write lr, without the +"),
        ("+lr.a", "+lr.a: lr is a value, not a group"),
        ("+lr.a.b", "+lr.a.b: lr.a is a value, not a group"),
        ("+none.0", "+none.0: none is a value, not a group"),
        ("+scheduler.name", "+scheduler.name: scheduler is a value, not a group"),
        ("+callbacks.2.a", "+callbacks.2.a: callbacks.2 is a value, not a group"),
        ("+", "+ is not a name"),
        ("+a..b", "+a..b is not a name"),
    ],
)
def test_an_invalid_new_field_is_refused(name: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        base(TREE).changed({name: 1})
    assert str(caught.value).startswith(f"args.yaml: {message}")


def test_a_key_that_begins_with_a_plus() -> None:
    file = base("+a: 1\nb: 2\n")
    assert file.changed({"+a": 3}) == {"+a": 3, "b": 2}
    assert file.changed({"+c": 3}) == {"+a": 1, "b": 2, "c": 3}


def test_an_unknown_name_shows_the_likely_one() -> None:
    with pytest.raises(SpecError) as caught:
        base(TREE).changed({"dropout": 1})
    message = str(caught.value)
    assert message.startswith("args.yaml: there is no 'dropout'. Did you mean model.dropout?")
    assert "Valid: lr, model.layers" in message
    many = base("\n".join(f"field{n}: {n}" for n in range(500)))
    message = many.unknown_name("nothing")
    assert message.endswith("field29 and 470 more; +nothing adds it")
    assert len(message) < 500


def test_a_value_that_no_file_can_hold_is_refused() -> None:
    with pytest.raises(SpecError, match=r"^args.yaml: lr: a set cannot be written. Valid: numbers"):
        base(TREE).changed({"lr": {1}})
    with pytest.raises(SpecError, match=r"^args.yaml: lr.a.1: a PosixPath"):
        base(TREE).changed({"lr": {"a": [1, Path()]}})


def test_numbers_of_numpy_become_plain_numbers() -> None:
    numpy = pytest.importorskip("numpy")
    tree = base(TREE).changed({"lr": numpy.float64(0.1)})
    assert type(tree["lr"]) is float


def test_nested_groups_dotted_names() -> None:
    values = {"a.b": 1, "+a.c.d": [2], "e": None}
    assert nested(values, "args.yaml") == {"a": {"b": 1, "c": {"d": [2]}}, "e": None}
    assert nested({}, "args.yaml") == {}
    with pytest.raises(SpecError, match=r"^args.yaml: \+a.b: a is a value"):
        nested({"a": 1, "a.b": 2}, "args.yaml")


# ---- files


@pytest.mark.parametrize(
    ("name", "text", "kind"),
    [
        ("a.yaml", "lr: 1e-5", "yaml"),
        ("a.YML", "lr: 1e-5", "yaml"),
        ("a.json", '{"lr": 1e-5}', "json"),
        ("a.toml", "lr = 1e-5", "toml"),
        ("args", '{"lr": 1e-5}', "json"),
        ("args.conf", "lr: 1e-5", "yaml"),
        ("bom.json", '\ufeff{"lr": 1e-5}', "json"),
        ("lines.toml", "lr = 1e-5\r\n", "toml"),
        ("lines.yaml", "lr: 1e-5\r\n", "yaml"),
    ],
)
def test_a_file_is_read_by_its_suffix_or_its_content(
    tmp_path: Path, name: str, text: str, kind: str
) -> None:
    path = tmp_path / name
    path.write_bytes(text.encode())
    file = read_base(path)
    assert file.kind == kind
    assert file.place == str(path)
    assert file.values() == {"lr": 1e-5}
    assert parse_base(file.text, file.kind, "") == file


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.yaml", "No such file or directory"),
        (".", "Is a directory"),
        ("latin.yaml", "is not text in UTF-8 (line 2)"),
        ("utf16.json", "is not text in UTF-8 (line 1)"),
        ("big.yaml", "is larger than 1 MB"),
        ("empty.yaml", "is empty"),
        ("empty.yaml/a.yaml", "Not a directory"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "latin.yaml").write_bytes("a: 1\nb: é\n".encode("latin-1"))
    (tmp_path / "utf16.json").write_bytes("{}".encode("utf-16"))
    (tmp_path / "big.yaml").write_text("a: " + "x" * 1_000_001)
    (tmp_path / "empty.yaml").touch()
    path = tmp_path / name
    with pytest.raises(SpecError) as caught:
        read_base(path)
    assert str(caught.value).startswith(f"{path}: {message}")


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        ("yaml", "a: b: c", "is not valid YAML, line 1: mapping values are not allowed here"),
        ("yaml", "a: 1\nb: [1,\n", "is not valid YAML, line 3: "),
        ("yaml", "a: 1\n\tb: 2", "is not valid YAML, line 2: found character '\\t'"),
        (
            "yaml",
            "a: 1\nb: \x01",
            "is not valid YAML: unacceptable character #x0001: special characters are not",
        ),
        ("yaml", "a: *b", "is not valid YAML, line 1: found undefined alias"),
        ("yaml", "a: !!int five", "is not valid YAML: invalid literal"),
        ("yaml", "a: !!bool five", "is not valid YAML: 'five'"),
        ("yaml", "a: !!map [1]", "is not valid YAML, line 1: expected a mapping"),
        ("yaml", "<<: 3", "is not valid YAML, line 1: expected a mapping"),
        ("yaml", "a: " + "9" * 5000, "is not valid YAML: Exceeds the limit"),
        ("yaml", "a: 1\n---\nb: 2", "line 2: but found another document"),
        (
            "yaml",
            "a: 1\nb: !include x",
            "line 2: could not determine a constructor for the tag '!include'",
        ),
        ("yaml", "a: !!python/tuple [1]", "line 1: could not determine a constructor"),
        (
            "yaml",
            "a: !!python/object/apply:os.system [ls]",
            "line 1: could not determine a constructor",
        ),
        ("yaml", "a: !!set {b}", "a: a set cannot be written"),
        ("yaml", "a: !!binary aGk=", "a: a bytes cannot be written"),
        ("yaml", "? [a, b]\n: 1", "line 1: found unhashable key"),
        ("yaml", "a: &a [*a]", "is nested deeper than 50 groups"),
        ("yaml", "a: &a {b: *a}", "is nested deeper than 50 groups"),
        ("yaml", "[" * 1000, "is nested deeper than 50 groups"),
        ("yaml", "a: " + "[" * 51 + "]" * 51, "is nested deeper than 50 groups"),
        ("yaml", "a: [" + "1," * 10_001 + "]", "has more than 10000 values"),
        ("yaml", "# nothing\n", "is empty"),
        ("yaml", "- a\n- b", "holds a list. Valid: names with their values"),
        ("yaml", "just text", 'holds the value "just text". Valid'),
        (
            "json",
            '{"a": 1,\n}',
            "is not valid JSON: Expecting property name enclosed in double quotes: line 2",
        ),
        ("json", '{"a": 1} x', "is not valid JSON: Extra data: line 1"),
        ("json", "[1]", "holds a list"),
        ("json", "3", "holds the value 3"),
        ("json", "null", "is empty"),
        ("json", '{"a": ' + "[" * 100_000, "is nested deeper than 50 groups"),
        ("json", '{"a": ' + "[" * 60 + "]" * 60 + "}", "is nested deeper than 50 groups"),
        ("json", json.dumps({"a": [0] * 10_001}), "has more than 10000 values"),
        ("json", '{"a": ' + "9" * 5000 + "}", "is not valid JSON: Exceeds the limit"),
        ("toml", "a = 1\nb", "is not valid TOML: "),
        ("toml", "a = 1\na = 2", "is not valid TOML: Cannot overwrite a value (at"),
        ("toml", "a = " + "[" * 1000, "is nested deeper than 50 groups"),
        ("toml", "  \n", "is empty"),
        ("", "a: [", "is not valid YAML, line 1"),
        ("yaml", "a.b: 1\na: {b: 2}", "'a.b' is the name of two fields, ['a.b'] and ['a', 'b']"),
        ("yaml", "1: a\n'1': b", "'1' is the name of two fields, [1] and ['1']"),
        ("yaml", "a: [1, 2]\na.1: 3", "'a.1' is the name of two fields, ['a', 1] and ['a.1']"),
    ],
)
def test_content_that_is_not_a_configuration_is_one_line(
    kind: str, text: str, message: str
) -> None:
    assert message in fault(text, kind)


def test_aliases_that_stand_for_too_many_values_are_refused_quickly() -> None:
    """Each file has 30 lines that stand for a billion values."""
    lists = ["a0: &a0 [1, 1]"]
    merged = ["a0: &a0 {k: 1}"]
    for n in range(1, 30):
        lists.append(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]")
        merged.append(f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}")
    began = time.perf_counter()
    for lines in (lists, merged):
        assert re.search("has more than 10000|is nested deeper", fault("\n".join(lines)))
    assert time.perf_counter() - began < 2


def test_aliases_are_expanded_and_change_independently() -> None:
    file = base(
        "common: &c {lr: 1, betas: &b [1, 2]}\nday: {<<: *c, lr: 2}\nother: *c\nbetas: *b\n"
    )
    tree = file.changed({"common.lr": 3, "common.betas.0": 9})
    expected = {
        "common": {"lr": 3, "betas": [9, 2]},
        "day": {"lr": 2, "betas": [1, 2]},
        "other": {"lr": 1, "betas": [1, 2]},
        "betas": [1, 2],
    }
    assert tree == expected
    written = rendered(tree, "yaml")
    assert "&" not in written
    assert "*" not in written
    assert yaml.safe_load(written) == expected


def test_a_file_of_6000_values_is_quick_enough() -> None:
    text = "\n".join(f"g{n}: {{a: 1, b: 2.5, c: text, d: [1]}}" for n in range(1200))
    began = time.perf_counter()
    file = base(text)
    tree = file.changed({f"g{n}.a": 2 for n in range(1200)})
    rendered(tree, "yaml")
    assert time.perf_counter() - began < 10


@pytest.mark.parametrize(
    ("name", "kind"),
    [("a.yaml", "yaml"), ("b/a.YML", "yaml"), ("a.json", "json"), ("a.toml", "toml")],
)
def test_kind_of_a_file_name(name: str, kind: str) -> None:
    assert kind_of(name) == kind


def test_the_kind_of_a_name_without_a_known_suffix_must_be_given() -> None:
    assert kind_of("args", "json") == "json"
    assert kind_of("args.conf", "yaml") == "yaml"
    with pytest.raises(SpecError, match=r"^args.conf: its suffix .* Valid: .yaml, .yml, .json"):
        kind_of("args.conf")


# ---- the types of YAML

# Texts that YAML 1.1, YAML 1.2, PyYAML or OmegaConf may take for something else.
ODD_TEXTS = (
    """
yes|no|on|off|y|n|Y|N|true|True|FALSE|null|Null|~||1|0|-1|+1|0123|08|0o17|0x1f|0b11|1_000|1_0.5
12:30:45|1:30|6:30.5|2020-01-01|2001-12-14t21:59:43.10-05:00|1e-5|1e5|1E5|+1e5|.5|.5e3|1.|1.e3
1.5e3|1_000e3|.inf|-.inf|.nan|inf|nan|=|<<|-|--|---|...|?|:|!x|!!int 3|&a|*a|%a|@a|`a|[1]|{a: 1}
a: b|a #b|#a| a|a |'|"|'a'|"a"|a\tb|\t|,|[|{|]|}|>|\\||- a|? a|: a|é|日本|\U0001f600|\\n|\\
${a}|${a.b}_${c}|${oc.env:HOME,x}|a,b|a: ${b}|1.2.3|192.168.0.1|1e|e5|_1|1_|0.1.2|10%|0x|-|+|.
""".strip()
    .replace("\n", "|")
    .split("|")
)
ODD_TEXTS += ["|", "a\nb", "a\n", "\na", "a\r\nb", "\r"]
ODD_TEXTS += ["\x85", "\u2028", "\u2029", "\ufeff", "\x7f"]
ODD_TEXTS += ["\x1b[0m", "\xa0", "word " * 100, " \n ", "a\n\n\nb  \n c", "# a\n- b", "\ue000"]

NUMBERS = [0, 1, -1, 10**30, -(2**63), 0.0, -0.0, 1.0, 5.0, 1e-5, 1e5, 1e-300, 1.5e300, 1e16]
NUMBERS += [1e22, 123456789.123, 0.1, 2 / 3, math.inf, -math.inf, 5e-324, 100000.0, 1e15]


@pytest.mark.parametrize("kind", KINDS)
def test_odd_texts_are_read_back_as_text(kind: str) -> None:
    for text in ODD_TEXTS:
        tree = {"a": text, "b": {"c": [text, [text]]}, text: 1}
        written = rendered(tree, kind)
        assert_same(sorted_if_toml(read_back(written, kind), kind), sorted_if_toml(tree, kind))
        assert_same(base(written, kind).tree, read_back(written, kind))


def sorted_if_toml(tree: Any, kind: str) -> Any:
    """TOML writes the values of a group before its groups."""
    if kind == "toml" and isinstance(tree, dict):
        return {key: sorted_if_toml(tree[key], kind) for key in sorted(tree)}
    return tree


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_are_read_back_the_same(kind: str) -> None:
    tree = {"numbers": NUMBERS, "flags": [True, False], "not": [math.nan]}
    written = rendered(tree, kind)
    assert_same(read_back(written, kind), tree)
    assert_same(base(written, kind).tree, tree)


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("1e-5", 1e-5),
        ("1e-05", 1e-5),
        ("1E5", 1e5),
        ("+1e5", 1e5),
        ("1.e3", 1000.0),
        (".5e3", 500.0),
        ("-.5", -0.5),
        ("1_000e3", 1e6),
        ("1.0e-05", 1e-5),
        ("5", 5),
        ("5.", 5.0),
        ("0123", 83),
        ("1_000", 1000),
        ("12:30:45", 45045),
        ("yes", True),
        ("off", False),
        ("y", "y"),
        ("~", None),
        ("", None),
        ("'1e-5'", "1e-5"),
        ("2020-01-01", "2020-01-01"),
        ("2020-99-99", "2020-99-99"),
        ("=", "="),
        ("1e", "1e"),
        ("!!str 5", "5"),
        ("!!float 5", 5.0),
        ("${a:1}", "${a:1}"),
    ],
)
def test_a_value_of_yaml_is_read_and_written_back(written: str, value: Any) -> None:
    read = base(f"a: {written}").tree["a"]
    assert_same(read, value)
    assert_same(yaml.safe_load(rendered({"a": read}, "yaml"))["a"], value)


def test_how_yaml_is_written() -> None:
    tree = {
        "lr": 1e-5,
        "name": "é",
        "text": "1e-5",
        "steps": "${num_batches}",
        "long": "word " * 60 + "end",
        "group": {"z": None, "a": True, "list": [1, 2.0]},
        "none": [],
    }
    assert rendered(tree, "yaml") == (
        "lr: 1.0e-05\n"
        "name: é\n"
        "text: '1e-5'\n"
        "steps: ${num_batches}\n"
        f"long: {'word ' * 60}end\n"
        "group:\n"
        "  z: null\n"
        "  a: true\n"
        "  list:\n"
        "  - 1\n"
        "  - 2.0\n"
        "none: []\n"
    )
    assert rendered({}, "yaml") == "{}\n"


def test_how_json_is_written() -> None:
    tree = {"a": 1e-5, "b": None, "é": [math.inf], "n": 10**30, 1: {True: 2}}
    assert rendered(tree, "json") == (
        '{\n  "a": 1e-05,\n  "b": null,\n  "é": [\n    Infinity\n  ],\n'
        f'  "n": {10**30},\n  "1": {{\n    "true": 2\n  }}\n}}\n'
    )


def test_how_toml_is_written() -> None:
    tree = {"a": 1e-5, "b": {"c": [1, 2]}, "list": [{"x": 1}, {"x": date(2026, 1, 2)}]}
    assert tomllib.loads(rendered(tree, "toml")) == tree
    with pytest.raises(SpecError, match=r"^run/a.toml: TOML cannot hold it .*NoneType"):
        rendered({"b": {"c": [1, None]}}, "toml", "run/a.toml")


TEXT = st.one_of(
    st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=20),
    st.sampled_from([text for text in ODD_TEXTS if text]),
)
SINGLE = st.one_of(
    TEXT,
    st.integers(-(10**20), 10**20),
    st.floats(),
    st.booleans(),
)


def trees(single: st.SearchStrategy[Any], keys: st.SearchStrategy[Any]) -> Any:
    values = st.recursive(
        single,
        lambda inner: st.one_of(
            st.lists(inner, max_size=4), st.dictionaries(keys, inner, max_size=4)
        ),
        max_leaves=12,
    )
    return st.dictionaries(keys, values, min_size=1, max_size=4)


def assert_read_here(written: str, kind: str, tree: Any) -> None:
    try:
        file = base(written, kind)
    except SpecError as error:
        # Hypothesis has drawn both `a.b` and `a: {b: ...}`.
        if "is the name of two fields" in str(error):
            return
        raise
    assert_same(file.tree, tree)


@settings(max_examples=60, deadline=None)
@given(trees(st.one_of(SINGLE, st.none()), st.one_of(TEXT, st.integers(-5, 10**6))))
def test_yaml_round_trip(tree: Any) -> None:
    written = rendered(tree, "yaml")
    assert_same(yaml.safe_load(written), tree)
    assert_read_here(written, "yaml", tree)


@settings(max_examples=60, deadline=None)
@given(trees(st.one_of(SINGLE, st.none()), TEXT))
def test_json_round_trip(tree: Any) -> None:
    written = rendered(tree, "json")
    assert_same(json.loads(written), tree)
    assert_read_here(written, "json", tree)


@settings(max_examples=60, deadline=None)
@given(trees(SINGLE, TEXT))
def test_toml_round_trip(tree: Any) -> None:
    written = rendered(tree, "toml")
    read = tomllib.loads(written)
    assert rendered(read, "toml") == written
    assert_same(in_order(read), in_order(tree))


def in_order(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: in_order(tree[key]) for key in sorted(tree)}
    return [in_order(item) for item in tree] if isinstance(tree, list) else tree


@settings(max_examples=60, deadline=None)
@given(trees(st.one_of(SINGLE, st.none()), st.sampled_from(list("abcd"))), st.data())
def test_changing_every_field_to_its_own_value_changes_nothing(tree: Any, data: Any) -> None:
    file = base(rendered(tree, "yaml"))
    assert_same(file.changed(file.values()), file.tree)
    name = data.draw(st.sampled_from(sorted(file.paths)))
    value: Any = file.changed({name: "changed"})
    for key in file.paths[name]:
        value = value[key]
    assert value == "changed"


# ---- OmegaConf


def by_omegaconf(text: str) -> Any:
    omegaconf = pytest.importorskip("omegaconf")
    return omegaconf.OmegaConf.to_container(omegaconf.OmegaConf.create(text))


def test_omegaconf_reads_the_same_types() -> None:
    texts = [text for text in ODD_TEXTS if "${" not in text]
    tree = {"numbers": NUMBERS, "texts": texts, "rest": [None, True, False, {}], "a": {"b": 1e-5}}
    assert_same(by_omegaconf(rendered(tree, "yaml")), tree)


def test_omegaconf_still_interpolates() -> None:
    file = base("n: 5\nm: ${n}\nday: ${oc.env:NOT_SET_HERE,x}\npath: ${m}/x\n")
    omegaconf = pytest.importorskip("omegaconf")
    config = omegaconf.OmegaConf.create(rendered(file.changed({"n": 7}), "yaml"))
    assert config.m == 7
    assert config.path == "7/x"
    assert config.day == "x"


# ---- command lines


def flags(template: Any) -> FlagSettings:
    return FlagSettings.model_validate(template)


VALUES = {
    "lr": 1e-5,
    "model.layers": 5,
    "width": 5.0,
    "amp": True,
    "bias": False,
    "scheduler": None,
    "betas": [0.9, 1e-5],
    "names": ["a b", "é"],
    "group": {"x": None},
    "name": "two words",
    "empty": "",
    "big": 10**20,
    "inf": math.inf,
}


def test_words_of_one_template() -> None:
    assert words(flags("{name}={value}"), VALUES) == [
        "lr=1e-05",
        "model.layers=5",
        "width=5.0",
        "amp=true",
        "bias=false",
        "scheduler=null",
        "betas=[0.9,1e-05]",
        'names=["a b","é"]',
        'group={"x":null}',
        "name=two words",
        "empty=",
        "big=100000000000000000000",
        "inf=inf",
    ]


def test_words_of_several_templates() -> None:
    flag = flags(
        {
            "value": ["--set", "{name}={value}"],
            "true": "--{name}",
            "false": ["--no-{name}"],
            "null": "omit",
        }
    )
    assert words(flag, VALUES)[:8] == [
        "--set",
        "lr=1e-05",
        "--set",
        "model.layers=5",
        "--set",
        "width=5.0",
        "--amp",
        "--no-bias",
    ]
    assert "scheduler" not in " ".join(words(flag, VALUES))
    assert words(flags({"value": "{value}", "true": "{name}=True"}), {"a": True}) == ["a=True"]
    assert words(flag, {}) == []


def test_braces_in_names_and_values_are_kept() -> None:
    assert words(flags("{name}={value}"), {"{value}": "{name}"}) == ["{value}={name}"]


@pytest.mark.parametrize(
    "template",
    [
        "{value}",
        "--{name}={value}",
        ["--{name}", "{value}"],
        {"value": "{name}={value}", "true": "--{name}", "false": "omit", "null": "{name}={value}"},
    ],
)
def test_valid_templates(template: Any) -> None:
    check_flag(flags(template), "t.yaml: script.flag")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("--{name}", "t.yaml: script.flag: '--{name}' has no {value}. Valid: --{name}={value}"),
        ("omit", "t.yaml: script.flag: 'omit' has no {value}. Valid: --{name}={value}"),
        ([], "t.yaml: script.flag: '' has no {value}. Valid: --{name}={value}"),
        ("--{key}={value}", "t.yaml: script.flag.value: {key} in '--{key}={value}' is unknown."),
        (
            {"value": "{value}", "true": ["--", "{nme}"]},
            "t.yaml: script.flag.true: {nme} in '{nme}' is unknown. Valid: {name}, {value}",
        ),
    ],
)
def test_invalid_templates(template: Any, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        check_flag(flags(template), "t.yaml: script.flag")
    assert str(caught.value).startswith(message)


PLACES = {"code": "/lab/{work}", "work": "/data/a b", "step_1": "x"}


@pytest.mark.parametrize(
    ("text", "filled"),
    [
        ("", ""),
        ("plain", "plain"),
        ("{code}/train.py", "/lab/{work}/train.py"),
        ("{code}{work}", "/lab/{work}/data/a b"),
        ("{step_1}", "x"),
        ("${code}", "${code}"),
        ("${oc.env:HOME}/{step_1}", "${oc.env:HOME}/x"),
        ("$HOME", "$HOME"),
        ('{"a": 1}', '{"a": 1}'),
        ('{"a": {"code": 1}}', '{"a": {"code": 1}}'),
        ("{}", "{}"),
        ("{a b}", "{a b}"),
        ("{0}", "{0}"),
        (r"\d{3}", r"\d{3}"),
        ("{epoch:.2f}", "{epoch:.2f}"),
        ("{{epoch}}", "{epoch}"),
        ("{{code}}", "{code}"),
        ("{{ x }}", "{{ x }}"),
        ("${{code}}", "${{code}}"),
        ("{", "{"),
        ("}{", "}{"),
        ("{code", "{code"),
    ],
)
def test_fill_replaces_known_names_only(text: str, filled: str) -> None:
    assert fill(text, PLACES, "t.yaml: script.command") == filled


def test_fill_refuses_an_unknown_name() -> None:
    with pytest.raises(SpecError) as caught:
        fill("{code}/{cde}", PLACES, "t.yaml: script.command")
    assert str(caught.value) == (
        "t.yaml: script.command: {cde} in '{code}/{cde}' is unknown. "
        "Valid: {code}, {work}, {step_1}; to keep the braces write {{cde}}"
    )
