"""Cancelling a run: how its code learns of the request, and how it puts the request off for a while.

Theory of operation. A request cancels the run's main task in the way of asyncio. What the task waits for is
cancelled with it, `gather` and `TaskGroup` cancel their tasks, and `finally` blocks run. The code sees a
`CancellationError` that is an `asyncio.CancelledError` too, so that code of either habit understands it. The
error is raised once. What the code awaits after that, to clean up, is awaited as usual.

A request does not cancel a task within `shield()`. It cancels the task when the task leaves the block.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Generator
from datetime import timedelta
from types import TracebackType
from typing import Any, TypeVar

from pyworkflow_ray.engine.continuations import ContinueAsNew
from pyworkflow_ray.engine.events import MAX_DURATION, CancellationRequested
from pyworkflow_ray.engine.loop import RunLoop, RunTask
from pyworkflow_ray.exceptions import CancellationError, WorkflowTimeoutError

_T = TypeVar("_T")


_MESSAGE = "the run is cancelled"
"""Distinguishes a request from other reasons for which asyncio cancels a task."""


class RunCancelled(CancellationError, asyncio.CancelledError):  # it is asyncio's name for it
    """The run was cancelled. It is an error of this package and of asyncio."""


class RunTimedOut(WorkflowTimeoutError, asyncio.CancelledError):
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

    @property
    def is_passing(self) -> bool:
        """Whether the request is just now being passed on to the run's tasks."""
        return self._loop.is_cancelling_run

    def deliver(self, request: CancellationRequested, main: RunTask[Any]) -> None:
        """Cancel the main task. The next run of the loop passes the request on to other tasks.

        A second request has no effect, with one exception: the end of the run's time always counts.
        """
        if self.note(request):
            self._main = main
            self._loop.is_cancelling_run = True
            main.cancel(_MESSAGE)

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
        return isinstance(error, RunCancelled | RunTimedOut) or _is_request(error)

    def translate(self, error: asyncio.CancelledError) -> asyncio.CancelledError:
        """The error that the code waiting here sees: the run's, or `error` if only this task is cancelled."""
        if isinstance(error, RunCancelled | RunTimedOut):
            return error
        is_passed_on = self.is_passing and asyncio.current_task() is not self._main
        return self.error() if is_passed_on or _is_request(error) else error

    def translating(self, code: Coroutine[Any, Any, _T]) -> _Translating[_T]:
        """The code of the main task. It sees the run's error in place of asyncio's."""
        return _Translating(code, self)

    def translate_for_main(self, error: asyncio.CancelledError) -> asyncio.CancelledError:
        """The error to throw into the main code in place of asyncio's. The request is delivered by that."""
        if not isinstance(error, RunCancelled | RunTimedOut) and not _is_request(error):
            return error
        self.is_delivered = True
        return self.error()


def _is_request(error: asyncio.CancelledError) -> bool:
    return error.args == (_MESSAGE,)


class _Translating(Coroutine[Any, Any, _T]):
    """Stands between a task and its code, and translates the cancellation that the task throws."""

    def __init__(self, code: Coroutine[Any, Any, _T], cancellation: Cancellation) -> None:
        self._code, self._cancellation = code, cancellation

    def send(self, value: Any) -> Any:
        return self._code.send(value)

    def throw(self, *error: Any) -> Any:
        if isinstance(error[0], asyncio.CancelledError):
            return self._code.throw(self._cancellation.translate_for_main(error[0]))
        return self._code.throw(*error)

    def close(self) -> None:
        self._code.close()

    def __await__(self) -> Generator[Any, Any, _T]:
        return self

    def __iter__(self) -> _Translating[_T]:
        return self

    def __next__(self) -> Any:
        return self._code.send(None)


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
            task.cancel(_MESSAGE)
            if error is None:
                await asyncio.sleep(0)  # the task is cancelled here, and not at what the code awaits next
