"""Waiting for somebody: one payload for each hook, whoever else is waited for, and nothing twice."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from pydantic import BaseModel

from pyworkflow_ray.authoring.hooks import define_hook, hook
from pyworkflow_ray.authoring.steps import step
from pyworkflow_ray.authoring.timers import sleep
from pyworkflow_ray.engine.commands import CreateHook
from pyworkflow_ray.engine.events import HookCreated, HookDisposed, HookReceived, StepScheduled
from pyworkflow_ray.engine.races import FIRST_COMPLETED, as_completed, wait
from pyworkflow_ray.exceptions import (
    ConfigurationError,
    HookConflictError,
    HookExpiredError,
    HookValidationError,
    InvalidTokenError,
    NonDeterminismError,
    SerializationError,
    StepFailedError,
    WorkflowError,
)
from tests.engine.simulator import VALUES, Simulation, assert_replays, finished


@step(name="hook_echo")
def echo(x: Any = None) -> Any:
    return x


def begun(workflow: Any, *args: Any, **options: Any) -> Simulation:
    simulation = Simulation(workflow, *args, **options)
    simulation.start()
    return simulation


# --- payloads -----------------------------------------------------------------------------------------


def test_a_payload_is_what_the_hook_gives() -> None:
    async def workflow() -> Any:
        return await hook("approval")

    simulation = begun(workflow)
    assert simulation.hooks == ["approval#1"]
    simulation.answer("approval#1", {"by": "eve", "at": (1, 2)})
    assert finished(simulation) == {"by": "eve", "at": (1, 2)}
    assert simulation.types() == [
        "workflow.started",
        "hook.created",
        "hook.received",
        "workflow.completed",
    ]


def test_none_is_a_payload() -> None:
    async def workflow() -> Any:
        return [await hook("approval"), "went on"]

    simulation = begun(workflow)
    simulation.answer("approval#1", None)
    assert finished(simulation) == [None, "went on"]


def test_hooks_of_one_name_are_numbered_and_answered_each_by_itself() -> None:
    async def workflow() -> list[Any]:
        return [await hook("poll") for _ in range(3)]

    simulation = begun(workflow)
    for number in (1, 2, 3):
        assert simulation.hooks == [f"poll#{number}"]
        simulation.answer(f"poll#{number}", number)
    assert finished(simulation) == [1, 2, 3]


@pytest.mark.parametrize("seed", range(6))
def test_several_hooks_at_once_take_their_payloads_in_any_order(seed: int) -> None:
    async def workflow() -> list[Any]:
        return await asyncio.gather(*(hook(name) for name in "abcd"), echo("step"))

    simulation = Simulation(workflow, seed=seed, answers={name: name.upper() for name in "abcd"})
    assert finished(simulation) == ["A", "B", "C", "D", "step"]


@pytest.mark.parametrize("seed", range(4))
def test_what_follows_each_of_several_hooks_keeps_its_place_in_a_replay(seed: int) -> None:
    async def workflow() -> list[Any]:
        async def handled(name: str) -> Any:
            return await echo([name, await hook(name)])

        told = []
        async for done in as_completed([handled(name) for name in "abc"]):
            told.append(await done)
            await sleep(1)
        return sorted(told)

    simulation = Simulation(workflow, seed=seed, answers={name: name.upper() for name in "abc"})
    assert finished(simulation) == [["a", "A"], ["b", "B"], ["c", "C"]]


def test_a_payload_that_comes_before_the_code_waits_for_it_is_kept() -> None:
    async def workflow() -> list[Any]:
        waiting = asyncio.ensure_future(hook("early"))
        await sleep(60)
        return [await waiting, "later"]

    simulation = begun(workflow)
    simulation.answer("early#1", 5)
    assert finished(simulation) == [5, "later"]


# --- payloads of a type -------------------------------------------------------------------------------


class Decision(BaseModel):
    is_approved: bool
    amount: int = 0


@dataclass
class Point:
    x: int
    y: int = 0


Approval = define_hook("approval", Decision)


def test_a_typed_payload_is_rebuilt_as_its_type() -> None:
    async def workflow() -> Any:
        decision = await Approval()
        point = await hook("point", payload_schema=Point)
        return [repr(decision), repr(point)]

    simulation = begun(workflow)
    simulation.answer("approval#1", {"is_approved": True, "amount": "7"})
    simulation.answer("point#1", {"x": 3})
    assert finished(simulation) == ["Decision(is_approved=True, amount=7)", "Point(x=3, y=0)"]


def test_a_payload_that_is_of_its_type_already_is_taken_as_it_is() -> None:
    async def workflow() -> Any:
        return repr(await Approval())

    simulation = begun(workflow)
    simulation.answer("approval#1", Decision(is_approved=False, amount=3))
    assert finished(simulation) == "Decision(is_approved=False, amount=3)"


def test_a_payload_that_no_longer_fits_its_type_is_told_in_the_workflow() -> None:
    async def workflow() -> str:
        try:
            await Approval()
        except HookValidationError as error:
            await echo(1)
            return str(error)
        return "taken"

    simulation = begun(workflow)
    simulation.answer("approval#1", {"amount": "many"})
    told = finished(simulation)
    assert "is_approved" in told
    assert "amount" in told


def test_a_schema_reaches_whoever_checks_payloads_before_they_are_accepted() -> None:
    async def workflow() -> Any:
        return await Approval(metadata={"team": "risk"})

    (command,) = begun(workflow).asked(CreateHook)
    assert command.schema is Decision
    assert VALUES.decode(command.metadata) == {"team": "risk"}


# --- rejections ---------------------------------------------------------------------------------------


class Refused(Exception):
    """An error of the user's own."""


