"""The asyncio event loop that a run lives on, stepped by hand.

Theory of operation. The loop has a first-in-first-out queue of ready callbacks and nothing else: no
selector, no threads, no clock. `run_until_idle` runs what is ready until every task of the run waits for
something. What the tasks wait for comes from the run's history, one outcome at a time. Time stands still
between outcomes: `time()` is the time of the last event applied. A `call_later` asks its `TimerSource`
for a durable timer, and runs when the history says that the timer fired.

Everything here depends on nothing but the order of calls. So the same outcomes give the same interleaving in
every process. Tasks and futures hash by the order of their creation for this reason: `asyncio.TaskGroup` and
`asyncio.wait` keep them in sets, and sets of objects that hash by address have another order after a
restart.
"""

from __future__ import annotations

import asyncio
import gc
import math
import sys
import threading
import weakref
import zlib
from asyncio import events
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Iterator
from contextlib import contextmanager
from contextvars import Context, copy_context
from datetime import UTC, datetime, timedelta
from types import FrameType
from typing import Any, Protocol, TypeVar

from pyworkflow_ray.engine.refusals import ANSWERED, EAGER, REFUSED, refusing
from pyworkflow_ray.exceptions import FatalError

_T = TypeVar("_T")
_SECOND = timedelta(seconds=1)

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
"""Where a loop's `time()` is 0."""

MAX_CALLBACKS = 5_000_000
"""After so many callbacks in one activation the code counts as spinning: it would never come to rest."""


class TimerSource(Protocol):
    """What makes timers durable."""

    def start_loop_timer(self, handle: LoopTimer) -> None:
        """Keep a timer. `loop.fire` runs it later."""
        ...

    def cancel_loop_timer(self, handle: LoopTimer) -> None:
        """Forget a timer that the code no longer waits for."""
        ...


class LoopHandle(asyncio.Handle):
    """A `call_soon`, without what the base class does for debugging."""

    __slots__ = ()

    def __init__(
        self,
        callback: Callable[..., object],
        args: tuple[Any, ...],
        loop: asyncio.AbstractEventLoop,
        context: Context | None,
    ) -> None:
        self._context = copy_context() if context is None else context
        self._callback = callback
        self._args = args
        self._loop = loop
        self._cancelled = False
        self._repr = None
        self._source_traceback = None


class LoopTimer(asyncio.TimerHandle):
    """A `call_later` that knows its durable timer."""

    __slots__ = ("timer_id",)

    def __init__(
        self,
        when: float,
        callback: Callable[..., object],
        args: tuple[Any, ...],
        loop: asyncio.AbstractEventLoop,
        context: Context | None,
    ) -> None:
        super().__init__(when, callback, args, loop, context)
        self.timer_id = ""


class RunFuture(asyncio.Future[_T]):
    """A future that hashes by the order of creation in its run."""

    def __init__(self, *, loop: RunLoop) -> None:
        super().__init__(loop=loop)
        self._ordinal = loop.next_ordinal()

    def __hash__(self) -> int:
        return self._ordinal


REQUEST = "the run is cancelled"
"""The message that tells a request to cancel the run from other reasons to cancel a task."""


class RequestError(asyncio.CancelledError):
    """How the code of a run sees a request to cancel the run. It is never raised for another reason."""


class TaskCode(Coroutine[Any, Any, _T]):
    """Stands between a task and its code, and translates the cancellation that the task throws.

    Args:
        code: What the task runs.
    """

    __slots__ = ("code",)

    def __init__(self, code: Any) -> None:
        self.code = code

    def send(self, value: Any) -> Any:
        return self.code.send(value)

    def throw(self, *error: Any) -> Any:
        task = asyncio.current_task()
        if isinstance(error[0], asyncio.CancelledError) and isinstance(task, RunTask):
            return self.code.throw(task.translated(error[0]))
        return self.code.throw(*error)

    def close(self) -> None:
        self.code.close()

    def __await__(self) -> Generator[Any, Any, _T]:
        return self

    def __iter__(self) -> TaskCode[_T]:
        return self

    def __next__(self) -> Any:
        return self.code.send(None)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.code, name)  # what asyncio shows of a coroutine: its name, its frame


