"""The same history gives the same run: what code may rely on when it is replayed."""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from pyworkflow_ray.authoring.context import get_context, set_attributes, side_effect
from pyworkflow_ray.authoring.steps import step
from pyworkflow_ray.authoring.timers import sleep
from pyworkflow_ray.engine.events import StepScheduled, WorkflowFailed
from pyworkflow_ray.exceptions import SerializationError, StepFailedError, WorkflowError, WorkflowFailedError
from tests.engine.simulator import START, VALUES, Simulation, assert_replays, outcome_of


@step(name="rep_echo")
def echo(x: Any = None) -> Any:
    return x


@step(name="rep_fail", max_retries=0)
def fail(text: str = "no") -> None:
    raise ValueError(text)


def run(workflow: Callable[..., Any], *args: Any, seed: int = 0) -> Any:
    simulation = Simulation(workflow, *args, seed=seed)
    outcome_of(simulation)
    assert_replays(simulation)
    return simulation.result()


def resumed_everywhere(simulation: Simulation) -> list[Any]:
    """What the run comes to when it is cut at each place and goes on in another process."""
    return [simulation.resumed(n, seed=n).run() for n in range(1, len(simulation.history) + 1)]


# --- steps --------------------------------------------------------------------------------------------


def test_two_equal_calls_are_two_steps() -> None:
    async def workflow() -> list[Any]:
        return [await echo(1), await echo(1)]

    simulation = Simulation(workflow)
    assert simulation.run() == [1, 1]
    assert simulation.calls == [("rep_echo#1", 1), ("rep_echo#2", 1)]


@pytest.mark.parametrize("seed", range(4))
def test_equal_calls_of_a_gather_keep_their_ids_whoever_ends_first(seed: int) -> None:
    async def workflow() -> list[Any]:
        async def twice(x: int) -> list[Any]:
            return [await echo(x), await echo(x)]

        return await asyncio.gather(*(twice(i) for i in range(4)))

    simulation = Simulation(workflow, seed=seed)
    assert simulation.run() == [[i, i] for i in range(4)]
    first = [r.event for r in simulation.history if isinstance(r.event, StepScheduled)][:4]
    assert [(s.step_id, VALUES.decode(s.args)) for s in first] == [
        (f"rep_echo#{i + 1}", [i]) for i in range(4)
    ]
    assert_replays(simulation)


def test_a_step_that_failed_for_good_and_was_caught_does_not_run_again() -> None:
    async def workflow() -> str:
        try:
            await fail()
        except ValueError:
            await echo(1)
            await sleep(5)
            return "caught"
        return "passed"

    simulation = Simulation(workflow)
    assert simulation.run() == "caught"
    for length in range(4, len(simulation.history) + 1):
        resumed = simulation.resumed(length)
        assert resumed.run() == "caught"
        assert ("rep_fail#1", 1) not in resumed.calls


def test_completed_steps_do_not_run_again_after_a_restart() -> None:
    async def workflow() -> int:
        return sum([await echo(i) for i in range(4)])

    simulation = Simulation(workflow)
    simulation.run()
    resumed = simulation.resumed(6)
    assert resumed.run() == 6
    assert resumed.calls == [("rep_echo#3", 1), ("rep_echo#4", 1)]


def test_except_exception_swallows_no_control_flow() -> None:
    async def workflow() -> list[str]:
        told = []
        for i in range(3):
            try:
                await sleep(60)
                await echo(i)
                async with asyncio.timeout(60):
                    await echo(i)
            except Exception as error:
                told.append(repr(error))
        return told

    assert run(workflow) == []


def test_a_step_may_be_named_for_one_call() -> None:
    async def workflow() -> list[Any]:
        return [await echo.options(step_id="first")(1), await echo(2), await echo.options(name="other")(3)]

    simulation = Simulation(workflow)
    assert simulation.run() == [1, 2, 3]
    assert [call[0] for call in simulation.calls] == ["first", "rep_echo#1", "other#1"]
    assert_replays(simulation)


def test_a_step_id_that_is_used_twice_is_refused_before_anything_is_recorded() -> None:
    async def workflow() -> str:
        await echo.options(step_id="mine")(1)
        try:
            await echo.options(step_id="mine")(2)
        except ValueError as error:
            return str(error)
        return ""

    simulation = Simulation(workflow)
    assert "'mine' is used twice" in simulation.run()
    assert simulation.types().count("step.started") == 1
    assert_replays(simulation)


def test_generated_step_ids_step_around_given_ones() -> None:
    async def workflow() -> None:
        await echo.options(step_id="rep_echo#2")(0)
        await echo(1)
        await echo(2)

    simulation = Simulation(workflow)
    simulation.run()
    assert [call[0] for call in simulation.calls] == ["rep_echo#2", "rep_echo#1", "rep_echo#3"]
    assert_replays(simulation)


def test_timers_and_side_effects_do_not_count_among_the_steps_of_their_name() -> None:
    async def workflow() -> None:
        await sleep(1, name="rep_echo")
        side_effect(lambda: 1, name="rep_echo")
        await echo(1)

    simulation = Simulation(workflow)
    simulation.run()
    assert simulation.calls == [("rep_echo#1", 1)]
    assert_replays(simulation)


def test_an_argument_that_cannot_be_stored_is_refused_at_every_replay() -> None:
    async def workflow() -> list[str]:
        told = []
        for value in (threading.Lock(), 1):
            try:
                await echo(value)
            except SerializationError as error:
                told.append(str(error)[:40])
        await sleep(1)
        return told

    simulation = Simulation(workflow)
    assert simulation.run() == ["The arguments of step 'rep_echo#1' canno"]
    assert simulation.types().count("step.started") == 1
    assert_replays(simulation)


def test_arguments_are_those_of_the_call_whatever_becomes_of_them_later() -> None:
    async def workflow() -> list[Any]:
        items = [1]
        task = asyncio.ensure_future(echo(items))
        await asyncio.sleep(0)
        items.append(2)
        return await task

    assert run(workflow) == [1]


def test_a_result_that_cannot_be_stored_fails_the_run_and_replays_as_that() -> None:
    async def workflow() -> Any:
        await echo(1)
        return threading.Lock()

    simulation = Simulation(workflow)
    with pytest.raises(SerializationError, match="The workflow's result"):
        simulation.run()
    assert_replays(simulation)


def test_what_a_workflow_raises_is_what_its_run_fails_with() -> None:
    async def workflow() -> None:
        await echo(1)
        raise KeyError("lost")

    simulation = Simulation(workflow)
    with pytest.raises(KeyError, match="lost"):
        simulation.run()
    assert isinstance(simulation.history[-1].event, WorkflowFailed)
    assert_replays(simulation)


def test_steps_in_flight_at_the_end_are_cancelled_in_order() -> None:
    async def workflow() -> str:
        for _ in range(3):
            asyncio.ensure_future(echo(1))  # noqa: RUF006
        await asyncio.sleep(0)
        raise RuntimeError("over")

    simulation = Simulation(workflow)
    with pytest.raises(RuntimeError, match="over"):
        simulation.run()
    assert simulation.types()[-4:] == ["step.cancelled"] * 3 + ["workflow.failed"]
    assert_replays(simulation)


def test_a_step_whose_task_is_cancelled_before_it_began_leaves_nothing() -> None:
    async def workflow() -> str:
        task = asyncio.ensure_future(echo(1))
        task.cancel()
        await sleep(1)
        return "done"

    simulation = Simulation(workflow)
    assert simulation.run() == "done"
    assert "step.started" not in simulation.types()
    assert_replays(simulation)


# --- interruptions ------------------------------------------------------------------------------------


def test_an_interruption_counts_attempts_in_flight_as_lost() -> None:
    async def workflow() -> list[Any]:
        return await asyncio.gather(echo(1), echo(2))

    simulation = Simulation(workflow)
    simulation.start()
    simulation.interrupt()
    assert [p.attempt for p in simulation.execution.steps.values()] == [2, 2]
    assert [p.losses for p in simulation.execution.steps.values()] == [0, 0]
    resumed = simulation.resumed(len(simulation.history))
    assert [p.attempt for p in resumed.execution.steps.values()] == [2, 2]
    assert simulation.run() == [1, 2]
    assert_replays(simulation)


def test_an_interruption_leaves_an_attempt_that_waits_for_its_time() -> None:
    @step(name="rep_waits", retry_delay="1h")
    def failing() -> None:
        raise ValueError("no")

    async def workflow() -> None:
        await failing()

    simulation = Simulation(workflow)
    simulation.start()
    simulation.advance()
    simulation.interrupt()
    (pending,) = simulation.execution.steps.values()
    # Whoever drove the run before may still be there, and begin attempt 2 when it is due.
    assert pending.attempt == 3
    assert pending.retry_at is not None
    simulation.now = pending.retry_at
    simulation.interrupt()
    assert (pending.attempt, pending.retry_at) == (4, None)


