"""Our own wait, as_completed and map: in order, bounded, and the same in a replay."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from pyworkflow_ray.authoring.steps import step
from pyworkflow_ray.authoring.timers import sleep
from pyworkflow_ray.engine.events import StepCancelled, StepScheduled
from pyworkflow_ray.engine.races import (
    ALL_COMPLETED,
    FIRST_COMPLETED,
    FIRST_EXCEPTION,
    as_completed,
    gather,
    wait,
)
from pyworkflow_ray.exceptions import ConfigurationError
from tests.engine.simulator import Simulation, assert_replays, outcome_of


@step(name="race_square")
def square(x: int) -> int:
    return x * x


@step(name="race_fail", max_retries=0)
def fail(x: int) -> int:
    if x == 3:
        raise ValueError("three")
    return x


async def after(seconds: float, value: Any = None) -> Any:
    await sleep(seconds)
    if isinstance(value, Exception):
        raise value
    return value


def run(workflow: Callable[..., Any], *args: Any, seed: int = 0) -> Any:
    simulation = Simulation(workflow, *args, seed=seed)
    kind, _ = outcome_of(simulation)
    assert_replays(simulation)
    assert kind in ("returned", "raised")
    return simulation.result()


def test_wait_gives_done_and_pending_in_the_order_given() -> None:
    async def workflow() -> tuple[list[Any], list[Any]]:
        calls = [after(s, s) for s in (5, 1, 9, 2, 7)]
        done, pending = await wait(calls, timeout="6s")
        return [f.result() for f in done], [await f for f in pending]

    assert run(workflow) == ([5, 1, 2], [9, 7])


@pytest.mark.parametrize(
    ("return_when", "expected"),
    [(FIRST_COMPLETED, [2]), (FIRST_EXCEPTION, [5, 2]), (ALL_COMPLETED, [5, 8, 2])],
)
def test_wait_returns_when_it_is_told_to(return_when: str, expected: list[int]) -> None:
    async def workflow() -> list[int]:
        error = ValueError("no")
        calls = [after(5, error), after(8, 8), after(2, 2)]
        done, pending = await wait(calls, return_when=return_when)
        for future in pending:
            future.cancel()
        return [5 if f.exception() else f.result() for f in done]

    assert run(workflow) == expected


def test_wait_for_nothing_returns_at_once() -> None:
    async def workflow() -> Any:
        return await wait([])

    assert run(workflow) == ([], [])


def test_what_is_pending_after_wait_goes_on() -> None:
    async def workflow() -> list[int]:
        _, pending = await wait([after(1, 1), square(3), after(60, 9)], timeout=2)
        return list(await gather(*pending))

    assert 9 in run(workflow)


@pytest.mark.parametrize("seed", range(5))
def test_as_completed_gives_each_in_the_order_of_the_ends(seed: int) -> None:
    async def workflow() -> list[int]:
        return [await done async for done in as_completed([after(s, s) for s in (4, 2, 3, 1)])]

    assert run(workflow, seed=seed) == [1, 2, 3, 4]


@pytest.mark.parametrize("seed", range(5))
def test_as_completed_with_steps_gives_the_recorded_order_in_every_replay(seed: int) -> None:
    async def workflow() -> list[int]:
        got = []
        async for done in as_completed(square(i) for i in range(6)):
            got.append(await done)
            await square(100)
        return got

    assert sorted(run(workflow, seed=seed)) == [0, 1, 4, 9, 16, 25]


def test_as_completed_raises_when_its_time_is_over_and_says_how_many_are_left() -> None:
    async def workflow() -> Any:
        got = []
        try:
            async for done in as_completed([after(s, s) for s in (1, 2, 30, 40)], timeout="5s"):
                got.append(await done)
        except TimeoutError as error:
            return got, str(error)
        return got, ""

    got, text = run(workflow)
    assert got == [1, 2]
    assert "2 of 4" in text


def test_as_completed_that_is_left_early_leaves_no_timer() -> None:
    async def workflow() -> int:
        async for done in as_completed([after(s, s) for s in (1, 2)], timeout="1h"):
            await done
            break
        await sleep(10)
        return 1

    simulation = Simulation(workflow)
    assert simulation.run() == 1
    assert (simulation.history[-1].timestamp - simulation.history[0].timestamp).total_seconds() < 60
    assert_replays(simulation)


def test_an_error_that_is_awaited_does_not_end_as_completed() -> None:
    async def workflow() -> list[str]:
        told = []
        async for done in as_completed([after(1, ValueError("a")), after(2, "b")]):
            try:
                told.append(await done)
            except ValueError as error:
                told.append(str(error))
        return told

    assert run(workflow) == ["a", "b"]


@pytest.mark.parametrize("seed", range(3))
def test_map_gives_results_in_the_order_of_the_items(seed: int) -> None:
    async def workflow() -> list[int]:
        return await square.map(range(7))

    assert run(workflow, seed=seed) == [0, 1, 4, 9, 16, 25, 36]


@pytest.mark.parametrize("bound", [1, 2, 3])
def test_map_has_no_more_in_flight_than_it_is_told(bound: int) -> None:
    async def workflow() -> list[int]:
        return await square.map(range(8), max_in_flight=bound)

    simulation = Simulation(workflow, seed=bound)
    simulation.start()
    most = 0
    while not simulation.execution.is_finished:
        most = max(most, len(simulation.execution.steps))
        simulation.advance()
    assert most == bound
    assert simulation.result() == [x * x for x in range(8)]
    assert_replays(simulation)


def test_map_refuses_a_bound_below_one() -> None:
    async def workflow() -> list[int]:
        return await square.map([1], max_in_flight=0)

    with pytest.raises(ValueError, match="max_in_flight"):
        run(workflow)


def test_map_of_nothing_is_nothing() -> None:
    async def workflow() -> list[int]:
        return await square.map([], max_in_flight=3)

    assert run(workflow) == []


@pytest.mark.parametrize("seed", range(6))
def test_the_first_error_of_a_map_cancels_the_rest(seed: int) -> None:
    async def workflow() -> str:
        try:
            await fail.map(range(6))
        except ValueError as error:
            await sleep(1)
            return str(error)
        return "none"

    simulation = Simulation(workflow, seed=seed)
    assert simulation.run() == "three"
    assert_replays(simulation)
    ended = {r.event.step_id for r in simulation.history if hasattr(r.event, "node")}  # type: ignore[attr-defined]
    cancelled = [r.event.step_id for r in simulation.history if isinstance(r.event, StepCancelled)]
    asked = [r.event.step_id for r in simulation.history if isinstance(r.event, StepScheduled)]
    assert cancelled == [step_id for step_id in asked if step_id not in ended]


def test_the_winner_of_a_race_is_the_recorded_one_whatever_comes_later() -> None:
    async def workflow() -> str:
        async def named(name: str) -> str:
            await square(1)
            return name

        tasks = [asyncio.create_task(named(name)) for name in "abc"]
        done, pending = await wait(tasks, return_when=FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        return await done[0]

    winners = {run(workflow, seed=seed) for seed in range(20)}
    assert winners == {"a", "b", "c"}


@step(name="race_power")
def power(base: int, exponent: int) -> int:
    return int(base**exponent)


def test_map_of_several_iterables_ends_with_the_shortest() -> None:
    async def workflow() -> list[int]:
        return await power.map([2, 3, 4], iter([5, 2]))

    assert run(workflow) == [32, 9]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("batch_size", [None, 4])
def test_map_gives_exceptions_in_the_places_of_results(seed: int, batch_size: int | None) -> None:
    async def workflow() -> list[str]:
        results = await fail.map(range(5), batch_size=batch_size, return_exceptions=True)
        return [repr(each) for each in results]

    assert run(workflow, seed=seed) == ["0", "1", "2", "ValueError('three')", "4"]


def test_a_cancellation_is_not_given_in_the_place_of_a_result() -> None:
    async def workflow() -> str:
        call = asyncio.ensure_future(square.map(range(3), return_exceptions=True))
        await sleep(0)
        call.cancel()
        try:
            await call
        except asyncio.CancelledError:
            return "cancelled"
        return "not cancelled"

    assert run(workflow) == "cancelled"


def test_arguments_that_do_not_fit_are_an_exception_in_their_place() -> None:
    async def workflow() -> list[str]:
        results = await square.map([2, "two", 3], return_exceptions=True)
        return [type(each).__name__ for each in results]

    assert run(workflow) == ["int", "StepValidationError", "int"]


def test_steps_of_a_batch_are_recorded_each_with_the_batch_size() -> None:
    async def workflow() -> list[int]:
        return await square.map(range(3), batch_size=2)

    simulation = Simulation(workflow)
    assert simulation.run() == [0, 1, 4]
    scheduled = simulation.events(StepScheduled)
    assert [(event.step_id, event.options) for event in scheduled] == [
        (f"race_square#{number}", {"batch_size": 2}) for number in (1, 2, 3)
    ]
    assert_replays(simulation)


@pytest.mark.parametrize("batch_size", [0, -1, 1.5, "32", True])
def test_map_refuses_a_batch_size_that_is_no_count(batch_size: Any) -> None:
    async def workflow() -> list[int]:
        return await square.map([1], batch_size=batch_size)

    with pytest.raises(ValueError, match="batch_size is"):
        run(workflow)


@pytest.mark.parametrize("options", [{"local": True}, {"idempotent": False}])
def test_map_refuses_batches_of_steps_that_cannot_share_a_task(options: dict[str, Any]) -> None:
    async def workflow() -> list[int]:
        return await square.options(**options).map([1], batch_size=2)

    simulation = Simulation(workflow)
    with pytest.raises(ConfigurationError, match=r"race_square\.map\(batch_size=2\)"):
        simulation.run()
    assert not simulation.events(StepScheduled)


def test_map_without_an_iterable_is_refused() -> None:
    async def workflow() -> list[int]:
        return await square.map()

    with pytest.raises(TypeError, match="at least one iterable"):
        run(workflow)


async def test_map_outside_of_a_workflow_calls_the_plain_function() -> None:
    assert await square.map([1, 2], batch_size=2) == [1, 4]
