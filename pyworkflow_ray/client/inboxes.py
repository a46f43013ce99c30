"""Posting events to runs: a row in the run's inbox, then a nudge to the coordinator that drives it."""

from __future__ import annotations

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
    """Post an event to a run, or to the run as which it continued; None when that run has ended.

    Once this has returned, no crash can lose the event.

    Args:
        dedup_key: A second event under the same key has no effect.
        once_in_chain: Whether the key also counts for the runs that this run continues.

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
            continue  # the run has ended or continued between two statements
        if record is not None:
            await nudge(of, record)
        return record


class _Moved(Exception):
    """The run has ended or continued since it was looked up: look again."""


async def nudge(of: Session, record: RunRecord) -> None:
    """Have a run look into its inbox soon. Should this fail, the sweep finds the inbox."""
    try:
        await of.runtime.open()
        await of.runtime.wake(record)
    except ConfigurationError:
        raise
    except Exception as error:
        logger.info(
            "Run {} could not be nudged; the sweep will find it: {}", record.run_id, type(error).__name__
        )
