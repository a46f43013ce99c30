"""The signals that a run has received, kept in order until its code reads them."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import Any

from msgspec import Raw

from pyworkflow_ray.engine.events import SignalReceived


class Signals:
    """A run's signals, by name."""

    def __init__(self) -> None:
        self._queues: defaultdict[str, asyncio.Queue[Raw]] = defaultdict(asyncio.Queue)

    def answer(self, event: SignalReceived) -> None:
        """Keep a signal, or give it to the code that waits for one."""
        self._queues[event.name].put_nowait(event.payload)

    async def receive(self, name: str) -> Raw:
        """The payload of the next signal of this name."""
        return await self._queues[name].get()

    def unread(self) -> tuple[tuple[str, Raw], ...]:
        """The signals that nobody has read, with their names."""
        left: list[tuple[str, Any]] = []
        for name, queue in self._queues.items():
            while not queue.empty():
                left.append((name, queue.get_nowait()))
        return tuple(left)