def test_an_interruption_marks_a_step_that_must_not_run_twice_as_lost() -> None:
    @step(name="rep_once", idempotent=False)
    def once() -> None:
        pass

    async def workflow() -> None:
        await once()

    simulation = Simulation(workflow)
    simulation.start()
    assert not simulation.execution.steps["rep_once#1"].is_lost
    simulation.interrupt()
    for one in (simulation, simulation.resumed()):
        pending = one.execution.steps["rep_once#1"]
        assert (pending.is_lost, pending.attempt) == (True, 1)


# --- values -------------------------------------------------------------------------------------------


def test_now_is_the_time_of_the_last_event() -> None:
    async def workflow() -> list[datetime]:
        told = [get_context().now()]
        await sleep("1d")
        told.append(get_context().now())
        return told

    simulation = Simulation(workflow)
    began, later = simulation.run()
    assert timedelta(0) <= began - START < timedelta(seconds=1)
    assert timedelta(days=1) <= later - began < timedelta(days=1, seconds=1)
    assert resumed_everywhere(simulation)[2:] == [[began, later]] * (len(simulation.history) - 2)


def test_now_never_goes_back_when_a_hosts_clock_does() -> None:
    async def workflow() -> list[datetime]:
        told = [get_context().now()]
        await echo(1)
        told.append(get_context().now())
        return told

    simulation = Simulation(workflow)
    simulation.start()
    simulation.now -= timedelta(hours=3)
    began, later = simulation.run()
    assert later >= began


def test_random_numbers_are_the_same_in_every_replay_and_others_in_other_runs() -> None:
    async def workflow() -> list[Any]:
        ctx = get_context()
        told: list[Any] = [ctx.random(), str(ctx.uuid4()), ctx.rng.randint(1, 10**9)]
        await echo(1)
        return [*told, ctx.random(), str(ctx.uuid4())]

    simulation = Simulation(workflow)
    told = simulation.run()
    assert resumed_everywhere(simulation) == [told] * len(simulation.history)
    assert uuid.UUID(told[1]).version == 4
    assert Simulation(workflow, run_id="run_0000000000000002").run() != told


def test_a_side_effect_runs_once() -> None:
    calls: list[int] = []

    async def workflow() -> list[Any]:
        first = side_effect(lambda: (calls.append(1), len(calls))[1])
        await echo(1)
        return [first, side_effect(lambda: (calls.append(1), len(calls))[1])]

    simulation = Simulation(workflow)
    assert simulation.run() == [1, 2]
    assert simulation.resumed(len(simulation.history)).result() == [1, 2]
    assert len(calls) == 2


def test_a_side_effect_that_raises_raises_the_same_in_a_replay() -> None:
    class OddError(Exception):
        def __init__(self, code: int) -> None:
            super().__init__(f"code {code}")
            self.lock = threading.Lock()

    def raising(error: Callable[[], Exception]) -> None:
        raise error()

    async def workflow() -> list[str]:
        told = []
        for error in (lambda: OSError(2, "gone"), lambda: OddError(3)):
            try:
                side_effect(lambda error=error: raising(error))  # type: ignore[misc]
            except Exception as caught:
                told.append(f"{type(caught).__name__} {caught.args}")
            await echo(1)
        return told

    simulation = Simulation(workflow)
    told = simulation.run()
    assert told[0] == "FileNotFoundError (2, 'gone')"
    assert told[1] == "OddError ('code 3',)"
    assert resumed_everywhere(simulation) == [told] * len(simulation.history)


def test_a_side_effect_that_gives_what_cannot_be_stored_fails_alike_in_a_replay() -> None:
    async def workflow() -> str:
        try:
            side_effect(threading.Lock)
        except SerializationError as error:
            await echo(1)
            return str(error)[:30]
        return "stored"

    simulation = Simulation(workflow)
    told = simulation.run()
    assert told.startswith("Side effect 'side_effect#1'")
    assert resumed_everywhere(simulation) == [told] * len(simulation.history)


