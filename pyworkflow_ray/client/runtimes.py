"""Runtimes: runs are driven by coordinator actors on Ray, or by one coordinator in this process."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import threading
import weakref
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from loguru import logger

from pyworkflow_ray.actors.activations import RunEnd
from pyworkflow_ray.actors.calls import PATIENCE
from pyworkflow_ray.actors.cluster import Cluster, job_environment, placed_on, running_engine
from pyworkflow_ray.actors.connections import (
    connect,
    has_joined,
    is_own_cluster,
    joined_job,
    require_joined,
)
from pyworkflow_ray.actors.coordinator import Coordinator
from pyworkflow_ray.actors.hook_registry import HookAnswer, HookRegistry
from pyworkflow_ray.actors.names import coordinator_of
from pyworkflow_ray.actors.nudges import Placed, grouped
from pyworkflow_ray.actors.schema_checks import asking
from pyworkflow_ray.actors.settings import EngineSettings, other_storage
from pyworkflow_ray.client.coordinators import CoordinatorClient
from pyworkflow_ray.client.gatherings import Gathering
from pyworkflow_ray.client.hook_answers import Taken, hook_answers
from pyworkflow_ray.clock import Clock
from pyworkflow_ray.config import Settings
from pyworkflow_ray.exceptions import ConfigurationError, NoAnswerError, WorkflowError
from pyworkflow_ray.storage.codes import Code
from pyworkflow_ray.storage.environments import environment_of, save_environment
from pyworkflow_ray.storage.records import RunRecord
from pyworkflow_ray.storage.runs import get_run, get_runs
from pyworkflow_ray.storage.storages import Storage
from pyworkflow_ray.values.bundles import Bundle

LOCAL = "local"
HookAnswersByLoop = weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Gathering[HookAnswer, Taken]]
REGISTRY_PATIENCE = 5.0
"""Seconds for which a dead hook registry is called again. After that the caller does its work."""
REGISTRY_TIME = 10.0
"""Seconds that an answer to a hook waits for a registry that lives. It may have to load a hook's schema."""
JOB_FOLDER = "/working_dir_files/_ray_pkg_"
"""A part of the path of every file in the working directory of a submitted job."""


OPENING_TIME = 5.0
"""Seconds to wait for the engine's word on its storage. One that hangs is dealt with by those who need it."""


