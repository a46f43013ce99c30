"""What the storage holds of one run now: its row, the last run of its chain, its new events."""

from __future__ import annotations

import asyncio

from pyworkflow_ray.client.records import Event
from pyworkflow_ray.client.sessions import Session
from pyworkflow_ray.exceptions import WorkflowNotFoundError
from pyworkflow_ray.storage import runs
from pyworkflow_ray.storage.histories import read_events
from pyworkflow_ray.storage.records import RunRecord


async def read_record(of: Session, run_id: str) -> RunRecord:
    """The run's row.

    Raises:
        WorkflowNotFoundError: There is no such run.
    """
    record = await asyncio.to_thread(of.storage.read, runs.get_run(run_id))
    return require_record(run_id, record)


def require_record(run_id: str, record: RunRecord | None) -> RunRecord:
    """The record itself.

    Raises:
        WorkflowNotFoundError: It is None.
    """
    if record is None:
        raise WorkflowNotFoundError(run_id)
    return record


async def latest_of_chain(of: Session, run_id: str) -> RunRecord:
    """The last run of the chain in which this run continues; the run itself if it has not continued.

    Raises:
        WorkflowNotFoundError: There is no such run.
    """
    # One read, so one snapshot: between two reads the run may continue once more.
    record = await asyncio.to_thread(of.storage.read, runs.get_latest_of_chain(run_id))
    return require_record(run_id, record)


async def read_events_after(of: Session, run_id: str, position: int) -> list[Event]:
    """The events of a run that come after a position, oldest first; -1 gives all of them."""
    rows = await asyncio.to_thread(of.storage.read, read_events(run_id, after=position))
    return [Event.of(run_id, row) for row in rows]