class RunTask(asyncio.Task[_T]):
    """A task that hashes, and is named, by the order of creation in its run."""

    shields = 0
    """How many `shield()` blocks the task is in."""
    is_cancel_deferred = False
    """Whether a request to cancel the run waits for the end of these blocks. False outside of them."""
    has_seen_request = False
    """Whether a request to cancel the run has been raised in its code."""
    is_stopped_by_request = False
    """Whether the last cancellation that was raised in its code came from such a request."""
    _asked_at: asyncio.Future[Any] | None = None
    """What the task waited for when the request came."""

    def __init__(
        self,
        coro: Generator[Any, None, _T] | Coroutine[Any, Any, _T],
        *,
        loop: RunLoop,
        name: str | None = None,
        context: Context | None = None,
    ) -> None:
        # The base class puts the task into a weak set, and so hashes it, before it returns.
        self._ordinal = loop.next_ordinal()
        name = name or f"task-{self._ordinal}"
        super().__init__(TaskCode(coro), loop=loop, name=name, context=context)
        self._run_loop = loop

    def cancel(self, msg: Any = None) -> bool:
        """As in asyncio, but a request to cancel the run waits until the task has left its shields."""
        # What a callback of the loop cancels is late (at a timeout), or beside what failed (in a group).
        is_passed_on = self._run_loop.is_cancelling_run and asyncio.current_task() is not None
        if is_passed_on or msg == REQUEST or passes_request_on(sys._getframe(1)):
            if self.shields:
                self.is_cancel_deferred = True
                return True
            self._asked_at = self._fut_waiter  # type: ignore[attr-defined]
            msg = REQUEST  # gather() and tasks that are awaited pass it on
        return super().cancel(msg)

    def note_cancellation(self, error: asyncio.CancelledError) -> bool:
        """Note a cancellation that is raised in the task's code, and say whether it comes from a request.

        asyncio may have lost the message of the request on its way, for instance in a `gather`. Then what was
        waited for when the request came has ended in a cancellation all the same.
        """
        asked_at, self._asked_at = self._asked_at, None
        is_request = isinstance(error, RequestError) or error.args == (REQUEST,) or _is_cancelled(asked_at)
        self.is_stopped_by_request = is_request
        self.has_seen_request = self.has_seen_request or is_request
        return is_request

    def translated(self, error: asyncio.CancelledError) -> asyncio.CancelledError:
        """What the task's code sees in place of asyncio's own cancellation."""
        return self._run_loop.translate(error)

    def request_error(self) -> asyncio.CancelledError:
        """The error with which code sees a request to cancel the run."""
        return self._run_loop.request_error()

    def get_coro(self) -> Any:
        """The code of the task."""
        code: Any = super().get_coro()
        return code.code if isinstance(code, TaskCode) else code

    def __hash__(self) -> int:
        return self._ordinal


