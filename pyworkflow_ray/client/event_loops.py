"""The client's own event loop, on a thread: blocking calls work in scripts and in notebooks alike."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None


def client_loop() -> asyncio.AbstractEventLoop:
    """The loop, started when it is first needed; its thread does not keep the process alive."""
    global _loop
    with _lock:
        if _loop is None or _loop.is_closed():
            loop = asyncio.new_event_loop()
            threading.Thread(target=loop.run_forever, name="pyworkflow-client", daemon=True).start()
            _loop = loop
        return _loop


def run_sync(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine of this package to its end and give its result, blocking the calling thread.

    It works where an event loop is running too, as in a notebook.
    """
    future = asyncio.run_coroutine_threadsafe(work, client_loop())
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise
