"""The timers that a run has started, and which of them is due first."""

from __future__ import annotations

import asyncio
import heapq
from datetime import datetime, timedelta

from pyworkflow_ray.engine.commands import StartTimer
from pyworkflow_ray.engine.events import TimerStarted
from pyworkflow_ray.engine.loop import EPOCH, LoopTimer
from pyworkflow_ray.engine.recordings import Halt
from pyworkflow_ray.engine.scopes import Scope
from pyworkflow_ray.ids import Ordinals

Waiting = LoopTimer | asyncio.Future[None] | None
"""What a timer resolves: a callback of the loop, the future of a `sleep()`, or nothing by itself."""


class Timers:
    """A run's timers, by id. They are the `TimerSource` of its loop.

    Args:
        scope: The run.
    """

    def __init__(self, scope: Scope) -> None:
        self._scope = scope
        self._ordinals = Ordinals()
        self._waiting: dict[str, Waiting] = {}
        self._due: list[tuple[datetime, int, str]] = []
        # A heap. Invariant: every timer that waits is in it. Others may be too, until `first` removes them.
        self._started: set[str] = set()

    # --- what the code asks for ---------------------------------------------------------------------

    async def sleep_until(self, resume_at: datetime, name: str) -> None:
        """Wait for an instant. One in the past returns at once and leaves no event."""
        if resume_at <= self._scope.now:
            return
        sleep_id = self._ordinals.next(name or "sleep")
        future: asyncio.Future[None] = self._scope.future()
        try:
            self._start(sleep_id, resume_at, name, future)
        except Halt:
            await self._scope.stall()
        try:
            await future
        finally:
            self.forget(sleep_id)

    def start_loop_timer(self, handle: LoopTimer) -> None:
        """Make a timer of the loop durable."""
        try:
            resume_at = EPOCH + timedelta(seconds=handle.when())
        except (OverflowError, ValueError):
            raise ValueError(
                f"A timer in a workflow must be due before the year 10000, and this one is due at "
                f"loop.time() == {handle.when()}. math.inf is never."
            ) from None
        handle.timer_id = self._ordinals.next("sleep")
        self._start(handle.timer_id, resume_at, "", handle)

    def cancel_loop_timer(self, handle: LoopTimer) -> None:
        """Forget a timer of the loop that the code no longer waits for."""
        self.forget(handle.timer_id)

    def _start(self, sleep_id: str, resume_at: datetime, name: str, waiting: Waiting) -> None:
        recorded = self._scope.recording.recorded(TimerStarted, sleep_id)
        if recorded is None:
            self._scope.recording.emit(StartTimer(sleep_id, resume_at, name))
        else:
            resume_at = recorded.resume_at
        self.keep(sleep_id, resume_at, waiting)

    # --- which of them wait ---------------------------------------------------------------------------

    def keep(self, timer_id: str, due_at: datetime, waiting: Waiting) -> None:
        """Keep a timer until it fires or is forgotten."""
        self._waiting[timer_id] = waiting
        self._started.add(timer_id)
        # The count breaks ties: timers that are due together fire in the order in which they were started.
        heapq.heappush(self._due, (due_at, len(self._started), timer_id))

    def forget(self, timer_id: str) -> None:
        """Let go of a timer that the code no longer waits for."""
        self._waiting.pop(timer_id, None)

    def fire(self, timer_id: str) -> Waiting:
        """What the timer that fires resolves; None when the code has let go of it.

        That is no divergence. A generator that is garbage-collected may let go of a timer, and that happens
        sooner in one process than in another.

        Raises:
            KeyError: There was no such timer.
        """
        if timer_id not in self._started:
            raise KeyError(timer_id)
        return self._waiting.pop(timer_id, None)

    def first(self) -> tuple[datetime, str] | None:
        """The timer that is due first, with its instant."""
        while self._due and self._due[0][2] not in self._waiting:
            heapq.heappop(self._due)
        return (self._due[0][0], self._due[0][2]) if self._due else None

    def clear(self) -> None:
        """Let go of every timer."""
        self._waiting.clear()
        self._due.clear()
