"""A call that is never awaited does nothing. A run that ends so fails, and its error names the place."""

from __future__ import annotations

import asyncio
import gc
import inspect
from collections.abc import Callable
from typing import Any

import pytest

from pyworkflow_ray.authoring.children import start_child_workflow
from pyworkflow_ray.authoring.context import (
    compensations,
    continue_as_new,
    get_context,
    receive,
    shield,
)
from pyworkflow_ray.authoring.hooks import define_hook, hook
from pyworkflow_ray.authoring.steps import Step, run_step, step
from pyworkflow_ray.authoring.timers import sleep
from pyworkflow_ray.authoring.workflows import workflow
from pyworkflow_ray.engine.events import StepScheduled, WorkflowCompleted
from pyworkflow_ray.exceptions import CancellationError, FatalError
from tests.engine.simulator import Continued, Simulation, assert_replays

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")


@step(name="unawaited_charge", max_retries=0)
def charge(cents: int = 1) -> int:
    return cents


@step(name="unawaited_fail", max_retries=0)
def fail() -> None:
    raise ValueError("it failed")


class Refund(Step):
    async def execute(self) -> None: ...


class Till:
    @step(name="unawaited_method")
    def count(self, x: int) -> int:
        return x


@workflow
async def unawaited_child() -> None: ...


Approval = define_hook("approval", bool)


def ends_with(code: Callable[[], Any], *args: Any) -> tuple[Any, Simulation]:
    simulation = Simulation(code, *args)
    try:
        result = simulation.run()
    except Exception as error:
        result = error
    assert_replays(simulation)
    simulation.execution.drop()
    gc.collect()  # Python warns of what is left, and a warning is an error here
    return result, simulation


def line_of(function: Any, text: str) -> str:
    lines, first = inspect.getsourcelines(function)
    return f"{__file__}:{first + next(at for at, line in enumerate(lines) if text in line)}"


# --- what is told -------------------------------------------------------------------------------------

CALLS: list[tuple[str, Callable[[], Any]]] = [
    ("step 'unawaited_charge'", lambda: charge(3)),
    ("step 'unawaited_charge'", lambda: charge.options(max_retries=1)(3)),
    ("step 'Refund'", lambda: Refund().options(max_retries=0)()),  # noqa: PLW0108
    ("step 'unawaited_method'", lambda: Till().count(3)),
    ("map()", lambda: charge.map([1, 2])),
    ("map()", lambda: Till().count.map([1, 2])),
    ("run_step()", lambda: run_step(max, 1, 2)),
    ("run_step()", lambda: run_step.options(max_retries=0)(max, 1, 2)),
    ("run()", lambda: get_context().run(max, 1, 2)),
    ("sleep()", lambda: sleep("1h")),
    ("sleep()", lambda: get_context().sleep("1h")),
    ("hook()", lambda: hook("approval")),
    ("hook()", lambda: Approval(timeout="1h")),
    ("start_child_workflow()", lambda: start_child_workflow(unawaited_child)),
    ("start_child_workflow()", lambda: start_child_workflow.options()(unawaited_child)),
    ("parallel()", lambda: get_context().parallel()),
]


@pytest.mark.parametrize(("what", "call"), CALLS)
def test_a_call_that_is_never_awaited_fails_the_run_and_names_its_line(
    what: str, call: Callable[[], Any]
) -> None:
    async def code() -> str:
        call()
        await charge()
        return "done"

    error, simulation = ends_with(code)
    assert isinstance(error, FatalError)
    assert f"nobody has awaited {what} at {__file__}:" in str(error)
    assert line_of(call, "lambda") in str(error)
    assert [event.step_name for event in simulation.events(StepScheduled)] == ["unawaited_charge"]


def test_the_line_is_that_of_the_code_which_calls_the_step() -> None:
    async def code() -> None:
        await charge()
        charge(
            2,
        )

    error, _ = ends_with(code)
    assert line_of(code, "        charge(\n") in str(error)


def test_many_calls_are_told_in_their_order_and_not_all() -> None:
    async def code() -> None:
        for _ in range(7):
            charge()
        sleep(1)  # type: ignore[unused-coroutine]

    error, _ = ends_with(code)
    assert str(error).count("step 'unawaited_charge' at") == 5
    assert "and 3 more. A call does nothing until it is awaited" in str(error)


def test_a_call_of_a_task_or_of_a_branch_that_was_not_taken_is_told_too() -> None:
    async def part() -> None:
        await charge()
        charge(7)

    async def in_task() -> None:
        await asyncio.gather(part(), charge())

    async def not_taken() -> int:
        calls = [charge(1), charge(2)]
        return await calls[0]

    for code in (in_task, not_taken):
        error, _ = ends_with(code)
        assert isinstance(error, FatalError), code


def test_a_result_that_is_a_call_is_told_as_what_it_is() -> None:
    async def code() -> Any:
        return charge(3)

    error, _ = ends_with(code)
    assert isinstance(error, FatalError)
    assert "nobody has awaited step 'unawaited_charge'" in str(error)


