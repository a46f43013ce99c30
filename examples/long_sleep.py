"""A run that sleeps leaves memory. Only its row remains, and the timer actor wakes the run.

    python examples/long_sleep.py

The run sleeps for four seconds. A setting suspends runs after half a second with nothing to do. While this
run sleeps, no coordinator holds it. Then the same workflow, with a sleep of 30 days, is tested in
milliseconds.
"""

import asyncio
import time

import ray

from pyworkflow_ray import RunStatus, configure, get_config, get_context, sleep, start, step, workflow
from pyworkflow_ray.testing import WorkflowEnvironment


@step
def send(text: str) -> str:
    return f"sent: {text}"


@workflow
async def remind(pause: str) -> list[str]:
    sent = [await send("thank you for your order")]
    before = get_context().now()
    await sleep(pause, name="before the reminder")
    waited = get_context().now() - before
    return [*sent, await send(f"{waited.total_seconds():.0f} s later: how was it?")]


async def on_ray() -> None:
    configure(suspend_after="500ms")
    run = await start(remind, "4s")
    began, last = time.monotonic(), None
    while last is not RunStatus.COMPLETED:
        row = await run.refresh()
        if row.status is not last:
            last = row.status
            print(f"{time.monotonic() - began:5.1f} s  {last.value}")
            if last is RunStatus.SUSPENDED:
                print(f"         {await memory_of(row.coordinator)}")
        await asyncio.sleep(0.1)
    print(await run)


async def memory_of(coordinator: str) -> str:
    actor = ray.get_actor(coordinator, namespace=get_config().namespace)
    return f"{coordinator} has {len((await actor.status.remote())['runs'])} runs in memory"


async def in_a_test() -> None:
    began = time.monotonic()
    async with WorkflowEnvironment() as env:
        first_day = env.now()
        result = await env.run(remind, "30d")
        days = (env.now() - first_day).days
    print(f"\n{days} days in {(time.monotonic() - began) * 1000:.0f} ms: {result}")


if __name__ == "__main__":
    asyncio.run(on_ray())
    asyncio.run(in_a_test())
