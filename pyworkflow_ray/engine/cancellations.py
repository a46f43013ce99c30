"""Cancelling a run: how its code learns of the request, and how it puts the request off for a while.

Theory of operation. A request cancels the run's main task in the way of asyncio. What the task waits for is
cancelled with it, `gather` and `TaskGroup` cancel their tasks, and `finally` blocks run. The code sees a
`CancellationError` that is an `asyncio.CancelledError` too, so that code of either habit understands it. The
error is raised once. What the code awaits after that, to clean up, is awaited as usual.

A request does not cancel a task within `shield()`. It cancels the task when the task leaves the block.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from types import TracebackType
from typing import Any

from pyworkflow_ray.engine.continuations import ContinueAsNew
from pyworkflow_ray.engine.events import MAX_DURATION, CancellationRequested
from pyworkflow_ray.engine.loop import REQUEST, RequestError, RunLoop, RunTask
from pyworkflow_ray.exceptions import CancellationError, WorkflowTimeoutError


class RunCancelled(CancellationError, RequestError):  # it is asyncio's name for it
    """The run was cancelled. It is an error of this package and of asyncio."""


class RunTimedOut(WorkflowTimeoutError, RequestError):
    """The run's time is over. It is an error of this package and of asyncio."""


def is_cancellation(error: BaseException | None) -> bool:
    """Whether code that was cancelled has ended because of that. A `TaskGroup` may wrap the error."""
    if isinstance(error, BaseExceptionGroup):
        return all(is_cancellation(part) for part in error.exceptions)
    return isinstance(error, asyncio.CancelledError | CancellationError | ContinueAsNew)


class Cancellation:
    """Whether a run was asked to cancel, and how far the request has come.

    Args:
        run_id: The run.
        loop: Its loop.
        max_duration: How long the run may take.
    """

    def __init__(self, run_id: str, loop: RunLoop, max_duration: timedelta | None) -> None:
        self.request: CancellationRequested | None = None
        """The request that counts. Only the end of the run's time takes the place of an earlier one."""
        self.is_delivered = False
        """Whether the main code has seen the request. Never True without a request."""
        self._run_id, self._loop, self._max_duration = run_id, loop, max_duration
        self._main: RunTask[Any] | None = None
        loop.translate, loop.request_error = self._translate, self.error

    @property
    def is_requested(self) -> bool:
        return self.request is not None

    @property
    def reason(self) -> str:
        """Why, as the request says."""
        return "" if self.request is None else self.request.reason

    @property
    def is_timeout(self) -> bool:
        """Whether the run's time was over; nobody asked then."""
        return self.request is not None and self.request.requested_by == MAX_DURATION

    @property
    def is_unseen(self) -> bool:
        """Whether the main code has not seen the request, because of a shield or because it had ended."""
        return self.is_requested and not self.is_delivered

    def deliver(self, request: CancellationRequested, main: RunTask[Any]) -> None:
        """Cancel the main task. The next run of the loop passes the request on to other tasks.

        A second request has no effect, with one exception: the end of the run's time always counts.
        """
        if self.note(request):
            self._main = main
            self._loop.is_cancelling_run = True
            main.cancel(REQUEST)

    def note(self, request: CancellationRequested) -> bool:
        """Remember a request, and say whether it counts."""
        if self.request is not None and (self.is_timeout or request.requested_by != MAX_DURATION):
            return False
        self.request = request
        return True

    def passed(self) -> None:
        """The activation that brought the request is over."""
        self._loop.is_cancelling_run = False

    def error(self) -> asyncio.CancelledError:
        """The error that the code sees."""
        if self.is_timeout:
            return RunTimedOut(self._run_id, self._max_duration or timedelta())
        return RunCancelled(reason=self.reason or None)

    def is_of_run(self, error: asyncio.CancelledError) -> bool:
        """Whether the run is cancelled. Else another task, or a timeout, has cancelled one of its tasks."""
        return isinstance(error, RequestError)

    def that_counts(
        self, first: asyncio.CancelledError, second: asyncio.CancelledError
    ) -> asyncio.CancelledError:
        """What code sees that is cancelled twice before it sees either: the run's error, the newer of two."""
        return second if self.is_of_run(second) else first

    def _translate(self, error: asyncio.CancelledError) -> asyncio.CancelledError:
        """The error that the code of the current task sees: the run's, or `error` if only it is cancelled."""
        task = asyncio.current_task()
        if not isinstance(task, RunTask) or not task.note_cancellation(error):
            return error
        if task is self._main:
            self.is_delivered = True
        return self.error()


class Shield:
    """``async with shield(): ...``: a request to cancel the run waits until the block ends.

    It belongs to the asyncio task that enters it, and nests.
    """

    async def __aenter__(self) -> None:
        task = asyncio.current_task()
        if isinstance(task, RunTask):
            task.shields += 1

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        task = asyncio.current_task()
        if not isinstance(task, RunTask):
            return
        task.shields -= 1
        if not task.shields and task.is_cancel_deferred:
            task.is_cancel_deferred = False
            task.cancel(REQUEST)
            if error is None:
                await asyncio.sleep(0)  # the task is cancelled here, and not at what the code awaits next
