"""Durations as people write them: ``"1h30m"``, seconds, `timedelta`, or an instant to wait for."""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime, timedelta

Duration = str | int | float | timedelta
When = str | int | float | timedelta | datetime

_UNITS = {
    "ms": timedelta(milliseconds=1),
    "s": timedelta(seconds=1),
    "m": timedelta(minutes=1),
    "h": timedelta(hours=1),
    "d": timedelta(days=1),
    "w": timedelta(weeks=1),
}
_PART = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d|w)", re.IGNORECASE)
_WHOLE = re.compile(rf"(?:{_PART.pattern}\s*)+", re.IGNORECASE)
_FORMS = 'seconds (10, 2.5), a timedelta, or text such as "500ms", "30s", "5m", "2h", "3d", "1w", "1h30m"'


def parse_duration(value: Duration) -> timedelta:
    """The duration that `value` means.

    Args:
        value: Seconds as a number, a `timedelta`, or text with the units ms, s, m, h, d, w.

    Raises:
        ValueError: The text is not a duration, or the duration is negative, infinite or too long.
        TypeError: The value is of another type.
    """
    match value:
        case bool():
            raise TypeError(f"Not a duration: {value!r}. Give {_FORMS}.")
        case timedelta():
            duration = value
        case int() | float():
            if not math.isfinite(value):
                raise ValueError(f"Not a duration: {value!r}. Give {_FORMS}.")
            duration = _scaled(timedelta(seconds=1), value, value)
        case str():
            duration = _parse_text(value)
        case _:
            raise TypeError(f"Not a duration: {value!r} of type {type(value).__name__}. Give {_FORMS}.")
    if duration < timedelta(0):
        raise ValueError(f"A duration cannot be negative: {value!r}.")
    return duration


def parse_timeout(value: Duration | None) -> timedelta | None:
    """The duration after which a wait is over; None for `None` and `math.inf`, which are never.

    Raises:
        ValueError, TypeError: As `parse_duration`.
    """
    return None if value is None or value == math.inf else parse_duration(value)


def _parse_text(text: str) -> timedelta:
    stripped = text.strip()
    if not _WHOLE.fullmatch(stripped):
        raise ValueError(f"Not a duration: {text!r}. Give {_FORMS}.")
    total = timedelta(0)
    for number, unit in _PART.findall(stripped):
        try:
            total += _scaled(_UNITS[unit.lower()], float(number) if "." in number else int(number), text)
        except OverflowError:
            raise ValueError(f"The duration {text!r} is too long.") from None
    return total


def _scaled(unit: timedelta, factor: float, said: object) -> timedelta:
    try:
        return unit * factor
    except OverflowError:
        raise ValueError(f"The duration {said!r} is too long: {timedelta.max.days} days at most.") from None


def in_utc(instant: datetime) -> datetime:
    """The instant in UTC; a naive one is taken as UTC."""
    return instant.replace(tzinfo=UTC) if instant.tzinfo is None else instant.astimezone(UTC)


def resolve_when(value: When, now: datetime) -> datetime:
    """The instant that `value` names, seen from `now`: an instant itself, or a duration from now.

    A naive `datetime` is taken as UTC. The past is allowed: a wait for it returns at once.
    """
    if isinstance(value, datetime):
        return in_utc(value)
    duration = parse_duration(value)
    try:
        return now + duration
    except OverflowError:
        raise ValueError(f"The duration {value!r} from now is beyond the calendar's end.") from None


def format_duration(duration: timedelta) -> str:
    """The duration in the text form that `parse_duration` reads, largest unit first."""
    micros = duration // timedelta(microseconds=1)
    if micros < 0:
        raise ValueError(f"A duration cannot be negative: {duration!r}.")
    parts = []
    for unit in ("w", "d", "h", "m", "s"):
        size = _UNITS[unit] // timedelta(microseconds=1)
        count, micros = divmod(micros, size)
        if count:
            parts.append(f"{count}{unit}")
    if micros:
        whole, rest = divmod(micros, 1000)
        parts.append(f"{whole}.{rest:03d}ms" if rest else f"{whole}ms")
    return "".join(parts) or "0s"
