"""The steps that wait for an outcome, and what the outcome of an attempt leads to."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from datetime import datetime

from msgspec import Raw

from pyworkflow_ray.engine.attempts import AttemptFailed, AttemptOutcome
from pyworkflow_ray.engine.commands import ScheduleStep
from pyworkflow_ray.engine.events import StepCompleted, StepFailed, StepRetrying, failure_fields
from pyworkflow_ray.engine.retries import WORKER_LOSS, AttemptCounts, next_attempt_at
from pyworkflow_ray.engine.scopes import Scope
from pyworkflow_ray.exceptions import StepFailedError
from pyworkflow_ray.values.error_pickles import add_note
from pyworkflow_ray.values.failures import GAVE_UP, Failure, capture, is_of, restore


@dataclass(slots=True)
class PendingStep:
    """A step that was scheduled and has no outcome yet."""

    command: ScheduleStep
    future: asyncio.Future[StepCompleted | StepFailed]
    scheduled_at: datetime
    attempt: int = 1
    """The number of the attempt that is in flight, or comes next. It never goes back."""
    failures: int = 0
    """How many attempts the step itself has failed."""
    losses: int = 0
    """How many attempts have lost their worker."""
    retry_at: datetime | None = None
    """When the next attempt is due. None: the attempt is the first, or replaces one that was lost."""
    is_lost: bool = False
    """The run was taken over while an attempt was in flight, and the step is not idempotent (or `is_last`).
    It must not run again. The run's owner concludes the step as failed."""
    is_last: bool = False
    """No attempt follows this one. The run was cancelled and waits for the attempt in flight alone."""

    def is_awaited(self, now: datetime) -> bool:
        """Whether a run that is cancelled waits for this step: an attempt is in flight, and is awaited."""
        is_in_flight = self.retry_at is None or self.retry_at <= now
        return is_in_flight and self.command.options.on_cancel == "wait"

    def retry(self, event: StepRetrying) -> None:
        """Note that an attempt has failed and another will follow."""
        self.attempt, self.retry_at = event.attempt, event.retry_at
        if event.cause in WORKER_LOSS:
            self.losses += 1
        else:
            self.failures += 1

    def lose_attempt(self, now: datetime) -> None:
        """Note that another claim took the run over: no attempt that was begun before it counts any more.

        Whoever drove the run before may still be there, and begin an attempt that it does not know to be
        lost. So the next attempt always has a new number. One that is not due yet still waits for its time.
        """
        if self.retry_at is not None and self.retry_at > now:
            self.attempt += 1
        elif self.command.options.idempotent and not self.is_last:
            self.attempt += 1
            self.retry_at = None
        else:
            self.is_lost = True


def conclude(
    pending: PendingStep, outcome: AttemptOutcome, scope: Scope, *, now: datetime
) -> StepCompleted | StepRetrying | StepFailed:
    """The event that the outcome of the step's present attempt leads to.

    Args:
        now: When the outcome was learnt.
    """
    command = pending.command
    if not isinstance(outcome, AttemptFailed):
        return StepCompleted(
            step_id=command.step_id,
            step_name=command.step_name,
            result=Raw(outcome.result),
            attempt=pending.attempt,
            started_at=outcome.started_at,
            node=outcome.node,
            worker_pid=outcome.worker_pid,
        )
    retry_at = None if pending.is_last else _retry_at(pending, outcome, scope, now)
    if retry_at is None:
        return StepFailed(
            step_id=command.step_id,
            step_name=command.step_name,
            attempt=pending.attempt,
            cause=outcome.cause,
            started_at=outcome.started_at,
            node=outcome.node,
            worker_pid=outcome.worker_pid,
            **failure_fields(outcome.failure),
        )
    return StepRetrying(
        step_id=command.step_id,
        step_name=command.step_name,
        attempt=pending.attempt + 1,
        retry_at=retry_at,
        error=outcome.failure.error,
        error_type=outcome.failure.error_type,
        traceback=outcome.failure.traceback,
        cause=outcome.cause,
        node=outcome.node,
        worker_pid=outcome.worker_pid,
    )


def _retry_at(pending: PendingStep, outcome: AttemptFailed, scope: Scope, now: datetime) -> datetime | None:
    options, limits = pending.command.options, scope.limits
    return next_attempt_at(
        outcome.failure,
        outcome.cause,
        AttemptCounts(pending.scheduled_at, pending.failures, pending.losses),
        now=now,
        max_retries=limits.default_retries if options.max_retries is None else options.max_retries,
        pauses=options.pauses,
        may_retry=lambda: _may_retry(pending.command, outcome.failure, scope),
        max_losses=limits.max_losses if options.idempotent else 0,
        source=random.Random(f"{scope.run_id}:{pending.command.step_id}:{pending.attempt}"),
    )


def _may_retry(command: ScheduleStep, failure: Failure, scope: Scope) -> bool:
    retry_on = command.options.retry_on
    if retry_on is None:
        return True
    error = restore(failure, fallback=StepFailedError)
    if isinstance(retry_on, tuple):
        return is_of(failure, retry_on, error)
    try:
        return bool(retry_on(error))
    except Exception as predicate_error:
        # The text alone: values in a traceback's frames (payloads) do not belong in a log.
        text = capture(predicate_error).traceback
        scope.recording.note(
            f"retry_on of step {command.step_id!r} of run {scope.run_id!r} raised, "
            f"and the step is not tried again:\n{text}"
        )
        return False


def step_error(event: StepFailed) -> BaseException:
    """The error that a failed step raises in the workflow: the step's own, with a note of its attempts."""
    error = restore(event.failure, fallback=StepFailedError)
    attempts = "1 attempt" if event.attempt == 1 else f"{event.attempt} attempts"
    where = f", last on node {event.node} (pid {event.worker_pid})" if event.node else ""
    add_note(error, f"Step {event.step_id!r}{GAVE_UP}{attempts}{where}; cause: {event.cause}.")
    return error
