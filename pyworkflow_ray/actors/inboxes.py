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
    type_of,
)
from pyworkflow_ray.exceptions import SerializationError, StorageError
from pyworkflow_ray.storage.histories import EventRow, read_events
from pyworkflow_ray.storage.inboxes import InboxRow, posting, unread
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


CANCEL_KEY = "cancel"
"""The key of a request to cancel: one counts in each run."""


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
        SerializationError: A row cannot be read.
    """
    outcomes = []
    for row in rows:
        try:
            outcomes.append(decode_event(row.kind, row.data))
        except ValueError as error:
            raise SerializationError(
                f"Something in the inbox of run {run_id!r} cannot be read: {error}"
            ) from error
    return [row.id for row in rows], outcomes


def decoded_history(run_id: str, rows: list[EventRow]) -> list[Recorded]:
    """The events of a run that were stored.

    Raises:
        SerializationError: One of them cannot be read.
    """
    try:
        return decode_history(rows)
    except ValueError as error:
        raise SerializationError(f"The history of run {run_id!r} cannot be read: {error}") from error


async def ending_of(
    services: Services, run_id: str, execution: Execution | None
) -> CancellationRequested | None:
    """Why a run whose code is just running is to end; None if it is not to."""
    if execution is not None and execution.is_late(services.clock.now()):
        return execution.end_of_time()
    if execution is not None and execution.cancellation.request is not None:
        return execution.cancellation.request
    with contextlib.suppress(SerializationError):
        _, events = decoded_inbox(run_id, await read_inbox(services, run_id))
        return next((event for event in events if isinstance(event, CancellationRequested)), None)
    return None
