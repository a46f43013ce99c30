"""Any workflow, in any interleaving, replays to the same commands from every prefix of its history.

Whatever it waits for (steps, timers, hooks, signals, children), and wherever a request to cancel finds it.
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyworkflow_ray.authoring.children import start_child_workflow
from pyworkflow_ray.authoring.context import (
    continue_as_new,
    get_context,
    patched,
    receive,
    set_attributes,
    shield,
    side_effect,
)
from pyworkflow_ray.authoring.hooks import hook
from pyworkflow_ray.authoring.steps import step
from pyworkflow_ray.authoring.timers import sleep
from pyworkflow_ray.authoring.workflows import workflow as define
from pyworkflow_ray.engine.events import (
    HookCreated,
    HookDisposed,
    HookExpired,
    HookReceived,
    StepCancelled,
    StepCompleted,
    StepFailed,
    StepScheduled,
)
from pyworkflow_ray.engine.limits import Limits
from pyworkflow_ray.engine.races import as_completed, wait
from pyworkflow_ray.exceptions import CancellationError
from tests.engine.simulator import (
    Simulation,
    WorkerKilled,
    assert_replays,
    follow,
    outcome_of,
    own_tokens,
)

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


@define(name="prop_child")
async def child(x: int) -> int:
    await sleep(x)
    if x == 3:
        raise LookupError("three")
    return await value(x)


class Driven(Simulation):
    """A run that is sent signals at random, and when nothing else can happen."""

    cancel_at = 0
    """How many things happen before a request to cancel comes; 0 for none."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{"answers": {"h": "payload", "i": ValueError("rejected")}, **options})
        self.happened = self.pushed = 0

    def advance(self) -> bool:
        self.happened += 1
        if self.happened == self.cancel_at:
            self.cancel("at random")
        elif self.order.random() < 0.05:
            self.signal(self.order.choice("xy"), self.happened)
        elif not super().advance():
            self.pushed += 1
            self.signal("xy"[self.pushed % 2], self.pushed)
            return self.pushed < 100
        return True


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
"""What needs nothing from outside."""

waits = st.one_of(
    leaves,
    st.tuples(st.just("hook"), st.sampled_from("hi"), st.sampled_from([None, 0.001, 30])),
    st.tuples(st.just("hook"), st.just("nobody"), st.sampled_from([0, 0.6, 30])),
    st.tuples(st.just("created"), st.sampled_from([None, 30])),
    st.tuples(st.just("receive"), st.sampled_from("xy")),
    st.tuples(st.just("child"), st.sampled_from([0, 2, 3]), st.sampled_from(["cancel", "abandon", "wait"])),
    st.tuples(st.just("handle"), st.integers(0, 3), st.sampled_from(["cancel", "abandon", "wait"])),
    st.tuples(st.just("policy"), st.sampled_from(["wait", "interrupt", "kill", "abandon"])),
    st.just(("compensated",)),
    st.just(("check",)),
    st.just(("continue",)),
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
        st.tuples(st.just("finally"), programs, waits),
        st.tuples(st.just("shield"), programs),
        st.tuples(st.just("swallow"), programs),
        st.tuples(st.just("cleaned"), programs, waits),
        st.tuples(st.just("loop"), st.integers(1, 3), programs),
        st.tuples(st.just("queue"), several),
        st.tuples(st.just("lock"), several),
        st.tuples(st.just("spawn"), programs),
        st.tuples(st.just("cancel"), programs),
    )


programs = st.recursive(waits, grown, max_leaves=12)
requests = st.sampled_from([0, 0, 1, 2, 3, 4, 5, 6, 8, 12, 20])  # most runs are short


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
        case ("shield", part):
            async with shield():
                return await execute(part)
        case ("swallow", part):
            try:
                return await execute(part)
            except (CancellationError, asyncio.CancelledError) as error:
                return f"swallowed {type(error).__name__}"
        case ("cleaned", part, last):
            try:
                return await execute(part)
            except asyncio.CancelledError:
                await execute(last)
                raise
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
    return await from_outside(program)


