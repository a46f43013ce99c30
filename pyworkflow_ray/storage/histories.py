"""Histories: appends behind a fence, and reads at the driver's speed."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from enum import Enum
from functools import lru_cache
from typing import Any

import msgspec

from pyworkflow_ray.exceptions import StorageError, UnreadableRowError
from pyworkflow_ray.statuses import RunStatus
from pyworkflow_ray.storage import schema
from pyworkflow_ray.storage.blobs import saving_blobs
from pyworkflow_ray.storage.damages import time_of, unreadable
from pyworkflow_ray.storage.dialects import decode_time
from pyworkflow_ray.storage.hooks import disposing_hooks, disposing_pending_hooks
from pyworkflow_ray.storage.inboxes import CANCEL_KEY, MOVED
from pyworkflow_ray.storage.leases import SET_ASIDE
from pyworkflow_ray.storage.locks import Locks, Strength, changing
from pyworkflow_ray.storage.schedules import counting_end
from pyworkflow_ray.storage.statements import Bound, RefusedError, Statement
from pyworkflow_ray.storage.works import Steps, last, locking, work

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
# Rows that are left when a run ends will never be read. The sweep must not read over them for ever.
_MARK_ALL_READ = Statement(
    "UPDATE inbox SET read_position = :position, data = '' WHERE run_id = :run_id AND read_position IS NULL"
)
# A run is asked to cancel once: a second request has no effect on its code. But once it is set aside, its
# code cannot go on, and only another request can end it.
_ASK_AGAIN = Statement(
    "UPDATE inbox SET dedup_key = dedup_key || '#' || id "
    f"WHERE run_id = :run_id AND dedup_key = '{CANCEL_KEY}' AND read_position IS NOT NULL"
)
_HAS_UNREAD = Statement("SELECT 1 FROM inbox WHERE run_id = :run_id AND read_position IS NULL LIMIT 1")
_FENCE_STATE = Statement("SELECT epoch, position, status FROM runs WHERE run_id = :run_id")
_EVENT_AT = Statement("SELECT type, data FROM events WHERE run_id = :run_id AND position = :position")
_LATEST_EVENT = Statement(
    "SELECT position, timestamp, type, data FROM events WHERE run_id = :run_id ORDER BY position DESC LIMIT 1"
)
_COUNT_EVENTS = Statement("SELECT count(*) FROM events WHERE run_id = :run_id")


class FencedError(StorageError):
    """Another process has taken the run over. The caller must drop the run and write nothing more to it."""

    def __init__(self, run_id: str, epoch: int, message: str | None = None) -> None:
        super().__init__(
            message
            or f"Run {run_id!r} is no longer held at epoch {epoch}: another coordinator has claimed it, or "
            "it was deleted. This coordinator's write was refused."
        )
        self.run_id, self.epoch = run_id, epoch


class UnreadError(StorageError):
    """The run cannot end yet: something came for it that its holder had not read when the end was decided."""

    def __init__(self, run_id: str) -> None:
        super().__init__(f"Something came for run {run_id!r} before it could end.")
        self.run_id = run_id


class Append(msgspec.Struct, frozen=True, kw_only=True):
    """What one activation of a run writes, all of it in one transaction.

    Args:
        position: The position of the first of `events`, which is the run's present `position`.
        events: `(timestamp, type, data)` in their order.
        changes: Columns of the run's row and their new values.
        release: Whether the lease ends with this append (the run is suspended or has ended).
        leaves_attempts: For an append that releases: whether attempts may be under way whose outcome nobody
            will record. The next claim is an interruption then.
        blobs: `(hash, bytes)` that the events refer to; None instead of bytes that the storage has already.
        read_inbox: Ids of the inbox rows that the events record.
        hooks_disposed: Ids of the run's hooks that wait no longer. A run that ends disposes of all its hooks.
        schedule_id: The schedule that made the run, and that counts its end.
        known_unread: For an end: how many unread rows its holder knows of. If there are more, the append is
            refused, since their senders were told that the run will get them. For a run that continues, only
            those count that are not moved to its successor. None ends it anyway.
    """

    run_id: str
    epoch: int
    position: int
    events: Sequence[tuple[datetime, str, bytes | str]] = ()
    changes: Mapping[str, Any] = {}
    release: bool = False
    leaves_attempts: bool = False
    blobs: Sequence[tuple[str, bytes | None]] = ()
    read_inbox: Sequence[int] = ()
    hooks_disposed: Sequence[str] = ()
    schedule_id: str | None = None
    known_unread: int | None = None


def locks_of(new: Append) -> Locks:
    """The rows that an append locks, besides those that are posted to with it."""
    if not _is_end(new):
        return changing(new.run_id)
    schedules = () if new.schedule_id is None else (new.schedule_id,)
    return Locks(runs={new.run_id: Strength.ENDS}, schedules=schedules)


def _is_end(new: Append) -> bool:
    return _plain(new.changes.get("status")) in _ENDINGS


def _knowledge(new: Append) -> str:
    """The fence's condition on the inbox."""
    if new.known_unread is None:
        return ""
    continues = _plain(new.changes.get("status")) == RunStatus.CONTINUED_AS_NEW.value
    which = f"AND kind NOT IN ({', '.join(map(repr, MOVED))})" if continues else ""
    return (
        f"AND :_known >= (SELECT count(*) FROM inbox "
        f"WHERE inbox.run_id = runs.run_id AND read_position IS NULL {which})"
    )


