"""Turns values into words of a command line, and fills in {code} and the like in texts."""

import json
import re
from collections.abc import Mapping
from typing import Any

from hpo.errors import SpecError
from hpo.script.settings import OMIT, FlagSettings


def check_flag(flag: FlagSettings, place: str) -> None:
    """Raises SpecError for templates with unknown places, or without the value."""
    templates = {"value": flag.value, "true": flag.true, "false": flag.false, "null": flag.null}
    for kind, template in templates.items():
        for word in template or []:
            fill(word, {"name": "", "value": ""}, f"{place}.{kind}")
    if any("{value}" in word and " " in word for word in flag.value):
        raise SpecError(
            f"{place}: {flag.value[0]!r} is one word with a blank in it. Valid: two words, "
            f"{json.dumps(flag.value[0].split())}"
        )
    if not any("{value}" in word for word in flag.value):
        raise SpecError(
            f"{place}: {' '.join(flag.value)!r} has no {{value}}. Valid: --{{name}}={{value}}"
        )


def words(flag: FlagSettings, values: Mapping[str, Any]) -> list[str]:
    """The words of a command line for these values, in their order. values: name -> value."""
    line: list[str] = []
    for name, value in values.items():
        template = _template(flag, value)
        if template != [OMIT]:
            places = {"name": name, "value": _value_text(value)}
            line += [fill(word, places, "flag") for word in template]
    return line


def _template(flag: FlagSettings, value: Any) -> list[str]:
    template = None
    if value is True:
        template = flag.true
    elif value is False:
        template = flag.false
    elif value is None:
        template = flag.null
    return flag.value if template is None else template


def _value_text(value: Any) -> str:
    """A value as a word: 1e-05, true, null, [1,2]; text as it is."""
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def fill(text: str, places: Mapping[str, str], place: str) -> str:
    """The text with `{code}` and the like replaced, in one pass.

    places: name -> its replacement. place: where the text comes from, for messages. `${...}` and
    JSON stay as they are, and `{{epoch}}` becomes `{epoch}`. Raises SpecError for an unknown name.
    """

    def replacement(match: re.Match[str]) -> str:
        doubled, single = match.groups()
        if doubled:
            return f"{{{doubled}}}"
        if single not in places:
            valid = ", ".join(f"{{{name}}}" for name in places)
            raise SpecError(
                f"{place}: {{{single}}} in {text!r} is unknown. Valid: {valid}; "
                f"to keep the braces write {{{{{single}}}}}"
            )
        return places[single]

    return re.sub(r"(?<![${])(?:\{\{([A-Za-z_]\w*)\}\}|\{([A-Za-z_]\w*)\})", replacement, text)
