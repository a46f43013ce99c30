"""Keeping the leases of a coordinator's runs, and knowing which of them are surely held.

Theory of operation. A run belongs to a coordinator until its lease runs out, by the database's clock. All
leases are renewed by one task, long before that. It has a thread and a connection of its own, so no write of
this process delays it. A row that is locked just now is left out and tried again soon: mostly it is this
process that writes it.

A process may stand still, or be cut off from the database. Then its leases run out, and others take its runs
over. So each run has a `Hold`, which says until when the run is surely held, by a host's clock that goes on
while the process is stopped. That is a little less than the lease. After it the drive dispatches nothing,
until a renewal tells that the run is still held, or is lost. (What the drive writes, the fence stops.)
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Protocol

from loguru import logger

from pyworkflow_ray.storage.histories import FencedError
from pyworkflow_ray.storage.leases import claim_of, lost_leases, renew_leases
from pyworkflow_ray.storage.records import RunRecord
from pyworkflow_ray.storage.storages import Storage

EVERY = 3
"""Into how many parts the time of a lease is divided: it is renewed after each."""
SOON = 30
"""The same, for leases that could not be renewed."""
MARGIN = 10
"""The same, for the time before the end of a lease in which nothing is dispatched any more."""

_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def now() -> float:
    """Seconds, by a clock that runs on while the process, or the host, is stopped."""
    return time.clock_gettime(_CLOCK)


class Hold:
    """Until when a run is surely held by this process.

    Args:
        ttl, since: Its lease, and when that was asked for.
    """

    def __init__(self, run: RunRecord, ttl: timedelta, since: float) -> None:
        self._run_id, self._epoch = run.run_id, run.epoch
        self._changed = asyncio.Event()
        self.is_lost = False
        """Whether another process has the run. Nothing may be done for it any more."""
        self.extend(ttl, since)

    @property
    def is_sure(self) -> bool:
        """Whether the run is held now."""
        return not self.is_lost and now() < self._until

    def extend(self, ttl: timedelta, since: float) -> None:
        """Count on the run until the end of a lease that was asked for at the time `since`."""
        seconds = ttl.total_seconds()
        self._until = since + seconds - seconds / MARGIN
        self._changed.set()

    def lose(self) -> None:
        """Another process has the run."""
        self.is_lost = True
        self._changed.set()

    def check(self) -> None:
        """Do nothing if the run is not known to be lost.

        Raises:
            FencedError: It is.
        """
        if self.is_lost:
            raise FencedError(self._run_id, self._epoch)

    async def sure(self) -> None:
        """Return when the run is held.

        Raises:
            FencedError: Another process has it.
        """
        while not self.is_sure:
            self.check()
            self._changed.clear()
            await self._changed.wait()


class Held(Protocol):
    """A run that this process drives."""

    @property
    def run(self) -> RunRecord: ...
    @property
    def hold(self) -> Hold: ...
    def lose(self) -> None:
        """Drop the run: another process has it."""


class Renewals:
    """Renews the leases of the runs that a coordinator drives.

    Args:
        storage: Where the runs are.
        owner: The name of this process.
        ttl: How long a lease is.
        driven: The runs that are driven now.
    """

    def __init__(
        self, storage: Storage, owner: str, ttl: timedelta, driven: Callable[[], Iterable[Held]]
    ) -> None:
        self._storage, self._owner, self._ttl, self._driven = storage, owner, ttl, driven
        self._is_failing = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="pyworkflow-renewals")

    async def run(self) -> None:
        """Renew the leases; for ever."""
        while True:
            await asyncio.sleep(self._ttl.total_seconds() / EVERY)
            while not await self._renewed():
                await asyncio.sleep(self._ttl.total_seconds() / SOON)

    def close(self) -> None:
        """Renew nothing any more."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _renewed(self) -> bool:
        """Renew all leases now; whether it is known of each run that it is held or lost."""
        driven = {held.run.run_id: held for held in self._driven()}
        if not driven:
            return True
        runs = {run_id: held.run for run_id, held in driven.items()}
        since = now()
        loop = asyncio.get_running_loop()
        try:
            renewed, lost = await loop.run_in_executor(self._thread, self._renew, runs)
        except Exception as error:  # the database is away: it is tried again soon
            if not self._is_failing:
                logger.warning("The leases of {} runs cannot be renewed now: {}", len(driven), error)
            self._is_failing = True
            return False
        self._is_failing = False
        for run_id in renewed:
            driven[run_id].hold.extend(self._ttl, since)
        for run_id in lost:
            if driven[run_id].run.epoch == runs[run_id].epoch:  # it was not regained meanwhile
                driven[run_id].lose()
        gone = set(driven) - {held.run.run_id for held in self._driven()}
        return set(driven) <= {*renewed, *lost, *gone}

    def _renew(self, runs: dict[str, RunRecord]) -> tuple[list[str], list[str]]:
        ttl = self._ttl.total_seconds()
        epochs = [(run_id, run.epoch) for run_id, run in runs.items()]
        renewed = self._storage.write_aside(renew_leases(epochs, ttl, self._owner))
        missing = [
            (run_id, runs[run_id].epoch, self._names_of(runs[run_id]))
            for run_id in set(runs).difference(renewed)
        ]
        lost: list[str] = []
        if missing:
            with contextlib.suppress(Exception):  # it is asked again soon
                lost = self._storage.read(lost_leases(missing))
        return renewed, lost

    def _names_of(self, run: RunRecord) -> set[str]:
        return {claim_of(run, self._owner), run.coordinator or ""}
