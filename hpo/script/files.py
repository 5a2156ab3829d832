"""Reads, changes and writes the configuration file of a script.

A dotted name addresses a field: `model.layers`, or `callbacks.0.init_args.patience` where a list
holds groups. YAML is read as PyYAML reads it, with two exceptions: `1e-5` is a number, as in YAML
1.2 and OmegaConf, and an unquoted date is text. PyYAML and OmegaConf read the written files alike.
Comments of the base file are lost.
"""

import json
import math
import re
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, time
from pathlib import Path
from typing import Any

import tomli_w
import yaml

from hpo.errors import SpecError, os_error_text, shortened, shown
from hpo.settings import MAX_BYTES, check_size, children, guess, too_deep

SHOWN_NAMES = 30
_VALID_VALUES = "numbers, true, false, null, text, lists and groups"
KINDS = {".yaml": "yaml", ".yml": "yaml", ".json": "json", ".toml": "toml"}

_YAML = "tag:yaml.org,2002:"
# Kinds that an unquoted value is never read as.
_UNRESOLVED = (f"{_YAML}timestamp", f"{_YAML}value")
_FLOAT = re.compile(
    r"""^(?:
        [-+]?[0-9]+(?:_[0-9]+)*\.[0-9_]*(?:[eE][-+]?[0-9]+)?
        |[-+]?[0-9]+(?:_[0-9]+)*[eE][-+]?[0-9]+
        |[-+]?\.[0-9]+(?:_[0-9]+)*(?:[eE][-+]?[0-9]+)?
    )$""",
    re.VERBOSE,
)
# Text that some reader takes for a number, a date or a flag. It is written in quotes.
_LIKE_A_NUMBER = re.compile(r"^[-+]?\.?[0-9][0-9a-fA-FoOxX_.:eE+-]*$")
_LIKE_A_FLAG = re.compile(r"^[yYnN]$")
# Text with these is escaped: PyYAML folds them, or reads them back as other line breaks.
_LINE_BREAK = re.compile("[\n\r\x85\u2028\u2029]")


@dataclass(frozen=True)
class Base:
    """The base values of a script's configuration.

    A study stores `text` and `kind`; from these, `parse_base` makes an equal Base on another host.
    """

    text: str
    kind: str
    """yaml, json or toml."""
    place: str = field(compare=False)
    """The file, for messages."""
    tree: dict[Any, Any] = field(compare=False, repr=False)
    paths: Mapping[str, tuple[Any, ...]] = field(compare=False, repr=False)
    """Dotted name of a field, group or list item -> the keys and indices that lead to it."""
    fields: tuple[str, ...] = field(compare=False, repr=False)
    """Dotted names of the fields: single values, lists of single values, and empty groups."""

    def values(self) -> dict[str, Any]:
        """Dotted name -> value, without values that JSON cannot hold: dates, NaN, infinity."""
        values = {}
        for name in self.fields:
            value = _value_at(self.tree, self.paths[name])
            if _is_json(value):
                values[name] = _plain(value, name)
        return values

    def changed(self, values: Mapping[str, Any]) -> dict[Any, Any]:
        """A copy of the tree with some values replaced.

        values: dotted name -> value. A name may address a whole group; groups are replaced before
        the fields inside them. A name that begins with `+` adds a field, and its missing groups.
        Raises SpecError for a name that does not exist.
        """
        tree: dict[Any, Any] = _plain(self.tree, self.place)
        known = [name for name in values if name in self.paths]
        known.sort(key=self._depth)
        for name in known:
            self._replace(tree, name, _plain(values[name], f"{self.place}: {name}"))
        for name, value in values.items():
            if name in self.paths:
                continue
            if not name.startswith("+"):
                raise SpecError(self.unknown_name(name))
            self._add(tree, name[1:], _plain(value, f"{self.place}: {name}"))
        return tree

    def unknown_name(self, name: str) -> str:
        """The message for a name that does not exist. It suggests the most similar one."""
        suggestion = guess(name, tuple(self.paths))
        valid = ", ".join(self.fields[:SHOWN_NAMES])
        more = len(self.fields) - SHOWN_NAMES
        if more > 0:
            valid += f" and {more} more"
        return (
            f"{self.place}: there is no {shown(name)}.{suggestion} Valid: {valid}; +{name} adds it"
        )

    def _depth(self, name: str) -> int:
        return len(self.paths[name])

    def _replace(self, tree: Any, name: str, value: Any) -> None:
        *parents, key = self.paths[name]
        try:
            group = _value_at(tree, parents)
            group[key] = value
        except (KeyError, IndexError, TypeError):
            raise SpecError(
                f"{self.place}: {name} is in a group that another value replaces. Give only one"
            ) from None

    def _add(self, tree: Any, name: str, value: Any) -> None:
        *parents, key = self._new_path(name)
        group = tree
        for parent in parents:
            group = _entered(group, parent)
        if not isinstance(group, dict):
            parent_name = name.rpartition(".")[0]
            raise SpecError(
                f"{self.place}: +{name}: {parent_name} is a value, not a group. "
                f"Replace {parent_name} as a whole"
            )
        if key in group:
            raise SpecError(f"{self.place}: +{name} exists already. Write {name}, without the +")
        group[key] = value

    def _new_path(self, name: str) -> tuple[Any, ...]:
        """The path of the longest existing prefix of a name, with the remaining parts as keys."""
        parts = name.split(".")
        if "" in parts:
            raise SpecError(f"{self.place}: +{name} is not a name. Valid: +field or +group.field")
        for known_parts in range(len(parts) - 1, 0, -1):
            path = self.paths.get(".".join(parts[:known_parts]))
            if path is not None:
                return (*path, *parts[known_parts:])
        return tuple(parts)


