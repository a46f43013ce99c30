"""Attempts that are under way, as those who wait for them hold them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any, Protocol

from pyworkflow_ray.actors.runner import KILL_GRACE, Attempt
from pyworkflow_ray.engine.attempts import AttemptFailed, AttemptOutcome
from pyworkflow_ray.engine.options import StepOptions
from pyworkflow_ray.exceptions import StepTimeoutError, WorkerDiedError
from pyworkflow_ray.values.failures import Failure, capture

OnOutcome = Callable[[AttemptOutcome], None]


class Ticket(Protocol):
    """An attempt that is under way."""

    def cancel(self, force: bool = False) -> None:
        """Stop it: interrupt the step, or with `force` end its process."""
        ...


class Landed(Protocol):
    """Whatever waits for the result of a Ray task."""

    def land(self, result: Any) -> None:
        """Take the task's result, or the error that Ray has in its place."""
        ...

    def fail(self, error: Exception) -> None:
        """Take that `land` has raised."""
        ...


def ray_failure(error: Any, attempt: Attempt, options: StepOptions, elapsed: timedelta) -> AttemptFailed:
    """The failure of an attempt whose worker could not answer."""
    from ray import exceptions as ray_errors

    what = f"Attempt {attempt.attempt} of step {attempt.step_id!r}"
    if isinstance(error, ray_errors.OutOfMemoryError):
        died = WorkerDiedError(f"{what} was ended by Ray because its node ran out of memory: {error}")
        return AttemptFailed(failure=capture(died), cause="out_of_memory")
    crashed = isinstance(error, ray_errors.WorkerCrashedError)
    if crashed and options.timeout is not None and elapsed >= options.timeout + timedelta(seconds=KILL_GRACE):
        late = StepTimeoutError(f"{what} ignored its timeout of {options.timeout}; its process was ended.")
        return AttemptFailed(failure=capture(late), cause="timeout")
    lost = (
        ray_errors.WorkerCrashedError,
        ray_errors.NodeDiedError,
        ray_errors.LocalRayletDiedError,
        ray_errors.ObjectLostError,
        ray_errors.TaskCancelledError,
    )
    if isinstance(error, lost):
        died = WorkerDiedError(f"The worker of {what[0].lower()}{what[1:]} died before it answered: {error}")
        return AttemptFailed(failure=capture(died), cause="worker_died")
    if isinstance(error, BaseException):
        return AttemptFailed(failure=capture(error))
    return AttemptFailed(
        failure=Failure(error=f"{what} answered with {type(error).__name__}", error_type="ProtocolError")
    )
