"""Clocks that a test owns: time passes when the test says so, or when all wait for time to pass."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime


class VirtualClock:
    """A clock that stands still until it is set forward.

    Args:
        start: The first instant; the host's time by default, so that rows look as they do in production.
    """

    def __init__(self, start: datetime | None = None) -> None:
        self._now = start or datetime.now(UTC)
        self._sleepers: dict[asyncio.Event, datetime | None] = {}

    def now(self) -> datetime:
        return self._now

    async def wait(self, event: asyncio.Event, until: datetime | None) -> bool:
        if event.is_set():
            return True
        if until is not None and until <= self._now:
            return False
        self._sleepers[event] = until
        try:
            await event.wait()
        finally:
            self._sleepers.pop(event, None)
        return until is None or self._now < until

    @property
    def sleepers(self) -> int:
        """How many tasks wait for an event or for time."""
        return sum(1 for event in self._sleepers if not event.is_set())

    def next_at(self) -> datetime | None:
        """The earliest instant that a task waits for; None if no task waits for time."""
        return min((until for until in self._sleepers.values() if until is not None), default=None)

    def set_forward(self, to: datetime) -> None:
        """Set the clock to this time, and wake the tasks that wait for it."""
        self._now = max(self._now, to)
        for event, until in self._sleepers.items():
            if until is not None and until <= self._now:
                event.set()
