"""The in-process runtime of a test environment. Its coordinator can crash."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from functools import partial
from typing import Any, TypeVar

from pyworkflow_ray.actors.activations import RunEnd
from pyworkflow_ray.actors.coordinator import Coordinator
from pyworkflow_ray.actors.dispatchers import LocalDispatcher
from pyworkflow_ray.actors.schedulers import Looked
from pyworkflow_ray.client.runtimes import LocalRuntime
from pyworkflow_ray.config import Settings
from pyworkflow_ray.storage.codes import Code
from pyworkflow_ray.storage.records import RunRecord
from pyworkflow_ray.storage.statements import Statement
from pyworkflow_ray.storage.storages import Storage
from pyworkflow_ray.testing.clocks import VirtualClock
from pyworkflow_ray.testing.fail_points import FailPoints
from pyworkflow_ray.testing.mirrors import Mirrors
from pyworkflow_ray.testing.schedulers import Scheduler
from pyworkflow_ray.testing.simulated_crashes import CrashableDispatcher, CrashableStorage, Lifetime
from pyworkflow_ray.values.bundles import Bundle

T = TypeVar("T")

POLL = 0.001
"""Seconds between two checks whether everything has come to rest."""
_START_LATER = Statement(
    "SELECT run_id FROM runs WHERE status IN ('pending', 'running') AND start_at IS NOT NULL"
)


class _Coordinator(Coordinator):
    """A coordinator that nudges a test's scheduler when a schedule is due."""

    def __init__(self, on_due: Callable[[], None], *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._on_due = on_due

    def on_due(self, at: datetime) -> None:
        self._on_due()


class CrashableRuntime(LocalRuntime):
    """The in-process runtime with a coordinator that can crash. `start` does not wait for the run."""

    name = "test"
    waiting = 0
    """How many calls wait for a run's end."""

    def __init__(
        self, settings: Settings, storage: Storage, clock: VirtualClock, mirrors: Mirrors | None = None
    ) -> None:
        super().__init__(settings, storage, clock)
        self.has_other_processes = mirrors is not None
        self._mirrors = mirrors
        self.points = FailPoints()
        self._storage_of_test, self._clock_of_test = storage, clock
        self._life: Lifetime | None = None
        self._dispatcher: CrashableDispatcher | None = None
        self._recovery: asyncio.Task[None] | None = None
        self._scheduler = Scheduler(storage, clock, self._go_on)

    def check_code(self, code: Code, bundle: Bundle | None) -> None:
        """Load the code in another process, if the test asks for one."""
        if self._mirrors is not None:
            self._mirrors.check_code(code, bundle)

    # --- the coordinator, and its successors --------------------------------------------------------

    def coordinator(self) -> Coordinator:
        loop = asyncio.get_running_loop()
        if loop not in self._coordinators:
            self._coordinators[loop] = self._incarnation(f"test-{secrets.token_hex(6)}")
        return self._coordinators[loop]

    def _incarnation(self, name: str) -> Coordinator:
        life = self._life = Lifetime(self.points, lambda: self._on_crash(coordinator))
        attempts = LocalDispatcher(is_cancelled=self._is_cancelled)
        self._dispatcher = CrashableDispatcher(attempts, life, self._clock_of_test)
        coordinator = _Coordinator(
            self._scheduler.look,
            name,
            self._engine_settings,
            storage=CrashableStorage(self._storage_of_test, life),
            dispatcher=self._dispatcher,
            clock=self._clock_of_test,
        )
        return coordinator

    def _is_cancelled(self, run_id: str) -> bool:
        return any(each.is_cancelled_here(run_id) for each in self._coordinators.values())

    async def crash(self) -> None:
        """Crash the coordinator now; return when its successor has taken over."""
        await self._recovered()
        assert self._life is not None, "open() comes first"
        self._life.end()
        await self._recovered()

    def _on_crash(self, coordinator: Coordinator) -> None:
        self._recovery = asyncio.get_running_loop().create_task(self._succeed(coordinator))

    async def _succeed(self, lost: Coordinator) -> None:
        while any(drive.code.stretch for drive in lost.drives):
            await asyncio.sleep(POLL)  # its code runs in a thread; nothing that it does counts any more
        await lost.close()
        successor = self._incarnation(lost.name)
        self._coordinators[asyncio.get_running_loop()] = successor
        await successor.open()
        # `open` asks the database's clock whether a run with a later start is due, and not the test's.
        later = await asyncio.to_thread(self._storage_of_test.read, _START_LATER.find_all().on)
        await successor.wake([run_id for (run_id,) in later])
        self._scheduler.look_again()

    @property
    def is_recovering(self) -> bool:
        """Whether the coordinator has crashed, and its successor has not taken over yet."""
        is_lost = self._life is not None and self._life.is_over
        return is_lost or (self._recovery is not None and not self._recovery.done())

    async def _recovered(self) -> None:
        while self.is_recovering:
            recovery = self._recovery
            if recovery is not None:
                await asyncio.wait([recovery])
                if not recovery.cancelled():  # a cancelled one: the successor has crashed, too
                    recovery.result()
            await asyncio.sleep(0)

    async def _ask(self, call: Callable[[], Awaitable[T]]) -> T:
        """What the coordinator answers. If it crashes meanwhile, its successor is asked."""
        while True:
            await self._recovered()
            life = self._life
            try:
                return await call()
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if life is None or not life.is_over or (task is not None and task.cancelling()):
                    raise

    @property
    def is_settled(self) -> bool:
        """Whether every run waits for time or for something from outside."""
        if self.is_recovering:
            return False
        drives, delayed = self.coordinator().drives, self._dispatcher.delayed if self._dispatcher else 0
        waiting = self._clock_of_test.sleepers - self._scheduler.sleepers
        is_waiting = waiting == len(drives) + delayed and delayed == sum(drive.in_flight for drive in drives)
        return is_waiting and self._scheduler.is_resting

    async def close(self) -> None:
        """Drop every run where it is."""
        await self._recovered()
        await self._scheduler.close()
        await self.coordinator().close()

    # --- what clients ask -----------------------------------------------------------------------------

    async def open(self) -> None:
        await self._ask(super().open)

    async def start(self, run: RunRecord) -> None:
        await self._ask(lambda: self.coordinator().accept_runs([run]))

    async def wait(self, run: RunRecord) -> RunEnd | None:
        self.waiting += 1
        try:
            return await self._ask(partial(super().wait, run))
        finally:
            self.waiting -= 1

    async def wake(self, run: RunRecord) -> None:
        await self.nudge(run)

    async def wake_all(self, runs: Sequence[RunRecord]) -> None:
        run_ids = [run.run_id for run in runs]
        await self._ask(lambda: self.coordinator().wake(run_ids))

    async def look_at_schedules(self) -> None:
        self._scheduler.look()

    async def _go_on(self, looked: Looked) -> None:
        run_ids = [*looked.cancelled, *(run.run_id for run in looked.runs)]
        await self._ask(lambda: self.coordinator().wake(run_ids))

    async def nudge(self, run: RunRecord) -> bool:
        return await self._ask(partial(super().nudge, run))

    async def query(self, run: RunRecord, name: str, args: bytes, kwargs: bytes) -> bytes:
        return await self._ask(partial(super().query, run, name, args, kwargs))
