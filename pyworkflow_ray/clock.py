"""The present time, and waiting for a time: a protocol, so that a test can control the time."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """A clock. The engine never reads one: it learns the time from events."""

    def now(self) -> datetime:
        """The present instant, aware and in UTC."""
        ...

    async def wait(self, event: asyncio.Event, until: datetime | None) -> bool:
        """Wait for the event until this instant (None: for ever), and return whether the event is set."""
        ...


class SystemClock:
    """The host's clock."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    async def wait(self, event: asyncio.Event, until: datetime | None) -> bool:
        if event.is_set():
            return True
        if until is None:
            return await event.wait()
        seconds = (until - self.now()).total_seconds()
        loop = asyncio.get_running_loop()
        # Cheaper than asyncio.wait_for, which this would call for every activation of every run.
        rung: list[bool] = []

        def ring() -> None:
            if not event.is_set():
                rung.append(True)
                event.set()

        alarm = loop.call_later(max(seconds, 0), ring)
        try:
            await event.wait()
        finally:
            alarm.cancel()
        return not rung