@pytest.mark.parametrize("error", [Refused("not today"), HookConflictError("in use"), KeyError("k")])
def test_a_rejection_is_raised_as_what_it_was_rejected_with(error: Exception) -> None:
    async def workflow() -> list[str]:
        try:
            await hook("approval")
        except Exception as caught:
            await echo(1)
            return [type(caught).__name__, str(caught)]
        return []

    simulation = begun(workflow)
    simulation.answer("approval#1", error)
    assert finished(simulation) == [type(error).__name__, str(error)]


def test_a_rejection_that_nobody_catches_fails_the_run() -> None:
    async def workflow() -> Any:
        return await hook("approval")

    simulation = begun(workflow)
    simulation.answer("approval#1", Refused("no"))
    with pytest.raises(Refused, match="no"):
        finished(simulation)


def test_a_rejection_that_cannot_be_rebuilt_is_told_by_type_and_text() -> None:
    class Local(Exception):
        lock = threading.Lock()

    async def workflow() -> Any:
        return await hook("approval")

    simulation = begun(workflow)
    simulation.answer("approval#1", Local("lost"))
    with pytest.raises(StepFailedError, match="lost"):
        finished(simulation)


# --- time ---------------------------------------------------------------------------------------------


def test_a_hook_that_expires_raises_and_can_be_caught() -> None:
    async def workflow() -> str:
        try:
            await hook("approval", timeout="2d")
        except HookExpiredError as error:
            await echo(1)
            return f"{error.hook_id} expired"
        return "answered"

    simulation = Simulation(workflow)
    assert finished(simulation) == "approval#1 expired"
    (created,) = simulation.events(HookCreated)
    assert created.expires_at == simulation.history[0].timestamp + timedelta(days=2)
    assert simulation.types()[2:4] == ["hook.expired", "step.started"]


def test_an_expiry_that_nobody_catches_fails_the_run() -> None:
    async def workflow() -> Any:
        return await hook("approval", timeout=5)

    with pytest.raises(HookExpiredError, match="approval#1"):
        finished(Simulation(workflow))


