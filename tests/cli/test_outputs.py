"""What is printed: tables that fit, JSON that parses, lines that `cut` can cut."""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from pyworkflow_ray.cli.formatters import format_cell, sanitize, to_plain
from pyworkflow_ray.cli.outputs import Column, Format, Output, fit
from pyworkflow_ray.cli.times import format_clock, format_duration, format_relative
from pyworkflow_ray.statuses import RunStatus

NOW = datetime(2031, 5, 4, 12, 0, tzinfo=UTC)
ID = "run_0123456789abcdef"


def printed(format: Format, items: list[dict[str, Any]], width: int = 60) -> str:
    output = Output(format, io.StringIO(), io.StringIO())
    output.out.width = width
    columns = [
        Column("run", lambda item: item["id"], is_whole=True),
        Column("status", lambda item: item["status"]),
        Column("text", lambda item: item["text"]),
    ]
    output.rows(items, columns)
    text = output.out.file
    assert isinstance(text, io.StringIO)
    return text.getvalue()


def item(text: str | None) -> dict[str, Any]:
    return {"id": ID, "status": RunStatus.COMPLETED, "text": text}


def test_a_table_fits_its_width_and_keeps_ids_whole() -> None:
    lines = printed(Format.TABLE, [item("a long text " * 20), item("short")]).splitlines()
    assert all(len(line) <= 60 for line in lines)
    assert [ID in line for line in lines] == [False, True, True]
    assert lines[1].endswith("…")


def test_a_column_that_nothing_is_in_is_left_out() -> None:
    assert "text" not in printed(Format.TABLE, [item(None), item("")])


def test_what_has_no_room_side_by_side_is_stacked() -> None:
    assert printed(Format.TABLE, [item("words"), item("more")], width=30).splitlines() == [
        f"run     {ID}",
        "status  completed",
        "text    words",
        "",
        f"run     {ID}",
        "status  completed",
        "text    more",
    ]


def test_a_plain_line_has_the_same_columns_whatever_is_in_them() -> None:
    text = printed(Format.PLAIN, [item("one\ttwo\nthree"), item(None)])
    assert [line.split("\t") for line in text.splitlines()] == [
        [ID, "completed", "one two three"],
        [ID, "completed", ""],
    ]


@pytest.mark.parametrize("format", list(Format))
def test_of_nothing_json_is_an_empty_list_and_the_rest_is_empty(format: Format) -> None:
    assert printed(format, []) == ("[]\n" if format is Format.JSON else "")


def test_widths_are_taken_from_the_widest() -> None:
    assert fit([20, 5, 50], [True, False, False], 60) == [20, 5, 31]
    assert fit([20, 5, 50], [True, True, False], 200) == [20, 5, 50]
    assert fit([20, 20], [True, True], 30) is None


def test_control_characters_never_reach_a_terminal() -> None:
    text = "red \x1b[31m, bell \a, back \b, \x9b31m, \u202eturned"
    assert all(character.isprintable() for character in sanitize(text))
    assert sanitize("a\nb\tc") == "a b c"
    assert sanitize("a\nb\tc", lines=True) == "a\nb c"
    assert "\x1b" not in format_cell({"key": "\x1b[2J"}).plain


def test_plain_json_values_are_made_of_everything() -> None:
    value = {"at": NOW, "took": timedelta(minutes=1), "status": RunStatus.FAILED, "more": (1, {2})}
    assert json.loads(json.dumps(to_plain(value))) == {
        "at": "2031-05-04T12:00:00+00:00",
        "took": 60.0,
        "status": "failed",
        "more": [1, [2]],
    }


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.123, "0.12 s"),
        (3.42, "3.4 s"),
        (59, "59 s"),
        (125, "2 m 5 s"),
        (120, "2 m"),
        (3 * 86_400 + 7_200, "3 d 2 h"),
        (-1, "0.00 s"),
    ],
)
def test_a_duration_has_two_units_at_most(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "now"), (-5, "5 s ago"), (-130, "2 m ago"), (7 * 86_400 - 2, "in 7 d"), (3_700, "in 1 h")],
)
def test_a_time_is_told_from_now(seconds: float, text: str) -> None:
    assert format_relative(NOW + timedelta(seconds=seconds), NOW) == text


def test_a_time_of_another_day_has_its_date() -> None:
    assert format_clock(NOW, NOW) == f"{NOW.astimezone():%H:%M:%S}"
    assert format_clock(NOW, NOW + timedelta(days=3)) == f"{NOW.astimezone():%Y-%m-%d %H:%M:%S}"
