"""The coordinator: an actor that drives the runs placed with it.

Theory of operation. `__init__` only stores its arguments: an exception there would end a detached actor for
good. Then the actor opens itself, after every restart too: it claims what its predecessor of the same name
held, and goes on with it. Runs come in by `accept` (a client has had a run accepted) and by `wake` (something
has come for a run, or a run is due). One background task renews the leases of all runs at once (`renewals`).
Another one reports blocked code, and ends the process when it has had nothing to do for a while.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import secrets
import threading
import time
import traceback
from collections.abc import Collection, Iterable
from datetime import datetime
from functools import partial
from typing import Any

import msgspec
from loguru import logger

from pyworkflow_ray.actors.activations import RunEnd
from pyworkflow_ray.actors.codes import CodeLoader, FetchBundle, Packer
from pyworkflow_ray.actors.commits import regaining
from pyworkflow_ray.actors.dispatchers import Dispatcher, LocalDispatcher
from pyworkflow_ray.actors.drives import Drive
from pyworkflow_ray.actors.engine_threads import EngineThreads
from pyworkflow_ray.actors.observers import (
    LogObserver,
    Observer,
    Observers,
    RunAccepted,
    RunClaimed,
    RunGivenUp,
    of_run,
)
from pyworkflow_ray.actors.payloads import Payloads, blob_fetcher, configured_values
from pyworkflow_ray.actors.queries import answer_by_replay
from pyworkflow_ray.actors.recoveries import Loss
from pyworkflow_ray.actors.renewals import Hold, Renewals, now
from pyworkflow_ray.actors.separations import losses_of, separated, suspects
from pyworkflow_ray.actors.services import Services
from pyworkflow_ray.actors.settings import EngineSettings, other_storage
from pyworkflow_ray.actors.watchdogs import Watchdog
from pyworkflow_ray.clock import Clock, SystemClock
from pyworkflow_ray.engine.attempts import encode_outcome
from pyworkflow_ray.exceptions import ConfigurationError, StorageError
from pyworkflow_ray.storage.inboxes import runs_with_unread
from pyworkflow_ray.storage.leases import (
    claim,
    claim_name,
    claim_placed,
    give_up,
    held_with,
    owner_of,
    set_apart,
)
from pyworkflow_ray.storage.records import RunRecord
from pyworkflow_ray.storage.storages import Storage
from pyworkflow_ray.storage.works import together

ENGINE_THREADS = 16
LOOK_EVERY = 1.0
"""Seconds between two looks at code that does not wait, and at whether there is anything to do."""
VISIBLE_AFTER = 5.0
"""Seconds after which a run shows as an actor call in Ray's dashboard. Short runs never pay for it."""

LONG_POLL = 20.0
"""Seconds after which a call that waits for runs returns to its caller, who asks again."""
RECENT_ENDS = 2000
"""Ends that are kept for callers that ask a little late. Without them they would have to read the row."""
LARGEST_RECENT = 64 * 1024
"""Bytes of the largest result that is kept so."""

_ends_encoder = msgspec.msgpack.Encoder()
_records_decoder = msgspec.msgpack.Decoder(list[RunRecord])


