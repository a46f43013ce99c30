"""The threads on which the code of runs is fed, and stretches of code that can be stopped.

Theory of operation. Workflow code should come to rest within milliseconds, but nothing keeps it from a loop
that never ends. A thread that is busy for too long is *given up*: another one takes its place, so that other
runs go on. When its code ends after all, the thread ends too.

A `Stretch` is the code that runs on a thread between two waits. `stop` raises `CodeStopped` in it, which a
loop in Python sees at once. Code within C, such as `time.sleep`, sees it when it returns to Python.
"""

from __future__ import annotations

import asyncio
import atexit
import ctypes
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Executor, Future
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from pyworkflow_ray.exceptions import WorkflowError
from pyworkflow_ray.values.error_pickles import text_of
from pyworkflow_ray.values.failures import error_type_name

_T = TypeVar("_T")

QUERY_PATIENCE = 10.0
"""Seconds for which a query waits for the code of its run to come to a wait."""
PATIENCE_AT_EXIT = 5.0
"""Seconds for which the end of the process waits for code that runs just then."""


class CodeStopped(KeyboardInterrupt):
    """Raised in workflow code that is to end where it is. A task passes it on, as it does no other error."""


class CodeStoppedError(Exception):
    """A stretch of code was stopped. What it has decided does not count."""


class Stretch:
    """Code that runs on the thread that makes this, from now until it waits or ends.

    Args:
        is_query: Whether it answers a query, and decides nothing.
    """

    def __init__(self, *, is_query: bool = False) -> None:
        self.is_query = is_query
        self.began = time.monotonic()
        self.thread = threading.get_ident()
        self.stopped_at: float | None = None
        """When it was first told to stop; None if it was not."""
        self._guard = threading.Lock()
        self._is_over = False

    def run(self, work: Callable[[], _T]) -> _T:
        """What the code returns or raises.

        Raises:
            CodeStoppedError: It was stopped, whatever it made of that.
        """
        try:
            try:
                result = work()
            finally:
                self._leave()
        except BaseException as error:
            self._leave()  # again: `CodeStopped` may have come between the code and the first time
            if self.stopped_at is not None:
                raise CodeStoppedError from None
            if isinstance(error, Exception):
                raise
            raise contained(error) from error
        if self.stopped_at is not None:
            raise CodeStoppedError
        return result

    def _leave(self) -> None:
        """Have nothing raised in this thread any more."""
        while True:
            try:
                with self._guard:
                    self._is_over = True
                    _raise_in(self.thread, None)
                return
            except CodeStopped:  # it came just now
                pass

    def stop(self) -> None:
        """Have the code end where it is. It may catch what is raised, so this is called again and again."""
        with self._guard:
            if not self._is_over:
                self.stopped_at = self.stopped_at or time.monotonic()
                _raise_in(self.thread, CodeStopped)


def contained(error: BaseException) -> Exception:
    """The error, or one in its place if it would end the process whose event loop it reaches."""
    if isinstance(error, Exception):
        return error
    return WorkflowError(f"Code of the workflow raised {error_type_name(type(error))}: {text_of(error)}")


def _raise_in(thread: int, error: type[BaseException] | None) -> None:
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread), None if error is None else ctypes.py_object(error)
    )


class CodePlace:
    """Where one run's code runs: on one thread at a time.

    Args:
        threads: The threads that there are.
    """

    def __init__(self, threads: Executor) -> None:
        self.stretch: Stretch | None = None
        """The code that is running; None while it waits."""
        self._threads = threads
        self._lock = threading.Lock()
        self._answer: asyncio.Future[Any] | None = None

    async def on_thread(self, call: Callable[[], _T]) -> _T:
        """Make a call, which `run`s code, on a thread."""
        answer: asyncio.Future[_T] = asyncio.wrap_future(self._threads.submit(call))
        self._answer = answer
        return await answer

    def run(self, work: Callable[[], _T], *, is_query: bool = False) -> _T:
        """Run code on this thread, when no other code of the run runs.

        Raises:
            CodeStoppedError: It was stopped, or what ran before does not come to an end.
        """
        lock = self._lock
        until = time.monotonic() + QUERY_PATIENCE if is_query else None
        while not lock.acquire(timeout=1.0):
            if lock is not self._lock or (until is not None and time.monotonic() >= until):
                raise CodeStoppedError
        try:
            stretch = self.stretch = Stretch(is_query=is_query)
            return stretch.run(work)
        finally:
            if lock is self._lock:
                self.stretch = None
            lock.release()

    def abandon(self) -> None:
        """Let other code run beside what is running now, which may never end."""
        self.stretch, self._lock = None, threading.Lock()
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(CodeStoppedError())


