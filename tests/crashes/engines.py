"""A whole engine in one process: client, coordinators, timer and hook registry, with no Ray between them.

It may be killed at any moment. The next one on the same database goes on, as Ray's restarted actors do.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

import pyworkflow_ray as pr
from pyworkflow_ray.actors.coordinator import Coordinator
from pyworkflow_ray.actors.nudges import Group, Nudger
from pyworkflow_ray.actors.payloads import configured_values
from pyworkflow_ray.actors.timer import Timer
from pyworkflow_ray.client.runtimes import LocalRuntime
from pyworkflow_ray.client.sessions import Session, enter, leave
from pyworkflow_ray.storage.records import RunRecord
from pyworkflow_ray.storage.storages import Storage

LEASE = timedelta(seconds=2)


class OneProcess:
    """The engine.

    Args:
        url: The database.
        folder: Where scenarios leave notes that outlive the process.
    """

    def __init__(self, url: str, folder: Path) -> None:
        pr.configure(
            storage=url,
            default_runtime="local",
            lease_ttl=LEASE,
            sweep_interval="100ms",
            suspend_after="50ms",
        )
        self.folder = folder
        with (folder / "lives").open("a") as lives:
            lives.write("one more\n")
        self.lives = len((folder / "lives").read_text().splitlines())
        self.config = pr.get_config()
        self.storage = Storage(url, synchronous="NORMAL")  # what a process's death can lose, and no power cut
        self.runtime = _Runtime(self)
        self.settings = self.runtime.engine_settings
        self.coordinators: dict[str, Coordinator] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._nudger = Nudger(self.settings, self.nudge)
        self._timer = Timer(self.settings, self.nudge, lambda environment: None)

    async def __aenter__(self) -> Self:
        values = configured_values(self.config.payload_codec, self.config.payload_limit)
        self._entered = enter(Session(self.config, self.storage, self.runtime, values))
        await self.first.open()
        self._timing = self._spawn(self._timer.run())
        return self

    async def __aexit__(self, *error: object) -> None:
        leave(self._entered)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for coordinator in list(self.coordinators.values()):
            await coordinator.close()
        self.storage.close()

    @property
    def first(self) -> Coordinator:
        """The coordinator that new runs are placed with."""
        return self.coordinator(self.settings.first_coordinator())

    def coordinator(self, name: str) -> Coordinator:
        """The coordinator of this name; made when it is first needed, as on Ray."""
        if name not in self.coordinators:
            self.coordinators[name] = _Coordinator(self, name)
        return self.coordinators[name]

    def nudge(self, group: Group) -> None:
        """Have a coordinator wake runs."""
        self._spawn(self.coordinator(group.coordinator).wake(group.run_ids))

    def look_after(self, run_ids: Iterable[str]) -> None:
        """Have the coordinators of these runs look after them."""
        self._spawn(self._nudger.nudge_ids(self.storage, run_ids))

    def stop_timer(self) -> None:
        """Have nobody sweep in this process."""
        self._timing.cancel()

    def _spawn(self, work: Any) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def until(self, status: str, run_id: str) -> None:
        """Return when the run has this status."""
        while (run := await pr.get_workflow_run(run_id)) is None or run.status.value != status:
            await asyncio.sleep(0.02)

    def is_first_time(self, what: str) -> bool:
        """Whether no process has asked for this before; a killed one counts."""
        with contextlib.suppress(FileExistsError):
            (self.folder / what).touch(exist_ok=False)
            return True
        return False


class _Coordinator(Coordinator):
    can_set_apart = True

    def __init__(self, engine: OneProcess, name: str) -> None:
        super().__init__(name, engine.settings, storage=engine.storage)
        self._engine = engine

    def send_apart(self, runs: list[tuple[RunRecord, str]]) -> None:
        for run, place in runs:
            self._engine.nudge(Group(place, "", [run.run_id]))

    async def nudge(self, run_ids: Iterable[str]) -> None:
        self._engine.look_after(run_ids)


class _Runtime(LocalRuntime):
    """Starts runs without waiting for them, as the runtime of Ray does."""

    name = "one process"

    def __init__(self, engine: OneProcess) -> None:
        super().__init__(engine.config, engine.storage)
        self._engine = engine

    def coordinator(self) -> Coordinator:
        return self._engine.first

    async def start(self, run: RunRecord) -> None:
        await self.coordinator().accept_runs([run])

    async def wake_all(self, runs: Any) -> None:
        await self.coordinator().wake([run.run_id for run in runs])

    async def wake(self, run: RunRecord) -> None:
        self._engine.look_after([run.run_id])
