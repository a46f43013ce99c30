"""The actors as Ray has them: the plain classes, and the few lines that make them remote."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import random
import sys
import time
from collections import defaultdict
from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import lru_cache, partial
from typing import Any

import ray
from loguru import logger

from pyworkflow_ray.actors.cluster import Cluster
from pyworkflow_ray.actors.coordinator import Coordinator
from pyworkflow_ray.actors.dispatchers import LocalDispatcher, RayDispatcher
from pyworkflow_ray.actors.drives import Drive
from pyworkflow_ray.actors.hook_registry import HookRegistry
from pyworkflow_ray.actors.logs import follow
from pyworkflow_ray.actors.names import timer_of
from pyworkflow_ray.actors.nudges import Group, Nudger
from pyworkflow_ray.actors.payloads import configured_values
from pyworkflow_ray.actors.schema_checks import answer, asking
from pyworkflow_ray.actors.settings import EngineSettings
from pyworkflow_ray.actors.timer import Timer
from pyworkflow_ray.exceptions import SerializationError, StorageError
from pyworkflow_ray.storage.codes import load_bundle
from pyworkflow_ray.storage.environments import job_of
from pyworkflow_ray.storage.records import RunRecord
from pyworkflow_ray.values.bundles import enter_engine

COLLECT_AFTER = 20_000
"""New containers after which an actor's process collects garbage; Python's own figure is 700."""
TIDY_AFTER = 1_000
"""The same, for a coordinator that has nothing to do."""
MOST_SHOWN = 100
"""Runs of one coordinator that show in Ray's dashboard at once; each costs a call."""
MOST_VISITED = 200
"""Actors that a timer visits in one sweep."""


class EngineActor:
    """What every actor of the engine answers while it is busy: these methods have threads of their own."""

    settings: EngineSettings

    @ray.method(concurrency_group="health")
    async def ping(self) -> None:
        """Answer, which shows that this process is alive."""

    @ray.method(concurrency_group="health")
    async def pid(self) -> int:
        """The id of this process."""
        return os.getpid()

    @ray.method(concurrency_group="health")
    async def running(self) -> EngineSettings:
        """The settings of this engine, for a process that joins it."""
        return self.settings


