"""Sleeping, durably."""

from __future__ import annotations

import asyncio
import math
from datetime import UTC, datetime

from pyworkflow_ray.authoring.awaited_calls import must_be_awaited
from pyworkflow_ray.durations import When, resolve_when
from pyworkflow_ray.engine.executions import current


@must_be_awaited("sleep()")
async def sleep(duration: When, name: str | None = None) -> None:
    """Wait. In a workflow the wait is durable, and a long one needs no process.

    Args:
        duration: Text ("30s", "5m", "2h", "3d", "1w", "1h30m", "500ms"), seconds, a `timedelta`, or an
            instant (a naive `datetime` is UTC). An instant in the past returns at once, and `math.inf` is
            never over.
        name: Names the timer in the history.

    Raises:
        ValueError: The duration is negative or cannot be read.
    """
    if duration == math.inf:
        await asyncio.sleep(math.inf)
    execution = current.get()
    if execution is None:
        now = datetime.now(UTC)
        await asyncio.sleep(max((resolve_when(duration, now) - now).total_seconds(), 0))
        return
    await execution.sleep_until(resolve_when(duration, execution.now), name or "")
