"""What looks after workflow code that does not wait: it is reported, makes room for others, and is ended.

Theory of operation. The coordinator has this look each second. Code that runs for `SLOW_FEED` without a
wait is reported with its stack, and its thread is given up: others take its place, `MOST_STUCK` at the most.
If its run is asked to cancel, or has no time left, and the code still does not wait after `STOP_AFTER`, the
code is stopped. Code that does not stop within `ABANDON_AFTER`, since it is within C, is left to its thread.
In both cases the run is ended without its code, and nothing counts of what that did since its last wait.

When no more threads can be given up, all runs whose code does not wait are set aside in the same way, so that
the others can go on. If that does not help, since the threads are within C, the process is restarted.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from datetime import timedelta
from functools import partial
from types import FrameType
from typing import TypeVar

from loguru import logger

from pyworkflow_ray.actors.drives import Drive
from pyworkflow_ray.actors.engine_threads import QUERY_PATIENCE, CodeStoppedError, EngineThreads, Stretch
from pyworkflow_ray.actors.observers import Observers, RunBlocked, of_run
from pyworkflow_ray.engine.attempts import AttemptFailed, AttemptOutcome
from pyworkflow_ray.exceptions import WorkflowError
from pyworkflow_ray.values.failures import capture

_T = TypeVar("_T")

SLOW_FEED = 5.0
"""Seconds of workflow code without a wait after which its stack is reported and its thread is given up."""
MOST_STUCK = 32
"""Threads that are given up at one time. More that compute would leave the others hardly any time."""
STOP_AFTER = 10.0
"""Seconds for which code may go on without a wait once its run is to end. Code comes to a wait within
milliseconds, unless it computes what belongs in a step; that much longer is a loop."""
_FETCHER = "pyworkflow_ray.actors.coordinator"
ABANDON_AFTER = 10.0
"""Seconds after which code that was stopped and goes on all the same is left to its thread."""
QUERY_LIMIT = 30.0
"""Seconds that a query may take. The run cannot go on meanwhile."""


class Watchdog:
    """Looks after the code of a coordinator's runs.

    Args:
        threads: The threads on which it runs.
        observers: Told of code that does not wait.
        restart: Restarts the process.
    """

    def __init__(self, threads: EngineThreads, observers: Observers, restart: Callable[[str], None]) -> None:
        self._threads = threads
        self._observers = observers
        self._restart = restart
        self._replays: set[Stretch] = set()
        """Code of runs that are not here, replayed for queries."""
        self._full_since: float | None = None
        self._looking: dict[str, asyncio.Task[None]] = {}

    # --- looking ------------------------------------------------------------------------------------

    def look(self, drives: Iterable[Drive], now: float) -> None:
        """Report code that does not wait, and end what is to end."""
        blocked = []
        for drive in drives:
            stretch = drive.code.stretch
            if stretch is not None and now - stretch.began >= SLOW_FEED:
                self._report(drive, stretch, now)
                blocked.append(drive)
        for stretch in self._replays:
            if now - stretch.began >= QUERY_LIMIT:
                stretch.stop()
        stuck = self._threads.relieve(SLOW_FEED, MOST_STUCK)
        self._see_to_room(blocked, stuck, now)
        for drive in blocked:
            if drive.run_id not in self._looking:
                task = asyncio.get_running_loop().create_task(self._see_to(drive))
                self._looking[drive.run_id] = task
                task.add_done_callback(partial(self._has_looked, drive.run_id))

    def _has_looked(self, run_id: str, _: object) -> None:
        self._looking.pop(run_id, None)

    def _report(self, drive: Drive, stretch: Stretch, now: float) -> None:
        frame = _frame_of(stretch)
        stack = "".join(traceback.format_stack(frame)[-6:]) if frame is not None else "(unknown)"
        duration = timedelta(seconds=now - stretch.began)
        self._observers.report(RunBlocked(**of_run(drive.run), duration=duration, stack=stack))

    def _see_to_room(self, blocked: list[Drive], stuck: int, now: float) -> None:
        if stuck < MOST_STUCK:
            self._full_since = None
            return
        if self._full_since is None:
            self._full_since = now
            logger.error(
                "{} engine threads run code that does not wait, which is the limit: {} run(s) are set aside",
                stuck,
                len(blocked),
            )
        for drive in blocked:
            stretch = drive.code.stretch
            if stretch is not None and not _is_in_storage(_frame_of(stretch)):
                drive.end_for(
                    WorkflowError(
                        f"The code of run {drive.run_id!r} ran for {now - stretch.began:.0f} s without a "
                        "wait, as did that of many others. It was stopped, so that other runs can go on. "
                        "Do what takes time in steps. `resume` tries again."
                    )
                )
        if now - self._full_since >= STOP_AFTER + 2 * ABANDON_AFTER:
            self._full_since = now
            self._restart(f"{stuck} engine threads are stuck within C")

    async def _see_to(self, drive: Drive) -> None:
        """End code that does not wait, if its run is to end."""
        stretch = drive.code.stretch
        if stretch is None:
            return
        if not stretch.is_query:
            await drive.seek_ending()
        now = time.monotonic()
        if drive.code.stretch is not stretch or _is_in_storage(_frame_of(stretch)):
            return  # it has come to a wait, or waits for the database, as all of us do
        if stretch.stopped_at is not None and now - stretch.stopped_at >= ABANDON_AFTER:
            drive.abandon()
            gc.enable()  # a long replay pauses the collector, and this one will not end
        elif self._is_to_stop(drive, stretch, now):
            stretch.stop()

    def _is_to_stop(self, drive: Drive, stretch: Stretch, now: float) -> bool:
        if stretch.is_query:
            return now - stretch.began >= QUERY_LIMIT
        return drive.ending is not None and now - max(stretch.began, drive.ending_since) >= STOP_AFTER

    # --- queries --------------------------------------------------------------------------------------

    async def ask(self, drive: Drive, name: str, args: bytes, kwargs: bytes) -> AttemptOutcome | None:
        """What a run that is here answers to a query; None if it cannot be asked here."""
        until = time.monotonic() + QUERY_PATIENCE
        while not drive.opened.is_set() or _is_busy(drive):
            if _is_busy(drive, SLOW_FEED) or time.monotonic() >= until:
                return _busy(drive.run_id)
            await asyncio.sleep(0.01)
        if drive.execution is None:
            return None
        try:
            limit = QUERY_PATIENCE + QUERY_LIMIT + 2 * ABANDON_AFTER
            return await asyncio.wait_for(drive.code.ask(name, args, kwargs), limit)
        except (CodeStoppedError, TimeoutError):
            return _busy(drive.run_id) if _is_busy(drive) else _too_long(drive.run_id, name)

    async def replayed(self, run_id: str, name: str, answer: Callable[[], AttemptOutcome]) -> AttemptOutcome:
        """What a run that is not here answers to a query, by a replay of its code."""

        def stoppable() -> AttemptOutcome:
            stretch = Stretch()
            self._replays.add(stretch)
            try:
                return stretch.run(answer)
            finally:
                self._replays.discard(stretch)

        future = asyncio.wrap_future(self._threads.submit(stoppable))
        try:
            return await asyncio.wait_for(future, QUERY_PATIENCE + QUERY_LIMIT + 2 * ABANDON_AFTER)
        except (CodeStoppedError, TimeoutError):
            return _too_long(run_id, name)


def _is_busy(drive: Drive, seconds: float = 0.5) -> bool:
    """Whether the run's code has been running for so long."""
    stretch = drive.code.stretch
    return stretch is not None and time.monotonic() - stretch.began >= seconds


def _busy(run_id: str) -> AttemptFailed:
    return _refusal(
        f"Run {run_id!r} answers no query now: its code has been running for a while without a wait. What "
        "takes time belongs in steps. The log of its coordinator shows where the code is."
    )


def _too_long(run_id: str, name: str) -> AttemptFailed:
    return _refusal(
        f"Query {name!r} of run {run_id!r} did not end within {QUERY_LIMIT:g} s: the code of the query, or "
        "of the run, does not come to an end."
    )


def _refusal(text: str) -> AttemptFailed:
    return AttemptFailed(failure=capture(WorkflowError(text)))


def _frame_of(stretch: Stretch) -> FrameType | None:
    return sys._current_frames().get(stretch.thread)


def _is_in_storage(frame: FrameType | None) -> bool:
    """Whether the code waits for the database, which may be away for a while."""
    while frame is not None:
        # The coordinator's module is in a thread of the code only where a blob is waited for.
        if frame.f_globals.get("__name__", "").startswith(("pyworkflow_ray.storage.", _FETCHER)):
            return True
        frame = frame.f_back
    return False
