"""Child runs: what they give their parent, how they fail it, and what becomes of them when it ends."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from pyworkflow_ray.authoring.children import start_child_workflow
from pyworkflow_ray.authoring.context import get_context, shield
from pyworkflow_ray.authoring.steps import step
from pyworkflow_ray.authoring.timers import sleep
from pyworkflow_ray.authoring.workflows import Workflow
from pyworkflow_ray.authoring.workflows import workflow as define
from pyworkflow_ray.engine.commands import CancelChild, StartChild
from pyworkflow_ray.engine.events import (
    NONE,
    CancellationRequested,
    ChildCompleted,
    ChildStarted,
    WorkflowCancelled,
)
from pyworkflow_ray.engine.limits import Limits
from pyworkflow_ray.engine.races import FIRST_COMPLETED, as_completed, wait
from pyworkflow_ray.exceptions import (
    CancellationError,
    ChildWorkflowFailedError,
    ConfigurationError,
    MaxNestingDepthError,
    NonDeterminismError,
    SerializationError,
    StepValidationError,
    WorkflowError,
    WorkflowNotFoundError,
    WorkflowTimeoutError,
)
from pyworkflow_ray.statuses import RunStatus
from tests.engine.simulator import VALUES, Simulation, assert_replays, finished, outcome_of


@step(name="children_echo")
def echo(x: Any = None) -> Any:
    return x


@define(name="children_double")
async def double(x: int = 0) -> int:
    await sleep(x)
    return int(await echo(x)) * 2


@define(name="children_failing")
async def failing(text: str = "no") -> None:
    await echo(1)
    raise LookupError(text)


@define(name="children_nested")
async def nested(levels: int) -> int:
    if levels == 0:
        return 0
    return 1 + int(await start_child_workflow(nested, levels - 1))


class Tripled(Workflow):
    name = "children_tripled"

    async def run(self, x: int) -> int:
        return x * 3


def begun(workflow: Any, *args: Any, **options: Any) -> Simulation:
    """A run whose children have no outcome but those that the test tells."""
    simulation = Simulation(workflow, *args, holds_children=True, **options)
    simulation.start()
    return simulation


def cancels(simulation: Simulation) -> list[str]:
    """The children that were asked to cancel."""
    names = {c.child_run_id: c.child_id for c in simulation.asked(StartChild)}
    return [names[command.child_run_id] for command in simulation.asked(CancelChild)]


# --- outcomes -----------------------------------------------------------------------------------------


def test_a_childs_result_is_what_starting_it_gives() -> None:
    async def workflow() -> Any:
        return await start_child_workflow(double, 21)

    simulation = Simulation(workflow)
    assert finished(simulation) == 42
    assert simulation.types() == [
        "workflow.started",
        "child_workflow.started",
        "child_workflow.completed",
        "workflow.completed",
    ]
    (started,) = simulation.events(ChildStarted)
    assert (started.child_id, started.child_workflow_name) == ("children_double#1", "children_double")
    assert VALUES.decode(started.args) == [21]


def test_a_child_may_be_named_or_be_a_class() -> None:
    async def workflow() -> Any:
        return [await start_child_workflow("children_double", 1), await start_child_workflow(Tripled, x=2)]

    assert finished(Simulation(workflow)) == [2, 6]


def test_two_equal_children_are_two() -> None:
    async def workflow() -> Any:
        return [await start_child_workflow(double, 1), await start_child_workflow(double, 1)]

    simulation = Simulation(workflow)
    assert finished(simulation) == [2, 2]
    ids = [(event.child_id, event.child_run_id) for event in simulation.events(ChildStarted)]
    assert [child_id for child_id, _ in ids] == ["children_double#1", "children_double#2"]
    assert len({run_id for _, run_id in ids}) == 2


def test_a_childs_run_id_is_the_same_in_every_replay_and_another_in_every_run() -> None:
    async def workflow() -> Any:
        return await start_child_workflow(double, 1)

    def child_run_of(simulation: Simulation) -> str:
        (command,) = simulation.asked(StartChild)
        return command.child_run_id

    simulation = begun(workflow)
    run_id = child_run_of(simulation)
    assert run_id.startswith("run_")
    assert len(run_id) == 20
    resumed = simulation.resumed(1)
    assert child_run_of(resumed) == run_id
    assert child_run_of(begun(workflow, run_id="run_0000000000000002")) != run_id


@pytest.mark.parametrize("seed", range(6))
def test_children_of_a_gather_end_in_any_order(seed: int) -> None:
    async def workflow() -> Any:
        return await asyncio.gather(*(start_child_workflow(double, n) for n in range(8)), echo("step"))

    simulation = Simulation(workflow, seed=seed)
    assert finished(simulation) == [0, 2, 4, 6, 8, 10, 12, 14, "step"]
    order = [event.child_id for event in simulation.events(ChildCompleted)]
    assert sorted(order) == [f"children_double#{n}" for n in range(1, 9)]


@pytest.mark.parametrize("seed", range(4))
def test_what_follows_each_child_keeps_its_place_in_a_replay(seed: int) -> None:
    async def workflow() -> Any:
        told = []
        async for done in as_completed([start_child_workflow(double, n) for n in range(4)]):
            told.append(await echo(await done))
            await sleep(1)
        return sorted(told)

    assert finished(Simulation(workflow, seed=seed)) == [0, 2, 4, 6]


def test_a_childs_failure_is_told_with_its_own_error_as_the_cause() -> None:
    async def workflow() -> Any:
        try:
            await start_child_workflow(failing, "lost")
        except ChildWorkflowFailedError as error:
            cause = error.__cause__
            told = [error.child_workflow_name, error.error, error.error_type]
            return [*told, type(cause).__name__, str(cause), await echo(error.child_run_id)]

    simulation = Simulation(workflow)
    (started,) = (finished(simulation), *simulation.events(ChildStarted))[1:]
    name, text, kind, cause, cause_text, run_id = simulation.result()
    assert (name, text, kind) == ("children_failing", "lost", "LookupError")
    assert (cause, cause_text) == ("LookupError", "lost")
    assert run_id == started.child_run_id


def test_a_childs_failure_that_nobody_catches_fails_the_parent() -> None:
    async def workflow() -> Any:
        await start_child_workflow(failing, "lost")

    with pytest.raises(ChildWorkflowFailedError, match=r"Child 'children_failing'.*LookupError: lost"):
        finished(Simulation(workflow))


def test_a_child_that_was_cancelled_from_elsewhere_is_told_as_a_failure() -> None:
    async def workflow() -> Any:
        try:
            await start_child_workflow(double, 1)
        except ChildWorkflowFailedError as error:
            cause = error.__cause__
            assert isinstance(cause, CancellationError)
            return [error.error_type, cause.reason, await echo(1)]

    simulation = begun(workflow)
    simulation.end_child("children_double#1", CancellationError(reason="by hand"))
    assert finished(simulation) == ["CancellationError", "by hand", 1]
    assert simulation.types()[2] == "child_workflow.cancelled"


def test_a_failed_child_that_was_caught_stays_caught() -> None:
    async def workflow() -> Any:
        told = await asyncio.gather(
            *(start_child_workflow(failing, text) for text in "ab"),
            start_child_workflow(double, 1),
            return_exceptions=True,
        )
        await sleep(5)
        return [type(one).__name__ for one in told]

    assert finished(Simulation(workflow)) == ["ChildWorkflowFailedError"] * 2 + ["int"]


# --- handles ------------------------------------------------------------------------------------------


def test_a_handle_is_given_at_once_and_tells_how_the_child_fares() -> None:
    async def workflow() -> Any:
        handle = await start_child_workflow(double, 3, wait_for_completion=False)
        told: list[Any] = [await handle.get_status(), await handle.is_running(), await handle.is_terminal()]
        await sleep(5)
        told += [await handle.result(), await handle.get_status()]
        told += [await handle.is_running(), await handle.is_terminal()]
        return [handle.child_id, handle.child_workflow_name, handle.parent_run_id, *told]

    simulation = Simulation(workflow)
    assert finished(simulation) == [
        *("children_double#1", "children_double", simulation.run_id),
        *(RunStatus.RUNNING, True, False),
        *(6, RunStatus.COMPLETED, False, True),
    ]


@pytest.mark.parametrize(
    ("outcome", "status"),
    [
        (LookupError("x"), RunStatus.FAILED),
        (CancellationError(), RunStatus.CANCELLED),
        (5, RunStatus.COMPLETED),
    ],
)
def test_a_handle_tells_how_the_child_has_ended(outcome: Any, status: RunStatus) -> None:
    async def workflow() -> Any:
        handle = await start_child_workflow(double, 3, wait_for_completion=False)
        await sleep(5)
        return [await handle.get_status(), await handle.cancel()]

    simulation = begun(workflow)
    simulation.end_child("children_double#1", outcome)
    assert finished(simulation) == [status, False]
    assert cancels(simulation) == []


def test_a_handles_result_may_be_awaited_by_several_and_again() -> None:
    async def workflow() -> Any:
        handle = await start_child_workflow(double, 3, wait_for_completion=False)
        return [*await asyncio.gather(*(handle.result() for _ in range(3))), await handle.result()]

    assert finished(Simulation(workflow)) == [6, 6, 6, 6]


def test_a_handles_result_raises_what_the_child_failed_with() -> None:
    async def workflow() -> Any:
        handle = await start_child_workflow(failing, wait_for_completion=False)
        for _ in range(2):
            try:
                await handle.result()
            except ChildWorkflowFailedError as error:
                await echo(error.error)
        return "caught"

    assert finished(Simulation(workflow)) == "caught"


def test_a_child_goes_on_when_the_time_to_wait_for_it_is_over() -> None:
    async def workflow() -> Any:
        handle = await start_child_workflow(double, 3, wait_for_completion=False)
        try:
            await handle.result(timeout=5)
        except TimeoutError:
            return [await handle.is_running(), await handle.result()]

    simulation = begun(workflow)
    simulation.pass_time(10)
    assert cancels(simulation) == []
    simulation.end_child("children_double#1", "late")
    assert finished(simulation) == [True, "late"]


def test_a_wait_that_the_code_cancels_leaves_the_child_of_a_handle_going_on() -> None:
    async def workflow() -> Any:
        handle = await start_child_workflow(double, 3, wait_for_completion=False)
        waits = [asyncio.ensure_future(handle.result()) for _ in range(2)]
        await sleep(1)
        waits[0].cancel()
        return await waits[1]

    simulation = begun(workflow)
    simulation.pass_time(5)
    simulation.end_child("children_double#1", 6)
    assert finished(simulation) == 6
    assert cancels(simulation) == []


def test_a_handle_cancels_its_child_which_says_what_it_made_of_that() -> None:
    async def workflow() -> Any:
        handle = await start_child_workflow(double, 3, wait_for_completion=False)
        asked = [await handle.cancel("changed my mind"), await handle.cancel()]
        try:
            await handle.result()
        except ChildWorkflowFailedError as error:
            return [*asked, error.error_type]

    simulation = begun(workflow)
    assert [command.reason for command in simulation.asked(CancelChild)] == ["changed my mind"]
    simulation.end_child("children_double#1", CancellationError())
    assert finished(simulation) == [True, True, "CancellationError"]


def test_a_child_that_ignores_its_cancellation_may_complete() -> None:
    async def workflow() -> Any:
        handle = await start_child_workflow(double, 3, wait_for_completion=False)
        await handle.cancel()
        return await handle.result()

    simulation = begun(workflow)
    simulation.end_child("children_double#1", 6)
    assert finished(simulation) == 6


def test_asking_a_child_to_cancel_is_asked_again_in_each_replay() -> None:
    async def workflow() -> Any:
        handle = await start_child_workflow(double, 3, wait_for_completion=False)
        await handle.cancel()
        await sleep("1h")

    # It leaves no event: a crash between the commit and the request must not lose it.
    assert cancels(begun(workflow)) == ["children_double#1"]
    assert len(begun(workflow).resumed().asked(CancelChild)) == 1


# --- a parent that ends -------------------------------------------------------------------------------


def closing(parent_close: str, ending: str = "returns") -> Any:
    async def workflow() -> Any:
        await start_child_workflow(double, 1, wait_for_completion=False, parent_close=parent_close)
        match ending:
            case "raises":
                raise KeyError("over")
            case "continues":
                get_context().continue_as_new(1)
            case "is cancelled":
                await sleep("1h")
        return "over"

    return workflow


@pytest.mark.parametrize("ending", ["returns", "raises", "continues"])
def test_a_child_is_asked_to_cancel_when_its_parent_ends(ending: str) -> None:
    simulation = begun(closing("cancel", ending))
    assert simulation.execution.is_finished
    assert cancels(simulation) == ["children_double#1"]
    assert_replays(simulation)


@pytest.mark.parametrize("ending", ["returns", "raises", "continues"])
def test_an_abandoned_child_goes_on_when_its_parent_ends(ending: str) -> None:
    simulation = begun(closing("abandon", ending))
    assert simulation.execution.is_finished
    assert cancels(simulation) == []
    assert_replays(simulation)


@pytest.mark.parametrize(
    ("ending", "event"),
    [
        ("returns", "workflow.completed"),
        ("raises", "workflow.failed"),
        ("continues", "workflow.continued_as_new"),
    ],
)
@pytest.mark.parametrize("outcome", [2, LookupError("the child's")])
def test_a_parent_may_end_no_sooner_than_its_child(ending: str, event: str, outcome: Any) -> None:
    simulation = begun(closing("wait", ending))
    assert not simulation.execution.is_finished
    assert simulation.types() == ["workflow.started", "child_workflow.started"]
    simulation.end_child("children_double#1", outcome)
    assert simulation.execution.is_finished
    assert simulation.types()[-1] == event
    assert cancels(simulation) == []
    assert_replays(simulation)


@pytest.mark.parametrize("parent_close", ["cancel", "abandon", "wait"])
def test_a_parent_that_is_cancelled_treats_its_children_as_one_that_ends(parent_close: str) -> None:
    simulation = begun(closing(parent_close, "is cancelled"))
    simulation.cancel("enough")
    assert cancels(simulation) == (["children_double#1"] if parent_close == "cancel" else [])
    if parent_close == "wait":
        assert not simulation.execution.is_finished
        simulation.end_child("children_double#1", 2)
    assert simulation.history[-1].event == WorkflowCancelled(reason="enough")
    assert_replays(simulation)


def test_children_are_let_go_each_as_it_was_started() -> None:
    async def workflow() -> Any:
        for close in ("cancel", "wait", "abandon", "wait", "cancel"):
            await start_child_workflow(double, wait_for_completion=False, parent_close=close)
        return "over"

    simulation = begun(workflow)
    assert cancels(simulation) == ["children_double#1", "children_double#5"]
    for number in (4, 1, 2):
        assert not simulation.execution.is_finished
        simulation.end_child(f"children_double#{number}", number)
    assert finished(simulation) == "over"
    assert len(cancels(simulation)) == 2


def test_a_request_while_a_parent_waits_for_its_children_is_passed_on_to_those() -> None:
    simulation = begun(closing("wait"))
    simulation.cancel("enough")
    assert cancels(simulation) == ["children_double#1"]
    simulation.end_child("children_double#1", CancellationError())
    assert finished(simulation) == "over"


def test_a_request_while_a_parent_waits_for_its_children_leaves_abandoned_ones_alone() -> None:
    async def workflow() -> Any:
        for close in ("abandon", "wait"):
            await start_child_workflow(double, wait_for_completion=False, parent_close=close)

    simulation = begun(workflow)
    simulation.cancel()
    assert cancels(simulation) == ["children_double#2"]


def test_nothing_of_a_parent_that_has_ended_runs_on_while_it_waits_for_its_children() -> None:
    async def workflow() -> Any:
        async def ticking() -> None:
            while True:
                await sleep(1)
                await echo("tick")

        asyncio.ensure_future(ticking())  # noqa: RUF006
        await start_child_workflow(double, wait_for_completion=False, parent_close="wait")
        return "over"

    simulation = begun(workflow)
    simulation.pass_time(5)
    assert simulation.steps == []
    simulation.end_child("children_double#1")
    assert finished(simulation) == "over"


def test_a_parent_whose_time_is_over_while_it_waits_for_its_children_has_timed_out() -> None:
    from datetime import timedelta

    simulation = begun(closing("wait"), limits=Limits(max_duration=timedelta(minutes=1)))
    simulation.pass_time(90)
    assert simulation.events(CancellationRequested)[0].requested_by == "max_duration"
    simulation.end_child("children_double#1", CancellationError())
    with pytest.raises(WorkflowTimeoutError):
        finished(simulation)


# --- a wait that is cancelled -------------------------------------------------------------------------


def waiting(parent_close: str) -> Any:
    async def workflow() -> Any:
        try:
            return await start_child_workflow(double, 1, parent_close=parent_close)
        except CancellationError as error:
            await echo(error.reason)
            raise

    return workflow


def test_a_request_is_passed_on_to_the_child_that_is_waited_for_and_comes_when_it_has_ended() -> None:
    simulation = begun(waiting("cancel"))
    simulation.cancel("enough")
    assert cancels(simulation) == ["children_double#1"]
    assert simulation.steps == []
    simulation.end_child("children_double#1", CancellationError())
    assert simulation.steps == ["children_echo#1"]
    outcome_of(simulation)
    assert simulation.history[-1].event == WorkflowCancelled(reason="enough")
    assert_replays(simulation)


def test_a_request_waits_for_a_child_that_its_parent_is_to_wait_for() -> None:
    simulation = begun(waiting("wait"))
    simulation.cancel("enough")
    assert cancels(simulation) == []
    assert simulation.steps == []
    simulation.end_child("children_double#1", 2)
    assert simulation.steps == ["children_echo#1"]
    outcome_of(simulation)
    assert simulation.history[-1].event == WorkflowCancelled(reason="enough")
    assert_replays(simulation)


def test_a_request_does_not_wait_for_an_abandoned_child() -> None:
    simulation = begun(waiting("abandon"))
    simulation.cancel("enough")
    assert cancels(simulation) == []
    assert simulation.steps == ["children_echo#1"]
    outcome_of(simulation)
    assert simulation.history[-1].event == WorkflowCancelled(reason="enough")
    assert_replays(simulation)


def test_a_child_that_completes_in_spite_of_the_request_does_not_undo_it() -> None:
    simulation = begun(waiting("cancel"))
    simulation.cancel("enough")
    simulation.end_child("children_double#1", 2)
    outcome_of(simulation)
    assert simulation.history[-1].event == WorkflowCancelled(reason="enough")
    assert_replays(simulation)


def test_a_child_is_asked_once_however_often_its_parent_has_cause_to() -> None:
    async def workflow() -> Any:
        handle = await start_child_workflow(double, wait_for_completion=False)
        await handle.cancel()
        try:
            await handle.result()
        finally:
            await handle.cancel()

    simulation = begun(workflow)
    simulation.cancel()
    assert cancels(simulation) == ["children_double#1"]
    assert_replays(simulation)


def test_a_child_waited_for_within_a_shield_goes_on() -> None:
    async def workflow() -> Any:
        try:
            async with shield():
                told = await start_child_workflow(double, 3)
        except CancellationError:
            return ["cancelled after", told]

    simulation = begun(workflow)
    simulation.cancel()
    assert cancels(simulation) == []
    simulation.end_child("children_double#1", 6)
    assert finished(simulation) == ["cancelled after", 6]


def test_a_child_that_loses_to_a_deadline_is_asked_to_cancel_and_not_waited_for() -> None:
    async def workflow() -> Any:
        try:
            await asyncio.wait_for(start_child_workflow(double, 3), 5)
        except TimeoutError:
            await sleep(60)
            return "too late"

    simulation = begun(workflow)
    simulation.pass_time(10)
    assert cancels(simulation) == ["children_double#1"]
    simulation.end_child("children_double#1", CancellationError())
    assert finished(simulation) == "too late"


def test_an_abandoned_child_that_loses_to_a_deadline_goes_on() -> None:
    async def workflow() -> Any:
        try:
            await asyncio.wait_for(start_child_workflow(double, 3, parent_close="abandon"), 5)
        except TimeoutError:
            return "too late"

    simulation = begun(workflow)
    simulation.pass_time(10)
    assert cancels(simulation) == []
    assert finished(simulation) == "too late"


def test_the_loser_of_a_race_of_children_is_asked_to_cancel() -> None:
    async def workflow() -> Any:
        calls = [start_child_workflow(double, n) for n in (1, 2)]
        done, pending = await wait(calls, return_when=FIRST_COMPLETED)
        for future in pending:
            future.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        return [await future for future in done]

    simulation = begun(workflow)
    simulation.end_child("children_double#2", 4)
    assert finished(simulation) == [4]
    assert cancels(simulation) == ["children_double#1"]


# --- levels -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [0, 1, 2, 3])
def test_children_nest_as_deep_as_is_allowed(levels: int) -> None:
    assert finished(Simulation(nested, levels)) == levels


def test_children_that_nest_deeper_are_refused_before_anything_is_recorded() -> None:
    simulation = Simulation(nested, 1, depth=3)
    with pytest.raises(MaxNestingDepthError, match="3 levels"):
        finished(simulation)
    assert "child_workflow.started" not in simulation.types()


def test_the_error_of_a_run_that_nests_too_deep_is_told_at_every_level() -> None:
    with pytest.raises(ChildWorkflowFailedError, match="nested too deep"):
        finished(Simulation(nested, 4))


def test_how_deep_children_nest_is_a_setting() -> None:
    assert finished(Simulation(nested, 5, limits=Limits(max_nesting_depth=5))) == 5
    with pytest.raises(MaxNestingDepthError):
        finished(Simulation(nested, 1, limits=Limits(max_nesting_depth=0)))


# --- what is refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda: start_child_workflow(double, 1, 2, 3), StepValidationError),
        (lambda: start_child_workflow(double, x="many"), StepValidationError),
        (lambda: start_child_workflow(double, 1, parent_close="kill"), ConfigurationError),
        (lambda: start_child_workflow("children_nobody"), WorkflowNotFoundError),
        (lambda: start_child_workflow(print), ConfigurationError),
    ],
)
def test_what_cannot_be_started_is_refused_before_anything_is_recorded(
    call: Any, error: type[Exception]
) -> None:
    async def workflow() -> Any:
        try:
            await call()
        except error:
            return await start_child_workflow(double, 1)

    simulation = Simulation(workflow)
    assert finished(simulation) == 2
    assert [event.child_id for event in simulation.events(ChildStarted)] == ["children_double#1"]


def test_an_argument_that_cannot_be_stored_is_refused_at_every_replay() -> None:
    import threading

    @define(name="children_any")
    async def anything(x: Any) -> Any:
        return x

    async def workflow() -> Any:
        try:
            await start_child_workflow(anything, threading.Lock())
        except SerializationError as error:
            await echo(1)
            return [str(error)[:40], await start_child_workflow(anything, 5)]

    simulation = Simulation(workflow)
    assert finished(simulation) == ["The arguments of child 'children_any#1' ", 5]
    assert len(simulation.events(ChildStarted)) == 1


def test_a_child_needs_a_run_and_a_history() -> None:
    async def workflow() -> Any:
        return await start_child_workflow(double, 1)

    with pytest.raises(WorkflowError, match=r"start_child_workflow\(\) belongs in the code of a workflow"):
        asyncio.run(workflow())
    simulation = Simulation(workflow)
    simulation.is_durable = False
    with pytest.raises(WorkflowError, match=r"start_child_workflow\(\) needs a history"):
        simulation.run()


# --- code that has changed ----------------------------------------------------------------------------


async def two_children() -> Any:
    return [await start_child_workflow(double, 1), await start_child_workflow(Tripled, 1)]


def divergence_of(old: Any, new: Any) -> str:
    simulation = Simulation(old)
    simulation.run()
    simulation.function = new
    with pytest.raises(NonDeterminismError) as diverged:
        simulation.resumed()
    return str(diverged.value)


def test_another_child_in_a_childs_place_is_told() -> None:
    async def new() -> Any:
        return [await start_child_workflow(double, 1), await start_child_workflow(failing)]

    told = divergence_of(two_children, new)
    assert (
        "position 3:\nrecorded ChildStarted('children_tripled#1'), now StartChild('children_failing#1')"
        in told
    )


def test_a_removed_child_is_told() -> None:
    async def new() -> Any:
        return [await start_child_workflow(double, 1)]

    assert "recorded ChildStarted('children_tripled#1'), now CompleteRun()" in divergence_of(
        two_children, new
    )


def test_reordered_children_are_told() -> None:
    async def new() -> Any:
        return [await start_child_workflow(Tripled, 1), await start_child_workflow(double, 1)]

    told = divergence_of(two_children, new)
    assert (
        "position 1:\nrecorded ChildStarted('children_double#1'), now StartChild('children_tripled#1')"
        in told
    )


def test_a_step_in_place_of_a_child_is_told() -> None:
    async def new() -> Any:
        return await echo(1)

    assert "recorded ChildStarted('children_double#1'), now ScheduleStep('children_echo#1')" in divergence_of(
        two_children, new
    )


def test_a_child_in_place_of_a_step_is_told() -> None:
    async def old() -> Any:
        return await echo(1)

    assert "recorded StepScheduled('children_echo#1'), now StartChild('children_double#1')" in divergence_of(
        old, two_children
    )


def test_an_outcome_of_a_child_that_was_never_started_is_told() -> None:
    async def workflow() -> Any:
        return await start_child_workflow(double, 1)

    simulation = begun(workflow)
    other = ChildCompleted(
        child_id="children_double#2", child_run_id="run_2", child_workflow_name="x", result=NONE
    )
    with pytest.raises(NonDeterminismError, match="'children_double#2', which the code has not started"):
        simulation.feed(other)


def test_arguments_are_those_that_were_recorded_whatever_the_code_says_now() -> None:
    async def old() -> Any:
        return await start_child_workflow(double, 1)

    async def new() -> Any:
        return await start_child_workflow(double, 2)

    simulation = begun(old)
    simulation.function = new
    resumed = simulation.resumed()
    (child,) = resumed.execution.children.open.values()
    assert VALUES.decode(child.command.args) == [1]