def test_what_a_side_effect_takes_from_the_run_is_not_missing_in_a_replay() -> None:
    async def workflow() -> list[Any]:
        ctx = get_context()
        drawn = side_effect(ctx.random)
        await echo(1)
        return [drawn, ctx.random()]

    simulation = Simulation(workflow)
    told = simulation.run()
    assert resumed_everywhere(simulation) == [told] * len(simulation.history)


def test_a_side_effect_runs_outside_of_the_run() -> None:
    async def workflow() -> str:
        try:
            side_effect(get_context)
        except WorkflowError as error:
            return str(error)[:24]
        return "inside"

    assert run(workflow) == "There is no context here"


@pytest.mark.parametrize("function", [echo, lambda: None])
def test_a_side_effect_takes_a_plain_function(function: Any) -> None:
    async def asynchronous() -> None:
        pass

    async def workflow() -> None:
        side_effect(function if function is echo else asynchronous)

    with pytest.raises(WorkflowError, match="plain function"):
        run(workflow)


def test_attributes_are_merged_and_known_after_a_replay() -> None:
    async def workflow() -> None:
        set_attributes(customer="c1", tier=1)
        await echo(1)
        set_attributes(tier=2)
        await echo(2)

    simulation = Simulation(workflow)
    simulation.run()
    assert simulation.execution.attributes == {"customer": "c1", "tier": 2}
    assert simulation.resumed(4).execution.attributes["tier"] in (1, 2)
    assert simulation.resumed(len(simulation.history)).execution.attributes == {"customer": "c1", "tier": 2}


# --- telling a replay ---------------------------------------------------------------------------------


def test_logs_are_written_once_over_a_run_and_its_replays() -> None:
    from loguru import logger

    lines: list[str] = []

    async def workflow() -> None:
        ctx = get_context()
        ctx.log("began")
        for i in range(3):
            await echo(i)
            ctx.log(f"after {i}")

    sink = logger.add(lambda message: lines.append(message.record["message"]), level="INFO")
    try:
        simulation = Simulation(workflow)
        simulation.run()
        assert lines == ["began", "after 0", "after 1", "after 2"]
        lines.clear()
        simulation.resumed(5).run()
        assert lines == ["after 2"]
        lines.clear()
        simulation.resumed(len(simulation.history))
        assert lines == []
    finally:
        logger.remove(sink)


def test_a_run_that_is_replayed_from_its_start_alone_is_not_replaying() -> None:
    seen: list[bool] = []

    async def workflow() -> None:
        seen.append(get_context().is_replaying)
        await echo(1)
        seen.append(get_context().is_replaying)

    simulation = Simulation(workflow)
    simulation.run()
    assert seen == [False, False]
    seen.clear()
    simulation.resumed(1).run()
    assert seen == [False, False]
    seen.clear()
    simulation.resumed(2).run()
    assert seen == [True, False]
    seen.clear()
    simulation.resumed(len(simulation.history))
    assert seen == [True, True]


def test_code_beyond_its_history_is_not_replaying() -> None:
    seen: list[bool] = []

    async def workflow() -> None:
        await echo(1)
        side_effect(lambda: 1)
        seen.append(get_context().is_replaying)

    simulation = Simulation(workflow)
    simulation.run()
    seen.clear()
    simulation.resumed(3)
    assert seen == [False]


def test_a_history_in_text_replays_to_the_same_result_from_every_place() -> None:
    async def workflow(n: int, *, name: str) -> dict[str, Any]:
        first = await echo(
            {"name": name, "at": datetime(2026, 1, 1, tzinfo=UTC), "raw": b"\x00", "t": (1, 2)}
        )
        await sleep("1h")
        rest = await asyncio.gather(*(echo(i) for i in range(n)))
        return {"first": first, "rest": rest}

    simulation = Simulation(workflow, 3, name="x")
    told = simulation.run()
    assert told["first"]["t"] == (1, 2)
    assert resumed_everywhere(simulation) == [told] * len(simulation.history)
    assert_replays(simulation)


def test_a_failure_that_cannot_be_rebuilt_is_told_by_its_type_and_text() -> None:
    @step(name="rep_exit", max_retries=0)
    def leave() -> None:
        raise SystemExit(3)

    async def workflow() -> None:
        await leave()

    simulation = Simulation(workflow)
    with pytest.raises((StepFailedError, WorkflowFailedError), match="SystemExit: 3"):
        simulation.run()
    assert_replays(simulation)