class RunLoop(asyncio.AbstractEventLoop):
    """The event loop of one run.

    Args:
        seed: The run's id. Equal seeds give equal hashes, and so equal orders of sets. Different seeds keep
            the tasks of a process's many runs apart in asyncio's one set of all tasks.
    """

    timers: TimerSource
    """What makes its timers durable. It is set before any code runs."""

    def __init__(self, seed: str) -> None:
        self._ready: deque[asyncio.Handle] = deque()
        self._at = EPOCH
        self._time: float | None = 0.0
        self._ordinal = zlib.crc32(seed.encode()) << 28
        self._halted = False
        """Whether nothing runs any more. It never becomes False again."""
        self._discarded = False
        self.is_cancelling_run = False
        """Whether a request to cancel the run is just now being passed on to its tasks."""
        self.tasks: dict[RunTask[Any], None] = {}
        """The tasks that are not done, in the order of their creation."""
        self.translate: Callable[[asyncio.CancelledError], asyncio.CancelledError] = lambda error: error
        """What the code of the current task sees in place of asyncio's own cancellation."""
        self.request_error: Callable[[], asyncio.CancelledError] = asyncio.CancelledError
        """The error with which code sees a request to cancel the run."""
        self.async_generators: weakref.WeakSet[AsyncGenerator[Any, Any]] = weakref.WeakSet()
        self.on_callback_error: Callable[[dict[str, Any]], None] | None = None

    # --- stepping -------------------------------------------------------------------------------

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Make this the running loop of the thread, and restore the one before at the end."""
        outer_loop = events._get_running_loop()
        outer_hooks = sys.get_asyncgen_hooks()
        events._set_running_loop(self)
        sys.set_asyncgen_hooks(firstiter=self.async_generators.add, finalizer=self._close_generator)
        try:
            yield
        finally:
            sys.set_asyncgen_hooks(*outer_hooks)
            events._set_running_loop(outer_loop)

    def run_until_idle(self) -> None:
        """Run what is ready, and what that makes ready, until nothing is. The loop must be entered.

        It contains whatever a callback raises, `SystemExit` and `KeyboardInterrupt` included. A task keeps
        its own exception, and anything else goes to `call_exception_handler`.

        Raises:
            FatalError: The code spins: it runs for ever without waiting for anything.
        """
        ready = self._ready
        count = 0
        while ready and not self._halted:
            handle = ready.popleft()
            if handle._cancelled:
                continue
            try:
                handle._context.run(handle._callback, *handle._args)  # type: ignore[attr-defined]
            except BaseException as error:
                # The task has kept such an error as its own already. asyncio raises it once more.
                if not isinstance(error, SystemExit | KeyboardInterrupt) or not _is_of_task(handle):
                    self.call_exception_handler({"message": "Exception in callback", "exception": error})
            count += 1
            if count > MAX_CALLBACKS:
                raise FatalError(
                    f"The workflow's code ran {count} callbacks without waiting for anything that takes "
                    "time. A loop around asyncio.sleep(0) never ends in a workflow, where time stands "
                    "still while code runs. Wait with sleep(), an asyncio.Event, or in a step."
                )

    def set_time(self, at: datetime) -> None:
        """Say what time it is."""
        self._at, self._time = at, None

    def fire(self, handle: LoopTimer) -> None:
        """Make a timer's callback ready."""
        self._ready.append(handle)

    def halt(self) -> None:
        """Run nothing more, not even what is ready."""
        self._halted = True

    def discard(self) -> None:
        """Run nothing more, and report no error of what is left."""
        self._halted = self._discarded = True
        self._ready.clear()

    def next_ordinal(self) -> int:
        self._ordinal += 1
        return self._ordinal

    def _close_generator(self, generator: AsyncGenerator[Any, Any]) -> None:
        # Python calls this when the last reference goes, which is as deterministic as the code. A garbage
        # collection may call it too, at any time and in any thread. The generator is not closed then.
        if self.is_running() and not self._halted and _collecting_in != threading.get_ident():
            self.create_task(generator.aclose())

    # --- what asyncio asks of a loop --------------------------------------------------------------

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        handle = LoopHandle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self.time() + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        handle = LoopTimer(when, callback, args, self, context)
        if when <= self.time():
            self._ready.append(handle)
        elif when != math.inf:  # which is never, and needs no timer
            self.timers.start_loop_timer(handle)
        return handle

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        if isinstance(handle, LoopTimer) and handle.timer_id:
            self.timers.cancel_loop_timer(handle)

    def time(self) -> float:
        if self._time is None:
            self._time = (self._at - EPOCH) / _SECOND
        return self._time

    def create_future(self) -> RunFuture[Any]:
        return RunFuture(loop=self)

    def create_task(
        self,
        coro: Generator[Any, None, _T] | Coroutine[Any, Any, _T],
        *,
        name: str | None = None,
        context: Context | None = None,
        eager_start: bool | None = None,
    ) -> RunTask[_T]:
        _refuse_unordered(sys._getframe(1))
        if eager_start:
            raise FatalError(EAGER)
        task = RunTask(coro, loop=self, name=name, context=context)
        # asyncio holds tasks weakly. One that only waits could be collected at any moment, which a replay
        # would not repeat.
        self.tasks[task] = None
        task.add_done_callback(self._forget_task)
        return task

    def _forget_task(self, task: asyncio.Task[Any]) -> None:
        self.tasks.pop(task, None)  # type: ignore[call-overload]

    def is_running(self) -> bool:
        return events._get_running_loop() is self

    def is_closed(self) -> bool:
        return self._discarded

    def get_debug(self) -> bool:
        return False

    def set_debug(self, enabled: bool) -> None:
        pass

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        if self.on_callback_error is not None and not self._discarded:
            self.on_callback_error(context)

    def default_exception_handler(self, context: dict[str, Any]) -> None:
        self.call_exception_handler(context)