def test_a_payload_in_time_stops_the_clock() -> None:
    async def workflow() -> Any:
        given = await hook("approval", timeout=5)
        await sleep(60)
        return given

    simulation = begun(workflow)
    simulation.answer("approval#1", "yes")
    assert finished(simulation) == "yes"
    assert "hook.expired" not in simulation.types()


def test_only_the_hook_whose_time_is_over_expires() -> None:
    async def workflow() -> list[str]:
        told = await asyncio.gather(
            *(hook("short", timeout=n) for n in (5, 50)), hook("long"), return_exceptions=True
        )
        return [type(one).__name__ for one in told]

    simulation = begun(workflow)
    simulation.pass_time(10)
    assert simulation.hooks == ["short#2", "long#1"]
    simulation.answer("long#1", 1)
    simulation.answer("short#2", "x")
    assert finished(simulation) == ["HookExpiredError", "str", "int"]


def test_hooks_and_timers_due_together_fire_in_the_order_of_their_making() -> None:
    async def workflow() -> list[str]:
        told: list[str] = []

        async def note(name: str, call: Any) -> None:
            await asyncio.gather(call, return_exceptions=True)
            told.append(name)

        await asyncio.gather(
            note("first", hook("a", timeout=5)), note("second", sleep(5)), note("third", hook("b", timeout=5))
        )
        return told

    assert finished(Simulation(workflow)) == ["first", "second", "third"]


# --- races --------------------------------------------------------------------------------------------


def test_a_hook_that_loses_to_its_deadline_is_disposed() -> None:
    async def workflow() -> str:
        try:
            return str(await asyncio.wait_for(hook("approval"), 5))
        except TimeoutError:
            await echo(1)
            return "too late"

    simulation = Simulation(workflow)
    assert finished(simulation) == "too late"
    assert simulation.types()[3:6] == ["sleep.completed", "hook.disposed", "step.started"]


def test_a_hook_that_wins_against_its_deadline_is_not_disposed() -> None:
    async def workflow() -> Any:
        async with asyncio.timeout(5):
            given = await hook("approval")
        await sleep(60)
        return given

    simulation = begun(workflow)
    simulation.answer("approval#1", "yes")
    assert finished(simulation) == "yes"
    assert "hook.disposed" not in simulation.types()


@pytest.mark.parametrize(("winner", "left"), [("hook", "step.cancelled"), ("step", "hook.disposed")])
def test_the_loser_of_a_race_between_hook_and_step_is_let_go(winner: str, left: str) -> None:
    async def workflow() -> Any:
        done, pending = await wait([hook("approval"), echo("step")], return_when=FIRST_COMPLETED)
        for future in pending:
            future.cancel()
        await sleep(1)
        return [await future for future in done]

    simulation = begun(workflow)
    if winner == "hook":
        simulation.answer("approval#1", "hook")
    else:
        simulation.end_step("hook_echo#1")
    assert finished(simulation) == [winner]
    assert simulation.types().count(left) == 1


def test_a_payload_for_a_disposed_hook_is_ignored() -> None:
    async def workflow() -> Any:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(hook("approval"), 5)
        return await hook("approval")

    simulation = begun(workflow)
    simulation.pass_time(10)
    assert simulation.events(HookDisposed) == [HookDisposed(hook_id="approval#1")]
    assert simulation.answer("approval#1", "late") == []
    simulation.answer("approval#2", "yes")
    assert finished(simulation) == "yes"


def test_a_second_answer_to_a_hook_is_ignored() -> None:
    async def workflow() -> Any:
        given = await hook("approval")
        await sleep(1)
        return given

    simulation = begun(workflow)
    simulation.answer("approval#1", "first")
    simulation.answer("approval#1", "second")
    assert finished(simulation) == "first"


