"""The workflows of the recorded databases. Never change what they do: runs of each version wait in them.

Each version's own code is at work on this module too (`record`), so it uses what the first version had.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import Any

import pyworkflow_ray as pr

HAS_CHANGED = "UPGRADES_HAS_CHANGED"
"""While this is set, the code of `upgrades_astray` is another one."""
DIES = "UPGRADES_DIES"
"""While this is set, a step ends its process."""


@pr.step(local=True)
async def upgrades_double(number: int) -> int:
    return number * 2


@pr.step(local=True, max_retries=1)
async def upgrades_break(text: str) -> str:
    if pr.get_context().attempt == 1 or text == "always":
        raise ValueError(text)
    return text


@pr.step(local=True)
async def upgrades_fatal() -> int:
    if os.environ.get(DIES):
        os._exit(9)
    return 7


@pr.workflow
async def upgrades_sleeping(number: int) -> int:
    doubled = await upgrades_double(number)
    await pr.sleep("300ms")
    return await upgrades_double(doubled)


@pr.workflow
async def upgrades_asking() -> list[Any]:
    try:
        late = await pr.hook("late", timeout="300ms")
    except pr.HookExpiredError:
        late = "nobody came"
    return [late, await pr.hook("answer", token="upgrades-answer")]


@pr.workflow
async def upgrades_listening() -> list[Any]:
    return [await pr.receive("price"), await pr.receive("price"), len("x" * 10)]


@pr.workflow
async def upgrades_child(number: int) -> int:
    return int(await pr.receive("go")) + number


@pr.workflow
async def upgrades_parent() -> int:
    first = await pr.start_child_workflow(upgrades_sleeping, 1)
    second: int = await pr.start_child_workflow(upgrades_child, 2)
    return first + second


@pr.workflow
async def upgrades_failing() -> None:
    await upgrades_break.options(retry_delay="1ms")("always")


@pr.workflow
async def upgrades_retrying(pause: str) -> str:
    return await upgrades_break.options(retry_delay=pause)("once")


@pr.workflow
async def upgrades_astray() -> int:
    if os.environ.get(HAS_CHANGED):
        return len(await upgrades_copy("another"))
    number = await upgrades_double(10)
    await pr.receive("go")
    return number


@pr.workflow
async def upgrades_cut() -> int:
    return await upgrades_fatal()


@pr.workflow
async def upgrades_again(left: int) -> str:
    await upgrades_double(left)
    if left:
        pr.continue_as_new(left - 1)
    return await pr.receive("last")


@pr.workflow
async def upgrades_careful() -> str:
    try:
        await pr.sleep("10h")
    finally:
        async with pr.shield():
            await upgrades_double(1)
    return "slept"


@pr.workflow
async def upgrades_large(text: str) -> int:
    copy = await upgrades_copy(text)
    await pr.sleep("300ms")
    return len(copy)


@pr.step(local=True)
async def upgrades_copy(text: str) -> str:
    return text + text


@pr.workflow
async def upgrades_wide() -> list[Any]:
    pr.set_attributes(colour="blue")
    drawn = pr.get_context().random()
    chosen = pr.side_effect(lambda: 5)
    is_new = pr.patched("new")
    numbers = await asyncio.gather(*(upgrades_double(number) for number in range(3)))
    return [isinstance(drawn, float), chosen, is_new, numbers, await pr.receive("go")]


@pr.workflow
async def upgrades_daily() -> str:
    return "fired"


@pr.step(local=True)
async def upgrades_hang() -> str:
    return "too late"


@pr.workflow
async def upgrades_family() -> list[str]:
    """Children that end in each way, and a step that nobody waits for any more."""
    told = []
    for child, argument in ((upgrades_sleeping, 1), (upgrades_failing, None), (upgrades_careful, None)):
        try:
            given = () if argument is None else (argument,)
            handle = await pr.start_child_workflow(child, *given, wait_for_completion=False)
            if child is upgrades_careful:
                await handle.cancel()
            await handle.result()
            told.append("completed")
        except pr.ChildWorkflowFailedError:
            told.append("failed")
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(upgrades_hang(), 1)
    return told


@pr.workflow
async def upgrades_letting_go() -> str:
    """A hook that the code waits for no longer, and a hook that is answered."""
    waiting = asyncio.ensure_future(pr.hook("first", token="upgrades-first"))
    answer = await pr.hook("second", token="upgrades-second")
    waiting.cancel()
    await pr.sleep(1)
    return answer