_MANY_EVENTS = 1000
_collecting_in: int | None = None
"""The thread in which the garbage collector runs; None while it does not."""


def _note_collection(phase: str, info: dict[str, int]) -> None:
    global _collecting_in  # there is one collector in a process
    _collecting_in = threading.get_ident() if phase == "start" else None


gc.callbacks.append(_note_collection)


@contextmanager
def collector_paused(events: int) -> Iterator[None]:
    """Keep the garbage collector from a long replay."""
    # A long replay makes thousands of objects that all stay. The collector would visit them again and again,
    # which takes half the time of a replay with many steps at once.
    if events < _MANY_EVENTS or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _is_cancelled(waited_for: asyncio.Future[Any] | None) -> bool:
    if waited_for is None or not waited_for.done():
        return False
    return waited_for.cancelled() or isinstance(waited_for.exception(), asyncio.CancelledError)


def passes_request_on(frame: FrameType | None) -> bool:
    """Whether asyncio cancels a task here because a request has stopped the one that waits for the task.

    The code of the one that waits may have cleaned up for a while before. So the request may be long past.
    """
    caller = frame.f_back if frame is not None else None
    if frame is None or caller is None:
        return False
    if frame.f_globals is vars(asyncio.taskgroups) and frame.f_code.co_name == "_abort":
        passed_on = caller.f_locals.get("propagate_cancellation_error")
        return isinstance(passed_on, RequestError) or _comes_of_request(caller.f_locals.get("exc"))
    if frame.f_globals is vars(asyncio.tasks) and frame.f_code.co_name == "_cancel_and_wait":
        waiter = caller.f_locals.get("waiter")  # wait_for() of Python 3.11
        waiting = asyncio.current_task()
        if isinstance(waiter, asyncio.Future) and waiter.cancelled() and isinstance(waiting, RunTask):
            return waiting.is_stopped_by_request
    return False


_LONGEST_CHAIN = 100
"""How many errors that came of one another are looked at."""


def _comes_of_request(error: BaseException | None) -> bool:
    """Whether code has raised this when a request stopped it, in the place of the request's own error."""
    for _ in range(_LONGEST_CHAIN):
        if isinstance(error, BaseExceptionGroup):
            return any(map(_comes_of_request, error.exceptions))
        if error is None or isinstance(error, RequestError):
            break
        error = error.__context__
    return isinstance(error, RequestError)


def _is_of_task(handle: asyncio.Handle) -> bool:
    return isinstance(getattr(handle._callback, "__self__", None), asyncio.Task)  # type: ignore[attr-defined]


def _refuse_unordered(frame: FrameType | None) -> None:
    while frame is not None and frame.f_globals is vars(asyncio.tasks):
        if "as_completed" in frame.f_code.co_name or "_AsCompleted" in frame.f_code.co_qualname:
            raise FatalError(
                "asyncio.as_completed() puts coroutines into a set and starts them in the order of their "
                "addresses, which a replay does not repeat. Use pyworkflow_ray.as_completed(), or pass "
                "tasks: asyncio.as_completed([asyncio.create_task(call) for call in calls])."
            )
        frame = frame.f_back


for _name in REFUSED:
    setattr(RunLoop, _name, refusing(_name))
for _name, _method in ANSWERED.items():
    setattr(RunLoop, _name, _method)