async def from_outside(program: Program) -> Any:
    match program:
        case ("hook", name, timeout):
            return await hook(name, timeout=timeout)
        case ("created", timeout):
            return await hook("h", timeout=timeout, on_created=value.fn, on_received=value.fn)
        case ("receive", name):
            return await receive(name)
        case ("child", x, close):
            return await start_child_workflow(child, x, parent_close=close)
        case ("handle", x, close):
            return await handled(x, close)
        case ("policy", on_cancel):
            return await value.options(on_cancel=on_cancel)(3)
        case ("compensated",):
            return await value.options(compensate=value)(4)
        case ("check",):
            return await get_context().check_cancellation()
        case ("continue",):
            return continue_as_new(5)
    raise AssertionError(program)


async def handled(x: int, close: str) -> Any:
    handle = await start_child_workflow(child, x, wait_for_completion=False, parent_close=close)
    match x:
        case 0:
            return await handle.get_status()
        case 1:
            return await handle.cancel()
        case _:
            return await handle.result(timeout=1)


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


def simulate(program: Program, seed: int, cancel_at: int = 0) -> Driven:
    async def workflow(n: int = 0) -> str:
        return repr(await execute(program))

    simulation = Driven(workflow, seed=seed, limits=Limits(default_retries=1, max_losses=1))
    simulation.cancel_at = cancel_at
    return simulation


@BOUNDED
@given(programs, st.integers(0, 1000), requests)
def test_any_run_replays_from_every_prefix_of_its_history(
    program: Program, seed: int, cancel_at: int
) -> None:
    simulation = simulate(program, seed, cancel_at)
    outcome_of(simulation)
    assert_replays(simulation)


@BOUNDED
@given(programs, st.integers(0, 1000), requests, st.floats(0, 1), st.integers(0, 1000), st.booleans())
def test_any_run_that_is_cut_goes_on_to_an_end_in_another_order(
    program: Program, seed: int, cancel_at: int, where: float, other_seed: int, is_interrupted: bool
) -> None:
    simulation = simulate(program, seed, cancel_at)
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
@given(programs, st.integers(0, 1000), requests)
def test_any_run_comes_to_the_same_in_the_same_order_of_outcomes(
    program: Program, seed: int, cancel_at: int
) -> None:
    one, other = simulate(program, seed, cancel_at), simulate(program, seed, cancel_at)
    assert outcome_of(one) == outcome_of(other)
    assert one.types() == other.types()


@BOUNDED
@given(programs, st.integers(0, 1000), requests, st.floats(0, 1))
def test_any_run_that_is_dropped_midway_goes_on_as_if_it_had_not_been(
    program: Program, seed: int, cancel_at: int, where: float
) -> None:
    simulation = simulate(program, seed, cancel_at)
    outcome = outcome_of(simulation)
    length = cut(simulation, where)
    dropped = simulation._execution()
    with own_tokens():
        dropped.replay(simulation.history[:length])
    dropped.drop()
    follow(simulation, simulation.history, length)
    assert outcome_of(simulation.resumed()) == outcome


@BOUNDED
@given(programs, st.integers(0, 1000), requests)
def test_any_run_leaves_nothing_open_at_its_end(program: Program, seed: int, cancel_at: int) -> None:
    simulation = simulate(program, seed, cancel_at)
    outcome_of(simulation)
    made = [event.step_id for event in simulation.events(StepScheduled)]
    ended = [
        recorded.event.step_id
        for recorded in simulation.history
        if isinstance(recorded.event, StepCompleted | StepFailed | StepCancelled)
    ]
    assert sorted(made) == sorted(ended)
    hooks = [event.hook_id for event in simulation.events(HookCreated)]
    answered = [
        recorded.event.hook_id
        for recorded in simulation.history
        if isinstance(recorded.event, HookReceived | HookExpired | HookDisposed)
    ]
    assert sorted(hooks) == sorted(answered)
