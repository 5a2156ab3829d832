"""The configuration file of a script, read, changed and written.

A field is addressed as `model.layers`, or as `callbacks.0.init_args.patience` where a list holds
groups. YAML is read as PyYAML reads it, but for two things: `1e-5` is a number, as in YAML 1.2 and
OmegaConf, and an unquoted date is text. What is written means the same to PyYAML and to OmegaConf.
Comments of the base file are not written.
"""

import json
import math
import re
import sys
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, time
from pathlib import Path
from typing import Any

import tomli_w
import yaml

from hpo.errors import SpecError, os_error_text
from hpo.settings import guess

MAX_BYTES = 1_000_000
MAX_VALUES = 10_000
MAX_DEPTH = 50
SHOWN_NAMES = 30
_VALID = "numbers, true, false, null, text, lists and groups"
KINDS = {".yaml": "yaml", ".yml": "yaml", ".json": "json", ".toml": "toml"}

_YAML = "tag:yaml.org,2002:"
_FLOAT = re.compile(
    r"""^(?:
        [-+]?[0-9]+(?:_[0-9]+)*\.[0-9_]*(?:[eE][-+]?[0-9]+)?
        |[-+]?[0-9]+(?:_[0-9]+)*[eE][-+]?[0-9]+
        |[-+]?\.[0-9]+(?:_[0-9]+)*(?:[eE][-+]?[0-9]+)?
    )$""",
    re.VERBOSE,
)
# Text that some reader takes for a number, a date or a flag, so that it is written in quotes.
_LIKE_A_NUMBER = re.compile(r"^[-+]?\.?[0-9][0-9a-fA-FoOxX_.:eE+-]*$")
_LIKE_A_FLAG = re.compile(r"^[yYnN]$")
# Text that must be escaped: PyYAML reads these back as other line breaks, or folds them.
_LINE_BREAK = re.compile("[\n\r\x85\u2028\u2029]")


@dataclass(frozen=True)
class Base:
    """The base values of a script's configuration.

    A study stores `text` and `kind`, from which `parse_base` makes the same again elsewhere.
    """

    text: str
    kind: str
    """yaml, json or toml."""
    place: str = field(compare=False)
    """The file, for messages."""
    tree: dict[Any, Any] = field(compare=False, repr=False)
    paths: Mapping[str, tuple[Any, ...]] = field(compare=False, repr=False)
    """Dotted name -> keys and list indices: of fields, groups and the items of lists."""
    fields: tuple[str, ...] = field(compare=False, repr=False)
    """The dotted names of the fields: single values, lists of them, and empty groups."""

    def values(self) -> dict[str, Any]:
        """Dotted name -> value. Fields that JSON cannot hold are left out: dates, NaN, infinity."""
        found = {name: _at(self.tree, self.paths[name]) for name in self.fields}
        return {name: _plain(value, name) for name, value in found.items() if _is_json(value)}

    def changed(self, values: Mapping[str, Any]) -> dict[Any, Any]:
        """A copy of the tree with some values replaced.

        values: dotted name -> value. A name may be that of a whole group, and a group is replaced
        before what is in it. A name that begins with `+` adds a field, and the groups on its way.
        Raises SpecError for a name that does not exist.
        """
        tree: dict[Any, Any] = _plain(self.tree, self.place)
        known = [name for name in values if name in self.paths]
        for name in sorted(known, key=lambda name: len(self.paths[name])):
            self._replace(tree, name, _plain(values[name], f"{self.place}: {name}"))
        for name, value in values.items():
            if name in self.paths:
                continue
            if not name.startswith("+"):
                raise SpecError(self.unknown_name(name))
            self._add(tree, name[1:], _plain(value, f"{self.place}: {name}"))
        return tree

    def unknown_name(self, name: str) -> str:
        """The message for a name that does not exist: the likely one first."""
        likely = guess(name, tuple(self.paths))
        shown = ", ".join(self.fields[:SHOWN_NAMES])
        more = len(self.fields) - SHOWN_NAMES
        end = f" and {more} more" if more > 0 else ""
        return f"{self.place}: there is no {name!r}.{likely} Valid: {shown}{end}; +{name} adds it"

    def _replace(self, tree: Any, name: str, value: Any) -> None:
        *above, key = self.paths[name]
        group = tree
        try:
            for step in above:
                group = group[step]
            group[key] = value
        except (KeyError, IndexError, TypeError):
            raise SpecError(
                f"{self.place}: {name} is in a group that another value replaces. Give one of both"
            ) from None

    def _add(self, tree: Any, name: str, value: Any) -> None:
        *above, key = self._new_path(name)
        group = tree
        for step in above:
            group = _entered(group, step)
        if not isinstance(group, dict):
            whole = name.rpartition(".")[0]
            raise SpecError(
                f"{self.place}: +{name}: {whole} is a value, not a group. Replace {whole} whole"
            )
        if key in group:
            raise SpecError(f"{self.place}: +{name} is there already. Write {name}, without the +")
        group[key] = value

    def _new_path(self, name: str) -> tuple[Any, ...]:
        """The path of the longest known beginning of a name, and the other parts as keys."""
        parts = name.split(".")
        if "" in parts:
            raise SpecError(f"{self.place}: +{name} is no name. Valid: +field or +group.field")
        for known in range(len(parts) - 1, 0, -1):
            path = self.paths.get(".".join(parts[:known]))
            if path is not None:
                return (*path, *parts[known:])
        return tuple(parts)