class CoordinatorActor(EngineActor, Coordinator):
    """A coordinator in a process of its own, which Ray restarts."""

    def __init__(self, name: str, settings: EngineSettings) -> None:
        enter_engine()
        follow(settings.logging)
        self.fetch_bundle = self._stored_bundle
        super().__init__(name, settings, cluster=ray.get_runtime_context().gcs_address)
        # A run passes through four threads (Ray's, the loop's, an engine thread, the writer's), and each
        # hand-over may wait this long for the interpreter. The usual 5 ms is meant for threads that compute.
        sys.setswitchinterval(0.0001)
        _calm_collector()
        self._cluster = cluster_of(settings)
        self._nudger = Nudger(settings, ActorNudge(self._cluster))
        self._shown: set[str] = set()
        self._first_due_at: datetime | None = None
        self._arming: asyncio.Task[None] | None = None
        # This runs after every restart, so the actor resumes by itself. It is a task and no call to the actor
        # itself: Ray may refuse a call that is made while it counts the actor as restarting.
        self._resuming = asyncio.get_running_loop().create_task(self._resume())

    def _me(self) -> Any:
        return ray.get_runtime_context().current_actor

    async def _resume(self) -> None:
        try:
            await self.open()
        except Exception as error:
            logger.error("Coordinator {} cannot open: {}: {}", self.name, type(error).__name__, error)

    async def _open(self) -> None:
        self._dispatcher = RayDispatcher(LocalDispatcher(is_cancelled=self.is_cancelled_here))
        # Runs that sleep need a timer, and the process that created this actor may have made none.
        _in_background(self._cluster.timer)
        patient_until = time.monotonic() + self.settings.coordinator_ttl.total_seconds()
        while True:
            try:
                await super()._open()
                return
            except StorageError as error:
                # Ray has restarted this actor, and no caller will open it again: wait for the database. If it
                # stays away, this process ends. The timer has another coordinator made later.
                logger.warning("Coordinator {} waits for its database: {}", self.name, error)
                if time.monotonic() > patient_until:
                    self.leave()
            await asyncio.sleep(1.0)

    def on_due(self, at: datetime) -> None:
        self._first_due_at = min(self._first_due_at or at, at)
        if self._arming is None or self._arming.done():
            self._arming = asyncio.get_running_loop().create_task(self._arm())

    async def _arm(self) -> None:
        """Arm the timer for the first thing that will be due; one call for a burst."""
        while (due_at := self._first_due_at) is not None:
            self._first_due_at = None
            seconds = (due_at - datetime.now(UTC)).total_seconds()
            with contextlib.suppress(Exception):  # the timer looks at the rows by itself
                await asyncio.get_running_loop().run_in_executor(_nudges(), self._arm_timer, seconds)

    async def nudge(self, run_ids: Iterable[str]) -> None:
        assert self._storage is not None
        await self._nudger.nudge_ids(self._storage, run_ids)

    def _arm_timer(self, seconds: float) -> None:
        """Arm the timer, and create it if somebody has ended it."""
        self._cluster.handles.call_in_thread(self._cluster.timer_callee(), "arm", seconds)

    def show(self, drive: Drive) -> None:
        if drive.run_id not in self._shown and len(self._shown) < MOST_SHOWN:
            self._shown.add(drive.run_id)
            self._me().follow.options(name=f"{drive.run.workflow_name}:{drive.run_id}").remote(drive.run_id)

    async def follow(self, run_id: str) -> None:
        """A call that lasts as long as the run is here, so that the dashboard lists the run."""
        task = self._ends.get(run_id)
        if task is not None:
            await asyncio.wait([task])
        self._shown.discard(run_id)

    def _stored_bundle(self, hash_: str) -> bytes:
        assert self._storage is not None
        data = self._storage.read(load_bundle(hash_))
        if data is None:
            raise SerializationError(f"The local files of this code are not in the storage (hash {hash_}).")
        return data

    def tidy(self) -> None:
        if gc.get_count()[0] > TIDY_AFTER:
            gc.collect()

    def restart(self, reason: str) -> None:
        super().restart(reason)
        os._exit(1)  # Ray begins another process of this name, which goes on with the other runs

    def look_after_timer(self) -> None:
        _in_background(self._cluster.visit, [self._cluster.timer_callee().name])

    can_set_apart = True

    def send_apart(self, runs: list[tuple[RunRecord, str]]) -> None:
        nudge = ActorNudge(self._cluster)
        by_place: dict[tuple[str, str], list[str]] = defaultdict(list)
        for run, coordinator in runs:
            by_place[coordinator, run.environment].append(run.run_id)
        for (coordinator, environment), run_ids in by_place.items():
            nudge(Group(coordinator, environment, run_ids))

    def leave(self) -> None:
        self._me().exit.remote()

    async def exit(self) -> None:
        """End this process, unless a run has come in."""
        self.is_leaving = not self._drives and not self._claiming
        if not self.is_leaving:
            return
        await self.close()
        ray.actor.exit_actor()  # type: ignore[no-untyped-call]

    async def take_answers(self, batch_id: str, node: str, answers: list[tuple[int, bytes]]) -> bool:
        """Take outcomes of a batch; whether this process waits for it. The batch's worker calls this."""
        if not isinstance(self._dispatcher, RayDispatcher):
            return False  # this process has just begun
        return self._dispatcher.batches.take_answers(batch_id, node, answers)

    async def check_payload(self, question: bytes) -> bytes:
        """Whether a payload fits a schema of the code that this process runs; see `schema_checks`."""
        await self.open()
        services = self._services
        assert services is not None
        values = configured_values(self.settings.payload_codec, self.settings.payload_limit)
        return await asyncio.to_thread(answer, question, services.storage, services.loader, values)

    @ray.method(concurrency_group="health")
    async def bundle(self, hash_: str) -> bytes:
        """The local files that a worker of this coordinator needs, as an archive."""
        return await asyncio.to_thread(self._stored_bundle, hash_)

    @ray.method(concurrency_group="health")
    async def status(self) -> dict[str, Any]:  # type: ignore[override]
        return await super().status()

    @ray.method(concurrency_group="health")
    async def is_cancelled(self, run_id: str) -> bool:  # type: ignore[override]
        return await super().is_cancelled(run_id)


def _calm_collector() -> None:
    """Have this process search for garbage seldom, and not in what is loaded already.

    A run allocates a hundred containers, most of them short-lived and without cycles. With Python's own
    figures a third of a busy coordinator's time went into searches over the modules that Ray has loaded.
    """
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER, 10, 10)


