"""Looking at runs, and having them go on."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Any

from pyworkflow_ray import values
from pyworkflow_ray.client.handles import RunHandle, read_record, refuse_in_workflow
from pyworkflow_ray.client.records import Event, WorkflowRun
from pyworkflow_ray.client.sessions import session
from pyworkflow_ray.exceptions import WorkflowError
from pyworkflow_ray.statuses import RunStatus
from pyworkflow_ray.storage import runs


async def get_workflow_run(run_id: str) -> WorkflowRun | None:
    """The run of this id, or None. Needs no Ray."""
    refuse_in_workflow("get_workflow_run")
    record = await asyncio.to_thread(session().storage.read, lambda c: runs.get_run(c, str(run_id)))
    return None if record is None else WorkflowRun.of(record)


async def get_workflow_events(run_id: str) -> list[Event]:
    """The history of a run, oldest first. Needs no Ray.

    Raises:
        WorkflowNotFoundError: There is no such run.
    """
    refuse_in_workflow("get_workflow_events")
    of = session()
    events = await RunHandle(str(run_id), of).events()
    if not events:
        await read_record(of, str(run_id))  # a run without events, or none at all
    return events


async def list_runs(
    query: str | None = None,
    status: RunStatus | str | Collection[RunStatus | str] | None = None,
    workflow: str | None = None,
    start_time: datetime | None = None,
    end_time: datetime | None = None,
    attributes: Mapping[str, Any] | None = None,
    limit: int = 100,
    cursor: str | None = None,
) -> tuple[list[WorkflowRun], str | None]:
    """A page of runs, newest first, and the cursor of the next page (None behind the last). Needs no Ray.

    Args:
        query: Part of a run id, workflow name or idempotency key; case does not matter.
        status: One status or several.
        workflow: A workflow's name.
        start_time, end_time: Bounds on when runs were created: from the first on, before the second.
        attributes: Values that the runs' attributes must equal.
        limit: Runs in the page, at most.
        cursor: What the page before gave.

    Raises:
        ValueError: The cursor, the status or the limit is not one.
    """
    refuse_in_workflow("list_runs")
    if limit < 1:
        raise ValueError(f"limit is {limit}: give 1 or more.")
    of = session()
    wanted = {key: values.encode(value).decode() for key, value in (attributes or {}).items()}
    found, following = await asyncio.to_thread(
        of.storage.read,
        lambda connection: runs.list_runs(
            connection,
            query=query,
            status=_statuses(status),
            workflow=workflow,
            start_time=start_time,
            end_time=end_time,
            attributes=wanted,
            limit=limit,
            cursor=cursor,
        ),
    )
    return [WorkflowRun.of(record) for record in found], following


def _statuses(status: RunStatus | str | Collection[RunStatus | str] | None) -> list[RunStatus] | None:
    if status is None:
        return None
    given = [status] if isinstance(status, RunStatus | str) else list(status)
    try:
        return [RunStatus(each) for each in given]
    except ValueError:
        raise ValueError(
            f"status is {status!r}: give one or several of {', '.join(s.value for s in RunStatus)}."
        ) from None


async def resume(run_id: str) -> RunHandle[Any]:
    """Have a suspended or interrupted run go on now; a run that is going on is left alone.

    Raises:
        WorkflowNotFoundError: There is no such run.
        WorkflowError: The run has ended.
    """
    refuse_in_workflow("resume")
    of = session()
    record = await read_record(of, str(run_id))
    if record.status.is_terminal:
        raise WorkflowError(f"Run {run_id!r} has ended as {record.status.value}: there is nothing to resume.")
    await of.runtime.open()
    await of.runtime.wake(record)
    return RunHandle(str(run_id), of)
