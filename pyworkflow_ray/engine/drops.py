"""Letting go of a suspended run without running any more of its code.

When a suspended coroutine is collected, Python throws `GeneratorExit` into it, and every `finally` and
`__aexit__` on its stack runs: a run that merely leaves memory would clean up as if it had been
cancelled. Python skips this for an object whose finalizer has run before, and `mark_finalized` sets that
mark by hand. It is checked once, on a coroutine of our own; where the mark cannot be set (another
interpreter, another layout), dropped runs are kept alive until their process ends instead.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys
from collections import deque
from collections.abc import Iterable
from types import AsyncGeneratorType, CoroutineType, GeneratorType, MethodType
from typing import Any

_SUSPENDABLE = (CoroutineType, GeneratorType, AsyncGeneratorType)
_ON_THE_WAY = (
    MethodType,
    tuple,
    list,
    deque,
    dict,
    contextlib.ExitStack,
    contextlib.AsyncExitStack,
    contextlib._GeneratorContextManagerBase,
)
_ON_THE_WAY_NAMES = {"async_generator_asend", "async_generator_athrow", "coroutine_wrapper"}
_MAX_VISITED = 20_000

_kept: list[Any] = []


def drop_suspended(roots: Iterable[Any]) -> None:
    """Let the coroutines and generators, and what they wait in, be collected without running.

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
    queue = deque(roots)
    while queue and len(seen) < _MAX_VISITED:
        item = queue.popleft()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, _SUSPENDABLE):
            found.append(item)
        elif not (isinstance(item, _ON_THE_WAY) or type(item).__name__ in _ON_THE_WAY_NAMES):
            continue
        if isinstance(item, dict) and "__builtins__" in item:
            continue  # a module's globals: not a frame's own
        queue.extend(gc.get_referents(item))
    return found


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
