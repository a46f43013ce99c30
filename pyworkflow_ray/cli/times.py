"""Times and durations for people: short ones, relative ones, exact ones."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import typer

from pyworkflow_ray.durations import parse_duration

_UNITS = (("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1))


def format_duration(duration: timedelta | float) -> str:
    """A duration in its two largest units: "0.12 s", "3.4 s", "2 m 5 s", "1 d 3 h"."""
    seconds = duration.total_seconds() if isinstance(duration, timedelta) else duration
    if seconds < 10:
        return f"{max(seconds, 0.0):.2f} s" if seconds < 1 else f"{seconds:.1f} s"
    rest = round(seconds)
    parts: list[str] = []
    for unit, size in _UNITS:
        count, rest = divmod(rest, size)
        if count or parts:
            parts.append(f"{count} {unit}")
        if len(parts) == 2:
            break
    return " ".join(part for part in parts if not part.startswith("0 "))


def format_relative(at: datetime, now: datetime | None = None) -> str:
    """How far away a time is, in its largest unit: "2 m ago", "in 3 d", "now"."""
    seconds = (at - (now or datetime.now(UTC))).total_seconds()
    size = round(abs(seconds))
    for unit, length in _UNITS:
        if size >= length:
            text = f"{round(size / length)} {unit}"
            return f"in {text}" if seconds > 0 else f"{text} ago"
    return "now"


def format_clock(at: datetime, now: datetime | None = None) -> str:
    """The local time, with the date if it is not today: "15:39:06", "2026-11-22 15:39:06"."""
    local = at.astimezone()
    is_today = local.date() == (now or datetime.now(UTC)).astimezone().date()
    return f"{local:%H:%M:%S}" if is_today else f"{local:%Y-%m-%d %H:%M:%S}"


def format_exact(at: datetime, now: datetime | None = None) -> str:
    """As `format_clock`, to the millisecond."""
    return f"{format_clock(at, now)}.{at.microsecond // 1000:03d}"


def format_moment(at: datetime, now: datetime | None = None) -> str:
    """Local and relative time: "15:39:06 (2 m ago)"."""
    return f"{format_clock(at, now)} ({format_relative(at, now)})"


def parse_since(text: str, option: str) -> datetime:
    """The time that a text names: a duration ago, or an instant. An instant without a zone is local time.

    Raises:
        BadParameter: It is neither.
    """
    try:
        return datetime.now(UTC) - parse_duration(text)
    except (ValueError, OverflowError):
        pass
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except ValueError:
        raise typer.BadParameter(
            f'{text!r} is neither a duration ("2h", "3d") nor a time ("2026-11-22", "2026-11-22T15:39")',
            param_hint=option,
        ) from None
