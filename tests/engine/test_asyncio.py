"""What people and libraries use of asyncio in a workflow: times of all sizes, tasks, queues, questions."""

from __future__ import annotations

import asyncio
import contextvars
import math
from collections.abc import Callable
from typing import Any

import pytest

from pyworkflow_ray.authoring.steps import step
from pyworkflow_ray.authoring.timers import sleep
from pyworkflow_ray.engine.events import TimerStarted
from pyworkflow_ray.engine.races import as_completed, wait
from pyworkflow_ray.exceptions import FatalError
from tests.engine.simulator import Simulation, assert_replays


@step(name="asyncio_double")
def double(x: int) -> int:
    return x * 2


def run(workflow: Callable[..., Any]) -> Any:
    simulation = Simulation(workflow)
    result = simulation.run()
    assert_replays(simulation)
    return result


# --- times --------------------------------------------------------------------------------------------

NEVER: list[Callable[[], Any]] = [
    lambda: sleep(math.inf),
    lambda: asyncio.sleep(math.inf),
    lambda: asyncio.get_running_loop().call_later(math.inf, print),
    lambda: asyncio.get_running_loop().call_at(math.inf, print),
]
BOUNDS: list[Callable[[float | None], Any]] = [
    lambda limit: asyncio.wait_for(double(2), limit),
    lambda limit: _within(asyncio.timeout(limit)),
    lambda limit: _within(asyncio.timeout_at(limit)),
    lambda limit: wait([double(2)], timeout=limit),
    lambda limit: asyncio.wait([asyncio.ensure_future(double(2))], timeout=limit),
    lambda limit: _last(as_completed([double(2)], timeout=limit)),
    lambda limit: _last_of(asyncio.as_completed([asyncio.ensure_future(double(2))], timeout=limit)),
    lambda limit: double.options(timeout=limit)(2),
]


async def _within(timeout: asyncio.Timeout) -> int:
    async with timeout:
        return await double(2)


async def _last(done: Any) -> Any:
    async for each in done:
        return await each
    return None


async def _last_of(done: Any) -> Any:
    for each in done:
        return await each
    return None


@pytest.mark.parametrize("limit", [math.inf, None])
@pytest.mark.parametrize("bounded", BOUNDS)
def test_a_bound_that_is_never_reached_starts_no_timer(bounded: Any, limit: float | None) -> None:
    async def workflow() -> None:
        await bounded(limit)

    simulation = Simulation(workflow)
    simulation.run()
    assert simulation.events(TimerStarted) == []
    assert_replays(simulation)


@pytest.mark.parametrize("never", NEVER)
def test_a_wait_for_ever_is_no_timer_and_can_be_given_up(never: Callable[[], Any]) -> None:
    async def workflow() -> str:
        waiting = never()
        if isinstance(waiting, asyncio.TimerHandle):
            await double(1)
            waiting.cancel()
            return "given up"
        try:
            await asyncio.wait_for(waiting, 5)
        except TimeoutError:
            return "given up"
        return "over"

    simulation = Simulation(workflow)
    assert simulation.run() == "given up"
    assert len(simulation.events(TimerStarted)) <= 1
    assert_replays(simulation)


@pytest.mark.parametrize("delay", [0, -1, -math.inf, -0.0])
def test_what_is_due_already_takes_no_time_and_no_timer(delay: float) -> None:
    async def workflow() -> list[str]:
        seen: list[str] = []
        loop = asyncio.get_running_loop()
        loop.call_later(delay, seen.append, "later")
        loop.call_at(delay, seen.append, "at")
        await asyncio.sleep(delay)
        for bounded in (asyncio.timeout(delay), asyncio.timeout_at(delay)):
            try:
                async with bounded:
                    await double(1)
            except TimeoutError:
                seen.append("timeout")
        try:
            await asyncio.wait_for(double(1), delay)
        except TimeoutError:
            seen.append("wait_for")
        await asyncio.sleep(0)
        return seen

    simulation = Simulation(workflow)
    assert simulation.run() == ["later", "at", "timeout", "timeout", "wait_for"]
    assert simulation.events(TimerStarted) == []
    assert_replays(simulation)


@pytest.mark.parametrize("delay", [math.nan, 1e300, -math.nan])
def test_a_time_that_is_none_is_refused(delay: float) -> None:
    async def workflow() -> None:
        asyncio.get_running_loop().call_later(delay, print)

    with pytest.raises(ValueError, match=r"math\.inf is never"):
        run(workflow)


# --- tasks, queues, questions -------------------------------------------------------------------------


def test_libraries_may_ask_the_loop_how_it_is_set_up() -> None:
    async def workflow() -> list[Any]:
        loop = asyncio.get_running_loop()
        loop.set_task_factory(None)
        loop.set_exception_handler(None)
        loop.set_debug(False)
        asked = [loop.get_task_factory(), loop.get_exception_handler(), loop.is_running(), loop.get_debug()]
        return [*asked, loop.is_closed(), asyncio.get_event_loop() is loop]

    assert run(workflow) == [None, None, True, False, False, True]


def test_a_task_is_made_with_a_name_and_a_context_and_never_starts_eagerly() -> None:
    variable = contextvars.ContextVar("variable", default="outside")

    async def workflow() -> list[Any]:
        loop = asyncio.get_running_loop()
        context = contextvars.copy_context()
        context.run(variable.set, "inside")

        async def tell() -> str:
            return variable.get()

        task = loop.create_task(tell(), name="named", context=context)
        lazy = loop.create_task(tell(), eager_start=False)
        code = tell()
        try:
            loop.create_task(code, eager_start=True)  # noqa: RUF006
        except FatalError as error:
            code.close()
            refused = "order in which they are made" in str(error)
        with pytest.raises(TypeError):
            loop.create_task(code, priority=3)  # type: ignore[call-arg]  # noqa: RUF006
        return [task.get_name(), await task, await lazy, refused]

    assert run(workflow) == ["named", "inside", "outside", True]


def test_barriers_and_queues_of_all_kinds_work() -> None:
    async def workflow() -> list[Any]:
        barrier = asyncio.Barrier(3)

        async def meet(seconds: float) -> int:
            await asyncio.sleep(seconds)
            return await barrier.wait()

        places = await asyncio.gather(meet(2), meet(1), meet(0))
        first, last = asyncio.PriorityQueue[int](), asyncio.LifoQueue[int]()
        for number in (2, 3, 1):
            await first.put(number)
            await last.put(number)
        return [
            sorted(places),
            [await first.get() for _ in range(3)],
            [await last.get() for _ in range(3)],
            await _closed_queue(),
        ]

    assert run(workflow) == [[0, 1, 2], [1, 2, 3], [1, 3, 2], "closed"]


async def _closed_queue() -> str:
    queue = asyncio.Queue[int]()
    if not hasattr(queue, "shutdown"):  # before Python 3.13
        return "closed"
    waiting = asyncio.ensure_future(queue.get())
    await asyncio.sleep(1)
    queue.shutdown()
    try:
        await waiting
    except asyncio.QueueShutDown:  # type: ignore[attr-defined]
        return "closed"
    return "open"


def test_a_loop_within_the_loop_is_refused() -> None:
    async def nothing() -> None: ...

    async def workflow() -> list[str]:
        said = []
        for run_it in (asyncio.run, asyncio.Runner().run, asyncio.get_running_loop().run_until_complete):
            code = nothing()
            try:
                run_it(code)
            except (RuntimeError, FatalError) as error:
                said.append(type(error).__name__)
            code.close()
        return said

    assert run(workflow) == ["RuntimeError", "RuntimeError", "FatalError"]
