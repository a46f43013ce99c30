"""The hooks that a run has created, and the payloads that it waits for."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from msgspec import Raw

from pyworkflow_ray.engine.commands import CreateHook, DisposeHook
from pyworkflow_ray.engine.events import HookCreated, HookDisposed, HookExpired, HookReceived
from pyworkflow_ray.engine.recordings import Halt
from pyworkflow_ray.engine.scopes import Scope
from pyworkflow_ray.engine.timers import Timers
from pyworkflow_ray.exceptions import HookExpiredError, NonDeterminismError, StepFailedError
from pyworkflow_ray.ids import Ordinals, new_token
from pyworkflow_ray.values.failures import restore

_EXPIRY = "\0hook:"
"""The prefix of the timer that expires a hook. No sleep can have such a name."""


@dataclass(slots=True)
class PendingHook:
    """A hook that waits for its payload."""

    command: CreateHook
    future: asyncio.Future[HookReceived | HookExpired]


class Hooks:
    """A run's hooks.

    Args:
        scope: The run.
        timers: The run's timers; those that expire hooks are kept there.
    """

    def __init__(self, scope: Scope, timers: Timers) -> None:
        self.pending: dict[str, PendingHook] = {}
        self._scope, self._timers = scope, timers
        self._ordinals = Ordinals()
        self._created: set[str] = set()
        # Invariant: `pending` is a part of it, without the hooks that are answered or disposed of.

    def create(
        self, name: str, *, token: str | None, expires_at: datetime | None, schema: Any, metadata: Raw
    ) -> PendingHook:
        """Create a hook. Its token is drawn when the code first comes here, and is kept in every replay."""
        recording = self._scope.recording
        hook_id = self._ordinals.next(name)
        recorded = recording.recorded(HookCreated, hook_id)
        if recorded is None:
            command = CreateHook(hook_id, name, token or new_token(), expires_at, schema, metadata)
            recording.emit(command)
        else:
            command = CreateHook(hook_id, name, recorded.token, recorded.expires_at, schema, metadata)
        pending = PendingHook(command, self._scope.future())
        self._created.add(hook_id)
        self.pending[hook_id] = pending
        if command.expires_at is not None:
            self._timers.keep(_EXPIRY + hook_id, command.expires_at, None)
        return pending

    async def call(self, pending: PendingHook) -> Any:
        """Wait for a hook's payload. Dispose of the hook if the code no longer waits."""
        try:
            try:
                return await self._payload(pending)
            except asyncio.CancelledError:
                self.dispose(pending)
                raise
        except Halt:
            await self._scope.stall()

    async def _payload(self, pending: PendingHook) -> Any:
        """The hook's payload. Raises the error that rejected the hook, or that the hook has expired."""
        hook_id = pending.command.hook_id
        event = await pending.future
        if isinstance(event, HookExpired):
            raise HookExpiredError(hook_id)
        if event.failure is not None:
            raise restore(event.failure, fallback=StepFailedError)
        return self._scope.codec.decode(event.payload)

    def dispose(self, pending: PendingHook) -> None:
        """Let go of a hook that the code no longer waits for. Nothing happens to one that is answered."""
        hook_id = pending.command.hook_id
        if self._take(hook_id) is None:
            return
        if self._scope.recording.recorded(HookDisposed, hook_id) is None:
            self._scope.recording.emit(DisposeHook(hook_id))

    def apply(self, event: HookReceived | HookExpired) -> None:
        """Apply what came for a hook.

        It has no effect on a hook that the code has disposed of. Such an event was accepted before anybody
        knew of that.
        """
        pending = self._take(event.hook_id)
        if pending is not None:
            pending.future.set_result(event)
        elif event.hook_id not in self._created:
            raise NonDeterminismError(
                f"Run {self._scope.run_id!r}: its history has an answer to hook {event.hook_id!r}, "
                "which the code has not created."
            )

    def expiry(self, timer_id: str) -> HookExpired | None:
        """The event that says that a hook has expired, if this is the timer of a hook."""
        if not timer_id.startswith(_EXPIRY):
            return None
        return HookExpired(hook_id=timer_id.removeprefix(_EXPIRY))

    def _take(self, hook_id: str) -> PendingHook | None:
        self._timers.forget(_EXPIRY + hook_id)
        return self.pending.pop(hook_id, None)
