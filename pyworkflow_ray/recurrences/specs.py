"""Schedule specs: at which instants a schedule fires.

No clock is read here. A spec gives the fires after an instant, and the owner of the schedule asks again from
the last fire on. All instants are UTC. The spec's zone decides for each day what a wall time means, so a fire
at 09:00 stays at 09:00 when the clocks change. Jitter is added to a fire when it is carried out, and never to
the grid.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from typing import Any

from pyworkflow_ray.durations import Duration, format_duration, in_utc, parse_duration
from pyworkflow_ray.exceptions import ConfigurationError
from pyworkflow_ray.recurrences.calendars import CalendarSpec
from pyworkflow_ray.recurrences.crons import read_cron
from pyworkflow_ray.recurrences.zones import in_real_time, once_each, zone_of

__all__ = ["CalendarSpec", "ScheduleSpec"]

_MICROSECOND = timedelta(microseconds=1)
_EARLIEST = datetime(2, 1, 1, tzinfo=UTC)
"""No fire is before it: in the year 1 the wall time of a zone may be before the calendar's beginning."""


@dataclass(frozen=True, init=False, repr=False, slots=True)
class ScheduleSpec:
    """When a schedule fires: by cron, at an interval, or by calendar; exactly one of the three.

    Args:
        cron: Five fields, minute hour day-of-month month day-of-week, with names (MON, JAN), lists, ranges,
            steps, `L` (last), `MON#1` (first Monday); six fields have seconds in front; or `@hourly`,
            `@daily`, `@midnight`, `@weekly`, `@monthly`, `@yearly`, `@annually`. Sunday is 0 or 7. Where
            day-of-month and day-of-week are both given, either is enough, as with Debian's cron.
        interval: A duration above zero (seconds, ``"5m"``, `timedelta`), counted in real time from
            `start_at`, or from when the schedule was made.
        calendar: A `CalendarSpec`, or a list of them, which means the times of all of them.
        timezone: The IANA name of the zone whose wall times `cron` and `calendar` mean, for ever.
        start_at: No fire is before this instant. The first may be at it. A naive `datetime` is UTC.
        end_at: No fire is after this instant. The last may be at it. A naive `datetime` is UTC.
        jitter: A duration. Each fire is carried out up to so much later. The fires after it do not move.

    Daylight saving: a wall time that does not exist, because clocks go forward over it, fires once, at the
    first instant after the gap. One that exists twice fires once, at its first occurrence. A cron expression
    whose hour, minute or second is `*`, `*/15` or a whole range such as `0-23`, and a calendar with None for
    one of them, run in real time instead: they fire at every instant at which a clock shows such a time.
    Intervals know no wall time.

    The attributes hold the arguments in one form: `interval` and `jitter` as `timedelta`, `calendar` as a
    tuple, `start_at` and `end_at` in UTC. Specs with equal attributes are equal.

    Raises:
        ConfigurationError: An argument is not valid, or not exactly one of the three is given.
    """

    cron: str | None
    interval: timedelta | None
    calendar: tuple[CalendarSpec, ...] | None
    timezone: str
    start_at: datetime | None
    end_at: datetime | None
    jitter: timedelta | None

    def __init__(
        self,
        cron: str | None = None,
        interval: Duration | None = None,
        calendar: CalendarSpec | Sequence[CalendarSpec] | None = None,
        timezone: str = "UTC",
        start_at: datetime | None = None,
        end_at: datetime | None = None,
        jitter: Duration | None = None,
    ) -> None:
        kinds = {"cron": cron, "interval": interval, "calendar": calendar}
        given = [name for name, value in kinds.items() if value is not None]
        if len(given) != 1:
            raise ConfigurationError(
                "A schedule needs exactly one of cron, interval and calendar; "
                f"given: {', '.join(given) or 'none'}."
            )
        zone_of(timezone)
        values = {
            "cron": None if cron is None else _read_cron(cron),
            "interval": None if interval is None else _read_interval(interval),
            "calendar": None if calendar is None else _read_calendar(calendar),
            "timezone": timezone,
            "start_at": _read_instant("start_at", start_at),
            "end_at": _read_instant("end_at", end_at),
            "jitter": None if jitter is None else _read_duration("jitter", jitter) or None,
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)
        if self.start_at is not None and self.end_at is not None and self.end_at < self.start_at:
            raise ConfigurationError(
                f"end_at ({self.end_at.isoformat()}) is before start_at ({self.start_at.isoformat()})."
            )

    def next_after(self, after: datetime, anchor: datetime) -> datetime | None:
        """The first fire later than `after`, in UTC; None when no other comes.

        Args:
            after: Usually the previous fire. A naive `datetime` is UTC.
            anchor: An instant of an interval's grid, if the spec has no `start_at`: when the schedule was
                created. The grid extends before it too. Cron and calendar do not use it.
        """
        return next(self._fires(in_utc(after), in_utc(anchor)), None)

    def between(self, start: datetime, end: datetime, anchor: datetime) -> Iterator[datetime]:
        """The fires from `start` (included) to `end` (excluded), in order, computed one by one.

        Args:
            start: The first instant that may be among them. A naive `datetime` is UTC.
            end: The first instant that is not among them.
            anchor: As for `next_after`.
        """
        limit = in_utc(end)
        for fire in self._fires(max(in_utc(start), _EARLIEST) - _MICROSECOND, in_utc(anchor)):
            if fire >= limit:
                return
            yield fire

    def jittered(self, key: str, fire: datetime) -> datetime:
        """When this fire is carried out: up to `jitter` later, always the same for the same key and fire.

        Args:
            key: What distinguishes schedules with the same fires, such as a schedule's id.
            fire: A fire of the spec. Ask for the next fire after this one, not after the result.
        """
        fire = in_utc(fire)
        if self.jitter is None:
            return fire
        digest = blake2b(f"{fire.isoformat()} {key}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
        return fire + (self.jitter // _MICROSECOND * int.from_bytes(digest) >> 64) * _MICROSECOND

    def describe(self) -> str:
        """One short line for people, such as "cron 0 9 * * 1-5 in Europe/Berlin", "every 5m"."""
        if self.interval is not None:
            words = [f"every {format_duration(self.interval)}"]
        elif self.calendar is not None:
            words = [f"{'; '.join(each.describe() for each in self.calendar)} in {self.timezone}"]
        else:
            words = [f"cron {self.cron} in {self.timezone}"]
        if self.start_at is not None:
            words.append(f"from {_short(self.start_at)}")
        if self.end_at is not None:
            words.append(f"until {_short(self.end_at)}")
        if self.jitter is not None:
            words.append(f"up to {format_duration(self.jitter)} later")
        return ", ".join(words)

    def to_dict(self) -> dict[str, Any]:
        """The spec as plain JSON values, without defaults. `from_dict` makes an equal spec of it."""
        plain: dict[str, Any] = {}
        for name, value in self._given().items():
            match value:
                case timedelta():
                    plain[name] = format_duration(value)
                case datetime():
                    plain[name] = value.isoformat()
                case tuple():
                    plain[name] = [each.to_dict() for each in value]
                case _:
                    plain[name] = value
        return plain

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ScheduleSpec:
        """The spec that `to_dict` wrote.

        Raises:
            ConfigurationError: A name is unknown, or a value is not valid.
        """
        values = dict(data)
        names = [field.name for field in fields(cls)]
        if unknown := sorted(set(values) - set(names)):
            raise ConfigurationError(f"A schedule has no {unknown[0]!r}; it may have {', '.join(names)}.")
        if values.get("calendar") is not None:
            calendars = values["calendar"]
            values["calendar"] = list(
                map(CalendarSpec.from_dict, calendars if isinstance(calendars, list | tuple) else [calendars])
            )
        for name in ("start_at", "end_at"):
            if isinstance(text := values.get(name), str):
                try:
                    values[name] = datetime.fromisoformat(text)
                except ValueError:
                    raise ConfigurationError(
                        f"{name} of a schedule is {text!r}: not an ISO 8601 time."
                    ) from None
        return cls(**values)

    def __repr__(self) -> str:
        parts = []
        for name, value in self._given().items():
            if isinstance(value, tuple) and len(value) == 1:
                parts.append(f"{name}={value[0]!r}")
            else:
                parts.append(f"{name}={format_duration(value) if isinstance(value, timedelta) else value!r}")
        return f"ScheduleSpec({', '.join(parts)})"

    def _given(self) -> dict[str, Any]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        if self.timezone == "UTC":
            del values["timezone"]
        return {name: value for name, value in values.items() if value is not None}

    def _fires(self, after: datetime, anchor: datetime) -> Iterator[datetime]:
        """The fires later than `after`, without end if there is no `end_at`."""
        after = max(after, _EARLIEST)
        if self.start_at is not None and self.start_at > after:
            after = self.start_at - _MICROSECOND
        if self.end_at is not None and after >= self.end_at:
            return
        try:
            for fire in self._grid(after, anchor):
                if self.end_at is not None and fire > self.end_at:
                    return
                yield fire
        except OverflowError:
            return  # the calendar ends with the year 9999

    def _grid(self, after: datetime, anchor: datetime) -> Iterator[datetime]:
        if self.interval is not None:
            return _every(self.interval, after, self.start_at or anchor)
        zone = zone_of(self.timezone)
        if self.cron is not None:
            cron = read_cron(self.cron)
            return (in_real_time if cron.repeats else once_each)(cron.walls, zone, after)
        return _merged(
            (in_real_time if each.repeats else once_each)(each.walls, zone, after)
            for each in self.calendar or ()
        )


def _every(interval: timedelta, after: datetime, anchor: datetime) -> Iterator[datetime]:
    fire = anchor + ((after - anchor) // interval + 1) * interval
    while True:
        yield fire
        fire += interval


def _merged(grids: Iterator[Iterator[datetime]]) -> Iterator[datetime]:
    last = None
    for fire in heapq.merge(*grids):
        if fire != last:
            yield fire
        last = fire


def _read_cron(value: Any) -> str:
    if not isinstance(value, str):
        raise ConfigurationError(f"cron is {value!r}: give text such as '0 9 * * 1-5'.")
    text = " ".join(value.split())
    read_cron(text)
    return text


def _read_interval(value: Any) -> timedelta:
    interval = _read_duration("interval", value)
    if not interval:
        raise ConfigurationError(f"interval is {value!r}: give a duration above zero.")
    return interval


def _read_duration(name: str, value: Any) -> timedelta:
    try:
        return parse_duration(value)
    except (ValueError, TypeError) as error:
        raise ConfigurationError(f"{name} of a schedule is {value!r}. {error}") from None


def _read_calendar(value: Any) -> tuple[CalendarSpec, ...]:
    calendars = (value,) if isinstance(value, CalendarSpec) else value
    if (
        not isinstance(calendars, list | tuple)
        or not calendars
        or not all(isinstance(each, CalendarSpec) for each in calendars)
    ):
        raise ConfigurationError(f"calendar is {value!r}: give a CalendarSpec, or a list of at least one.")
    return tuple(calendars)


def _read_instant(name: str, value: Any) -> datetime | None:
    if value is None or isinstance(value, datetime):
        return None if value is None else in_utc(value)
    raise ConfigurationError(f"{name} of a schedule is {value!r}: give a datetime (a naive one is UTC).")


def _short(instant: datetime) -> str:
    return instant.isoformat().replace("+00:00", "Z")
