"""Waiting for several things, in an order that a replay repeats.

`asyncio.as_completed` makes tasks in the order of a set of coroutines, which hash by address. The functions
here keep the order in which the caller gave the awaitables. `asyncio.gather` and `TaskGroup` keep it anyway.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any, TypeVar

from pyworkflow_ray.callables import is_unfinished
from pyworkflow_ray.durations import Duration, parse_timeout
from pyworkflow_ray.exceptions import CancellationError

T = TypeVar("T")

FIRST_COMPLETED = asyncio.FIRST_COMPLETED
FIRST_EXCEPTION = asyncio.FIRST_EXCEPTION
ALL_COMPLETED = asyncio.ALL_COMPLETED

gather = asyncio.gather


def _seconds(timeout: Duration | None) -> float | None:
    limit = parse_timeout(timeout)
    return None if limit is None else limit.total_seconds()


async def wait(
    awaitables: Iterable[Awaitable[T]],
    *,
    timeout: Duration | None = None,
    return_when: str = ALL_COMPLETED,
) -> tuple[list[asyncio.Future[T]], list[asyncio.Future[T]]]:
    """What is done and what is pending, each as a list in the order given.

    It is like `asyncio.wait`, but takes any awaitables, returns lists, and accepts durations such as "5m".
    What is pending goes on. Cancel it if it is no longer wanted.
    """
    futures = [asyncio.ensure_future(item) for item in awaitables]
    if not futures:
        return [], []
    await asyncio.wait(futures, timeout=_seconds(timeout), return_when=return_when)
    return [f for f in futures if f.done()], [f for f in futures if not f.done()]


async def as_completed(
    awaitables: Iterable[Awaitable[T]], *, timeout: Duration | None = None
) -> AsyncIterator[asyncio.Future[T]]:
    """Each as it is done, in the order of their ends: ``async for done in as_completed(calls): await done``.

    Raises:
        TimeoutError: Not all were done within the timeout.
    """
    futures = [asyncio.ensure_future(item) for item in awaitables]
    done: asyncio.Queue[asyncio.Future[T] | None] = asyncio.Queue()
    for future in futures:
        future.add_done_callback(done.put_nowait)
    # asyncio.timeout would cancel the caller's own code while the generator is paused in `yield`.
    seconds = _seconds(timeout)
    loop = asyncio.get_running_loop()
    deadline = None if seconds is None else loop.call_later(seconds, done.put_nowait, None)
    try:
        for left in range(len(futures), 0, -1):
            first = await done.get()
            if first is None:
                raise TimeoutError(f"{left} of {len(futures)} are not done after {timeout}.")
            yield first
    finally:
        if deadline is not None:
            deadline.cancel()


async def bounded_map(
    function: Callable[..., Any],
    items: Iterable[Any],
    max_in_flight: int | None = None,
    return_exceptions: bool = False,
) -> list[Any]:
    """The results of one call for each item, in order, with at most `max_in_flight` unfinished at once.

    The first call that raises cancels the others, and its error is raised. With `return_exceptions` errors
    stand in the places of results instead. A cancellation is always raised.
    """
    if max_in_flight is not None and max_in_flight < 1:
        raise ValueError(f"max_in_flight is {max_in_flight}: give 1 or more, or None for no bound.")
    gate = contextlib.nullcontext() if max_in_flight is None else asyncio.Semaphore(max_in_flight)

    async def call(item: Any) -> Any:
        async with gate:
            try:
                result = function(item)
                return await result if is_unfinished(result) else result
            except (asyncio.CancelledError, CancellationError):
                raise
            except Exception as error:
                if return_exceptions:
                    return error
                raise

    tasks = [asyncio.ensure_future(call(item)) for item in items]
    try:
        return await asyncio.gather(*tasks)
    except asyncio.CancelledError:
        raise  # gather has passed it on
    except BaseException:
        for task in tasks:
            task.cancel()
        raise
