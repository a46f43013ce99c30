"""The workflows and steps that are measured. They do as little as possible, to show the engine's cost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from datetime import datetime
from typing import Any

from pyworkflow_ray import get_context, hook, receive, side_effect, sleep, step, workflow

ARGUMENT = "x" * 200
"""The argument of each remote step and of each bare Ray task."""

PAUSE = 0.001
"""Seconds that a step of a batch takes, and also a bare Ray task of the same kind."""


@step
async def remote_length(text: str) -> int:
    """The length of a text, computed in a Ray task."""
    return len(text)


@step(local=True)
async def add(a: int, b: int) -> int:
    """The sum, computed in the coordinator's process."""
    return a + b


@step
def pause(number: int) -> int:
    """The number, after a millisecond."""
    time.sleep(PAUSE)
    return number


@step
async def what_time() -> float:
    """The time at which the step runs."""
    return time.time()


@workflow
async def one_after_another(count: int) -> int:
    """The sum of `count` remote steps' results, each awaited before the next."""
    total = 0
    for _ in range(count):
        total += await remote_length(ARGUMENT)
    return total


@workflow
async def all_at_once(count: int) -> int:
    """The sum of `count` remote steps' results, all of them under way together."""
    return sum(await asyncio.gather(*(remote_length(ARGUMENT) for _ in range(count))))


@workflow
async def in_batches(count: int, size: int) -> int:
    """The sum of the numbers below `count`, each given by a step of a millisecond, in batches of `size`."""
    return sum(await pause.map(range(count), batch_size=size))


@workflow
async def lengths_in_batches(count: int, size: int) -> int:
    """The sum of `count` remote steps' results, in batches of `size` steps that take no time."""
    return sum(await remote_length.map([ARGUMENT] * count, batch_size=size))


@workflow
async def counting(count: int) -> int:
    """`count`, computed by so many local steps."""
    total = 0
    for _ in range(count):
        total = await add(total, 1)
    return total


@workflow
async def one_step(number: int) -> int:
    """The length of the argument plus the number."""
    return await remote_length(ARGUMENT) + number


@workflow
async def one_local_step(number: int) -> int:
    """The number plus one."""
    return await add(number, 1)


@workflow
async def first_step_at() -> float:
    """The time at which the first step runs."""
    return await what_time()


@workflow
async def answered_at(count: int) -> list[float]:
    """The times at which the code goes on after each hook's payload. The tokens are known beforehand."""
    run_id = get_context().run_id
    return [await _after(hook(f"answer{number}", token=f"{run_id}-{number}")) for number in range(count)]


@workflow
async def signalled_at(count: int) -> list[float]:
    """The times at which the code goes on after each signal."""
    return [await _after(receive("tick")) for _ in range(count)]


async def _after(awaitable: Awaitable[Any]) -> float:
    await awaitable
    return side_effect(time.time)


@workflow
async def sleeping(number: int) -> int:
    """Run a step, then sleep for a day."""
    total = await add(number, 1)
    await sleep("1d")
    return total


@workflow
async def waiting_for_tick() -> int:
    """Wait for a signal; the result is 1."""
    await receive("tick")
    return 1


@workflow
async def sleeping_until(due_at: datetime) -> int:
    """Sleep until that time; the result is 1."""
    await sleep(due_at)
    return 1


@workflow
async def late_by(seconds: float) -> float:
    """How many seconds too late a sleep of so many seconds ends."""
    began = side_effect(time.time)
    await sleep(seconds)
    return side_effect(time.time) - began - seconds