class _Worker:
    """A thread of the pool."""

    def __init__(self) -> None:
        self.busy_since: float | None = None
        self.is_given_up = False
        self.thread: threading.Thread | None = None


_Item = tuple[Future[Any], Callable[..., Any], tuple[Any, ...], dict[str, Any]]


class _Pool:
    """What the threads share. They do not hold the `EngineThreads`, which may be collected."""

    def __init__(self) -> None:
        self.queue: SimpleQueue[_Item | None] = SimpleQueue()
        self.lock = threading.Lock()
        self.idle = 0
        self.workers: set[_Worker] = set()
        self.made = 0

    def work(self, me: _Worker) -> None:
        while (item := self.queue.get()) is not None:
            me.busy_since = time.monotonic()
            _run(*item)
            del item  # nothing of it is to live until the next comes
            me.busy_since = None
            with self.lock:
                if me.is_given_up:
                    self.workers.discard(me)
                    return
                if self.queue.empty():
                    self.idle += 1
        self.queue.put(None)  # for the next thread


def _run(future: Future[Any], call: Callable[..., Any], args: Any, kwargs: Any) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = call(*args, **kwargs)
    except BaseException as error:
        future.set_exception(error)
    else:
        future.set_result(result)


class EngineThreads(Executor):
    """A pool of threads, in which a thread that is busy for too long is given up and replaced.

    Args:
        size: How many threads there are, besides those that were given up.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._pool = _Pool()
        weakref.finalize(self, self._pool.queue.put, None).atexit = False
        _pools.add(self._pool)

    def submit(self, fn: Callable[..., _T], /, *args: Any, **kwargs: Any) -> Future[_T]:
        """Call a function on a thread of the pool."""
        future: Future[_T] = Future()
        pool = self._pool
        pool.queue.put((future, fn, args, kwargs))
        with pool.lock:
            if pool.idle:
                pool.idle -= 1
            else:
                self._grow()
        return future

    def _grow(self) -> None:
        """Begin another thread, unless there are enough. The pool is locked."""
        pool = self._pool
        if sum(not worker.is_given_up for worker in pool.workers) >= self._size:
            return
        worker = _Worker()
        pool.workers.add(worker)
        # A daemon: code that never ends must not keep the process from its end.
        worker.thread = threading.Thread(
            target=pool.work, args=(worker,), name=f"pyworkflow-engine_{pool.made}", daemon=True
        )
        pool.made += 1
        worker.thread.start()

    def relieve(self, after: float, most: int) -> int:
        """Give up threads that have been busy for `after` seconds; how many are given up now.

        Args:
            most: No more than so many are given up at one time.
        """
        now, pool = time.monotonic(), self._pool
        with pool.lock:
            given_up = sum(worker.is_given_up for worker in pool.workers)
            for worker in list(pool.workers):
                since = worker.busy_since
                if given_up >= most:
                    break
                if not worker.is_given_up and since is not None and now - since >= after:
                    worker.is_given_up = True
                    given_up += 1
                    if not pool.queue.empty():
                        self._grow()
        return given_up

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the threads once they have nothing to do."""
        pool = self._pool
        while cancel_futures:
            try:
                item = pool.queue.get_nowait()
            except Empty:
                break
            if item is not None:
                item[0].cancel()
        pool.queue.put(None)
        threads = [worker.thread for worker in list(pool.workers)]
        for thread in threads if wait else ():
            if thread is not None:
                thread.join()


_pools: weakref.WeakSet[_Pool] = weakref.WeakSet()


def _wait_for_busy() -> None:
    until = time.monotonic() + PATIENCE_AT_EXIT
    workers = [worker for pool in _pools for worker in list(pool.workers)]
    while time.monotonic() < until and any(each.busy_since and not each.is_given_up for each in workers):
        time.sleep(0.01)


atexit.register(_wait_for_busy)
