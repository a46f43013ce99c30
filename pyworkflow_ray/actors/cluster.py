"""The actors of one engine on a Ray cluster: their names, and handles to them, made on demand."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import replace
from functools import partial
from threading import Thread
from typing import Any, Protocol

from loguru import logger

from pyworkflow_ray.actors.calls import Callee, Handles
from pyworkflow_ray.actors.connections import require_joined
from pyworkflow_ray.actors.names import HOOK_REGISTRY, is_of_engine, is_slot, is_timer, timer_of
from pyworkflow_ray.actors.pulses import Pulses
from pyworkflow_ray.actors.settings import EngineSettings
from pyworkflow_ray.exceptions import NoAnswerError
from pyworkflow_ray.storage.environments import bundle_of, job_of, load_environment

CONCURRENCY = 10_000
"""Calls that one coordinator holds at once: one for each run that somebody waits for."""

_ANSWER_TIME = 30.0
"""Seconds to wait for an actor that says which settings the engine has. It may be restarting."""
_MOST_ASKED = 8
LEAVING_TIME = 10.0
"""Seconds to wait for a coordinator that was asked to leave if it is idle."""

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
        self._job = job_of(settings.environment)
        self.handles = Handles(Pulses(settings.hung_after.total_seconds()))

    def coordinator_callee(self, name: str, environment: str) -> Callee:
        """The coordinator of this name, for calls to it."""
        return Callee(name, partial(self.coordinator, name, environment))

    def timer_callee(self, environment: str | None = None) -> Callee:
        """The timer of an environment (of this process's by default), for calls to it."""
        of = self._job if environment is None else job_of(environment)
        return Callee(timer_of(of), partial(self.timer, of))

    def hook_registry_callee(self) -> Callee:
        """The hook registry, for calls to it."""
        return Callee(HOOK_REGISTRY, self.hook_registry)

    def coordinator(self, name: str, environment: str) -> Any:
        """The coordinator of this name, created in this environment if it is not there."""
        if job_of(environment) == self._job:
            is_known = self.handles.get(name) is not None
            handle = self._get(name, self._classes.coordinator, name, environment=environment)
            if not is_known and bundle_of(environment) is not None:
                Thread(target=self._make_room, args=(environment,), daemon=True).start()
            return handle
        return self.handles.get(name) or self._of_another_environment(name, environment)

    def timer(self, environment: str | None = None) -> Any:
        """The timer of an environment (of this process's by default), created if it is not there."""
        of = self._job if environment is None else job_of(environment)
        return self._get(timer_of(of), self._classes.timer, environment=of)

    def hook_registry(self) -> Any:
        """The hook registry, created if it is not there."""
        return self._get(HOOK_REGISTRY, self._classes.hook_registry)

    def _of_another_environment(self, name: str, environment: str) -> Any:
        # An actor inherits the environment of the process that creates it. It can add to that environment
        # and cannot leave it. So the timer that lives in the other one creates this coordinator.
        handle = self._there(name)
        if handle is None:
            self.handles.call_in_thread(self.timer_callee(environment), "make_coordinator", name, environment)
            handle = self._there(name)
        if handle is None:
            raise NoAnswerError(f"Coordinator {name!r} is not there. Try again.")
        return self.handles.keep(name, handle)

    def _make_room(self, environment: str) -> None:
        """Have idle coordinators of other code leave, if there are more coordinators than slots."""
        import ray

        with contextlib.suppress(Exception):  # the others leave by themselves, a little later
            slots = sorted((name for name in self.actors() if is_slot(name)), reverse=True)
            excess = len(slots) - self.settings.slots
            own = self.settings.placement(environment).full_prefix
            for name in (each for each in slots if not each.startswith(own)):
                if excess <= 0:
                    return
                handle = self._there(name)
                if handle is not None:
                    try:
                        handle.exit.remote().future().result(timeout=LEAVING_TIME)
                    except ray.exceptions.RayActorError:
                        excess -= 1

    def visit(self, names: Iterable[str]) -> None:
        """See to it that those of these actors that are there and hang are replaced; blocking."""
        for name in names:
            handle = self._there(name)
            if handle is not None:
                self.handles.pulses.visit(name, handle)

    def actors(self) -> list[str]:
        """The names of the actors in the engine's namespace; blocking."""
        return actor_names(self.settings.namespace)

    def _there(self, name: str) -> Any:
        """The actor of this name; None if there is none."""
        import ray

        require_joined()
        try:
            return ray.get_actor(name, namespace=self.settings.namespace)
        except ValueError:
            return None

    def _get(
        self, name: str, make_class: Callable[[], Any], *args: Any, environment: str | None = None
    ) -> Any:
        of = self._job if environment is None else environment
        with _lock:
            handle = self.handles.get(name)
            if handle is None:
                require_joined()
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
        job = job_of(environment)
        if job in ("", self._job):
            return {}
        with self.settings.open_storage() as storage:
            data = storage.read(load_environment(job))
        return {} if data is None else {"runtime_env": json.loads(data)}


def actor_names(namespace: str) -> list[str]:
    """The names of an engine's actors in the joined cluster; blocking.

    Raises:
        NoAnswerError: This process has left its cluster.
    """
    import ray

    require_joined()
    named = ray.util.list_named_actors(all_namespaces=True)
    return [
        str(actor["name"])
        for actor in named
        if actor["namespace"] == namespace and is_of_engine(actor["name"])
    ]


def running_engine(namespace: str, patience: float = _ANSWER_TIME) -> EngineSettings | None:
    """The settings of the engine that runs in a namespace of the joined cluster; None if none runs there.

    Any actor of the engine answers. None as well if none does so within `patience` seconds. The first use of
    the engine creates a timer, and it lasts as long as the cluster.
    """
    import ray

    asked: set[Future[EngineSettings]] = set()
    for name in sorted(actor_names(namespace), key=lambda name: (not is_timer(name), name))[:_MOST_ASKED]:
        with contextlib.suppress(Exception):  # it has just gone
            require_joined()
            actor: Any = ray.get_actor(name, namespace=namespace)
            asked.add(actor.running.remote().future())
    deadline = time.monotonic() + patience
    while asked and (left := deadline - time.monotonic()) > 0:
        answered, asked = wait(asked, timeout=left, return_when=FIRST_COMPLETED)
        for each in answered:
            if (error := each.exception()) is None:
                return each.result()
            logger.debug("An actor did not say which settings it has: {}", type(error).__name__)
    return None


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
