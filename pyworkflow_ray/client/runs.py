"""Functions for runs: reading, resuming, cancelling, messaging and deleting them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Any

from pyworkflow_ray.client.guards import refuse_in_workflow
from pyworkflow_ray.client.handles import RunHandle
from pyworkflow_ray.client.lookups import read_record
from pyworkflow_ray.client.messages import cancel_run, query_run, signal_run
from pyworkflow_ray.client.records import Event, WorkflowRun
from pyworkflow_ray.client.sessions import session
from pyworkflow_ray.durations import When, resolve_when
from pyworkflow_ray.exceptions import UnreadableRowError, WorkflowError, WorkflowNotFoundError
from pyworkflow_ray.statuses import RunStatus
from pyworkflow_ray.storage import runs
from pyworkflow_ray.storage.storages import Storage
from pyworkflow_ray.storage.works import Steps, work
from pyworkflow_ray.values import codec


async def get_workflow_run(run_id: str, *, storage: Any = None) -> WorkflowRun | None:
    """The run of this id, or None. Needs no Ray.

    Args:
        storage: Another storage than that of the settings, as in `start`. The functions below have it, too.
    """
    refuse_in_workflow("get_workflow_run")
    record = await asyncio.to_thread(session(storage=storage).storage.read, runs.get_run(str(run_id)))
    return None if record is None else WorkflowRun.of(record)


async def get_workflow_events(run_id: str, *, storage: Any = None) -> list[Event]:
    """The history of a run, oldest first. Needs no Ray.

    Raises:
        WorkflowNotFoundError: There is no such run.
    """
    refuse_in_workflow("get_workflow_events")
    of = session(storage=storage)
    events = await RunHandle(str(run_id), of).events()
    if not events:
        await read_record(of, str(run_id))  # raises an error if there is no such run
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
    """A page of runs, newest first, and the cursor of the next page (None after the last). Needs no Ray.

    Args:
        query: A part of a run id, workflow name or idempotency key; case does not matter.
        status: One status or several.
        workflow: A workflow's name.
        start_time, end_time: Only runs that were created at or after the first and before the second time.
        attributes: Only runs whose attributes have these values.
        limit: The most runs in the page.
        cursor: The cursor that came with the page before.

    Raises:
        ValueError: The cursor, a status or the limit is not valid.
    """
    refuse_in_workflow("list_runs")
    return await page_of_runs(
        session().storage,
        query=query,
        status=status,
        workflow=workflow,
        start_time=start_time,
        end_time=end_time,
        attributes=attributes,
        limit=limit,
        cursor=cursor,
    )


async def page_of_runs(
    storage: Storage,
    *,
    status: RunStatus | str | Collection[RunStatus | str] | None,
    attributes: Mapping[str, Any] | None,
    limit: int,
    **conditions: Any,
) -> tuple[list[WorkflowRun], str | None]:
    """See `list_runs`."""
    if limit < 1:
        raise ValueError(f"limit is {limit}: give 1 or more.")
    wanted = statuses_of(status)
    equal = {key: codec.encode(value).decode() for key, value in (attributes or {}).items()}
    found, following = await asyncio.to_thread(
        storage.read,
        runs.list_runs(status=wanted, attributes=equal, limit=limit, **conditions),
    )
    return [WorkflowRun.of(record) for record in found], following


def statuses_of(status: RunStatus | str | Collection[RunStatus | str] | None) -> list[RunStatus] | None:
    """The statuses that a caller names.

    Raises:
        ValueError: There is no such status.
    """
    if status is None:
        return None
    given = [status] if isinstance(status, RunStatus | str) else list(status)
    try:
        return [RunStatus(each) for each in given]
    except ValueError:
        raise ValueError(
            f"status is {status!r}: give one or several of {', '.join(s.value for s in RunStatus)}."
        ) from None


async def resume(run_id: str, *, storage: Any = None) -> RunHandle[Any]:
    """Let a suspended or interrupted run go on now. A run that is going on is left alone.

    Raises:
        WorkflowNotFoundError: There is no such run.
        WorkflowError: The run has ended.
    """
    refuse_in_workflow("resume")
    of = session(storage=storage)
    record = await read_record(of, str(run_id))
    if record.status.is_terminal:
        raise WorkflowError(f"Run {run_id!r} has ended as {record.status.value}: there is nothing to resume.")
    await of.runtime.open()
    await of.runtime.wake(record)
    return RunHandle(str(run_id), of)


async def cancel_workflow(
    run_id: str,
    reason: str | None = None,
    wait: bool = False,
    timeout: float | None = None,
    *,
    storage: Any = None,
) -> bool:
    """Ask a run to cancel. A `CancellationError` is raised in its code where it waits; it may clean up.

    Args:
        reason: The reason. The code sees it, and it is kept with the run.
        wait: Whether to return only after the run has ended.
        timeout: How many seconds to wait at most.

    Returns:
        True if the request is, or will be, in the run's history, also if it was asked before. The code does
        not see it if the run ends at this very moment. False if the run had ended.

    Raises:
        WorkflowNotFoundError: There is no such run.
        TimeoutError: The run has not ended in time.
    """
    refuse_in_workflow("cancel_workflow")
    return await cancel_run(session(storage=storage), str(run_id), reason, wait, timeout)


async def signal(run_id: str, name: str, payload: Any = None, dedup_key: str | None = None) -> None:
    """Send a run a signal. The run reads signals with `receive(name)`, in the order in which they came.

    Args:
        payload: Any value.
        dedup_key: A second signal with the same key has no effect.

    Raises:
        WorkflowNotFoundError: There is no such run.
        WorkflowError: The run has ended.
    """
    await signal_run(session(), str(run_id), name, payload, dedup_key)


async def query(run_id: str, name: str, /, *args: Any, **kwargs: Any) -> Any:
    """The run's answer to a query. The query does not change the history.

    The answer comes from the function that the run's code has registered under this name with
    `set_query_handler`. For a run that is suspended or has ended, a replay answers.

    Raises:
        WorkflowNotFoundError: There is no such run.
        WorkflowError: The run has no such query.
        Exception: What the function raised.
    """
    return await query_run(session(), str(run_id), name, args, kwargs)


async def get_workflow_chain(run_id: str, *, storage: Any = None) -> list[WorkflowRun]:
    """The runs that continued one another, oldest first, by the id of any of them. Needs no Ray.

    Raises:
        WorkflowNotFoundError: There is no such run.
    """
    refuse_in_workflow("get_workflow_chain")
    of = session(storage=storage)
    found = await asyncio.to_thread(of.storage.read, runs.get_chain(str(run_id)))
    if not found:
        raise WorkflowNotFoundError(str(run_id))
    return [WorkflowRun.of(record) for record in found]


async def get_children(run_id: str) -> list[WorkflowRun]:
    """The child runs of a run, oldest first. Needs no Ray."""
    refuse_in_workflow("get_children")
    found = await asyncio.to_thread(session().storage.read, runs.get_children(str(run_id)))
    return [WorkflowRun.of(record) for record in found]


async def get_workflow_run_by_idempotency_key(key: str, workflow: str | None = None) -> WorkflowRun | None:
    """The run that holds this key, or None. Of several workflows' runs, the newest. Needs no Ray."""
    refuse_in_workflow("get_workflow_run_by_idempotency_key")
    record = await asyncio.to_thread(session().storage.read, runs.get_by_idempotency_key(key, workflow))
    return None if record is None else WorkflowRun.of(record)


