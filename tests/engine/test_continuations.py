"""A run that goes on in a new one, with an empty history and with what it has not read."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from pyworkflow_ray.authoring.children import start_child_workflow
from pyworkflow_ray.authoring.context import (
    compensations,
    continue_as_new,
    get_context,
    receive,
    shield,
    side_effect,
)
from pyworkflow_ray.authoring.hooks import hook
from pyworkflow_ray.authoring.steps import step
from pyworkflow_ray.authoring.timers import sleep
from pyworkflow_ray.authoring.workflows import workflow as define
from pyworkflow_ray.engine.commands import CancelChild, ContinueRun
from pyworkflow_ray.engine.events import WorkflowCancelled
from pyworkflow_ray.exceptions import (
    CancellationError,
    NonDeterminismError,
    SerializationError,
    StepValidationError,
    WorkflowError,
)
from tests.engine.simulator import VALUES, Continued, Simulation, assert_replays, finished, outcome_of


@step(name="cont_echo")
def echo(x: Any = None) -> Any:
    return x


@define(name="cont_child")
async def child() -> None:
    await sleep("1h")


@define(name="cont_counting")
async def counting(n: int, *, step: int = 1) -> Any:
    total = await echo(n + step)
    if total < 3:
        continue_as_new(total, step=step)
    return total


def continued_by(workflow: Any, *args: Any, **options: Any) -> Continued:
    told = finished(Simulation(workflow, *args, **options))
    assert isinstance(told, Continued)
    return told


def refused(workflow: Any) -> str:
    """What the run fails with; it goes on in no other."""
    simulation = Simulation(workflow)
    with pytest.raises(Exception) as raised:  # noqa: PT011
        finished(simulation)
    assert simulation.types()[-1] == "workflow.failed"
    assert simulation.asked(ContinueRun) == []
    return f"{type(raised.value).__name__}: {raised.value}"


# --- going on -----------------------------------------------------------------------------------------


def test_a_run_goes_on_in_a_new_one_with_its_arguments() -> None:
    simulation = Simulation(counting, 0, step=2)
    told = finished(simulation)
    assert (told.args, told.kwargs) == ([2], {"step": 2})
    assert simulation.types()[-1] == "workflow.continued_as_new"
    (command,) = simulation.asked(ContinueRun)
    assert command.new_run_id == told.run_id
    assert VALUES.decode(command.args) == [2]


def test_a_chain_comes_to_its_end() -> None:
    told, runs, run_id = Continued("run_0000000000000001", [0], {}), [], "run_0000000000000001"
    while isinstance(told, Continued):
        runs.append(run_id := told.run_id)
        told = finished(Simulation(counting, *told.args, run_id=run_id, **told.kwargs))
    assert told == 3
    assert len(runs) == len(set(runs)) == 3


def test_the_successors_id_is_the_same_in_every_replay_and_another_for_every_run() -> None:
    simulation = Simulation(counting, 0)
    run_id = finished(simulation).run_id
    assert run_id.startswith("run_")
    assert len(run_id) == 20
    assert simulation.resumed(3).asked(ContinueRun)[0].new_run_id == run_id
    assert simulation.resumed().result().run_id == run_id
    assert continued_by(counting, 0, run_id="run_0000000000000002").run_id != run_id


def test_a_recorded_continuation_is_not_made_again() -> None:
    calls: list[int] = []

    async def workflow(n: int) -> Any:
        side_effect(lambda: calls.append(1))
        continue_as_new(n + 1)

    simulation = Simulation(workflow, 1)
    finished(simulation)
    calls.clear()
    resumed = simulation.resumed()
    assert resumed.execution.is_finished
    assert (resumed.asked(ContinueRun), calls) == ([], [])


def test_the_context_continues_too() -> None:
    async def workflow(n: int = 0) -> Any:
        await echo(1)
        get_context().continue_as_new(n=1)

    assert continued_by(workflow).kwargs == {"n": 1}


def test_except_exception_does_not_swallow_it() -> None:
    async def workflow(n: int = 0) -> Any:
        for _ in range(3):
            try:
                await echo(n)
                continue_as_new(n + 1)
            except Exception:
                await echo("swallowed")
        return "never"

    simulation = Simulation(workflow)
    assert finished(simulation).args == [1]
    assert len(simulation.calls) == 1


def test_clean_up_is_done_before() -> None:
    async def workflow(n: int = 0) -> Any:
        try:
            continue_as_new(1)
        finally:
            await echo("cleaned")

    simulation = Simulation(workflow)
    assert finished(simulation).args == [1]
    assert simulation.types() == [
        *("workflow.started", "step.started", "step.completed", "workflow.continued_as_new")
    ]


def test_what_the_code_leaves_behind_is_let_go() -> None:
    async def workflow(n: int = 0) -> Any:
        for call in (echo(1), hook("a"), sleep("1h")):
            asyncio.ensure_future(call)  # noqa: RUF006
        await start_child_workflow(child, wait_for_completion=False)
        continue_as_new(1)

    simulation = Simulation(workflow, holds_children=True)
    assert finished(simulation).args == [1]
    assert simulation.types()[-3:] == ["step.cancelled", "hook.disposed", "workflow.continued_as_new"]
    assert len(simulation.asked(CancelChild)) == 1


def test_going_on_is_no_failure_to_be_compensated() -> None:
    async def workflow(n: int = 0) -> Any:
        compensations().add(echo, "undone")
        continue_as_new(1)

    simulation = Simulation(workflow)
    finished(simulation)
    assert simulation.calls == []


def test_a_swallowed_request_does_not_keep_a_run_from_going_on() -> None:
    async def workflow(n: int = 0) -> Any:
        try:
            await sleep("1h")
        except CancellationError:
            continue_as_new(1)

    simulation = Simulation(workflow)
    simulation.start()
    simulation.cancel()
    assert finished(simulation).args == [1]


def test_a_request_that_a_shield_kept_off_is_not_lost_by_going_on() -> None:
    async def workflow(n: int = 0) -> Any:
        async with shield():
            await echo(1)
            continue_as_new(1)

    simulation = Simulation(workflow)
    simulation.start()
    simulation.cancel("enough")
    outcome_of(simulation)
    assert_replays(simulation)
    assert simulation.history[-1].event == WorkflowCancelled(reason="enough")


def test_a_request_while_a_run_that_goes_on_waits_for_its_children_is_not_lost() -> None:
    async def workflow(n: int = 0) -> Any:
        await start_child_workflow(child, wait_for_completion=False, parent_close="wait")
        continue_as_new(1)

    simulation = Simulation(workflow, holds_children=True)
    simulation.start()
    simulation.cancel("enough")
    simulation.end_child("cont_child#1", CancellationError())
    outcome_of(simulation)
    assert_replays(simulation)
    assert simulation.history[-1].event == WorkflowCancelled(reason="enough")


def test_a_run_may_go_on_from_within_a_task_group() -> None:
    async def workflow(n: int = 0) -> Any:
        async with asyncio.TaskGroup() as group:
            group.create_task(hook("a"))
            await echo(1)
            continue_as_new(1)

    assert continued_by(workflow).args == [1]


def test_going_on_from_within_a_task_group_is_no_failure_to_be_compensated() -> None:
    async def workflow(n: int = 0) -> Any:
        compensations().add(echo, "undone")
        async with asyncio.TaskGroup() as group:
            group.create_task(hook("a"))
            continue_as_new(1)

    simulation = Simulation(workflow)
    assert finished(simulation).args == [1]
    assert simulation.calls == []


def test_a_run_may_go_on_from_within_a_timeout() -> None:
    async def workflow(n: int = 0) -> Any:
        async with asyncio.timeout(60):
            await echo(1)
            continue_as_new(1)

    assert continued_by(workflow).args == [1]


# --- signals ------------------------------------------------------------------------------------------


def test_signals_that_were_not_read_go_to_the_new_run_in_their_order() -> None:
    async def workflow(n: int = 0) -> Any:
        first = await receive("price")
        await hook("go")
        continue_as_new(first)

    simulation = Simulation(workflow)
    simulation.start()
    for name, payload in (("price", 1), ("price", 2), ("stop", "now"), ("price", 3)):
        simulation.signal(name, payload)
    simulation.answer("go#1", None)
    assert finished(simulation).args == [1]
    (command,) = simulation.asked(ContinueRun)
    told = [(name, VALUES.decode(payload)) for name, payload in command.signals]
    assert [payload for name, payload in told if name == "price"] == [2, 3]
    assert [payload for name, payload in told if name == "stop"] == ["now"]


def test_signals_that_come_while_the_run_waits_for_its_children_go_to_the_new_run() -> None:
    async def workflow(n: int = 0) -> Any:
        await start_child_workflow(child, wait_for_completion=False, parent_close="wait")
        continue_as_new(1)

    simulation = Simulation(workflow, holds_children=True)
    simulation.start()
    simulation.signal("price", 5)
    simulation.end_child("cont_child#1")
    assert finished(simulation).args == [1]
    assert [name for name, _ in simulation.asked(ContinueRun)[0].signals] == ["price"]


def test_a_run_that_has_read_all_hands_nothing_over() -> None:
    async def workflow(n: int = 0) -> Any:
        continue_as_new(await receive("price"))

    simulation = Simulation(workflow)
    simulation.start()
    simulation.signal("price", 7)
    assert finished(simulation).args == [7]
    assert simulation.asked(ContinueRun)[0].signals == ()


def test_signals_that_a_side_task_waited_for_in_vain_are_handed_over() -> None:
    async def workflow(n: int = 0) -> Any:
        waiting = asyncio.ensure_future(receive("price"))
        await hook("go")
        waiting.cancel()
        await sleep(1)
        await hook("go")
        continue_as_new(1)

    simulation = Simulation(workflow)
    simulation.start()
    simulation.answer("go#1", None)
    simulation.pass_time(5)
    simulation.signal("price", 1)
    simulation.answer("go#2", None)
    finished(simulation)
    assert len(simulation.asked(ContinueRun)[0].signals) == 1


# --- what is refused ----------------------------------------------------------------------------------


def test_going_on_with_nothing_is_refused() -> None:
    async def workflow() -> Any:
        await echo(1)
        continue_as_new()

    assert "takes the arguments of the new run" in refused(workflow)


def test_arguments_that_do_not_fit_are_refused_and_can_be_mended() -> None:
    @define(name="cont_picky")
    async def picky(n: int) -> Any:
        try:
            continue_as_new("many")
        except StepValidationError:
            continue_as_new(n + 1)

    assert continued_by(picky, 1).args == [2]


def test_arguments_are_rebuilt_by_their_annotations() -> None:
    @define(name="cont_annotated")
    async def annotated(n: int) -> Any:
        continue_as_new("7")

    assert continued_by(annotated, 1).args == [7]


def test_arguments_that_cannot_be_stored_fail_the_run() -> None:
    async def workflow(n: Any = 0) -> Any:
        await echo(1)
        continue_as_new(threading.Lock())

    assert refused(workflow).startswith(SerializationError.__name__)


@pytest.mark.parametrize("beside", ["task", "gather", "wait_for"])
def test_a_task_beside_the_workflow_function_may_not_end_the_run(beside: str) -> None:
    async def workflow() -> Any:
        async def ending() -> None:
            await echo(1)
            continue_as_new(1)

        match beside:
            case "task":
                await asyncio.create_task(ending())
            case "gather":
                await asyncio.gather(ending(), echo(2))
            case _:
                await asyncio.ensure_future(ending())

    told = refused(workflow)
    assert told.startswith(WorkflowError.__name__)
    assert "called in the workflow function itself" in told


def test_a_run_without_history_may_not_go_on_in_another() -> None:
    async def workflow() -> Any:
        continue_as_new(1)

    simulation = Simulation(workflow)
    simulation.is_durable = False
    with pytest.raises(WorkflowError, match=r"continue_as_new\(\) needs a history"):
        simulation.run()


def test_going_on_needs_a_run() -> None:
    with pytest.raises(WorkflowError, match=r"continue_as_new\(\) belongs in the code of a workflow"):
        continue_as_new(1)


# --- code that has changed ----------------------------------------------------------------------------


@pytest.mark.parametrize("is_continued", [True, False])
def test_an_end_that_has_become_a_continuation_or_one_that_was_is_told(is_continued: bool) -> None:
    async def continuing(n: int = 0) -> Any:
        await echo(1)
        continue_as_new(1)

    async def returning(n: int = 0) -> Any:
        return await echo(1)

    old, new = (continuing, returning) if is_continued else (returning, continuing)
    simulation = Simulation(old)
    outcome_of(simulation)
    assert_replays(simulation)
    simulation.function = new
    with pytest.raises(NonDeterminismError) as diverged:
        simulation.resumed()
    recorded, now = ("WorkflowContinuedAsNew", "CompleteRun()")
    if not is_continued:
        recorded, now = ("WorkflowCompleted", "ContinueRun()")
    assert f"recorded {recorded}" in str(diverged.value)
    assert f"now {now}" in str(diverged.value)