def read_base(path: Path) -> Base:
    """Read a base file: YAML, JSON or TOML by its suffix, else by its content. Raises SpecError."""
    return parse_base(_text_of(path), KINDS.get(path.suffix.lower(), ""), str(path))


def parse_base(text: str, kind: str, place: str) -> Base:
    """A base file from its text.

    kind: yaml, json, toml, or empty: JSON if it is that, else YAML. place: the file, for messages.
    Raises SpecError.
    """
    if not text.strip():
        raise SpecError(f"{place}: is empty. Valid: names with their values")
    kind = kind or _kind_of_content(text)
    tree = _parsed(text, kind, place)
    if tree is None:
        raise SpecError(f"{place}: is empty. Valid: names with their values")
    if not isinstance(tree, dict):
        raise SpecError(f"{place}: holds {_shown(tree)}. Valid: names with their values")
    _check_size(tree, _inner, place)
    tree = _plain(tree, place)
    found = _Names(place)
    found.collect(tree)
    return Base(text, kind, place, tree, found.paths, tuple(found.fields))


def nested(values: Mapping[str, Any], place: str) -> dict[Any, Any]:
    """{"a.b": 1} -> {"a": {"b": 1}}: the configuration of a script without a base file.

    A leading `+` is allowed. Raises SpecError where a name is that of a value and of a group.
    """
    added = {f"+{name.removeprefix('+')}": value for name, value in values.items()}
    return Base("{}", "json", place, {}, {}, ()).changed(added)


def kind_of(name: str, otherwise: str = "") -> str:
    """yaml, json or toml, by a file's name; `otherwise` if that does not say. Raises SpecError."""
    kind = KINDS.get(Path(name).suffix.lower(), otherwise)
    if not kind:
        raise SpecError(f"{name}: its suffix does not say what to write. Valid: {', '.join(KINDS)}")
    return kind


