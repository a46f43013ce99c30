"""A run is asked to cancel. Its step stops early, it cleans up, and it finishes what must be finished.

    python examples/cancel_with_cleanup.py

The code sees a `CancellationError` where it waits. The run waits for a step that is under way, and the step
can ask whether it should stop. After that the code can await further steps as usual. A `shield()` delays the
request until its block has ended.
"""

import asyncio
import time

from pyworkflow_ray import CancellationError, RunHandle, get_context, shield, start, step, workflow


@step
def render(frames: int) -> int:
    """Asks after each frame. A step that never asks runs to its end, and the run waits for it."""
    for _ in range(frames):
        get_context().check_cancellation()
        time.sleep(0.05)
    return frames


@step
def open_scratch() -> str:
    return "scratch-7"


@step
def delete_scratch(name: str) -> str:
    return f"{name} is deleted"


@step
def bill(name: str) -> str:
    time.sleep(1)
    return f"the work in {name} is billed"


@workflow
async def film(frames: int) -> int:
    scratch = await open_scratch()
    try:
        return await render(frames)
    except CancellationError as error:
        get_context().log(f"cancelled: {error.reason}")
        raise
    finally:
        await delete_scratch(scratch)


@workflow
async def billed_film(frames: int) -> int:
    async with shield():
        await bill("scratch-8")
    return await render(frames)


async def cancelled(run: RunHandle[int], step_id: str) -> None:
    """Wait until a step is under way, cancel the run, and show how it ended."""
    while not any(event.data.get("step_id") == step_id for event in await run.events()):
        await asyncio.sleep(0.05)
    await asyncio.sleep(0.3)
    print(f"asked to cancel: {await run.cancel(reason='the film is too long')}")
    try:
        await run
    except CancellationError as error:
        print(f"{(await run.status()).value}: {error.reason}")
    for event in await run.events():
        what = event.data.get("step_id") or event.data.get("reason") or ""
        print(f"  {event.sequence}  {event.type:<24} {what}")
    print(f"asked again: {await run.cancel()}\n")


async def main() -> None:
    await cancelled(await start(film, 1000), "render#1")
    await cancelled(await start(billed_film, 1000), "bill#1")


if __name__ == "__main__":
    asyncio.run(main())
