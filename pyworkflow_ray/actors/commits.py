"""How what a drive decides becomes durable: one append for each decision, under the run's lease.

A decision is made on an engine thread, and that thread hands the append straight to the writer. The event
loop hears of it once, when the commit is through. So a turn costs two hand-overs between threads, not four.

A process that stalls beyond its lease may lose its runs to the sweep before anybody claims them. Then the
fence refuses the append, the lease is taken again, and the same decision is committed under it. If anybody
has claimed the run since, the lease cannot be taken.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import timedelta

import msgspec

from pyworkflow_ray.actors.activations import Activation
from pyworkflow_ray.actors.engine_threads import CodeStoppedError, contained
from pyworkflow_ray.actors.observers import AppendCommitted, of_run
from pyworkflow_ray.actors.renewals import Hold, now
from pyworkflow_ray.actors.services import Services
from pyworkflow_ray.exceptions import StorageError
from pyworkflow_ray.storage.histories import Append, FencedError
from pyworkflow_ray.storage.leases import claim_of, regain
from pyworkflow_ray.storage.records import RunRecord
from pyworkflow_ray.storage.works import Work

Decide = Callable[[], Activation]
"""Makes a decision; called on an engine thread."""


class HistoryWriter:
    """Writes the history of one run for the drive that holds the run's lease.

    Args:
        services: What the coordinator lends.
        run: The run's row, as it was claimed.
        hold: Until when the run is surely held.
    """

    def __init__(self, services: Services, run: RunRecord, hold: Hold) -> None:
        self._services, self._hold = services, hold
        self.run = run
        """The run's row as it was claimed. Each append names its epoch, and is refused under another one."""
        self.position = run.position
        """The position of the next event. It moves only after a commit, so one commit is made at a time."""
        self._committed: asyncio.Future[Activation] | None = None

    def regain(self, epoch: int, since: float) -> None:
        """Write under a new lease of the same claim, which was asked for at the time `since`."""
        self.run = msgspec.structs.replace(self.run, epoch=epoch)
        self._hold.extend(self._services.settings.lease_ttl, since)

    async def commit(self, decide: Decide) -> Activation:
        """Have a decision made and committed; the activation, once it is durable.

        Raises:
            FencedError: Another claim has the run. Nothing was written.
            UnreadError: The run cannot end: something has come for it meanwhile. Nothing was written.
            StorageError: The storage is closed.
            CodeStoppedError: The code that decides was stopped, or abandoned. Nothing was written.
            Exception: What the decision raised. Nothing was written.
        """
        made: list[Activation] = []

        def decided() -> Activation:
            if not made:
                activation = decide()
                activation.prepare(self.run, self._services.settings, self._services.pack)
                made.append(activation)
            return made[0]

        while True:
            run = self.run
            try:
                activation = await self._commit(run, decided)
                break
            except FencedError:
                if self.run.epoch == run.epoch and not await self._hold_again():
                    raise
        self.position += activation.appended
        if activation.posted_at and self._services.observers.wants(AppendCommitted):
            activation.moments.append(
                AppendCommitted(
                    **of_run(self.run),
                    events=activation.appended,
                    duration=timedelta(seconds=time.monotonic() - activation.posted_at),
                )
            )
        return activation

    def abandon(self) -> None:
        """Give up the decision that is being made: it is not written, should it be made after all."""
        if self._committed is not None and not self._committed.done():
            self._committed.set_exception(CodeStoppedError())

    async def _commit(self, run: RunRecord, decide: Decide) -> Activation:
        loop = asyncio.get_running_loop()
        committed: asyncio.Future[Activation] = loop.create_future()
        self._committed = committed
        self._services.threads.submit(self._decide_and_post, run, decide, committed, loop)
        return await committed

    async def _hold_again(self) -> bool:
        """Take the lease again that a sweep has taken from this claim; whether it is there."""
        run, since = self.run, now()
        epoch = await self._services.storage.write(regaining(self._services, run))
        if epoch is not None:
            self.regain(epoch, since)
        return self.run.epoch != run.epoch  # or whoever woke the run has taken the lease meanwhile

    def _decide_and_post(
        self,
        run: RunRecord,
        decide: Decide,
        committed: asyncio.Future[Activation],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        try:
            activation = decide()
            if committed.done():
                return  # it was abandoned
            new = append_of(run, self.position, activation)
        except BaseException as error:
            loop.call_soon_threadsafe(_answer, committed, None, contained(error))
            return
        if new is None:
            loop.call_soon_threadsafe(_answer, committed, activation, None)
            return
        activation.appended = len(new.events)
        activation.posted_at = time.monotonic()

        try:
            self._services.storage.writer.write_here(activation.written(new), committed, loop)
        except StorageError as error:  # it was closed
            loop.call_soon_threadsafe(_answer, committed, None, error)


def regaining(services: Services, run: RunRecord) -> Work[int | None]:
    """The work that takes the lease again of a run that is driven here; its result is that of `regain`."""
    ttl = services.settings.lease_ttl.total_seconds()
    owner = claim_of(run, services.owner)
    return regain(run.run_id, owner, run.epoch, ttl, coordinator=run.coordinator or "")


def append_of(run: RunRecord, position: int, activation: Activation) -> Append | None:
    """What an activation adds to its run; None if that is nothing.

    A run that is not durable has its start, its end and its reading of the inbox written, and no event.
    """
    is_empty = not (activation.rows or activation.changes or activation.read_inbox or activation.outgoing)
    releases = activation.end is not None
    is_final = activation.end is not None and activation.end.is_final
    is_visible = releases or activation.read_inbox or "started_at" in activation.changes
    if is_empty or not (run.durable or is_visible):
        return None
    return Append(
        run_id=run.run_id,
        epoch=run.epoch,
        position=position,
        events=activation.rows if run.durable else (),
        changes=activation.changes,
        release=releases,
        leaves_attempts=activation.leaves_attempts,
        blobs=activation.blobs,
        read_inbox=activation.read_inbox,
        hooks_disposed=activation.disposed,
        schedule_id=run.schedule_id,
        known_unread=activation.known_unread if run.durable and is_final else None,
    )


def _answer(
    future: asyncio.Future[Activation], activation: Activation | None, error: BaseException | None
) -> None:
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    elif activation is not None:
        future.set_result(activation)
