"""Durations: the forms that are taken, the text that comes back, and what is refused."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyworkflow_ray.durations import format_duration, parse_duration, resolve_when

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
durations = st.timedeltas(min_value=timedelta(0))


@given(durations)
def test_a_formatted_duration_is_read_back_to_the_microsecond(duration: timedelta) -> None:
    assert parse_duration(format_duration(duration)) == duration


@given(durations)
def test_a_timedelta_is_taken_as_it_is(duration: timedelta) -> None:
    assert parse_duration(duration) == duration


@given(st.integers(min_value=0, max_value=10**9))
def test_a_whole_number_is_seconds(seconds: int) -> None:
    assert parse_duration(seconds) == parse_duration(f"{seconds}s") == timedelta(seconds=seconds)


@given(st.text())
def test_text_is_a_duration_or_a_value_error(text: str) -> None:
    try:
        duration = parse_duration(text)
    except ValueError:
        return
    assert duration >= timedelta(0)


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        (0, timedelta(0)),
        (2.5, timedelta(seconds=2, milliseconds=500)),
        ("500ms", timedelta(milliseconds=500)),
        ("0.5s", timedelta(milliseconds=500)),
        ("30s", timedelta(seconds=30)),
        ("5m", timedelta(minutes=5)),
        ("2h", timedelta(hours=2)),
        ("3d", timedelta(days=3)),
        ("1w", timedelta(weeks=1)),
        ("1h30m", timedelta(minutes=90)),
        (" 1h 30m ", timedelta(minutes=90)),
        ("1.5h", timedelta(minutes=90)),
        ("1H", timedelta(hours=1)),
        ("1m1ms", timedelta(minutes=1, milliseconds=1)),
    ],
)
def test_every_documented_form_is_read(said: Any, meant: timedelta) -> None:
    assert parse_duration(said) == meant


@pytest.mark.parametrize(
    "said",
    ["", "  ", "5", "soon", "-5s", "1h-30m", "1e3s", "5 parsecs", "s", "٣x", math.nan, math.inf, -1, -0.5],
)
def test_what_is_no_duration_is_a_value_error(said: Any) -> None:
    with pytest.raises(ValueError, match="duration"):
        parse_duration(said)


@pytest.mark.parametrize("said", [True, None, b"5s", [5], NOW])
def test_another_type_is_a_type_error_that_names_it(said: Any) -> None:
    with pytest.raises(TypeError, match="Not a duration"):
        parse_duration(said)


@pytest.mark.parametrize("said", [10**30, 1e300, "9999999999999999999w", f"{10**400}.0s", f"{10**400}s"])
def test_a_duration_beyond_the_calendar_is_a_value_error(said: Any) -> None:
    with pytest.raises(ValueError, match="too long"):
        parse_duration(said)


def test_a_negative_timedelta_is_refused() -> None:
    with pytest.raises(ValueError, match="negative"):
        parse_duration(timedelta(seconds=-1))
    with pytest.raises(ValueError, match="negative"):
        format_duration(timedelta(microseconds=-1))


@pytest.mark.parametrize(
    ("duration", "text"),
    [
        (timedelta(0), "0s"),
        (timedelta(minutes=90), "1h30m"),
        (timedelta(days=8, milliseconds=20), "1w1d20ms"),
        (timedelta(microseconds=1500), "1.500ms"),
        (timedelta(microseconds=7), "0.007ms"),
    ],
)
def test_a_duration_is_written_largest_unit_first(duration: timedelta, text: str) -> None:
    assert format_duration(duration) == text


@given(st.timedeltas(min_value=timedelta(0), max_value=timedelta(days=365_000)))
def test_a_duration_is_resolved_from_now(duration: timedelta) -> None:
    assert resolve_when(duration, NOW) == NOW + duration


def test_an_instant_is_itself_in_utc() -> None:
    berlin = datetime(2026, 1, 1, 1, tzinfo=timezone(timedelta(hours=1)))
    resolved = resolve_when(berlin, NOW)
    assert resolved == berlin
    assert resolved.tzinfo is UTC


def test_a_naive_instant_is_taken_as_utc() -> None:
    assert resolve_when(datetime(2026, 1, 1), NOW) == datetime(2026, 1, 1, tzinfo=UTC)


def test_an_instant_in_the_past_is_allowed() -> None:
    assert resolve_when(NOW - timedelta(days=1), NOW) < NOW


def test_a_duration_that_ends_after_the_calendar_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="calendar"):
        resolve_when(timedelta.max, NOW)
