"""Events on their way to a drive: entries for inboxes, and inboxes and histories as they are read."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import msgspec
from loguru import logger

from pyworkflow_ray.engine.events import (
    CancellationRequested,
    ChildCancelled,
    ChildCompleted,
    ChildFailed,
    ChildStarted,
    Event,
    Recorded,
    decode_event,
    decode_history,
    encode_data,
    is_known_type,
    type_of,
)
from pyworkflow_ray.engine.unseen_events import unseen
from pyworkflow_ray.exceptions import StorageError, UnreadableRowError
from pyworkflow_ray.storage.damages import report, unreadable
from pyworkflow_ray.storage.histories import EventRow, read_events, unreadable_event
from pyworkflow_ray.storage.inboxes import CANCEL_KEY, InboxRow, posting, unread
from pyworkflow_ray.storage.records import RunRecord
from pyworkflow_ray.storage.statements import Bound

if TYPE_CHECKING:
    from pyworkflow_ray.actors.services import Services
    from pyworkflow_ray.engine.executions import Execution


class InboxEntry(msgspec.Struct, frozen=True):
    """An outcome for a run, and the key under which it counts once."""

    run_id: str
    dedup_key: str
    event: Event

    def posting(self, to: str | None = None) -> Bound:
        """What puts it into the run's inbox, or into that of the run in which it goes on.

        It changes a row if it was not there before. That it was there already is a success, too.
        """
        run_id = to or self.run_id
        return posting(run_id, self.dedup_key, type_of(self.event), encode_data(self.event))


async def requests_to_children(services: Services, run_id: str) -> list[InboxEntry]:
    """Requests to the children that end with their parent; read off the history, without the run's code."""
    types = [kind.type for kind in (ChildStarted, ChildCompleted, ChildFailed, ChildCancelled)]
    rows = await asyncio.to_thread(services.storage.read, read_events(run_id, types=types))
    open_children: dict[str, str] = {}
    for _, _, type_, data in rows:
        with contextlib.suppress(ValueError):  # a damaged row: that child goes on
            event = decode_event(type_, data)
            if isinstance(event, ChildStarted):
                if event.parent_close == "cancel":
                    open_children[event.child_id] = event.child_run_id
            elif isinstance(event, ChildCompleted | ChildFailed | ChildCancelled):
                open_children.pop(event.child_id, None)
    request = CancellationRequested(reason="its parent has ended", requested_by=run_id)
    return [InboxEntry(child, CANCEL_KEY, request) for child in open_children.values()]


async def is_recorded(services: Services, run_id: str, request: CancellationRequested) -> bool:
    """Whether the history has this request to cancel."""
    types = [CancellationRequested.type]
    rows = await asyncio.to_thread(services.storage.read, read_events(run_id, types=types))
    return encode_data(request) in (data.encode() for *_, data in rows)


async def read_inbox(services: Services, run_id: str) -> list[InboxRow]:
    """What lies unread in the run's inbox; an outage of the database is waited for, as commits do."""
    while True:
        try:
            return await asyncio.to_thread(services.storage.read, unread(run_id))
        except StorageError as error:
            logger.warning("The inbox of run {} cannot be read now: {}", run_id, error)
        await asyncio.sleep(1.0)


def decoded_inbox(run_id: str, rows: list[InboxRow]) -> tuple[list[int], list[Event]]:
    """The ids of the rows, and the outcomes that they hold.

    Raises:
        UnreadableRowError: A row cannot be read.
    """
    return [row.id for row in rows], [_decoded(run_id, row) for row in rows]


def unseen_in(run_id: str, rows: list[InboxRow]) -> list[Event]:
    """What these rows hold, for a history whose code does not see it.

    Rows that cannot be read are reported.
    """
    events = []
    for row in rows:
        try:
            events.append(unseen(_decoded(run_id, row)))
        except UnreadableRowError as error:
            report(error)
    return events


def cancellation_in(run_id: str, rows: list[InboxRow]) -> CancellationRequested | None:
    """The request to cancel among these rows, whether the others can be read or not."""
    for row in rows:
        with contextlib.suppress(UnreadableRowError):
            event = _decoded(run_id, row)
            if isinstance(event, CancellationRequested):
                return event
    return None


def _decoded(run_id: str, row: InboxRow) -> Event:
    try:
        return decode_event(row.kind, row.data)
    except (ValueError, TypeError) as error:
        column = "data" if is_known_type(row.kind) else "kind"
        where = f"row {row.id} of run {run_id!r}"
        raise unreadable("inbox", where, column, str(error), run_id) from error


def decoded_history(run_id: str, rows: list[EventRow]) -> list[Recorded]:
    """The events of a run that were stored.

    Raises:
        UnreadableRowError: One of them cannot be read.
    """
    try:
        return decode_history(rows)
    except (ValueError, TypeError):
        for position, _, type_, data in rows:
            try:
                decode_event(type_, data)
            except (ValueError, TypeError) as error:
                column = "data" if is_known_type(type_) else "type"
                raise unreadable_event(run_id, position, column, str(error)) from error
        raise


def require_whole(run: RunRecord, rows: list[EventRow]) -> None:
    """Do nothing if these are all the events that the run's row counts.

    Raises:
        UnreadableRowError: The row counts others.
    """
    if run.durable and [row[0] for row in rows] != list(range(run.position)):
        gap = next((at for at, row in enumerate(rows) if row[0] != at), len(rows))
        problem = f"it is {run.position}, and the history has {len(rows)} events"
        if gap < len(rows):
            problem += f", of which number {gap} is missing"
        raise unreadable("runs", f"run {run.run_id!r}", "position", problem, run.run_id)


async def ending_of(
    services: Services, run_id: str, execution: Execution | None
) -> CancellationRequested | None:
    """Why a run whose code is just running is to end; None if it is not to."""
    if execution is not None and execution.is_late(services.clock.now()):
        return execution.end_of_time()
    if execution is not None and execution.cancellation.request is not None:
        return execution.cancellation.request
    return cancellation_in(run_id, await read_inbox(services, run_id))