def read_base(path: Path) -> Base:
    """Read a base file: YAML, JSON or TOML by its suffix, else by its content. Raises SpecError."""
    return parse_base(_text_of(path), KINDS.get(path.suffix.lower(), ""), str(path))


def parse_base(text: str, kind: str, place: str) -> Base:
    """Make a Base from the text of a file.

    kind: yaml, json or toml; empty means JSON if the text is valid JSON, else YAML. place: the
    file, for messages. Raises SpecError.
    """
    if not text.strip():
        raise SpecError(f"{place}: is empty. Valid: names with their values")
    kind = kind or _kind_of_content(text)
    tree = _parsed(text, kind, place)
    if tree is None:
        raise SpecError(f"{place}: is empty. Valid: names with their values")
    if not isinstance(tree, dict):
        raise SpecError(f"{place}: holds {_shown(tree)}. Valid: names with their values")
    check_size(tree, children, place)
    tree = _plain(tree, place)
    names = _Names(place)
    names.collect(tree)
    return Base(text, kind, place, tree, names.paths, tuple(names.fields))


def nested(values: Mapping[str, Any], place: str) -> dict[Any, Any]:
    """{"a.b": 1} -> {"a": {"b": 1}}: the configuration of a script without a base file.

    A leading `+` is allowed. Raises SpecError for a name of both a value and a group.
    """
    added = {f"+{name.removeprefix('+')}": value for name, value in values.items()}
    return Base("{}", "json", place, {}, {}, ()).changed(added)


def kind_of(name: str, otherwise: str = "") -> str:
    """yaml, json or toml by the suffix of a file, or `otherwise`. Raises SpecError for neither."""
    kind = KINDS.get(Path(name).suffix.lower(), otherwise)
    if not kind:
        raise SpecError(f"{name}: its suffix does not name a format. Valid: {', '.join(KINDS)}")
    return kind


def rendered(tree: Mapping[Any, Any], kind: str, place: str = "") -> str:
    """The text of a configuration file of this kind: yaml, json or toml.

    place: the file, for messages. Raises SpecError for a value that this kind cannot hold.
    """
    plain = _plain(tree, place)
    if kind == "toml":
        try:
            return tomli_w.dumps(plain)
        except TypeError as error:
            raise SpecError(
                f"{place}: TOML cannot hold it ({error}). Write a .yaml or .json file"
            ) from None
    if kind == "json":
        return json.dumps(plain, indent=2, ensure_ascii=False, default=_iso) + "\n"
    text: str = yaml.dump(
        plain,
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        default_flow_style=False,
        width=sys.maxsize,
    )
    return text


# ---------------------------------------------------------------------------------- reading


