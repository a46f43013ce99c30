"""The asyncio event loop that a run lives on, stepped by hand.

Theory of operation. The loop has a first-in-first-out queue of ready callbacks and nothing else: no
selector, no threads, no clock. `run_until_idle` runs what is ready until all of the run's tasks wait for
something; what they wait for comes in from the run's history, one outcome at a time. Time stands still
between outcomes: `time()` is the time of the last event applied. A `call_later` asks its `TimerSource`
for a durable timer and runs when the history says that it fired.

Everything here depends on nothing but the order of calls, so that the same outcomes give the same
interleaving in every process. Tasks and futures hash by the order of their creation for this reason:
`asyncio.TaskGroup` and `asyncio.wait` keep them in sets, and a set of objects that hash by address would
be walked in another order after a restart.
"""

from __future__ import annotations

import asyncio
import sys
import weakref
from asyncio import events
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from contextvars import Context
from typing import Any, NoReturn, Protocol, TypeVar

from pyworkflow_ray.exceptions import FatalError

_T = TypeVar("_T")

MAX_CALLBACKS = 5_000_000
"""Callbacks in one activation after which the code is taken to spin: it would never come to rest."""


class TimerSource(Protocol):
    """Who makes timers durable."""

    def start_loop_timer(self, handle: LoopTimer) -> None:
        """Take charge of a timer; `loop.fire` runs it later."""
        ...

    def cancel_loop_timer(self, handle: LoopTimer) -> None:
        """Forget a timer that the code no longer waits for."""
        ...


class LoopTimer(asyncio.TimerHandle):
    """A `call_later` that knows the id of its durable timer."""

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


class RunTask(asyncio.Task[_T]):
    """A task that hashes, and is named, by the order of creation in its run."""

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
        super().__init__(coro, loop=loop, name=name or f"task-{self._ordinal}", context=context)

    def __hash__(self) -> int:
        return self._ordinal


class RunLoop(asyncio.AbstractEventLoop):
    """The event loop of one run."""

    def __init__(self, timers: TimerSource) -> None:
        self._timers = timers
        self._ready: deque[asyncio.Handle] = deque()
        self._now = 0.0
        self._ordinal = 0
        self._stopped = False
        self._closed = False
        self.tasks: dict[RunTask[Any], None] = {}
        self.async_generators: weakref.WeakSet[AsyncGenerator[Any, Any]] = weakref.WeakSet()
        self.on_callback_error: Callable[[dict[str, Any]], None] | None = None

    # --- stepping -------------------------------------------------------------------------------

    def run_until_idle(self) -> None:
        """Run what is ready, and what that makes ready, until nothing is.

        Contains whatever a callback raises, `SystemExit` and `KeyboardInterrupt` included: a task keeps
        its own exception, and anything else goes to `call_exception_handler`.

        Raises:
            FatalError: The code spins: it goes on for ever without waiting for anything.
        """
        ready = self._ready
        outer_loop = events._get_running_loop()
        outer_hooks = sys.get_asyncgen_hooks()
        events._set_running_loop(self)
        sys.set_asyncgen_hooks(firstiter=self.async_generators.add, finalizer=None)
        count = 0
        try:
            while ready and not self._stopped:
                handle = ready.popleft()
                if handle._cancelled:
                    continue
                try:
                    handle._context.run(handle._callback, *handle._args)  # type: ignore[attr-defined]
                except (SystemExit, KeyboardInterrupt):
                    pass  # the task that raised it has it as its exception; asyncio raises it on top
                except BaseException as error:
                    self.call_exception_handler({"message": "Exception in callback", "exception": error})
                count += 1
                if count > MAX_CALLBACKS:
                    raise FatalError(
                        f"The workflow's code ran {count} callbacks without waiting for anything that takes "
                        "time. A loop around asyncio.sleep(0) never ends in a workflow, where time stands "
                        "still while code runs: wait with sleep(), an asyncio.Event, or in a step."
                    )
        finally:
            sys.set_asyncgen_hooks(*outer_hooks)
            events._set_running_loop(outer_loop)

    def set_time(self, seconds: float) -> None:
        """Say what time it is, in seconds since 1970-01-01 UTC."""
        self._now = seconds

    def fire(self, handle: LoopTimer) -> None:
        """Make a timer's callback ready."""
        self._ready.append(handle)

    def stop(self) -> None:
        """Run nothing more, not even what is ready."""
        self._stopped = True

    def close(self) -> None:
        self._stopped = self._closed = True
        self._ready.clear()

    def next_ordinal(self) -> int:
        self._ordinal += 1
        return self._ordinal

    # --- what asyncio asks of a loop --------------------------------------------------------------

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self._now + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        handle = LoopTimer(when, callback, args, self, context)
        if when <= self._now:
            self._ready.append(handle)
        else:
            self._timers.start_loop_timer(handle)
        return handle

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        if isinstance(handle, LoopTimer) and handle.timer_id:
            self._timers.cancel_loop_timer(handle)

    def time(self) -> float:
        return self._now

    def create_future(self) -> RunFuture[Any]:
        return RunFuture(loop=self)

    def create_task(
        self,
        coro: Generator[Any, None, _T] | Coroutine[Any, Any, _T],
        *,
        name: str | None = None,
        context: Context | None = None,
        **_: Any,
    ) -> RunTask[_T]:
        task = RunTask(coro, loop=self, name=name, context=context)
        # asyncio holds tasks weakly; one that only waits could be collected at a moment of the
        # collector's choosing, which replay would not repeat.
        self.tasks[task] = None
        task.add_done_callback(self._forget_task)
        return task

    def _forget_task(self, task: asyncio.Task[Any]) -> None:
        self.tasks.pop(task, None)  # type: ignore[call-overload]

    def is_running(self) -> bool:
        return events._get_running_loop() is self

    def is_closed(self) -> bool:
        return self._closed

    def get_debug(self) -> bool:
        return False

    def set_debug(self, enabled: bool) -> None:
        pass

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        if self.on_callback_error is not None and not self._closed:
            self.on_callback_error(context)

    def default_exception_handler(self, context: dict[str, Any]) -> None:
        self.call_exception_handler(context)

    async def shutdown_asyncgens(self) -> None:
        pass


def _refuse(name: str) -> Callable[..., NoReturn]:
    def refused(self: RunLoop, *args: Any, **kwargs: Any) -> NoReturn:
        raise FatalError(
            f"loop.{name}() is not possible in a workflow function: its event loop does no real input or "
            "output and has no threads, because everything it does must come out the same in a replay. "
            "Do this in a step (@step, or @step(local=True) when it is cheap)."
        )

    refused.__name__ = name
    return refused


_REFUSED = (
    "run_forever run_until_complete call_soon_threadsafe run_in_executor set_default_executor "
    "shutdown_default_executor getaddrinfo getnameinfo create_connection create_server start_tls sendfile "
    "create_unix_connection create_unix_server create_datagram_endpoint connect_accepted_socket "
    "connect_read_pipe connect_write_pipe subprocess_shell subprocess_exec add_reader remove_reader "
    "add_writer remove_writer sock_recv sock_recv_into sock_recvfrom sock_recvfrom_into sock_sendall "
    "sock_sendto sock_connect sock_accept sock_sendfile add_signal_handler remove_signal_handler "
    "set_task_factory"
).split()
for _name in _REFUSED:
    setattr(RunLoop, _name, _refuse(_name))
