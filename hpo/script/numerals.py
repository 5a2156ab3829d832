"""Numbers, steps and lists of numbers in any spelling: of C, Python and JSON, NaN and infinity too."""

import math
import re
from typing import Any

LARGEST_STEP = 2**31 - 1


_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:e[+-]?[0-9]+)?", re.IGNORECASE)
_NOT_FINITE_TEXT = r"[+-]?(?:\.?(?:nan|inf(?:inity)?)(?:\([a-z0-9_]*\))?|1\.#[a-z]+[0-9]*)"
NOT_FINITE = re.compile(_NOT_FINITE_TEXT, re.IGNORECASE)
NOT_FINITE_ALONE = re.compile(rf"(?<!\w){_NOT_FINITE_TEXT}(?!\w)", re.IGNORECASE)
# What a group such as [\d.]+ does not match, or takes the beginning of: nan, -inf, 1e-05.
SPECIAL = re.compile(
    rf"(?<!\w){_NOT_FINITE_TEXT}(?!\w)"
    r"|(?<![\w.])(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)e[+-]?[0-9]+(?!\w)",
    re.IGNORECASE,
)


def number(text: str) -> float:
    """A number in any spelling of C, Python and JSON. Raises ValueError."""
    text = text.strip()
    if _NUMBER.fullmatch(text):
        return float(text)
    if not NOT_FINITE.fullmatch(text):
        raise ValueError(text)
    if "inf" not in text.lower():
        return math.nan
    return -math.inf if text.startswith("-") else math.inf


def as_number(given: Any) -> float:
    """Raises ValueError for flags, lists and text that is no number."""
    if isinstance(given, str):
        return number(given)
    if isinstance(given, bool) or not isinstance(given, (int, float)):
        raise ValueError(given)
    try:
        return float(given)
    except OverflowError:
        return math.inf if given > 0 else -math.inf


def as_step(given: Any) -> int:
    """Raises ValueError for what is no whole number from 0."""
    number = as_number(given)
    if not 0 <= number <= LARGEST_STEP or number != int(number):
        raise ValueError(given)
    return int(number)


def as_list(given: Any) -> tuple[float, ...]:
    """Of JSON a list; of text numbers between brackets, commas or blanks. Raises ValueError."""
    if isinstance(given, str):
        given = re.sub(r"[\[\](),;]", " ", given).split()
    if not isinstance(given, list):
        raise ValueError(given)
    return tuple(as_number(item) for item in given)
