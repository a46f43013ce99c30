"""Code that no longer agrees with its run's history is told so, precisely, and nothing of it runs on."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable
from typing import Any

import pytest

from pyworkflow_ray.authoring.context import get_context, patched, set_attributes, side_effect
from pyworkflow_ray.authoring.steps import step
from pyworkflow_ray.authoring.timers import sleep
from pyworkflow_ray.engine.events import StepCompleted, TimerFired
from pyworkflow_ray.exceptions import NonDeterminismError
from tests.engine.simulator import START, Simulation, assert_replays


@step(name="div_a")
def a(x: int = 0) -> int:
    return x


@step(name="div_b")
def b(x: int = 0) -> int:
    return x


@step(name="div_c")
def c(x: int = 0) -> int:
    return x


def under(old: Callable[..., Any], new: Callable[..., Any], length: int | None = None) -> Simulation:
    """The run that the old code made, or its first events, picked up by the new code."""
    simulation = Simulation(old)
    simulation.run()
    simulation.function = new
    return simulation.resumed(len(simulation.history) if length is None else length)


def divergence_of(old: Callable[..., Any], new: Callable[..., Any], length: int | None = None) -> str:
    with pytest.raises(NonDeterminismError) as diverged:
        under(old, new, length)
    return str(diverged.value)


async def one_two() -> None:
    await a(1)
    await b(2)


# --- what has changed ---------------------------------------------------------------------------------


def test_a_divergence_names_run_position_what_was_recorded_what_is_asked_and_the_cure() -> None:
    async def new() -> None:
        await a(1)
        await c(2)

    assert divergence_of(one_two, new) == (
        "Run 'run_0000000000000001' replayed differently from its history at position 3:\n"
        "recorded StepScheduled('div_b#1'), now ScheduleStep('div_c#1').\n"
        "Either the workflow's code changed under a running run: restore the order of its steps, or guard "
        "the change with patched('...'). Or the code decides by something that differs from one execution "
        "to the next (time, random numbers, the environment, the order of a set): take it from the context "
        "(now(), random(), uuid4()), from side_effect(), or from a step."
    )


def test_a_removed_step_is_told() -> None:
    async def new() -> None:
        await b(2)

    assert "position 1:\nrecorded StepScheduled('div_a#1'), now ScheduleStep('div_b#1')" in divergence_of(
        one_two, new
    )


def test_a_step_removed_at_the_end_is_told() -> None:
    async def new() -> None:
        await a(1)

    assert "position 3:\nrecorded StepScheduled('div_b#1'), now CompleteRun()" in divergence_of(one_two, new)


def test_an_inserted_step_is_told() -> None:
    async def new() -> None:
        await a(1)
        await c(3)
        await b(2)

    assert "recorded StepScheduled('div_b#1'), now ScheduleStep('div_c#1')" in divergence_of(one_two, new)


def test_an_inserted_step_of_the_same_name_is_told_at_the_next_difference() -> None:
    async def new() -> None:
        await a(1)
        await a(1)
        await b(2)

    assert "recorded StepScheduled('div_b#1'), now ScheduleStep('div_a#2')" in divergence_of(one_two, new)


def test_reordered_steps_are_told() -> None:
    async def new() -> None:
        await b(2)
        await a(1)

    assert "recorded StepScheduled('div_a#1'), now ScheduleStep('div_b#1')" in divergence_of(one_two, new)


def test_reordered_steps_of_a_gather_are_told() -> None:
    async def old() -> None:
        await asyncio.gather(a(1), b(2))

    async def new() -> None:
        await asyncio.gather(b(2), a(1))

    assert "position 1:" in divergence_of(old, new)


def test_code_that_waits_where_it_acted_is_told() -> None:
    async def old() -> None:
        await asyncio.gather(a(1), b(2))

    assert "position 2:\nrecorded StepScheduled('div_b#1'), now nothing" in divergence_of(old, one_two)


def test_a_step_in_place_of_a_timer_is_told() -> None:
    async def old() -> None:
        await sleep("1h")

    async def new() -> None:
        await a(1)

    assert "recorded TimerStarted('sleep#1'), now ScheduleStep('div_a#1')" in divergence_of(old, new)
    assert "recorded StepScheduled('div_a#1'), now StartTimer('sleep#1')" in divergence_of(new, old)


def test_a_renamed_timer_is_told() -> None:
    async def old() -> None:
        await sleep("1h", name="cool_down")

    async def new() -> None:
        await sleep("1h", name="warm_up")

    assert "recorded TimerStarted('cool_down#1'), now StartTimer('warm_up#1')" in divergence_of(old, new)


def test_a_timeout_put_around_a_step_is_told() -> None:
    async def new() -> None:
        async with asyncio.timeout(60):
            await one_two()

    assert "now StartTimer('sleep#1')" in divergence_of(one_two, new)


def test_a_timer_keeps_the_instant_that_was_recorded_when_its_length_changes() -> None:
    async def old() -> None:
        await sleep("1h")
        await a()

    async def new() -> None:
        await sleep("30d")
        await a()

    resumed = under(old, new, 2)
    due_at, _ = resumed.execution.next_timer() or (None, None)
    assert due_at is not None
    assert (due_at - START).total_seconds() == pytest.approx(3600, abs=1)
    resumed.run()


def test_a_missing_patch_is_told() -> None:
    async def old() -> None:
        if patched("tax"):
            await a(1)

    async def new() -> None:
        await a(1)

    assert "recorded PatchApplied('tax'), now ScheduleStep('div_a#1')" in divergence_of(old, new)


def test_a_missing_side_effect_is_told() -> None:
    async def old() -> None:
        side_effect(lambda: 1, name="flag")

    async def new() -> None:
        pass

    assert "recorded SideEffectRecorded('flag#1'), now CompleteRun()" in divergence_of(old, new)


def test_missing_attributes_are_told() -> None:
    async def old() -> None:
        set_attributes(tier="gold")
        await a()

    async def new() -> None:
        await a()

    assert "recorded AttributesSet() [attributes.set], now ScheduleStep('div_a#1')" in divergence_of(old, new)


def test_code_that_now_fails_where_it_completed_is_told() -> None:
    async def old() -> None:
        await a()

    async def new() -> None:
        await a()
        raise ValueError("new bug")

    assert "now FailRun()" in divergence_of(old, new)


def test_code_that_now_cancels_a_step_is_told() -> None:
    async def old() -> None:
        tasks = [asyncio.ensure_future(a()), asyncio.ensure_future(b())]
        await tasks[0]
        await tasks[1]

    async def new() -> None:
        tasks = [asyncio.ensure_future(a()), asyncio.ensure_future(b())]
        await tasks[0]
        tasks[1].cancel()
        await sleep(1)

    simulation = Simulation(old)
    simulation.start()
    command = simulation.execution.steps["div_a#1"].command
    event = simulation.execution.conclude("div_a#1", 1, simulation.attempt(command, 1), START)
    assert isinstance(event, StepCompleted)
    simulation.feed(event)
    simulation.feed(StepCompleted(step_id="div_b#1", step_name="div_b", result=event.result, attempt=1))
    simulation.function = new
    with pytest.raises(NonDeterminismError, match="div_b#1"):
        simulation.resumed(len(simulation.history))


def test_a_history_that_goes_on_after_the_end_is_told() -> None:
    async def new() -> None:
        pass

    simulation = Simulation(new)
    simulation.run()
    simulation.record(TimerFired(sleep_id="sleep#1"))
    with pytest.raises(NonDeterminismError, match="has ended"):
        simulation.resumed(len(simulation.history))


def test_an_outcome_of_what_was_never_asked_is_told() -> None:
    simulation = Simulation(one_two)
    simulation.start()
    with pytest.raises(NonDeterminismError, match="'div_z#1', which the code has not called"):
        simulation.feed(StepCompleted(step_id="div_z#1", step_name="div_z", result=_null(), attempt=1))
    with pytest.raises(NonDeterminismError, match="'sleep#9' fired"):
        simulation.feed(TimerFired(sleep_id="sleep#9"))


def assert_ends_alike(simulation: Simulation) -> None:
    # Not from every prefix: one that ends before the change may well go the new way.
    replayed = simulation.resumed(len(simulation.history))
    assert replayed.execution.is_finished
    assert replayed.types() == simulation.types()


def _null() -> Any:
    from pyworkflow_ray.engine.events import NONE

    return NONE


def test_code_that_decides_by_chance_is_told() -> None:
    flips = iter([True, False])

    async def workflow() -> None:
        await (a() if next(flips) else b())

    simulation = Simulation(workflow)
    simulation.run()
    with pytest.raises(NonDeterminismError, match="differs from one execution to the next"):
        simulation.resumed(2)


def test_a_command_that_the_code_now_asks_for_at_the_end_of_its_history_is_handed_out() -> None:
    async def old() -> None:
        await asyncio.gather(a(1))

    async def new() -> None:
        await asyncio.gather(a(1), b(2))

    simulation = Simulation(old)
    simulation.start()
    simulation.function = new
    resumed = simulation.resumed(len(simulation.history))
    assert resumed.types() == ["workflow.started", "step.started", "step.started"]
    resumed.run()
    assert_replays(resumed)


# --- nothing runs on ----------------------------------------------------------------------------------


def test_no_handler_can_swallow_a_divergence() -> None:
    async def new() -> None:
        while True:
            try:
                await c(1)
            except Exception:
                continue

    assert "now ScheduleStep('div_c#1')" in divergence_of(one_two, new)


def test_a_loop_around_a_bare_except_does_not_go_round_for_ever() -> None:
    async def new() -> None:
        while True:
            try:  # noqa: SIM105
                await c(1)
            except:  # noqa: E722
                pass

    assert "now ScheduleStep('div_c#1')" in divergence_of(one_two, new)


@pytest.mark.parametrize("ask", [lambda: c(1), lambda: sleep(5)])
def test_no_clean_up_runs_after_a_divergence(ask: Callable[[], Any]) -> None:
    told: list[str] = []

    async def new() -> None:
        try:
            await ask()
        finally:
            told.append("finally")

    divergence_of(one_two, new)
    gc.collect()
    assert told == []


def test_other_tasks_do_not_run_after_a_divergence() -> None:
    told: list[str] = []

    async def quiet() -> None:
        told.append("ran")

    async def new() -> None:
        asyncio.create_task(quiet())  # noqa: RUF006
        await c(1)

    divergence_of(one_two, new)
    assert told == []


def test_an_execution_that_has_diverged_takes_no_more() -> None:
    async def new() -> None:
        await c(1)

    simulation = Simulation(one_two)
    simulation.run()
    simulation.function = new
    execution = simulation._execution()
    for _ in range(2):
        with pytest.raises(NonDeterminismError, match="position 1"):
            execution.replay(simulation.history)
    with pytest.raises(NonDeterminismError, match="position 1"):
        execution.feed(TimerFired(sleep_id="sleep#1"), START)
    execution.drop()


# --- patches ------------------------------------------------------------------------------------------


async def unpatched() -> list[str]:
    told = []
    for i in range(3):
        await a(i)
        told.append("old")
        await b(i)
    return told


async def patched_code() -> list[str]:
    told = []
    for i in range(3):
        await a(i)
        if patched("faster"):
            told.append("new")
            await c(i)
        else:
            told.append("old")
            await b(i)
    return told


def test_a_new_run_takes_the_new_way_and_replays_it() -> None:
    simulation = Simulation(patched_code)
    assert simulation.run() == ["new"] * 3
    assert simulation.types().count("patch.applied") == 3
    assert_replays(simulation)


@pytest.mark.parametrize("length", [4, 5, 6, 8, 9, 10, 12])
def test_a_run_that_has_passed_the_change_keeps_to_the_old_way_to_its_end(length: int) -> None:
    resumed = under(unpatched, patched_code, length)
    assert resumed.run() == ["old"] * 3
    assert "patch.applied" not in resumed.types()
    assert_ends_alike(resumed)


def test_a_run_that_has_not_come_to_the_change_takes_the_new_way() -> None:
    resumed = under(unpatched, patched_code, 2)
    assert resumed.run() == ["new"] * 3
    assert_replays(resumed)


def test_a_patch_after_the_last_command_of_an_old_history_is_old() -> None:
    async def old() -> str:
        task = asyncio.ensure_future(a())
        await asyncio.sleep(0)
        await task
        await b()
        return "old"

    async def new() -> str:
        task = asyncio.ensure_future(a())
        await asyncio.sleep(0)
        is_new = patched("later")
        await task
        await (c() if is_new else b())
        return "new" if is_new else "old"

    resumed = under(old, new, 4)
    assert resumed.run() == "old"
    assert_ends_alike(resumed)


def test_a_patch_at_the_very_end_of_a_history_is_new_and_recorded_first() -> None:
    async def old() -> None:
        task = asyncio.ensure_future(a())
        await asyncio.sleep(0)
        await task

    async def new() -> bool:
        task = asyncio.ensure_future(a())
        await asyncio.sleep(0)
        is_new = patched("later")
        await task
        return is_new

    resumed = under(old, new, 2)
    assert resumed.types() == ["workflow.started", "step.started", "patch.applied"]
    assert resumed.run() is True
    assert_replays(resumed)


def test_two_patches_are_told_apart() -> None:
    async def first() -> list[bool]:
        told = [patched("one")]
        await a()
        return told

    async def second() -> list[bool]:
        told = [patched("one"), patched("two")]
        await a()
        return told

    resumed = under(first, second, 3)
    assert resumed.run() == [True, False]
    assert_ends_alike(resumed)


def test_a_patch_under_a_condition_that_replay_repeats_is_stable() -> None:
    async def workflow() -> list[bool]:
        told = []
        for _ in range(6):
            if get_context().random() < 0.5:
                told.append(patched("half"))
            await a()
        return told

    simulation = Simulation(workflow)
    assert set(simulation.run()) == {True}
    assert_replays(simulation)
