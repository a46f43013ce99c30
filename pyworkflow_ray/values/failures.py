"""Errors as data: readable text, and the exception itself with its traceback and its causes.

`capture` is called where something has already gone wrong, often with an unknown kind of exception. So
nothing that the exception does can make `capture` raise.
"""

from __future__ import annotations

import platform
from datetime import UTC, datetime
from typing import Any

import msgspec

from pyworkflow_ray.durations import resolve_when
from pyworkflow_ray.exceptions import (
    CancellationError,
    FatalError,
    RetryableError,
    StepFailedError,
    WorkflowFailedError,
)
from pyworkflow_ray.ids import storable
from pyworkflow_ray.values.error_pickles import MAX_TEXT, load_error, noted, pickle_error, text_of, tried
from pyworkflow_ray.values.error_pickles import by_state as _by_state  # noqa: F401  # older pickles name it here
from pyworkflow_ray.values.tracebacks import Frame, frames_of, set_of_raise, text_of_traceback, traceback_of

MAX_CAUSES = 5
MAX_PARTS = 50
"""So many exceptions in groups keep their own tracebacks and causes."""
NOTE = "Traceback where it was raised:\n"
"""The beginning of the note with the traceback of an exception whose frames are not known."""
_ENDS = (
    "An error of this type would end or confuse the code that waits for the outcome, so it comes as this one."
)
GAVE_UP = " gave up after "
"""A part of the note about a step's attempts."""

_PYTHON = ".".join(platform.python_version_tuple()[:2])


