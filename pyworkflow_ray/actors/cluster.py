"""The actors of one engine on a Ray cluster: their names, and handles to them, made on demand."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import socket
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from loguru import logger

from pyworkflow_ray.actors.calls import Callee, Handles
from pyworkflow_ray.actors.names import HOOK_REGISTRY, is_timer, timer_of
from pyworkflow_ray.actors.settings import EngineSettings
from pyworkflow_ray.exceptions import ConfigurationError
from pyworkflow_ray.storage.environments import load_environment

CONCURRENCY = 10_000
"""Calls that one coordinator holds at once: one for each run that somebody waits for."""

_lock = threading.RLock()
"""Held while an actor is looked up or created, so that two threads of this process do it once."""


class ActorClasses(Protocol):
    """The actors of an engine as Ray actor classes. They are in `remote`, which imports Ray at once."""

    def coordinator(self) -> Any: ...
    def timer(self) -> Any: ...
    def hook_registry(self) -> Any: ...


class Cluster:
    """Finds and creates the engine's actors, and calls them.

    The methods that give a handle may block: call them off the event loop.

    Args:
        settings: The settings of all actors.
        classes: What to create actors of.
    """

    def __init__(self, settings: EngineSettings, classes: ActorClasses) -> None:
        self.settings, self._classes = settings, classes
        self.handles = Handles()

    def coordinator_callee(self, name: str, environment: str) -> Callee:
        """The coordinator of this name, for calls to it."""
        return Callee(name, partial(self.coordinator, name, environment))

    def timer_callee(self, environment: str | None = None) -> Callee:
        """The timer of an environment (of this process's by default), for calls to it."""
        of = self.settings.environment if environment is None else environment
        return Callee(timer_of(of), partial(self.timer, of))

    def hook_registry_callee(self) -> Callee:
        """The hook registry, for calls to it."""
        return Callee(HOOK_REGISTRY, self.hook_registry)

    def coordinator(self, name: str, environment: str) -> Any:
        """The coordinator of this name, created in this environment if it is not there."""
        if environment == self.settings.environment:
            return self._get(name, self._classes.coordinator, name)
        return self.handles.get(name) or self._of_another_environment(name, environment)

    def timer(self, environment: str | None = None) -> Any:
        """The timer of an environment (of this process's by default), created if it is not there."""
        of = self.settings.environment if environment is None else environment
        return self._get(timer_of(of), self._classes.timer, environment=of)

    def hook_registry(self) -> Any:
        """The hook registry, created if it is not there."""
        return self._get(HOOK_REGISTRY, self._classes.hook_registry)

    def _of_another_environment(self, name: str, environment: str) -> Any:
        # An actor inherits the environment of the process that creates it. It can add to that environment
        # and cannot leave it. So the timer that lives in the other one creates this coordinator.
        import ray

        try:
            handle = ray.get_actor(name, namespace=self.settings.namespace)
        except ValueError:
            self.handles.call_in_thread(self.timer_callee(environment), "make_coordinator", name)
            handle = ray.get_actor(name, namespace=self.settings.namespace)
        return self.handles.keep(name, handle)

    def _get(
        self, name: str, make_class: Callable[[], Any], *args: Any, environment: str | None = None
    ) -> Any:
        of = self.settings.environment if environment is None else environment
        with _lock:
            handle = self.handles.get(name)
            if handle is None:
                options = self._options(name) | self._runtime_env(of)
                settings = replace(self.settings, environment=of)
                handle = self.handles.keep(name, make_class().options(**options).remote(*args, settings))
            return handle

    def _options(self, name: str) -> dict[str, Any]:
        options: dict[str, Any] = {
            "name": name,
            "namespace": self.settings.namespace,
            "lifetime": "detached",
            "get_if_exists": True,
            "num_cpus": 0,
            "max_restarts": -1,
            "max_task_retries": 0,
            "max_concurrency": CONCURRENCY,
        }
        if self.settings.node_id is not None:
            from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

            options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(self.settings.node_id, soft=False)
        return options

    def _runtime_env(self, environment: str) -> dict[str, Any]:
        """The `runtime_env` to create an actor with, if its environment is not this process's.

        Only a timer is created for another environment. If the job of that environment has ended, the timer
        gets this process's environment on top.
        """
        if environment in ("", self.settings.environment):
            return {}
        with self.settings.open_storage() as storage:
            data = storage.read(load_environment(environment))
        return {} if data is None else {"runtime_env": json.loads(data)}


def running_engine(namespace: str) -> EngineSettings | None:
    """The settings of the engine that runs in a namespace of the joined cluster; None if none runs there.

    Any timer of the engine answers. The first use of the engine creates one, and it lasts as long as the
    cluster.
    """
    import ray

    named = ray.util.list_named_actors(all_namespaces=True)
    timers = [actor["name"] for actor in named if actor["namespace"] == namespace and is_timer(actor["name"])]
    for name in sorted(timers):
        try:
            timer: Any = ray.get_actor(name, namespace=namespace)
            settings: EngineSettings = timer.running.remote().future().result(timeout=30)
            return settings
        except Exception as error:  # it is ending, or restarting
            logger.debug("Timer {} did not say which settings it has: {}", name, type(error).__name__)
    return None


def has_joined() -> bool:
    """Whether this process has joined a Ray cluster; does not import Ray."""
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def joined_job() -> str | None:
    """The id of this process's job in the cluster that it has joined. It changes with each joining."""
    if not has_joined():
        return None
    import ray

    return str(ray.get_runtime_context().get_job_id())


def named_address(address: str | None) -> str | None:
    """The address of the cluster to join: the setting's, else that of Ray's own variable."""
    return address or os.environ.get("RAY_ADDRESS") or None


def address_of_local_cluster() -> str | None:
    """The address of the cluster that `ray start` has left running on this machine, as Ray notes it."""
    with contextlib.suppress(OSError):
        return Path("/tmp/ray/ray_current_cluster").read_text().strip() or None
    return None


def connect(address: str | None, namespace: str) -> None:
    """Join the Ray cluster, or start a local one when none is named and none is running.

    Raises:
        ConfigurationError: The cluster that was named is not there.
    """
    import ray

    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if not os.environ.get("RAY_ADDRESS", "x"):
        del os.environ["RAY_ADDRESS"]  # Ray takes an empty one for an address that is broken
    address = named_address(address)
    _require_listener(address)
    # A cluster of this process's own ends with the process. It gets no dashboard, which starts slowly.
    dashboard: dict[str, Any] = {"include_dashboard": False} if address in (None, "local") else {}
    try:
        # Ray logs much about itself. A person wants to see the lines of the steps.
        _on_lasting_thread(
            lambda: ray.init(address=address, namespace=namespace, logging_level=logging.ERROR, **dashboard)
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise _not_there(address, error) from error


def _on_lasting_thread(call: Callable[[], Any]) -> None:
    """Make a call on a thread that lasts as long as the process.

    The kernel ends the processes of a local cluster when the thread that started them ends. A thread of an
    event loop would end when `asyncio.run` returns.
    """
    called: Future[Any] = Future()

    def run() -> None:
        try:
            called.set_result(call())
        except BaseException as error:
            called.set_exception(error)
        else:
            threading.Event().wait()

    threading.Thread(target=run, name="pyworkflow-ray", daemon=True).start()
    called.result()


def _require_listener(address: str | None) -> None:
    """Raise at once if nobody listens at the address: Ray itself would try for minutes."""
    host, separator, port = (address or "").removeprefix("ray://").rpartition(":")
    if separator and port.isdigit():
        try:
            socket.create_connection((host, int(port)), timeout=10).close()
        except OSError as error:
            raise _not_there(address, error) from error


def _not_there(address: str | None, error: Exception) -> ConfigurationError:
    return ConfigurationError(
        f"The Ray cluster at {address or 'this machine'} cannot be joined: {error}. Start one with "
        "`ray start --head`, name another with configure(address='...') or RAY_ADDRESS, or leave the "
        "address out to run on a local cluster of this process. If the cluster is there: all processes must "
        "have the same RAY_AUTH_MODE and token."
    )


def job_environment() -> tuple[str, str]:
    """The part of this job's `runtime_env` that its runs need: a short hash of it, and it as JSON text.

    The working directory is left out: a run carries its code, and a job's directory is deleted after the
    job. Hash and text are empty if nothing else is set.
    """
    import ray

    ignored = ("working_dir", "excludes", "config", "_ray_release", "_ray_commit")
    runtime_env = dict(ray.get_runtime_context().runtime_env)
    relevant = {k: v for k, v in runtime_env.items() if k not in ignored and v}
    if not relevant:
        return "", ""
    data = json.dumps(relevant, sort_keys=True, default=str)
    return hashlib.sha256(data.encode()).hexdigest()[:8], data


def placed_on(settings: EngineSettings, is_file: bool, slots: int | str | None) -> EngineSettings:
    """The settings as they are on the cluster that this process has joined.

    Args:
        settings: As configured.
        is_file: Whether the storage is a file, which only this node has.
        slots: The setting `coordinators`: a number, "per_run", or None for twice the cluster's CPUs.
    """
    import ray

    if isinstance(slots, int):
        count = slots
    else:
        resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        count = max(4, int(2 * resources.get("CPU", 1)))
    context = ray.get_runtime_context()
    return replace(
        settings,
        slots=count,
        environment=job_environment()[0],
        node_id=str(context.get_node_id()) if is_file else None,
    )
