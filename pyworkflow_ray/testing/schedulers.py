"""Schedulers of tests: they fire schedules by the test's clock, in place of the timer actor."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from datetime import timedelta

from pyworkflow_ray.actors.schedulers import Looked, fire_due
from pyworkflow_ray.storage.storages import Storage
from pyworkflow_ray.testing.clocks import VirtualClock

HORIZON = timedelta(days=400).total_seconds()


class Scheduler:
    """Fires the schedules of a test environment.

    Args:
        storage: The storage with the schedules.
        clock: The clock that they fire by.
        wake: Wakes the runs that were started or asked to cancel.
    """

    def __init__(
        self, storage: Storage, clock: VirtualClock, wake: Callable[[Looked], Awaitable[None]]
    ) -> None:
        self._storage, self._clock, self._wake = storage, clock, wake
        self._event = asyncio.Event()
        self._firing: asyncio.Task[None] | None = None
        self._is_looking = False

    @property
    def sleepers(self) -> int:
        """How many tasks wait for time here: one, after the first schedule was made."""
        return int(self._firing is not None and not self._firing.done())

    @property
    def is_resting(self) -> bool:
        """Whether everything that is due has fired."""
        return not self._is_looking and not self._event.is_set()

    def look(self) -> None:
        """Look for due schedules: one was made or changed, or a run of one has ended."""
        self._event.set()
        if self._firing is None:
            self._firing = asyncio.get_running_loop().create_task(self._run())

    def look_again(self) -> None:
        """As `look`, if there was a schedule before."""
        if self._firing is not None:
            self._event.set()

    async def close(self) -> None:
        """Stop firing."""
        if self._firing is not None:
            self._firing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._firing

    async def _run(self) -> None:
        while True:
            self._is_looking = True
            self._event.clear()
            looked = await fire_due(self._storage, "", HORIZON, self._clock.now)
            await self._wake(looked)
            ahead = HORIZON if looked.seconds_until is None else looked.seconds_until
            until = self._clock.now() + timedelta(seconds=ahead)
            self._is_looking = False
            await self._clock.wait(self._event, until)
