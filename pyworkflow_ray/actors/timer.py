"""The timer: wakes runs whose time has come, fires schedules, and sweeps up runs that nobody drives.

The rows are the truth. The timer only holds the instant at which it looks at them next. It may be killed at
any moment: its successor looks at once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any

from loguru import logger

from pyworkflow_ray.actors.nudges import Nudge, Nudger, Placed
from pyworkflow_ray.actors.observers import LogObserver, Observer, Observers, RunWoken
from pyworkflow_ray.actors.schedulers import fire_due
from pyworkflow_ray.actors.settings import EngineSettings
from pyworkflow_ray.exceptions import UnreadableRowError
from pyworkflow_ray.storage.damages import report, set_aside_all
from pyworkflow_ray.storage.environments import job_of
from pyworkflow_ray.storage.storages import Storage
from pyworkflow_ray.storage.sweeps import due, orphans

MOST_DUE = 1000
"""Runs that are read and woken in one go."""


class Timer:
    """Wakes, fires and sweeps for all runs and schedules of a storage.

    Args:
        settings: The settings of all actors.
        nudge: How a coordinator is nudged.
        rouse: Has the timer of another environment look at its rows.
        observers: Watch the runs that it wakes, besides the log.
    """

    def __init__(
        self,
        settings: EngineSettings,
        nudge: Nudge,
        rouse: Callable[[str], None],
        observers: Iterable[Observer] = (),
    ) -> None:
        self.settings = settings
        self._rouse = rouse
        self._observers = Observers([LogObserver(), *observers])
        self._nudger = Nudger(settings, nudge)
        self._storage: Storage | None = None
        self._hurry = asyncio.Event()
        self._next_at = 0.0
        """When to look next, by the monotonic clock; `_hurry` is set when it moves forward."""
        self._sweep_at = 0.0
        self.wakes = 0
        """How many runs were nudged for so far."""

    async def run(self) -> None:
        """Look at the rows, wake what is due, and sleep until something is due or a sweep is; for ever."""
        while True:
            try:
                await self._look()
            except Exception as error:
                # The text alone: values in a traceback's frames (a password) do not belong in a log.
                logger.warning("The timer could not look for due runs; it tries again: {}", error)
                self._next_at = time.monotonic() + 1.0
            self._hurry.clear()
            pause = self._next_at - time.monotonic()
            if pause > 0:
                try:
                    async with asyncio.timeout(pause):
                        await self._hurry.wait()
                except TimeoutError:
                    pass

    def look_after_actors(self) -> None:
        """Called with each sweep: have actors that hang replaced, where there are actors."""

    async def arm(self, seconds: float) -> None:
        """Look again in this many seconds at the latest, because something will be due then."""
        at = time.monotonic() + max(seconds, 0.0)
        if at < self._next_at:
            self._next_at = at
            self._hurry.set()

    async def _look(self) -> None:
        storage = self._open()
        interval = self.settings.sweep_interval.total_seconds()
        now = time.monotonic()
        # The next look is set before the rows are read: otherwise an `arm` meanwhile would be lost.
        self._next_at = now + interval
        damages: list[UnreadableRowError] = []
        found = await asyncio.to_thread(storage.read, due(interval, MOST_DUE, damages=damages))
        is_due = [run for run in found if run.seconds_until <= 0]
        ready: list[Placed] = list(is_due)
        later = [run.seconds_until for run in found if run.seconds_until > 0]
        if len(found) + len(damages) >= MOST_DUE:
            self._next_at = now  # there may be more
        if later:
            self._next_at = min(self._next_at, now + min(later))
        if now >= self._sweep_at:
            self._sweep_at = now + interval
            lost = await asyncio.to_thread(storage.read, orphans(damages=damages))
            ready += lost
            self.look_after_actors()
        for damage in damages:
            report(damage)
        if damages:
            await storage.write(set_aside_all(damages))
            damaged = {damage.run_id for damage in damages}
            ready = [run for run in ready if run.run_id not in damaged]
        mine = self.settings.environment
        for environment in {job_of(run.environment) for run in ready} - {mine}:
            self._rouse(environment)  # its timer is at work, or has gone with its cluster
        ready = [run for run in ready if job_of(run.environment) == mine]
        self.wakes += await self._nudger.nudge(storage, ready)
        if self._observers.wants(RunWoken):
            for run in (run for run in is_due if job_of(run.environment) == mine):
                late = timedelta(seconds=-run.seconds_until)
                self._observers.report(RunWoken(run_id=run.run_id, late=late))
        await self._fire(storage, interval)

    async def _fire(self, storage: Storage, horizon: float) -> None:
        now = time.monotonic()
        fired = await fire_due(storage, self.settings.environment, horizon)
        if fired.seconds_until is not None:
            self._next_at = min(self._next_at, now + fired.seconds_until)
        for environment in fired.others:
            self._rouse(environment)
        self.wakes += await self._nudger.nudge(storage, fired.runs)
        if fired.cancelled:
            await self._nudger.nudge_ids(storage, fired.cancelled)

    def _open(self) -> Storage:
        if self._storage is None:
            self._storage = self.settings.open_storage()
        return self._storage

    async def status(self) -> dict[str, Any]:
        """What the timer has done, for tools."""
        return {"wakes": self.wakes, "next_look_in": max(self._next_at - time.monotonic(), 0.0)}
