"""Time zones: their names, and the instants of the times on a wall clock.

When clocks go forward, some wall times do not exist. When clocks go back, some exist twice. All recurrences
use one of two rules. Each gives every instant once, in order:

- `once_each` is for wall times that are meant one by one ("at 02:30"). One that does not exist means the
  first instant after the gap. One that exists twice means its first occurrence.
- `in_real_time` is for wall times that repeat every hour or more often ("every quarter of an hour"). It gives
  every instant at which a clock shows one of them: none in a gap, and twice as many in an hour that comes
  twice.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

from pyworkflow_ray.exceptions import ConfigurationError

Walls = Callable[[datetime], Iterator[datetime]]
"""Gives the wall times (naive, whole seconds) after a wall time, in order."""

_SECOND = timedelta(seconds=1)
_DAY = timedelta(days=1)


def zone_of(name: str) -> ZoneInfo:
    """The time zone of this IANA name, such as "Europe/Berlin".

    Raises:
        ConfigurationError: There is no such zone. The error suggests similar names.
    """
    if not isinstance(name, str):
        raise ConfigurationError(
            f"timezone is {name!r} of type {type(name).__name__}. Give an IANA name such as 'Europe/Berlin'."
        )
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        near = _near(name)
        hint = (
            f"Did you mean {' or '.join(map(repr, near))}?"
            if near
            else "Give a name such as 'Europe/Berlin'."
        )
        raise ConfigurationError(f"There is no time zone {name!r}. {hint}") from None


def _near(name: str) -> list[str]:
    wanted = name.strip().casefold().replace(" ", "_")
    # Not those of Etc: Etc/GMT+2 is two hours behind UTC, and somebody who writes "GMT+2" means the opposite.
    regional = (zone for zone in available_timezones() if "/" in zone and not zone.startswith("Etc/"))
    zones = {zone.casefold(): zone for zone in sorted(["UTC", *regional])}
    cities: dict[str, list[str]] = {}
    for folded, zone in zones.items():
        cities.setdefault(folded.rsplit("/", 1)[-1], []).append(zone)
    if wanted in cities:
        return cities[wanted][:3]
    if close := difflib.get_close_matches(wanted, zones, cutoff=0.75):
        return [zones[folded] for folded in close]
    return [zone for city in difflib.get_close_matches(wanted, cities, cutoff=0.75) for zone in cities[city]][
        :3
    ]


def wall_time(instant: datetime, zone: ZoneInfo) -> datetime:
    """The time that a clock in this zone shows at this instant, as a naive `datetime`."""
    return instant.astimezone(zone).replace(tzinfo=None, fold=0)


def once_each(walls: Walls, zone: ZoneInfo, after: datetime) -> Iterator[datetime]:
    """The instants of these wall times, later than `after`, each wall time once."""
    last = after
    for wall in walls(wall_time(after, zone)):
        instant = first_instant(wall, zone)
        # Otherwise its first occurrence is before `after`, or the wall time before it is in the same gap.
        if instant > last:
            last = instant
            yield instant


def first_instant(wall: datetime, zone: ZoneInfo) -> datetime:
    """The instant at which a clock first shows this wall time, or first shows a later one, in UTC."""
    local = wall.replace(tzinfo=zone)
    offset, other = _offset(local), _offset(local.replace(fold=1))
    if other <= offset:
        return (wall - offset).replace(tzinfo=UTC)
    # In a gap, fold=0 uses the offset before it and fold=1 the offset after it. The change is between them.
    return _change((wall - other).replace(tzinfo=UTC), (wall - offset).replace(tzinfo=UTC), zone)


def in_real_time(walls: Walls, zone: ZoneInfo, after: datetime) -> Iterator[datetime]:
    """Every instant after `after` at which a clock shows one of these wall times."""
    at, known = after, wall_time(after, zone)
    offset = _offset(at.astimezone(zone))
    upcoming = walls(known)
    wall = next(upcoming, None)  # the first after `known`
    while wall is not None:
        instant = (wall - offset).replace(tzinfo=UTC)
        change = _first_change(zone, at, instant)
        if change is None:
            yield instant
            at, known, wall = instant, wall, next(upcoming, None)
            continue
        at, offset = change, _offset(change.astimezone(zone))
        before = wall_time(change, zone) - _SECOND  # the change itself may be one of the instants
        if not known <= before < wall:
            known, upcoming = before, walls(before)
            wall = next(upcoming, None)


def _first_change(zone: ZoneInfo, after: datetime, until: datetime) -> datetime | None:
    for year in range(after.year, until.year + 1):
        for change in _changes(zone, year):
            if after < change <= until:
                return change
    return None


@lru_cache(maxsize=1024)
def _changes(zone: ZoneInfo, year: int) -> tuple[datetime, ...]:
    """The instants of this year at which the zone's clocks go forward or back."""
    changes = []
    day = datetime(year, 1, 1, tzinfo=UTC)
    offset = _offset(day.astimezone(zone))
    while day.year == year:
        following = day + _DAY
        if (later := _offset(following.astimezone(zone))) != offset:
            changes.append(_change(day, following, zone))
        day, offset = following, later
    return tuple(changes)


def _change(before: datetime, after: datetime, zone: ZoneInfo) -> datetime:
    """The first instant, to the second, that has the offset of `after` and not that of `before`."""
    offset = _offset(before.astimezone(zone))
    while after - before > _SECOND:
        middle = before + (after - before) // (2 * _SECOND) * _SECOND
        if _offset(middle.astimezone(zone)) == offset:
            before = middle
        else:
            after = middle
    return after


def _offset(local: datetime) -> timedelta:
    offset = local.utcoffset()
    assert offset is not None  # every caller gives an aware datetime
    return offset
