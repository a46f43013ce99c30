"""Telling a run something from outside: a row in its inbox, and a nudge to whoever drives it."""

from __future__ import annotations

import asyncio
from typing import Any

from loguru import logger

from pyworkflow_ray.actors.inboxes import InboxEntry
from pyworkflow_ray.client.sessions import Session
from pyworkflow_ray.engine.events import Event
from pyworkflow_ray.exceptions import ConfigurationError, WorkflowNotFoundError
from pyworkflow_ray.storage import runs
from pyworkflow_ray.storage.inboxes import was_posted
from pyworkflow_ray.storage.records import RunRecord


async def send(
    of: Session, run_id: str, dedup_key: str, event: Event, *, once_in_chain: bool = False
) -> RunRecord | None:
    """Post an event to a run, or to the run in which it goes on; None when it has ended.

    When this returns the run will learn of it, whoever crashes.

    Args:
        once_in_chain: Whether the key counts for all runs that this one continues, too.

    Raises:
        WorkflowNotFoundError: There is no such run.
    """
    accepted: list[RunRecord] = []

    def post(connection: Any) -> RunRecord | None:
        record = runs.get_run(connection, runs.latest_of_chain(connection, run_id))
        if record is None:
            raise WorkflowNotFoundError(run_id)
        if record.status.is_terminal:
            # Perhaps this went through before, and only the answer to its COMMIT was lost.
            was_done = accepted and was_posted(connection, accepted[0].run_id, dedup_key)
            return accepted[0] if was_done else None
        if not (once_in_chain and was_posted(connection, record.run_id, dedup_key, over_chain=True)):
            entry = InboxEntry(record.run_id, dedup_key, event)
            if not entry.post(connection) and not was_posted(connection, record.run_id, dedup_key):
                raise _Moved
        accepted[:] = [record]
        return record

    while True:
        try:
            record = await of.storage.write(post)
        except _Moved:
            continue  # it has ended, or continued, between two statements
        if record is not None:
            await tell(of, record)
        return record


class _Moved(Exception):
    """The run that was found is not the one to write to any more."""


async def latest_of_chain(of: Session, run_id: str) -> RunRecord:
    """The run in which this one goes on at last; itself, if it does not.

    Raises:
        WorkflowNotFoundError: There is no such run.
    """
    # In one snapshot: it may continue once more between two.
    record = await asyncio.to_thread(
        of.storage.read, lambda c: runs.get_run(c, runs.latest_of_chain(c, run_id))
    )
    if record is None:
        raise WorkflowNotFoundError(run_id)
    return record


async def tell(of: Session, record: RunRecord) -> None:
    """Have a run look into its inbox soon; the sweep has it look in any case."""
    try:
        await of.runtime.open()
        await of.runtime.wake(record)
    except ConfigurationError:
        raise
    except Exception as error:
        logger.info("Run {} could not be told, and will be found: {}", record.run_id, type(error).__name__)
