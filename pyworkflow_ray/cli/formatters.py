"""Formatters: values as text for people, and as plain text or JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime, timedelta
from enum import Enum
from typing import Any

from rich.text import Text

from pyworkflow_ray.cli.times import format_duration, format_moment, format_relative

STYLES = {
    "completed": "green",
    "failed": "red",
    "running": "cyan",
    "pending": "blue",
    "suspended": "yellow",
    "waiting": "yellow",
    "retrying": "yellow",
    "interrupted": "bold red",
    "cancelled": "magenta",
    "continued_as_new": "dim",
    "received": "green",
    "expired": "red",
    "disposed": "dim",
    "active": "green",
    "paused": "yellow",
    "ok": "green",
    "warning": "yellow",
    "problem": "bold red",
}
"""The colour of each state."""


def format_cell(value: Any, *, is_alone: bool = False) -> Text:
    """A value for a person. If it stands alone, and not in a table, it has several lines and full times."""
    match value:
        case Text():
            return value
        case None:
            return Text()
        case datetime():
            return Text(format_moment(value) if is_alone else format_relative(value))
        case timedelta():
            return Text(format_duration(value))
        case Enum():
            return Text(str(value.value), style=STYLES.get(str(value.value), ""))
        case str():
            return Text(sanitize(value, lines=is_alone))
        case _:
            return Text(format_json(value))


def format_plain(value: Any) -> str:
    """A value on one line without tabs, for a program that reads lines."""
    match value:
        case None:
            return ""
        case Text():
            return sanitize(value.plain)
        case datetime() | timedelta() | Enum():
            return str(to_plain(value))
        case str():
            return sanitize(value)
        case _:
            return format_json(value)


def format_json(value: Any, indent: int | None = None) -> str:
    """A value as JSON that is safe for a terminal: characters that are not printable are escaped."""
    text = json.dumps(to_plain(value), ensure_ascii=False, indent=indent)
    return "".join(each if each.isprintable() or each == "\n" else json.dumps(each)[1:-1] for each in text)


def to_plain(value: Any) -> Any:
    """A value as plain JSON: times in ISO form, durations in seconds, states by their values."""
    match value:
        case None | bool() | int() | float() | str():
            return value
        case datetime():
            return value.isoformat()
        case timedelta():
            return value.total_seconds()
        case Enum():
            return value.value
        case Mapping():
            return {str(key): to_plain(item) for key, item in value.items()}
        case list() | tuple() | set() | frozenset():
            return [to_plain(item) for item in value]
        case _:
            names = getattr(value, "__dataclass_fields__", None) or getattr(value, "__struct_fields__", None)
            if names is None:
                return str(value)
            return {name: to_plain(getattr(value, name)) for name in names}


def format_error(error_type: str | None, error: str | None) -> str:
    """An error's type, without its module, and its text."""
    kind = (error_type or "").rpartition(".")[2]
    return f"{kind}: {error or ''}" if kind else error or ""


def sanitize(text: str, *, lines: bool = False) -> str:
    """A text made safe for a terminal: without control characters, and on one line unless `lines`."""
    kept = "\n" if lines else ""
    return "".join(each if each.isprintable() or each in kept else _stand_in(each) for each in text)


def _stand_in(character: str) -> str:
    return " " if character in "\t\n\r\u2028\u2029\u00a0" else "\ufffd"
