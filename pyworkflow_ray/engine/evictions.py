"""Letting go of a suspended run without running any more of its code.

When a suspended coroutine is collected, Python throws `GeneratorExit` into it, and every `finally` and
`__aexit__` on its stack runs. So a run that merely leaves memory would clean up as if it had been cancelled.
Python skips this for an object whose finalizer has run before, and `_mark_finalized` sets that mark by hand.
Whether that works is checked once, on a coroutine of our own. Where the mark cannot be set (another
interpreter, another layout of objects), dropped runs are kept alive until their process ends.

The mark is set on the coroutines, on what they wait in, and on the generators and context managers that their
frames hold, in plain containers or on the stack. A generator that only an attribute of a user's object leads
to is not found.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys
from collections import deque
from collections.abc import Iterable
from types import (
    AsyncGeneratorType,
    BuiltinFunctionType,
    CodeType,
    CoroutineType,
    FrameType,
    FunctionType,
    GeneratorType,
    ModuleType,
    TracebackType,
)
from typing import Any

_SUSPENDABLE = (CoroutineType, GeneratorType, AsyncGeneratorType)
_CONTEXT_MANAGERS = (contextlib._GeneratorContextManagerBase, contextlib.ExitStack, contextlib.AsyncExitStack)
# Containers, iterators, cells, bound methods: types of these modules lead on to what a frame holds.
_ON_THE_WAY = frozenset({"builtins", "itertools", "functools", "collections"})
_ELSEWHERE = (
    type,
    ModuleType,
    FunctionType,
    BuiltinFunctionType,
    CodeType,
    FrameType,
    TracebackType,
    BaseException,
)
_MAX_DATA = 100_000
"""How many objects of the run's data are searched for generators. Coroutines are followed without a bound."""

_kept: list[Any] = []


def evict_suspended(roots: Iterable[Any]) -> None:
    """Let coroutines and generators, and what they wait in, be collected without running their code.

    Args:
        roots: Suspended coroutines, generators and async generators.
    """
    suspended = _reachable(roots)
    if not _can_mark:
        _kept.extend(suspended)
        return
    for item in suspended:
        _mark_finalized(item)


def _reachable(roots: Iterable[Any]) -> list[Any]:
    """The suspendable objects among what the roots' frames hold, themselves included."""
    seen: set[int] = set()
    found: list[Any] = []
    suspended = deque(roots)
    data: deque[Any] = deque()
    looked_at = 0
    while suspended or (data and looked_at < _MAX_DATA):
        # Coroutines first: no amount of data in one frame may hide the frames below it.
        item = suspended.popleft() if suspended else data.popleft()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, _SUSPENDABLE):
            found.append(item)
        else:
            looked_at += 1
        for referent in gc.get_referents(item):
            if isinstance(referent, _SUSPENDABLE):
                suspended.append(referent)
            elif _leads_on(referent):
                (suspended if _is_short(referent) else data).append(referent)
    return found


def _leads_on(item: Any) -> bool:
    if not gc.is_tracked(item) or isinstance(item, _ELSEWHERE):
        return False
    if isinstance(item, dict) and "__builtins__" in item:
        return False  # a module's globals: not a frame's own
    return type(item).__module__ in _ON_THE_WAY or isinstance(item, _CONTEXT_MANAGERS)


def _is_short(item: Any) -> bool:
    """Whether it is a link between frames (a bound method, an `asend()`), and not a container of data."""
    return not hasattr(item, "__len__")


def _mark_finalized(item: Any) -> None:
    # The word before an object is the collector's `_gc_prev`, whose lowest bit says "finalized".
    ctypes.c_size_t.from_address(id(item) - ctypes.sizeof(ctypes.c_size_t)).value |= 1


def _check_mark() -> bool:
    if sys.implementation.name != "cpython" or not getattr(sys, "_is_gil_enabled", lambda: True)():
        return False
    ran = []

    class Pause:
        def __await__(self) -> Any:
            yield

    async def probe() -> None:
        try:
            await Pause()
        finally:
            ran.append(1)

    coroutine = probe()
    coroutine.send(None)
    # CPython 3.11 to 3.14 keep the collector's two words before the object; trust only what the
    # interpreter itself then reports.
    if gc.is_finalized(coroutine):
        return False
    _mark_finalized(coroutine)
    marked = gc.is_finalized(coroutine)
    del coroutine
    return marked and not ran


_can_mark = _check_mark()
