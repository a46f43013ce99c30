"""Schedule specs, held against a clock on the wall that is watched minute by minute."""

from __future__ import annotations

import itertools
import json
import pickle
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, time, timedelta, timezone
from functools import lru_cache
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyworkflow_ray.exceptions import ConfigurationError
from pyworkflow_ray.recurrences.specs import CalendarSpec, ScheduleSpec
from pyworkflow_ray.values.codec import decode, encode

ZONES = [
    "UTC",
    "Africa/Cairo",  # changes at midnight
    "Africa/Casablanca",  # winter time during Ramadan
    "America/New_York",
    "America/Sao_Paulo",  # changed at midnight, until 2019
    "America/St_Johns",
    "Asia/Kathmandu",  # 5:45, and no changes
    "Australia/Lord_Howe",  # changes by half an hour
    "Europe/Dublin",  # winter time is the daylight saving, by -1
    "Pacific/Chatham",  # 12:45, and changes at 2:45
]
MINUTE = timedelta(minutes=1)
MADE_AT = datetime(2015, 1, 1, tzinfo=UTC)
FIRST, LAST = datetime(2015, 1, 1, tzinfo=UTC), datetime(2035, 1, 1, tzinfo=UTC)

Matches = Callable[[datetime], bool]


def at(text: str, zone: str = "UTC") -> datetime:
    """An instant: "2026-03-08 02:30" on a clock in this zone, at its first occurrence."""
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).astimezone(UTC)


def shown(instants: Iterator[datetime] | list[datetime], zone: str) -> list[str]:
    """The instants as a clock in this zone shows them, with what it is ahead of UTC."""
    return [instant.astimezone(ZoneInfo(zone)).strftime("%m-%d %H:%M %z") for instant in instants]


def fires(spec: ScheduleSpec, start: datetime, end: datetime) -> list[datetime]:
    return list(spec.between(start, end, MADE_AT))


# The oracle: somebody looks at the clock every minute and knows nothing of offsets, gaps or folds.


@lru_cache
def changes(zone: str) -> list[datetime]:
    """The days, in UTC, within which the zone's clocks are changed; some day, if they never are."""
    info = ZoneInfo(zone)
    days = [FIRST + timedelta(days=number) for number in range((LAST - FIRST).days)]
    offsets = [day.astimezone(info).utcoffset() for day in days]
    changed = [
        day
        for day, (before, after) in zip(days, itertools.pairwise(offsets), strict=False)
        if before != after
    ]
    return changed or [datetime(2024, 2, 28, tzinfo=UTC)]


