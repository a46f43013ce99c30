"""Every error that this package raises, in one tree under `WorkflowError`.

Each error keeps the arguments it was made with as `args`, so unpickling gives an equal one. Errors go from a
step's worker to the coordinator, into the history, and to everybody who waits for the result.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

RetryAfter = str | int | float | timedelta | datetime


class WorkflowError(Exception):
    """The root of every error of this package."""

    def __reduce__(self) -> tuple[Any, ...]:
        # `Exception` would call `cls(*self.args)`, which fails for classes with keyword arguments.
        return _rebuild, (type(self), self.args, self.__dict__.copy())


def _rebuild(cls: type[WorkflowError], args: tuple[Any, ...], state: dict[str, Any]) -> WorkflowError:
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class FatalError(WorkflowError):
    """Raised by a step or workflow when a retry cannot help: it fails at once.

    Keyword arguments are kept in `metadata`.
    """

    def __init__(self, message: str = "", **metadata: Any) -> None:
        super().__init__(message)
        self.metadata = metadata


class EventLimitExceededError(FatalError):
    """A run's history has reached the hard limit of events. End the run or use `continue_as_new`."""

    def __init__(self, run_id: str, event_count: int, limit: int) -> None:
        super().__init__(
            f"Run {run_id!r} has {event_count} events, and the limit is {limit}. "
            "Split the work into child workflows or use continue_as_new()."
        )
        self.run_id, self.event_count, self.limit = run_id, event_count, limit


class NonDeterminismError(FatalError):
    """The workflow's code does not ask for what its history records."""


class PayloadTooLargeError(FatalError):
    """A value is larger than `payload_limit` allows. Pass a reference to it instead."""


class SerializationError(FatalError):
    """A value cannot be written to the history, or cannot be read from it."""


class UnreadableRowError(SerializationError):
    """A row of the database has a cell that cannot be read. `run_id` names the run that it stops, if any."""

    def __init__(self, message: str, run_id: str | None = None) -> None:
        super().__init__(message)
        self.run_id = run_id


class StepValidationError(FatalError):
    """An argument of a step or workflow does not fit its signature."""


class RetryableError(WorkflowError):
    """Raised by a step to ask for another attempt, if its retries allow one.

    Args:
        message: What went wrong.
        retry_after: When to try again: seconds, a duration such as ``"30s"``, a `timedelta`, or an
            instant (a naive `datetime` is UTC). None means the step's `retry_delay`.
        metadata: Kept on the error.
    """

    def __init__(self, message: str = "", retry_after: RetryAfter | None = None, **metadata: Any) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.metadata = metadata


class CancellationError(WorkflowError):
    """The run was cancelled. Catch this error to clean up."""

    def __init__(self, message: str = "Workflow was cancelled", reason: str | None = None) -> None:
        super().__init__(message if reason is None else f"{message}: {reason}")
        self.reason = reason


class WorkflowNotFoundError(WorkflowError):
    """No run has this id, or no workflow has this name."""

    def __init__(self, run_id: str, message: str | None = None) -> None:
        super().__init__(message or f"There is no run {run_id!r} in this storage.")
        self.run_id = run_id


class WorkflowAlreadyRunningError(WorkflowError):
    """A run holds this idempotency key already."""

    def __init__(self, run_id: str, message: str | None = None) -> None:
        super().__init__(message or f"Run {run_id!r} exists already.")
        self.run_id = run_id


class WorkflowTimeoutError(WorkflowError):
    """A run took longer than its `max_duration`."""

    def __init__(self, run_id: str, max_duration: timedelta) -> None:
        super().__init__(f"Run {run_id!r} took longer than its max_duration of {max_duration}.")
        self.run_id, self.max_duration = run_id, max_duration


class StepTimeoutError(WorkflowError):
    """One attempt of a step took longer than the step's `timeout`."""


class StepFailedError(WorkflowError):
    """A step failed for good, and the error that it raised cannot be rebuilt here.

    This error has the type, text and traceback of the original one.
    """

    def __init__(self, message: str, error_type: str = "", error_traceback: str = "") -> None:
        super().__init__(message)
        self.error_type, self.error_traceback = error_type, error_traceback


class WorkflowFailedError(WorkflowError):
    """A run failed, and the error that it raised cannot be rebuilt here."""

    def __init__(self, message: str, error_type: str = "", error_traceback: str = "") -> None:
        super().__init__(message)
        self.error_type, self.error_traceback = error_type, error_traceback


class WorkerDiedError(WorkflowError):
    """The process (or node) that ran a step attempt died before the attempt ended."""


class HookNotFoundError(WorkflowError):
    """No hook has this token."""

    def __init__(self, token: str) -> None:
        super().__init__("No hook has this token.")
        self.token = token


class HookExpiredError(WorkflowError):
    """A hook's timeout has passed without a payload."""

    def __init__(self, hook_id: str) -> None:
        super().__init__(f"Hook {hook_id!r} has expired.")
        self.hook_id = hook_id


class HookAlreadyReceivedError(WorkflowError):
    """A hook takes one payload, and has received it."""

    def __init__(self, hook_id: str) -> None:
        super().__init__(f"Hook {hook_id!r} has received its payload already.")
        self.hook_id = hook_id


class InvalidTokenError(WorkflowError):
    """A hook token is not of a form that this engine makes or accepts."""

    def __init__(self, hook_id: str) -> None:
        super().__init__("This is not a valid hook token.")
        self.hook_id = hook_id


class HookConflictError(WorkflowError):
    """A custom hook token is in use by another run."""


class HookRejectedError(WorkflowError):
    """Somebody rejected a hook with a text instead of an exception."""


class HookValidationError(WorkflowError):
    """A payload does not fit its hook's schema. Nothing was stored."""


class ChildWorkflowError(WorkflowError):
    """The root of errors about child workflows."""


class ChildWorkflowFailedError(ChildWorkflowError):
    """A child run failed. Its own error is the cause."""

    def __init__(self, child_run_id: str, child_workflow_name: str, error: str, error_type: str) -> None:
        super().__init__(f"Child {child_workflow_name!r} ({child_run_id}) failed: {error_type}: {error}")
        self.child_run_id, self.child_workflow_name = child_run_id, child_workflow_name
        self.error, self.error_type = error, error_type


class MaxNestingDepthError(ChildWorkflowError):
    """Children are nested deeper than `max_nesting_depth` allows."""

    def __init__(self, current_depth: int) -> None:
        super().__init__(f"Child workflows are nested too deep: {current_depth} levels.")
        self.current_depth = current_depth


class ScheduleNotFoundError(WorkflowError):
    """There is no such schedule."""

    def __init__(self, schedule_id: str, message: str | None = None) -> None:
        super().__init__(message or f"There is no schedule {schedule_id!r}.")
        self.schedule_id = schedule_id


class ConfigurationError(WorkflowError):
    """A setting, an option or a cluster is not valid."""


class NoAnswerError(WorkflowError):
    """An actor of the engine does not answer, or cannot be reached. What is stored is safe: try again."""


class DiscoveryError(WorkflowError):
    """A module that should define workflows cannot be imported."""


class StorageError(WorkflowError):
    """The database cannot be reached, or refuses to do what was asked."""

    is_outage = False
    """Whether the same may succeed later: the connection was lost, or the database is locked or restarts."""
