"""What an attempt's outcome makes of its step: completed, retried, or failed for good."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from datetime import datetime, timedelta

from loguru import logger
from msgspec import Raw

from pyworkflow_ray.engine.attempts import AttemptFailed, AttemptOutcome
from pyworkflow_ray.engine.commands import ScheduleStep
from pyworkflow_ray.engine.events import StepCompleted, StepFailed, StepRetrying, failure_fields
from pyworkflow_ray.engine.options import StepOptions
from pyworkflow_ray.engine.retries import WORKER_LOSS, AttemptCounts, next_attempt_at
from pyworkflow_ray.exceptions import StepFailedError
from pyworkflow_ray.values.failures import GAVE_UP, Failure, capture, error_type_name, restore


@dataclass(frozen=True, slots=True)
class Limits:
    """The bounds within which a run's steps are tried again.

    Args:
        default_retries: `max_retries` of steps that say nothing.
        max_losses: Workers that may die under one step before it fails; 0 fails it at the first.
        max_duration: How long the run may take in all.
        max_nesting_depth: Levels of children below a root run.
    """

    default_retries: int = 3
    max_losses: int = 3
    max_duration: timedelta | None = None
    max_nesting_depth: int = 3


@dataclass(slots=True)
class PendingStep:
    """A step that was scheduled and has no outcome yet.

    `is_lost` says that an attempt of a step that is not idempotent was in flight when its coordinator
    died: it must not run again, and its owner concludes it as failed. `is_last` says that the run was
    cancelled, and waits for the attempt that is under way alone.
    """

    command: ScheduleStep
    future: asyncio.Future[StepCompleted | StepFailed]
    scheduled_at: datetime
    attempt: int = 1
    failures: int = 0
    losses: int = 0
    retry_at: datetime | None = None
    is_lost: bool = False
    is_last: bool = False

    def is_awaited(self, now: datetime) -> bool:
        """Whether a run that is cancelled waits for the attempt that is under way, if one is."""
        is_under_way = self.retry_at is None or self.retry_at <= now
        return is_under_way and self.command.options.on_cancel == "wait"

    def retry(self, event: StepRetrying) -> None:
        """Take note that another attempt will follow."""
        self.attempt, self.retry_at = event.attempt, event.retry_at
        if event.cause in WORKER_LOSS:
            self.losses += 1
        else:
            self.failures += 1

    def lose_attempt(self, now: datetime) -> None:
        """Take note that a coordinator died: an attempt in flight is lost, one that waits goes on waiting."""
        if self.retry_at is not None and self.retry_at > now:
            return
        if self.command.options.idempotent and not self.is_last:
            self.attempt += 1
            self.retry_at = None
        else:
            self.is_lost = True


def conclude(
    pending: PendingStep, outcome: AttemptOutcome, *, now: datetime, limits: Limits, seed: str
) -> StepCompleted | StepRetrying | StepFailed:
    """The event that the outcome of the step's present attempt makes.

    Args:
        pending: The step.
        outcome: What its attempt came to.
        now: When that was learnt.
        limits: Bounds on retries.
        seed: Where the jitter of pauses comes from: the run's id.
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
    retry_at = None if pending.is_last else _retry_at(pending, outcome, now, limits, seed)
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


def _retry_at(
    pending: PendingStep, outcome: AttemptFailed, now: datetime, limits: Limits, seed: str
) -> datetime | None:
    options = pending.command.options
    return next_attempt_at(
        outcome.failure,
        outcome.cause,
        AttemptCounts(pending.scheduled_at, pending.failures, pending.losses),
        now=now,
        max_retries=limits.default_retries if options.max_retries is None else options.max_retries,
        pauses=options.pauses,
        may_retry=lambda: _may_retry(options, outcome.failure),
        max_losses=limits.max_losses if options.idempotent else 0,
        source=random.Random(f"{seed}:{pending.command.step_id}:{pending.attempt}"),
    )


def _may_retry(options: StepOptions, failure: Failure) -> bool:
    retry_on = options.retry_on
    if retry_on is None:
        return True
    error = restore(failure, fallback=StepFailedError)
    if isinstance(retry_on, tuple):
        if isinstance(
            error, StepFailedError
        ):  # it cannot be rebuilt here: all that is left of its type is the name
            return failure.error_type in {error_type_name(each) for each in retry_on}
        return isinstance(error, retry_on)
    try:
        return bool(retry_on(error))
    except Exception as predicate_error:
        # The text alone: values in a traceback's frames (payloads) do not belong in a log.
        told = capture(predicate_error).traceback
        logger.warning("retry_on raised, and the step is not tried again:\n{}", told)
        return False


def step_error(event: StepFailed) -> BaseException:
    """What a step that gave up raises in the workflow: its own error, with its attempts as a note."""
    error = restore(event.failure, fallback=StepFailedError)
    attempts = "1 attempt" if event.attempt == 1 else f"{event.attempt} attempts"
    where = f", last on node {event.node} (pid {event.worker_pid})" if event.node else ""
    error.add_note(f"Step {event.step_id!r}{GAVE_UP}{attempts}{where}; cause: {event.cause}.")
    return error
