"""A clock that the test owns: time passes when the test says so, or when all wait for it."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime


class VirtualClock:
    """Stands still until it is set forward.

    Args:
        start: The first instant; the host's time by default, so that rows look as they do in life.
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
        """How many wait for an event or for time."""
        return sum(1 for event in self._sleepers if not event.is_set())

    def next_at(self) -> datetime | None:
        """The first instant that somebody waits for."""
        return min((until for until in self._sleepers.values() if until is not None), default=None)

    def set_forward(self, to: datetime) -> None:
        """Let it be that time, and wake whoever waited for it."""
        self._now = max(self._now, to)
        for event, until in self._sleepers.items():
            if until is not None and until <= self._now:
                event.set()
