"""Outputs: tables for people, JSON for programs, tab-separated lines for `cut` and `awk`.

Standard output holds the answer alone. Every other message goes to standard error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, TextIO

from rich.console import Console
from rich.text import Text

from pyworkflow_ray.cli.formatters import format_cell, format_json, format_plain, sanitize
from pyworkflow_ray.cli.times import format_exact

PROGRAM = "pyworkflow-ray"

UNLIMITED = 100_000
"""The width of an output that is no terminal: no line is cut."""
NARROWEST = 8
"""The fewest characters that a column is cut to."""
_GAP = "  "


class Format(StrEnum):
    """The forms of an answer."""

    TABLE = "table"
    JSON = "json"
    PLAIN = "plain"


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a list.

    Args:
        title: Its heading.
        of: The value of an item in this column: text, a time, a state, a number, any plain value, or None.
        is_whole: Whether values must never be cut, such as ids.
        is_exact: Whether times are shown to the millisecond, and not as "2 m ago".
    """

    title: str
    of: Callable[[Any], Any]
    is_whole: bool = False
    is_exact: bool = False

    def cell(self, item: Any) -> Text:
        """The text of an item in this column of a table."""
        value = self.of(item)
        return (
            Text(format_exact(value)) if self.is_exact and isinstance(value, datetime) else format_cell(value)
        )


class Output:
    """Prints in one of the formats.

    Args:
        format: Which.
        out: Standard output.
        err: Standard error.
    """

    def __init__(self, format: Format, out: TextIO, err: TextIO) -> None:
        self.format = format
        self.out = _console(out)
        self.err = _console(err)

    @property
    def is_json(self) -> bool:
        return self.format is Format.JSON

    def say(self, text: str, style: str = "") -> None:
        """Print a message, which is not part of the answer."""
        self.err.print(Text(sanitize(text, lines=True), style=style))

    def suggest(self, command: str, meaning: str = "") -> None:
        """Print a command to type next, on one line that can be copied."""
        line = Text.assemble("  ", (f"{PROGRAM} {command}", "bold"))
        if meaning:
            line.append(f"  {meaning}", style="dim")
        self.err.print(line, soft_wrap=True)

    def suggest_limit(self, limit: int, following: object | None) -> None:
        """After a page of a list: say how to see more, if another page follows."""
        if following is not None:
            self.say(f"There are more: --limit {limit * 5}", "dim")

    def busy(self, text: str) -> AbstractContextManager[object]:
        """On a terminal, show what takes a while, for as long as the block lasts."""
        return self.err.status(Text(text, style="dim")) if self.err.is_terminal else nullcontext()

    def data(self, data: Any) -> None:
        """Print data as JSON, whatever the format."""
        self.out.file.write(format_json(data, indent=2) + "\n")
        self.out.file.flush()

    def line(self, data: Any) -> None:
        """Print data as one line of JSON, in a stream of such lines."""
        self.out.file.write(format_json(data) + "\n")
        self.out.file.flush()

    def text(self, text: str | Text) -> None:
        """Print a text of the answer."""
        if isinstance(text, Text):
            self.out.print(text, soft_wrap=True)
        else:
            self.out.file.write(text + "\n")
        self.out.file.flush()

    def rows(self, items: Sequence[Any], columns: Sequence[Column], *, empty: str = "") -> None:
        """Print a list.

        Args:
            items: Data classes or mappings. JSON has all their fields.
            columns: The columns of the other formats.
            empty: The message when there are no items.
        """
        if self.is_json:
            self.data(list(items))
            return
        if not items and empty:
            self.say(empty, style="dim")
        if self.format is Format.PLAIN:
            for item in items:
                self.text("\t".join(format_plain(column.of(item)) for column in columns))
        elif items:
            self._table(items, columns)

    def record(self, data: Any, pairs: Iterable[tuple[str, Any]]) -> None:
        """Print one thing: `data` as JSON, or named values in the other formats. A None is left out."""
        if self.is_json:
            self.data(data)
            return
        known = [(name, value) for name, value in pairs if value is not None]
        if self.format is Format.PLAIN:
            for name, value in known:
                self.text(f"{name}\t{format_plain(value)}")
            return
        width = max((len(name) for name, _ in known), default=0)
        for name, value in known:
            self.out.print(field(name, width, value), soft_wrap=True)

    def hanging(self, head: Text, text: Text) -> None:
        """Print a text after a head; further lines of the text are indented."""
        room = max(self.out.width - head.cell_len - len(_GAP), NARROWEST)
        first, *more = text.wrap(self.out, room) or [Text()]
        self.out.print(Text.assemble(head, _GAP, first), soft_wrap=True)
        for line in more:
            self.out.print(Text.assemble(" " * (head.cell_len + len(_GAP)), line), soft_wrap=True)

    def _table(self, items: Sequence[Any], columns: Sequence[Column]) -> None:
        cells = [[column.cell(item) for column in columns] for item in items]
        used = [place for place in range(len(columns)) if any(row[place].plain for row in cells)]
        columns, cells = [columns[each] for each in used], [[row[each] for each in used] for row in cells]
        widths = [
            max(len(column.title), *(row[place].cell_len for row in cells))
            for place, column in enumerate(columns)
        ]
        fitted = fit(widths, [column.is_whole for column in columns], self.out.width)
        if fitted is None:
            self._stacked(cells, columns)
            return
        heading = [Text(column.title, style="bold") for column in columns]
        for row in (heading, *cells):
            line = Text(_GAP).join(_fill(each, width) for each, width in zip(row, fitted, strict=True))
            line.rstrip()
            self.out.print(line, soft_wrap=True)

    def _stacked(self, cells: list[list[Text]], columns: Sequence[Column]) -> None:
        """Print each item as a block of its own, when the columns do not fit side by side."""
        width = max(len(column.title) for column in columns)
        for number, row in enumerate(cells):
            if number:
                self.out.print()
            for column, each in zip(columns, row, strict=True):
                if each.plain:
                    self.out.print(field(column.title, width, each), soft_wrap=True)


def field(name: str, width: int, value: Any) -> Text:
    """A named value on a line; further lines are indented."""
    text = value if isinstance(value, Text) else format_cell(value, is_alone=True)
    first, *more = text.split("\n") or [Text()]
    line = Text.assemble((name.ljust(width), "dim"), _GAP, first)
    for each in more:
        line.append_text(Text.assemble("\n", " " * (width + len(_GAP)), each))
    return line


def fit(widths: Sequence[int], are_whole: Sequence[bool], room: int) -> list[int] | None:
    """Column widths that fit the room; the widest column is cut first. None if whole columns do not fit."""
    fitted = list(widths)
    excess = sum(fitted) + len(_GAP) * (len(fitted) - 1) - room
    while excess > 0:
        flexible = [place for place, whole in enumerate(are_whole) if not whole and fitted[place] > NARROWEST]
        if not flexible:
            return None
        widest = max(flexible, key=fitted.__getitem__)
        fitted[widest] -= 1
        excess -= 1
    return fitted


def _fill(text: Text, width: int) -> Text:
    filled = text.copy()
    filled.truncate(width, overflow="ellipsis", pad=True)
    return filled


def _console(stream: TextIO) -> Console:
    console = Console(file=stream, highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = UNLIMITED
    return console
