"""Simulated crashes: a coordinator in a test loses its writes, its attempts and all answers.

Theory of operation. A coordinator that lives in the test's process cannot be killed. So it is cut off. Once
its `Lifetime` is over, nothing that it asks for is done: no write begins, no step goes on, and whatever it
waits for is cancelled. Then the coordinator is dropped, and its successor reads the rows.

A commit point looks at the events that each commit of the coordinator adds. For a crash before the commit,
the transaction is rolled back. For a crash after it, the transaction is committed, and the coordinator never
learns of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator
from concurrent.futures import Future
from datetime import timedelta
from typing import Any, TypeVar

import msgspec

from pyworkflow_ray.actors.dispatchers import Dispatcher
from pyworkflow_ray.actors.runner import Attempt, timeout_error
from pyworkflow_ray.actors.tickets import OnOutcome, Ticket
from pyworkflow_ray.callables import is_async
from pyworkflow_ray.engine.attempts import AttemptFailed, AttemptOutcome
from pyworkflow_ray.engine.evictions import evict_suspended
from pyworkflow_ray.engine.options import StepOptions
from pyworkflow_ray.exceptions import WorkerDiedError
from pyworkflow_ray.storage.histories import read_events
from pyworkflow_ray.storage.statements import Statement
from pyworkflow_ray.storage.storages import Storage
from pyworkflow_ray.storage.works import Steps, Work, as_work, ask, work
from pyworkflow_ray.storage.writers import Task, Writer
from pyworkflow_ray.testing.clocks import VirtualClock
from pyworkflow_ray.testing.fail_points import Committed, Delayed, FailPoints, LostWorker, Raised, When
from pyworkflow_ray.values.failures import capture

T = TypeVar("T")

_RUNS = Statement("SELECT run_id, workflow_name, position FROM runs")


class Lifetime:
    """The life of one coordinator, from its start to its crash.

    Args:
        points: The fail points at which the coordinator crashes.
        on_end: Called once on the event loop, after the crash.
    """

    def __init__(self, points: FailPoints, on_end: Callable[[], None]) -> None:
        self.points = points
        self.is_over = False
        self._on_end = on_end
        self._has_reported = False

    def end(self) -> None:
        """Crash the coordinator; call this on the event loop."""
        self.is_over = True
        if not self._has_reported:
            self._has_reported = True
            self._on_end()


class LostError(Exception):
    """The coordinator that asked for this write has crashed."""


class CrashableStorage(Storage):
    """The storage of a coordinator; after its crash nothing is written."""

    def __init__(self, storage: Storage, life: Lifetime) -> None:
        self.database, self.loads = storage.database, storage.loads
        self.writer = CrashableWriter(storage.writer, life)


class CrashableWriter(Writer):
    """The writer of a coordinator; after its crash nothing is written."""

    def __init__(self, writer: Writer, life: Lifetime) -> None:
        self._inner, self._life = writer, life

    def post(self, task: Task[T], future: asyncio.Future[T], loop: asyncio.AbstractEventLoop) -> None:
        self._inner.post(*self._crashable(task, future, loop), loop)

    def write_here(self, task: Task[T], future: asyncio.Future[T], loop: asyncio.AbstractEventLoop) -> None:
        self._inner.write_here(*self._crashable(task, future, loop), loop)

    def submit(self, task: Task[T]) -> Future[T]:
        """As that of the writer; used by what adds no event, such as the renewal of leases."""

        @work
        def guarded() -> Steps[T]:
            if self._life.is_over:
                raise LostError
            return (yield from as_work(task).at_end())

        return self._inner.submit(guarded())

    def _crashable(
        self, task: Task[T], future: asyncio.Future[T], loop: asyncio.AbstractEventLoop
    ) -> tuple[Work[T], asyncio.Future[T]]:
        """The work, refused once the coordinator is lost, and the future of an answer, cancelled then."""
        life = self._life
        decided: list[When | None] = []  # once, although a work may be run again

        @work
        def guarded() -> Steps[T]:
            if life.is_over and not decided:
                raise LostError
            if not life.points.watch_commits:
                return (yield from as_work(task).at_end())
            before = yield from _positions()
            result = yield from as_work(task)
            if not decided:
                events = yield from _added(before)
                decided.append(life.points.at_commit(events) if events else None)
                life.is_over = life.is_over or decided[0] is not None
            if decided[0] == "before_commit":
                raise LostError
            return result

        def answer(mine: asyncio.Future[T]) -> None:
            error = mine.exception()
            if decided and decided[0]:
                life.end()
            if life.is_over:
                future.cancel()
            elif future.done():
                return
            elif error is not None:
                future.set_exception(error)
            else:
                future.set_result(mine.result())

        mine: asyncio.Future[T] = loop.create_future()
        mine.add_done_callback(answer)
        return guarded(), mine


@work
def _positions() -> Steps[dict[str, int]]:
    (rows,) = yield ask(_RUNS.find_all())
    return {run_id: position for run_id, _, position in rows}


@work
def _added(before: dict[str, int]) -> Steps[list[Committed]]:
    """The events that came into the histories since."""
    added = []
    (rows,) = yield ask(_RUNS.find_all())
    for run_id, workflow, position in rows:
        begun = before.get(run_id, 0)
        if position > begun:
            for _, _, type_, data in (yield from read_events(run_id, after=begun - 1)):
                added.append(Committed(run_id, workflow, type_, msgspec.json.decode(data)))
    return added


class CrashableDispatcher:
    """Dispatches the attempts of a coordinator until it crashes, and injects the test's faults into them.

    An `async def` step that is under way at the crash stops where it is, without its `finally`. A `def` step
    runs in a thread and cannot be stopped; its outcome is dropped.

    Args:
        inner: The dispatcher that runs the attempts.
        life: The coordinator's life.
        clock: The clock by which delays pass.
    """

    def __init__(self, inner: Dispatcher, life: Lifetime, clock: VirtualClock) -> None:
        self.delayed = 0
        """How many attempts are delayed now."""
        self._inner, self._life, self._clock = inner, life, clock

    def dispatch(
        self, attempt: Attempt, function: Any, options: StepOptions, on_outcome: OnOutcome
    ) -> Ticket:
        def while_alive(outcome: AttemptOutcome) -> None:
            if not self._life.is_over:
                on_outcome(outcome)

        delay, fault = self._life.points.at_attempt(attempt)

        def begin() -> Ticket:
            return self._begin(attempt, function, options, while_alive, fault)

        return begin() if delay is None else self._begin_later(delay, attempt, begin, while_alive)

    def _begin(
        self,
        attempt: Attempt,
        function: Any,
        options: StepOptions,
        on_outcome: OnOutcome,
        fault: LostWorker | Raised | None,
    ) -> Ticket:
        if self._life.is_over:
            return _NoTicket()
        code = getattr(function, "fn", function)
        match fault:
            case Raised(error=error):
                code = _raising(error)
            case LostWorker(after_work=False):
                asyncio.get_running_loop().call_soon(on_outcome, _lost(attempt))
                return _NoTicket()
            case LostWorker():
                report = on_outcome
                on_outcome = lambda outcome: report(_lost(attempt))  # noqa: E731
        if is_async(code):
            code = _crashable_code(code, self._life)
        return self._inner.dispatch(attempt, code, options, on_outcome)

    def _begin_later(
        self, delay: Delayed, attempt: Attempt, begin: Callable[[], Ticket], on_outcome: OnOutcome
    ) -> Ticket:
        limit = None if attempt.timeout is None else timedelta(seconds=attempt.timeout)
        is_too_late = limit is not None and delay.duration >= limit
        until = self._clock.now() + (limit if limit is not None and is_too_late else delay.duration)
        ticket = _LaterTicket(
            asyncio.get_running_loop().create_task(self._clock.wait(asyncio.Event(), until))
        )
        self.delayed += 1

        def passed(task: asyncio.Task[bool]) -> None:
            self.delayed -= 1
            if task.cancelled():
                return
            if is_too_late:
                on_outcome(AttemptFailed(failure=capture(timeout_error(attempt)), cause="timeout"))
            else:
                ticket.begun = begin()

        ticket.waiting.add_done_callback(passed)
        return ticket


class _NoTicket:
    def cancel(self, force: bool = False) -> None:
        pass


class _LaterTicket:
    """The ticket of a delayed attempt."""

    def __init__(self, waiting: asyncio.Task[bool]) -> None:
        self.waiting = waiting
        self.begun: Ticket | None = None

    def cancel(self, force: bool = False) -> None:
        self.waiting.cancel()
        if self.begun is not None:
            self.begun.cancel(force)


def _lost(attempt: Attempt) -> AttemptFailed:
    died = WorkerDiedError(
        f"The worker of attempt {attempt.attempt} of step {attempt.step_id!r} died before it answered: a "
        "fail point of the test killed it."
    )
    return AttemptFailed(failure=capture(died), cause="worker_died")


def _raising(error: BaseException | type[BaseException]) -> Callable[..., Any]:
    async def raising(*args: Any, **kwargs: Any) -> Any:
        raise error

    return raising


def _crashable_code(function: Callable[..., Any], life: Lifetime) -> Callable[..., Any]:
    async def mortal(*args: Any, **kwargs: Any) -> Any:
        return await _CrashableCode(function(*args, **kwargs), life)

    return mortal


class _CrashableCode(Coroutine[Any, Any, Any]):
    """The code of a step; nothing of it runs any more once the coordinator has crashed."""

    def __init__(self, code: Coroutine[Any, Any, Any], life: Lifetime) -> None:
        self._code, self._life = code, life

    def send(self, value: Any) -> Any:
        self._stop_if_lost()
        return self._code.send(value)

    def throw(self, *error: Any) -> Any:
        self._stop_if_lost()
        return self._code.throw(*error)

    def close(self) -> None:
        if self._life.is_over:
            evict_suspended([self._code])
        else:
            self._code.close()

    def _stop_if_lost(self) -> None:
        if self._life.is_over:
            evict_suspended([self._code])
            raise asyncio.CancelledError

    def __await__(self) -> Generator[Any, Any, Any]:
        return self

    def __iter__(self) -> _CrashableCode:
        return self

    def __next__(self) -> Any:
        return self.send(None)
