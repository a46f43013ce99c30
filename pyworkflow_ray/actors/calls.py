"""Calls to actors that may be dead, or may hang.

A handle outlives its actor. The first call after the actor's death fails; then the handle is forgotten, the
actor is looked up again under its name, and the call is made to the actor that is found or created. A call
may so reach an actor twice, and every method that is called here must bear that.

An actor may also live and not answer (`pulses`). Whoever calls it learns that within seconds, as a
`NoAnswerError`, and takes another way: the rows, or another coordinator. The call is not withdrawn. The actor
may still carry it out, and a new process takes the hung one's place meanwhile.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from typing import Any

from pyworkflow_ray.actors.connections import require_joined
from pyworkflow_ray.actors.pulses import Pulses
from pyworkflow_ray.exceptions import NoAnswerError, WorkflowError

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
"""Seconds that a caller waits for the answer of an actor that lives."""
QUIET = 0.5
"""Seconds after which a caller asks for the actor's pulse. Most calls are answered before that."""


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

    def __init__(self, pulses: Pulses) -> None:
        self._known: dict[str, Any] = {}
        self.pulses = pulses

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

    async def call(
        self,
        actor: Callee,
        method: str,
        *args: object,
        patience: float = 0.0,
        answer_time: float = ANSWER_TIME,
    ) -> Any:
        """Call an actor from an event loop; its answer.

        Args:
            patience: Seconds for which a dead actor is tried again, at least.
            answer_time: Seconds to wait for an actor that lives.

        Raises:
            WorkflowError: The actor raised it.
            NoAnswerError: The actor does not answer; or it is dead, and so was each that took its place; or
                this process has left its cluster.
        """
        from ray.exceptions import RayError

        tries = _Tries(self, actor.name, TRIES, patience)
        while True:
            if self.pulses.is_silent(actor.name):
                raise _silent(actor.name)
            handle = self.get(actor.name)
            if handle is None:
                handle = await asyncio.to_thread(actor.find)
            require_joined()
            try:
                reference = getattr(handle, method).remote(*args)
                return await self._answer(actor.name, handle, reference.future(), answer_time)
            except RayError as error:
                pause = tries.pause_after(error)
            await asyncio.sleep(pause)

    async def _answer(self, name: str, handle: Any, answer: Future[Any], seconds: float) -> Any:
        here = asyncio.wrap_future(answer)
        try:
            await asyncio.wait([here], timeout=QUIET)
            if not here.done():
                silence = self.pulses.watch(name, handle)
                try:
                    await asyncio.wait(
                        [here, asyncio.wrap_future(silence)], timeout=seconds, return_when=FIRST_COMPLETED
                    )
                finally:
                    self.pulses.unwatch(name, silence)
            if not here.done():
                raise _silent(name)
            return here.result()
        finally:
            here.cancel()  # nobody asks for it any more

    def call_in_thread(self, actor: Callee, method: str, *args: object, tries: int = 2) -> Any:
        """As `call`, for a thread that may wait; Ray's dashboard shows the call under the method's name."""
        from ray.exceptions import RayError

        left = _Tries(self, actor.name, tries)
        while True:
            if self.pulses.is_silent(actor.name):
                raise _silent(actor.name)
            handle = actor.find()
            require_joined()
            try:
                reference = getattr(handle, method).options(name=method).remote(*args)
                # Not ray.get, which warns of a blocked event loop in every process of an async actor.
                return self._answer_in_thread(actor.name, handle, reference.future())
            except RayError as error:
                pause = left.pause_after(error)
            time.sleep(pause)

    def _answer_in_thread(self, name: str, handle: Any, answer: Future[Any]) -> Any:
        if not wait([answer], timeout=QUIET).done:
            silence = self.pulses.watch(name, handle)
            try:
                wait([answer, silence], timeout=ANSWER_TIME, return_when=FIRST_COMPLETED)
            finally:
                self.pulses.unwatch(name, silence)
        if not answer.done():
            raise _silent(name)
        return answer.result()


class _Tries:
    """How often a call is tried again, and after which pauses."""

    def __init__(self, handles: Handles, name: str, tries: int, patience: float = 0.0) -> None:
        self._handles, self._name, self._left = handles, name, tries
        self._pause = FIRST_PAUSE
        self._until = time.monotonic() + patience

    def pause_after(self, error: Exception) -> float:
        """Seconds until the next try; raises an error if there is none."""
        from ray.exceptions import RayTaskError

        if isinstance(error, RayTaskError):
            raise (error.cause if isinstance(error.cause, WorkflowError) else error) from None
        # Any other error is Ray's own: the actor is dead, is being restarted or cannot be reached, or its
        # answer got lost. Whatever it was, the same call may do better a little later.
        self._handles.forget(self._name)
        self._left -= 1
        if self._left <= 0 and time.monotonic() >= self._until:
            raise NoAnswerError(
                f"Actor {self._name!r} of the engine cannot be reached: {type(error).__name__}: {error}"
            ) from error
        pause, self._pause = self._pause, min(self._pause * 3, LONGEST_PAUSE)
        return pause


def _silent(name: str) -> NoAnswerError:
    return NoAnswerError(
        f"Actor {name!r} of the engine does not answer. Its process may be stopped, or its machine "
        "overloaded. It is replaced if this lasts (setting hung_after). What is stored is safe: try again."
    )
