"""Rows that cannot be read: which cell it is, and what is done about it.

A damaged row concerns its own run and no other. Whoever reads many rows reads them one by one. A run whose
row, history or inbox cannot be read is set aside: nothing claims it until somebody has mended and resumed it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from enum import Enum
from types import NoneType
from typing import Any, Generic, TypeVar, get_args, get_type_hints

from loguru import logger

from pyworkflow_ray.exceptions import UnreadableRowError
from pyworkflow_ray.storage.dialects import decode_time
from pyworkflow_ray.storage.schema import HAS_ENDED
from pyworkflow_ray.storage.statements import Bound, Row, Statement
from pyworkflow_ray.storage.works import Steps, last, work

T = TypeVar("T")

NEVER = datetime(1970, 1, 1, tzinfo=UTC)
"""Shown in the place of a time that cannot be read."""

UNREADABLE_RUN = "runs.UnreadableRowError"
"""The `error_type` of a run whose row cannot be read. Nothing can be done with it, not even be cancelled."""

_MOST_KINDS = 10_000
_SET_ASIDE = Statement(f"""
    UPDATE runs SET
        status = 'interrupted', error = :error, error_type = :error_type, wake_at = NULL,
        owner = NULL, previous_owner = NULL, lease_expires_at = NULL, epoch = epoch + 1
    WHERE run_id = :run_id AND NOT {HAS_ENDED}
""")


def unreadable(
    table: str, row: str, column: str, problem: str, run_id: str | None = None
) -> UnreadableRowError:
    """The error of a cell.

    Args:
        row: Which row it is, in words.
        problem: What is wrong with the cell. It must show no value of the user's.
        run_id: The run that cannot go on.
    """
    cure = "" if run_id is None else f" and resume run {run_id!r}, or delete the run"
    return UnreadableRowError(
        f"The cell {column!r} of {row} in the table {table!r} cannot be read: {problem}. "
        f"Mend the cell in the database{cure}.",
        run_id,
    )


_reported: set[str] = set()


def report(error: UnreadableRowError) -> None:
    """Say once in this process's log that a row cannot be read."""
    if str(error) not in _reported:
        _reported.add(str(error))
        logger.error("{}", error)


def setting_aside(error: UnreadableRowError) -> Bound:
    """The statement that sets the error's run aside."""
    return _SET_ASIDE.change(run_id=error.run_id, error=str(error), error_type=UNREADABLE_RUN)


@work
def set_aside_all(errors: Iterable[UnreadableRowError]) -> Steps[None]:
    """Set the runs of these errors aside. Their rows say why, and nothing claims them until a `resume`."""
    by_run = {error.run_id: error for error in errors if error.run_id is not None}
    yield last(*(setting_aside(by_run[run_id]) for run_id in sorted(by_run)))


class Reader(Generic[T]):
    """Reads rows of a table as records whose fields are the columns, in their order.

    Args:
        table: The table's name.
        record: The class of the records: a frozen `msgspec.Struct`.
        key: The columns that name a row, and how they are said: `{"run_id": "run"}`.
        parsers: How columns are read that are not of one of the plain types.
    """

    def __init__(
        self,
        table: str,
        record: Callable[..., T],
        key: Mapping[str, str],
        parsers: Mapping[str, Callable[[Any], Any]] | None = None,
    ) -> None:
        self._table, self._record, self._key = table, record, key
        self._fields: tuple[str, ...] = record.__struct_fields__  # type: ignore[attr-defined]
        hints = get_type_hints(record)
        self._parsers = [(parsers or {}).get(name) or _parser_of(hints[name]) for name in self._fields]
        self._is_optional = [NoneType in get_args(hints[name]) for name in self._fields]
        # A column that is read as it is needs only the check of its type, and rows of one table have few
        # different types. So rows whose types were seen before are read without it.
        self._changed = [
            (index, parse) for index, parse in enumerate(self._parsers) if parse not in (_text, _whole)
        ]
        self._seen: set[tuple[type, ...]] = set()

    def __call__(self, row: Row) -> T:
        """The record of a row.

        Raises:
            UnreadableRowError: It has a cell that cannot be read.
        """
        values = list(row)
        kinds = tuple(map(type, values))
        if kinds not in self._seen:
            self._require(row)
            if len(self._seen) < _MOST_KINDS:
                self._seen.add(kinds)
        try:
            for index, parse in self._changed:
                if values[index] is not None:
                    values[index] = parse(values[index])
        except Exception:
            self._require(row)
            raise
        return self._record(*values)

    def _require(self, row: Row) -> None:
        _, error = self.shown(row, {})
        if error is not None:
            raise error

    def shown(self, row: Row, stand_ins: Mapping[str, Any]) -> tuple[list[Any], UnreadableRowError | None]:
        """The values of a row, with stand-ins for cells that cannot be read; the error of the first one."""
        values, first = [], None
        for name, value, parse, is_optional in zip(
            self._fields, row, self._parsers, self._is_optional, strict=True
        ):
            try:
                if value is None and not is_optional:
                    raise ValueError("it is NULL")
                values.append(None if value is None else parse(value))
            except Exception as error:
                first = first or self._error(row, name, str(error) or type(error).__name__)
                values.append(None if is_optional else stand_ins.get(name))
        return values, first

    def readable(self, rows: Iterable[Row]) -> list[T]:
        """The records of the rows that can be read. The others are reported."""
        found = []
        for row in rows:
            try:
                found.append(self(row))
            except UnreadableRowError as error:
                report(error)
        return found

    def _error(self, row: Sequence[Any], column: str, problem: str) -> UnreadableRowError:
        named = dict(zip(self._fields, row, strict=True))
        words = " of ".join(f"{word} {named[name]!r}" for name, word in reversed([*self._key.items()]))
        run_id = named.get("run_id")
        return unreadable(self._table, words, column, problem, run_id if isinstance(run_id, str) else None)


def _parser_of(hint: Any) -> Callable[[Any], Any]:
    (plain,) = [each for each in get_args(hint) if each is not NoneType] or [hint]
    if isinstance(plain, type) and issubclass(plain, Enum):
        return lambda value: _member(plain, value)
    parsers: dict[Any, Callable[[Any], Any]] = {
        str: _text,
        int: _whole,
        float: _finite,
        bool: _flag,
        datetime: time_of,
    }
    return parsers[plain]


def time_of(value: Any) -> datetime:
    """The instant in a cell.

    Raises:
        ValueError: The cell holds none.
    """
    if isinstance(value, str | datetime):
        try:
            return decode_time(value)
        except (ValueError, OverflowError):
            pass
    raise ValueError(f"{str(value)[:40]!r} is no time")


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"it is no text but {type(value).__name__}")
    return value


def _whole(value: Any) -> int:
    if not isinstance(value, int):
        raise ValueError(f"{str(value)[:40]!r} is no whole number")
    return value


def _finite(value: Any) -> float:
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{str(value)[:40]!r} is no number")
    return value


def _flag(value: Any) -> bool:
    if value not in (0, 1):
        raise ValueError(f"{str(value)[:40]!r} is neither true nor false")
    return bool(value)


def _member(kind: type[Enum], value: Any) -> Enum:
    try:
        return kind(value)
    except ValueError:
        known = ", ".join(str(each.value) for each in kind)
        raise ValueError(f"{str(value)[:40]!r} is none of {known}") from None