def test_hooks_that_wait_at_the_end_are_disposed() -> None:
    async def workflow() -> str:
        for name in "ab":
            asyncio.ensure_future(hook(name, timeout="1h"))  # noqa: RUF006
        await echo(1)
        return "done"

    simulation = Simulation(workflow)
    assert finished(simulation) == "done"
    assert simulation.types()[-3:] == ["hook.disposed", "hook.disposed", "workflow.completed"]


# --- callbacks ----------------------------------------------------------------------------------------


def test_on_created_gets_the_token_once_and_is_recorded() -> None:
    told: list[str] = []

    async def workflow() -> Any:
        return await hook("approval", on_created=told.append)

    simulation = begun(workflow)
    simulation.end_step("approval.on_created#1")
    simulation.answer("approval#1", "yes")
    assert finished(simulation) == "yes"
    (created,) = simulation.events(HookCreated)
    assert told == [created.token]
    (scheduled,) = simulation.events(StepScheduled)
    assert scheduled.options["local"] is True


def test_on_received_gets_the_payload_once_and_before_the_workflow_does() -> None:
    told: list[Any] = []

    async def workflow() -> Any:
        decision = await Approval(on_received=told.append)
        return await echo(decision.amount)

    simulation = begun(workflow)
    simulation.answer("approval#1", {"is_approved": True, "amount": 2})
    assert finished(simulation) == 2
    assert told == [Decision(is_approved=True, amount=2)]
    steps = [event.step_id for event in simulation.events(StepScheduled)]
    assert steps == ["approval.on_received#1", "hook_echo#1"]


def test_callbacks_do_not_run_in_a_replay() -> None:
    told: list[Any] = []

    async def workflow() -> Any:
        return await hook("approval", on_created=told.append, on_received=told.append)

    simulation = begun(workflow)
    simulation.end_step("approval.on_created#1")
    simulation.answer("approval#1", "yes")
    finished(simulation)
    told.clear()
    assert simulation.resumed().result() == "yes"
    assert told == []


def test_callbacks_may_be_steps_and_coroutine_functions() -> None:
    told: list[Any] = []

    @step(name="hook_entry")
    async def mail(token: str) -> None:
        told.append(f"mailed {token}")

    async def note(payload: Any) -> None:
        told.append(payload)

    async def workflow() -> Any:
        return await hook("approval", on_created=mail, on_received=note, token="t-1")

    simulation = begun(workflow)
    simulation.end_step("hook_entry#1")
    simulation.answer("approval#1", "yes")
    assert finished(simulation) == "yes"
    assert told == ["mailed t-1", "yes"]


def test_a_payload_that_comes_while_on_created_still_runs_is_not_lost() -> None:
    async def workflow() -> Any:
        return await hook("approval", on_created=lambda token: None)

    simulation = begun(workflow)
    simulation.answer("approval#1", "quick")
    assert finished(simulation) == "quick"
    assert "hook.disposed" not in simulation.types()


def test_a_hook_that_expires_while_on_created_still_runs_has_expired() -> None:
    async def workflow() -> Any:
        return await hook("approval", on_created=lambda token: None, timeout=5)

    simulation = begun(workflow)
    simulation.pass_time(10)
    with pytest.raises(HookExpiredError):
        finished(simulation)


def test_on_created_that_fails_disposes_the_hook_and_fails_the_wait() -> None:
    def refuse(token: str) -> None:
        raise Refused("no mail today")

    async def workflow() -> str:
        try:
            await hook("approval", on_created=refuse)
        except Refused as error:
            return str(error)
        return "waited"

    simulation = Simulation(workflow)
    assert finished(simulation) == "no mail today"
    assert simulation.types()[-3:] == ["step.failed", "hook.disposed", "workflow.completed"]


def test_on_created_is_tried_again_as_a_step_is() -> None:
    calls: list[str] = []

    def flaky(token: str) -> None:
        calls.append(token)
        if len(calls) < 3:
            raise OSError("busy")

    async def workflow() -> Any:
        return await hook("approval", on_created=flaky)

    simulation = begun(workflow)
    while "approval.on_created#1" in simulation.steps:
        simulation.advance()
    simulation.answer("approval#1", 1)
    assert finished(simulation) == 1
    assert len(calls) == 3
    assert len(set(calls)) == 1


