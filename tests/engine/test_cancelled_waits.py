"""However waits are nested, each part of the code that waits sees a request to cancel as our error.

asyncio loses the error's class, or its message, in more than one place: in a `gather` whose last part has
ended, in the body of a `TaskGroup`, at a `Condition`, in a `timeout` that ends while the code cleans up.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyworkflow_ray.authoring.context import receive, shield
from pyworkflow_ray.authoring.hooks import hook
from pyworkflow_ray.authoring.steps import step
from pyworkflow_ray.authoring.timers import sleep
from pyworkflow_ray.engine.events import WorkflowCancelled
from pyworkflow_ray.engine.limits import Limits
from pyworkflow_ray.engine.races import FIRST_COMPLETED, as_completed, bounded_map, wait
from pyworkflow_ray.exceptions import CancellationError, WorkflowTimeoutError
from tests.engine.simulator import Simulation, assert_replays, outcome_of

Wait = Callable[[], Awaitable[Any]]
Node = tuple[Any, ...]

BOUNDED = settings(
    max_examples=int(os.environ.get("PYWORKFLOW_TEST_EXAMPLES", "150")),
    derandomize=True,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


@step(name="waits_echo", max_retries=0)
async def echo(value: Any) -> Any:
    return value


@step(name="waits_interrupted", max_retries=0, on_cancel="interrupt")
async def interrupted() -> None:
    return None


# --- leaves: what code waits for ----------------------------------------------------------------------


async def _full_queue() -> None:
    queue = asyncio.Queue[int](maxsize=1)
    await queue.put(1)
    await queue.put(2)


async def _lock() -> None:
    lock = asyncio.Lock()
    async with lock, lock:
        pass


async def _semaphore() -> None:
    async with asyncio.Semaphore(0):
        pass


async def _condition() -> None:
    condition = asyncio.Condition()
    async with condition:
        await condition.wait()


async def _condition_that_waits_for_its_lock() -> None:
    """It was notified, and whoever did that keeps the lock."""
    condition = asyncio.Condition()

    async def keep() -> None:
        async with condition:
            condition.notify()
            try:
                await sleep("1h")
            finally:
                await asyncio.sleep(0)

    async with condition:
        keeper = asyncio.ensure_future(keep())
        try:
            await condition.wait()
        finally:
            keeper.cancel()


async def _ends(*waits: Wait) -> None:
    async for done in as_completed([call() for call in waits]):
        await done


LEAVES: dict[str, Wait] = {
    "step": interrupted,
    "sleep": lambda: sleep("1h"),
    "asyncio.sleep": lambda: asyncio.sleep(3600),
    "hook": lambda: hook("never"),
    "signal": lambda: receive("never"),
    "queue": lambda: asyncio.Queue[int]().get(),
    "full queue": _full_queue,
    "event": lambda: asyncio.Event().wait(),
    "lock": _lock,
    "semaphore": _semaphore,
    "condition": _condition,
    "barrier": lambda: asyncio.Barrier(2).wait(),
    "future": lambda: asyncio.get_running_loop().create_future(),
}


# --- branches: how it waits ----------------------------------------------------------------------------


async def _ended() -> int:
    return 1


async def _under_timeout(call: Wait) -> None:
    async with asyncio.timeout(7200):
        await call()


async def _in_task(call: Wait) -> None:
    await asyncio.ensure_future(call())


async def _in_generator(call: Wait) -> None:
    async def items() -> AsyncIterator[int]:
        yield 1
        await call()
        yield 2

    async for _ in items():
        pass


async def _in_body(call: Wait, *others: Wait) -> None:
    async with asyncio.TaskGroup() as group:
        for other in others:
            group.create_task(_plain(other))
        await call()


async def _in_group(*waits: Wait) -> None:
    async with asyncio.TaskGroup() as group:
        for call in waits:
            group.create_task(_plain(call))


async def _plain(call: Wait) -> Any:
    return await call()


async def _gathered(*waits: Wait, exceptions: bool) -> None:
    calls = (*(call() for call in waits), _ended())  # the last of them has ended when the request comes
    await asyncio.gather(*calls, return_exceptions=exceptions)


BRANCHES: dict[str, Callable[..., Awaitable[Any]]] = {
    "timeout": lambda call, *_: _under_timeout(call),
    "wait_for": lambda call, *_: asyncio.wait_for(call(), 7200),
    "task": lambda call, *_: _in_task(call),
    "asyncio.shield": lambda call, *_: asyncio.shield(call()),
    "generator": lambda call, *_: _in_generator(call),
    "group's body": _in_body,
    "group": _in_group,
    "gather": lambda *waits: _gathered(*waits, exceptions=False),
    "gather that returns exceptions": lambda *waits: _gathered(*waits, exceptions=True),
    "wait": lambda *waits: wait([call() for call in waits]),
    "first": lambda *waits: wait([call() for call in waits], return_when=FIRST_COMPLETED),
    "as_completed": _ends,
    "bounded_map": lambda *waits: bounded_map(lambda call: call(), waits),
}

CLEAN_UPS: dict[str, Wait] = {
    "none": _ended,
    "step": lambda: echo("cleaned up"),
    "sleep": lambda: sleep("1m"),
    "turn": lambda: asyncio.sleep(0),
    "shielded step": lambda: _shielded(lambda: echo("cleaned up")),
    "gathered steps": lambda: asyncio.gather(echo("a"), echo("b")),
    "in time": lambda: _under_timeout(lambda: echo("in time")),
    "too late": lambda: _too_late(),  # noqa: PLW0108  # defined below
}


async def _shielded(call: Wait) -> None:
    async with shield():
        await call()


async def _too_late() -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1):
            await sleep("1h")


def _nodes() -> st.SearchStrategy[Node]:
    leaves = st.tuples(st.sampled_from(sorted(LEAVES)), st.sampled_from(sorted(CLEAN_UPS)))
    return st.recursive(
        leaves,
        lambda parts: st.tuples(
            st.sampled_from(sorted(BRANCHES)),
            st.sampled_from(sorted(CLEAN_UPS)),
            st.lists(parts, min_size=1, max_size=3),
        ),
        max_leaves=5,
    )


def _wait_of(node: Node, seen: list[str]) -> Wait:
    """The wait that a node describes. It notes the class of the error that it sees, and cleans up."""
    kind, clean_up, *parts = node
    branches = [_wait_of(part, seen) for part in parts[0]] if parts else []

    async def observed() -> None:
        try:
            await (BRANCHES[kind](*branches) if parts else LEAVES[kind]())
        except (CancellationError, WorkflowTimeoutError) as error:
            seen.append(type(error).__name__)
            await CLEAN_UPS[clean_up]()
            raise
        except BaseException as error:
            seen.append(f"{type(error).__name__} at {node}")
            raise

    return observed


@BOUNDED
@given(_nodes(), st.booleans())
def test_every_part_that_waits_sees_our_error(node: Node, is_timeout: bool) -> None:
    seen: list[str] = []
    at_the_top: list[str] = []

    async def workflow() -> None:
        try:
            await _wait_of(node, seen)()
        except (CancellationError, WorkflowTimeoutError) as error:
            at_the_top.append(type(error).__name__)
            raise

    limits = Limits(max_duration=timedelta(seconds=60)) if is_timeout else None
    simulation = Simulation(workflow, limits=limits)
    simulation.start()
    if is_timeout:
        simulation.pass_time(60)
    else:
        simulation.cancel("enough")
    outcome_of(simulation)
    expected = "RunTimedOut" if is_timeout else "RunCancelled"
    assert set(seen) == {expected}
    assert at_the_top == [expected]
    if not is_timeout:
        assert simulation.history[-1].event == WorkflowCancelled(reason="enough")
    assert_replays(simulation)


# --- one at a time, so that a failure names the place ---------------------------------------------------


@pytest.mark.parametrize("branch", BRANCHES)
@pytest.mark.parametrize("clean_up", CLEAN_UPS)
def test_a_wait_of_each_kind_in_each_other_keeps_the_error(branch: str, clean_up: str) -> None:
    for inner in BRANCHES:
        leaf = ("hook", clean_up)
        other = ("event", "none")
        node = (branch, "none", [(inner, clean_up, [leaf, other]), other])
        test_every_part_that_waits_sees_our_error.hypothesis.inner_test(node, False)  # type: ignore[attr-defined]


def test_a_condition_that_waits_for_its_lock_keeps_the_error() -> None:
    seen: list[str] = []

    async def workflow() -> None:
        try:
            await _condition_that_waits_for_its_lock()
        except CancellationError as error:
            seen.append(type(error).__name__)
            raise

    simulation = Simulation(workflow)
    simulation.start()
    simulation.cancel("enough")
    outcome_of(simulation)
    assert seen == ["RunCancelled"]


def test_a_timeout_that_ends_while_the_code_cleans_up_lets_the_error_pass() -> None:
    seen: list[str] = []

    async def workflow() -> None:
        try:
            async with asyncio.timeout(60):
                try:
                    await hook("never")
                except CancellationError:
                    await sleep("1h")
                    raise
        except CancellationError as error:
            seen.append(type(error).__name__)
            raise

    simulation = Simulation(workflow)
    simulation.start()
    simulation.cancel("enough")
    outcome_of(simulation)
    assert seen == ["RunCancelled"]
    assert simulation.history[-1].event == WorkflowCancelled(reason="enough")
    assert_replays(simulation)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_tasks_beside_code_that_answers_a_request_with_an_error_see_the_request(depth: int) -> None:
    """A group that fails cancels its other tasks. Here it fails because of the request.

    1. The request stops the body of a group. Its other task waits at the same time.
    2. The body raises an error of its own, perhaps through groups within it.
    3. The group cancels the other task, which sees what stopped the body.
    """
    seen: list[str] = []

    async def beside() -> None:
        try:
            await sleep("1d")
        except asyncio.CancelledError as error:
            seen.append(type(error).__name__)
            raise

    async def body(depth: int) -> None:
        if depth:
            async with asyncio.TaskGroup() as group:
                group.create_task(beside())
                await body(depth - 1)
        try:
            await sleep("2d")
        except CancellationError:
            await echo("cleaned up")
            raise ValueError("what the clean-up found") from None

    simulation = Simulation(body, depth)
    simulation.start()
    simulation.cancel("why")
    assert outcome_of(simulation)[0] == "raised"
    assert seen == ["RunCancelled"] * depth
    assert_replays(simulation)


def test_a_shielded_task_of_a_group_is_left_alone_however_late_the_group_passes_the_request_on() -> None:
    """1. The request comes. 2. The group's body cleans up. 3. Only then the group cancels its tasks."""

    async def workflow() -> None:
        async def guarded() -> None:
            async with shield():
                await echo("guarded")
                await sleep("1h")
                await echo("to its end")

        async with asyncio.TaskGroup() as group:
            group.create_task(guarded())
            try:
                await hook("never")
            finally:
                await sleep("1m")

    simulation = Simulation(workflow)
    simulation.start()
    simulation.cancel("enough")
    outcome_of(simulation)
    assert simulation.calls == [("waits_echo#1", 1), ("waits_echo#2", 1)]
    assert simulation.history[-1].event == WorkflowCancelled(reason="enough")
    assert_replays(simulation)
