"""What came for a run that ended before its code saw it is in the history, and a replay does not apply it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from msgspec import Raw

from pyworkflow_ray.authoring.context import continue_as_new, receive
from pyworkflow_ray.authoring.hooks import hook
from pyworkflow_ray.authoring.steps import step
from pyworkflow_ray.engine.events import (
    EVENTS,
    CancellationRequested,
    ChildCancelled,
    ChildCompleted,
    ChildFailed,
    Event,
    HookReceived,
    Recorded,
    SignalReceived,
    WorkflowCancelled,
    WorkflowCompleted,
    WorkflowFailed,
    WorkflowStarted,
    decode_event,
    encode_data,
)
from pyworkflow_ray.engine.unseen_events import is_unseen, unseen
from pyworkflow_ray.exceptions import NonDeterminismError
from tests.engine.simulator import Simulation, events_of, outcome_of

REST: list[Event] = [
    CancellationRequested(reason="too late"),
    HookReceived(hook_id="answer#1", payload=Raw(b"1")),
    ChildCompleted(child_id="child#1", child_run_id="run_2", child_workflow_name="child", result=Raw(b"1")),
    SignalReceived(name="item", payload=Raw(b"1")),
]
POSTED = (CancellationRequested, HookReceived, SignalReceived, ChildCompleted, ChildFailed, ChildCancelled)


@step(name="unseen_echo")
def echo(x: Any = None) -> Any:
    return x


async def with_a_hook() -> Any:
    """Lets go of a hook as it ends."""
    waiting = asyncio.get_running_loop().create_task(hook("answer"))
    value = await echo(1)
    waiting.cancel()
    return value


async def fails() -> Any:
    await echo(1)
    raise ValueError("its own")


async def reads_signals() -> Any:
    return await receive("item")


async def goes_on() -> Any:
    await echo(1)
    continue_as_new()


def with_rest(simulation: Simulation, rest: list[Event] = REST) -> list[Recorded]:
    """The history with these before its end, which its code has not seen."""
    *history, end = simulation.history
    events = [*(each.event for each in history), *map(unseen, rest), end.event]
    times = [*(each.timestamp for each in history), *[end.timestamp] * (len(rest) + 1)]
    stored = [decode_event(event.type, encode_data(event)) for event in events]
    return [Recorded(number, at, event) for number, (at, event) in enumerate(zip(times, stored, strict=True))]


def ended(workflow: Callable[..., Any], **options: Any) -> Simulation:
    simulation = Simulation(workflow, **options)
    outcome_of(simulation)
    return simulation


def read_a_signal() -> Simulation:
    simulation = Simulation(reads_signals)
    simulation.start()
    simulation.signal("item", 7)
    return simulation


@pytest.mark.parametrize(
    "simulation",
    [ended(with_a_hook), ended(fails), read_a_signal(), ended(goes_on)],
    ids=["completed", "failed", "signalled", "continued"],
)
def test_code_ends_as_it_did_over_every_part_of_a_history_with_unseen_events(simulation: Simulation) -> None:
    history = with_rest(simulation)
    decided = {each.event.type for each in history if not is_unseen(each.event)}
    for length in range(1, len(history) + 1):
        execution = simulation._execution()
        asked = events_of(execution.replay(history[:length]))
        if length == len(history):
            assert not asked
        if length >= len(simulation.history) - 1:  # only what is unseen is missing, and perhaps the end
            assert execution.is_finished
            assert {event.type for event in asked} <= decided
        execution.drop()


def test_what_is_unseen_tells_the_code_nothing_and_passes_no_time() -> None:
    simulation = ended(with_a_hook)
    history = with_rest(simulation)
    execution = simulation._execution()
    execution.replay(history)
    assert not execution.cancellation.is_requested
    assert execution.signals.unread() == ()
    assert execution.now == history[-1].timestamp


@pytest.mark.parametrize("end", [WorkflowCompleted(result=Raw(b"2")), WorkflowCancelled(reason="too late")])
def test_code_that_has_changed_differs_from_a_history_with_unseen_events(end: Event) -> None:
    async def today() -> Any:
        await echo(1)
        return await echo(2)

    simulation = ended(with_a_hook)
    history = with_rest(simulation)
    history[-1] = msgspec.structs.replace(history[-1], event=end)
    other = Simulation(today)
    with pytest.raises(NonDeterminismError):
        other.execution.replay(history)


@pytest.mark.parametrize(
    "end",
    [
        WorkflowCancelled(reason="too late", is_without_code=True),
        WorkflowFailed(error="lost", error_type="WorkerDiedError", is_without_code=True),
    ],
    ids=["cancelled", "failed"],
)
def test_a_run_that_was_ended_without_its_code_replays(end: Event) -> None:
    simulation = Simulation(with_a_hook)
    simulation.start()
    kept = len(simulation.history)
    simulation.record(end)
    history = with_rest(simulation)
    for length in range(kept + 1, len(history) + 1):
        execution = simulation._execution()
        execution.replay(history[:length])
        assert execution.is_finished is (length == len(history))
        assert not execution.cancellation.is_requested
        execution.drop()


def test_an_error_of_the_code_is_not_taken_for_an_end_without_it() -> None:
    """The code let a step's lost worker fail it. Code that no longer does so differs."""
    simulation = ended(fails)
    lost = WorkflowFailed(error="lost", error_type="pyworkflow_ray.exceptions.WorkerDiedError")
    simulation.history[-1] = msgspec.structs.replace(simulation.history[-1], event=lost)
    with pytest.raises(NonDeterminismError):
        Simulation(with_a_hook).execution.replay(simulation.history)


def test_no_code_runs_of_a_start_that_is_unseen() -> None:
    simulation = Simulation(with_a_hook)
    simulation.start()
    started, end = simulation.history[0], WorkflowCancelled(is_without_code=True)
    first = msgspec.structs.replace(started, event=unseen(started.event))
    execution = simulation._execution()
    assert execution.replay([first, Recorded(1, started.timestamp, end)]) == []
    assert execution.is_finished


def test_what_comes_through_inboxes_may_be_unseen_and_nothing_else() -> None:
    may_be = {kind for kind in EVENTS if "is_unseen" in kind.__struct_fields__}
    assert may_be == {*POSTED, WorkflowStarted}
