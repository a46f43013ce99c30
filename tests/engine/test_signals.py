"""Signals are kept in order until the code reads them; queries look at a run and change nothing."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from pyworkflow_ray.authoring.context import get_context, receive, set_query_handler, shield, side_effect
from pyworkflow_ray.authoring.hooks import hook
from pyworkflow_ray.authoring.steps import step
from pyworkflow_ray.authoring.timers import sleep
from pyworkflow_ray.engine.events import SignalReceived
from pyworkflow_ray.engine.races import FIRST_COMPLETED, wait
from pyworkflow_ray.exceptions import CancellationError, WorkflowError
from tests.engine.simulator import Simulation, assert_replays, finished, outcome_of


@step(name="signals_echo")
def echo(x: Any = None) -> Any:
    return x


def begun(workflow: Any, *args: Any, **options: Any) -> Simulation:
    simulation = Simulation(workflow, *args, **options)
    simulation.start()
    return simulation


# --- order --------------------------------------------------------------------------------------------


def test_a_signals_payload_is_what_receiving_it_gives() -> None:
    async def workflow() -> Any:
        return await receive("price")

    simulation = begun(workflow)
    simulation.signal("price", {"eur": (1, 2)})
    assert finished(simulation) == {"eur": (1, 2)}
    assert simulation.types() == ["workflow.started", "signal.received", "workflow.completed"]


def test_signals_that_come_before_they_are_read_are_kept_in_order() -> None:
    async def workflow() -> Any:
        await hook("go")
        return [await receive("price") for _ in range(3)]

    simulation = begun(workflow)
    for price in (3, 1, 2):
        simulation.signal("price", price)
    simulation.answer("go#1", None)
    assert finished(simulation) == [3, 1, 2]


def test_signals_that_come_while_they_are_waited_for_are_given_one_by_one() -> None:
    async def workflow() -> Any:
        return [await echo(await receive("price")) for _ in range(3)]

    simulation = begun(workflow)
    for price in (3, 1, 2):
        simulation.signal("price", price)
    assert finished(simulation) == [3, 1, 2]


def test_signals_of_several_names_wait_each_in_its_own_line() -> None:
    async def workflow() -> Any:
        return [await receive("b"), await receive("a"), await receive("a"), await receive("b")]

    simulation = begun(workflow)
    for name, payload in (("a", 1), ("b", 2), ("a", 3), ("c", 4), ("b", 5)):
        simulation.signal(name, payload)
    assert finished(simulation) == [2, 1, 3, 5]


def test_several_tasks_that_wait_for_one_name_are_served_in_turn() -> None:
    async def workflow() -> Any:
        return await asyncio.gather(*(receive("price") for _ in range(3)))

    simulation = begun(workflow)
    for price in "abc":
        simulation.signal("price", price)
    assert finished(simulation) == ["a", "b", "c"]


def test_async_for_reads_signal_after_signal() -> None:
    async def workflow() -> Any:
        told = []
        async for price in receive("price"):
            told.append(await echo(price))
            if price == "last":
                break
        return [*told, await receive("price")]

    simulation = begun(workflow)
    for price in (1, 2, "last", "left"):
        simulation.signal("price", price)
    assert finished(simulation) == [1, 2, "last", "left"]


def test_a_signal_that_nobody_reads_does_no_harm() -> None:
    async def workflow() -> Any:
        return await echo(await hook("go"))

    simulation = begun(workflow, answers={"go": 5})
    simulation.signal("noise", 1)
    assert finished(simulation) == 5


def test_signals_are_there_after_a_restart_as_they_were() -> None:
    async def workflow() -> Any:
        first = await receive("price")
        await hook("go")
        return [first, await receive("price"), await receive("price")]

    simulation = begun(workflow)
    for price in (1, 2, 3):
        simulation.signal("price", price)
    for length in range(1, len(simulation.history) + 1):
        resumed = simulation.resumed(length)
        for price in range(1 + len(resumed.events(SignalReceived)), 4):
            resumed.signal("price", price)
        resumed.answer("go#1", None)
        assert finished(resumed) == [1, 2, 3]


# --- races --------------------------------------------------------------------------------------------


def test_a_wait_for_a_signal_that_times_out_loses_nothing() -> None:
    async def workflow() -> Any:
        told: list[Any] = []
        while len(told) < 4:
            try:
                told.append(await asyncio.wait_for(receive("price"), 5))
            except TimeoutError:
                told.append("timeout")
        return told

    simulation = begun(workflow)
    simulation.pass_time(6)
    simulation.signal("price", 1)
    simulation.pass_time(6)
    simulation.signal("price", 2)
    assert finished(simulation) == ["timeout", 1, "timeout", 2]


def test_a_signal_that_comes_just_after_the_timeout_is_given_to_the_next_who_asks() -> None:
    async def workflow() -> Any:
        try:
            async with asyncio.timeout(5):
                await receive("price")
        except TimeoutError:
            await hook("go")
        return await receive("price")

    simulation = begun(workflow)
    simulation.pass_time(6)
    simulation.signal("price", "late")
    simulation.answer("go#1", None)
    assert finished(simulation) == "late"


def test_the_loser_of_a_race_of_receivers_leaves_its_signal_to_others() -> None:
    async def workflow() -> Any:
        done, pending = await wait([receive("a"), receive("b")], return_when=FIRST_COMPLETED)
        for future in pending:
            future.cancel()
        return [await future for future in done] + [await receive("b"), await receive("a")]

    simulation = begun(workflow)
    for name, payload in (("a", 1), ("b", 2), ("a", 3)):
        simulation.signal(name, payload)
    assert finished(simulation) == [1, 2, 3]


def test_a_receiver_that_is_cancelled_before_its_turn_passes_its_signal_on() -> None:
    async def workflow() -> Any:
        waits = [asyncio.ensure_future(receive("price")) for _ in range(3)]
        await hook("go")
        waits[0].cancel()
        return await asyncio.gather(*waits[1:])

    simulation = begun(workflow)
    simulation.answer("go#1", None)
    simulation.signal("price", "a")
    simulation.signal("price", "b")
    assert finished(simulation) == ["a", "b"]


@pytest.mark.parametrize("seed", range(4))
def test_a_signal_raced_with_steps_and_timers_has_a_recorded_winner(seed: int) -> None:
    async def workflow() -> Any:
        calls = [receive("stop"), echo("step"), sleep(0.001)]
        done, pending = await wait(calls, return_when=FIRST_COMPLETED)
        for future in pending:
            future.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        return [await echo(await future) for future in done]

    simulation = begun(workflow, seed=seed)
    if seed % 2:
        simulation.signal("stop", "signal")
        assert finished(simulation) == ["signal"]
    else:
        assert finished(simulation) in (["step"], [None])


def test_a_loop_of_commands_and_ticks_keeps_their_order() -> None:
    async def workflow() -> Any:
        told: list[Any] = []

        async def ticking() -> None:
            while True:
                await sleep(10)
                told.append("tick")

        ticker = asyncio.ensure_future(ticking())
        async for command in receive("command"):
            if command == "stop":
                break
            told.append(await echo(command))
        ticker.cancel()
        return told

    simulation = begun(workflow)
    for command in ("a", None, "b", "stop"):
        if command is None:
            simulation.pass_time(11)
        else:
            simulation.signal("command", command)
            while simulation.steps:
                simulation.end_step(simulation.steps[0])
    assert finished(simulation) == ["a", "tick", "b"]


# --- cancelling ---------------------------------------------------------------------------------------


def test_a_signal_that_came_before_the_request_is_still_there_for_the_clean_up() -> None:
    async def workflow() -> Any:
        try:
            await sleep("1h")
        except CancellationError:
            async with shield():
                return await receive("last words")

    simulation = begun(workflow)
    simulation.signal("last words", "goodbye")
    simulation.cancel()
    assert finished(simulation) == "goodbye"


def test_a_request_at_a_receiver_takes_no_signal_with_it() -> None:
    async def workflow() -> Any:
        try:
            await receive("price")
        except CancellationError:
            return [await receive("price"), await receive("price")]

    simulation = begun(workflow)
    simulation.cancel()
    simulation.signal("price", 1)
    simulation.signal("price", 2)
    assert finished(simulation) == [1, 2]


# --- what is refused ----------------------------------------------------------------------------------


def test_receiving_needs_a_run_and_a_history() -> None:
    async def workflow() -> Any:
        return await receive("price")

    with pytest.raises(WorkflowError, match=r"receive\(\) belongs in the code of a workflow"):
        receive("price")
    simulation = Simulation(workflow)
    simulation.is_durable = False
    with pytest.raises(WorkflowError, match=r"receive\(\) needs a history"):
        simulation.run()


# --- queries ------------------------------------------------------------------------------------------


async def counting() -> Any:
    seen: list[Any] = []
    set_query_handler("seen", lambda: list(seen))
    set_query_handler("nth", lambda n, default=None: seen[n] if n < len(seen) else default)
    set_query_handler("broken", lambda: 1 // 0)
    async for price in receive("price"):
        seen.append(await echo(price))
        if price == "last":
            break
    return seen


def ask(simulation: Simulation, name: str, *args: Any, **kwargs: Any) -> Any:
    return simulation.execution.query(name, args, kwargs)


def test_a_query_reads_the_runs_state_at_any_time() -> None:
    simulation = begun(counting)
    assert ask(simulation, "seen") == []
    for number, price in enumerate(("a", "b")):
        simulation.signal("price", price)
        assert len(ask(simulation, "seen")) == number
        simulation.advance()
    assert ask(simulation, "seen") == ["a", "b"]
    assert [ask(simulation, "nth", 1), ask(simulation, "nth", 7, default="none")] == ["b", "none"]


def test_a_query_changes_no_history() -> None:
    asked, unasked = begun(counting), begun(counting)
    for simulation in (asked, unasked):
        for price in ("a", "last"):
            if simulation is asked:
                ask(simulation, "seen")
                with pytest.raises(ZeroDivisionError):
                    ask(simulation, "broken")
            simulation.signal("price", price)
            simulation.advance()
    assert asked.history == unasked.history
    assert finished(asked) == ["a", "last"]


def test_a_query_of_a_run_that_is_elsewhere_is_answered_by_a_replay() -> None:
    simulation = begun(counting)
    told = []
    for price in ("a", "last"):
        simulation.signal("price", price)
        simulation.advance()
    for length in range(1, len(simulation.history) + 1):
        told.append(ask(simulation.resumed(length), "seen"))
    assert told == [[], [], [], ["a"], ["a"], ["a"], ["a", "last"], ["a", "last"]]


def test_a_run_that_has_ended_answers_still() -> None:
    simulation = begun(counting)
    simulation.signal("price", "last")
    finished(simulation)
    assert ask(simulation, "seen") == ["last"]


def test_a_query_that_nobody_answers_says_which_are() -> None:
    with pytest.raises(WorkflowError, match="no query 'sean'; it answers 'seen', 'nth', 'broken'"):
        ask(begun(counting), "sean")

    async def mute() -> Any:
        await sleep("1h")

    with pytest.raises(WorkflowError, match="it answers none so far"):
        ask(begun(mute), "seen")


def test_a_query_is_outside_of_the_run() -> None:
    async def workflow() -> Any:
        set_query_handler("effect", lambda: side_effect(lambda: 1))
        set_query_handler("context", get_context)
        await sleep("1h")

    simulation = begun(workflow)
    for name in ("effect", "context"):
        with pytest.raises(WorkflowError):
            ask(simulation, name)
    outcome_of(simulation)
    assert_replays(simulation)


def test_a_query_handler_is_a_plain_function() -> None:
    async def asynchronous() -> None:
        pass

    async def workflow(function: Any) -> Any:
        set_query_handler("q", asynchronous if function == "coroutine function" else echo)

    for kind in ("coroutine function", "step"):
        with pytest.raises(WorkflowError, match="must be a plain function"):
            finished(Simulation(workflow, kind))


def test_the_last_handler_of_a_name_answers() -> None:
    async def workflow() -> Any:
        set_query_handler("stage", lambda: "first")
        await hook("a")
        set_query_handler("stage", lambda: "second")
        await hook("b")

    simulation = begun(workflow)
    assert ask(simulation, "stage") == "first"
    simulation.answer("a#1", 1)
    assert ask(simulation, "stage") == "second"


# --- histories that cannot be -------------------------------------------------------------------------


def test_a_signal_is_an_outcome_that_any_code_may_have_received() -> None:
    """New code that reads signals which the old code let lie goes on with them."""

    async def old() -> Any:
        await hook("go")
        return "old"

    async def new() -> Any:
        await hook("go")
        return await receive("price")

    simulation = begun(old)
    simulation.signal("price", 1)
    simulation.function = new
    resumed = simulation.resumed()
    resumed.answer("go#1", None)
    assert finished(resumed) == 1
    assert len(resumed.events(SignalReceived)) == 1