async def delete_run(run_id: str) -> bool:
    """Delete a run with its history and its hooks; whether there was such a run.

    Raises:
        WorkflowError: The run has not ended. Cancel it first.
    """
    refuse_in_workflow("delete_run")
    of = session()

    @work
    def delete() -> Steps[bool]:
        record = None
        with contextlib.suppress(UnreadableRowError):  # it was set aside, and nobody can drive it
            record = yield from runs.get_run(str(run_id))
        if record is not None and not record.status.is_terminal:
            raise WorkflowError(
                f"Run {str(run_id)!r} is {record.status.value}: cancel it before it is deleted."
            )
        return (yield from runs.delete_run(str(run_id)))

    return await of.storage.write(delete())


async def purge(older_than: When, status: RunStatus | str | Collection[RunStatus | str] | None = None) -> int:
    """Delete runs that ended long ago; how many were deleted.

    Args:
        older_than: How long ago the runs ended at least ("30d", a `timedelta`), or the instant before which.
        status: Only runs that ended in this state; by default all runs that have ended.
    """
    refuse_in_workflow("purge")
    of = session()
    now = of.runtime.now()
    until = resolve_when(older_than, now)
    if not isinstance(older_than, datetime):
        until = now - (until - now)
    statuses = statuses_of(status) or [each for each in RunStatus if each.is_terminal]
    deleted = 0
    while True:
        some = await of.storage.write(runs.purge(older_than=until, statuses=statuses))
        deleted += some
        if not some:
            return deleted
