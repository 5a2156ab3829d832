"""Reads YAML 1.2: what a person wrote is what counts.

Plain text is null, true, false or a number as YAML's core schema says, and else the text itself:
`1:30`, `yes`, `off` and `2027-01-31` are text, and `010` is 10.
"""

import re
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import ConstructorError, SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import Node, ScalarNode
from ruamel.yaml.resolver import VersionedResolver
from ruamel.yaml.tag import Tag

from hpo.errors import shortened
from hpo.settings import MAX_DEPTH

# A study file is smaller by far.
MAX_LETTERS = 1_000_000
# Of a file with its aliases written out.
MAX_VALUES = 100_000

_PREFIX = "tag:yaml.org,2002:"
_NULL = re.compile(r"~|null|Null|NULL|")
_FORMS = {
    "null": _NULL,
    "bool": re.compile(r"true|True|TRUE|false|False|FALSE"),
    "int": re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", re.ASCII),
    "float": re.compile(
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
    ),
    "merge": re.compile("<<"),
}
_TAGS = ("null", "bool", "int", "float", "str", "seq", "map")


class YamlFault(ValueError):
    """Why a text is no YAML. line: counts from 1; None if it is not known."""

    def __init__(self, problem: str, line: int | None = None):
        super().__init__(shortened(problem))
        self.line = line


class _CoreResolver(VersionedResolver):
    """Gives plain text its type."""

    @property
    def processing_version(self) -> tuple[int, int]:
        return (1, 2)

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        if kind is not ScalarNode or not implicit[0]:
            return super().resolve(kind, value, implicit)
        for name, form in _FORMS.items():
            if form.fullmatch(value):
                return Tag(suffix=_PREFIX + name)
        return self.DEFAULT_SCALAR_TAG


class _PlainConstructor(SafeConstructor):
    """Makes plain values alone, and refuses equal keys."""

    def check_mapping_key(
        self, node: Node, key_node: Node, mapping: Any, key: Any, value: Any
    ) -> bool:
        if key in mapping:
            raise ConstructorError(None, None, f"{key!r} appears twice", key_node.start_mark)
        return True


_PlainConstructor.yaml_constructors = {
    None: SafeConstructor.construct_undefined,
    **{_PREFIX + name: SafeConstructor.yaml_constructors[_PREFIX + name] for name in _TAGS},
}


def parse_yaml(text: str) -> Any:
    """The values in a text. Raises YamlFault."""
    if len(text) > MAX_LETTERS:
        raise YamlFault(f"it is longer than {MAX_LETTERS:,} letters")
    parser = YAML(typ="safe", pure=True)
    parser.Resolver = _CoreResolver
    parser.Constructor = _PlainConstructor
    try:
        tree = parser.load(text)
    except RecursionError:
        raise YamlFault(f"it is nested more than {MAX_DEPTH} levels deep") from None
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else None
        raise YamlFault(str(error.problem or error.context), line) from None
    # `!!int five` is a ValueError, `!!bool maybe` a KeyError.
    except (YAMLError, ValueError, KeyError) as error:
        raise YamlFault(f"a value does not fit: {error}") from None
    _check_size(tree)
    return tree


def is_null(text: str) -> bool:
    """Whether plain text means null."""
    return _NULL.fullmatch(text.strip()) is not None


def _check_size(tree: Any) -> None:
    """Raises YamlFault for a tree that aliases make huge, or that contains itself."""
    pending = [(tree, 0)]
    seen = 0
    while pending:
        value, depth = pending.pop()
        if isinstance(value, dict):
            children = [*value, *value.values()]
        elif isinstance(value, (list, tuple)):
            children = list(value)
        else:
            continue
        seen += len(children)
        if seen > MAX_VALUES:
            raise YamlFault(f"it has more than {MAX_VALUES:,} values")
        if depth >= MAX_DEPTH:
            raise YamlFault(f"it is nested more than {MAX_DEPTH} levels deep")
        pending += [(child, depth + 1) for child in children]