def test_a_wait_that_is_given_up_while_on_created_runs_disposes_the_hook() -> None:
    async def workflow() -> str:
        try:
            await asyncio.wait_for(hook("approval", on_created=lambda token: None), 5)
        except TimeoutError:
            return "gave up"
        return "waited"

    simulation = begun(workflow)
    simulation.pass_time(10)
    assert finished(simulation) == "gave up"
    assert simulation.types()[-3:] == ["step.cancelled", "hook.disposed", "workflow.completed"]


def test_on_received_that_fails_fails_the_wait_and_the_payload_stays_received() -> None:
    def refuse(payload: Any) -> None:
        raise Refused("unheard")

    async def workflow() -> Any:
        return await hook("approval", on_received=refuse)

    simulation = begun(workflow)
    simulation.answer("approval#1", "yes")
    with pytest.raises(Refused, match="unheard"):
        finished(simulation)
    assert len(simulation.events(HookReceived)) == 1


# --- tokens -------------------------------------------------------------------------------------------


def test_a_token_is_kept_in_every_replay() -> None:
    async def workflow() -> Any:
        return await asyncio.gather(hook("a"), hook("b", token="my-own"))

    # Not through the simulation, which draws tokens that can be drawn again.
    simulation = Simulation(workflow)
    simulation.start()
    tokens = [event.token for event in simulation.events(HookCreated)]
    assert tokens[1] == "my-own"
    execution = simulation._execution()
    execution.replay(simulation.history)
    assert [pending.command.token for pending in execution.hooks.pending.values()] == tokens


def test_tokens_cannot_be_guessed_and_are_unlike_in_runs_alike() -> None:
    async def workflow() -> Any:
        return await hook("a")

    tokens = set()
    for _ in range(20):
        execution = Simulation(workflow)._execution()
        start = begun(workflow).history[0]
        (command,) = execution.feed(start.event, start.timestamp)
        assert isinstance(command, CreateHook)
        tokens.add(command.token)
    assert len(tokens) == 20
    assert min(map(len, tokens)) >= 32


@pytest.mark.parametrize("token", ["", "  ", "x" * 256, "a\nb", 5])
def test_a_token_of_another_form_is_refused_before_anything_is_recorded(token: Any) -> None:
    async def workflow() -> str:
        try:
            await hook("a", token=token)
        except InvalidTokenError:
            return "refused"
        return "made"

    simulation = Simulation(workflow)
    assert finished(simulation) == "refused"
    assert "hook.created" not in simulation.types()


def test_a_renewed_expiry_or_token_does_not_change_a_hook_that_is_made() -> None:
    async def old() -> Any:
        return await hook("a", timeout="1h", token="old")

    async def new() -> Any:
        return await hook("a", timeout="9h", token="new")

    simulation = begun(old)
    simulation.function = new
    resumed = simulation.resumed()
    (pending,) = resumed.execution.hooks.pending.values()
    assert pending.command.token == "old"
    due = resumed.execution.next_timer()
    assert due is not None
    assert due[0] == simulation.history[0].timestamp + timedelta(hours=1)


# --- what is refused ----------------------------------------------------------------------------------


def test_a_hook_needs_a_run() -> None:
    with pytest.raises(WorkflowError, match=r"hook\(\) belongs in the code of a workflow"):
        asyncio.run(hook("a"))  # type: ignore[arg-type]


def test_a_hook_needs_a_history() -> None:
    async def workflow() -> Any:
        return await hook("a")

    simulation = Simulation(workflow)
    simulation.is_durable = False
    with pytest.raises(WorkflowError, match=r"hook\(\) needs a history"):
        simulation.run()