@lru_cache(maxsize=64)
def watched(
    zone: str, begin: datetime, hours: int, step: timedelta = MINUTE
) -> list[tuple[datetime, datetime]]:
    """Instants and what the clock shows at each, from `begin` on."""
    info = ZoneInfo(zone)
    instants = [begin + number * step for number in range(timedelta(hours=hours) // step)]
    return [(instant, instant.astimezone(info).replace(tzinfo=None, fold=0)) for instant in instants]


def in_real_time(table: list[tuple[datetime, datetime]], matches: Matches) -> list[datetime]:
    """Whenever the clock shows a time that matches."""
    return [instant for instant, wall in table if matches(wall)]


def once_each(
    table: list[tuple[datetime, datetime]], matches: Matches, step: timedelta = MINUTE
) -> list[datetime]:
    """Whenever the clock reaches or passes, for the first time, a time that matches."""
    found, furthest = [], table[0][1] - step
    for instant, wall in table:
        hit = False
        while furthest < wall:
            furthest += step
            hit = hit or matches(furthest)
        if hit:
            found.append(instant)
    return found


class Field(NamedTuple):
    """A field of a cron expression, and what it means."""

    text: str
    numbers: frozenset[int]

    @property
    def every(self) -> bool:
        return self.text.startswith("*")


def cron_fields(numbers: range, hours: frozenset[int] | None = None) -> st.SearchStrategy[Field]:
    some = st.sampled_from(sorted(hours)) if hours else st.sampled_from(numbers)
    listed = st.frozensets(some, min_size=1, max_size=4).map(
        lambda chosen: Field(",".join(map(str, sorted(chosen))), chosen)
    )
    spans = st.tuples(some, some).map(
        lambda ends: Field(f"{min(ends)}-{max(ends)}", frozenset(range(min(ends), max(ends) + 1)))
    )
    steps = st.sampled_from([2, 5, 15, 20]).map(lambda step: Field(f"*/{step}", frozenset(numbers[::step])))
    return st.one_of(listed, spans, steps, st.just(Field("*", frozenset(numbers))))


NEAR_CHANGES = frozenset({0, 1, 2, 3, 4, 22, 23})
DAYS = Field("*", frozenset(range(1, 32)))
WEEKDAYS = Field("*", frozenset(range(8)))


@st.composite
def windows(draw: st.DrawFn) -> tuple[str, datetime, int]:
    """A zone, and hours of it around a change of its clocks."""
    zone = draw(st.sampled_from(ZONES))
    change = draw(st.sampled_from(changes(zone)))
    return zone, change - timedelta(hours=24), 72


@given(
    windows(),
    cron_fields(range(60)),
    cron_fields(range(24), NEAR_CHANGES),
    st.just(DAYS) | cron_fields(range(1, 32)),
    st.just(WEEKDAYS) | cron_fields(range(7)),
)
def test_cron_fires_when_the_clock_on_the_wall_says_so(
    window: tuple[str, datetime, int], minute: Field, hour: Field, day: Field, weekday: Field
) -> None:
    zone, begin, hours = window

    def matches(wall: datetime) -> bool:
        days = wall.day in day.numbers, wall.isoweekday() % 7 in weekday.numbers
        either = not day.every and not weekday.every  # cron's own rule for days
        return (
            wall.minute in minute.numbers
            and wall.hour in hour.numbers
            and (any(days) if either else all(days))
        )

    spec = ScheduleSpec(cron=f"{minute.text} {hour.text} {day.text} * {weekday.text}", timezone=zone)
    whole = minute.every or hour.every or len(minute.numbers) == 60 or len(hour.numbers) == 24
    expected = (in_real_time if whole else once_each)(watched(zone, begin, hours), matches)
    assert fires(spec, begin, begin + timedelta(hours=hours)) == expected


def calendar_fields(numbers: range) -> st.SearchStrategy[frozenset[int] | None]:
    return st.none() | st.frozensets(st.sampled_from(numbers), min_size=1, max_size=8)


@st.composite
def calendars(draw: st.DrawFn) -> CalendarSpec:
    hours = st.none() | st.frozensets(st.sampled_from(sorted(NEAR_CHANGES)), min_size=1)
    return CalendarSpec(
        minute=draw(calendar_fields(range(60))),
        hour=draw(hours),
        day_of_month=draw(st.none() | calendar_fields(range(1, 32))),
        month=draw(st.none() | calendar_fields(range(1, 13))),
        day_of_week=draw(st.none() | calendar_fields(range(7))),
    )


def numbers_of(field: int | tuple[int, ...] | None, every: range) -> set[int]:
    return set(every) if field is None else {field} if isinstance(field, int) else set(field)


def matcher(calendar: CalendarSpec) -> Matches:
    second, minute = (numbers_of(field, range(60)) for field in (calendar.second, calendar.minute))
    hour, day = numbers_of(calendar.hour, range(24)), numbers_of(calendar.day_of_month, range(32))
    month, weekday = numbers_of(calendar.month, range(13)), numbers_of(calendar.day_of_week, range(7))

    def matches(wall: datetime) -> bool:
        return (
            wall.second in second
            and wall.minute in minute
            and wall.hour in hour
            and wall.day in day
            and wall.month in month
            and wall.weekday() in weekday
        )

    return matches


def expected_of(
    calendar: CalendarSpec, table: list[tuple[datetime, datetime]], step: timedelta = MINUTE
) -> list[datetime]:
    if None in (calendar.second, calendar.minute, calendar.hour):
        return in_real_time(table, matcher(calendar))
    return once_each(table, matcher(calendar), step)


@given(windows(), st.lists(calendars(), min_size=1, max_size=3))
def test_calendars_fire_when_the_clock_on_the_wall_says_so_and_mean_their_union(
    window: tuple[str, datetime, int], given_calendars: list[CalendarSpec]
) -> None:
    zone, begin, hours = window
    spec = ScheduleSpec(calendar=given_calendars, timezone=zone)
    table = watched(zone, begin, hours)
    expected = {instant for each in given_calendars for instant in expected_of(each, table)}
    assert fires(spec, begin, begin + timedelta(hours=hours)) == sorted(expected)


@given(
    st.sampled_from([zone for zone in ZONES if len(changes(zone)) > 1]),
    st.data(),
    calendar_fields(range(60)),
    calendar_fields(range(60)),
    st.none() | st.frozensets(st.sampled_from(sorted(NEAR_CHANGES)), min_size=1),
)
@settings(max_examples=40)
def test_seconds_are_kept_too(
    zone: str,
    data: st.DataObject,
    second: frozenset[int] | None,
    minute: frozenset[int] | None,
    hour: frozenset[int] | None,
) -> None:
    day = data.draw(st.sampled_from(changes(zone)[:4]))
    offset = day.astimezone(ZoneInfo(zone)).utcoffset()
    minutes = [day + number * MINUTE for number in range(24 * 60)]
    changed = next(one for one in minutes if one.astimezone(ZoneInfo(zone)).utcoffset() != offset)
    begin, step = changed - timedelta(hours=1), timedelta(seconds=1)
    calendar = CalendarSpec(second=second, minute=minute, hour=hour)
    expected = expected_of(calendar, watched(zone, begin, 3, step), step)
    found = fires(ScheduleSpec(calendar=calendar, timezone=zone), begin, begin + timedelta(hours=3))
    assert found == expected


# Twenty years


def exists(day: date, wall: time, zone: str) -> bool:
    local = datetime.combine(day, wall, tzinfo=ZoneInfo(zone))
    return local.astimezone(UTC).astimezone(ZoneInfo(zone)).time() == wall


@pytest.mark.parametrize("zone", ZONES)
@pytest.mark.parametrize("wall", [time(0, 0), time(2, 30), time(9, 0)], ids=lambda wall: f"{wall:%H%M}")
def test_each_day_of_twenty_years_has_one_fire_at_its_time(zone: str, wall: time) -> None:
    first, last = date(2015, 1, 1), date(2035, 1, 1)
    start, end = (datetime.combine(day, time(), ZoneInfo(zone)).astimezone(UTC) for day in (first, last))
    spec = ScheduleSpec(calendar=CalendarSpec(hour=wall.hour, minute=wall.minute), timezone=zone)
    if wall == time(9, 0):
        spec = ScheduleSpec(cron="0 9 * * *", timezone=zone)
    local = [fire.astimezone(ZoneInfo(zone)) for fire in spec.between(start, end, MADE_AT)]
    assert [fire.date() for fire in local] == [first + timedelta(days=n) for n in range((last - first).days)]
    for fire in local:
        if exists(fire.date(), wall, zone):
            assert fire.time() == wall
            assert fire.fold == 0
        else:  # the first instant after the gap
            assert fire.time() > wall
            before = (fire.astimezone(UTC) - MINUTE).astimezone(ZoneInfo(zone))
            assert before.replace(tzinfo=None) < datetime.combine(fire.date(), wall)


# The changes of clocks, one by one


@pytest.mark.parametrize(
    ("cron", "zone", "start", "hours", "expected"),
    [
        # Clocks go from 02:00 to 03:00.
        ("30 2 * * *", "America/New_York", "2024-03-10 00:00", 6, ["03-10 03:00 -0400"]),
        (
            "0,30 2,3 * * *",
            "America/New_York",
            "2024-03-10 00:00",
            6,
            ["03-10 03:00 -0400", "03-10 03:30 -0400"],
        ),
        ("0 * * * *", "America/New_York", "2024-03-10 01:00", 2, ["03-10 01:00 -0500", "03-10 03:00 -0400"]),
        ("*/15 2 * * *", "America/New_York", "2024-03-10 00:00", 6, []),
        # And back from 02:00 to 01:00.
        ("30 1 * * *", "America/New_York", "2024-11-03 00:00", 6, ["11-03 01:30 -0400"]),
        ("0 1 * * *", "America/New_York", "2024-11-03 00:00", 6, ["11-03 01:00 -0400"]),
        (
            "0 0-23 * * *",
            "America/New_York",
            "2024-11-03 00:00",
            4,
            ["11-03 00:00 -0400", "11-03 01:00 -0400", "11-03 01:00 -0500", "11-03 02:00 -0500"],
        ),
        (
            "*/30 1 * * *",
            "America/New_York",
            "2024-11-03 00:00",
            6,
            ["11-03 01:00 -0400", "11-03 01:30 -0400", "11-03 01:00 -0500", "11-03 01:30 -0500"],
        ),
        ("0 30 1 * * *", "America/New_York", "2024-11-03 00:00", 6, ["11-03 01:30 -0400"]),
        # From 02:00 to 02:30, and back from 02:00 to 01:30.
        ("15 2 * * *", "Australia/Lord_Howe", "2024-10-06 00:00", 6, ["10-06 02:30 +1100"]),
        ("45 1 * * *", "Australia/Lord_Howe", "2024-04-07 00:00", 6, ["04-07 01:45 +1100"]),
        # From 00:00 to 01:00, on a Sunday.
        ("0 0 * * SUN", "America/Sao_Paulo", "2018-11-03 12:00", 24, ["11-04 01:00 -0200"]),
        ("*/30 0 * * SUN", "America/Sao_Paulo", "2018-11-03 12:00", 24, []),
        # Daylight saving time is behind standard time.
        ("30 1 * * *", "Europe/Dublin", "2024-03-31 00:00", 6, ["03-31 02:00 +0100"]),
        ("30 1 * * *", "Europe/Dublin", "2024-10-27 00:00", 6, ["10-27 01:30 +0100"]),
        # A day that the calendar left out.
        ("0 9 30 12 *", "Pacific/Apia", "2011-12-29 00:00", 48, ["12-31 00:00 +1400"]),
        (
            "0 */8 * * *",
            "Pacific/Apia",
            "2011-12-29 12:00",
            24,
            ["12-29 16:00 -1000", "12-31 00:00 +1400", "12-31 08:00 +1400"],
        ),
    ],
)
def test_what_happens_where_clocks_change(
    cron: str, zone: str, start: str, hours: int, expected: list[str]
) -> None:
    begin = at(start, zone)
    found = fires(ScheduleSpec(cron=cron, timezone=zone), begin, begin + timedelta(hours=hours))
    assert shown(found, zone) == expected


@pytest.mark.parametrize("zone", ZONES)
def test_every_quarter_of_an_hour_is_every_fifteen_minutes_whatever_the_clocks_do(zone: str) -> None:
    spec = ScheduleSpec(cron="*/15 * * * *", timezone=zone)
    for change in changes(zone):
        found = fires(spec, change - timedelta(days=1), change + timedelta(days=2))
        assert {later - fire for fire, later in itertools.pairwise(found)} == {timedelta(minutes=15)}


def test_the_second_occurrence_of_a_wall_time_is_not_a_fire_for_who_asks_during_it() -> None:
    spec = ScheduleSpec(cron="30,50 1 * * *", timezone="America/New_York")
    second = at("2024-11-03 01:45", "America/New_York") + timedelta(hours=1)
    following = spec.next_after(second, MADE_AT)
    assert following is not None
    assert shown([following], "America/New_York") == ["11-04 01:30 -0500"]


def test_a_schedule_keeps_its_zones_time_for_ever() -> None:
    spec = ScheduleSpec(cron="0 9 * * 1-5", timezone="Europe/Berlin")
    fire: datetime | None = datetime(2024, 1, 1, tzinfo=UTC)
    for _ in range(600):
        assert fire is not None
        fire = spec.next_after(fire, MADE_AT)
        assert fire is not None
        assert fire.tzinfo is UTC
        assert fire.astimezone(ZoneInfo("Europe/Berlin")).time() == time(9)


# Any spec

instants = st.datetimes(
    min_value=datetime(2015, 1, 1), max_value=datetime(2035, 1, 1), timezones=st.just(UTC)
)
crons = st.builds(
    lambda *fields: " ".join(field.text for field in fields),
    cron_fields(range(60)),
    cron_fields(range(24)),
    st.just(DAYS) | cron_fields(range(1, 32)),
    st.just(WEEKDAYS) | cron_fields(range(1, 13)),
    st.just(WEEKDAYS) | cron_fields(range(7)),
)
intervals = st.timedeltas(min_value=timedelta(microseconds=1), max_value=timedelta(days=900))


@st.composite
def specs(draw: st.DrawFn) -> ScheduleSpec:
    kind = draw(
        st.one_of(
            st.builds(lambda cron: {"cron": cron}, crons),
            st.builds(lambda interval: {"interval": interval}, intervals),
            st.builds(lambda chosen: {"calendar": chosen}, st.lists(calendars(), min_size=1, max_size=3)),
        )
    )
    start_at, end_at = sorted(draw(st.tuples(instants, instants)))
    return ScheduleSpec(
        **kind,
        timezone=draw(st.sampled_from(ZONES)),
        start_at=draw(st.sampled_from([None, start_at])),
        end_at=draw(st.sampled_from([None, end_at])),
        jitter=draw(st.none() | st.timedeltas(min_value=timedelta(0), max_value=timedelta(days=2))),
    )


@given(specs(), instants, instants)
def test_fires_strictly_increase_and_keep_within_their_bounds(
    spec: ScheduleSpec, start: datetime, made_at: datetime
) -> None:
    found = list(itertools.islice(spec.between(start, LAST, made_at), 30))
    assert all(fire < later for fire, later in itertools.pairwise(found))
    for fire in found:
        assert fire.tzinfo is UTC
        assert start <= fire < LAST
        assert spec.start_at is None or fire >= spec.start_at
        assert spec.end_at is None or fire <= spec.end_at


@given(specs(), instants, instants)
def test_asking_for_one_fire_after_the_other_gives_the_fires_between(
    spec: ScheduleSpec, start: datetime, made_at: datetime
) -> None:
    found = list(itertools.islice(spec.between(start, LAST, made_at), 12))
    fire: datetime | None = start - timedelta(microseconds=1)
    for expected in found:
        assert fire is not None
        fire = spec.next_after(fire, made_at)
        assert fire == expected


@given(specs(), instants, instants, st.floats(0, 1))
def test_the_first_fire_after_any_instant_is_the_first_of_those_between(
    spec: ScheduleSpec, start: datetime, made_at: datetime, part: float
) -> None:
    found = list(itertools.islice(spec.between(start, LAST, made_at), 5))
    if not found:
        return
    instant = start + (found[-1] - start) * part
    later = [fire for fire in found if fire > instant]
    if later:
        assert spec.next_after(instant, made_at) == later[0]


@given(specs(), instants)
def test_a_fire_at_the_start_is_between_and_one_at_the_end_is_not(
    spec: ScheduleSpec, start: datetime
) -> None:
    found = list(itertools.islice(spec.between(start, LAST, MADE_AT), 3))
    if len(found) == 3:
        assert fires(spec, found[0], found[2]) == found[:2]


@given(specs(), instants, instants)
def test_asking_with_a_naive_instant_is_asking_in_utc(
    spec: ScheduleSpec, start: datetime, made_at: datetime
) -> None:
    naive = spec.next_after(start.replace(tzinfo=None), made_at.replace(tzinfo=None))
    elsewhere = spec.next_after(start.astimezone(ZoneInfo("Asia/Kathmandu")), made_at)
    assert naive == elsewhere == spec.next_after(start, made_at)


# Bounds and intervals


@given(intervals, instants, instants, st.booleans())
def test_an_interval_is_exact_whatever_the_clocks_do(
    interval: timedelta, after: datetime, anchor: datetime, as_start: bool
) -> None:
    spec = ScheduleSpec(interval=interval, timezone="Europe/Berlin", start_at=anchor if as_start else None)
    fire = spec.next_after(after, MADE_AT if as_start else anchor)
    assert fire is not None
    assert (fire - anchor) % interval == timedelta(0)
    if as_start and after < anchor:
        assert fire == anchor
    else:
        assert after < fire <= after + interval
    assert spec.next_after(fire, MADE_AT if as_start else anchor) == fire + interval


def test_an_interval_stands_on_when_the_schedule_was_made_and_reaches_back_for_a_backfill() -> None:
    made_at = at("2026-01-01 12:10")
    spec = ScheduleSpec(interval="1h")
    found = spec.between(at("2026-01-01 10:00"), at("2026-01-01 13:30"), made_at)
    assert [f"{fire:%H:%M}" for fire in found] == ["10:10", "11:10", "12:10", "13:10"]


def test_the_ends_are_fires_if_they_are_on_the_grid() -> None:
    spec = ScheduleSpec(cron="0 * * * *", start_at=at("2026-01-01 10:00"), end_at=at("2026-01-01 12:00"))
    found = fires(spec, at("2025-01-01 00:00"), at("2027-01-01 00:00"))
    assert [f"{fire:%H:%M}" for fire in found] == ["10:00", "11:00", "12:00"]
    assert spec.next_after(at("2026-01-01 12:00"), MADE_AT) is None
    off_grid = ScheduleSpec(cron="0 * * * *", start_at=at("2026-01-01 09:59"), end_at=at("2026-01-01 12:01"))
    assert fires(off_grid, at("2025-01-01 00:00"), at("2027-01-01 00:00")) == found


def test_a_start_at_is_the_first_fire_of_an_interval() -> None:
    start = at("2026-01-01 10:00")
    assert ScheduleSpec(interval="7m", start_at=start).next_after(MADE_AT, MADE_AT) == start


@pytest.mark.parametrize(
    "spec",
    [
        ScheduleSpec(cron="0 0 30 2 *"),
        ScheduleSpec(cron="*/5 * 31 4,6,9 *", timezone="Europe/Berlin"),
        ScheduleSpec(cron="* * */20 * 1L", timezone="Europe/Berlin"),
        ScheduleSpec(calendar=CalendarSpec(day_of_month=30, month=2), timezone="Europe/Berlin"),
        ScheduleSpec(
            calendar=CalendarSpec(day_of_month=31, month=[4, 6], hour=None, minute=None, second=None)
        ),
    ],
)
def test_a_date_that_never_comes_has_no_fire(spec: ScheduleSpec) -> None:
    assert spec.next_after(MADE_AT, MADE_AT) is None
    assert fires(spec, FIRST, LAST) == []


def test_a_rare_date_is_found() -> None:
    spec = ScheduleSpec(
        calendar=CalendarSpec(day_of_month=29, month=2, day_of_week=0), timezone="Europe/Berlin"
    )
    found = [
        fire.astimezone(ZoneInfo("Europe/Berlin")) for fire in fires(spec, FIRST, at("2100-01-01 00:00"))
    ]
    assert [f"{fire:%Y-%m-%d %H:%M}" for fire in found] == [
        "2016-02-29 00:00",
        "2044-02-29 00:00",
        "2072-02-29 00:00",
    ]
    assert ScheduleSpec(cron="* * * 2 MON#5").next_after(MADE_AT, MADE_AT) == at("2016-02-29 00:00")


@pytest.mark.parametrize(
    "spec",
    [
        ScheduleSpec(cron="30 2 * * *", timezone="America/New_York"),
        ScheduleSpec(cron="*/5 * * * *", timezone="Asia/Kathmandu"),
        ScheduleSpec(calendar=CalendarSpec(hour=9), timezone="Pacific/Chatham"),
        ScheduleSpec(interval="1h"),
    ],
)
def test_the_calendars_own_ends_are_ends(spec: ScheduleSpec) -> None:
    assert spec.next_after(datetime.max, MADE_AT) is None
    first = spec.next_after(datetime.min, MADE_AT)
    assert first is not None
    assert first.year == 2
    assert next(spec.between(datetime.min, datetime.max, MADE_AT)) <= first
    assert list(spec.between(LAST, FIRST, MADE_AT)) == []


# Jitter


@given(st.text(), instants, st.timedeltas(min_value=timedelta(0), max_value=timedelta(days=1)))
def test_jitter_is_below_its_bound_and_the_same_each_time(
    key: str, fire: datetime, jitter: timedelta
) -> None:
    spec = ScheduleSpec(cron="* * * * *", jitter=jitter)
    late = spec.jittered(key, fire)
    assert late == spec.jittered(key, fire.astimezone(timezone(timedelta(hours=3))))
    assert fire == late if not jitter else fire <= late < fire + jitter


def test_jitter_is_the_same_in_every_process_and_differs_by_schedule_and_fire() -> None:
    spec = ScheduleSpec(interval="1h", jitter="10m")
    fire = at("2026-01-01 10:00")
    late = spec.jittered("nightly", fire)
    assert late == datetime(2026, 1, 1, 10, 1, 13, 999443, tzinfo=UTC)
    pauses = {spec.jittered(f"schedule-{number}", fire) - fire for number in range(200)}
    assert len(pauses) == 200
    assert min(pauses) < timedelta(minutes=1)
    assert max(pauses) > timedelta(minutes=9)
    following = fire + timedelta(hours=1)
    assert spec.jittered("nightly", following) - following != late - fire


def test_jitter_does_not_move_the_grid() -> None:
    plain, jittered = ScheduleSpec(interval="1h"), ScheduleSpec(interval="1h", jitter="59m")
    assert fires(plain, FIRST, at("2015-01-03 00:00")) == fires(jittered, FIRST, at("2015-01-03 00:00"))


# Specs as values


@given(specs())
def test_a_spec_comes_back_equal_from_json_pickle_its_repr_and_the_history(spec: ScheduleSpec) -> None:
    again = ScheduleSpec.from_dict(json.loads(json.dumps(spec.to_dict())))
    assert again == spec
    assert hash(again) == hash(spec)
    assert again.to_dict() == spec.to_dict()
    assert pickle.loads(pickle.dumps(spec)) == spec
    assert decode(encode(spec)) == spec
    names = {"ScheduleSpec": ScheduleSpec, "CalendarSpec": CalendarSpec}
    import datetime as module

    assert eval(repr(spec), {**names, "datetime": module}) == spec


def test_different_ways_to_say_the_same_are_equal() -> None:
    assert (
        ScheduleSpec(interval="90s")
        == ScheduleSpec(interval=90)
        == ScheduleSpec(interval=timedelta(minutes=1.5))
    )
    assert ScheduleSpec("  0  9 * * * ") == ScheduleSpec(cron="0 9 * * *", jitter=0)
    assert CalendarSpec(hour=[12, 9, 9]) == CalendarSpec(hour=(9, 12)) == CalendarSpec(hour={9, 12})
    assert CalendarSpec(hour=range(9, 10)) == CalendarSpec(hour=9)
    assert ScheduleSpec(calendar=CalendarSpec()) == ScheduleSpec(calendar=[CalendarSpec()])
    berlin = at("2026-01-01 01:00", "Europe/Berlin").astimezone(ZoneInfo("Europe/Berlin"))
    assert ScheduleSpec("@daily", start_at=berlin) == ScheduleSpec("@daily", start_at=datetime(2026, 1, 1))
    assert ScheduleSpec("@daily") != ScheduleSpec("@daily", timezone="Europe/Berlin")


def test_a_spec_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        ScheduleSpec("@daily").cron = "@hourly"  # type: ignore[misc]
    with pytest.raises(AttributeError):
        CalendarSpec().hour = 9  # type: ignore[misc]


def test_what_is_written_says_only_what_was_said() -> None:
    weekdays = CalendarSpec(hour=9, day_of_week=range(5))
    spec = ScheduleSpec(
        calendar=weekdays, timezone="Europe/Berlin", jitter="30s", end_at=datetime(2027, 1, 1)
    )
    assert spec.to_dict() == {
        "calendar": [{"hour": 9, "day_of_week": [0, 1, 2, 3, 4]}],
        "timezone": "Europe/Berlin",
        "end_at": "2027-01-01T00:00:00+00:00",
        "jitter": "30s",
    }
    assert ScheduleSpec(interval=300).to_dict() == {"interval": "5m"}
    assert CalendarSpec(hour=None).to_dict() == {"hour": None}
    assert repr(ScheduleSpec(interval=300)) == "ScheduleSpec(interval='5m')"
    assert repr(ScheduleSpec(calendar=weekdays)) == (
        "ScheduleSpec(calendar=CalendarSpec(hour=9, day_of_week=(0, 1, 2, 3, 4)))"
    )


@pytest.mark.parametrize(
    ("spec", "line"),
    [
        (ScheduleSpec("0 9 * * 1-5", timezone="Europe/Berlin"), "cron 0 9 * * 1-5 in Europe/Berlin"),
        (ScheduleSpec(interval="5m"), "every 5m"),
        (
            ScheduleSpec(interval=timedelta(hours=36), start_at=datetime(2026, 1, 1), jitter=30),
            "every 1d12h, from 2026-01-01T00:00:00Z, up to 30s later",
        ),
        (
            ScheduleSpec("@daily", end_at=datetime(2026, 1, 1)),
            "cron @daily in UTC, until 2026-01-01T00:00:00Z",
        ),
        (ScheduleSpec(calendar=CalendarSpec()), "at 00:00 in UTC"),
        (
            ScheduleSpec(calendar=CalendarSpec(hour=(9, 17), minute=30, day_of_week=range(5))),
            "at 09:30, 17:30 on Mon-Fri in UTC",
        ),
        (
            ScheduleSpec(
                calendar=[
                    CalendarSpec(second=5, hour=9, day_of_month=[1, 15], month=[1, 2, 3, 7]),
                    CalendarSpec(minute=range(0, 60, 5), hour=None, second=range(0, 60, 30), day_of_week=6),
                ]
            ),
            "at 09:00:05 on day 1,15 in Jan-Mar,Jul; at every hour, minute 0-55/5, second 0,30 on Sun in UTC",
        ),
    ],
)
def test_a_spec_is_told_in_one_line(spec: ScheduleSpec, line: str) -> None:
    assert spec.describe() == line


# What cron takes


@pytest.mark.parametrize(
    ("cron", "expected"),
    [
        ("@hourly", "2026-01-01 01:00:00"),
        ("@daily", "2026-01-02 00:00:00"),
        ("@Midnight", "2026-01-02 00:00:00"),
        ("@weekly", "2026-01-04 00:00:00"),
        ("@monthly", "2026-02-01 00:00:00"),
        ("@yearly", "2027-01-01 00:00:00"),
        ("@annually", "2027-01-01 00:00:00"),
        ("0 9 * feb mon", "2026-02-02 09:00:00"),
        ("0 9 * * 0", "2026-01-04 09:00:00"),
        ("0 9 * * 7", "2026-01-04 09:00:00"),
        ("0 9 L * *", "2026-01-31 09:00:00"),
        ("0 9 * * FRI#2", "2026-01-09 09:00:00"),
        ("0 9 13 * FRI", "2026-01-02 09:00:00"),
        ("10 0 9 * * *", "2026-01-01 09:00:10"),
        ("*/20 * * * * *", "2026-01-01 00:00:20"),
    ],
)
def test_cron_has_names_aliases_and_seconds(cron: str, expected: str) -> None:
    assert ScheduleSpec(cron).next_after(at("2026-01-01 00:00"), MADE_AT) == at(expected)


@given(st.text(alphabet="0123456789*/-,#LW@? SUNMO", max_size=20) | st.text())
def test_any_text_is_a_schedule_or_a_configuration_error(text: str) -> None:
    try:
        spec = ScheduleSpec(cron=text)
    except ConfigurationError:
        return
    spec.next_after(MADE_AT, MADE_AT)


@given(st.sampled_from(range(5)), st.text(alphabet="0123456789*/-,#LW", min_size=1, max_size=6))
def test_any_field_is_read_or_refused(position: int, field: str) -> None:
    fields = ["0", "0", "*", "*", "*"]
    fields[position] = field
    try:
        spec = ScheduleSpec(cron=" ".join(fields), timezone="Europe/Berlin")
    except ConfigurationError:
        return
    spec.next_after(MADE_AT, MADE_AT)


# Refusals


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({}, "exactly one of cron, interval and calendar; given: none"),
        ({"cron": "@daily", "interval": 5}, "given: cron, interval"),
        ({"cron": "61 * * * *"}, r"'61 \* \* \* \*' is broken: '61' is no minute. Accepted: 0-59"),
        ({"cron": "0 9 * * FRI-MON"}, "'FRI-MON' is no day-of-week"),
        ({"cron": "1 2 3"}, "'1 2 3' has 3 fields. Give five fields"),
        ({"cron": ""}, "'' has 0 fields"),
        ({"cron": "@reboot"}, "no cron alias '@reboot': there are @yearly"),
        ({"cron": "0 " + "9" * 5000 + " * * *"}, "is no hour"),
        ({"cron": 5}, "cron is 5: give text"),
        ({"interval": 0}, "interval is 0: give a duration above zero"),
        ({"interval": "5 parsecs"}, "interval of a schedule is '5 parsecs'. Not a duration"),
        ({"interval": -5}, "interval of a schedule is -5. A duration cannot be negative"),
        ({"interval": [5]}, "interval of a schedule"),
        ({"calendar": []}, "calendar is .*: give a CalendarSpec, or a list of at least one"),
        ({"calendar": {"hour": 9}}, "give a CalendarSpec"),
        ({"cron": "@daily", "jitter": "soon"}, "jitter of a schedule is 'soon'"),
        (
            {"cron": "@daily", "start_at": "2026-01-01"},
            "start_at of a schedule is '2026-01-01': give a datetime",
        ),
        (
            {"cron": "@daily", "start_at": datetime(2026, 1, 2), "end_at": datetime(2026, 1, 1)},
            "end_at .2026-01-01.* is before start_at",
        ),
        (
            {"cron": "@daily", "timezone": "Europe/Berln"},
            "no time zone 'Europe/Berln'. Did you mean 'Europe/Berlin'",
        ),
        ({"cron": "@daily", "timezone": "new york"}, "Did you mean 'America/New_York'"),
        ({"cron": "@daily", "timezone": "Kathmandoo"}, "Did you mean 'Asia/Kathmandu'"),
        ({"cron": "@daily", "timezone": "GMT+2"}, "There is no time zone 'GMT[+]2'. Give a name such as"),
        ({"cron": "@daily", "timezone": "../../etc/passwd"}, "There is no time zone"),
        ({"cron": "@daily", "timezone": "Europe"}, "There is no time zone"),
        ({"cron": "@daily", "timezone": ""}, "There is no time zone"),
        ({"interval": 5, "timezone": None}, "timezone is None of type NoneType. Give an IANA name"),
    ],
)
def test_what_is_no_schedule_is_refused_with_what_would_be(said: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        ScheduleSpec(**said)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"hour": 24}, "hour of a calendar is 24. Give a number from 0 to 23, a list or range"),
        ({"minute": -1}, "minute of a calendar is -1. Give a number from 0 to 59"),
        ({"second": [0, 60]}, "second of a calendar is .0, 60."),
        ({"month": 0}, "Give a number from 1 to 12"),
        ({"day_of_month": 32}, "Give a number from 1 to 31"),
        ({"day_of_week": 7}, "from 0 to 6 .0 is Monday, 6 is Sunday."),
        ({"day_of_week": "MON"}, "day_of_week of a calendar is 'MON'"),
        ({"hour": []}, "or None for all"),
        ({"hour": True}, "hour of a calendar is True"),
        ({"hour": 9.0}, "hour of a calendar is 9.0"),
    ],
)
def test_what_is_no_calendar_is_refused_with_what_would_be(said: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        CalendarSpec(**said)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"cron": "@daily", "timezon": "UTC"}, "A schedule has no 'timezon'; it may have cron, interval"),
        ({"calendar": [{"hours": 9}]}, "A calendar has no 'hours'; its fields are second, minute"),
        ({"calendar": ["daily"]}, "A calendar is given as 'daily'"),
        ({"interval": "5m", "start_at": "soon"}, "start_at of a schedule is 'soon': not an ISO 8601 time"),
    ],
)
def test_a_dictionary_that_is_no_schedule_is_refused(data: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        ScheduleSpec.from_dict(data)


def test_a_dictionary_may_hold_one_calendar() -> None:
    assert ScheduleSpec.from_dict({"calendar": {"hour": 9}}) == ScheduleSpec(calendar=CalendarSpec(hour=9))
