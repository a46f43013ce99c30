"""Errors as data: readable text, and the exception itself if it can be pickled.

`capture` is called where something has already gone wrong, often with an unknown kind of exception. So
nothing that the exception does can make `capture` raise.
"""

from __future__ import annotations

import platform
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, TypeVar

import msgspec

from pyworkflow_ray.durations import resolve_when
from pyworkflow_ray.exceptions import (
    CancellationError,
    FatalError,
    RetryableError,
    StepFailedError,
    WorkflowFailedError,
)
from pyworkflow_ray.values.modules import pickle_by_value, unpickle

MAX_CAUSES = 5
MAX_TEXT = 20_000
MAX_PICKLE = 256 * 1024
NOTE = "Traceback where it was raised:\n"
"""The beginning of the note with a restored exception's own traceback."""
GAVE_UP = " gave up after "
"""A part of the note about a step's attempts."""

_PYTHON = ".".join(platform.python_version_tuple()[:2])
_OURS = "pyworkflow_ray"
_T = TypeVar("_T")


class Failure(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An error as it is sent and stored.

    `exception` is the pickled exception, if unpickling gives an equal one. `python` is the version that
    pickled it, such as "3.11".
    """

    error: str
    error_type: str
    traceback: str = ""
    is_retryable: bool = True
    retry_after: float | None = None
    exception: bytes | None = None
    python: str = ""
    cause: Failure | None = None


# --- capturing ----------------------------------------------------------------------------------------


def capture(error: BaseException, *, skip_frames_of: tuple[str, ...] = ()) -> Failure:
    """The exception as data, its causes included. This never raises.

    Args:
        error: The exception, just caught.
        skip_frames_of: Names of modules and packages whose frames at the top of the stack only show how the
            user's code was called. They are left out, as this package's own frames always are.
    """
    return _captured(error, (_OURS, *skip_frames_of), MAX_CAUSES)


def _captured(error: BaseException, skipped: tuple[str, ...], causes: int) -> Failure:
    exception = _or(None, lambda: _pickled(error))
    cause = _or(None, lambda: _cause_of(error)) if causes else None
    return Failure(
        error=text_of(error),
        error_type=_storable(error_type_name(type(error))),
        traceback=_or("", lambda: _traceback_of(error, skipped)),
        # A run that is being cancelled wants no other attempt.
        is_retryable=not isinstance(error, (FatalError, CancellationError)),
        retry_after=_or(None, lambda: _retry_after(error)),
        exception=exception,
        python=_PYTHON if exception is not None else "",
        cause=_captured(cause, skipped, causes - 1) if cause is not None else None,
    )


def _cause_of(error: BaseException) -> BaseException | None:
    if error.__cause__ is not None or error.__suppress_context__:
        return error.__cause__
    return error.__context__


def _or(default: _T, function: Callable[[], _T]) -> _T:
    """What the function returns; the default if it raises. An exception's own methods may raise anything."""
    try:
        return function()
    except KeyboardInterrupt:
        raise
    except BaseException:
        return default


def text_of(error: BaseException) -> str:
    """The text of an error. Its own `__str__` may raise anything."""
    try:
        text = str(error)
    except KeyboardInterrupt:
        raise  # somebody interrupts this code
    except BaseException as second:
        return f"<its __str__ raised {type(second).__name__}>"
    return _storable(text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 3] + "...")


def _storable(text: str) -> str:
    """The text with lone surrogates written out, which no UTF-8 and so no JSON can hold."""
    return text.encode(errors="backslashreplace").decode()


def error_type_name(cls: type) -> str:
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"


def _traceback_of(error: BaseException, skipped: tuple[str, ...]) -> str:
    # Without the chain: each cause is captured with a traceback of its own.
    lines = traceback.format_exception(
        type(error), error, _from_user_code(error.__traceback__, skipped), chain=False
    )
    text = _storable("".join(lines))
    # The end names the error. The frames before it can be cut.
    return text if len(text) <= MAX_TEXT else "..." + text[3 - MAX_TEXT :]


def _from_user_code(top: TracebackType | None, skipped: tuple[str, ...]) -> TracebackType | None:
    here = top
    while here is not None and _is_of(here.tb_frame.f_globals.get("__name__"), skipped):
        here = here.tb_next
    return here or top  # an error that this package itself raised keeps its frames


