"""Looking at runs, and having them go on."""

from __future__ import annotations

import asyncio
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
from pyworkflow_ray.exceptions import WorkflowError, WorkflowNotFoundError
from pyworkflow_ray.statuses import RunStatus
from pyworkflow_ray.storage import runs
from pyworkflow_ray.storage.storages import Storage
from pyworkflow_ray.values import codec


async def get_workflow_run(run_id: str, *, storage: Any = None) -> WorkflowRun | None:
    """The run of this id, or None. Needs no Ray.

    Args:
        storage: Another than the settings name, as for `start`; so in the functions below.
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
        lambda connection: runs.list_runs(
            connection, status=wanted, attributes=equal, limit=limit, **conditions
        ),
    )
    return [WorkflowRun.of(record) for record in found], following


def statuses_of(status: RunStatus | str | Collection[RunStatus | str] | None) -> list[RunStatus] | None:
    """The statuses that a caller names.

    Raises:
        ValueError: One of them is none.
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
    """Have a suspended or interrupted run go on now; a run that is going on is left alone.

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
    """Ask a run to cancel: its code sees a `CancellationError` where it waits, and may clean up.

    Args:
        reason: Told to the code, and kept with the run.
        wait: Whether to return only when the run has ended.
        timeout: Seconds to wait at most.

    Returns:
        True when the run will learn of it (also when it was asked before), False when it has ended already.

    Raises:
        WorkflowNotFoundError: There is no such run.
        TimeoutError: It has not ended in time.
    """
    refuse_in_workflow("cancel_workflow")
    return await cancel_run(session(storage=storage), str(run_id), reason, wait, timeout)


async def signal(run_id: str, name: str, payload: Any = None, dedup_key: str | None = None) -> None:
    """Send a run a signal; it reads signals with `receive(name)`, in the order in which they came.

    Args:
        payload: Any value.
        dedup_key: A second signal with the same key has no effect.

    Raises:
        WorkflowNotFoundError: There is no such run.
        WorkflowError: The run has ended.
    """
    await signal_run(session(), str(run_id), name, payload, dedup_key)


async def query(run_id: str, name: str, *args: Any, **kwargs: Any) -> Any:
    """What the run answers now; its history does not change.

    The run's code has registered a function under this name by `set_query_handler`. It is asked where the
    run is driven; of a run that is suspended or has ended, a replay is asked.

    Raises:
        WorkflowNotFoundError: There is no such run.
        WorkflowError: The run answers no such query.
        Exception: What the function raised.
    """
    return await query_run(session(), str(run_id), name, args, kwargs)


async def get_workflow_chain(run_id: str, *, storage: Any = None) -> list[WorkflowRun]:
    """The runs that continued one another, oldest first, from any one of them. Needs no Ray.

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
    found = await asyncio.to_thread(session().storage.read, lambda c: runs.get_children(c, str(run_id)))
    return [WorkflowRun.of(record) for record in found]


async def get_workflow_run_by_idempotency_key(key: str, workflow: str | None = None) -> WorkflowRun | None:
    """The run that holds this key, or None; the newest when several workflows use it. Needs no Ray."""
    refuse_in_workflow("get_workflow_run_by_idempotency_key")
    record = await asyncio.to_thread(
        session().storage.read, lambda c: runs.get_by_idempotency_key(c, key, workflow)
    )
    return None if record is None else WorkflowRun.of(record)


async def delete_run(run_id: str) -> bool:
    """Whether there was such a run; it is gone with its history and its hooks.

    Raises:
        WorkflowError: The run has not ended: cancel it first.
    """
    refuse_in_workflow("delete_run")
    of = session()

    def write(connection: Any) -> bool:
        record = runs.get_run(str(run_id)).on(connection)
        if record is not None and not record.status.is_terminal:
            raise WorkflowError(
                f"Run {str(run_id)!r} is {record.status.value}: cancel it before it is deleted."
            )
        return runs.delete_run(connection, str(run_id))

    return await of.storage.write(write)


async def purge(older_than: When, status: RunStatus | str | Collection[RunStatus | str] | None = None) -> int:
    """Delete runs that ended before a time ago ("30d", a `timedelta`) or an instant; how many there were.

    Args:
        status: Only runs that ended so; all that have ended by default.
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
        some = await of.storage.write(lambda c: runs.purge(c, older_than=until, statuses=statuses))
        deleted += some
        if not some:
            return deleted
