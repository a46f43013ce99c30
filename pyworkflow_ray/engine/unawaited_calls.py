"""Calls that a run's code has made and not awaited: they have done nothing, and nobody would say so.

A call is kept from when it is made until its coroutine begins. What is kept when the code has ended was
never awaited, unless a task was to run it.
"""

from __future__ import annotations

import inspect
import itertools
import sys
from collections.abc import Callable, Coroutine, Iterable, Mapping
from types import CodeType, FrameType
from typing import Any, TypeVar

from pyworkflow_ray.exceptions import FatalError

_T = TypeVar("_T")
_OURS = "pyworkflow_ray."
_MOST_SHOWN = 5
_FRAMES_OF_OURS = 2
"""How many frames of this package may lie between a call and the code that makes it."""


Call = tuple[Coroutine[Any, Any, Any], str, CodeType, int]
"""A coroutine that has not begun, what it is, and where it was made: code, and the place in it."""


def caller(frame: FrameType) -> tuple[CodeType, int]:
    """Where a call was made: the first frame from this one on that is not of this package."""
    # This is on the way of each step. So what is kept is cheap, and the line is looked up when it is told.
    for _ in range(_FRAMES_OF_OURS):
        if frame.f_globals.get("__name__", "")[:15] != _OURS or frame.f_back is None:
            break
        frame = frame.f_back
    return frame.f_code, frame.f_lasti


class UnawaitedCalls:
    """The calls of one run that have not begun."""

    def __init__(self) -> None:
        self.steps: dict[int, Call] = {}
        """The calls of steps, which the steps keep themselves, by their numbers."""
        self._others: dict[int, Call] = {}
        self._numbers = itertools.count()

    def kept(
        self,
        what: str,
        function: Callable[..., Coroutine[Any, Any, _T]],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> Coroutine[Any, Any, _T]:
        """A call of this function, which is made when it is awaited and kept until then."""
        number = next(self._numbers)
        code = self._begun(number, function, args, kwargs)
        self._others[number] = (code, what, *caller(sys._getframe(2)))
        return code

    async def _begun(
        self,
        number: int,
        function: Callable[..., Coroutine[Any, Any, _T]],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> _T:
        self._others.pop(number, None)
        return await function(*args, **kwargs)

    def forgotten(self, in_tasks: Iterable[Any]) -> list[Call]:
        """The calls that nobody has awaited: those of steps first, each kind in the order of its calls.

        Args:
            in_tasks: The coroutines of tasks that have not ended. They may be about to begin.
        """
        if not self.steps and not self._others:
            return []
        running = {id(code) for code in in_tasks}
        calls = [*self.steps.values(), *self._others.values()]
        return [call for call in calls if _is_unbegun(call[0]) and id(call[0]) not in running]

    def clear(self) -> None:
        """Let go of all calls. Python warns of none that was closed."""
        for calls in (self.steps, self._others):
            while calls:
                _, (code, *_) = calls.popitem()
                if _is_unbegun(code):
                    code.close()


def _is_unbegun(code: Coroutine[Any, Any, Any]) -> bool:
    return inspect.getcoroutinestate(code) == inspect.CORO_CREATED


def unawaited_error(run_id: str, calls: list[Call]) -> FatalError:
    """The error of a run that has ended without awaiting these calls."""
    return FatalError(
        f"Run {run_id!r} has ended, and nobody has awaited {told(calls)}. A call does nothing until it is "
        "awaited: write `await` before it, or give it to gather(), to a TaskGroup or to create_task()."
    )


def told(calls: list[Call]) -> str:
    """The calls with their places."""
    shown = ", ".join(map(_told, calls[:_MOST_SHOWN]))
    more = len(calls) - _MOST_SHOWN
    return shown if more <= 0 else f"{shown}, and {more} more"


def _told(call: Call) -> str:
    _, what, code, at = call
    positions = itertools.islice(code.co_positions(), at // 2, None)
    line = next((line for line, *_ in positions if line is not None), code.co_firstlineno)
    return f"{what if what.endswith(')') else f'step {what!r}'} at {code.co_filename}:{line}"
