"""Calendar specs: wall times given field by field, as an alternative to cron."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from datetime import MAXYEAR, date, datetime
from itertools import pairwise
from typing import Any

from pyworkflow_ray.exceptions import ConfigurationError

Numbers = int | Iterable[int] | None

_RANGES = {
    "second": range(60),
    "minute": range(60),
    "hour": range(24),
    "day_of_month": range(1, 32),
    "month": range(1, 13),
    "day_of_week": range(7),
}
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("", "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_MAX_TIMES = 4
"""How many times of the day a description lists one by one."""


@dataclass(frozen=True, init=False, repr=False, slots=True)
class CalendarSpec:
    """The wall times whose every field is one of the given numbers.

    Each field takes a number, a list, tuple, set or range of numbers, or None for all. `CalendarSpec()` is
    midnight of every day. `CalendarSpec(hour=9, day_of_week=range(5))` is 09:00 from Monday to Friday.

    Args:
        second: 0-59.
        minute: 0-59.
        hour: 0-23.
        day_of_month: 1-31. Months without such a day are skipped.
        month: 1-12.
        day_of_week: 0 is Monday, 6 is Sunday. With `day_of_month` as well, both must hold.

    Daylight saving: if hours, minutes and seconds are all given, a wall time that does not exist means the
    first instant after the gap, and one that exists twice means its first occurrence. If one of the three is
    None (or has all of its numbers), the spec means every instant at which a clock shows such a time, as with
    cron.

    Raises:
        ConfigurationError: The value of a field is not accepted.
    """

    second: int | tuple[int, ...] | None
    minute: int | tuple[int, ...] | None
    hour: int | tuple[int, ...] | None
    day_of_month: int | tuple[int, ...] | None
    month: int | tuple[int, ...] | None
    day_of_week: int | tuple[int, ...] | None

    def __init__(
        self,
        second: Numbers = 0,
        minute: Numbers = 0,
        hour: Numbers = 0,
        day_of_month: Numbers = None,
        month: Numbers = None,
        day_of_week: Numbers = None,
    ) -> None:
        given = (second, minute, hour, day_of_month, month, day_of_week)
        for name, value in zip(_RANGES, given, strict=True):
            object.__setattr__(self, name, _read(name, value))

    @property
    def repeats(self) -> bool:
        """Whether it means all seconds, minutes or hours. Such a spec runs in real time."""
        return any(self._numbers(name) == tuple(_RANGES[name]) for name in ("second", "minute", "hour"))

    def walls(self, after: datetime) -> Iterator[datetime]:
        """The wall times after this one (naive), in order."""
        hours, minutes, seconds = (self._numbers(name) for name in ("hour", "minute", "second"))
        for day in self._days(after.date()):
            first = (after.hour, after.minute) if day == after.date() else (0, 0)
            for hour in hours:
                if hour < first[0]:
                    continue
                for minute in minutes:
                    if (hour, minute) < first:
                        continue
                    for second in seconds:
                        wall = datetime(day.year, day.month, day.day, hour, minute, second)
                        if wall > after:
                            yield wall

    def to_dict(self) -> dict[str, Any]:
        """The fields that differ from the default, as plain JSON values."""
        return {
            name: list(value) if isinstance(value, tuple) else value for name, value in self._given().items()
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> CalendarSpec:
        """The spec that `to_dict` wrote."""
        if not isinstance(data, dict):
            raise ConfigurationError(
                f"A calendar is given as {data!r}: give an object with {', '.join(_RANGES)}."
            )
        if unknown := sorted(set(data) - set(_RANGES)):
            raise ConfigurationError(
                f"A calendar has no {unknown[0]!r}; its fields are {', '.join(_RANGES)}."
            )
        return cls(**data)

    def describe(self) -> str:
        """A short description for people, such as "at 09:30 on Mon-Fri"."""
        hours, minutes, seconds = (self._numbers(name) for name in ("hour", "minute", "second"))
        if len(hours) * len(minutes) * len(seconds) <= _MAX_TIMES:
            times = [
                f"{hour:02}:{minute:02}" + (f":{second:02}" if second else "")
                for hour in hours
                for minute in minutes
                for second in seconds
            ]
            words = ["at", ", ".join(times)]
        else:
            parts = {"hour": hours, "minute": minutes} | ({} if seconds == (0,) else {"second": seconds})
            words = ["at", ", ".join(_part(name, numbers) for name, numbers in parts.items())]
        if self.day_of_week is not None:
            words += ["on", _ranges(self._numbers("day_of_week"), _DAYS)]
        if self.day_of_month is not None:
            words += ["on day", _ranges(self._numbers("day_of_month"))]
        if self.month is not None:
            words += ["in", _ranges(self._numbers("month"), _MONTHS)]
        return " ".join(words)

    def __repr__(self) -> str:
        given = ", ".join(f"{name}={value!r}" for name, value in self._given().items())
        return f"CalendarSpec({given})"

    def _given(self) -> dict[str, int | tuple[int, ...] | None]:
        default = (0, 0, 0, None, None, None)
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {
            name: value
            for (name, value), usual in zip(values.items(), default, strict=True)
            if value != usual
        }

    def _numbers(self, name: str) -> tuple[int, ...]:
        value: int | tuple[int, ...] | None = getattr(self, name)
        match value:
            case None:
                return tuple(_RANGES[name])
            case int():
                return (value,)
            case _:
                return value

    def _days(self, first: date) -> Iterator[date]:
        months, days = self._numbers("month"), self._numbers("day_of_month")
        weekdays = frozenset(self._numbers("day_of_week"))
        for year in range(first.year, MAXYEAR + 1):
            for month in months:
                if (year, month) < (first.year, first.month):
                    continue
                for number in days:
                    try:
                        day = date(year, month, number)
                    except ValueError:
                        break  # the month has no such day, and no later one
                    if day >= first and day.weekday() in weekdays:
                        yield day


def _read(name: str, value: Any) -> int | tuple[int, ...] | None:
    """The field's numbers, in order and each once; a single number by itself; None for all."""
    if value is None:
        return None
    numbers = [value] if isinstance(value, int) else value
    accepted = _RANGES[name]
    if (
        not isinstance(numbers, list | tuple | range | set | frozenset)
        or not numbers
        or any(isinstance(number, bool) or not isinstance(number, int) for number in numbers)
        or any(number not in accepted for number in numbers)
    ):
        days = " (0 is Monday, 6 is Sunday)" if name == "day_of_week" else ""
        raise ConfigurationError(
            f"{name} of a calendar is {value!r}. Give a number from {accepted[0]} to {accepted[-1]}{days}, "
            "a list or range of them, or None for all."
        )
    ordered = tuple(sorted(set(numbers)))
    return ordered[0] if len(ordered) == 1 else ordered


def _part(name: str, numbers: tuple[int, ...]) -> str:
    return f"every {name}" if len(numbers) == len(_RANGES[name]) else f"{name} {_ranges(numbers)}"


def _ranges(numbers: tuple[int, ...], names: tuple[str, ...] | None = None) -> str:
    """The numbers as ranges: "1-5,7", or "0-55/5" if they are evenly spaced."""

    def named(number: int) -> str:
        return names[number] if names else str(number)

    steps = {later - number for number, later in pairwise(numbers)}
    if len(numbers) > 2 and len(steps) == 1 and (step := steps.pop()) > 1:
        return f"{named(numbers[0])}-{named(numbers[-1])}/{step}"
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(
        f"{named(run[0])}-{named(run[-1])}" if len(run) > 2 else ",".join(map(named, run)) for run in runs
    )