class Coordinator:
    """Drives the runs placed with it.

    Args:
        name: The name runs are placed by.
        settings: The settings of all actors.
        storage: Where to record; opened from `settings` by default.
        dispatcher: What runs steps; in this process by default.
        clock: The system's by default.
        cluster: Tells coordinators of this name in other clusters apart.
        observers: Watch the runs, besides the log.
    """

    def __init__(
        self,
        name: str,
        settings: EngineSettings,
        *,
        storage: Storage | None = None,
        dispatcher: Dispatcher | None = None,
        clock: Clock | None = None,
        cluster: str = "",
        observers: Iterable[Observer] = (),
    ) -> None:
        self.name = name
        self.settings = settings
        self.cluster = cluster
        self.owner = owner_of(name, cluster, secrets.token_hex(4))
        self.is_leaving = False
        # The claim of the opening is the first one. If the opening is tried again, it is the same claim.
        self._claim_numbers = itertools.count(1)
        self._storage = storage
        self._dispatcher = dispatcher
        self._clock = clock or SystemClock()
        self._observers = Observers([LogObserver(), *observers])
        self._services: Services | None = None
        self._watchdog: Watchdog | None = None
        self._drives: dict[str, Drive] = {}
        self._ends: dict[str, asyncio.Task[RunEnd]] = {}
        self._claiming: set[str] = set()
        self._mail_for: set[str] = set()
        self._delivering: asyncio.Task[None] | None = None
        self._recent: dict[str, RunEnd] = {}
        self._opening: asyncio.Task[None] | None = None
        self._background: list[asyncio.Task[None]] = []
        self._renewals: Renewals | None = None
        self._idle_since = self._looked_after_timer_at = time.monotonic()
        self._storage_id = ""

    # --- opening and leaving ------------------------------------------------------------------

    async def open(self) -> None:
        """Open the storage, and go on with what a predecessor of this name held."""
        if self._opening is None:
            self._opening = asyncio.get_running_loop().create_task(self._open())
        try:
            await asyncio.shield(self._opening)
        except asyncio.CancelledError:
            raise
        except BaseException:
            self._opening = None  # the next call tries again
            raise

    async def _open(self) -> None:
        storage = self._storage or self.settings.open_storage()
        self._storage = storage
        self._storage_id = (await asyncio.to_thread(storage.facts))["storage_id"]
        threads = EngineThreads(ENGINE_THREADS)
        self._watchdog = Watchdog(threads, self._observers, self.restart)
        values = configured_values(self.settings.payload_codec, self.settings.payload_limit)
        self._services = Services(
            settings=self.settings,
            owner=self.owner,
            storage=storage,
            dispatcher=self._dispatcher or LocalDispatcher(is_cancelled=self.is_cancelled_here),
            clock=self._clock,
            payloads=Payloads(values, blob_fetcher(storage), self.settings.blob_threshold),
            loader=CodeLoader(self.fetch_bundle),
            threads=threads,
            on_due=self.on_due,
            pack=Packer(),
            begin=self._begin_here,
            deliver=self.deliver,
            is_here=self._drives.__contains__,
            observers=self._observers,
        )
        ttl = self.settings.lease_ttl.total_seconds()
        self._renewals = Renewals(storage, self.owner, self.settings.lease_ttl, lambda: self.drives)
        placed = claim_placed(self.name, claim_name(self.owner, 0), ttl, self.cluster)
        since = now()
        held, runs = await storage.write(together(held_with(self.name, self.cluster), placed))
        await self._take_over(runs, since, held)
        works = (self._renewals.run, self._look_for_mail, self._watch)
        self._background = [asyncio.get_running_loop().create_task(work()) for work in works]

    async def close(self) -> None:
        """Drop every run where it stands. Another coordinator may go on with them."""
        for task in (*self._background, *self._ends.values()):
            task.cancel()
        await asyncio.gather(*self._background, *self._ends.values(), return_exceptions=True)
        if self._renewals is not None:
            self._renewals.close()
        if self._services is not None:
            self._services.threads.shutdown(wait=False, cancel_futures=True)

    async def _look_for_mail(self) -> None:
        """Look for unread inboxes: a process that posted to a run may have died before its nudge."""
        while True:
            await asyncio.sleep(self.settings.lease_ttl.total_seconds() / 3)
            if not self._drives or self._storage is None:
                continue
            with contextlib.suppress(Exception):  # this is tried again soon
                # The unread rows are few.
                for run_id in await asyncio.to_thread(self._storage.read, runs_with_unread()):
                    if run_id in self._drives:
                        self._drives[run_id].notice()

    async def _watch(self) -> None:
        """Report workflow code that blocks, make long runs visible, and leave when there is nothing to do."""
        while True:
            await asyncio.sleep(LOOK_EVERY)
            try:
                self._look_after(time.monotonic())
            except Exception as error:
                logger.warning("Looking after the runs of {} failed: {!r}", self.name, error)

    def _look_after(self, now: float) -> None:
        if self._watchdog is not None:
            self._watchdog.look(self.drives, now)
        for drive in self.drives:
            if now - drive.began_at >= VISIBLE_AFTER:
                self.show(drive)
        if now - self._looked_after_timer_at > self.settings.sweep_interval.total_seconds():
            self._looked_after_timer_at = now
            self.look_after_timer()
        if self._drives:
            self._idle_since = now
            return
        self.tidy()
        if now - self._idle_since > self.settings.coordinator_ttl.total_seconds():
            self.leave()
            self._idle_since = now

    # --- what a runtime adds ------------------------------------------------------------------

    def on_due(self, at: datetime) -> None:
        """Called when something will be due that the timer must see. Only a hint: the rows say it too."""

    def show(self, drive: Drive) -> None:
        """Called each second for each run that has been here for `VISIBLE_AFTER`."""

    def tidy(self) -> None:
        """Called each second while no run is here."""

    def restart(self, reason: str) -> None:
        """Called when threads are stuck for good, and no others may be added."""
        logger.error("Coordinator {} has no thread left for its runs: {}", self.name, reason)

    def look_after_timer(self) -> None:
        """Called with each `sweep_interval`: have the timer replaced if it hangs."""

    fetch_bundle: FetchBundle | None = None

    can_set_apart = False
    """Whether there are other coordinators, so that runs can be set apart from each other."""

    def send_apart(self, runs: list[tuple[RunRecord, str]]) -> None:
        """Called with runs and the coordinators that are to claim them. (The sweep finds them, too.)"""

    def leave(self) -> None:
        """Called when there has been nothing to do for `coordinator_ttl`."""

    # --- runs ---------------------------------------------------------------------------------

    async def accept(self, records: bytes, storage_id: str = "") -> None:
        """Take over runs that were accepted with this coordinator's lease; returns when they are driven.

        Raises:
            ConfigurationError: The runs are in another storage than this engine's.
        """
        await self.open()
        if storage_id and storage_id != self._storage_id:
            raise ConfigurationError(other_storage(self.settings.namespace))
        await self.accept_runs(_records_decoder.decode(records))

    async def accept_runs(self, runs: Iterable[RunRecord]) -> None:
        """Drive runs that were accepted with this coordinator's lease."""
        await self.open()
        if self.is_leaving:
            await asyncio.Event().wait()  # the call fails with this process, and is made again to the next
        for run in runs:
            self._begin_unless_known(run)

    async def end_of(self, run_id: str) -> RunEnd | None:
        """How the run's drive ends, or has ended recently; None if the run is not known here."""
        task = self._ends.get(run_id)
        return self._recent.get(run_id) if task is None else await asyncio.shield(task)

    async def ends(self, run_ids: list[str]) -> bytes:
        """How the drives of these runs have ended; returns when at least one has.

        A run that is not known here has the status "unknown". After `LONG_POLL` the answer may be empty: the
        caller asks again, unless it has gone.
        """
        await self.open()
        waiting = {run_id: self._ends[run_id] for run_id in run_ids if run_id in self._ends}
        if len(waiting) == len(run_ids):
            await asyncio.wait(waiting.values(), timeout=LONG_POLL, return_when=asyncio.FIRST_COMPLETED)
            if len(waiting) > 1:
                await asyncio.sleep(min(len(waiting) * 0.0002, 0.02))  # others of a burst end just now
        ended = []
        for run_id in run_ids:
            if run_id not in waiting:
                ended.append(self._recent.get(run_id) or RunEnd(run_id, "unknown"))
            elif waiting[run_id].done():
                ended.append(waiting[run_id].result())
        return _ends_encoder.encode(ended)

    async def wake(self, run_ids: Iterable[str]) -> list[str]:
        """Claim and drive runs that nobody holds; the ids of those that are driven here now."""
        await self.open()
        if self.is_leaving:
            return []
        wanted = set(run_ids)
        driven = [drive for drive in self.drives if drive.run_id in wanted]
        await self._regain(driven)
        for drive in driven:
            drive.notice()
        new = [r for r in wanted if r not in self._ends and r not in self._claiming]
        # Noted before the first await: a second wake of the same run would claim it too.
        self._claiming.update(new)
        since = now()
        try:
            await self._take_over(await self._claim(new), since)
        finally:
            self._claiming.difference_update(new)
        return [run_id for run_id in wanted if run_id in self._ends]

    async def _claim(self, run_ids: list[str]) -> list[RunRecord]:
        assert self._storage is not None
        if not run_ids:
            return []
        ttl = self.settings.lease_ttl.total_seconds()
        mine = {"force_from": self.name, "cluster": self.cluster}
        # In one order everywhere: two transactions that lock the same rows must not wait for each other.
        name = claim_name(self.owner, next(self._claim_numbers))
        claims = [claim(run_id, name, ttl, **mine) for run_id in sorted(run_ids)]
        return [run for run in await self._storage.write(together(*claims)) if run is not None]

    async def _regain(self, drives: list[Drive]) -> None:
        """Hold driven runs again, with their attempts, of which a sweep has placed some here once more."""
        assert self._storage is not None
        assert self._services is not None
        if not drives:
            return
        drives = sorted(drives, key=lambda drive: drive.run_id)  # in one order everywhere, as in `_claim`
        regains = [regaining(self._services, drive.run) for drive in drives]
        since = now()
        for drive, epoch in zip(drives, await self._storage.write(together(*regains)), strict=True):
            if epoch is not None:
                drive.regain(epoch, since)

    async def _take_over(self, runs: list[RunRecord], since: float, held: Collection[str] = ()) -> None:
        """Drive claimed runs, except those that are set apart; `held` were in the process before this one."""
        assert self._storage is not None
        losses = losses_of(runs, held, self.owner, can_set_apart=self.can_set_apart)
        places = separated(self.name, suspects(losses))
        apart = [(run, places[run.run_id]) for run, _ in losses if run.run_id in places]
        if apart:
            logger.warning("{} runs were in processes that died repeatedly: they are set apart", len(apart))
            await self._storage.write(set_apart([(run.run_id, run.epoch, place) for run, place in apart]))
            self.send_apart(apart)
        for run, loss in losses:
            if run.run_id not in places:
                self._begin_claimed(run, since, loss)

    def _begin_here(self, run: RunRecord) -> None:
        if run.epoch == 1 and run.owner == self.name:
            self._begin_unless_known(run)

    def _begin_unless_known(self, run: RunRecord) -> None:
        """Begin an accepted run, unless it was begun before, or a claim of it is under way."""
        if run.run_id not in self._ends and not (run.run_id in self._recent or run.run_id in self._claiming):
            self._begin_accepted(run)

    def deliver(self, run_id: str) -> None:
        """Have a run look into its inbox: one that is driven here, or else wherever it is."""
        drive = self._drives.get(run_id)
        if drive is not None:
            drive.notice()
            return
        self._mail_for.add(run_id)
        if self._delivering is None or self._delivering.done():
            self._delivering = asyncio.get_running_loop().create_task(self._deliver_all())

    async def _deliver_all(self) -> None:
        while self._mail_for:
            run_ids, self._mail_for = self._mail_for, set()
            try:
                here = await self.wake(run_ids)
                elsewhere = run_ids.difference(here)
                if elsewhere:
                    await self.nudge(elsewhere)
            except Exception as error:  # the sweep finds what is in the inbox
                logger.warning(
                    "Runs with unread inboxes could not be nudged: {}: {}", type(error).__name__, error
                )

    async def nudge(self, run_ids: Iterable[str]) -> None:
        """Have the coordinators of these runs look after them; does nothing where there are no others."""

    def is_driving(self, run_id: str) -> bool:
        """Whether this coordinator has the run in memory."""
        return run_id in self._drives

    def is_cancelled_here(self, run_id: str) -> bool:
        """Whether a run that is driven here was asked to cancel."""
        drive = self._drives.get(run_id)
        return drive is not None and drive.is_cancelled

    async def is_cancelled(self, run_id: str) -> bool:
        """As `is_cancelled_here`, for steps that ask from their workers."""
        return self.is_cancelled_here(run_id)

    async def query(self, run_id: str, name: str, args: bytes, kwargs: bytes) -> bytes:
        """What the run's query function returns or raises, as an outcome."""
        await self.open()
        assert self._services is not None
        drive, watchdog = self._drives.get(run_id), self._watchdog
        assert watchdog is not None
        outcome = None if drive is None else await watchdog.ask(drive, name, args, kwargs)
        if outcome is None:
            by_replay = partial(answer_by_replay, self._services, run_id, name, args, kwargs)
            outcome = await watchdog.replayed(run_id, name, by_replay)
        return encode_outcome(outcome)

    def _begin_accepted(self, run: RunRecord) -> None:
        self._observers.report(RunAccepted(**of_run(run), coordinator=self.name))
        # It was accepted a moment ago, by another clock. Half of its lease is left for sure.
        self._begin(run, now() - self.settings.lease_ttl.total_seconds() / 2)

    def _begin_claimed(self, run: RunRecord, since: float, loss: Loss) -> None:
        self._observers.report(
            RunClaimed(
                **of_run(run),
                coordinator=self.name,
                epoch=run.epoch,
                was_interrupted=run.was_interrupted,
            )
        )
        self._begin(run, since, loss)

    def _begin(self, run: RunRecord, since: float, loss: Loss = Loss.NONE) -> asyncio.Task[RunEnd]:
        assert self._services is not None
        self._idle_since = time.monotonic()
        self._recent.pop(run.run_id, None)
        drive = Drive(self._services, run, Hold(run, self.settings.lease_ttl, since), loss)
        self._drives[run.run_id] = drive
        task = asyncio.get_running_loop().create_task(self._contain(drive), name=run.run_id)
        self._ends[run.run_id] = task
        return task

    async def _contain(self, drive: Drive) -> RunEnd:
        """Drive a run. What goes wrong with it does not reach other runs."""
        try:
            return self._remember(await drive.drive())
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            if self._opening is not None and self._opening.get_loop().is_closed():
                self._drives.clear()  # the event loop is gone, and all that was on it
                return RunEnd(drive.run_id, "lost")
            # The traceback alone: values in its frames (payloads, a password) do not belong in a log.
            text = "".join(traceback.format_exception(error))
            self._observers.report(RunGivenUp(**of_run(drive.run), traceback=text))
            await self._give_up(drive)
            return RunEnd(drive.run_id, "lost")
        finally:
            if self._drives.get(drive.run_id) is drive:
                del self._drives[drive.run_id]
                del self._ends[drive.run_id]
                parent = self._drives.get(drive.run.parent_run_id or "")
                if parent is not None:
                    parent.notice()  # it may be suspended, now that its child is
                if drive.is_suspended and drive.has_unread:
                    self.deliver(drive.run_id)  # it came during the suspension

    async def _give_up(self, drive: Drive) -> None:
        """Give the lease of a run back, so that the sweep need not wait for its end."""
        assert self._storage is not None
        with contextlib.suppress(StorageError):
            await self._storage.write(give_up(drive.run_id, drive.run.epoch))

    def _remember(self, end: RunEnd) -> RunEnd:
        if len(self._recent) >= RECENT_ENDS:
            self._recent.pop(next(iter(self._recent)))
        if len(end.result or b"") <= LARGEST_RECENT:
            self._recent[end.run_id] = end
        return end

    @property
    def drives(self) -> list[Drive]:
        """The runs that are here now."""
        return list(self._drives.values())

    async def status(self) -> dict[str, Any]:
        """What this coordinator is doing, for tools."""
        return {
            "name": self.name,
            "owner": self.owner,
            "runs": list(self._drives),
            "threads": threading.active_count(),
        }

    def __repr__(self) -> str:
        return f"Coordinator({self.name!r})"
