"""Numbers, steps and lists of numbers as C, Python and JSON spell them, with NaN and infinity."""

import math
import re
from typing import Any

LARGEST_STEP = 2**31 - 1

_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:e[+-]?[0-9]+)?", re.IGNORECASE)
_NOT_FINITE_TEXT = r"[+-]?(?:\.?(?:nan|inf(?:inity)?)(?:\([a-z0-9_]*\))?|1\.#[a-z]+[0-9]*)"
NOT_FINITE = re.compile(_NOT_FINITE_TEXT, re.IGNORECASE)
NOT_FINITE_ALONE = re.compile(rf"(?<!\w){_NOT_FINITE_TEXT}(?!\w)", re.IGNORECASE)
# What a group such as [\d.]+ cannot match, or matches only in part: nan, -inf, 1e-05.
SPECIAL = re.compile(
    rf"(?<!\w){_NOT_FINITE_TEXT}(?!\w)"
    r"|(?<![\w.])(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)e[+-]?[0-9]+(?!\w)",
    re.IGNORECASE,
)


def number(text: str) -> float:
    """Parse a number as C, Python or JSON spells it. Raises ValueError."""
    text = text.strip()
    if _NUMBER.fullmatch(text):
        return float(text)
    if not NOT_FINITE.fullmatch(text):
        raise ValueError(text)
    if "inf" not in text.lower():
        return math.nan
    return -math.inf if text.startswith("-") else math.inf


def as_number(value: Any) -> float:
    """Raises ValueError for flags, lists, and text that is not a number."""
    if isinstance(value, str):
        return number(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(value)
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def as_step(value: Any) -> int:
    """Raises ValueError for anything but a whole number from 0 to LARGEST_STEP."""
    step = as_number(value)
    if not 0 <= step <= LARGEST_STEP or step != int(step):
        raise ValueError(value)
    return int(step)


def as_list(value: Any) -> tuple[float, ...]:
    """Numbers from a JSON list, or from text with brackets, commas or blanks between them.

    Raises ValueError.
    """
    items = value
    if isinstance(value, str):
        items = re.sub(r"[\[\](),;]", " ", value).split()
    if not isinstance(items, list):
        raise ValueError(value)
    return tuple(as_number(item) for item in items)
