"""Repairs of asyncio: what loses the error of a run that is cancelled, so that the code cannot see it.

A run's code sees a request to cancel as an error that is both a `CancellationError` and an
`asyncio.CancelledError`. Some parts of asyncio compare the class for identity, or raise a bare
`CancelledError` in the place of one that they have caught. They are given what they understand, or what they
raise is replaced. Nothing changes for code outside of runs: these errors exist in runs only.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Any

from pyworkflow_ray.engine.loop import RequestError, RunTask

_exit_group = asyncio.TaskGroup.__aexit__
_exit_timeout = asyncio.Timeout.__aexit__
_wait_at_condition = asyncio.Condition.wait


def _leave_group(
    group: asyncio.TaskGroup,
    kind: type[BaseException] | None,
    error: BaseException | None,
    traceback: TracebackType | None,
) -> Any:
    """Leave a group. Before Python 3.13 a group wraps an error that is not exactly asyncio's."""
    is_request = isinstance(error, RequestError)
    return _exit_group(group, asyncio.CancelledError if is_request else kind, error, traceback)


async def _leave_timeout(
    timeout: asyncio.Timeout,
    kind: type[BaseException] | None,
    error: BaseException | None,
    traceback: TracebackType | None,
) -> None:
    """Leave a timeout. If it is over, but the task was cancelled before, it lets its own error pass on."""
    await _exit_timeout(timeout, kind, error, traceback)
    task = asyncio.current_task()
    is_late = timeout.expired() and type(error) is asyncio.CancelledError
    if is_late and isinstance(task, RunTask) and task.has_seen_request:
        raise task.request_error() from None


async def _wait(condition: asyncio.Condition) -> bool:
    """Wait at a condition. One that is cancelled while it takes its lock again raises a new error later."""
    try:
        return await _wait_at_condition(condition)
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if type(error) is asyncio.CancelledError and isinstance(task, RunTask) and task.is_stopped_by_request:
            raise task.request_error() from None
        raise


def repair_asyncio() -> None:
    """Have asyncio keep the error of a run that is cancelled. Once for a process; again does nothing."""
    asyncio.TaskGroup.__aexit__ = _leave_group  # type: ignore[method-assign,assignment]
    asyncio.Timeout.__aexit__ = _leave_timeout  # type: ignore[method-assign,assignment]
    asyncio.Condition.wait = _wait  # type: ignore[method-assign,assignment]