class Failure(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An error as it is sent and stored.

    `exception` is the pickled exception, if it can be rebuilt. `python` is the version that pickled it, such
    as "3.11". `cause` is what Python shows as the cause. `details` is None in what was stored before there
    were any.
    """

    error: str
    error_type: str
    traceback: str = ""
    is_retryable: bool = True
    retry_after: float | None = None
    exception: bytes | None = None
    python: str = ""
    cause: Failure | None = None
    details: Details | None = None


class Details(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What an exception has that is in no text and in no pickle of it."""

    bases: tuple[str, ...] = ()
    """The classes that the error's class is derived from, by their qualified names."""
    frames: tuple[Frame, ...] = ()
    lost: tuple[str, ...] = ()
    """What could not be stored, and is missing in the exception that is rebuilt."""
    parts: tuple[Failure, ...] = ()
    """The exceptions of a group, without their pickles, which are in the group's."""
    is_caused: bool = False
    """Whether the `cause` was given by ``raise ... from``."""
    is_in_context: bool = False
    """Whether the `cause` was being handled."""
    context: Failure | None = None
    """What was being handled, if it is not the `cause`."""
    is_context_suppressed: bool = False


# --- capturing ----------------------------------------------------------------------------------------


def capture(error: BaseException, *, skip_frames_of: tuple[str, ...] = ()) -> Failure:
    """The exception as data, its causes included. This never raises.

    Args:
        error: The exception, just caught.
        skip_frames_of: Names of modules and packages whose frames at the top of the stack only show how the
            user's code was called. They are left out, as this package's own frames always are.
    """
    return _Capturing(skip_frames_of).failure_of(error, MAX_CAUSES)


class _Capturing:
    """One call of `capture`.

    Args:
        skipped: Whose frames are left out.
    """

    def __init__(self, skipped: tuple[str, ...]) -> None:
        self._skipped = skipped
        self._parts_left = MAX_PARTS

    def failure_of(self, error: BaseException, causes: int) -> Failure:
        """The failure of an error.

        Args:
            causes: How many causes behind each other are captured with it.
        """
        pickle, lost = pickle_error(error)
        cause = tried(None, lambda: _cause_of(error)) if causes else None
        return Failure(
            error=text_of(error),
            error_type=error_type_name(type(error)),
            traceback=tried("", lambda: _traceback_of(error, self._skipped)),
            # A run that is being cancelled wants no other attempt.
            is_retryable=not isinstance(error, (FatalError, CancellationError)),
            retry_after=tried(None, lambda: _retry_after(error)),
            exception=pickle,
            python=_PYTHON if pickle is not None else "",
            cause=self.failure_of(cause, causes - 1) if cause is not None else None,
            details=tried(None, lambda: self._details_of(error, causes, cause, lost)),
        )

    def _details_of(
        self, error: BaseException, causes: int, cause: BaseException | None, lost: tuple[str, ...] = ()
    ) -> Details:
        context = error.__context__
        hidden = context if context is not cause and causes == MAX_CAUSES else None
        return Details(
            bases=tuple(map(error_type_name, type(error).__mro__[1:-1])),
            frames=tried((), lambda: frames_of(error, self._skipped)),
            lost=lost,
            parts=self._parts_of(error, causes) if isinstance(error, BaseExceptionGroup) else (),
            is_caused=cause is not None and cause is error.__cause__,
            is_in_context=cause is not None and cause is context,
            context=self.failure_of(hidden, 1) if hidden is not None else None,
            is_context_suppressed=error.__suppress_context__,
        )

    def _parts_of(self, group: BaseExceptionGroup[Any], causes: int) -> tuple[Failure, ...]:
        parts = group.exceptions[: self._parts_left]
        self._parts_left -= len(parts)
        return tuple(self._part_of(part, causes) for part in parts)

    def _part_of(self, error: BaseException, causes: int) -> Failure:
        """The failure of a part of a group. The group has its pickle and its traceback's text."""
        cause = tried(None, lambda: _cause_of(error)) if causes else None
        return Failure(
            error=text_of(error),
            error_type=error_type_name(type(error)),
            cause=self.failure_of(cause, causes - 1) if cause is not None else None,
            details=tried(None, lambda: self._details_of(error, min(causes, MAX_CAUSES - 1), cause)),
        )


def _cause_of(error: BaseException) -> BaseException | None:
    """What Python shows as the error's cause."""
    if error.__cause__ is not None or error.__suppress_context__:
        return error.__cause__
    return error.__context__


def error_type_name(cls: type) -> str:
    """The qualified name of a class; that of a builtin class is without its module."""
    name = cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"
    return storable(name)


def _traceback_of(error: BaseException, skipped: tuple[str, ...]) -> str:
    text = storable(text_of_traceback(error, skipped))
    # The end names the error. The frames before it can be cut.
    return text if len(text) <= MAX_TEXT else "..." + text[3 - MAX_TEXT :]


def _retry_after(error: BaseException) -> float | None:
    if not isinstance(error, RetryableError) or error.retry_after is None:
        return None
    now = datetime.now(UTC)
    return max(0.0, (resolve_when(error.retry_after, now) - now).total_seconds())


# --- restoring ----------------------------------------------------------------------------------------


def restore(
    failure: Failure, *, fallback: type[StepFailedError] | type[WorkflowFailedError]
) -> BaseException:
    """The exception that `capture` was given, with its causes and its traceback.

    Args:
        failure: What `capture` returned.
        fallback: The class to use if the exception cannot be rebuilt here, or must not be raised here.
    """
    loaded = tried(None, lambda: load_error(failure.exception or b""))
    error = loaded if loaded is not None and _may_be_raised(loaded) else None
    if error is None:
        error = fallback(
            f"{failure.error_type}: {failure.error}" if failure.error else failure.error_type,
            error_type=failure.error_type,
            error_traceback=failure.traceback,
        )
        if loaded is not None:
            error.add_note(_ENDS)
    _complete(error, failure, fallback)
    return error


def is_of(failure: Failure, classes: tuple[type[BaseException], ...], error: BaseException) -> bool:
    """Whether what was raised is an instance of one of these classes.

    Args:
        error: What `restore` made of the failure.
    """
    names = {failure.error_type, *(failure.details.bases if failure.details is not None else ())}
    if any(error_type_name(cls) in names for cls in classes):
        return True
    is_rebuilt = error_type_name(type(error)) == failure.error_type
    return is_rebuilt and isinstance(error, classes)


def _may_be_raised(error: BaseException) -> bool:
    # SystemExit, KeyboardInterrupt or CancelledError would end the process that raises them here, which may
    # be a coordinator with all its runs. StopIteration cannot pass through a coroutine or a future.
    return isinstance(error, Exception) and not isinstance(error, StopIteration | StopAsyncIteration)


def _complete(
    error: BaseException, failure: Failure, fallback: type[StepFailedError] | type[WorkflowFailedError]
) -> None:
    """Give an exception that was rebuilt what its pickle does not hold."""
    details = failure.details
    if failure.cause is not None:
        cause = restore(failure.cause, fallback=fallback)
        if details is None or details.is_caused:
            set_of_raise(error, "__cause__", cause)
        if details is not None and details.is_in_context:
            set_of_raise(error, "__context__", cause)
    if details is None:
        if failure.traceback:
            tried(None, lambda: _note(error, failure.traceback))
        return
    if details.context is not None:
        set_of_raise(error, "__context__", restore(details.context, fallback=fallback))
    set_of_raise(error, "__suppress_context__", details.is_context_suppressed)
    set_of_raise(error, "__traceback__", tried(None, lambda: traceback_of(details.frames)))
    if details.lost and error_type_name(type(error)) == failure.error_type:
        noted(error, details.lost)
    if isinstance(error, BaseExceptionGroup):
        for part, inner in zip(error.exceptions, details.parts, strict=False):
            _complete(part, inner, fallback)


def _note(error: BaseException, text: str) -> None:
    # An exception that was restored, raised and captured again has notes already. The text of the later
    # traceback ends with them.
    notes = getattr(error, "__notes__", [])
    notes[:] = [note for note in notes if not _is_ours(str(note))]
    error.add_note(NOTE + text)


def _is_ours(note: str) -> bool:
    return note.startswith(NOTE) or (note.startswith("Step '") and GAVE_UP in note)