@locking(locks_of)
@work
def append(new: Append) -> Steps[bool]:
    """Extend the run's history and change its row: both, or neither.

    Before: the caller holds the run at `epoch`. After: the events are in the history from `position` on, the
    row is changed, and the inbox rows count as read. This is safe to run again, also when the first time went
    through and only the answer to its COMMIT was lost. Then nothing is written twice.

    Returns:
        For an append that releases: whether inbox rows are still unread. They arrived while the caller
        decided to suspend. Claim the run again, since no other process may notice them. Otherwise False.

    Raises:
        FencedError: The run is held at another epoch, has ended, or is gone.
        UnreadError: The append ends the run, and something has come that its holder does not know of.
    """
    statements = appending(new)
    try:
        answers = yield last(*statements)
    except RefusedError:
        return (yield from confirm_append(new))
    return is_still_unread(new, answers)


def appending(new: Append, behind_fence: Sequence[Bound] = ()) -> list[Bound]:
    """The statements of an append. The first is the fence. If it refuses, see `confirm_append`.

    Args:
        behind_fence: More statements, directly after the fence. Their answers come at the same places.
    """
    following = new.position + len(new.events)
    fence = _fence(tuple(new.changes), bool(new.events), new.release, _knowledge(new), new.leaves_attempts)
    parameters = {name: _plain(value) for name, value in new.changes.items()}
    if new.known_unread is not None:
        parameters["_known"] = new.known_unread
    if new.events:
        parameters["_at"] = new.events[-1][0]
    statements = [
        fence.require(**parameters, _run_id=new.run_id, _epoch=new.epoch, _old=new.position, _new=following),
        *behind_fence,
        *saving_blobs(new.run_id, new.blobs),
    ]
    if new.events:
        statements.append(_INSERT_EVENT.change_each(_event_rows(new)))
    if new.read_inbox:
        rows = [{"run_id": new.run_id, "id": id_, "position": new.position} for id_ in new.read_inbox]
        statements.append(_MARK_READ.change_each(rows))
    statements += disposing_hooks(new.run_id, new.hooks_disposed)
    if _is_end(new):
        # The hooks come first: this waits for a delivery that is under way. Its inbox row must be marked too.
        statements.append(disposing_pending_hooks(new.run_id))
        statements.append(_MARK_ALL_READ.change(run_id=new.run_id, position=new.position))
        if new.schedule_id is not None:
            ended_as = RunStatus(_plain(new.changes["status"]))
            statements.append(counting_end(new.schedule_id, new.run_id, ended_as))
    if _plain(new.changes.get("status")) == RunStatus.INTERRUPTED.value:
        statements.append(_ASK_AGAIN.change(run_id=new.run_id))
    if new.release:
        statements.append(_HAS_UNREAD.find(run_id=new.run_id))
    return statements


def is_still_unread(new: Append, answers: Sequence[Any]) -> bool:
    """What `append` returns, from the answers to `appending`."""
    return new.release and answers[-1] is not None


def _event_rows(new: Append) -> list[dict[str, Any]]:
    return [
        {
            "run_id": new.run_id,
            "position": position,
            "type": type_,
            "timestamp": timestamp,
            "data": _text(data),
        }
        for position, (timestamp, type_, data) in enumerate(new.events, new.position)
    ]


