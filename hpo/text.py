"""Numbers, durations and intervals as people read them."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any


def percent(per: float) -> str:
    return f"{100 * per:.2f} %"


def between(interval: Sequence[float] | None) -> str:
    return "-" if interval is None else f"{100 * interval[0]:.1f}..{100 * interval[1]:.1f} %"


def duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else str(timedelta(seconds=round(seconds)))


def value_text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "off" if value is None else str(value)


def plural(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"


def local(moment: datetime) -> str:
    return f"{moment.astimezone():%Y-%m-%d %H:%M %Z}"