class RayRuntime:
    """Coordinator actors on a Ray cluster drive the runs. The cluster is joined at its first use."""

    name = "ray"
    has_other_processes = True
    """Whether other processes run the code and read the values."""

    def __init__(self, settings: Settings, storage: Storage) -> None:
        self._settings, self._storage = settings, storage
        self._cluster: Cluster | None = None
        self._clients: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, CoordinatorClient]]
        self._clients = weakref.WeakKeyDictionary()
        self._waking: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, bool]]
        self._waking = weakref.WeakKeyDictionary()
        self._hook_answers: HookAnswersByLoop = weakref.WeakKeyDictionary()
        self._lock = threading.Lock()
        self._storage_id = ""
        self._joined: str | None = None
        self._is_own = False
        """Whether the cluster is one that this process has started, and that ends with it."""

    async def open(self) -> None:
        """Join the cluster.

        Raises:
            ConfigurationError: The cluster is not there.
        """
        if self._cluster is None or joined_job() != self._joined:
            await asyncio.to_thread(self._open)

    def _open(self) -> None:
        with self._lock:
            if self._cluster is not None and joined_job() == self._joined:
                return
            connect(self._settings.address, self._settings.namespace)
            from pyworkflow_ray.actors.remote import cluster_of

            settings = EngineSettings.configured(self._settings)
            database = self._storage.database
            if database.is_memory:
                raise ConfigurationError(
                    "The storage 'memory' lives in one process, and other processes drive runs on Ray. Use a "
                    "file or PostgreSQL, or configure(default_runtime='local')."
                )
            if database.path is not None and JOB_FOLDER in str(database.path):
                raise ConfigurationError(
                    f"The storage {database.path} lies in the working directory of a submitted job, which "
                    "Ray deletes after the job. Give an absolute path elsewhere, or PostgreSQL: "
                    "configure(storage='...') or PYWORKFLOW_STORAGE."
                )
            # An absolute path: it must mean the same in another process, with another working directory.
            settings = replace(settings, storage_url=database.secret_url)
            self._storage_id = self._storage.facts()["storage_id"]
            self._refuse_other_storage(settings)
            environment, data = job_environment()
            if environment:
                # The timer or another job's driver may have to create a coordinator for the runs of this job.
                self._storage.submit(save_environment(environment, data)).result()
            self._joined, self._is_own = joined_job(), is_own_cluster()
            self._clients.clear()
            is_file, slots = database.path is not None, self._settings.coordinators
            self._cluster = cluster_of(placed_on(settings, is_file, slots))
            # This does not wait for the timer, which wakes sleeping runs and finds those of vanished drivers.
            self._cluster.timer()

    def _refuse_other_storage(self, settings: EngineSettings) -> None:
        """Check that the engine in this namespace, if one runs, has this storage.

        Raises:
            ConfigurationError: It has another one.
        """
        running = running_engine(settings.namespace, OPENING_TIME)
        if running is None or running.storage_url == settings.storage_url:
            return
        try:
            with running.open_storage() as storage:
                is_other = storage.facts().get("storage_id") != self._storage_id
        except WorkflowError:  # it may have several addresses, one of which is not for this machine
            is_other = True
        if is_other:
            raise ConfigurationError(other_storage(settings.namespace))

    def now(self) -> datetime:
        """The present time for runs."""
        return datetime.now(UTC)

    owns_time = False

    def check_code(self, code: Code, bundle: Bundle | None) -> None:
        """Do nothing: what cannot be loaded on the cluster is found there."""

    async def look_at_schedules(self) -> None:
        """Nudge the timer: a schedule was created or changed."""
        await self._arm(0.0)

    async def _arm(self, seconds: float) -> None:
        """Have the timer look at the rows in this many seconds, without waiting for it."""
        with contextlib.suppress(NoAnswerError):
            timer = await asyncio.to_thread(self.cluster.timer)
            require_joined()
            timer.arm.remote(seconds)
            self.cluster.handles.pulses.visit(self.cluster.timer_callee().name, timer)

    async def look_after(self, run_id: str) -> None:
        """See to it that a timer that hangs is replaced: whoever waits for a run that sleeps needs it.

        Raises:
            NoAnswerError: The cluster was this process's own, and it has been shut down.
        """
        if self._cluster is not None and self._is_reachable(run_id):
            with contextlib.suppress(NoAnswerError):
                timer = await asyncio.to_thread(self._cluster.timer)
                self._cluster.handles.pulses.visit(self._cluster.timer_callee().name, timer)

    def _is_reachable(self, run_id: str) -> bool:
        """Whether this process still is in a cluster, so that it can ask the engine after this run."""
        if not has_joined() and self._is_own:
            raise NoAnswerError(
                f"The Ray cluster of this process was shut down while run {run_id!r} was waited for. The run "
                "is stored. It goes on once an engine with this storage runs."
            )
        return has_joined()

    async def wake_all(self, runs: Sequence[RunRecord]) -> None:
        """Wake runs that were accepted and not placed with a coordinator."""
        await self._wake(runs)

    async def _wake(self, runs: Sequence[Placed]) -> None:
        groups = [group async for group in grouped(self.engine_settings, self._storage, runs)]
        clients = [(self._client_of(each.coordinator, each.environment), each.run_ids) for each in groups]
        await asyncio.gather(*(client.wake(run_ids) for client, run_ids in clients))

    @property
    def is_open(self) -> bool:
        """Whether this has joined a cluster."""
        return self._cluster is not None

    @property
    def cluster(self) -> Cluster:
        assert self._cluster is not None, "open() comes first"
        return self._cluster

    @property
    def engine_settings(self) -> EngineSettings:
        return self.cluster.settings

    def placing(
        self, run_id: str, isolated: bool, start_at: datetime | None, bundle: str | None
    ) -> dict[str, Any]:
        """The fields of a new run's row that say which coordinator has it, and from when on."""
        environment = environment_of(self.engine_settings.environment, bundle)
        if start_at is not None:  # no coordinator holds it until then
            later = {
                "start_at": start_at,
                "wake_at": start_at,
                "owner_lease": None,
                "environment": environment,
            }
            return later | ({"coordinator": coordinator_of(run_id)} if isolated else {})
        if isolated:
            return {"coordinator": coordinator_of(run_id), "environment": environment}
        return {"placement": self.engine_settings.placement(environment)}

    async def start(self, run: RunRecord) -> None:
        """Hand an accepted run to its coordinator. For a run that starts later, nudge the timer."""
        if run.start_at is not None:
            seconds = (run.start_at - datetime.now(UTC)).total_seconds()
            await self._arm(seconds)
            return
        await self._client_of(run.coordinator or coordinator_of(run.run_id), run.environment).start(run)

    async def wait(self, run: RunRecord) -> RunEnd | None:
        """How the run's drive ends; None if no coordinator drives it now, or its coordinator does not answer.

        Raises:
            NoAnswerError: The cluster was this process's own, and it has been shut down.
        """
        if run.coordinator is None or not self._is_reachable(run.run_id):
            return None
        return await self._client_of(run.coordinator, run.environment).wait(run.run_id)

    async def wake(self, run: RunRecord) -> None:
        """Wake a run that no coordinator holds, or have a held run look into its inbox.

        For each run, one call at a time is under way. All requests that come meanwhile share the next call.
        """
        waking = self._waking.setdefault(asyncio.get_running_loop(), {})
        if run.run_id in waking:
            waking[run.run_id] = True
            return
        waking[run.run_id] = False
        # A task of its own: it goes on for the other callers if this caller is cancelled.
        task = asyncio.get_running_loop().create_task(self._wake_for_all(run, waking))
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        await asyncio.shield(task)

    async def _wake_for_all(self, run: RunRecord, waking: dict[str, bool]) -> None:
        try:
            while True:
                try:
                    await self._wake([run])
                except Exception:
                    if not waking[run.run_id]:
                        raise
                if not waking[run.run_id]:
                    return
                waking[run.run_id] = False
        finally:
            del waking[run.run_id]

    async def query(self, run: RunRecord, name: str, args: bytes, kwargs: bytes) -> bytes:
        """The outcome of the run's query function: what it returns or raises."""
        first = self.engine_settings.first_coordinator(run.environment)
        where = run.coordinator or first
        asked = (run.run_id, name, args, kwargs)
        try:
            return await self._query(where, run.environment, *asked)
        except NoAnswerError as error:
            logger.info("Run {} is replayed elsewhere for query {!r}: {}", run.run_id, name, error)
        # Any coordinator can answer, by a replay of what the run has committed.
        other = first if where != first else self.engine_settings.coordinator(1, run.environment)
        return await self._query(other, run.environment, *asked)

    async def _query(self, coordinator: str, environment: str, *asked: Any) -> bytes:
        callee = self.cluster.coordinator_callee(coordinator, environment)
        outcome: bytes = await self.cluster.handles.call(callee, "query", *asked, patience=PATIENCE)
        return outcome

    async def answer_hook(self, answer: HookAnswer) -> Taken:
        """Hand an answer to the hook registry; the ids of the run and the hook that took it."""
        loop = asyncio.get_running_loop()
        if loop not in self._hook_answers:
            self._hook_answers[loop] = hook_answers(self._call_hook_registry)
        return await self._hook_answers[loop].send(answer)

    async def _call_hook_registry(self, answers: bytes) -> bytes:
        callee = self.cluster.hook_registry_callee()
        replies: bytes
        try:
            replies = await self.cluster.handles.call(
                callee, "deliver_all", answers, patience=REGISTRY_PATIENCE, answer_time=REGISTRY_TIME
            )
        except NoAnswerError as error:
            # The registry has nothing that is not in the database, so its work can be done here. Should it
            # come to do it too, it finds the delivery's key, and the payload counts once.
            logger.info("Hooks are answered without the hook registry: {}", error)
            replies = await self._deliver_here(answers)
        return replies

    async def _deliver_here(self, answers: bytes) -> bytes:
        received: set[str] = set()
        registry = HookRegistry(self.engine_settings, received.update, self._storage)
        registry.ask_elsewhere = asking(self.cluster, lambda: self._storage)
        replies = await registry.deliver_all(answers)
        try:
            runs = await asyncio.to_thread(self._storage.read, get_runs(list(received)))
            await self._wake([run for run in runs.values() if not run.status.is_terminal])
        except Exception as error:
            logger.info("Runs whose hooks were answered were not nudged: {}", type(error).__name__)
        return replies

    def _client_of(self, name: str, environment: str) -> CoordinatorClient:
        clients = self._clients.setdefault(asyncio.get_running_loop(), {})
        if name not in clients:
            clients[name] = CoordinatorClient(self.cluster, name, environment, self._storage_id)
        return clients[name]