@work
def confirm_append(new: Append) -> Steps[bool]:
    """What `append` returns when its fence refused because this append is already in the history.

    That happens when the COMMIT of an earlier try went through and its answer got lost.

    Raises:
        FencedError: The history has gone on without this append.
        UnreadError: It was refused because of what lies in the inbox.
    """
    following = new.position + len(new.events)
    state, last_event, still_unread = yield last(
        _FENCE_STATE.find(run_id=new.run_id),
        _EVENT_AT.find(run_id=new.run_id, position=following - 1),
        _HAS_UNREAD.find(run_id=new.run_id),
    )
    if state is None or state[0] != new.epoch:
        raise FencedError(new.run_id, new.epoch)
    _, position, status = state
    if new.known_unread is not None and position == new.position and status not in _ENDINGS:
        raise UnreadError(new.run_id)
    if new.events:
        is_there = last_event == (new.events[-1][1], _text(new.events[-1][2]))
    else:
        # At the right position, only a run that has ended refuses an append without events.
        is_there = status == _plain(new.changes.get("status"))
    if position != following or not is_there:
        raise FencedError(
            new.run_id,
            new.epoch,
            f"The history of run {new.run_id!r} stands at position {position} with status {status!r}, and "
            f"nothing can be appended at {new.position}: its holder has appended something else, or the run "
            "has ended. Read its row, and replay it if it has not.",
        )
    return new.release and still_unread is not None


@lru_cache(maxsize=1024)
def _fence(
    columns: tuple[str, ...], has_events: bool, release: bool, knowledge: str, leaves_attempts: bool
) -> Statement:
    unknown = set(columns) - _CHANGEABLE_COLUMNS
    if unknown:
        raise ValueError(
            f"An append cannot change {sorted(unknown)}; it may change {sorted(_CHANGEABLE_COLUMNS)}."
        )
    assignments = ["position = :_new", "previous_owner = NULL", *(f"{name} = :{name}" for name in columns)]
    if "updated_at" not in columns:
        assignments.append(f"updated_at = {':_at' if has_events else '<now>'}")
    if release:
        owner = f"owner || '{SET_ASIDE}'" if leaves_attempts else "NULL"
        assignments += [f"owner = {owner}", "lease_expires_at = NULL"]
    return Statement(
        f"UPDATE runs SET {', '.join(assignments)} "
        "WHERE run_id = :_run_id AND epoch = :_epoch AND position = :_old "
        f"AND NOT {schema.HAS_ENDED} {knowledge}"
    )


@work
def read_events(
    run_id: str,
    after: int = -1,
    types: Collection[str] | None = None,
    limit: int | None = None,
) -> Steps[list[EventRow]]:
    """The events of a run after the position `after`, in order; with `types`, only those of these types.

    Raises:
        UnreadableRowError: One of their times cannot be read.
    """
    names = {f"type_{number}": name for number, name in enumerate(types or ())}
    if types is not None and not names:
        return []
    parameters: dict[str, Any] = {"run_id": run_id, "after": after, **names}
    if limit is not None:
        parameters["limit"] = limit
    (rows,) = yield last(_select_events(len(names), limit is not None).find_all(**parameters))
    try:
        if rows and isinstance(rows[0][1], str):  # `decode_time`, inlined: it may be fifty thousand rows.
            parse = datetime.fromisoformat
            return [(position, parse(at + "+00:00"), type_, data) for position, at, type_, data in rows]
        return [_event_row(*row) for row in rows]
    except (ValueError, TypeError, AttributeError):
        for position, at, *_ in rows:
            try:
                time_of(at)
            except ValueError as error:
                raise unreadable_event(run_id, position, "timestamp", str(error)) from None
        raise


def unreadable_event(run_id: str, position: int, column: str, problem: str) -> UnreadableRowError:
    """The error of a cell of an event."""
    return unreadable("events", f"event {position} of run {run_id!r}", column, problem, run_id)


@lru_cache(maxsize=64)
def _select_events(type_count: int, limited: bool) -> Statement:
    sql = "SELECT position, timestamp, type, data FROM events WHERE run_id = :run_id AND position > :after"
    if type_count:
        sql += f" AND type IN ({', '.join(f':type_{number}' for number in range(type_count))})"
    sql += " ORDER BY position"
    return Statement(sql + (" LIMIT :limit" if limited else ""))


@work
def latest_event(run_id: str) -> Steps[EventRow | None]:
    """The last event of a run, or None when it has none yet."""
    (row,) = yield last(_LATEST_EVENT.find(run_id=run_id))
    return None if row is None else _event_row(*row)


@work
def count_events(run_id: str) -> Steps[int]:
    """How many events a run has."""
    (row,) = yield last(_COUNT_EVENTS.find(run_id=run_id))
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
        # An error's text may hold characters that no database takes. The run must be able to end anyway.
        return value.replace("\0", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "replace").decode()
    return value
