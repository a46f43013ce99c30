"""Any workflow, in any interleaving, replays to the same commands from every prefix of its history."""

from __future__ import annotations

import asyncio
import gc
import os
import random
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyworkflow_ray.context import get_context, patched, set_attributes, side_effect
from pyworkflow_ray.engine.executions import Limits
from pyworkflow_ray.engine.races import as_completed, wait
from pyworkflow_ray.steps import step
from pyworkflow_ray.timers import sleep
from tests.engine.simulator import Simulation, WorkerKilled, assert_replays, follow, outcome_of

# A program is a tree of tuples: ("step", 3), ("seq", [program, ...]), ("race", 1.5, program), ...
Program = tuple[Any, ...]

BOUNDED = settings(
    max_examples=int(os.environ.get("PYWORKFLOW_TEST_EXAMPLES", "60")),
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


@step(name="prop_step")
def value(x: int) -> int:
    return x


@step(name="prop_flaky", retry_delay=[0.5, 3], max_retries=2)
def flaky(failures: int, attempts: list[int]) -> int:
    attempts.append(1)
    raise ValueError(f"{failures}")


@step(name="prop_fatal", max_retries=0)
def fatal(text: str) -> None:
    raise KeyError(text)


@step(name="prop_dies", max_retries=0)
def dies() -> None:
    raise WorkerKilled


leaves = st.one_of(
    st.tuples(st.just("step"), st.integers(0, 9)),
    st.tuples(st.just("fail"), st.sampled_from("abc")),
    st.just(("flaky",)),
    st.just(("dies",)),
    st.tuples(st.just("sleep"), st.sampled_from([0, 0.001, 0.5, 1, 3, 60])),
    st.just(("yield",)),
    st.tuples(st.just("effect"), st.booleans()),
    st.just(("random",)),
    st.tuples(st.just("patched"), st.sampled_from("pq")),
    st.just(("attributes",)),
    st.just(("collect",)),
)


def grown(programs: st.SearchStrategy[Program]) -> st.SearchStrategy[Program]:
    several = st.lists(programs, min_size=1, max_size=4)
    return st.one_of(
        st.tuples(st.just("seq"), several),
        st.tuples(st.just("gather"), several),
        st.tuples(st.just("settle"), several),
        st.tuples(st.just("group"), several),
        st.tuples(st.just("first"), several),
        st.tuples(st.just("each"), several),
        st.tuples(st.just("timeout"), st.sampled_from([0.001, 0.6, 2, 30]), programs),
        st.tuples(st.just("wait_for"), st.sampled_from([0.001, 0.6, 2, 30]), programs),
        st.tuples(st.just("try"), programs),
        st.tuples(st.just("finally"), programs, leaves),
        st.tuples(st.just("loop"), st.integers(1, 3), programs),
        st.tuples(st.just("queue"), several),
        st.tuples(st.just("lock"), several),
        st.tuples(st.just("spawn"), programs),
        st.tuples(st.just("cancel"), programs),
    )


programs = st.recursive(leaves, grown, max_leaves=12)


async def execute(program: Program) -> Any:  # one case for each construct
    match program:
        case ("step", x):
            return await value(x)
        case ("fail", text):
            return await fatal(text)
        case ("flaky",):
            return await flaky(1, [])
        case ("dies",):
            return await dies()
        case ("sleep", seconds):
            return await (sleep(seconds) if seconds != 0.5 else asyncio.sleep(seconds))
        case ("yield",):
            return await asyncio.sleep(0)
        case ("effect", raises):
            return side_effect(lambda: 1 // 0 if raises else "effect")
        case ("random",):
            # Decides by a replay-equal source, so it must decide alike.
            return await value(1) if get_context().random() < 0.5 else str(get_context().uuid4())
        case ("patched", name):
            return await value(2) if patched(name) else None
        case ("attributes",):
            return set_attributes(seen=str(get_context().now()))
        case ("collect",):
            # The garbage collector comes when it likes, and never twice at the same place.
            return gc.collect(1) * 0 if random.SystemRandom().random() < 0.5 else 0
        case ("seq", parts):
            return [await execute(part) for part in parts]
        case ("gather", parts):
            return await asyncio.gather(*map(execute, parts))
        case ("settle", parts):
            return [repr(r) for r in await asyncio.gather(*map(execute, parts), return_exceptions=True)]
        case ("group", parts):
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(execute(part)) for part in parts]
            return [task.result() for task in tasks]
        case ("first", parts):
            return await first(parts)
        case ("each", parts):
            return await each(parts)
        case ("timeout", seconds, part):
            async with asyncio.timeout(seconds):
                return await execute(part)
        case ("wait_for", seconds, part):
            return await asyncio.wait_for(execute(part), seconds)
        case ("try", part):
            try:
                return await execute(part)
            except Exception as error:
                return f"caught {type(error).__name__}"
        case ("finally", part, last):
            try:
                return await execute(part)
            finally:
                await execute(last)
        case ("loop", times, part):
            return [await execute(part) for _ in range(times)]
        case ("queue", parts):
            return await hand_over(parts)
        case ("lock", parts):
            return await one_at_a_time(parts)
        case ("spawn", part):
            task = asyncio.ensure_future(execute(part))
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
            return await asyncio.sleep(0)
        case ("cancel", part):
            return await begun_and_cancelled(part)
    raise AssertionError(program)


async def first(parts: list[Program]) -> str:
    done, pending = await wait([execute(part) for part in parts], return_when=asyncio.FIRST_COMPLETED)
    for future in pending:
        future.cancel()
    told = await asyncio.gather(*done, *pending, return_exceptions=True)
    return repr(told[0])


async def each(parts: list[Program]) -> list[str]:
    told = []
    async for done in as_completed([execute(part) for part in parts], timeout="10m"):
        told += [repr(r) for r in await asyncio.gather(done, return_exceptions=True)]
        await value(len(told))
    return told


async def hand_over(parts: list[Program]) -> list[str]:
    queue: asyncio.Queue[str] = asyncio.Queue(maxsize=1)

    async def produce(part: Program) -> None:
        await queue.put(repr(await asyncio.gather(execute(part), return_exceptions=True)))

    tasks = [asyncio.ensure_future(produce(part)) for part in parts]
    told = [await queue.get() for _ in tasks]
    await asyncio.gather(*tasks)
    return told


async def one_at_a_time(parts: list[Program]) -> list[str]:
    lock, told = asyncio.Lock(), []

    async def locked(part: Program) -> None:
        async with lock:
            told.append(repr(await asyncio.gather(execute(part), return_exceptions=True)))

    await asyncio.gather(*map(locked, parts))
    return told


async def begun_and_cancelled(part: Program) -> str:
    task = asyncio.ensure_future(execute(part))
    await value(0)
    task.cancel()
    (told,) = await asyncio.gather(task, return_exceptions=True)
    return repr(told)


def simulate(program: Program, seed: int) -> Simulation:
    async def workflow() -> str:
        return repr(await execute(program))

    return Simulation(workflow, seed=seed, limits=Limits(default_retries=1, max_losses=1))


@BOUNDED
@given(programs, st.integers(0, 1000))
def test_any_run_replays_from_every_prefix_of_its_history(program: Program, seed: int) -> None:
    simulation = simulate(program, seed)
    outcome_of(simulation)
    assert_replays(simulation)


@BOUNDED
@given(programs, st.integers(0, 1000), st.floats(0, 1), st.integers(0, 1000), st.booleans())
def test_any_run_that_is_cut_goes_on_to_an_end_in_another_order(
    program: Program, seed: int, where: float, other_seed: int, is_interrupted: bool
) -> None:
    simulation = simulate(program, seed)
    outcome_of(simulation)
    resumed = simulation.resumed(cut(simulation, where), seed=other_seed)
    if is_interrupted and not resumed.execution.is_finished:
        resumed.interrupt()
    outcome_of(resumed)
    assert resumed.execution.is_finished
    assert_replays(resumed)


def cut(simulation: Simulation, where: float) -> int:
    return 1 + round(where * (len(simulation.history) - 1))


@BOUNDED
@given(programs, st.integers(0, 1000))
def test_any_run_comes_to_the_same_in_the_same_order_of_outcomes(program: Program, seed: int) -> None:
    one, other = simulate(program, seed), simulate(program, seed)
    assert outcome_of(one) == outcome_of(other)
    assert one.types() == other.types()


@BOUNDED
@given(programs, st.integers(0, 1000), st.floats(0, 1))
def test_any_run_that_is_dropped_midway_goes_on_as_if_it_had_not_been(
    program: Program, seed: int, where: float
) -> None:
    simulation = simulate(program, seed)
    outcome = outcome_of(simulation)
    length = cut(simulation, where)
    dropped = simulation._execution()
    dropped.replay(simulation.history[:length])
    dropped.drop()
    follow(simulation, simulation.history, length)
    assert outcome_of(simulation.resumed(len(simulation.history))) == outcome
