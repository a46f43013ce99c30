"""The attempts of a run's steps: those under way, those due later, and those that have ended.

No attempt begins twice, whatever happens to the run and its coordinators:

- Within one claim of the run, `Attempts.dispatch` lets each number of a step through once.
- Each claim that takes the run over records `workflow.interrupted`. With it all unfinished attempts get new
  numbers, and a step that must not run twice is not tried again if an attempt of it may have begun
  (`PendingStep.lose_attempt`).
- A claim lets go of the run only when none of its attempts is unfinished. Otherwise the next claim takes the
  run over.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from msgspec import Raw

from pyworkflow_ray.actors.observers import AttemptDispatched, AttemptEnded
from pyworkflow_ray.actors.renewals import Hold
from pyworkflow_ray.actors.runner import KILL_GRACE, Attempt
from pyworkflow_ray.actors.services import Services
from pyworkflow_ray.actors.tickets import Ticket
from pyworkflow_ray.engine.attempts import AttemptCompleted, AttemptFailed, AttemptOutcome
from pyworkflow_ray.engine.pending_steps import PendingStep
from pyworkflow_ray.exceptions import WorkerDiedError
from pyworkflow_ray.storage.records import RunRecord
from pyworkflow_ray.values import codec
from pyworkflow_ray.values.failures import capture

Arrived = tuple[str, int, AttemptOutcome]
"""A step's id, an attempt's number, and what it came to."""


class Attempts:
    """One run's attempts.

    Args:
        services: What the coordinator lends.
        run: The run's row.
        hold: Whether the run is surely held. Otherwise nothing is dispatched.
        on_arrival: Called when one has ended.
    """

    def __init__(
        self, services: Services, run: RunRecord, hold: Hold, on_arrival: Callable[[], None]
    ) -> None:
        self._services, self._run, self._hold, self._on_arrival = services, run, hold, on_arrival
        self._tickets: dict[str, Ticket] = {}
        self._retries: dict[str, datetime] = {}
        self._arrived: list[Arrived] = []
        self._begun: dict[str, int] = {}
        """The attempts that have begun here and whose outcome is not recorded, by their steps."""

    @property
    def are_unfinished(self) -> bool:
        """Whether an attempt has begun whose outcome is not recorded."""
        return bool(self._begun)

    @property
    def under_way(self) -> int:
        """How many are under way now."""
        return len(self._tickets)

    @property
    def arrived(self) -> int:
        """How many have ended and are not fed yet."""
        return len(self._arrived)

    def take_arrived(self) -> list[Arrived]:
        """The attempts that have ended since the last call."""
        arrived, self._arrived = self._arrived, []
        return arrived

    def recorded(self, arrived: list[Arrived]) -> None:
        """Note that the outcomes of these attempts are recorded."""
        for step_id, attempt, _ in arrived:
            if self._begun.get(step_id) == attempt:
                del self._begun[step_id]

    def retry_at(self, step_id: str, at: datetime) -> None:
        """Have the step's next attempt made at this time."""
        self._retries[step_id] = at

    def dues(self) -> list[datetime]:
        """The times at which further attempts are to be made."""
        return list(self._retries.values())

    def take_due(self, now: datetime) -> list[str]:
        """The steps whose next attempt is due."""
        due = [step_id for step_id, due_at in self._retries.items() if due_at <= now]
        for step_id in due:
            del self._retries[step_id]
        return due

    def drop(self) -> None:
        """Stop them all."""
        for ticket in self._tickets.values():
            ticket.cancel()
        self._tickets.clear()

    async def go_on(self, pending: PendingStep) -> None:
        """Go on with a step that has no outcome: most often by dispatching its present attempt."""
        step_id = pending.command.step_id
        if step_id in self._tickets or step_id in self._retries:
            return  # dispatched by the turn that opened the run
        if pending.is_lost:
            error = WorkerDiedError(
                f"The coordinator of run {self._run.run_id!r} went away while step {step_id!r} ran, and the "
                "step is not idempotent: it is not run again."
            )
            lost = AttemptFailed(failure=capture(error), cause="worker_died")
            self._arrive(step_id, pending.attempt, lost)
        elif pending.retry_at is not None and pending.retry_at > self._services.clock.now():
            self._retries[step_id] = pending.retry_at
        else:
            await self.dispatch(pending)

    async def dispatch(self, pending: PendingStep) -> None:
        """Make the step's present attempt, unless it has begun here before, once the run is surely held.

        Raises:
            FencedError: Another process has the run.
        """
        command = pending.command
        options = command.options
        if self._begun.get(command.step_id, 0) >= pending.attempt:
            return
        self._begun[command.step_id] = pending.attempt
        attempt = Attempt(
            run_id=self._run.run_id,
            workflow_name=self._run.workflow_name,
            step_id=command.step_id,
            step_name=command.step_name,
            attempt=pending.attempt,
            is_retry=pending.failures + pending.losses > 0,
            args=await self._resolve(command.args),
            kwargs=await self._resolve(command.kwargs),
            timeout=None if options.timeout is None else options.timeout.total_seconds(),
            payload_limit=self._services.settings.payload_limit,
            payload_codec=self._services.settings.payload_codec,
            worker_ttl=self._services.settings.worker_ttl.total_seconds(),
            namespace=self._services.settings.namespace,
            coordinator=self._run.coordinator or "",
            logging=self._services.settings.logging,
        )
        await self._hold.sure()
        self._retries.pop(command.step_id, None)
        self._tickets[command.step_id] = self._services.dispatcher.dispatch(
            attempt,
            command.function,
            options,
            partial(self._ended, attempt, time.monotonic()),
        )
        if self._services.observers.wants(AttemptDispatched):
            self._services.observers.report(AttemptDispatched(**_of(attempt)))

    def _ended(self, attempt: Attempt, dispatched_at: float, outcome: AttemptOutcome) -> None:
        if self._services.observers.wants(AttemptEnded):
            how = "completed" if isinstance(outcome, AttemptCompleted) else outcome.cause
            duration = timedelta(seconds=time.monotonic() - dispatched_at)
            self._services.observers.report(AttemptEnded(**_of(attempt), outcome=how, duration=duration))
        self._arrive(attempt.step_id, attempt.attempt, outcome)

    async def _resolve(self, value: Raw) -> bytes:
        data = bytes(value)
        if codec.blob_reference(data) is None:
            return data
        return await asyncio.to_thread(self._services.payloads.resolve, data)

    def _arrive(self, step_id: str, attempt: int, outcome: AttemptOutcome) -> None:
        self._tickets.pop(step_id, None)
        self._arrived.append((step_id, attempt, outcome))
        self._on_arrival()

    def cancel(self, step_id: str, on_cancel: str) -> None:
        """Give up the attempt of a step that the run no longer waits for, as the step's `on_cancel` says."""
        self._retries.pop(step_id, None)
        self._begun.pop(step_id, None)
        ticket = self._tickets.pop(step_id, None)
        if ticket is None or on_cancel == "abandon":
            return
        ticket.cancel()
        if on_cancel != "interrupt":
            asyncio.get_running_loop().call_later(KILL_GRACE, ticket.cancel, True)


def _of(attempt: Attempt) -> dict[str, Any]:
    """What a moment says of an attempt."""
    return {
        "run_id": attempt.run_id,
        "workflow": attempt.workflow_name,
        "step_id": attempt.step_id,
        "step": attempt.step_name,
        "attempt": attempt.attempt,
    }
