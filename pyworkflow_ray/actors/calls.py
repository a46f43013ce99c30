"""Calls to actors that may be dead.

A handle outlives its actor. The first call after the actor's death fails; then the handle is forgotten, the
actor is looked up again under its name, and the call is made to the actor that is found or created. A call
may so reach an actor twice, and every method that is called here must bear that.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pyworkflow_ray.exceptions import WorkflowError

TRIES = 5
"""Tries at a call, before it is left to the sweep to repair what the call was for."""
FIRST_PAUSE = 0.05
"""Seconds between the first try and the second. Each further pause is three times as long."""
LONGEST_PAUSE = 2.0
"""Seconds between two tries at most."""
PATIENCE = 30.0
"""Seconds for which a call is tried that no sweep makes up for. Ray needs 1 to 2 s to restart an actor on an
idle machine, and many times that on a busy one."""
ANSWER_TIME = 60.0
"""Seconds that a thread waits for an actor's answer."""


@dataclass(frozen=True, slots=True)
class Callee:
    """An actor as its callers know it.

    Args:
        name: Its name on the cluster.
        find: Finds the actor or creates it; blocking.
    """

    name: str
    find: Callable[[], Any]


class Handles:
    """The handles of actors that this process has used."""

    def __init__(self) -> None:
        self._known: dict[str, Any] = {}

    def get(self, name: str) -> Any:
        """The actor's handle; None if this process has not used it yet."""
        return self._known.get(name)

    def keep(self, name: str, handle: Any) -> Any:
        """Know the actor by this handle from now on; the handle."""
        self._known[name] = handle
        return handle

    def forget(self, name: str) -> None:
        """Have the actor looked up again: the one that was known is dead."""
        self._known.pop(name, None)

    async def call(self, actor: Callee, method: str, *args: object, patience: float = 0.0) -> Any:
        """Call an actor from an event loop; its answer.

        Args:
            patience: Seconds for which a dead actor is tried again, at least.

        Raises:
            WorkflowError: The actor raised it.
            RayActorError: The actor is dead, and so was each that took its place.
        """
        from ray.exceptions import RayError

        tries = _Tries(self, actor.name, TRIES, patience)
        while True:
            handle = self.get(actor.name)
            if handle is None:
                handle = await asyncio.to_thread(actor.find)
            try:
                return await getattr(handle, method).remote(*args)
            except RayError as error:
                pause = tries.pause_after(error)
            await asyncio.sleep(pause)

    def call_in_thread(self, actor: Callee, method: str, *args: object, tries: int = 2) -> Any:
        """As `call`, for a thread that may wait; the call shows under the method's name in Ray's dashboard.

        Raises:
            TimeoutError: The actor did not answer in time.
        """
        from ray.exceptions import RayError

        left = _Tries(self, actor.name, tries)
        while True:
            handle = actor.find()
            try:
                reference = getattr(handle, method).options(name=method).remote(*args)
                # Not ray.get, which warns of a blocked event loop in every process of an async actor.
                return reference.future().result(timeout=ANSWER_TIME)
            except RayError as error:
                pause = left.pause_after(error)
            time.sleep(pause)


class _Tries:
    """How often a call is tried again, and after which pauses."""

    def __init__(self, handles: Handles, name: str, tries: int, patience: float = 0.0) -> None:
        self._handles, self._name, self._left = handles, name, tries
        self._pause = FIRST_PAUSE
        self._until = time.monotonic() + patience

    def pause_after(self, error: Exception) -> float:
        """Seconds until the next try; raises the error if there is none."""
        from ray.exceptions import RayActorError, RayTaskError

        if isinstance(error, RayTaskError):
            raise (error.cause if isinstance(error.cause, WorkflowError) else error) from None
        if not isinstance(error, RayActorError):
            raise error
        self._handles.forget(self._name)
        self._left -= 1
        if self._left <= 0 and time.monotonic() >= self._until:
            raise error
        pause, self._pause = self._pause, min(self._pause * 3, LONGEST_PAUSE)
        return pause
