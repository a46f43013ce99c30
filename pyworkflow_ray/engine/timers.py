"""The timers that a run has started, and which of them is due first."""

from __future__ import annotations

import asyncio
import heapq
from datetime import datetime

from pyworkflow_ray.engine.loop import LoopTimer

Waiting = LoopTimer | asyncio.Future[None] | None
"""What a timer resolves: a callback of the loop's, the future of a `sleep()`, or nothing by itself."""


class Timers:
    """A run's timers by id."""

    def __init__(self) -> None:
        self._waiting: dict[str, Waiting] = {}
        self._due: list[tuple[datetime, int, str]] = []
        self._started: set[str] = set()

    def start(self, sleep_id: str, resume_at: datetime, waiting: Waiting) -> None:
        """Keep a timer until it fires or is forgotten."""
        self._waiting[sleep_id] = waiting
        self._started.add(sleep_id)
        # The count breaks ties: timers due together fire in the order in which they were started.
        heapq.heappush(self._due, (resume_at, len(self._started), sleep_id))

    def is_waiting(self, sleep_id: str) -> bool:
        """Whether this timer was started, and has neither fired nor been let go."""
        return sleep_id in self._waiting

    def forget(self, sleep_id: str) -> None:
        """Let a timer go that the code no longer waits for."""
        self._waiting.pop(sleep_id, None)

    def fire(self, sleep_id: str) -> Waiting | None:
        """What the timer that fires resolves; None when the code has let it go.

        That is no divergence: a timer may be let go by a generator that is garbage-collected, sooner in
        one process than in another.

        Raises:
            KeyError: There was no such timer.
        """
        if sleep_id not in self._started:
            raise KeyError(sleep_id)
        return self._waiting.pop(sleep_id, None)

    def first(self) -> tuple[datetime, str] | None:
        """The timer that is due first, with its instant."""
        while self._due and self._due[0][2] not in self._waiting:
            heapq.heappop(self._due)
        return (self._due[0][0], self._due[0][2]) if self._due else None

    def clear(self) -> None:
        """Let every timer go."""
        self._waiting.clear()
        self._due.clear()
