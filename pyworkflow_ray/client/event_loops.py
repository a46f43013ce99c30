"""The client's own event loop, on a thread, so that blocking calls work in scripts and in notebooks."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

from pyworkflow_ray.values.tracebacks import leave_out_own_frames

T = TypeVar("T")

_PLUMBING = ("asyncio", "concurrent.futures")
"""Whose frames lie between the thread that waits and the one that works."""

_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None


def client_loop() -> asyncio.AbstractEventLoop:
    """The loop, started at its first use. Its thread does not keep the process alive."""
    global _loop
    with _lock:
        if _loop is None or _loop.is_closed():
            loop = asyncio.new_event_loop()
            threading.Thread(target=loop.run_forever, name="pyworkflow-client", daemon=True).start()
            _loop = loop
        return _loop


def run_sync(work: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine of this package, blocking the calling thread.

    It also works where an event loop is running, as in a notebook.
    """
    future = asyncio.run_coroutine_threadsafe(work, client_loop())
    try:
        return future.result()
    except BaseException as error:
        future.cancel()
        leave_out_own_frames(error, _PLUMBING)
        raise
