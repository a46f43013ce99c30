"""One thread that writes for a whole process, and commits together what came together.

Theory of operation. A commit that survives a power cut costs a wait for the disk, or for a server across the
network. How much it holds matters little. So what is submitted while one commit is under way is run, in
order, in the next transaction. Each caller gets its result when that transaction has been committed.

- A work that fails takes no other along. The group is undone. Then the works in front of the guilty one, the
  guilty one, and the works behind it are run as three groups, in this order.
- When the database is locked, gone or restarting, the group is run again until it succeeds. The answer to a
  COMMIT can get lost although the commit went through. So **every work must be safe to run again**, and find
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
from pyworkflow_ray.storage.transactions import GuiltyError, Outcome, run_all
from pyworkflow_ray.storage.works import Work, as_work

T = TypeVar("T")
Task = Work[T] | Callable[[Connection], T]
"""What is submitted: a work, or a function that is called with the connection."""

MAX_GROUP = 500
_FIRST_PAUSE, _LONGEST_PAUSE = 0.01, 1.0
_WARN_EVERY = 10.0


class _Job:
    """A work, and who waits for it: a future of a thread's, or one of an event loop's."""

    __slots__ = ("future", "loop", "outcome", "work")

    def __init__(
        self,
        task: Task[Any],
        future: Future[Any] | asyncio.Future[Any],
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self.work = as_work(task)
        self.future = future
        self.loop = loop
        self.outcome = Outcome()

    def begin(self) -> bool:
        """Whether the work is still wanted."""
        return not isinstance(self.future, Future) or self.future.set_running_or_notify_cancel()

    def answer(self) -> None:
        if isinstance(self.future, asyncio.Future) and self.future.done():
            return  # whoever waited has been cancelled
        if self.outcome.error is None:
            self.future.set_result(self.outcome.result)
        else:
            self.future.set_exception(self.outcome.error)


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

    def submit(self, task: Task[T]) -> Future[T]:
        """The future of a work's result, resolved once that is committed.

        The work runs on the writer's thread, perhaps more than once. A function that is called with the
        connection must neither commit nor roll back. All must be quick: everybody waits behind them.
        Cancelling the future before it has begun drops the work.

        Raises:
            StorageError: The writer is closed.
        """
        future: Future[T] = Future()
        self._enqueue(_Job(task, future))
        return future

    async def write(self, task: Task[T]) -> T:
        """As `submit`, for the running event loop."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self.post(task, future, loop)
        return await future

    def post(self, task: Task[T], future: asyncio.Future[T], loop: asyncio.AbstractEventLoop) -> None:
        """As `submit`, from any thread, with the answer in a future of an event loop's.

        What was committed together is answered together: one wake-up of the loop for a whole group.
        """
        self._enqueue(_Job(task, future, loop))

    def write_here(self, task: Task[T], future: asyncio.Future[T], loop: asyncio.AbstractEventLoop) -> None:
        """As `post`, but in the calling thread when nobody else writes or waits to: one hand-over less."""
        if self._queued or self._closed or not self._writing.acquire(blocking=False):
            self.post(task, future, loop)
            return
        try:
            self._write([_Job(task, future, loop)])
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
        groups = [group]
        while groups:
            jobs = groups.pop(0)
            blamed = self._commit(jobs)
            if blamed is None:
                _answer(jobs)
                continue
            parts = [[job] for job in jobs]
            if blamed.owner is not None:
                parts = [jobs[: blamed.owner], [jobs[blamed.owner]], jobs[blamed.owner + 1 :]]
            groups = [part for part in parts if part] + groups

    def _commit(self, group: list[_Job]) -> GuiltyError | None:
        """Run a group until its outcomes are known, or one of several works is to blame."""
        started = time.monotonic()
        pause, warned_at = _FIRST_PAUSE, float("-inf")
        while True:
            try:
                with self._database.session() as session:
                    outcomes = run_all(session, [job.work for job in group])
            except GuiltyError as guilty:
                return guilty
            except BaseException as error:
                waited = time.monotonic() - started
                if not is_transient(error) or self._is_given_up(waited):
                    outcomes = [Outcome(error=error)] * len(group)
                else:
                    if time.monotonic() - warned_at >= _WARN_EVERY:
                        warned_at = time.monotonic()
                        self._warn(error, len(group), waited)
                    self._abandoned.wait(pause)
                    pause = min(pause * 2, _LONGEST_PAUSE)
                    continue
            for job, outcome in zip(group, outcomes, strict=True):
                met = outcome.error
                job.outcome = outcome if met is None else Outcome(error=self._translated(met))
            return None

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


def translated(error: BaseException, database: Database) -> BaseException:
    """The error as callers know it: a `StorageError` for the database's own, any other as it is."""
    if not is_database_error(error):
        return error
    translation = StorageError(f"The database {database.url} refused: {summary(error)}")
    translation.__cause__ = error
    return translation