def rendered(tree: Mapping[Any, Any], kind: str, place: str = "") -> str:
    """The text of a configuration file.

    place: the file, for messages. Raises SpecError for a value that this kind of file cannot hold.
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
    written: str = yaml.dump(
        plain,
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        default_flow_style=False,
        width=sys.maxsize,
    )
    return written


# ---------------------------------------------------------------------------------- reading


def _text_of(path: Path) -> str:
    """Raises SpecError."""
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
    """Raises SpecError."""
    parsers: dict[str, Callable[[str], Any]] = {
        "yaml": lambda text: _parsed_yaml(text, place),
        "json": json.loads,
        "toml": tomllib.loads,
    }
    try:
        return parsers[kind](text)
    except RecursionError:
        raise SpecError(_too_deep(place)) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        fault = f"{line}: {_one_line(error.problem or error.context)}"
    # PyYAML lets Python's own errors through, such as of `!!int five`.
    except (yaml.YAMLError, ValueError, KeyError) as error:
        fault = f": {_one_line(error)}"
    raise SpecError(f"{place}: is not valid {kind.upper()}{fault}")


class _Loader(yaml.SafeLoader):
    """Reads 1e-5 as a number and dates as text."""


def _parsed_yaml(text: str, place: str) -> Any:
    loader = _Loader(text)
    node = loader.get_single_node()
    # Before anything is made of the nodes: aliases can stand for far more than was written.
    _check_size(node, _inner_nodes, place)
    return loader.construct_document(node) if node else None


def _too_deep(place: str) -> str:
    return (
        f"{place}: is nested deeper than {MAX_DEPTH} groups. "
        f"Valid: fewer levels, and no alias within itself"
    )


def _one_line(what: Any) -> str:
    return " ".join(str(what).split())


def _check_size(root: Any, inner: Callable[[Any], list[Any]], place: str) -> None:
    """Raises SpecError if there are more values, or more levels, than a configuration has."""
    count = 0
    waiting = [(root, 0)]
    while waiting:
        value, depth = waiting.pop()
        if depth > MAX_DEPTH:
            raise SpecError(_too_deep(place))
        inside = inner(value)
        count += not inside
        if count > MAX_VALUES:
            raise SpecError(
                f"{place}: has more than {MAX_VALUES} values. Give a configuration, not data"
            )
        waiting += [(item, depth + 1) for item in inside]


def _inner(value: Any) -> list[Any]:
    return [item for _, item in _items(value)]


def _inner_nodes(node: yaml.Node | None) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [value for _, value in node.value]
    return node.value if isinstance(node, yaml.SequenceNode) else []


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
            first, second = list(self.paths[name]), list(path)
            raise SpecError(
                f"{self.place}: {name!r} is the name of two fields, {first} and {second}. "
                f"Rename one of them"
            )
        self.paths[name] = path


def _items(value: Any) -> list[tuple[Any, Any]]:
    """What is in a group or a list, by key or index; nothing of a single value."""
    if isinstance(value, Mapping):
        return list(value.items())
    if isinstance(value, list):
        return list(enumerate(value))
    return []


def _key_text(key: Any) -> str:
    """A key within a dotted name: as JSON spells it."""
    return key if isinstance(key, str) else json.dumps(key)


def _is_field(value: Any) -> bool:
    """Whether this is one value of the configuration, rather than a group of several."""
    if isinstance(value, dict):
        return not value
    return not isinstance(value, list) or not any(_holds_group(item) for item in value)


def _holds_group(value: Any) -> bool:
    return isinstance(value, dict) or any(_holds_group(item) for _, item in _items(value))


def _is_json(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, list):
        return all(_is_json(item) for item in value)
    return not isinstance(value, date | time)


def _at(tree: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def _entered(group: Any, step: Any) -> Any:
    """What a group has at this key, made if it has nothing there; None if there is no group."""
    if isinstance(group, dict):
        return group.setdefault(step, {})
    if isinstance(group, list) and isinstance(step, int) and step < len(group):
        return group[step]
    return None


def _plain(value: Any, place: str) -> Any:
    """A copy in Python's plain types, in which no two places share a list or a group.

    Raises SpecError for a value that no configuration file holds.
    """
    if isinstance(value, Mapping):
        return {key: _plain(item, _inside(place, key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, _inside(place, index)) for index, item in enumerate(value)]
    if value is None or isinstance(value, bool | str | date | time):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    raise SpecError(f"{place}: a {type(value).__name__} cannot be written. Valid: {_VALID}")


def _inside(place: str, key: Any) -> str:
    """The place of an item: `args.yaml: model`, then `args.yaml: model.layers`."""
    separator = "." if ": " in place else ": " if place else ""
    return f"{place}{separator}{_key_text(key)}"


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return "a list"
    return f"the value {_one_line(json.dumps(value))[:60]}"


# ---------------------------------------------------------------------------------- writing


class _Dumper(yaml.SafeDumper):
    """Writes what PyYAML and readers of YAML 1.2 read alike."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _write_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = '"' if _LINE_BREAK.search(text) else None
    return dumper.represent_scalar(f"{_YAML}str", text, style=style)


def _iso(value: Any) -> str:
    text: str = value.isoformat()
    return text


_Loader.add_implicit_resolver(f"{_YAML}float", _FLOAT, list("-+.0123456789"))
_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern)
        for tag, pattern in resolvers
        if tag not in (f"{_YAML}timestamp", f"{_YAML}value")
    ]
    for first, resolvers in _Loader.yaml_implicit_resolvers.items()
}
# A text is quoted if it resolves to another type. Real numbers meet their own resolvers first.
_Dumper.add_implicit_resolver(f"{_YAML}float", _LIKE_A_NUMBER, list("-+.0123456789"))
_Dumper.add_implicit_resolver(f"{_YAML}bool", _LIKE_A_FLAG, list("yYnN"))
_Dumper.add_representer(str, _write_text)
for kind in (date, datetime, time):
    _Dumper.add_representer(kind, lambda dumper, value: _write_text(dumper, _iso(value)))
