"""The signals that a run has received, kept in order until its code reads them."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import Any

from msgspec import Raw

from pyworkflow_ray.engine.events import SignalReceived
from pyworkflow_ray.engine.scopes import Scope


class Signals:
    """A run's signals, by name.

    Args:
        scope: The run.
    """

    def __init__(self, scope: Scope) -> None:
        self._scope = scope
        self._queues: defaultdict[str, asyncio.Queue[Raw]] = defaultdict(asyncio.Queue)

    async def receive(self, name: str) -> Any:
        """The payload of the next signal of this name."""
        return self._scope.codec.decode(await self._queues[name].get())

    def apply(self, event: SignalReceived) -> None:
        """Keep a signal, or give it to the code that waits for one."""
        self._queues[event.name].put_nowait(event.payload)

    def unread(self) -> tuple[tuple[str, Raw], ...]:
        """Take the signals that nobody has read, each with its name."""
        left: list[tuple[str, Raw]] = []
        for name, queue in self._queues.items():
            while not queue.empty():
                left.append((name, queue.get_nowait()))
        return tuple(left)