def test_a_run_does_not_continue_as_a_new_one_over_a_call() -> None:
    async def code(n: int) -> None:
        charge(3)
        if n:
            continue_as_new(n - 1)

    error, _ = ends_with(code, 1)  # type: ignore[arg-type]
    assert isinstance(error, FatalError)


def test_a_run_that_fails_so_is_undone() -> None:
    async def code() -> None:
        await charge(1)
        compensations().add(charge, 2)
        charge(3)

    error, simulation = ends_with(code)
    assert isinstance(error, FatalError)
    assert [call[0] for call in simulation.calls] == ["unawaited_charge#1", "unawaited_charge#2"]


# --- errors of the code's own -------------------------------------------------------------------------


def test_an_error_of_the_codes_own_wins_and_gets_a_note() -> None:
    async def code() -> Any:
        cents = charge(3)
        return cents + 1  # type: ignore[operator]

    error, _ = ends_with(code)
    assert isinstance(error, TypeError)
    assert any(f"Nobody has awaited step 'unawaited_charge' at {__file__}:" in n for n in error.__notes__)


def test_a_run_that_is_cancelled_meanwhile_is_cancelled() -> None:
    async def code() -> None:
        calls = [charge(1), charge(2)]
        await sleep("1d")
        await asyncio.gather(*calls)

    simulation = Simulation(code)
    simulation.start()
    simulation.cancel("why")
    with pytest.raises(CancellationError):
        simulation.run()
    assert_replays(simulation)


# --- what is no mistake -------------------------------------------------------------------------------


async def _gathered() -> Any:
    return await asyncio.gather(charge(1), charge(2), sleep(1))


async def _in_a_group() -> Any:
    async with asyncio.TaskGroup() as group:
        group.create_task(charge(1))
        group.create_task(sleep(1))


async def _awaited_later() -> Any:
    call = charge(1)
    await sleep(1)
    return await call


async def _in_a_task_that_nobody_awaits() -> Any:
    asyncio.create_task(charge(1))  # noqa: RUF006
    asyncio.ensure_future(sleep(1))  # noqa: RUF006


async def _cancelled_before_it_began() -> Any:
    task = asyncio.create_task(charge(1))
    task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        return "cancelled"


async def _in_no_time() -> Any:
    try:
        await asyncio.wait_for(charge(1), 0)
    except TimeoutError:
        return "late"


async def _beside_what_fails() -> Any:
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(fail())
            await sleep("1h")
            group.create_task(charge())
    except ExceptionGroup:
        return "failed"


async def _closed() -> Any:
    call = charge(1)
    call.close()


async def _bounded() -> Any:
    return await charge.map([1, 2, 3], max_in_flight=1)


async def _shielded() -> Any:
    async with shield():
        return await asyncio.shield(charge(1))


FINE = [
    _gathered,
    _in_a_group,
    _awaited_later,
    _in_a_task_that_nobody_awaits,
    _cancelled_before_it_began,
    _in_no_time,
    _beside_what_fails,
    _closed,
    _bounded,
    _shielded,
]


@pytest.mark.parametrize("code", FINE)
def test_a_call_that_was_awaited_or_given_to_a_task_is_none(code: Callable[[], Any]) -> None:
    result, _ = ends_with(code)
    assert not isinstance(result, Exception), result


def test_a_run_that_leaves_memory_says_nothing_of_what_it_was_about_to_await() -> None:
    async def code() -> Any:
        calls = [charge(1), sleep(1)]
        await receive("go")
        return await asyncio.gather(*calls)

    simulation = Simulation(code)
    simulation.start()
    simulation.execution.drop()
    gc.collect()
    resumed = simulation.resumed()
    resumed.signal("go")
    assert resumed.run() == [1, None]


def test_a_run_that_completed_before_this_was_checked_replays() -> None:
    async def awaited() -> None:
        await charge(1)

    async def forgotten() -> None:
        call = charge(1)
        await call
        charge(2)

    simulation = Simulation(awaited)
    simulation.run()
    simulation.function = forgotten
    again = simulation.resumed()
    assert isinstance(again.history[-1].event, WorkflowCompleted)
    assert again.execution.is_finished


def test_a_run_may_continue_as_a_new_one() -> None:
    async def code() -> None:
        await charge(1)
        continue_as_new(2)

    result, _ = ends_with(code)
    assert isinstance(result, Continued)


# --- elsewhere ----------------------------------------------------------------------------------------


def test_outside_of_runs_nothing_is_kept() -> None:
    async def code() -> list[Any]:
        return [charge(3), await sleep(0), await run_step(max, 1, 2), await charge.map([1])]

    with pytest.raises(TypeError):
        asyncio.run(run_step())  # type: ignore[call-arg]
    assert asyncio.run(code()) == [3, None, 2, [1]]
