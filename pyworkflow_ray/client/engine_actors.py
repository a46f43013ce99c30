"""The engine's actors: starting, stopping and inspecting them."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

import msgspec

from pyworkflow_ray.actors.cluster import actor_names, running_engine
from pyworkflow_ray.actors.connections import (
    address_of_local_cluster,
    connect,
    is_own_cluster,
    named_address,
    require_joined,
)
from pyworkflow_ray.actors.names import HOOK_REGISTRY, TIMER, is_coordinator
from pyworkflow_ray.client.runtimes import LocalRuntime, RayRuntime
from pyworkflow_ray.client.sessions import enter, leave, session
from pyworkflow_ray.config import get_config
from pyworkflow_ray.exceptions import ConfigurationError
from pyworkflow_ray.storage.records import RunRecord

FOR_GOOD = timedelta(days=36_500)
ANSWER_TIME = 10.0
"""Seconds after which an actor counts as not answering."""
END_TIME = 15.0
"""Seconds that actors may take to end."""
_LAST_TO_GO = (HOOK_REGISTRY, TIMER)


@dataclass(frozen=True, slots=True)
class EngineActor:
    """An actor of an engine. `pid` is None when it does not answer."""

    name: str
    pid: int | None = None
    is_new: bool = False
    runs: int | None = None
    """For a coordinator: how many runs it drives now."""


@dataclass(frozen=True, slots=True)
class Node:
    """A living node of the cluster."""

    name: str
    cpus: float
    gpus: float


@dataclass(frozen=True, slots=True)
class EngineState:
    """The state of an engine in the cluster that this process has joined.

    `storage_url` is the database that the engine uses, with its password; None if no engine runs.
    """

    address: str
    ray_version: str
    nodes: list[Node]
    actors: list[EngineActor]
    storage_url: str | None = field(default=None, repr=False)


async def join(*, may_start: bool = False, must_last: bool = False) -> bool:
    """Join a cluster: the one that the settings name, or one on this machine.

    Args:
        may_start: Whether to start a cluster, if none is named and none runs here that lasts. The new
            cluster ends with this process.
        must_last: Whether to refuse a cluster that another process has started for itself.

    Returns:
        Whether this process has started the cluster.

    Raises:
        ConfigurationError: There is no such cluster.
    """
    settings = get_config()
    address = named_address(settings.address)
    if address is None and not may_start:
        if must_last and address_of_local_cluster() is None:
            raise ConfigurationError(
                "No Ray cluster is named, and no lasting one runs on this machine. Start one with "
                "`ray start --head`, or name one by --address or RAY_ADDRESS."
            )
        address = (
            None if must_last else "auto"
        )  # any cluster on this machine, even one that another process has started for itself
    try:
        await asyncio.to_thread(connect, address, settings.namespace)
    except ConfigurationError:
        if address != "auto":
            raise
        raise ConfigurationError(
            "This needs a Ray cluster, and none runs on this machine. Start one with `ray start --head`, or "
            "name one by --address or RAY_ADDRESS."
        ) from None
    return is_own_cluster()


async def bring_up() -> list[EngineActor]:
    """Start the engine's actors in the joined cluster; one of them is a coordinator that never leaves.

    Raises:
        ConfigurationError: The cluster has gone, or an engine with another storage runs in it.
        StorageError: The database cannot be reached.
    """
    from pyworkflow_ray.actors.remote import cluster_of

    of = session(runtime="ray")
    assert isinstance(of.runtime, RayRuntime)
    known = set(await asyncio.to_thread(actor_names, of.settings.namespace))
    await of.runtime.open()
    cluster, settings = of.runtime.cluster, of.runtime.engine_settings
    # An idle coordinator leaves after a while. This one stays, so that runs start at once.
    lasting = cluster_of(replace(settings, coordinator_ttl=FOR_GOOD))
    first = lasting.coordinator_callee(settings.first_coordinator(), settings.environment)
    calls = [(cluster, cluster.timer_callee()), (cluster, cluster.hook_registry_callee()), (lasting, first)]
    pids = {callee.name: await of_.handles.call(callee, "pid") for of_, callee in calls}
    facts = await asyncio.to_thread(of.storage.facts)
    await lasting.handles.call(first, "accept", msgspec.msgpack.encode([]), facts["storage_id"])
    return [EngineActor(name, pid, is_new=name not in known) for name, pid in pids.items()]


async def take_down(namespace: str) -> list[str]:
    """Stop the engine's actors in the joined cluster; their names. The rows stay, and the runs with them.

    Raises:
        ConfigurationError: Another process, such as a driver that waits for a run, keeps creating them.
    """
    return await asyncio.to_thread(_take_down, namespace)


def _take_down(namespace: str) -> list[str]:
    import ray

    ended: dict[str, None] = {}
    deadline = time.monotonic() + END_TIME
    # Coordinators create a missing timer, and timer and hook registry create coordinators. So the order
    # matters, and one round may not be enough.
    while names := sorted(actor_names(namespace), key=_place_in_end):
        if time.monotonic() > deadline:
            raise ConfigurationError(
                f"These actors are created again as soon as they end: {', '.join(names)}. A process that "
                "waits for a run does that; end it first."
            )
        for name in names:
            ended[name] = None
            require_joined()
            with contextlib.suppress(ValueError):  # it has already gone
                ray.kill(ray.get_actor(name, namespace=namespace))
        time.sleep(0.1)
    return list(ended)


def _place_in_end(name: str) -> tuple[int, str]:
    return next((place for place, kind in enumerate(_LAST_TO_GO, 1) if name.startswith(kind)), 0), name


async def inspect_engine(namespace: str) -> EngineState:
    """The state of an engine in the joined cluster. Nothing is created or changed."""
    import ray

    names = await asyncio.to_thread(actor_names, namespace)
    actors = await asyncio.gather(*(_look_at(namespace, name) for name in sorted(names)))
    running = await asyncio.to_thread(running_engine, namespace)
    require_joined()
    nodes = await asyncio.to_thread(ray.nodes)
    return EngineState(
        address=str(ray.get_runtime_context().gcs_address),
        ray_version=ray.__version__,
        nodes=[_node(each) for each in nodes if each["Alive"]],
        actors=list(actors),
        storage_url=None if running is None else running.storage_url,
    )


def _node(facts: dict[str, Any]) -> Node:
    resources = facts.get("Resources", {})
    return Node(
        str(facts.get("NodeManagerHostname", "")), resources.get("CPU", 0.0), resources.get("GPU", 0.0)
    )


async def _look_at(namespace: str, name: str) -> EngineActor:
    import ray

    try:
        require_joined()
        async with asyncio.timeout(ANSWER_TIME):
            actor: Any = await asyncio.to_thread(ray.get_actor, name, namespace)
            pid = await actor.pid.remote()
            runs = len((await actor.status.remote())["runs"]) if is_coordinator(name) else None
    except Exception:
        return EngineActor(name)
    return EngineActor(name, pid, runs=runs)


class StoringRuntime(LocalRuntime):
    """Wakes no run. What is sent to runs is stored, and the sweep of a later engine finds it."""

    name = "storing"

    async def open(self) -> None:
        pass

    async def wake(self, run: RunRecord) -> None:
        pass


@contextlib.contextmanager
def store_only() -> Iterator[None]:
    """In this block, what is sent to runs is only stored, and no coordinator is nudged. Needs no Ray."""
    of = session(runtime="local")
    token = enter(replace(of, runtime=StoringRuntime(of.settings, of.storage)))
    try:
        yield
    finally:
        leave(token)
