"""One thread that writes for a whole process, and commits together what came together.

Theory of operation. A commit that survives a power cut costs a wait for the disk (or for the server), and
little depends on how much it holds. So whatever is submitted while one commit is under way is run, in
order, in the next transaction, and each caller learns its result only when that has been committed.

- A write that raises takes nobody along: the group is rolled back and run again with a savepoint around
  each write, so that only the guilty one is undone and told.
- When the database is locked, gone or restarting, the group is run again until it succeeds. The answer to
  a COMMIT can get lost although it went through; so **every write must be safe to run again**, and find
  its own traces to be a success.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from loguru import logger
from sqlalchemy.engine import Connection

from pyworkflow_ray.exceptions import StorageError
from pyworkflow_ray.storage.databases import Database
from pyworkflow_ray.storage.dialects import is_database_error, is_transient, summary

T = TypeVar("T")

MAX_GROUP = 500
_FIRST_PAUSE, _LONGEST_PAUSE = 0.01, 1.0
_WARN_EVERY = 10.0


class _Job:
    """A write and who waits for it: a future of a thread's, or one of an event loop's."""

    __slots__ = ("error", "future", "loop", "result", "write")

    def __init__(
        self,
        write: Callable[[Connection], Any],
        future: Future[Any] | asyncio.Future[Any],
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self.write = write
        self.future = future
        self.loop = loop
        self.result: Any = None
        self.error: BaseException | None = None

    def begin(self) -> bool:
        """Whether the write is still wanted."""
        return not isinstance(self.future, Future) or self.future.set_running_or_notify_cancel()

    def answer(self) -> None:
        if isinstance(self.future, asyncio.Future) and self.future.done():
            return  # whoever waited has been cancelled
        if self.error is None:
            self.future.set_result(self.result)
        else:
            self.future.set_exception(self.error)


class _GuiltyWriteError(Exception):
    """One write of the group raised: run the group again and find out which."""


class Writer:
    """Runs writes on the thread ``pyworkflow-writer``, in the order in which they were submitted.

    Args:
        database: Where to.
        give_up_after: Seconds after which a write fails if the database stays away; None is never.
    """

    def __init__(self, database: Database, *, give_up_after: float | None = None) -> None:
        self._database = database
        self._give_up_after = give_up_after
        self._queue: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._submitting = threading.Lock()
        self._writing = threading.Lock()
        self._queued = 0
        self._thread: threading.Thread | None = None
        self._closed = False
        self._abandoned = threading.Event()

    def submit(self, write: Callable[[Connection], T]) -> Future[T]:
        """The future of what `write(connection)` returns, resolved once it is committed.

        `write` runs on the writer's thread in a transaction that it must neither commit nor roll back,
        perhaps more than once. It must be quick: everybody waits behind it. Cancelling the future before
        it has begun drops the write.

        Raises:
            StorageError: The writer is closed.
        """
        future: Future[T] = Future()
        self._enqueue(_Job(write, future))
        return future

    async def write(self, write: Callable[[Connection], T]) -> T:
        """As `submit`, for the running event loop."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self.post(write, future, loop)
        return await future

    def post(
        self, write: Callable[[Connection], T], future: asyncio.Future[T], loop: asyncio.AbstractEventLoop
    ) -> None:
        """As `submit`, from any thread, with the answer in a future of an event loop's.

        What was committed together is answered together: one wake-up of the loop for a whole group.
        """
        self._enqueue(_Job(write, future, loop))

    def write_here(
        self, write: Callable[[Connection], T], future: asyncio.Future[T], loop: asyncio.AbstractEventLoop
    ) -> None:
        """As `post`, but in the calling thread when nobody else writes or waits to: one hand-over less."""
        if self._queued or self._closed or not self._writing.acquire(blocking=False):
            self.post(write, future, loop)
            return
        try:
            self._write([_Job(write, future, loop)])
        finally:
            self._writing.release()

    def _enqueue(self, job: _Job) -> None:
        with self._submitting:
            if self._closed:
                raise StorageError(
                    f"The storage {self._database.url} is closed; nothing more can be written."
                )
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="pyworkflow-writer", daemon=True)
                self._thread.start()
            self._queued += 1
            self._queue.put(job)

    def close(self, timeout: float | None = 10.0) -> None:
        """Write what is queued, then stop; what is not written after `timeout` seconds fails."""
        with self._submitting:
            self._closed = True
            thread = self._thread
            self._queue.put(None)
        if thread is None or thread is threading.current_thread():
            return
        thread.join(timeout)
        if thread.is_alive():
            self._abandoned.set()
            thread.join(5.0)

    def _run(self) -> None:
        is_last = False
        while not is_last:
            job = self._queue.get()
            if job is None:
                return
            with self._writing:
                group, is_last = self._group(job)
                if group:
                    self._write(group)
            del job, group  # A waiting writer must not keep the last results alive.

    def _group(self, first: _Job) -> tuple[list[_Job], bool]:
        """What is queued by now and still wanted, and whether the writer is to stop behind it."""
        job: _Job | None = first
        taken, group = 0, []
        while job is not None:
            taken += 1
            if job.begin():
                group.append(job)
            if len(group) == MAX_GROUP:
                break
            try:
                job = self._queue.get_nowait()
            except queue.Empty:
                break
        with self._submitting:
            self._queued -= taken
        return group, job is None

    def _write(self, group: list[_Job]) -> None:
        started = time.monotonic()
        pause, warned_at = _FIRST_PAUSE, float("-inf")
        one_by_one = False
        while True:
            try:
                self._attempt(group, one_by_one=one_by_one)
                break
            except _GuiltyWriteError:
                one_by_one = True
                continue
            except BaseException as error:
                waited = time.monotonic() - started
                if not is_transient(error) or self._is_given_up(waited):
                    _fail(group, self._translated(error))
                    break
                if time.monotonic() - warned_at >= _WARN_EVERY:
                    warned_at = time.monotonic()
                    self._warn(error, len(group), waited)
            self._abandoned.wait(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)
        _answer(group)

    def _attempt(self, group: list[_Job], *, one_by_one: bool) -> None:
        with self._database.write() as connection:
            for job in group:
                job.error = None
                if one_by_one:
                    self._run_isolated(job, connection)
                    continue
                try:
                    job.result = job.write(connection)
                except BaseException as error:
                    if is_transient(error):
                        raise
                    raise _GuiltyWriteError from error

    def _run_isolated(self, job: _Job, connection: Connection) -> None:
        try:
            with connection.begin_nested():
                job.result = job.write(connection)
        except BaseException as error:
            if is_transient(error):
                raise
            job.error = self._translated(error)

    def _is_given_up(self, waited: float) -> bool:
        return self._abandoned.is_set() or (self._give_up_after is not None and waited >= self._give_up_after)

    def _translated(self, error: BaseException) -> BaseException:
        return translated(error, self._database)

    def _warn(self, error: BaseException, count: int, waited: float) -> None:
        logger.warning(
            "The database {} has taken no writes for {:.0f} s ({} waiting in this group): {}. Trying again.",
            self._database.url,
            waited,
            count,
            summary(error),
        )


def _answer(group: list[_Job]) -> None:
    by_loop: dict[asyncio.AbstractEventLoop, list[_Job]] = {}
    for job in group:
        if job.loop is None:
            job.answer()
        else:
            by_loop.setdefault(job.loop, []).append(job)
    for loop, jobs in by_loop.items():
        with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody waits there
            loop.call_soon_threadsafe(_answer_all, jobs)


def _answer_all(jobs: list[_Job]) -> None:
    for job in jobs:
        job.answer()


def _fail(group: list[_Job], error: BaseException) -> None:
    for job in group:
        job.error = error


def translated(error: BaseException, database: Database) -> BaseException:
    """The error as callers know it: a `StorageError` for the database's own, any other as it is."""
    if not is_database_error(error):
        return error
    translation = StorageError(f"The database {database.url} refused: {summary(error)}")
    translation.__cause__ = error
    return translation
