"""A request to cancel reaches the code wherever it waits, once, and does to its steps what they say."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest

from pyworkflow_ray.authoring.children import start_child_workflow
from pyworkflow_ray.authoring.context import get_context, receive, shield
from pyworkflow_ray.authoring.hooks import hook
from pyworkflow_ray.authoring.steps import step
from pyworkflow_ray.authoring.timers import sleep
from pyworkflow_ray.authoring.workflows import workflow as define
from pyworkflow_ray.engine.commands import CancelStep
from pyworkflow_ray.engine.events import (
    CancellationRequested,
    StepCancelled,
    StepFailed,
    TimerFired,
    WorkflowCancelled,
    WorkflowFailed,
)
from pyworkflow_ray.engine.limits import Limits
from pyworkflow_ray.engine.races import FIRST_COMPLETED, as_completed, bounded_map, gather, wait
from pyworkflow_ray.exceptions import CancellationError, WorkflowTimeoutError
from tests.engine.simulator import VALUES, Simulation, WorkerKilled, assert_replays, finished, outcome_of


@step(name="cancel_echo")
def echo(x: Any = None) -> Any:
    return x


@step(name="cancel_interrupted", on_cancel="interrupt")
def interrupted(x: Any = None) -> Any:
    return x


@step(name="cancel_failing", max_retries=5, retry_delay="1h")
def failing() -> None:
    raise ValueError("no")


@define(name="cancel_child")
async def child(x: Any = None) -> Any:
    await sleep("1h")
    return x


def begun(workflow: Any, *args: Any, **options: Any) -> Simulation:
    simulation = Simulation(workflow, *args, **options)
    simulation.start()
    return simulation


def cancelled(simulation: Simulation, reason: str = "") -> None:
    """The run ends as cancelled, and replays as that from every prefix."""
    outcome_of(simulation)
    assert_replays(simulation)
    assert simulation.history[-1].event == WorkflowCancelled(reason=reason)


# --- where it is noticed ------------------------------------------------------------------------------


async def in_a_group() -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(hook("a"))
        group.create_task(asyncio.sleep(60))


async def in_the_body_of_a_group() -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(hook("a"))
        await asyncio.sleep(60)


async def under_a_timeout() -> None:
    async with asyncio.timeout(60):
        await hook("a")


async def in_a_queue() -> None:
    await asyncio.Queue[int]().get()


async def in_a_full_queue() -> None:
    queue = asyncio.Queue[int](maxsize=1)
    await queue.put(1)
    await queue.put(2)


async def at_a_lock() -> None:
    lock = asyncio.Lock()
    async with lock, lock:
        pass


async def at_a_condition() -> None:
    condition = asyncio.Condition()
    async with condition:
        await condition.wait()


async def at_a_task() -> None:
    await asyncio.ensure_future(asyncio.sleep(60))


async def at_a_future() -> None:
    await asyncio.get_running_loop().create_future()


async def at_ends() -> None:
    async for _ in as_completed([asyncio.sleep(60), hook("a")]):
        pass


async def at_signals() -> None:
    async for _ in receive("price"):
        pass


async def at_a_handle() -> None:
    handle = await start_child_workflow(child, wait_for_completion=False)
    await handle.result()


WAITS: dict[str, Callable[[], Awaitable[Any]]] = {
    "interrupted step": interrupted,
    "step between attempts": failing,
    "sleep": lambda: sleep("1h"),
    "asyncio.sleep": lambda: asyncio.sleep(60),
    "hook": lambda: hook("a"),
    "receive": lambda: receive("price"),
    "async for receive": at_signals,
    "child's handle": at_a_handle,
    "gather": lambda: asyncio.gather(hook("a"), asyncio.sleep(60)),
    "our gather": lambda: gather(hook("a"), sleep(60)),
    "gather that returns exceptions": lambda: asyncio.gather(hook("a"), sleep(60), return_exceptions=True),
    "bounded map": lambda: bounded_map(sleep, [60, 50], 1),
    "TaskGroup": in_a_group,
    "wait_for": lambda: asyncio.wait_for(hook("a"), 60),
    "timeout": under_a_timeout,
    "wait": lambda: wait([hook("a"), sleep(60)], return_when=FIRST_COMPLETED),
    "as_completed": at_ends,
    "Queue.get": in_a_queue,
    "Queue.put": in_a_full_queue,
    "Event.wait": lambda: asyncio.Event().wait(),
    "Lock": at_a_lock,
    "Condition": at_a_condition,
    "Barrier": lambda: asyncio.Barrier(2).wait(),
    "task": at_a_task,
    "future": at_a_future,
    "asyncio.shield": lambda: asyncio.shield(sleep(60)),
}


@pytest.mark.parametrize("waits", WAITS)
def test_a_request_is_noticed_wherever_the_code_waits(waits: str) -> None:
    async def workflow() -> Any:
        try:
            await WAITS[waits]()
        except CancellationError as error:
            await echo([error.reason, isinstance(error, asyncio.CancelledError)])
            raise

    simulation = begun(workflow, holds_children=True)
    if simulation.steps == ["cancel_failing#1"]:
        simulation.end_step("cancel_failing#1")
    simulation.calls.clear()
    simulation.cancel("enough")
    assert simulation.steps == ["cancel_echo#1"]
    assert VALUES.decode(simulation.execution.steps["cancel_echo#1"].command.args) == [["enough", True]]
    cancelled(simulation, "enough")
    assert simulation.calls == [("cancel_echo#1", 1)]


@pytest.mark.parametrize("kind", [CancellationError, asyncio.CancelledError])
def test_a_request_is_noticed_in_the_body_of_a_task_group(kind: type[BaseException]) -> None:
    async def workflow() -> Any:
        # Code that expects the group to wrap the error goes on to work.
        try:
            await in_the_body_of_a_group()
        except* kind:
            await echo("cleaned")
            raise

    simulation = begun(workflow)
    simulation.cancel("enough")
    assert simulation.steps == ["cancel_echo#1"]
    cancelled(simulation, "enough")


def test_a_request_in_the_body_of_a_task_group_cleans_up_and_cancels_the_run() -> None:
    async def workflow() -> Any:
        async with asyncio.TaskGroup() as group:
            group.create_task(hook("a"))
            try:
                await sleep(60)
            finally:
                await echo("cleaned")

    simulation = begun(workflow)
    simulation.cancel("enough")
    cancelled(simulation, "enough")
    assert simulation.calls == [("cancel_echo#1", 1)]
    assert simulation.types().count("hook.disposed") == 1


def test_a_request_is_noticed_by_tasks_in_the_words_of_either_side() -> None:
    told: list[list[str]] = []

    async def workflow() -> Any:
        heard: list[str] = []

        async def told_as(kind: type[BaseException], call: Any) -> None:
            try:
                await call
            except kind:
                heard.append(kind.__name__)
                raise

        try:
            await asyncio.gather(
                *(
                    told_as(kind, call)
                    for kind in (CancellationError, asyncio.CancelledError)
                    for call in (hook("a"), sleep(60), receive("b"), interrupted())
                ),
                return_exceptions=True,
            )
        finally:
            told.append(heard)

    simulation = begun(workflow)
    simulation.cancel()
    cancelled(simulation)
    assert all(heard == ["CancellationError"] * 4 + ["CancelledError"] * 4 for heard in told)


def test_code_that_only_knows_asyncio_cleans_up() -> None:
    async def workflow() -> Any:
        try:
            await sleep("1h")
        except asyncio.CancelledError:
            await echo("cleaned")
            raise

    simulation = begun(workflow)
    simulation.cancel("enough")
    cancelled(simulation, "enough")
    assert simulation.calls == [("cancel_echo#1", 1)]


def test_a_request_is_noticed_before_the_first_wait_is_over() -> None:
    async def workflow() -> Any:
        await hook("a")

    simulation = begun(workflow)
    simulation.cancel("early")
    cancelled(simulation, "early")
    assert simulation.types() == [
        "workflow.started",
        "hook.created",
        "cancellation.requested",
        "hook.disposed",
        "workflow.cancelled",
    ]


def test_timers_that_are_cancelled_do_not_fire() -> None:
    async def workflow() -> Any:
        try:
            await sleep(5)
        finally:
            await sleep(60)

    simulation = begun(workflow)
    simulation.cancel()
    cancelled(simulation)
    assert simulation.events(TimerFired) == [TimerFired(sleep_id="sleep#2")]


# --- once ---------------------------------------------------------------------------------------------


def test_clean_up_awaits_freely() -> None:
    async def workflow() -> Any:
        try:
            await sleep("1h")
        finally:
            await sleep(5)
            await asyncio.gather(echo(1), asyncio.sleep(1), echo(2))
            async with asyncio.TaskGroup() as group:
                group.create_task(echo(3))
            await echo(await hook("a"))

    simulation = begun(workflow, answers={"a": 4})
    simulation.cancel("enough")
    cancelled(simulation, "enough")
    assert len(simulation.calls) == 4


def test_clean_up_may_bound_its_time() -> None:
    async def workflow() -> Any:
        try:
            await sleep("1h")
        finally:
            try:
                async with asyncio.timeout(5):
                    await hook("a")
            except TimeoutError:
                await echo("timed out")

    simulation = begun(workflow)
    simulation.cancel()
    cancelled(simulation)
    assert simulation.calls == [("cancel_echo#1", 1)]


@pytest.mark.parametrize(
    "waits",
    ["hook", "step"],
)
def test_clean_up_may_have_no_time_at_all(waits: str) -> None:
    async def workflow() -> Any:
        try:
            await sleep("1h")
        finally:
            try:
                async with asyncio.timeout(0):
                    await (hook("a") if waits == "hook" else echo("never"))
            except TimeoutError:
                await echo("timed out")

    simulation = begun(workflow)
    simulation.cancel()
    cancelled(simulation)
    assert len(simulation.calls) == 1


def test_a_second_request_has_no_effect() -> None:
    async def workflow() -> Any:
        try:
            await sleep("1h")
        finally:
            await sleep(60)
            await echo(1)

    simulation = begun(workflow)
    simulation.cancel("first")
    assert simulation.cancel("second") == []
    cancelled(simulation, "first")
    assert simulation.calls == [("cancel_echo#1", 1)]


def test_swallowing_a_request_and_returning_completes_the_run() -> None:
    async def workflow() -> Any:
        try:
            await sleep("1h")
        except CancellationError as error:
            return [await echo("kept"), error.reason, str(error)]

    simulation = begun(workflow)
    simulation.cancel("enough")
    assert finished(simulation) == ["kept", "enough", "Workflow was cancelled: enough"]


def test_a_swallowed_request_does_not_come_again() -> None:
    async def workflow() -> Any:
        told = []
        for n in range(3):
            try:
                await sleep(60)
            except CancellationError:
                told.append(n)
        return told

    simulation = begun(workflow)
    simulation.pass_time(90)
    simulation.cancel()
    assert finished(simulation) == [1]


def test_raising_something_else_fails_the_run() -> None:
    async def workflow() -> Any:
        try:
            await sleep("1h")
        finally:
            raise KeyError("in clean-up")

    simulation = begun(workflow)
    simulation.cancel()
    with pytest.raises(KeyError, match="in clean-up"):
        finished(simulation)


def test_a_cancellation_error_of_the_codes_own_fails_the_run() -> None:
    async def workflow() -> Any:
        await echo(1)
        raise CancellationError("my own", reason="none")

    simulation = Simulation(workflow)
    with pytest.raises(CancellationError, match="my own"):
        finished(simulation)
    assert simulation.types()[-1] == "workflow.failed"


def test_a_cancellation_error_that_a_step_raised_fails_the_run() -> None:
    @step(name="cancel_refusing")
    def refusing() -> None:
        raise CancellationError("the step's")

    async def workflow() -> Any:
        await refusing()

    simulation = Simulation(workflow)
    with pytest.raises(CancellationError, match="the step's"):
        finished(simulation)
    assert simulation.types()[-1] == "workflow.failed"


def test_a_run_whose_code_cancels_itself_has_failed() -> None:
    async def workflow() -> Any:
        raise asyncio.CancelledError

    simulation = Simulation(workflow)
    outcome_of(simulation)
    assert_replays(simulation)
    (failed,) = simulation.events(WorkflowFailed)
    assert failed.error_type == "asyncio.exceptions.CancelledError"


def test_the_reason_may_be_missing() -> None:
    async def workflow() -> Any:
        try:
            await sleep("1h")
        except CancellationError as error:
            return error.reason

    simulation = begun(workflow)
    simulation.cancel()
    assert finished(simulation) is None


# --- asking -------------------------------------------------------------------------------------------


def test_code_may_ask_whether_a_request_has_come() -> None:
    async def workflow() -> list[bool]:
        ctx = get_context()
        told = [ctx.is_cancellation_requested()]
        async with shield():
            await hook("a")
            told.append(ctx.is_cancellation_requested())
            ctx.check_cancellation()
            await ctx.check_cancellation()
            try:
                await echo(1)
            finally:
                return told  # noqa: B012

    simulation = begun(workflow)
    simulation.cancel()
    simulation.answer("a#1", 1)
    cancelled(simulation)
    assert simulation.resumed(2).execution.cancellation.is_requested is False
    assert simulation.resumed(3).execution.cancellation.is_requested is True


def test_check_cancellation_raises_what_the_request_raised() -> None:
    async def workflow() -> Any:
        ctx = get_context()
        ctx.check_cancellation()
        await ctx.check_cancellation()
        with suppress(CancellationError):
            await sleep("1h")
        try:
            ctx.check_cancellation()
        except CancellationError as error:
            await echo(1)
            return [error.reason, isinstance(error, asyncio.CancelledError)]

    simulation = begun(workflow)
    simulation.cancel("enough")
    assert finished(simulation) == ["enough", True]


# --- steps under way ----------------------------------------------------------------------------------


def one_step(**options: Any) -> Any:
    async def workflow() -> Any:
        try:
            return await echo.options(**options)(1)
        except CancellationError:
            return [await echo("cleaned")]

    return workflow


def test_a_step_is_waited_for_by_default_and_its_outcome_recorded_before_the_error() -> None:
    simulation = begun(one_step())
    assert simulation.cancel() == []
    assert simulation.steps == ["cancel_echo#1"]
    simulation.end_step("cancel_echo#1")
    assert simulation.types()[-2:] == ["step.completed", "step.started"]
    assert finished(simulation) == ["cleaned"]
    assert simulation.events(StepCancelled) == []


@pytest.mark.parametrize("on_cancel", ["interrupt", "kill", "abandon"])
def test_a_step_that_is_not_waited_for_is_let_go_as_its_on_cancel_says(on_cancel: str) -> None:
    simulation = begun(one_step(on_cancel=on_cancel))
    simulation.cancel()
    assert [command.on_cancel for command in simulation.asked(CancelStep)] == [on_cancel]
    assert simulation.types()[-2:] == ["step.cancelled", "step.started"]
    assert finished(simulation) == ["cleaned"]


def test_a_failed_last_attempt_is_not_tried_again() -> None:
    async def workflow() -> Any:
        await failing()

    simulation = begun(workflow)
    simulation.cancel("enough")
    cancelled(simulation, "enough")
    assert simulation.calls == [("cancel_failing#1", 1)]
    assert [event.error for event in simulation.events(StepFailed)] == ["no"]


def test_a_last_attempt_whose_worker_dies_is_not_tried_again() -> None:
    @step(name="cancel_dying")
    def dying() -> None:
        raise WorkerKilled

    async def workflow() -> Any:
        await dying()

    simulation = begun(workflow)
    simulation.cancel()
    cancelled(simulation)
    assert [event.cause for event in simulation.events(StepFailed)] == ["worker_died"]


def test_a_last_attempt_whose_coordinator_dies_is_not_tried_again() -> None:
    async def workflow() -> Any:
        await echo(1)

    simulation = begun(workflow)
    simulation.cancel()
    simulation.interrupt()
    for one in (simulation, simulation.resumed()):
        assert one.execution.steps["cancel_echo#1"].is_lost
    cancelled(simulation)
    assert simulation.calls == []
    assert [event.cause for event in simulation.events(StepFailed)] == ["worker_died"]


def test_a_step_between_attempts_is_not_waited_for() -> None:
    async def workflow() -> Any:
        await failing()

    simulation = begun(workflow)
    simulation.end_step("cancel_failing#1")
    simulation.cancel("enough")
    assert simulation.types()[-3:] == ["cancellation.requested", "step.cancelled", "workflow.cancelled"]
    cancelled(simulation, "enough")


def test_clean_up_runs_after_the_last_attempt_and_not_before() -> None:
    simulation = begun(one_step())
    simulation.cancel()
    assert simulation.resumed().steps == ["cancel_echo#1"]
    simulation.end_step("cancel_echo#1")
    assert simulation.steps == ["cancel_echo#2"]


def test_a_deadline_bounds_the_wait_for_a_last_attempt() -> None:
    async def workflow() -> Any:
        async with asyncio.timeout(60):
            await echo(1)

    simulation = begun(workflow)
    simulation.cancel("enough")
    simulation.pass_time(90)
    assert simulation.types()[-3:] == ["sleep.completed", "step.cancelled", "workflow.cancelled"]
    cancelled(simulation, "enough")


def test_all_steps_of_a_gather_that_returns_exceptions_are_waited_for() -> None:
    async def workflow() -> Any:
        await asyncio.gather(echo(1), interrupted(2), echo(3), sleep(60), return_exceptions=True)

    simulation = begun(workflow)
    simulation.cancel()
    assert simulation.steps == ["cancel_echo#1", "cancel_echo#2"]
    cancelled(simulation)
    assert [event.step_id for event in simulation.events(StepCancelled)] == ["cancel_interrupted#1"]


def test_all_steps_of_a_task_group_are_waited_for() -> None:
    async def workflow() -> Any:
        async with asyncio.TaskGroup() as group:
            group.create_task(echo(1))
            group.create_task(interrupted(2))
            group.create_task(echo(3))

    simulation = begun(workflow)
    simulation.cancel()
    assert simulation.steps == ["cancel_echo#1", "cancel_echo#2"]
    cancelled(simulation)
    assert len(simulation.calls) == 2


def test_all_steps_of_a_gather_are_waited_for() -> None:
    async def workflow() -> Any:
        await asyncio.gather(echo(1), sleep(60), interrupted(2), echo(3))

    simulation = begun(workflow)
    simulation.cancel()
    cancelled(simulation)
    assert sorted(simulation.calls) == [("cancel_echo#1", 1), ("cancel_echo#2", 1)]


@pytest.mark.parametrize("max_in_flight", [None, 2])
def test_all_steps_of_a_map_are_waited_for(max_in_flight: int | None) -> None:
    async def workflow() -> Any:
        await echo.map([1, 2, 3], max_in_flight=max_in_flight)

    simulation = begun(workflow)
    scheduled = sorted(simulation.steps)
    assert len(scheduled) == (max_in_flight or 3)
    simulation.cancel()
    cancelled(simulation)
    assert sorted(step_id for step_id, _ in simulation.calls) == scheduled


def test_clean_up_of_every_task_of_a_gather_comes_to_its_end() -> None:
    async def workflow() -> Any:
        async def working(n: int) -> None:
            try:
                await sleep(60 * n)
            finally:
                await echo(n)
                await sleep(5)
                await echo(n)

        await asyncio.gather(working(1), working(2), hook("a"))

    simulation = begun(workflow)
    simulation.cancel("enough")
    cancelled(simulation, "enough")
    assert len(simulation.calls) == 4


def test_a_step_under_a_deadline_of_its_caller_is_waited_for() -> None:
    async def workflow() -> Any:
        await asyncio.wait_for(echo(1), 60)

    simulation = begun(workflow)
    simulation.cancel()
    assert simulation.steps == ["cancel_echo#1"]
    cancelled(simulation)
    assert simulation.calls == [("cancel_echo#1", 1)]


# --- cancellations of the code's own ------------------------------------------------------------------


def test_a_timeout_cancels_the_step_that_it_waited_for() -> None:
    async def workflow() -> Any:
        try:
            async with asyncio.timeout(60):
                await echo(1)
        except TimeoutError:
            return "too slow"

    simulation = begun(workflow)
    simulation.pass_time(90)
    assert finished(simulation) == "too slow"
    assert [event.step_id for event in simulation.events(StepCancelled)] == ["cancel_echo#1"]


def test_a_sibling_that_fails_cancels_the_steps_of_its_task_group() -> None:
    async def workflow() -> Any:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(echo(1))
                group.create_task(failing.options(max_retries=0)())
                group.create_task(hook("a"))
        except ExceptionGroup as errors:
            return [str(error) for error in errors.exceptions]

    simulation = begun(workflow)
    simulation.end_step("cancel_failing#1")
    assert [text.split("\n")[0] for text in finished(simulation)] == ["no"]
    assert sorted(simulation.types()[-3:-1]) == ["hook.disposed", "step.cancelled"]


def test_a_task_that_is_cancelled_by_the_code_sees_asyncios_error_alone() -> None:
    async def workflow() -> Any:
        async def waiting() -> None:
            try:
                await hook("a")
            except CancellationError:
                await echo("wrong")
                raise

        task = asyncio.ensure_future(waiting())
        await sleep(1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return task.cancelled()

    simulation = Simulation(workflow)
    assert finished(simulation) is True
    assert simulation.calls == []


# --- shields ------------------------------------------------------------------------------------------


def test_a_shielded_block_is_done_to_its_end_and_the_request_comes_as_it_is_left() -> None:
    async def workflow() -> Any:
        try:
            async with shield():
                await echo(1)
                await sleep(60)
                await echo(2)
            await echo("never")
        except CancellationError as error:
            return [await echo(3), error.reason]

    simulation = begun(workflow)
    assert simulation.cancel("enough") == []
    assert finished(simulation) == [3, "enough"]
    assert len(simulation.calls) == 3


def test_a_block_that_no_request_reached_is_left_without_one() -> None:
    async def workflow() -> Any:
        async with shield():
            await echo(1)
        return await echo(2)

    assert finished(Simulation(workflow)) == 2


def test_shields_nest() -> None:
    async def workflow() -> Any:
        try:
            async with shield():
                async with shield():
                    await echo(1)
                await echo(2)
            await echo("never")
        except CancellationError:
            return "after the outer one"

    simulation = begun(workflow)
    simulation.cancel()
    assert finished(simulation) == "after the outer one"
    assert len(simulation.calls) == 2


def test_a_shield_may_be_entered_again_after_a_request() -> None:
    async def workflow() -> Any:
        try:
            await sleep("1h")
        except CancellationError:
            async with shield():
                await echo(1)
            return await echo(2)

    simulation = begun(workflow)
    simulation.cancel()
    assert finished(simulation) == 2


def test_one_shield_may_be_entered_by_several_tasks() -> None:
    async def workflow() -> Any:
        critical = shield()

        async def guarded(n: int) -> None:
            async with critical:
                await echo(n)

        await asyncio.gather(guarded(1), guarded(2))
        await hook("a")

    simulation = begun(workflow)
    for step_id in ("cancel_echo#1", "cancel_echo#2"):
        simulation.end_step(step_id)
    assert [task.shields for task in simulation.execution._loop.tasks] == [0]

    async def nesting() -> Any:
        critical = shield()
        async with critical, critical:
            await echo(1)
        await hook("a")

    simulation = begun(nesting)
    simulation.end_step("cancel_echo#1")
    simulation.cancel()
    cancelled(simulation)


def test_what_a_shielded_block_raises_comes_first_and_the_request_at_the_next_wait() -> None:
    async def workflow() -> Any:
        try:
            async with shield():
                await echo(1)
                raise KeyError("own")
        except KeyError:
            try:
                await sleep(60)
            except CancellationError as error:
                return error.reason

    simulation = begun(workflow)
    simulation.cancel("enough")
    assert finished(simulation) == "enough"


def test_a_run_that_fails_in_a_shielded_block_has_failed() -> None:
    async def workflow() -> Any:
        async with shield():
            await echo(1)
            raise KeyError("own")

    simulation = begun(workflow)
    simulation.cancel()
    with pytest.raises(KeyError, match="own"):
        finished(simulation)


def test_returning_from_a_shielded_block_ends_the_run_as_cancelled() -> None:
    async def workflow() -> Any:
        async with shield():
            return await echo(1)

    simulation = begun(workflow)
    simulation.cancel()
    cancelled(simulation)


def test_a_shield_belongs_to_its_task_and_not_to_its_siblings() -> None:
    async def workflow() -> Any:
        heard: list[str] = []

        async def critical() -> None:
            async with shield():
                await echo("critical")
            heard.append("never")

        async def other() -> None:
            try:
                await hook("a")
            except CancellationError:
                heard.append("other")
                raise

        try:
            await asyncio.gather(critical(), other(), return_exceptions=True)
        except CancellationError:
            return heard

    simulation = begun(workflow)
    simulation.cancel()
    assert simulation.types()[-1] == "hook.disposed"
    assert simulation.steps == ["cancel_echo#1"]
    assert finished(simulation) == ["other"]


def test_a_task_made_in_a_shielded_block_is_not_shielded_itself() -> None:
    async def workflow() -> Any:
        async with shield():
            task = asyncio.ensure_future(hook("a"))
            await echo(1)
        await task

    simulation = begun(workflow)
    simulation.cancel()
    simulation.end_step("cancel_echo#1")
    assert simulation.types()[-2:] == ["hook.disposed", "workflow.cancelled"]
    cancelled(simulation)


def test_a_shielded_task_of_a_task_group_is_done_to_its_end() -> None:
    async def workflow() -> Any:
        async def critical() -> None:
            async with shield():
                await echo(1)
                await echo(2)
            await echo("never")

        async with asyncio.TaskGroup() as group:
            group.create_task(critical())
            group.create_task(hook("a"))

    simulation = begun(workflow)
    simulation.cancel()
    cancelled(simulation)
    assert len(simulation.calls) == 2


def test_a_shielded_task_of_a_gather_is_done_to_its_end() -> None:
    async def workflow() -> Any:
        async def critical() -> None:
            async with shield():
                await echo(1)
                await echo(2)
            await echo("never")

        await asyncio.gather(critical(), hook("a"))

    simulation = begun(workflow)
    simulation.cancel()
    cancelled(simulation)
    assert len(simulation.calls) == 2


def test_a_shielded_task_beside_a_race_goes_on_until_the_run_ends() -> None:
    async def workflow() -> Any:
        async def critical() -> Any:
            async with shield():
                return await echo("critical")

        task = asyncio.ensure_future(critical())
        try:
            await hook("a")
        except CancellationError:
            # It was never asked to cancel: only what the main task waits for is.
            return await task

    simulation = begun(workflow)
    simulation.cancel()
    assert finished(simulation) == "critical"


def test_a_timeout_within_a_shield_works() -> None:
    async def workflow() -> Any:
        async with shield():
            try:
                async with asyncio.timeout(5):
                    await hook("a")
            except TimeoutError:
                return await echo("too late")

    assert finished(Simulation(workflow)) == "too late"


def test_a_timeout_within_a_shield_works_after_the_request_too() -> None:
    async def workflow() -> Any:
        told = []
        try:
            async with shield():
                try:
                    async with asyncio.timeout(5):
                        await hook("a")
                except TimeoutError:
                    told.append(await echo("too late"))
        except CancellationError as error:
            return [*told, error.reason]

    simulation = begun(workflow)
    simulation.cancel("enough")
    assert finished(simulation) == ["too late", "enough"]


def test_a_task_group_that_fails_within_a_shield_tells_its_own_errors_alone() -> None:
    async def workflow() -> Any:
        told: list[str] = []
        try:
            async with shield():
                try:
                    async with asyncio.TaskGroup() as group:
                        group.create_task(failing.options(max_retries=0)())
                        await hook("a")
                except ExceptionGroup as errors:
                    told += [type(error).__name__ for error in errors.exceptions]
        except CancellationError:
            return told

    simulation = begun(workflow)
    simulation.cancel()
    assert finished(simulation) == ["ValueError"]


def test_awaiting_a_task_that_the_code_has_cancelled_does_not_use_the_request_up() -> None:
    async def workflow() -> Any:
        try:
            async with shield():
                task = asyncio.ensure_future(hook("a"))
                await echo(1)
                task.cancel()
                try:
                    await task
                except asyncio.CancelledError:
                    await echo(2)
        except CancellationError:
            return "told as the run's"
        except asyncio.CancelledError:
            return "told as asyncio's alone"

    simulation = begun(workflow)
    simulation.cancel()
    assert finished(simulation) == "told as the run's"


def test_a_request_that_another_task_has_swallowed_leaves_later_timeouts_alone() -> None:
    async def workflow() -> Any:
        async def stubborn() -> None:
            with suppress(asyncio.CancelledError):
                await sleep(60)

        await asyncio.ensure_future(stubborn())
        try:
            async with asyncio.timeout(5):
                await hook("a")
        except TimeoutError:
            return "too late"

    simulation = begun(workflow)
    simulation.cancel()
    assert finished(simulation) == "too late"


def test_steps_within_a_shield_are_tried_again() -> None:
    async def workflow() -> Any:
        async with shield():
            await failing.options(max_retries=2)()

    simulation = begun(workflow)
    simulation.cancel()
    with pytest.raises(ValueError, match="no"):
        finished(simulation)
    assert len(simulation.calls) == 3


def test_the_codes_own_cancellation_reaches_into_a_shield() -> None:
    async def workflow() -> Any:
        async def critical() -> None:
            async with shield():
                await hook("a")

        task = asyncio.ensure_future(critical())
        await sleep(1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return task.cancelled()

    assert finished(Simulation(workflow)) is True


# --- the time of a run --------------------------------------------------------------------------------

MINUTE = Limits(max_duration=timedelta(minutes=1))


def timed_out(simulation: Simulation) -> None:
    outcome_of(simulation)
    assert_replays(simulation)
    with pytest.raises(WorkflowTimeoutError, match="max_duration of 0:01:00") as raised:
        simulation.result()
    assert raised.value.run_id == simulation.run_id


def test_a_run_that_takes_too_long_fails() -> None:
    async def workflow() -> Any:
        await sleep("1h")

    simulation = Simulation(workflow, limits=MINUTE)
    timed_out(simulation)
    assert simulation.types() == [
        "workflow.started",
        "sleep.started",
        "cancellation.requested",
        "workflow.failed",
    ]
    assert simulation.events(CancellationRequested)[0].requested_by == "max_duration"


def test_a_run_in_time_is_not_touched() -> None:
    async def workflow() -> Any:
        await sleep(59)
        return "in time"

    assert finished(Simulation(workflow, limits=MINUTE)) == "in time"


@pytest.mark.parametrize("kind", [WorkflowTimeoutError, asyncio.CancelledError])
def test_a_run_whose_time_is_over_cleans_up(kind: type[BaseException]) -> None:
    async def workflow() -> Any:
        try:
            await sleep("1h")
        except kind:
            await echo("cleaned")
            await sleep("1h")
            raise

    simulation = Simulation(workflow, limits=MINUTE)
    timed_out(simulation)
    assert simulation.calls == [("cancel_echo#1", 1)]


@pytest.mark.parametrize("ending", ["returns", "raises", "continues"])
def test_a_run_whose_time_is_over_has_timed_out_whatever_its_code_makes_of_it(ending: str) -> None:
    async def workflow(ending: str) -> Any:
        try:
            await sleep("1h")
        except BaseException:
            if ending == "raises":
                raise KeyError("in clean-up") from None
            if ending == "continues":
                get_context().continue_as_new("again")
        return "all is well"

    timed_out(Simulation(workflow, ending, limits=MINUTE))


def test_steps_of_a_run_whose_time_is_over_end_as_their_on_cancel_says() -> None:
    async def workflow() -> Any:
        await asyncio.gather(echo(1), interrupted(2), return_exceptions=True)

    simulation = begun(workflow, limits=MINUTE)
    simulation.pass_time(90)
    assert simulation.steps == ["cancel_echo#1"]
    timed_out(simulation)


def test_a_request_after_a_runs_time_is_over_has_no_effect() -> None:
    async def workflow() -> Any:
        try:
            await sleep("1h")
        finally:
            await sleep(60)

    simulation = begun(workflow, limits=MINUTE)
    simulation.pass_time(61)
    assert simulation.cancel("too late") == []
    timed_out(simulation)


def test_a_run_that_was_cancelled_in_time_is_cancelled() -> None:
    async def workflow() -> Any:
        await sleep("1h")

    simulation = begun(workflow, limits=MINUTE)
    simulation.pass_time(30)
    simulation.cancel("enough")
    cancelled(simulation, "enough")


def test_time_runs_while_the_run_is_let_go() -> None:
    async def workflow() -> Any:
        await hook("a")

    simulation = begun(workflow, limits=MINUTE)
    resumed = simulation.resumed()
    assert resumed.execution.next_timer() == simulation.execution.next_timer()
    resumed.pass_time(90)
    timed_out(resumed)


def test_a_run_that_swallows_a_request_still_has_its_time() -> None:
    async def workflow() -> Any:
        with suppress(CancellationError):
            await sleep("1h")
        await sleep("1h")

    simulation = begun(workflow, limits=MINUTE)
    simulation.pass_time(30)
    simulation.cancel("ignored")
    timed_out(simulation)
