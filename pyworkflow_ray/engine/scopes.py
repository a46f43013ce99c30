"""What a run shares with the parts that carry out what its code asks for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime
from typing import Any, TypeVar

from pyworkflow_ray.engine.cancellations import Cancellation
from pyworkflow_ray.engine.codecs import Codec
from pyworkflow_ray.engine.limits import Limits
from pyworkflow_ray.engine.loop import EPOCH, RunLoop
from pyworkflow_ray.engine.recordings import Halt, Recording
from pyworkflow_ray.engine.unawaited_calls import UnawaitedCalls

_T = TypeVar("_T")


class Scope:
    """What a run's steps, timers, hooks, children and effects need to know of the run.

    Args:
        run_id: The run.
        loop: The event loop of its code.
        codec: How its values are encoded.
        limits: The bounds of what it may do.
    """

    __slots__ = (
        "cancellation",
        "codec",
        "future",
        "limits",
        "nesting_depth",
        "now",
        "recording",
        "run_id",
        "unawaited",
    )

    def __init__(self, run_id: str, loop: RunLoop, codec: Codec, limits: Limits) -> None:
        self.run_id, self.codec, self.limits = run_id, codec, limits
        self.recording = Recording(run_id, loop.halt)
        self.cancellation = Cancellation(run_id, loop, limits.max_duration)
        self.future: Callable[[], asyncio.Future[Any]] = loop.create_future
        """Makes a future of the run's loop."""
        self.now: datetime = EPOCH
        """The time of the last event applied. It never goes back."""
        self.nesting_depth = 0
        """How many runs are above this one."""
        self.unawaited = UnawaitedCalls()
        """The calls that the code has made and not awaited so far."""

    async def stall(self) -> None:
        """Never return. Code that has diverged waits here: an exception would run its `finally` blocks, and
        a loop around a bare `except` would try again for ever."""
        await self.future()

    async def decided(self, decide: Callable[[], _T]) -> _T:
        """What `decide` returns, which records a decision of the code. It stalls if the code diverges."""
        try:
            return decide()
        except Halt:
            await self.stall()
            raise
