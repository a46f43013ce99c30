"""The hooks that a run has made, and what it waits for at them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from msgspec import Raw

from pyworkflow_ray.engine.commands import CreateHook, DisposeHook
from pyworkflow_ray.engine.events import HookCreated, HookDisposed, HookExpired, HookReceived
from pyworkflow_ray.exceptions import HookExpiredError, NonDeterminismError, StepFailedError
from pyworkflow_ray.ids import Ordinals, new_token
from pyworkflow_ray.values.failures import restore

if TYPE_CHECKING:
    from pyworkflow_ray.engine.executions import Execution

_EXPIRY = "\0hook:"
"""Before a hook's id: the id of the timer that expires it. No sleep can be named so."""


@dataclass(slots=True)
class PendingHook:
    """A hook that waits for its payload."""

    command: CreateHook
    future: asyncio.Future[HookReceived | HookExpired]


class Hooks:
    """A run's hooks.

    Args:
        execution: The run.
    """

    def __init__(self, execution: Execution) -> None:
        self.pending: dict[str, PendingHook] = {}
        self._execution = execution
        self._ordinals = Ordinals()
        self._made: set[str] = set()

    def create(
        self, name: str, *, token: str | None, expires_at: datetime | None, schema: Any, metadata: Raw
    ) -> PendingHook:
        """Make a hook; its token is drawn when the code first comes here, and kept in every replay."""
        execution = self._execution
        hook_id = self._ordinals.next(name)
        recorded = execution.recorded(HookCreated, hook_id)
        if recorded is None:
            command = CreateHook(hook_id, name, token or new_token(), expires_at, schema, metadata)
            execution.emit(command)
        else:
            command = CreateHook(hook_id, name, recorded.token, recorded.expires_at, schema, metadata)
        pending = PendingHook(command, execution.future())
        self._made.add(hook_id)
        self.pending[hook_id] = pending
        if command.expires_at is not None:
            execution.timers.start(_EXPIRY + hook_id, command.expires_at, None)
        return pending

    async def payload(self, pending: PendingHook) -> Any:
        """What comes for the hook; raises what it was rejected with, or that it has expired."""
        hook_id = pending.command.hook_id
        event = await pending.future
        if isinstance(event, HookExpired):
            raise HookExpiredError(hook_id)
        if event.failure is not None:
            raise restore(event.failure, fallback=StepFailedError)
        return self._execution.codec.decode(event.payload)

    def dispose(self, pending: PendingHook) -> None:
        """Let a hook go that the code no longer waits for; nothing happens to one that is answered."""
        hook_id = pending.command.hook_id
        if self._take(hook_id) is None:
            return
        if self._execution.recorded(HookDisposed, hook_id) is None:
            self._execution.emit(DisposeHook(hook_id))

    def answer(self, event: HookReceived | HookExpired) -> None:
        """Apply what came for a hook. One that the code has let go is answered to no effect: the answer
        was accepted before that was known."""
        pending = self._take(event.hook_id)
        if pending is not None:
            pending.future.set_result(event)
        elif event.hook_id not in self._made:
            raise NonDeterminismError(
                f"Run {self._execution.run_id!r}: its history tells an answer to hook {event.hook_id!r}, "
                "which the code has not made."
            )

    def expiry(self, timer_id: str) -> HookExpired | None:
        """The event that this timer stands for, if it is a hook's."""
        if not timer_id.startswith(_EXPIRY):
            return None
        return HookExpired(hook_id=timer_id.removeprefix(_EXPIRY))

    def _take(self, hook_id: str) -> PendingHook | None:
        self._execution.timers.forget(_EXPIRY + hook_id)
        return self.pending.pop(hook_id, None)
