"""How a run ends: what its code returned or raised, made into the last command of the run."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any

from msgspec import Raw

from pyworkflow_ray.engine.cancellations import is_cancellation
from pyworkflow_ray.engine.children import derived_run_id
from pyworkflow_ray.engine.commands import CancelRun, CompleteRun, ContinueRun, FailRun
from pyworkflow_ray.engine.continuations import ContinueAsNew, continuation_in
from pyworkflow_ray.engine.events import (
    EventBase,
    WorkflowCancelled,
    WorkflowCompleted,
    WorkflowContinuedAsNew,
    WorkflowFailed,
)
from pyworkflow_ray.engine.loop import RunTask
from pyworkflow_ray.engine.scopes import Scope
from pyworkflow_ray.engine.unawaited_calls import told, unawaited_error
from pyworkflow_ray.exceptions import WorkflowTimeoutError
from pyworkflow_ray.values.failures import capture

Unread = tuple[tuple[str, Raw], ...]
"""The names and payloads of signals that nobody has read."""


def end_run(
    scope: Scope, error: BaseException | None, result: Any, unread_signals: Callable[[], Unread]
) -> None:
    """Emit the command that ends the run, unless its event is recorded.

    Args:
        error: What the workflow's function raised; None when it returned.
        result: What it returned.
        unread_signals: Gives the signals that a run which continues this one is to get.

    Raises:
        Halt: Another decision is recorded here.
    """
    cancellation = scope.cancellation
    error = continuation_in(error) or error
    if cancellation.is_timeout and not isinstance(error, WorkflowTimeoutError):
        error = _timed_out(scope, error)
    if error is None:
        error = _complete(scope, result)
    elif isinstance(error, ContinueAsNew) and not cancellation.is_unseen:
        error = _continue(scope, error, unread_signals)
    elif cancellation.is_requested and is_cancellation(error):
        error = None
        if scope.recording.recorded(WorkflowCancelled) is None:
            scope.recording.emit(CancelRun(cancellation.reason))
    if error is not None and scope.recording.recorded(WorkflowFailed) is None:
        scope.recording.emit(FailRun(capture(error)))


def require_awaited(scope: Scope, tasks: Iterable[RunTask[Any]], error: BaseException | None) -> None:
    """Refuse code to end without awaiting what it has called. An error of its own gets a note of that.

    Args:
        tasks: Those that have not ended.
        error: What the code has raised; None when it has returned.

    Raises:
        FatalError: The code has returned, or continues as a new run.
    """
    calls = scope.unawaited.forgotten(task.get_coro() for task in tasks)
    # Code that is cancelled may have no time for its calls. Runs of earlier versions have ended so.
    if not calls or scope.cancellation.is_requested or isinstance(scope.recording.last(), _PEACEFUL):
        return
    if error is None or continuation_in(error) is not None:
        raise unawaited_error(scope.run_id, calls) from None
    if isinstance(error, Exception):
        error.add_note(f"Nobody has awaited {told(calls)}.")


_PEACEFUL = (WorkflowCompleted, WorkflowContinuedAsNew)


def _timed_out(scope: Scope, error: BaseException | None) -> WorkflowTimeoutError:
    timed_out = WorkflowTimeoutError(scope.run_id, scope.limits.max_duration or timedelta())
    for note in getattr(error, "__notes__", []):
        timed_out.add_note(note)
    return timed_out


def _complete(scope: Scope, result: Any) -> Exception | None:
    """Complete the run with its result, or return why the result cannot be stored."""
    recording = scope.recording
    if recording.peek(WorkflowCompleted) is not None:
        recording.skip()
        return None
    try:
        raw = Raw(scope.codec.encode(result, "the workflow's result"))
    except Exception as error:
        return error
    recording.recorded(WorkflowCompleted)  # diverges if anything else is recorded here
    recording.emit(CompleteRun(raw))
    return None


def _continue(scope: Scope, ending: ContinueAsNew, unread_signals: Callable[[], Unread]) -> Exception | None:
    """Continue in another run, or return why its arguments cannot be stored."""
    recording = scope.recording
    if recording.peek(WorkflowContinuedAsNew) is not None:
        recording.skip()
        return None
    args, kwargs = ending.call
    try:
        raw_args = Raw(scope.codec.encode(list(args), "the arguments of continue_as_new()"))
        raw_kwargs = Raw(scope.codec.encode(dict(kwargs), "the keyword arguments of continue_as_new()"))
    except Exception as error:
        return error
    recording.recorded(WorkflowContinuedAsNew)  # diverges if anything else is recorded here
    run_id = derived_run_id(scope.run_id, "continued")
    recording.emit(ContinueRun(run_id, raw_args, raw_kwargs, unread_signals()))
    return None


def is_without_code(event: EventBase) -> bool:
    """Whether this event is the end of a run that was ended without asking its code."""
    return getattr(event, "is_without_code", False)


def error_of(main: RunTask[Any]) -> BaseException | None:
    """What the workflow's function raised; None when it returned."""
    if not main.cancelled():
        return main.exception()
    ending = asyncio.CancelledError("The workflow's function was cancelled from within.")
    try:
        main.result()
    except asyncio.CancelledError as error:
        for note in getattr(error, "__notes__", []):
            ending.add_note(note)
    return ending