def _text_of(path: Path) -> str:
    """Read a file of UTF-8 text. Raises SpecError."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise SpecError(os_error_text(error)) from None
    if len(content) > MAX_BYTES:
        raise SpecError(
            f"{path}: is larger than {MAX_BYTES // 1_000_000} MB. Give a configuration, not data"
        )
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise SpecError(f"{path}: is not text in UTF-8 (line {line}). Save it as UTF-8") from None


def _kind_of_content(text: str) -> str:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return "yaml"
    return "json"


def _parsed(text: str, kind: str, place: str) -> Any:
    """Parse the text of a yaml, json or toml file. Raises SpecError."""
    try:
        if kind == "json":
            return json.loads(text)
        if kind == "toml":
            return tomllib.loads(text)
        return _parsed_yaml(text, place)
    except RecursionError:
        raise SpecError(too_deep(place)) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        fault = f"{line}: {_one_line(error.problem or error.context)}"
    # PyYAML passes on errors of Python itself: `!!int five` raises a ValueError.
    except (yaml.YAMLError, ValueError, KeyError) as error:
        fault = f": {_one_line(error)}"
    raise SpecError(f"{place}: is not valid {kind.upper()}{fault}")


class _Loader(yaml.SafeLoader):
    """Reads 1e-5 as a number and dates as text."""


def _parsed_yaml(text: str, place: str) -> Any:
    loader = _Loader(text)
    node = loader.get_single_node()
    # Check before constructing: aliases can expand to far more values than the text has.
    check_size(node, _child_nodes, place)
    return loader.construct_document(node) if node else None


def _one_line(value: Any) -> str:
    return shortened(" ".join(str(value).split()))


def _child_nodes(node: yaml.Node | None) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [value for _, value in node.value]
    if isinstance(node, yaml.SequenceNode):
        return list(node.value)
    return []


class _Names:
    """Collects the dotted names of a tree."""

    def __init__(self, place: str) -> None:
        self.place = place
        self.paths: dict[str, tuple[Any, ...]] = {}
        self.fields: list[str] = []

    def collect(
        self, group: Any, path: tuple[Any, ...] = (), name: str = "", in_field: bool = False
    ) -> None:
        for key, value in _items(group):
            inner_path = (*path, key)
            inner_name = f"{name}.{_key_text(key)}" if path else _key_text(key)
            self._note(inner_name, inner_path)
            is_field = not in_field and _is_field(value)
            if is_field:
                self.fields.append(inner_name)
            self.collect(value, inner_path, inner_name, in_field or is_field)

    def _note(self, name: str, path: tuple[Any, ...]) -> None:
        if name in self.paths:
            raise SpecError(
                f"{self.place}: {name!r} is the name of two fields, {list(self.paths[name])} and "
                f"{list(path)}. Rename one of them"
            )
        self.paths[name] = path


def _items(value: Any) -> list[tuple[Any, Any]]:
    """The items of a group by key, or of a list by index. A single value has none."""
    if isinstance(value, Mapping):
        return list(value.items())
    if isinstance(value, list):
        return list(enumerate(value))
    return []


def _key_text(key: Any) -> str:
    """A key as a part of a dotted name: text as it is, other keys as in JSON."""
    return key if isinstance(key, str) else json.dumps(key)


def _is_field(value: Any) -> bool:
    """Whether this is one value of the configuration: no group, and no list that holds groups."""
    if isinstance(value, dict):
        return not value
    if isinstance(value, list):
        return not any(_holds_group(item) for item in value)
    return True


def _holds_group(value: Any) -> bool:
    return isinstance(value, dict) or any(_holds_group(item) for _, item in _items(value))


def _is_json(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, list):
        return all(_is_json(item) for item in value)
    return not isinstance(value, date | time)


def _value_at(tree: Any, path: Sequence[Any]) -> Any:
    """Raises KeyError, IndexError or TypeError if the path does not exist."""
    value = tree
    for key in path:
        value = value[key]
    return value


def _entered(group: Any, key: Any) -> Any:
    """The item of a group or a list; a group gets an empty group for a missing key.

    None for a value that has no items.
    """
    if isinstance(group, dict):
        return group.setdefault(key, {})
    if isinstance(group, list) and isinstance(key, int) and key < len(group):
        return group[key]
    return None


def _plain(value: Any, place: str) -> Any:
    """A deep copy in Python's plain types, in which no two places share a list or a group.

    Raises SpecError for a value that no configuration file can hold.
    """
    if isinstance(value, Mapping):
        return {key: _plain(item, _item_place(place, key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, _item_place(place, index)) for index, item in enumerate(value)]
    if value is None or isinstance(value, bool | str | date | time):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    raise SpecError(f"{place}: a {type(value).__name__} cannot be written. Valid: {_VALID_VALUES}")


def _item_place(place: str, key: Any) -> str:
    """The place of an item: `args.yaml: model`, then `args.yaml: model.layers`."""
    name = _key_text(key)
    if not place:
        return name
    separator = "." if ": " in place else ": "
    return f"{place}{separator}{name}"


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return "a list"
    return f"the value {_one_line(json.dumps(value))[:60]}"


# ---------------------------------------------------------------------------------- writing


class _Dumper(yaml.SafeDumper):
    """Writes text that PyYAML and YAML 1.2 parsers read alike."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _write_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = '"' if _LINE_BREAK.search(text) else None
    return dumper.represent_scalar(f"{_YAML}str", text, style=style)


def _write_moment(dumper: yaml.SafeDumper, moment: Any) -> yaml.ScalarNode:
    return _write_text(dumper, _iso(moment))


def _iso(moment: Any) -> str:
    text: str = moment.isoformat()
    return text


_Loader.add_implicit_resolver(f"{_YAML}float", _FLOAT, list("-+.0123456789"))
for first, resolvers in _Loader.yaml_implicit_resolvers.items():
    kept = [resolver for resolver in resolvers if resolver[0] not in _UNRESOLVED]
    _Loader.yaml_implicit_resolvers[first] = kept
# PyYAML quotes text that resolves to another type. Real numbers meet their own resolvers first.
_Dumper.add_implicit_resolver(f"{_YAML}float", _LIKE_A_NUMBER, list("-+.0123456789"))
_Dumper.add_implicit_resolver(f"{_YAML}bool", _LIKE_A_FLAG, list("yYnN"))
_Dumper.add_representer(str, _write_text)
for kind in (date, datetime, time):
    _Dumper.add_representer(kind, _write_moment)
