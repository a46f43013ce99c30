"""What a type checker makes of workflows and of what their code calls; checked by test_typing, never run."""

import asyncio
from collections.abc import Coroutine
from typing import Any, assert_type

from pyworkflow_ray.authoring.context import patched, side_effect
from pyworkflow_ray.authoring.steps import step
from pyworkflow_ray.authoring.timers import sleep
from pyworkflow_ray.authoring.workflows import Workflow, WorkflowFunction, as_workflow, workflow
from pyworkflow_ray.engine.races import as_completed, gather, wait


@step
def double(x: int) -> int:
    return x * 2


@workflow
async def bare(x: int) -> str:
    return str(x)


@workflow()
async def empty(x: int) -> bool:
    return bool(x)


@workflow(name="called", max_duration="1h", tags=["a"], durable=True)
async def called(x: int, *, fast: bool = False) -> list[int]:
    return [x]


class Order(Workflow):
    async def run(self, order_id: int) -> str:
        return str(order_id)


async def code() -> None:
    called_only = assert_type(bare(1), Coroutine[object, None, str])
    assert_type(await called_only, str)
    assert_type(await empty(1), bool)
    assert_type(await called(1, fast=True), list[int])
    assert_type(as_workflow("bare"), WorkflowFunction[Any, Any])
    assert_type(side_effect(lambda: 3), int)
    assert_type(patched("p"), bool)
    assert_type(await sleep("1h"), None)
    assert_type(await gather(double(1), bare(2), double(3)), tuple[int, str, int])
    task = asyncio.create_task(double(1))
    assert_type(await task, int)
    assert_type(await asyncio.wait_for(double(1), 3), int)
    done, pending = await wait([double(1), double(2)], timeout="5m")
    assert_type(done, list[asyncio.Future[int]])
    assert_type(pending, list[asyncio.Future[int]])
    async for each in as_completed([double(1)], timeout=3):
        assert_type(await each, int)
    await called("x")  # type: ignore[arg-type]
    workflow(max_durations=3)  # type: ignore[call-overload]
    await Order()(3)


@workflow  # type: ignore[arg-type]
def plain(x: int) -> int:
    return x
