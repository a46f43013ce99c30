"""Every way to say when a failed step is tried again, with the resulting pauses.

    python examples/retries.py

The attempts are read from the history: each failure but the last leaves a `step.retrying` event. The first
table is from a run on Ray. The second table shows the forms that take minutes, on a clock that skips the
waiting.
"""

import asyncio
from contextlib import suppress

from pyworkflow_ray import (
    Event,
    FatalError,
    RetryableError,
    RetryPolicy,
    get_context,
    start,
    step,
    workflow,
)
from pyworkflow_ray.testing import WorkflowEnvironment


@step
def unreliable(works_at: int) -> str:
    """Fails before the attempt number `works_at`."""
    attempt = get_context().attempt
    if attempt < works_at:
        raise ConnectionError(f"attempt {attempt} found nobody")
    return f"attempt {attempt} worked"


@step
def rate_limited() -> str:
    """Sets its own pause, which wins over its retry policy."""
    attempt = get_context().attempt
    if attempt == 1:
        raise RetryableError("429: too many requests", retry_after="700ms")
    return f"attempt {attempt} worked"


@step
def hopeless() -> str:
    raise FatalError("no such account")


@step(max_retries=2, retry_delay="100ms", retry_on=ConnectionError)
def picky() -> str:
    """Is tried again after a `ConnectionError`, and after no other error."""
    raise ValueError("not a number")


@workflow
async def quick() -> None:
    await unreliable.options(name="a duration", retry_delay="200ms")(works_at=3)
    await unreliable.options(name="seconds", retry_delay=0.3)(works_at=2)
    await unreliable.options(name="a list", retry_delay=["100ms", "400ms"])(works_at=4)
    policy = RetryPolicy(initial="100ms", factor=3, maximum="500ms", jitter=0)
    await unreliable.options(name="a RetryPolicy", retry_delay=policy)(works_at=4)
    await rate_limited()
    for fails in (hopeless, picky):
        with suppress(FatalError, ValueError):
            await fails()


@workflow
async def slow() -> None:
    await unreliable(works_at=4)  # retry_delay="exponential" is the default
    await unreliable.options(name="fixed", retry_delay="fixed")(works_at=3)
    await unreliable.options(name="an hour", retry_delay="1h")(works_at=2)


def show(title: str, events: list[Event]) -> None:
    """A line for each step: its attempts, how it ended, and the pauses between the attempts."""
    print(f"\n{title}\n{'step':<16} {'attempts':>8}  {'end':<10} pauses")
    pauses: dict[str, list[float]] = {}
    for event in events:
        step_id = event.data.get("step_id")
        if event.type == "step.started":
            pauses[step_id] = []
        elif event.type == "step.retrying":
            retry_at = event.timestamp.fromisoformat(event.data["retry_at"])
            pauses[step_id].append((retry_at - event.timestamp).total_seconds())
        elif event.type in ("step.completed", "step.failed"):
            end = event.type.removeprefix("step.")
            waits = ", ".join(f"{seconds:.2f} s" for seconds in pauses[step_id])
            print(f"{step_id:<16} {event.data['attempt']:>8}  {end:<10} {waits or '-'}")


async def main() -> None:
    run = await start(quick)
    await run
    show("on Ray", await run.events())

    async with WorkflowEnvironment() as env:
        run = await env.start(slow)
        await run
        show("on a clock of its own", await run.events())


if __name__ == "__main__":
    asyncio.run(main())
