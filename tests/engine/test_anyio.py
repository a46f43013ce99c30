"""anyio in a workflow: its task groups, cancel scopes and streams work as under asyncio, and replay."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from pyworkflow_ray.authoring.steps import step
from pyworkflow_ray.engine.events import WorkflowCancelled
from pyworkflow_ray.exceptions import CancellationError
from tests.engine.simulator import START, Simulation, assert_replays

anyio: Any = pytest.importorskip("anyio")


@step(name="anyio_note", max_retries=0)
def note(text: str) -> str:
    return text


@step(name="anyio_fail", max_retries=0)
def fail(text: str) -> None:
    raise ValueError(text)


async def _task_group() -> Any:
    seen = []

    async def work(text: str) -> None:
        seen.append(await note(text))

    async with anyio.create_task_group() as group:
        group.start_soon(work, "a")
        group.start_soon(work, "b", name="named")
    return sorted(seen)


async def _start() -> Any:
    async def serve(*, task_status: Any = anyio.TASK_STATUS_IGNORED) -> None:
        task_status.started(await note("ready"))
        await anyio.sleep(1)

    async with anyio.create_task_group() as group:
        return await group.start(serve)


async def _failing_group() -> Any:
    try:
        async with anyio.create_task_group() as group:
            group.start_soon(fail, "bad")
            group.start_soon(anyio.sleep, 1000)
    except ExceptionGroup as errors:
        return [str(error) for error in errors.exceptions]


async def _cancelled_group() -> Any:
    async with anyio.create_task_group() as group:
        group.start_soon(anyio.sleep, 1000)
        await note("enough")
        group.cancel_scope.cancel()
    return anyio.current_time()


async def _move_on() -> Any:
    with anyio.move_on_after(10) as scope:
        await anyio.sleep(1000)
    return [scope.cancelled_caught, await note("after")]


async def _fail_after() -> Any:
    with anyio.fail_after(10):
        await note("in time")
    try:
        with anyio.fail_after(10):
            await anyio.sleep(1000)
    except TimeoutError:
        return "late"


async def _nested_scopes() -> Any:
    seen = []
    with anyio.move_on_after(1) as outer:
        try:
            with anyio.move_on_after(100) as inner:
                await anyio.sleep(1000)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(5)
                seen.append(await note("clean"))
    return [*seen, outer.cancelled_caught, inner.cancelled_caught]


async def _event() -> Any:
    event = anyio.Event()

    async def set_later() -> None:
        await anyio.sleep(5)
        event.set()

    async with anyio.create_task_group() as group:
        group.start_soon(set_later)
        await event.wait()
    return event.is_set()


async def _stream() -> Any:
    send, receive = anyio.create_memory_object_stream(2)

    async def produce() -> None:
        async with send:
            for number in range(5):
                await send.send(await note(str(number)))

    async with anyio.create_task_group() as group, receive:
        group.start_soon(produce)
        return [text async for text in receive]


async def _locks() -> Any:
    condition, limiter = anyio.Condition(), anyio.CapacityLimiter(1)
    async with limiter, anyio.Semaphore(1), anyio.Lock(), condition:
        condition.notify_all()
        await anyio.lowlevel.checkpoint()
        return await note("held")


async def _sleeps() -> Any:
    began = anyio.current_time()
    await anyio.sleep(0)
    await anyio.sleep_until(began + 3)
    with anyio.move_on_after(3):
        await anyio.sleep_forever()
    return anyio.current_time() - began >= 6


async def _beside_asyncio() -> Any:
    async with asyncio.TaskGroup() as group:
        task = group.create_task(_move_on())
        async with anyio.create_task_group() as other:
            other.start_soon(note, "x")
    return task.result()


USES: list[tuple[Callable[[], Any], Any]] = [
    (_task_group, ["a", "b"]),
    (_start, "ready"),
    (_failing_group, ["bad"]),
    (_move_on, [True, "after"]),
    (_fail_after, "late"),
    (_nested_scopes, ["clean", True, False]),
    (_event, True),
    (_stream, ["0", "1", "2", "3", "4"]),
    (_locks, "held"),
    (_sleeps, True),
    (_beside_asyncio, [True, "after"]),
]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("use", "expected"), USES)
def test_anyio_works_in_a_workflow_and_replays(use: Callable[[], Any], expected: Any, seed: int) -> None:
    simulation = Simulation(use, seed=seed)
    assert simulation.run() == expected
    assert_replays(simulation)


def test_a_cancelled_scope_takes_no_time() -> None:
    simulation = Simulation(_cancelled_group)
    assert simulation.run() - START.timestamp() < 1000
    assert_replays(simulation)


async def _waits_in_body() -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(anyio.sleep, 1000)
        await anyio.sleep(2000)


async def _waits_in_tasks() -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(anyio.sleep, 1000)
        group.start_soon(anyio.sleep, 2000)


async def _waits_in_scope() -> None:
    with anyio.move_on_after(1e6):
        await anyio.sleep(1000)


async def _waits_in_deadline() -> None:
    with anyio.fail_after(1e6):
        await anyio.sleep(1000)


async def _waits_in_nested_groups() -> None:
    async with anyio.create_task_group() as outer, anyio.create_task_group() as inner:
        inner.start_soon(anyio.sleep, 1000)
        outer.start_soon(_waits_in_scope)
        await anyio.sleep(2000)


async def _waits_in_asyncios_group() -> None:
    async with asyncio.TaskGroup() as outer, anyio.create_task_group() as inner:
        inner.start_soon(anyio.sleep, 1000)
        outer.create_task(_waits_in_scope())
        await anyio.sleep(2000)


async def _waits_for_event() -> None:
    await anyio.Event().wait()


async def _waits_after_a_shield() -> None:
    with anyio.CancelScope(shield=True):
        await anyio.sleep(10)
    await anyio.sleep(1000)


WAITS = [
    _waits_in_body,
    _waits_in_tasks,
    _waits_in_scope,
    _waits_in_deadline,
    _waits_in_nested_groups,
    _waits_in_asyncios_group,
    _waits_for_event,
    _waits_after_a_shield,
]


@pytest.mark.parametrize("waits", WAITS)
def test_code_sees_a_request_to_cancel_around_whatever_anyio_waits_for(waits: Callable[[], Any]) -> None:
    async def workflow() -> str:
        try:
            await waits()
        except CancellationError as error:
            return f"{error.reason}, {await note('cleaned')}"
        return "nothing raised"

    simulation = Simulation(workflow)
    simulation.start()
    simulation.cancel("why")
    assert simulation.run() == "why, cleaned"
    assert_replays(simulation)


@pytest.mark.parametrize("waits", WAITS)
def test_a_run_that_lets_a_request_pass_through_anyio_is_cancelled(waits: Callable[[], Any]) -> None:
    simulation = Simulation(waits)
    simulation.start()
    simulation.cancel("why")
    with pytest.raises(CancellationError):
        simulation.run()
    assert isinstance(simulation.history[-1].event, WorkflowCancelled)
    assert_replays(simulation)