def _is_of(module_name: Any, packages: tuple[str, ...]) -> bool:
    name = str(module_name)
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def _retry_after(error: BaseException) -> float | None:
    if not isinstance(error, RetryableError) or error.retry_after is None:
        return None
    now = datetime.now(UTC)
    return max(0.0, (resolve_when(error.retry_after, now) - now).total_seconds())


# --- pickling exceptions ------------------------------------------------------------------------------


def _pickled(error: BaseException) -> bytes | None:
    """The exception's pickle, if unpickling gives an equal exception. It holds no traceback and no causes."""
    plain = _or(None, lambda: _round_trip(error, error))
    return plain if plain is not None else _or(None, lambda: _round_trip(_ByState(error), error))


def _round_trip(form: Any, error: BaseException) -> bytes | None:
    data = pickle_by_value(form)
    return data if len(data) <= MAX_PICKLE and _is_same(error, unpickle(data)) else None


class _ByState:
    """An exception in the form of a pickle that calls no `__init__`.

    Python pickles an exception as a call of its class with its `args`. That fails, or doubles the message,
    for each class whose own `__init__` calls ``super().__init__(f"...")``, and most do.
    """

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __reduce__(self) -> tuple[Any, ...]:
        error = self.error
        if not _is_pickled_as_usual(type(error)):
            raise TypeError(f"{type(error).__qualname__} defines how it is pickled.")
        args = error.args
        if isinstance(error, BaseExceptionGroup):
            args = (error.message, [_form_of(part) for part in error.exceptions])
        return _by_state, (type(error), args, error.__dict__)


def _form_of(error: BaseException) -> Any:
    return _ByState(error) if _is_pickled_as_usual(type(error)) else error


def _is_pickled_as_usual(cls: type[BaseException]) -> bool:
    return cls.__reduce__ is BaseException.__reduce__ and cls.__reduce_ex__ is object.__reduce_ex__


def _by_state(cls: type[BaseException], args: tuple[Any, ...], state: dict[str, Any]) -> BaseException:
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(state)
    return error


def _is_same(error: BaseException, copy: Any) -> bool:
    return _are_alike(error, copy) and text_of(error) == text_of(copy)


def _are_alike(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, BaseException):
        return one.__dict__.keys() == other.__dict__.keys() and _are_alike(one.args, other.args)
    if isinstance(one, (tuple, list)):
        return len(one) == len(other) and all(map(_are_alike, one, other))
    # An object without an `__eq__` equals no copy of it. NaN does not even equal itself.
    has_equality: bool = type(one).__eq__ is not object.__eq__  # type: ignore[comparison-overlap]
    return not has_equality or bool(one == other) or bool(one != one and other != other)  # noqa: PLR0124


# --- restoring ----------------------------------------------------------------------------------------


def restore(
    failure: Failure, *, fallback: type[StepFailedError] | type[WorkflowFailedError]
) -> BaseException:
    """The exception that `capture` was given, with its causes, and with its traceback as a note.

    Args:
        failure: What `capture` returned.
        fallback: The class to use if the exception cannot be rebuilt here, or must not be raised here.
    """
    error = _or(None, lambda: _unpickled(failure))
    if error is None:
        error = fallback(
            f"{failure.error_type}: {failure.error}",
            error_type=failure.error_type,
            error_traceback=failure.traceback,
        )
    if failure.cause is not None:
        error.__cause__ = restore(failure.cause, fallback=fallback)
    if failure.traceback:
        rebuilt = error
        _or(None, lambda: _note(rebuilt, failure.traceback))
    return error


def _unpickled(failure: Failure) -> BaseException | None:
    error = None if failure.exception is None else unpickle(failure.exception)
    # SystemExit, KeyboardInterrupt or CancelledError would end the process that raises them here, which may
    # be a coordinator with all its runs. StopIteration cannot pass through a coroutine or a future.
    return error if isinstance(error, Exception) and not isinstance(error, StopIteration) else None


def _note(error: BaseException, text: str) -> None:
    # An exception that was restored, raised and captured again has notes already. The text of the later
    # traceback ends with them.
    notes = getattr(error, "__notes__", [])
    notes[:] = [note for note in notes if not _is_ours(str(note))]
    error.add_note(NOTE + text)


def _is_ours(note: str) -> bool:
    return note.startswith(NOTE) or (note.startswith("Step '") and GAVE_UP in note)