class ActorNudge:
    """Nudges coordinators, on threads of its own."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def __call__(self, group: Group) -> None:
        _in_background(self._call, group)

    def _call(self, group: Group) -> None:
        callee = self._cluster.coordinator_callee(group.coordinator, group.environment)
        try:
            self._cluster.handles.call_in_thread(callee, "wake", group.run_ids)
        except Exception as error:  # the next sweep finds the runs
            self._cluster.handles.forget(group.coordinator)
            logger.info("Coordinator {} did not answer: {}", group.coordinator, type(error).__name__)


class TimerActor(EngineActor, Timer):
    """The timer in a process of its own, which Ray restarts."""

    def __init__(self, settings: EngineSettings) -> None:
        enter_engine()
        follow(settings.logging)
        _calm_collector()
        self._cluster = cluster_of(settings)
        super().__init__(settings, ActorNudge(self._cluster), partial(_in_background, self._rouse_other))
        self._running = asyncio.get_running_loop().create_task(self.run())  # see CoordinatorActor

    def look_after_actors(self) -> None:
        _in_background(self._visit_actors)

    def _visit_actors(self) -> None:
        own = timer_of(job_of(self.settings.environment))
        others = [name for name in self._cluster.actors() if name != own]
        self._cluster.visit(random.sample(others, min(len(others), MOST_VISITED)))

    def _rouse_other(self, environment: str) -> None:
        self._cluster.handles.call_in_thread(self._cluster.timer_callee(environment), "arm", 0.0, tries=1)

    async def make_coordinator(self, name: str, environment: str) -> None:
        """Create a coordinator of this timer's job environment, for a process that lives in another one."""
        await asyncio.to_thread(self._cluster.coordinator, name, environment)


class HookRegistryActor(EngineActor, HookRegistry):
    """The hook registry in a process of its own, which Ray restarts."""

    def __init__(self, settings: EngineSettings) -> None:
        enter_engine()
        follow(settings.logging)
        _calm_collector()
        super().__init__(settings, self._note)
        self._cluster = cluster_of(settings)
        self._nudger = Nudger(settings, ActorNudge(self._cluster))
        self.ask_elsewhere = asking(self._cluster, self._storage)
        self._received: set[str] = set()
        self._nudging: asyncio.Task[None] | None = None
        self._watching = asyncio.get_running_loop().create_task(self._watch())

    async def _watch(self) -> None:
        """Look after the timer. While all runs sleep, there may be no other process that does."""
        while True:
            await asyncio.sleep(self.settings.sweep_interval.total_seconds())
            _in_background(self._cluster.visit, [self._cluster.timer_callee().name])

    def _note(self, run_ids: Collection[str]) -> None:
        self._received.update(run_ids)
        if self._nudging is None or self._nudging.done():
            self._nudging = asyncio.get_running_loop().create_task(self._nudge_all())

    async def _nudge_all(self) -> None:
        while self._received:  # what comes during a nudge goes together in the next one
            run_ids, self._received = self._received, set()
            try:
                await self._nudger.nudge_ids(self._storage(), run_ids)
            except Exception as error:
                logger.warning("Runs whose hooks were answered were not nudged: {}", type(error).__name__)


_GROUPS = {"health": 4}


class _RayClasses:
    """The engine's actors as Ray actor classes, each made once in a process."""

    @staticmethod
    @lru_cache(maxsize=1)
    def coordinator() -> Any:
        return ray.remote(concurrency_groups=_GROUPS)(CoordinatorActor)  # type: ignore[call-overload]

    @staticmethod
    @lru_cache(maxsize=1)
    def timer() -> Any:
        return ray.remote(concurrency_groups=_GROUPS)(TimerActor)  # type: ignore[call-overload]

    @staticmethod
    @lru_cache(maxsize=1)
    def hook_registry() -> Any:
        return ray.remote(concurrency_groups=_GROUPS)(HookRegistryActor)  # type: ignore[call-overload]


_classes = _RayClasses()


def cluster_of(settings: EngineSettings) -> Cluster:
    """The engine's actors on the cluster that this process has joined."""
    return Cluster(settings, _classes)


@lru_cache(maxsize=1)
def _nudges() -> ThreadPoolExecutor:
    # Not the loop's own threads: the storage is read on those, and must not wait for an actor that is slow.
    return ThreadPoolExecutor(32, thread_name_prefix="pyworkflow-nudge")


def _in_background(call: Any, *args: Any) -> None:
    """Make a blocking call on a thread, and ignore what comes of it."""
    future = asyncio.get_running_loop().run_in_executor(_nudges(), call, *args)
    future.add_done_callback(lambda done: done.exception())
