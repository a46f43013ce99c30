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
from pathlib import Path
from typing import Any

from loguru import logger

from pyworkflow_ray.actors.settings import EngineSettings
from pyworkflow_ray.exceptions import ConfigurationError
from pyworkflow_ray.storage.environments import load_environment

TIMER = "timer"
HOOK_REGISTRY = "hook-registry"
CONCURRENCY = 10_000
"""Calls that one coordinator holds at once: one for each run that somebody waits for."""

_lock = threading.RLock()


class Cluster:
    """Makes and finds the engine's actors. Every method may block: call it off the event loop."""

    def __init__(self, engine: EngineSettings) -> None:
        self.engine = engine
        self._handles: dict[str, Any] = {}

    def known(self, name: str) -> Any:
        """The handle of an actor that this process has used before, or None."""
        return self._handles.get(name)

    def coordinator(self, name: str, environment: str) -> Any:
        """The coordinator of this name, created in this environment if it is not there."""
        from pyworkflow_ray.actors.remote import coordinator_class

        if environment == self.engine.environment:
            return self._get(name, coordinator_class, name)
        return self._handles.get(name) or self._of_another_environment(name, environment)

    def timer(self, environment: str | None = None) -> Any:
        """The timer of an environment (of this process's by default), created if it is not there."""
        from pyworkflow_ray.actors.remote import timer_class

        of = self.engine.environment if environment is None else environment
        return self._get(_timer_of(of), timer_class, environment=of)

    def _of_another_environment(self, name: str, environment: str) -> Any:
        # An actor inherits the environment of whoever creates it, and can add to it, but not do without it.
        # So the timer that lives in the other one has to make this coordinator.
        import ray

        try:
            handle = ray.get_actor(name, namespace=self.engine.namespace)
        except ValueError:
            self.timer(environment).make_coordinator.remote(name).future().result(timeout=60)
            handle = ray.get_actor(name, namespace=self.engine.namespace)
        self._handles[name] = handle
        return handle

    def hook_registry(self) -> Any:
        """The hook registry, created if it is not there."""
        from pyworkflow_ray.actors.remote import hook_registry_class

        return self._get(HOOK_REGISTRY, hook_registry_class)

    def forget(self, name: str) -> None:
        """Look an actor up anew next time: the one we knew is gone."""
        self._handles.pop(name, None)

    def forget_timer(self, environment: str | None = None) -> None:
        """As `forget`, for the timer of an environment."""
        self.forget(_timer_of(self.engine.environment if environment is None else environment))

    def _get(
        self, name: str, make_class: Callable[[], Any], *args: Any, environment: str | None = None
    ) -> Any:
        of = self.engine.environment if environment is None else environment
        with _lock:
            handle = self._handles.get(name)
            if handle is None:
                options = self._options(name) | self._runtime_env(of)
                handle = make_class().options(**options).remote(*args, replace(self.engine, environment=of))
                self._handles[name] = handle
            return handle

    def _options(self, name: str) -> dict[str, Any]:
        options: dict[str, Any] = {
            "name": name,
            "namespace": self.engine.namespace,
            "lifetime": "detached",
            "get_if_exists": True,
            "num_cpus": 0,
            "max_restarts": -1,
            "max_task_retries": 0,
            "max_concurrency": CONCURRENCY,
        }
        if self.engine.node_id is not None:
            from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

            options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(self.engine.node_id, soft=False)
        return options

    def _runtime_env(self, environment: str) -> dict[str, Any]:
        """What an actor of another environment than this process's must be told; its own is inherited.

        This is for timers alone, and for those whose own job is long gone: such a one has this process's
        environment, too.
        """
        if environment in ("", self.engine.environment):
            return {}
        with self.engine.open_storage() as storage:
            data = storage.read(load_environment(environment))
        return {} if data is None else {"runtime_env": json.loads(data)}


def running_engine(namespace: str) -> EngineSettings | None:
    """The engine that runs in a namespace of the cluster which this process has joined; None without one.

    Any of its timers tells: one was made when the engine was first used, and goes with the cluster.
    """
    import ray

    named = ray.util.list_named_actors(all_namespaces=True)
    timers = [
        actor["name"] for actor in named if actor["namespace"] == namespace and _is_timer(actor["name"])
    ]
    for name in sorted(timers):
        try:
            timer: Any = ray.get_actor(name, namespace=namespace)
            engine: EngineSettings = timer.running.remote().future().result(timeout=30)
            return engine
        except Exception as error:  # it is going, or coming back
            logger.debug("Timer {} does not say what it serves: {}", name, type(error).__name__)
    return None


def has_joined() -> bool:
    """Whether this process is part of a Ray cluster; does not import Ray to find out."""
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def joined_job() -> str | None:
    """What this process is to the cluster that it has joined; another after it has joined anew."""
    if not has_joined():
        return None
    import ray

    return str(ray.get_runtime_context().get_job_id())


def named_address(address: str | None) -> str | None:
    """The address of the cluster to join, as the setting or else Ray's own variable names it."""
    return address or os.environ.get("RAY_ADDRESS") or None


def address_of_local_cluster() -> str | None:
    """The address of the cluster that `ray start` has left running on this machine, as Ray notes it."""
    with contextlib.suppress(OSError):
        return Path("/tmp/ray/ray_current_cluster").read_text().strip() or None
    return None


def _is_timer(name: str) -> bool:
    return name == TIMER or name.startswith(f"{TIMER}-")


def _timer_of(environment: str) -> str:
    return f"{TIMER}-{environment}" if environment else TIMER


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
    # A cluster of this process's own ends with it: its dashboard would start longer than it is looked at.
    dashboard: dict[str, Any] = {"include_dashboard": False} if address in (None, "local") else {}
    try:
        # Ray tells of its own doings at length; what a person wants to see are the steps' own lines.
        _on_lasting_thread(
            lambda: ray.init(address=address, namespace=namespace, logging_level=logging.ERROR, **dashboard)
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise _not_there(address, error) from error


def _on_lasting_thread(call: Callable[[], Any]) -> None:
    """Make a call on a thread that lasts as long as the process.

    The kernel ends the processes of a local cluster when the thread ends that has started them: one of an
    event loop's own, say, when `asyncio.run` returns.
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
    """Find out at once that nobody listens at an address; Ray itself tries for minutes."""
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
        "address out to run on a local cluster of this process. Should it be there: all its processes must "
        "agree on RAY_AUTH_MODE and its token."
    )


def job_environment() -> tuple[str, str]:
    """What of this job's `runtime_env` matters to where its runs may live: a short hash, and JSON text.

    The working directory does not: a run carries its code, and a job's directory is deleted after it. Both
    are empty for a job without the rest.
    """
    import ray

    ignored = ("working_dir", "excludes", "config", "_ray_release", "_ray_commit")
    runtime_env = dict(ray.get_runtime_context().runtime_env)
    relevant = {k: v for k, v in runtime_env.items() if k not in ignored and v}
    if not relevant:
        return "", ""
    data = json.dumps(relevant, sort_keys=True, default=str)
    return hashlib.sha256(data.encode()).hexdigest()[:8], data


def placed_on(engine: EngineSettings, is_file: bool, slots: int | str | None) -> EngineSettings:
    """The engine as it is on the cluster that this process has joined.

    Args:
        engine: As configured.
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
        engine,
        slots=count,
        environment=job_environment()[0],
        node_id=str(context.get_node_id()) if is_file else None,
    )
