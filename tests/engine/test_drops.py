"""A run that leaves memory runs none of its code, leaves no noise, and is gone."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
import warnings
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest
from loguru import logger

from pyworkflow_ray.authoring.steps import step
from pyworkflow_ray.authoring.timers import sleep
from pyworkflow_ray.engine.evictions import _can_mark
from pyworkflow_ray.engine.races import as_completed
from tests.engine.simulator import Simulation

ran: list[str] = []


@step(name="drop_work")
def work() -> None:
    pass


@pytest.fixture(autouse=True)
def _silence() -> Iterator[None]:
    """No clean-up runs, and neither Python nor asyncio says a word."""
    ran.clear()
    noise: list[str] = []
    gc.collect()  # what other tests have left behind
    sink = logger.add(noise.append, level="DEBUG")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
        gc.collect()
    logger.remove(sink)
    assert (ran, noise) == ([], [])


@contextlib.contextmanager
def manager() -> Iterator[None]:
    try:
        yield
    finally:
        ran.append("manager")


@contextlib.asynccontextmanager
async def async_manager() -> AsyncIterator[None]:
    try:
        yield
    finally:
        ran.append("async manager")


class Exits:
    def __enter__(self) -> None: ...

    def __exit__(self, *error: object) -> None:
        ran.append("exit")

    async def __aenter__(self) -> None: ...

    async def __aexit__(self, *error: object) -> None:
        ran.append("async exit")


async def finals(wait: Callable[[], Awaitable[Any]] = work) -> None:
    try:
        await wait()
    finally:
        ran.append("finally")


async def handlers() -> None:
    try:
        await work()
    except BaseException:
        ran.append("except")
        raise


async def plain_with() -> None:
    with Exits():
        await work()


async def async_with() -> None:
    async with Exits():
        await work()


async def managers() -> None:
    with manager():
        async with async_manager():
            await work()


async def stacks() -> None:
    with contextlib.ExitStack() as stack:
        stack.enter_context(manager())
        stack.callback(ran.append, "callback")
        async with contextlib.AsyncExitStack() as async_stack:
            await async_stack.enter_async_context(async_manager())
            await work()


async def numbers() -> AsyncIterator[int]:
    try:
        yield 1
        await work()
        yield 2
    finally:
        ran.append("async generator")


async def async_generators() -> None:
    async for _ in numbers():
        pass


async def paused_async_generator() -> None:
    generator = numbers()
    await anext(generator)
    await work()


def letters() -> Iterator[str]:
    try:
        yield "a"
        yield "b"
    finally:
        ran.append("generator")


async def generators() -> None:
    for _ in letters():
        await work()


async def generators_in_iterators() -> None:
    for _ in zip(enumerate(letters()), map(str, letters()), strict=True):
        await work()


async def generators_in_containers() -> None:
    kept = {"a": [letters()], "b": (letters(),)}
    next(kept["a"][0])
    next(kept["b"][0])
    await work()


async def generators_in_closures() -> None:
    generator = letters()
    next(generator)

    def using() -> None:
        next(generator)

    await work()
    using()


async def nested_tasks() -> None:
    async def child(depth: int) -> None:
        with manager():
            if depth:
                await asyncio.create_task(child(depth - 1))
            else:
                await finals()

    await child(4)


async def gathers() -> None:
    await asyncio.gather(finals(), finals(lambda: sleep(5)), managers())


async def task_groups() -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(finals())
        group.create_task(managers())


async def timeouts() -> None:
    async with asyncio.timeout(60):
        await asyncio.wait_for(finals(), 30)


async def shields() -> None:
    await asyncio.shield(finals())


async def races() -> None:
    async for _ in as_completed([finals(), managers()], timeout=5):
        pass


async def queues() -> None:
    queue: asyncio.Queue[int] = asyncio.Queue()
    await asyncio.gather(finals(queue.get), work())


async def locks() -> None:
    lock = asyncio.Lock()

    async def holder() -> None:
        async with lock:
            await finals()

    await asyncio.gather(holder(), holder())


async def unawaited() -> None:
    pending = [finals(), work()]
    task = asyncio.create_task(finals())
    with manager():
        await work()
    await asyncio.gather(task, *pending)


async def much_data() -> None:
    data = list(range(50_000)), {n: [n] for n in range(50_000)}, [[n] for n in range(150_000)]
    await finals(lambda: deeper(data))


async def deeper(data: Any) -> None:
    with manager():
        await finals()


async def wide() -> None:
    await asyncio.gather(*(finals() for _ in range(3000)))


async def in_a_handler() -> None:
    try:
        raise ValueError("no")
    except ValueError:
        with manager():
            await work()
    finally:
        ran.append("finally")


class Awaited:
    def __await__(self) -> Any:
        try:
            yield from work().__await__()
        finally:
            ran.append("__await__")


async def own_awaitables() -> None:
    await Awaited()


WAITING = [
    finals,
    handlers,
    plain_with,
    async_with,
    managers,
    stacks,
    async_generators,
    paused_async_generator,
    generators,
    generators_in_iterators,
    generators_in_containers,
    generators_in_closures,
    nested_tasks,
    gathers,
    task_groups,
    timeouts,
    shields,
    races,
    queues,
    locks,
    unawaited,
    much_data,
    wide,
    in_a_handler,
    own_awaitables,
]


def test_this_interpreter_can_drop_runs() -> None:
    assert _can_mark


@pytest.mark.parametrize("workflow", WAITING)
def test_a_dropped_run_runs_no_clean_up(workflow: Callable[[], Any]) -> None:
    simulation = Simulation(workflow)
    simulation.start()
    simulation.execution.drop()
    del simulation
    gc.collect()
    assert ran == []


@pytest.mark.parametrize("workflow", WAITING)
def test_a_replayed_run_is_dropped_alike(workflow: Callable[[], Any]) -> None:
    simulation = Simulation(workflow)
    simulation.start()
    resumed = simulation.resumed(len(simulation.history))
    simulation.execution.drop()
    resumed.execution.drop()
    del simulation, resumed
    gc.collect()
    assert ran == []


def test_a_run_may_be_dropped_by_another_thread() -> None:
    simulations = [Simulation(workflow) for workflow in WAITING]
    for simulation in simulations:
        simulation.start()

    def drop() -> None:
        while simulations:
            simulations.pop().execution.drop()
        gc.collect()

    thread = threading.Thread(target=drop)
    del simulation
    thread.start()
    thread.join()
    assert ran == []


def test_a_dropped_run_leaves_nothing_in_memory() -> None:
    class Big:
        pass

    alive: list[weakref.ref[Any]] = []

    async def workflow() -> None:
        big = Big()
        alive.append(weakref.ref(big))
        async with asyncio.TaskGroup() as group:
            for _ in range(3):
                group.create_task(holding())
            await finals()
        del big

    async def holding() -> None:
        big = Big()
        alive.append(weakref.ref(big))
        with manager():
            await work()
        del big

    simulation = Simulation(workflow)
    simulation.start()
    execution = weakref.ref(simulation.execution)
    assert len(alive) == 4
    simulation.execution.drop()
    del simulation
    gc.collect()
    assert [ref() for ref in alive] == [None] * 4
    assert execution() is None


def test_a_finished_run_lets_go_of_what_it_left_running() -> None:
    class Big:
        pass

    alive: list[weakref.ref[Any]] = []

    async def workflow() -> None:
        async def left() -> None:
            big = Big()
            alive.append(weakref.ref(big))
            await finals()
            del big

        asyncio.create_task(left())  # noqa: RUF006
        await sleep(1)

    simulation = Simulation(workflow)
    simulation.start()
    simulation.advance() and simulation.advance()
    simulation.run()
    gc.collect()
    assert ran in ([], ["finally"])
    ran.clear()
    assert alive[0]() is None


def test_dropping_twice_or_before_the_start_is_harmless() -> None:
    simulation = Simulation(finals)
    simulation.execution.drop()
    simulation.execution.drop()


def test_the_same_run_goes_on_elsewhere_after_a_drop() -> None:
    async def workflow() -> str:
        with manager():
            await work()
        return "ended"

    simulation = Simulation(workflow)
    simulation.start()
    simulation.execution.drop()
    assert ran == []
    assert simulation.resumed(len(simulation.history)).run() == "ended"
    assert ran == ["manager"]
    ran.clear()