def test_a_timeout_that_says_nothing_is_refused_before_anything_is_recorded() -> None:
    async def workflow() -> Any:
        return await hook("a", timeout="soon")

    simulation = Simulation(workflow)
    with pytest.raises(ValueError, match="soon"):
        finished(simulation)
    assert "hook.created" not in simulation.types()


# --- code that has changed ----------------------------------------------------------------------------


async def two_hooks() -> Any:
    return [await hook("a"), await hook("b")]


def divergence_of(old: Any, new: Any, length: int | None = None) -> str:
    simulation = Simulation(old, answers={"a": 1, "b": 2})
    simulation.run()
    simulation.function = new
    with pytest.raises(NonDeterminismError) as diverged:
        simulation.resumed(length)
    return str(diverged.value)


def test_a_renamed_hook_is_told() -> None:
    async def new() -> Any:
        return [await hook("a"), await hook("c")]

    assert "position 3:\nrecorded HookCreated('b#1'), now CreateHook('c#1')" in divergence_of(two_hooks, new)


def test_a_removed_hook_is_told() -> None:
    async def new() -> Any:
        return [await hook("a")]

    assert "recorded HookCreated('b#1'), now CompleteRun()" in divergence_of(two_hooks, new)


def test_a_hook_removed_from_the_front_is_told() -> None:
    async def new() -> Any:
        return [await hook("b")]

    assert "position 1:\nrecorded HookCreated('a#1'), now CreateHook('b#1')" in divergence_of(two_hooks, new)


def test_reordered_hooks_are_told() -> None:
    async def old() -> Any:
        return await asyncio.gather(hook("a"), hook("b"))

    async def new() -> Any:
        return await asyncio.gather(hook("b"), hook("a"))

    assert "recorded HookCreated('a#1'), now CreateHook('b#1')" in divergence_of(old, new)


def test_a_step_in_place_of_a_hook_is_told() -> None:
    async def new() -> Any:
        return await echo(1)

    assert "recorded HookCreated('a#1'), now ScheduleStep('hook_echo#1')" in divergence_of(two_hooks, new)


@pytest.mark.parametrize("is_disposed", [True, False])
def test_a_hook_that_is_disposed_no_longer_or_only_now_is_told(is_disposed: bool) -> None:
    def racing(disposes: bool) -> Any:
        async def workflow() -> Any:
            _, pending = await wait([hook("slow"), echo()], return_when=FIRST_COMPLETED)
            for future in pending if disposes else ():
                future.cancel()
            await sleep(1)

        return workflow

    recorded, now = "HookDisposed('slow#1')", "nothing"
    if not is_disposed:
        recorded, now = "TimerFired('sleep#1')", "DisposeHook('slow#1')"
    told = divergence_of(racing(is_disposed), racing(not is_disposed))
    assert f"recorded {recorded}, now {now}" in told


def test_an_answer_to_a_hook_that_was_never_created_is_an_error() -> None:
    async def workflow() -> Any:
        return await hook("a")

    with pytest.raises(NonDeterminismError, match="'b#1', which the code has not created"):
        begun(workflow).answer("b#1", 1)


def test_a_schema_that_describes_nothing_is_refused_before_anything_is_recorded() -> None:
    unfit = object()

    async def workflow() -> Any:
        return await hook("a", payload_schema=unfit)

    simulation = Simulation(workflow)
    with pytest.raises(ConfigurationError, match="cannot describe"):
        finished(simulation)
    assert "hook.created" not in simulation.types()


def test_metadata_that_cannot_be_stored_is_refused_before_anything_is_recorded() -> None:
    async def workflow() -> Any:
        return await hook("a", metadata={"lock": asyncio.Lock})

    async def unstorable() -> Any:
        import threading

        return await hook("a", metadata={"lock": threading.Lock()})

    assert "hook.created" in begun(workflow).types()
    simulation = Simulation(unstorable)
    with pytest.raises(SerializationError):
        finished(simulation)
    assert "hook.created" not in simulation.types()
    assert_replays(simulation)
