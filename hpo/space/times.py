"""Hours and moments as people write them: `8h`, `2h30m`, `tomorrow 8:00`, `2027-01-31T08:00`."""

import math
import re
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

HOURS = "Valid: a number of hours above 0, such as 8, 8h, 2h30m or 1d12h"
MOMENT = "Valid: such as 2027-01-31T08:00, in this machine's time zone"
TYPED_MOMENT = "Valid: such as 2027-01-31T08:00, tomorrow 8:00, 18:30, 8h (from now), or none"
# The calendar ends there, in any time zone.
LAST_YEAR = 9998

_NUMBER = r"(\d+(?:\.\d+)?)"
_LENGTH = re.compile(
    rf"(?:{_NUMBER}\s*(?:d|days?))?\s*"
    rf"(?:{_NUMBER}\s*(?:h|hours?))?\s*"
    rf"(?:{_NUMBER}\s*(?:m|min|minutes?))?",
    re.ASCII | re.IGNORECASE,
)
_DATE = re.compile(r"\d{4}-\d\d-\d\d([T ].+)?", re.ASCII)
_CLOCK = re.compile(r"(?:(today|tomorrow)\s+)?(?:at\s+)?(\d{1,2}):(\d\d)", re.ASCII | re.IGNORECASE)


def length(text: str) -> timedelta | None:
    """8h, 2h30m, 1d12h or 90 min; None for a text of another form."""
    match = _LENGTH.fullmatch(text.strip())
    if match is None or not any(match.groups()):
        return None
    days, hours, minutes = (float(part or 0) for part in match.groups())
    try:
        return timedelta(days=days, hours=hours, minutes=minutes)
    except OverflowError:
        return None


def hours_in(value: Any) -> float:
    """A number of hours from what a person wrote. Raises ValueError, with an example."""
    hours: Any = value
    if isinstance(value, str):
        written = length(value)
        hours = written / timedelta(hours=1) if written is not None else _number(value)
    is_number = isinstance(hours, (int, float)) and not isinstance(hours, bool)
    if not is_number or not math.isfinite(hours) or hours <= 0:
        raise ValueError(f"not a number of hours. {HOURS}")
    return float(hours)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def moment_in(value: Any) -> datetime:
    """A moment in UTC from a date, with or without a time. Raises ValueError, with an example.

    A moment without a time zone is in the zone of this machine, a date is the beginning of its day.
    Times without a date are refused: a study file is read again at every launch.
    """
    moment = value
    if isinstance(value, date) and not isinstance(value, datetime):
        moment = datetime.combine(value, time())
    elif isinstance(value, str):
        moment = _dated(value.strip())
    if not isinstance(moment, datetime):
        raise ValueError(f"not a date and a time. {MOMENT}")
    return _in_utc(moment)


def _dated(text: str) -> datetime | None:
    if not _DATE.fullmatch(text):
        return None
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return None


def _in_utc(moment: datetime) -> datetime:
    try:
        in_utc = moment.astimezone(UTC)
    except (OverflowError, ValueError, OSError):
        in_utc = None
    if in_utc is None or in_utc.year > LAST_YEAR:
        raise ValueError(f"beyond the calendar. {MOMENT}")
    return in_utc


def moment_from(text: str, now: datetime) -> datetime:
    """A moment that a person types now: also `8h`, `18:30` or `tomorrow 8:00`.

    now: with its time zone. Raises ValueError, with an example.
    """
    text = text.strip()
    after = length(re.sub(r"^in\s+", "", text, flags=re.IGNORECASE))
    if after is not None:
        return later(now, after)
    clock = _CLOCK.fullmatch(text)
    moment = _dated(text) if clock is None else _on_the_clock(clock, now)
    if moment is None:
        raise ValueError(f"not a moment. {TYPED_MOMENT}")
    return _in_utc(moment)


def later(moment: datetime, after: timedelta) -> datetime:
    """The moment, moved. Raises ValueError beyond the calendar."""
    try:
        return _in_utc((moment + after).replace(microsecond=0))
    except OverflowError:
        raise ValueError(f"beyond the calendar. {TYPED_MOMENT}") from None


def _on_the_clock(clock: re.Match[str], now: datetime) -> datetime | None:
    """The time of day in this machine's zone; without a day, the next such time."""
    day, hour, minute = clock.groups()
    try:
        at = time(int(hour), int(minute))
    except ValueError:
        return None
    # Without a zone, so that `astimezone` uses the offset of that day and not the one of today.
    today = now.astimezone().replace(tzinfo=None)
    moment = datetime.combine(today, at)
    named = (day or "").lower()
    if named == "tomorrow" or (not named and moment <= today):
        moment += timedelta(days=1)
    return moment
