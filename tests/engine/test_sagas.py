"""What a run has done is undone, the last first, when it fails or is cancelled; once, whatever crashes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from pyworkflow_ray.authoring.context import compensations, get_context, shield
from pyworkflow_ray.authoring.steps import Step, run_step, step
from pyworkflow_ray.authoring.timers import sleep
from pyworkflow_ray.engine.events import StepScheduled, WorkflowCancelled
from pyworkflow_ray.engine.limits import Limits
from pyworkflow_ray.exceptions import CancellationError, WorkflowTimeoutError
from tests.engine.simulator import Simulation, WorkerKilled, assert_replays, finished, outcome_of

done: list[str] = []


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    done.clear()
    yield
    done.clear()


@step(name="saga_cancel_flight")
def cancel_flight(city: str) -> None:
    done.append(f"flight to {city} cancelled")


@step(name="saga_book_flight", compensate=cancel_flight)
def book_flight(city: str) -> str:
    done.append(f"flight to {city}")
    return f"F-{city}"


@step(name="saga_cancel_hotel")
def cancel_hotel(city: str, nights: int = 1, *, result: str) -> None:
    done.append(f"{result} cancelled")


@step(name="saga_book_hotel", compensate=cancel_hotel)
async def book_hotel(city: str, nights: int = 1) -> str:
    done.append(f"hotel in {city}")
    return f"H-{city}-{nights}"


@step(name="saga_fail", max_retries=0)
def fail(text: str = "no") -> None:
    raise LookupError(text)


@step(name="saga_echo")
def echo(x: Any = None) -> Any:
    done.append(str(x))
    return x


async def trip(city: str = "Rome", ending: str = "fails") -> Any:
    booked = [await book_flight(city), await book_hotel(city, 3)]
    match ending:
        case "fails":
            await fail("no car")
        case "raises":
            raise KeyError("own")
        case "waits":
            await sleep("1h")
        case "is content":
            compensations().clear()
            await fail("too late to matter")
    return booked


BOOKED = ["flight to Rome", "hotel in Rome"]
UNDONE = ["H-Rome-3 cancelled", "flight to Rome cancelled"]


# --- when ---------------------------------------------------------------------------------------------


def test_a_run_that_fails_undoes_what_it_did_the_last_first() -> None:
    simulation = Simulation(trip)
    with pytest.raises(LookupError, match="no car"):
        finished(simulation)
    assert done == BOOKED + UNDONE
    steps = [event.step_id for event in simulation.events(StepScheduled)]
    assert steps[-2:] == ["saga_cancel_hotel#1", "saga_cancel_flight#1"]


def test_a_run_whose_own_code_raises_undoes_what_it_did() -> None:
    with pytest.raises(KeyError, match="own"):
        finished(Simulation(trip, ending="raises"))
    assert done == BOOKED + UNDONE


def test_a_run_that_is_cancelled_undoes_what_it_did() -> None:
    simulation = Simulation(trip, ending="waits")
    simulation.start()
    while len(done) < 2 or simulation.steps:
        simulation.advance()
    simulation.cancel("changed my mind")
    outcome_of(simulation)
    assert_replays(simulation)
    assert simulation.history[-1].event == WorkflowCancelled(reason="changed my mind")
    assert done == BOOKED + UNDONE


def test_a_run_whose_time_is_over_undoes_what_it_did() -> None:
    simulation = Simulation(trip, ending="waits", limits=Limits(max_duration=timedelta(minutes=1)))
    with pytest.raises(WorkflowTimeoutError):
        finished(simulation)
    assert done == BOOKED + UNDONE


def test_a_run_that_ends_well_undoes_nothing() -> None:
    assert finished(Simulation(trip, ending="")) == ["F-Rome", "H-Rome-3"]
    assert done == BOOKED


def test_a_failure_that_the_code_catches_undoes_nothing() -> None:
    async def workflow() -> Any:
        await book_flight("Oslo")
        try:
            await fail()
        except LookupError:
            return "went on"

    assert finished(Simulation(workflow)) == "went on"
    assert done == ["flight to Oslo"]


def test_a_request_that_the_code_swallows_undoes_nothing() -> None:
    async def workflow() -> Any:
        await book_flight("Oslo")
        try:
            await sleep("1h")
        except CancellationError:
            return "went on"

    simulation = Simulation(workflow)
    simulation.start()
    simulation.advance()
    simulation.cancel()
    assert finished(simulation) == "went on"
    assert done == ["flight to Oslo"]


def test_what_is_to_stay_is_forgotten() -> None:
    with pytest.raises(LookupError, match="too late to matter"):
        finished(Simulation(trip, ending="is content"))
    assert done == BOOKED


def test_a_step_that_fails_is_not_undone() -> None:
    @step(name="saga_half", max_retries=0, compensate=cancel_flight)
    def half(city: str) -> None:
        raise OSError("overbooked")

    async def workflow() -> Any:
        await book_flight("Oslo")
        await half("Rome")

    with pytest.raises(OSError, match="overbooked"):
        finished(Simulation(workflow))
    assert done == ["flight to Oslo", "flight to Oslo cancelled"]


def test_a_step_that_was_let_go_is_not_undone() -> None:
    async def workflow() -> Any:
        try:
            async with asyncio.timeout(5):
                await book_flight("Oslo")
        except TimeoutError:
            pass
        await fail()

    simulation = Simulation(workflow)
    simulation.start()
    simulation.pass_time(10)
    with pytest.raises(LookupError):
        finished(simulation)
    assert done == []


def test_a_step_that_completes_as_the_last_of_a_cancelled_run_is_undone() -> None:
    async def workflow() -> Any:
        await book_flight("Oslo")
        await sleep("1h")

    simulation = Simulation(workflow)
    simulation.start()
    simulation.cancel()
    outcome_of(simulation)
    assert_replays(simulation)
    assert done == ["flight to Oslo", "flight to Oslo cancelled"]


def test_steps_at_once_are_undone_in_the_reverse_order_of_their_ends() -> None:
    async def workflow() -> Any:
        await asyncio.gather(*(book_flight(city) for city in ("Oslo", "Rome", "Bonn")))
        await fail()

    for seed in range(4):
        done.clear()
        with pytest.raises(LookupError):
            finished(Simulation(workflow, seed=seed))
        booked, undone = done[:3], done[3:]
        assert undone == [f"{one} cancelled" for one in reversed(booked)]


def test_only_what_was_done_by_then_is_undone() -> None:
    async def workflow() -> Any:
        await book_flight("Oslo")
        await fail()
        await book_flight("Rome")

    with pytest.raises(LookupError):
        finished(Simulation(workflow))
    assert done == ["flight to Oslo", "flight to Oslo cancelled"]


# --- how ----------------------------------------------------------------------------------------------


def test_the_result_is_passed_where_there_is_a_parameter_for_it() -> None:
    async def workflow() -> Any:
        await book_hotel("Bonn", nights=2)
        await fail()

    with pytest.raises(LookupError):
        finished(Simulation(workflow))
    assert done == ["hotel in Bonn", "H-Bonn-2 cancelled"]


def test_a_compensation_may_be_added_by_hand() -> None:
    async def workflow() -> Any:
        compensations().add(echo, "first")
        get_context().compensations().add(echo, x="second")
        await fail()

    with pytest.raises(LookupError):
        finished(Simulation(workflow))
    assert done == ["second", "first"]


def test_a_compensation_may_be_a_plain_function_of_a_step() -> None:
    def undo(x: int, result: int) -> None:
        done.append(f"undo {x} {result}")

    @step(name="saga_plain", compensate=undo)
    def plain(x: int) -> int:
        return x + 1

    async def workflow() -> Any:
        await plain(1)
        await fail()

    simulation = Simulation(workflow)
    with pytest.raises(LookupError):
        finished(simulation)
    assert done == ["undo 1 2"]
    assert simulation.calls[-1] == ("undo#1", 1)


def test_a_plain_compensation_may_have_a_keyword_named_like_an_option() -> None:
    def undo(*, name: str) -> None:
        done.append(f"undo {name}")

    @step(name="saga_keyword", compensate=undo)
    def named(*, name: str) -> None:
        pass

    async def workflow() -> Any:
        await named(name="Ada")
        await fail()

    with pytest.raises(LookupError):
        finished(Simulation(workflow))
    assert done == ["undo Ada"]


def test_a_compensation_may_be_given_for_one_call() -> None:
    async def workflow() -> Any:
        await echo.options(compensate=cancel_flight)("Oslo")
        await book_flight.options(compensate=None)("Rome")
        await run_step(lambda city: city, "Bonn", name="saga_lambda", compensate=cancel_flight)
        await fail()

    with pytest.raises(LookupError):
        finished(Simulation(workflow))
    assert done == ["Oslo", "flight to Rome", "flight to Bonn cancelled", "flight to Oslo cancelled"]


def test_a_step_class_may_have_a_compensation() -> None:
    class Charge(Step):
        name = "saga_charge"
        compensate = cancel_flight

        async def execute(self, city: str) -> str:
            done.append(f"charged for {city}")
            return city

    async def workflow() -> Any:
        await Charge()("Oslo")
        await fail()

    with pytest.raises(LookupError):
        finished(Simulation(workflow))
    assert done == ["charged for Oslo", "flight to Oslo cancelled"]


def test_a_compensation_is_tried_again_as_a_step_is() -> None:
    @step(name="saga_flaky_undo", retry_delay=1)
    def flaky(x: int) -> None:
        done.append("tried")
        if len(done) == 1:
            raise WorkerKilled
        if len(done) == 2:
            raise OSError("busy")

    async def workflow() -> Any:
        compensations().add(flaky, 1)
        await fail()

    with pytest.raises(LookupError):
        finished(Simulation(workflow))
    assert done == ["tried"] * 3


def test_a_compensation_that_fails_does_not_stop_the_others_and_is_told_in_a_note() -> None:
    async def workflow() -> Any:
        compensations().add(echo, "first")
        compensations().add(fail, "stuck")
        compensations().add(echo, "third")
        raise KeyError("own")

    with pytest.raises(KeyError, match="own") as raised:
        finished(Simulation(workflow))
    assert done == ["third", "first"]
    assert any("A compensation failed too: LookupError: stuck" in note for note in raised.value.__notes__)


def test_a_compensation_that_fails_after_a_timeout_is_told_in_a_note_too() -> None:
    async def workflow() -> Any:
        compensations().add(fail, "stuck")
        await sleep("1h")

    simulation = Simulation(workflow, limits=Limits(max_duration=timedelta(minutes=1)))
    with pytest.raises(WorkflowTimeoutError) as raised:
        finished(simulation)
    assert any("A compensation failed too: LookupError: stuck" in note for note in raised.value.__notes__)


def test_a_compensation_whose_call_does_not_fit_does_not_stop_the_others() -> None:
    async def workflow() -> Any:
        compensations().add(echo, "first")
        compensations().add(cancel_flight, "too", "many", "arguments")
        raise KeyError("own")

    with pytest.raises(KeyError) as raised:
        finished(Simulation(workflow))
    assert done == ["first"]
    assert any("A compensation failed too: StepValidationError" in note for note in raised.value.__notes__)


def test_what_a_compensation_waits_for_is_awaited() -> None:
    async def undo_slowly(x: int) -> None:
        await sleep(60)
        await echo(x)

    async def workflow() -> Any:
        compensations().add(undo_slowly, 1)
        compensations().add(undo_slowly, 2)
        raise KeyError("own")

    with pytest.raises(KeyError):
        finished(Simulation(workflow))
    assert done == ["2", "1"]


# --- crashes and requests meanwhile -------------------------------------------------------------------


def test_a_saga_goes_on_after_a_crash_at_any_place_and_undoes_each_step_once() -> None:
    simulation = Simulation(trip)
    outcome = outcome_of(simulation)
    for length in range(1, len(simulation.history) + 1):
        resumed = simulation.resumed(length)
        recorded = sum(kind == "step.completed" for kind in resumed.types())
        done.clear()
        assert outcome_of(resumed) == outcome
        assert done == (BOOKED + UNDONE)[recorded:]
        assert_replays(resumed)


def test_a_request_does_not_stop_the_undoing_of_a_cancelled_run() -> None:
    simulation = Simulation(trip, ending="waits")
    simulation.start()
    while len(done) < 2 or simulation.steps:
        simulation.advance()
    simulation.cancel("first")
    simulation.end_step("saga_cancel_hotel#1")
    simulation.cancel("second")
    outcome_of(simulation)
    assert_replays(simulation)
    assert simulation.history[-1].event == WorkflowCancelled(reason="first")
    assert done == BOOKED + UNDONE


def test_a_request_does_not_stop_the_undoing_of_a_failed_run() -> None:
    simulation = Simulation(trip)
    simulation.start()
    while "saga_cancel_hotel#1" not in simulation.steps:
        simulation.advance()
    simulation.cancel("too late")
    outcome_of(simulation)
    assert_replays(simulation)
    assert done == BOOKED + UNDONE


def test_a_run_that_failed_has_failed_whatever_comes_while_it_undoes() -> None:
    simulation = Simulation(trip)
    simulation.start()
    while "saga_cancel_hotel#1" not in simulation.steps:
        simulation.advance()
    simulation.cancel("too late")
    with pytest.raises(LookupError, match="no car"):
        finished(simulation)


def test_a_request_within_a_shield_undoes_what_the_shielded_block_did() -> None:
    async def workflow() -> Any:
        async with shield():
            await book_flight("Oslo")
            await book_hotel("Oslo", 1)

    simulation = Simulation(workflow)
    simulation.start()
    simulation.cancel()
    outcome_of(simulation)
    assert_replays(simulation)
    assert simulation.types()[-1] == "workflow.cancelled"
    assert done == ["flight to Oslo", "hotel in Oslo", "H-Oslo-1 cancelled", "flight to Oslo cancelled"]


def test_compensations_that_diverge_from_the_history_are_told() -> None:
    from pyworkflow_ray.exceptions import NonDeterminismError

    async def old() -> Any:
        await book_flight("Rome")
        await fail()

    async def new() -> Any:
        await book_flight.options(compensate=None)("Rome")
        await fail()

    simulation = Simulation(old)
    outcome_of(simulation)
    simulation.function = new
    with pytest.raises(
        NonDeterminismError, match=r"recorded StepScheduled\('saga_cancel_flight#1'\), now FailRun"
    ):
        simulation.resumed()


def test_a_plain_function_that_is_to_undo_something_is_a_step() -> None:
    def undo(x: int) -> None:
        done.append(f"plain {x}")

    async def workflow() -> Any:
        compensations().add(undo, 1)
        raise KeyError("own")

    simulation = Simulation(workflow)
    with pytest.raises(KeyError):
        finished(simulation)
    assert done == ["plain 1"]
    assert_replays(simulation)
