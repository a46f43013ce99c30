"""Histories: append with a fence, read at the driver's speed."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from enum import Enum
from functools import lru_cache
from typing import Any

import msgspec
from sqlalchemy.engine import Connection

from pyworkflow_ray.exceptions import StorageError
from pyworkflow_ray.statuses import RunStatus
from pyworkflow_ray.storage import schema
from pyworkflow_ray.storage.blobs import save_blobs
from pyworkflow_ray.storage.dialects import Statement, decode_time
from pyworkflow_ray.storage.hooks import dispose_hooks, dispose_pending_hooks
from pyworkflow_ray.storage.schedules import count_end

EventRow = tuple[int, datetime, str, str]
"""`(position, timestamp, type, data)`"""

_FIXED_COLUMNS = {"run_id", "position", "epoch", "owner", "previous_owner", "lease_expires_at", "created_at"}
_CHANGEABLE_COLUMNS = {column.name for column in schema.runs.columns} - _FIXED_COLUMNS

_ENDINGS = {status.value for status in RunStatus if status.is_terminal}

_INSERT_EVENT = Statement(
    "INSERT INTO events (run_id, position, type, timestamp, data) "
    "VALUES (:run_id, :position, :type, :timestamp, :data)"
)
_MARK_READ = Statement(
    "UPDATE inbox SET read_position = :position, data = '' WHERE id = :id AND run_id = :run_id"
)
# What is left when a run ends will never be read; the sweep must not pass by it for ever.
_MARK_ALL_READ = Statement(
    "UPDATE inbox SET read_position = :position, data = '' WHERE run_id = :run_id AND read_position IS NULL"
)
_HAS_UNREAD = Statement("SELECT 1 FROM inbox WHERE run_id = :run_id AND read_position IS NULL LIMIT 1")
_FENCE_STATE = Statement("SELECT epoch, position, status FROM runs WHERE run_id = :run_id")
_EVENT_AT = Statement("SELECT type, data FROM events WHERE run_id = :run_id AND position = :position")
_LATEST_EVENT = Statement(
    "SELECT position, timestamp, type, data FROM events WHERE run_id = :run_id ORDER BY position DESC LIMIT 1"
)
_COUNT_EVENTS = Statement("SELECT count(*) FROM events WHERE run_id = :run_id")


class FencedError(StorageError):
    """The run has been taken over: whoever gets this must drop it and touch nothing else of it."""

    def __init__(self, run_id: str, epoch: int, message: str | None = None) -> None:
        super().__init__(
            message
            or f"Run {run_id!r} is no longer held at epoch {epoch}: another coordinator has claimed it, or "
            "it was deleted. What this one still wanted to write was refused."
        )
        self.run_id, self.epoch = run_id, epoch


class Append(msgspec.Struct, frozen=True, kw_only=True):
    """What one activation of a run adds, all of it in one transaction.

    Args:
        position: The position of the first of `events`, which is the run's `position` so far.
        events: `(timestamp, type, data)` in their order.
        changes: Columns of the run's row and their new values.
        release: Whether the lease ends with this append (the run is suspended or has ended).
        blobs: `(hash, bytes)` that the events refer to; None for bytes that the storage has already.
        read_inbox: Ids of the inbox rows that the events record.
        hooks_disposed: Ids of the run's hooks that wait for nothing any more. An ending disposes all of them.
        schedule_id: The schedule that has made the run, and counts its end.
    """

    run_id: str
    epoch: int
    position: int
    events: Sequence[tuple[datetime, str, bytes | str]] = ()
    changes: Mapping[str, Any] = {}
    release: bool = False
    blobs: Sequence[tuple[str, bytes | None]] = ()
    read_inbox: Sequence[int] = ()
    hooks_disposed: Sequence[str] = ()
    schedule_id: str | None = None


def append(connection: Connection, new: Append) -> bool:
    """Extend the run's history and change its row, or neither.

    Before: the caller holds the run at `epoch`. After: the events stand at `position` and on, the row is
    changed, the inbox rows count as read. It is safe to run again, also when the first time went through and
    only the answer to its COMMIT was lost: then nothing is written twice.

    Returns:
        For an append that releases: whether inbox rows are still unread. They arrived while the caller
        decided to suspend, and nobody else may come to tell: claim the run again. Else False.

    Raises:
        FencedError: The run is held at another epoch, has ended, or is gone.
    """
    following = new.position + len(new.events)
    fence = _fence(tuple(new.changes), bool(new.events), new.release)
    parameters = {name: _plain(value) for name, value in new.changes.items()}
    if new.events:
        parameters["_at"] = new.events[-1][0]
    updated = fence.execute(
        connection,
        **parameters,
        _run_id=new.run_id,
        _epoch=new.epoch,
        _old=new.position,
        _new=following,
    )
    if updated == 1:
        _insert(connection, new)
    else:
        _require_lost_commit(connection, new, following)
    return new.release and _HAS_UNREAD.row(connection, run_id=new.run_id) is not None


@lru_cache(maxsize=1024)
def _fence(columns: tuple[str, ...], has_events: bool, release: bool) -> Statement:
    unknown = set(columns) - _CHANGEABLE_COLUMNS
    if unknown:
        raise ValueError(
            f"An append cannot change {sorted(unknown)}; it may change {sorted(_CHANGEABLE_COLUMNS)}."
        )
    assignments = ["position = :_new", "previous_owner = NULL", *(f"{name} = :{name}" for name in columns)]
    if "updated_at" not in columns:
        assignments.append(f"updated_at = {':_at' if has_events else '<now>'}")
    if release:
        assignments += ["owner = NULL", "lease_expires_at = NULL"]
    return Statement(
        f"UPDATE runs SET {', '.join(assignments)} "
        "WHERE run_id = :_run_id AND epoch = :_epoch AND position = :_old "
        f"AND NOT {schema.HAS_ENDED}"
    )


def _insert(connection: Connection, new: Append) -> None:
    if new.blobs:
        save_blobs(connection, new.run_id, new.blobs)
    if new.events:
        _INSERT_EVENT.execute_many(
            connection,
            [
                {
                    "run_id": new.run_id,
                    "position": position,
                    "type": type_,
                    "timestamp": timestamp,
                    "data": _text(data),
                }
                for position, (timestamp, type_, data) in enumerate(new.events, new.position)
            ],
        )
    if new.read_inbox:
        rows = [{"run_id": new.run_id, "id": id_, "position": new.position} for id_ in new.read_inbox]
        _MARK_READ.execute_many(connection, rows)
    if new.hooks_disposed:
        dispose_hooks(connection, new.run_id, new.hooks_disposed)
    if _plain(new.changes.get("status")) in _ENDINGS:
        # The hooks first: this waits for a delivery that is under way, whose inbox row must be marked too.
        dispose_pending_hooks(connection, new.run_id)
        _MARK_ALL_READ.execute(connection, run_id=new.run_id, position=new.position)
        if new.schedule_id is not None:
            count_end(connection, new.schedule_id, new.run_id, RunStatus(_plain(new.changes["status"])))


def _require_lost_commit(connection: Connection, new: Append, following: int) -> None:
    """Return if this very append is in the history already; its COMMIT went through, its answer did not."""
    state = _FENCE_STATE.row(connection, run_id=new.run_id)
    if state is None or state[0] != new.epoch:
        raise FencedError(new.run_id, new.epoch)
    position = state[1]
    if position != following or not _ends_with(connection, new, following, status=state[2]):
        raise FencedError(
            new.run_id,
            new.epoch,
            f"The history of run {new.run_id!r} stands at position {position} with status {state[2]!r}, and "
            f"nothing can be appended at {new.position}: its holder has appended something else, or the run "
            "has ended. Read its row, and replay it if it has not.",
        )


def _ends_with(connection: Connection, new: Append, following: int, status: str) -> bool:
    if not new.events:
        # Only an ended run refuses an append without events at its own position.
        return bool(status == _plain(new.changes.get("status")))
    last = _EVENT_AT.row(connection, run_id=new.run_id, position=following - 1)
    return last == (new.events[-1][1], _text(new.events[-1][2]))


def read_events(
    connection: Connection,
    run_id: str,
    after: int = -1,
    types: Collection[str] | None = None,
    limit: int | None = None,
) -> list[EventRow]:
    """The events of a run behind position `after`, in order; `types` keeps those of these types only."""
    names = {f"type_{number}": name for number, name in enumerate(types or ())}
    if types is not None and not names:
        return []
    parameters: dict[str, Any] = {"run_id": run_id, "after": after, **names}
    if limit is not None:
        parameters["limit"] = limit
    rows = _select_events(len(names), limit is not None).rows(connection, **parameters)
    if rows and isinstance(rows[0][1], str):  # The loop of `decode_time`, for fifty thousand rows.
        parse = datetime.fromisoformat
        return [(position, parse(at + "+00:00"), type_, data) for position, at, type_, data in rows]
    return [_event_row(*row) for row in rows]


@lru_cache(maxsize=64)
def _select_events(type_count: int, limited: bool) -> Statement:
    sql = "SELECT position, timestamp, type, data FROM events WHERE run_id = :run_id AND position > :after"
    if type_count:
        sql += f" AND type IN ({', '.join(f':type_{number}' for number in range(type_count))})"
    sql += " ORDER BY position"
    return Statement(sql + (" LIMIT :limit" if limited else ""))


def latest_event(connection: Connection, run_id: str) -> EventRow | None:
    """The last event of a run, or None when it has none yet."""
    row = _LATEST_EVENT.row(connection, run_id=run_id)
    return None if row is None else _event_row(*row)


def count_events(connection: Connection, run_id: str) -> int:
    """How many events a run has."""
    row = _COUNT_EVENTS.row(connection, run_id=run_id)
    return int(row[0]) if row else 0


def _event_row(position: int, timestamp: str | datetime, type_: str, data: str) -> EventRow:
    return position, decode_time(timestamp), type_, data


def _text(data: bytes | str) -> str:
    return data if isinstance(data, str) else bytes(data).decode()


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, bytes | msgspec.Raw):
        return bytes(value).decode()
    if isinstance(value, str) and not (value.isascii() and "\0" not in value):
        # An error's text may hold what no database takes. The run must be able to end all the same.
        return value.replace("\0", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "replace").decode()
    return value
