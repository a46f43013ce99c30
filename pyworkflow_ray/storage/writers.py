"""One thread writes for a whole process, and commits many works in one transaction.

Theory of operation. A commit that survives a power cut costs a wait for the disk, or for a server across the
network. The number of works in it matters little. So the works that are submitted during one commit run, in
order, in the next transaction. Each caller gets its result when that transaction is committed.

- A work that fails does not make others fail. The group is undone. Then the works before the guilty one, the
  guilty one, and the works after it are run as three groups, in this order.
- When the group and another transaction wait for each other, the database undoes one of them. Rows are locked
  in one order, so that is rare (`locks`). The halves of the group are then run as two groups, at once.
- When the database is locked, gone or restarting, the group is run again until it succeeds. The answer to a
  COMMIT can get lost although the commit went through. So **every work must be safe to run again**: a work
  that finds what it wrote before must count that as a success.
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
from pyworkflow_ray.storage.dialects import is_database_error, is_deadlock, is_transient, summary
from pyworkflow_ray.storage.transactions import GuiltyError, Outcome, run_all
from pyworkflow_ray.storage.works import Work, as_work

T = TypeVar("T")
Task = Work[T] | Callable[[Connection], T]
"""What is submitted: a work, or a function that is called with the connection."""

MAX_GROUP = 500
_FIRST_PAUSE, _LONGEST_PAUSE = 0.01, 1.0
_WARN_EVERY = 10.0


class _Job:
    """A work and the future that waits for it. The future is a thread's, or an event loop's (`loop`)."""

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
            return  # the caller was cancelled while it waited
        if self.outcome.error is None:
            self.future.set_result(self.outcome.result)
        else:
            self.future.set_exception(self.outcome.error)


class Writer:
    """Runs writes on the thread ``pyworkflow-writer``, in the order in which they were submitted.

    Args:
        database: The database to write to.
        give_up_after: Seconds after which a write fails if the database stays unreachable; None means never.
    """

    def __init__(self, database: Database, *, give_up_after: float | None = None) -> None:
        self._database = database
        self._give_up_after = give_up_after
        self._queue: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        # Protects `_closed`, `_thread` and `_queued`. A job enters the queue only under it, so none comes
        # after the None by which `close` stops the thread.
        self._submitting = threading.Lock()
        # Its holder alone writes: the writer's thread, or a caller of `write_here`.
        self._writing = threading.Lock()
        # How many jobs were submitted and are not yet part of a group. `write_here` reads it without the
        # lock: it writes in its own thread only if no job waits.
        self._queued = 0
        self._thread: threading.Thread | None = None
        self._closed = False
        self._abandoned = threading.Event()

    def submit(self, task: Task[T]) -> Future[T]:
        """The future of a work's result. It is resolved when the work is committed.

        The work runs on the writer's thread, perhaps more than once. A function that is called with the
        connection must neither commit nor roll back. Works must be quick, since all later ones wait for them.
        A future that is cancelled before its work has begun drops the work.

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
        """As `submit`, from any thread; the result goes to a future of the event loop `loop`.

        A group that was committed together is answered together, with one wake-up of the loop.
        """
        self._enqueue(_Job(task, future, loop))

    def write_here(self, task: Task[T], future: asyncio.Future[T], loop: asyncio.AbstractEventLoop) -> None:
        """As `post`, but written in the calling thread if no other write runs or waits.

        This saves the hand-over to the writer's thread.
        """
        if self._queued or self._closed or not self._writing.acquire(blocking=False):
            self.post(task, future, loop)
            return
        job = _Job(task, future, loop)
        try:
            self._write([job])
        finally:
            self._writing.release()
        # Not before the release: whoever hears the answer writes again, and would find the lock taken.
        _answer([job])

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
        """Write what is queued, then stop. What is not written within `timeout` seconds fails."""
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
            _answer(group)
            del job, group  # A waiting writer must not keep the last results alive.

    def _group(self, first: _Job) -> tuple[list[_Job], bool]:
        """The queued jobs that are still wanted, and whether the writer must stop after them."""
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
        """Run a group until the outcome of each of its jobs is known."""
        groups = [group]
        while groups:
            parts = self._commit(groups.pop(0))
            groups = [part for part in parts if part] + groups

    def _commit(self, group: list[_Job]) -> list[list[_Job]]:
        """Run a group until its outcomes are known; or else the groups to run instead of it, in order."""
        started = time.monotonic()
        pause, warned_at = _FIRST_PAUSE, float("-inf")
        while True:
            try:
                with self._database.session() as session:
                    outcomes = run_all(session, [job.work for job in group])
            except GuiltyError as guilty:
                if (owner := guilty.owner) is None:
                    return [[job] for job in group]
                return [group[:owner], [group[owner]], group[owner + 1 :]]
            except BaseException as error:
                if is_deadlock(error) and not self._abandoned.is_set():
                    if len(group) > 1:
                        return [group[: len(group) // 2], group[len(group) // 2 :]]
                    continue  # the other transaction was let through, and this one may follow
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
            return []

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
        with contextlib.suppress(RuntimeError):  # the loop is closed, so nothing waits there
            loop.call_soon_threadsafe(_answer_all, jobs)


def _answer_all(jobs: list[_Job]) -> None:
    for job in jobs:
        job.answer()


def translated(error: BaseException, database: Database) -> BaseException:
    """The error as callers see it: a `StorageError` for a database's error; any other error is unchanged."""
    if not is_database_error(error):
        return error
    translation = StorageError(f"The database {database.url} refused: {summary(error)}")
    translation.__cause__ = error
    translation.is_outage = is_transient(error)
    return translation