class LocalRuntime:
    """One coordinator in this process drives the runs, on the event loop that starts them."""

    name = LOCAL
    has_other_processes = False

    def __init__(self, settings: Settings, storage: Storage, clock: Clock | None = None) -> None:
        self._engine_settings = EngineSettings.configured(settings, slots=1, namespace="")
        self._storage = storage
        self._clock = clock
        self._coordinators: dict[asyncio.AbstractEventLoop, Coordinator] = {}
        self._hook_answers: HookAnswersByLoop = weakref.WeakKeyDictionary()

    async def open(self) -> None:
        for loop in [loop for loop in self._coordinators if loop.is_closed()]:
            del self._coordinators[loop]
        await self.coordinator().open()

    def coordinator(self) -> Coordinator:
        """The coordinator that lives on the running event loop."""
        loop = asyncio.get_running_loop()
        if loop not in self._coordinators:
            name = f"{LOCAL}-{secrets.token_hex(6)}"
            self._coordinators[loop] = Coordinator(
                name, self._engine_settings, storage=self._storage, clock=self._clock
            )
        return self._coordinators[loop]

    def now(self) -> datetime:
        """The present time for runs."""
        return datetime.now(UTC) if self._clock is None else self._clock.now()

    @property
    def owns_time(self) -> bool:
        """Whether a test's clock gives the time, and not the database's."""
        return self._clock is not None

    async def look_after(self, run_id: str) -> None:
        """Do nothing: there is no timer in this process."""

    def check_code(self, code: Code, bundle: Bundle | None) -> None:
        """Do nothing: the code is here."""

    async def look_at_schedules(self) -> None:
        """Do nothing: schedules do not fire in process. (They do in a `WorkflowEnvironment`.)"""

    async def wake_all(self, runs: Sequence[RunRecord]) -> None:
        """Drive runs that were accepted and not placed, until they end or are suspended."""
        await self.coordinator().wake([run.run_id for run in runs])
        for run in runs:
            await self._rest_of(run.run_id)

    @property
    def engine_settings(self) -> EngineSettings:
        return self._engine_settings

    def placing(
        self, run_id: str, isolated: bool, start_at: datetime | None, bundle: str | None
    ) -> dict[str, Any]:
        """The fields of a new run's row that say which coordinator has it, and from when on."""
        return {"coordinator": self.coordinator().name, "start_at": start_at}

    async def start(self, run: RunRecord) -> None:
        """Drive an accepted run until it ends or is suspended, unless it starts later."""
        await self.coordinator().accept_runs([run])
        if run.start_at is not None and run.start_at > self.now():
            return
        await self._rest_of(run.run_id)

    async def _rest_of(self, run_id: str) -> None:
        end = await self.coordinator().end_of(run_id)
        while end is not None and end.continued_to:
            end = await self.coordinator().end_of(end.continued_to)

    async def wait(self, run: RunRecord) -> RunEnd | None:
        """How the run's drive ends; None if it is not driven on this loop."""
        return await self.coordinator().end_of(run.run_id)

    async def wake(self, run: RunRecord) -> None:
        """Wake a run that no coordinator holds, and drive it until it ends or is suspended again."""
        if await self.nudge(run):
            await self.coordinator().end_of(run.run_id)

    async def nudge(self, run: RunRecord) -> bool:
        """Have a run look into its inbox, or wake it if no coordinator holds it; whether this woke it."""
        for loop, coordinator in list(self._coordinators.items()):
            if coordinator.is_driving(run.run_id):
                loop.call_soon_threadsafe(coordinator.deliver, run.run_id)
                return False
        await self.coordinator().wake([run.run_id])
        return True

    async def query(self, run: RunRecord, name: str, args: bytes, kwargs: bytes) -> bytes:
        """The outcome of the run's query function: what it returns or raises."""
        return await self.coordinator().query(run.run_id, name, args, kwargs)

    async def answer_hook(self, answer: HookAnswer) -> Taken:
        """Hand an answer to a hook registry in this process, and drive the run that takes it."""
        loop = asyncio.get_running_loop()
        if loop not in self._hook_answers:
            now = None if self._clock is None else self._clock.now
            # It nudges nobody: whoever answers drives the run.
            registry = HookRegistry(self._engine_settings, lambda run_ids: None, self._storage, now)
            self._hook_answers[loop] = hook_answers(registry.deliver_all)
        run_id, hook_id = await self._hook_answers[loop].send(answer)
        run = await asyncio.to_thread(self._storage.read, get_run(run_id))
        if run is not None:
            await self.wake(run)
        return run_id, hook_id


Runtime = RayRuntime | LocalRuntime
