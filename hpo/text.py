"""Numbers, durations and intervals as people read them."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

# For all pictures that matplotlib draws: equal pictures give equal files, and names are plain text,
# although two dollar signs would make a formula of what is between them.
PICTURE_STYLE: Any = {"svg.hashsalt": "hpo", "text.parse_math": False}


def percent(fraction: float) -> str:
    """12.34 %"""
    return f"{100 * fraction:.2f} %"


def between(interval: Sequence[float] | None) -> str:
    """An interval of fractions: 12.3..14.5 %"""
    if interval is None:
        return "-"
    return f"{100 * interval[0]:.1f}..{100 * interval[1]:.1f} %"


def duration(seconds: float) -> str:
    """99 s, or 1:40:00"""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return str(timedelta(seconds=round(seconds)))


def value_text(value: Any) -> str:
    """The value of a field; None reads as off."""
    if value is None:
        return "off"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def plural(count: int, noun: str) -> str:
    """1 trial, 2 trials"""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def local(moment: datetime) -> str:
    """2027-01-31 09:00 CET, in this machine's time zone."""
    return f"{moment.astimezone():%Y-%m-%d %H:%M %Z}"
