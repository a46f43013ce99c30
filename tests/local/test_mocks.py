"""`MockContext`: workflows called directly, with mocks for what they call."""

from __future__ import annotations

import asyncio
import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import BaseModel

import pyworkflow_ray as pr
from pyworkflow_ray.testing import NEVER, ContinuedAsNew, MissingMockError, MockContext


class Declined(Exception):
    pass


@pr.step
async def mock_charge(order: str, amount: int = 1) -> str:
    return f"charged {order} {amount}"


@pr.step
def mock_ship(order: str) -> str:
    return f"shipped {order}"


@pr.workflow
async def mock_order(order: str) -> list[str]:
    charged = await mock_charge(order, amount=2)
    await pr.sleep("1h30m")
    return [charged, await mock_ship(order)]


async def test_steps_are_answered_by_name_and_sleeps_take_no_time() -> None:
    with MockContext(mock_results={"mock_charge": "paid"}) as context:
        assert await mock_order("A-1") == ["paid", "shipped A-1"]
    assert context.step_names == ["mock_charge", "mock_ship"]
    charge, ship = context.steps
    assert (charge.args, charge.kwargs, charge.result, charge.is_mocked) == (("A-1", 2), {}, "paid", True)
    assert (ship.result, ship.is_mocked, ship.step_id) == ("shipped A-1", False, "mock_ship#1")
    assert [sleep.seconds for sleep in context.sleeps] == [5400]
    context.assert_step_called("mock_charge", times=1)
    context.assert_step_called("mock_ship")
    context.assert_slept()
    context.assert_slept(5400)


async def test_it_is_an_async_context_manager_as_well() -> None:
    async with MockContext() as context:
        assert await mock_order("A-1") == ["charged A-1 2", "shipped A-1"]
    assert len(context.steps) == 2


def test_a_test_that_is_not_async_uses_it_as_well() -> None:
    with MockContext(mock_results={"mock_charge": "paid"}) as context:
        assert asyncio.run(mock_order("A-1")) == ["paid", "shipped A-1"]
        assert asyncio.run(_direct()) == "paid"
        assert asyncio.run(_direct()) == "paid"
    assert context.step_names == ["mock_charge", "mock_ship", "mock_charge", "mock_charge"]


async def _direct() -> str:
    return await mock_charge("A-1")


async def test_asserts_tell_what_was_called_instead() -> None:
    with MockContext() as context:
        with pytest.raises(
            AssertionError, match=r"'mock_ship' was not called\. Steps that were called: none"
        ):
            context.assert_step_called("mock_ship")
        with pytest.raises(AssertionError, match=r"slept 0 s\. The sleeps: none"):
            context.assert_slept()
        await mock_order("A-1")
        with pytest.raises(
            AssertionError, match=r"once called, and not 2 times\. .*mock_charge \(once\), mock"
        ):
            context.assert_step_called("mock_ship", times=2)
        with pytest.raises(AssertionError, match=r"slept 5400 s, and not 60 s\. The sleeps: 5400 s"):
            context.assert_slept(60)
        context.assert_step_called("mock_refund", times=0)


@pr.workflow
async def mock_patient(order: str) -> str:
    for _ in range(3):
        try:
            return await mock_charge(order)
        except Declined as error:
            declined = str(error)
            await pr.sleep("1d", name="think")
    return declined


async def test_an_exception_is_raised_and_a_list_is_consumed_in_turn() -> None:
    answers = [Declined("no money"), Declined, lambda order: f"{order} at last"]
    with MockContext(mock_results={"mock_charge": answers}) as context:
        assert await mock_patient("A-1") == "A-1 at last"
    assert [type(call.error) for call in context.steps] == [Declined, Declined, type(None)]
    assert context.sleeps[0].name == "think"
    context.assert_slept(2 * 86400)


async def test_one_answer_for_each_time_is_given_or_it_is_an_error() -> None:
    answers = {"mock_charge": [Declined("no money")]}
    wanted = r"called for the 2nd time, .* a list of 1 answers"
    with MockContext(mock_results=answers), pytest.raises(MissingMockError, match=wanted):
        await mock_patient("A-1")


async def test_what_the_workflow_raises_is_raised_itself() -> None:
    raised = []

    @pr.workflow(name="mock_raising")
    async def raising() -> None:
        try:
            await mock_charge("A-1")
        except Declined as error:
            raised.append(KeyError("order"))
            raise raised[0] from error

    with MockContext(mock_results={"mock_charge": Declined()}):
        with pytest.raises(KeyError) as caught:
            await raising()
        assert caught.value is raised[0]
        assert isinstance(caught.value.__cause__, Declined)


async def test_a_function_answers_with_the_arguments_and_may_be_async() -> None:
    async def answer(order: str, amount: int) -> str:
        assert not pr.has_context() or pr.get_context().step_name == "mock_charge"
        await asyncio.sleep(0)
        return f"{amount} for {order}"

    with MockContext(mock_results={"mock_charge": answer}):
        assert (await mock_order("A-1"))[0] == "2 for A-1"


async def test_arguments_are_checked_as_in_life() -> None:
    with MockContext(mock_results={"mock_charge": "paid"}) as context:
        with pytest.raises(pr.StepValidationError, match="'amount' of step 'mock_charge' must be int"):
            await mock_charge("A-1", "many")  # type: ignore[arg-type]
        with pytest.raises(pr.StepValidationError, match="do not fit workflow 'mock_order'"):
            await mock_order()  # type: ignore[call-arg]
    assert context.steps == []


async def test_a_value_that_no_run_could_store_is_refused_as_in_life() -> None:
    wanted = "result of step 'mock_charge#1' cannot be stored"
    with (
        MockContext(mock_results={"mock_charge": threading.Lock()}),
        pytest.raises(pr.SerializationError, match=wanted),
    ):
        await mock_order("A-1")


async def test_a_strict_mock_runs_no_step() -> None:
    wanted = r"Step 'mock_charge' .* Did you mean 'mock_charges'\?"
    with (
        MockContext(mock_results={"mock_charges": 1}, strict=True) as context,
        pytest.raises(MissingMockError, match=wanted),
    ):
        await mock_order("A-1")
    assert context.step_names == []


async def test_a_step_that_the_test_calls_is_answered_too() -> None:
    with MockContext(mock_results={"mock_charge": [1, 2]}) as context:
        assert await asyncio.gather(mock_charge("A"), mock_charge("B")) == [1, 2]
        assert await context.run(mock_ship, "C") == "shipped C"
        await pr.sleep("5m")
        await context.sleep(60)
        assert await mock_ship.map(["D", "E"]) == ["shipped D", "shipped E"]
    assert context.step_names == ["mock_charge", "mock_charge", "mock_ship", "mock_ship", "mock_ship"]
    context.assert_slept(360)
    assert await mock_charge("A") == "charged A 1"
    context.assert_step_called("mock_charge", times=2)


@pr.step
async def mock_outer_step() -> list[Any]:
    return [await mock_charge("inner"), pr.get_context().step_id, pr.get_context().run_id]


async def test_a_step_called_by_a_step_is_its_function() -> None:
    with MockContext(mock_results={"mock_charge": "paid"}, run_id="run_mine") as context:
        assert await mock_outer_step() == ["charged inner 1", "mock_outer_step#1", "run_mine"]
    assert context.step_names == ["mock_outer_step"]


@pr.workflow
async def mock_racing(hook_first: bool) -> str:
    approval = asyncio.ensure_future(pr.hook("mock_approval"))
    late = asyncio.ensure_future(pr.sleep("2d"))
    done, pending = await pr.wait([approval, late], return_when="FIRST_COMPLETED")
    for task in pending:
        task.cancel()
    return "approved" if approval in done else "late"


async def test_a_race_has_the_winner_that_was_due_first() -> None:
    with MockContext(mock_hooks={"mock_approval": True}) as context:
        assert await mock_racing(True) == "approved"
    assert context.sleeps == []
    with MockContext(mock_hooks={"mock_approval": NEVER}) as context:
        assert await mock_racing(False) == "late"
    context.assert_slept(2 * 86400)


@pr.workflow
async def mock_timed() -> str:
    try:
        async with asyncio.timeout(3600):
            return await mock_charge("slow")
    except TimeoutError:
        await asyncio.sleep(86400)
        return "too late"


async def test_asyncio_waits_in_a_workflow_without_taking_time() -> None:
    with MockContext(
        mock_results={"mock_charge": NEVER}, start_time=datetime(2026, 1, 1, tzinfo=UTC)
    ) as context:
        assert await mock_timed() == "too late"
        assert context.now() == datetime(2026, 1, 2, 1, tzinfo=UTC)
    context.assert_slept(86400 + 3600)


async def test_sleeps_take_their_time_where_that_is_asked_for() -> None:
    @pr.workflow(name="mock_dozing")
    async def dozing() -> datetime:
        await pr.sleep(0.05)
        return pr.get_context().now()  # type: ignore[no-any-return]

    loop = asyncio.get_running_loop()
    begun = loop.time()
    with MockContext(skip_sleeps=False) as context:
        await dozing()
    assert loop.time() - begun >= 0.05
    context.assert_slept(0.05)


class Approval(BaseModel):
    by: str


@pr.workflow
async def mock_asking() -> list[Any]:
    tokens: list[str] = []

    async def send(token: str) -> None:
        tokens.append(token)

    decision = await pr.hook("mock_decision", on_created=send, payload_schema=Approval, timeout="2d")
    second = await pr.define_hook("mock_second", str)(timeout="1h", token="my-token")
    return [decision.by, second]


async def test_hooks_are_answered_by_name() -> None:
    answers = {"mock_decision": {"by": "Ada"}, "mock_second": lambda token: token.upper()}
    with MockContext(mock_hooks=answers) as context:
        assert await mock_asking() == ["Ada", "MY-TOKEN"]
    assert [(call.name, call.payload) for call in context.hooks] == [
        ("mock_decision", {"by": "Ada"}),
        ("mock_second", "MY-TOKEN"),
    ]
    assert context.hooks[1].token == "my-token"
    assert context.step_names == ["mock_decision.on_created"]


async def test_a_hook_is_rejected_expires_or_has_no_answer() -> None:
    with (
        MockContext(mock_hooks={"mock_decision": Declined("not you")}),
        pytest.raises(Declined, match="not you"),
    ):
        await mock_asking()
    with MockContext(mock_hooks={"mock_decision": NEVER}) as context:
        begun = context.now()
        with pytest.raises(pr.HookExpiredError):
            await mock_asking()
        assert context.now() - begun == timedelta(days=2)
    with MockContext(mock_hooks={"mock_decisions": 1}):
        with pytest.raises(
            MissingMockError, match=r"hook 'mock_decision', .*Did you mean 'mock_decisions'\?"
        ):
            await mock_asking()
        with pytest.raises(MissingMockError, match="hook 'mock_direct'"):
            await pr.hook("mock_direct")
        assert await mock_charge("still here") == "charged still here 1"


async def test_a_test_may_wait_for_a_hook_itself() -> None:
    seen: list[str] = []
    with MockContext(mock_hooks={"mock_direct": {"by": "Bob"}}) as context:
        payload = await pr.hook("mock_direct", payload_schema=Approval, on_created=seen.append)
    assert payload == Approval(by="Bob")
    assert seen == [context.hooks[0].token]


@pr.workflow
async def mock_listening() -> list[int]:
    prices = [await pr.receive("mock_price")]
    async with asyncio.timeout(60):
        async for price in pr.receive("mock_price"):
            prices.append(price)
            if price == 0:
                break
    return prices


async def test_signals_are_received_in_order() -> None:
    with MockContext(mock_events={"mock_price": [3, 2, 0], "mock_other": "x"}):
        assert await mock_listening() == [3, 2, 0]
    with MockContext(mock_events={"mock_price": [3, 2]}), pytest.raises(TimeoutError):
        await mock_listening()
    with MockContext(mock_events={"mock_price": 7}):
        assert await pr.receive("mock_price") == 7


async def test_code_that_waits_for_ever_says_for_what() -> None:
    with MockContext() as context:
        with pytest.raises(MissingMockError, match="waits for ever: signal 'mock_price'"):
            await mock_listening()
        context.mock_hooks["mock_direct"] = NEVER
        with pytest.raises(MissingMockError, match="waits for ever: hook 'mock_direct#1'"):
            await pr.hook("mock_direct")


@pr.workflow
async def mock_child(order: str) -> str:
    await pr.sleep("1h")
    if order == "bad":
        raise Declined(order)
    return await mock_ship(order)


@pr.workflow
async def mock_parent(order: str) -> list[Any]:
    handle = await pr.start_child_workflow(mock_child, order, wait_for_completion=False)
    status = await handle.get_status()
    return [status.value, await handle.result(), await pr.start_child_workflow(mock_child, order)]


async def test_a_child_without_a_mock_runs_with_the_mocks_of_its_parent() -> None:
    with MockContext(mock_results={"mock_ship": ["one", "two"]}) as context:
        assert await mock_parent("A") == ["running", "one", "two"]
    assert [call.result for call in context.children] == ["one", "two"]
    assert context.step_names == ["mock_ship", "mock_ship"]
    context.assert_slept(7200)


async def test_a_child_is_mocked_by_its_workflows_name() -> None:
    answers = {"mock_child": [lambda order: order * 2, Declined("later")]}
    with (
        MockContext(mock_results=answers) as context,
        pytest.raises(pr.ChildWorkflowFailedError) as caught,
    ):
        await mock_parent("A")
    assert isinstance(caught.value.__cause__, Declined)
    assert context.children[0].result == "AA"
    assert context.step_names == []
    with MockContext(strict=True), pytest.raises(MissingMockError, match="Child workflow 'mock_child'"):
        await mock_parent("A")


async def test_a_childs_error_is_told_as_in_life() -> None:
    with MockContext() as context:
        with pytest.raises(pr.ChildWorkflowFailedError, match="bad"):
            await pr.start_child_workflow(mock_child, "bad")
        assert isinstance(context.children[0].error, Declined)
        handle = await pr.start_child_workflow(mock_child, "good", wait_for_completion=False)
        assert await handle.result() == "shipped good"


@pr.workflow
async def mock_closing() -> str:
    @pr.workflow(name="mock_forever")
    async def forever() -> None:
        try:
            await pr.sleep("365d")
        finally:
            await mock_ship("leftovers")

    await pr.start_child_workflow(forever, wait_for_completion=False)
    await pr.sleep("1d")
    return "closed"


async def test_a_child_is_cancelled_with_its_parent() -> None:
    with MockContext() as context:
        assert await mock_closing() == "closed"
    assert context.step_names == ["mock_ship"]
    context.assert_slept(86400)


@pr.step(compensate=mock_ship)
async def mock_book(order: str) -> str:
    return order


@pr.workflow
async def mock_saga(order: str) -> None:
    await mock_book(order)
    await mock_charge(order)


async def test_compensations_are_done() -> None:
    with MockContext(mock_results={"mock_charge": Declined("no")}) as context, pytest.raises(Declined):
        await mock_saga("A")
    assert context.step_names == ["mock_book", "mock_charge", "mock_ship"]


@pr.workflow
async def mock_counting(count: int, step: int = 1) -> None:
    pr.set_attributes(count=count)
    pr.continue_as_new(count + step, step=step)


async def test_continuing_in_a_new_run_can_be_seen() -> None:
    with MockContext() as context, pytest.raises(ContinuedAsNew, match=r"arguments \(3, 2\)") as caught:
        await mock_counting(1, step=2)
    assert (caught.value.args, caught.value.kwargs) == ((3, 2), {})
    assert context.attributes == {"count": 1}


@pr.workflow
async def mock_curious() -> list[Any]:
    context = pr.get_context()
    async with pr.shield():
        assert pr.patched("new")
    return [
        context.run_id,
        context.workflow_name,
        context.random(),
        context.uuid4(),
        pr.side_effect(lambda: 5),
    ]


async def test_what_a_run_is_asked_comes_out_the_same_each_time() -> None:
    with MockContext(run_id="run_a"):
        first = await mock_curious()
    with MockContext(run_id="run_a"):
        assert await mock_curious() == first
    with MockContext(run_id="run_b", workflow_name="mine"):
        other = await mock_curious()
    assert (first[:2], other[:2], first[4]) == (["run_a", "mock_curious"], ["run_b", "mine"], 5)
    assert first[2:4] != other[2:4]


async def test_the_tests_own_code_has_a_context_too() -> None:
    assert not pr.has_context()
    with MockContext(run_id="run_a", workflow_name="mine") as context:
        asked = pr.get_context()
        assert (asked.run_id, asked.workflow_name, asked.is_durable) == ("run_a", "mine", True)
        assert pr.side_effect(lambda: 4) == 4
        assert pr.patched("new")
        pr.set_attributes(color="blue")
        async with pr.shield():
            assert await context.parallel(mock_ship("A"), mock_ship("B")) == ["shipped A", "shipped B"]
        assert context.attributes == {"color": "blue"}
    assert not pr.has_context()


async def test_contexts_nest_and_tests_at_the_same_time_do_not_mix() -> None:
    async def one(answer: str) -> list[str]:
        with MockContext(mock_results={"mock_charge": answer}) as context:
            results = []
            for _ in range(3):
                results += await mock_order("A")
                await asyncio.sleep(0)
            assert len(context.steps) == 6
            return results

    results = await asyncio.gather(*(one(str(number)) for number in range(5)))
    assert [result[0] for result in results] == ["0", "1", "2", "3", "4"]
    with MockContext(mock_results={"mock_charge": "outer"}) as outer:
        with MockContext(mock_results={"mock_charge": "inner"}) as inner:
            assert await mock_charge("A") == "inner"
        assert await mock_charge("A") == "outer"
    assert (len(outer.steps), len(inner.steps)) == (1, 1)


async def test_workflows_called_at_the_same_time_share_a_clock() -> None:
    with MockContext() as context:
        begun = context.now()
        assert len(await asyncio.gather(mock_order("A"), mock_order("B"))) == 2
        assert context.now() - begun == timedelta(hours=1.5)


class MockedOrder(pr.Workflow):
    def __init__(self, prefix: str = "") -> None:
        self.prefix = prefix

    async def run(self, order: str) -> str:
        return await mock_charge(self.prefix + order)


class MockedStep(pr.Step):
    async def execute(self, order: str) -> str:
        return order


async def test_classes_are_called_too() -> None:
    with MockContext(mock_results={"mock_charge": lambda order: order, "MockedStep": "mocked"}) as context:
        assert await MockedOrder("x-")("A") == "x-A"
        assert await MockedStep()("A") == "mocked"
    assert context.step_names == ["mock_charge", "MockedStep"]


@pr.workflow(max_duration="1h")
async def mock_slow() -> None:
    await pr.sleep("2h")


async def test_a_runs_time_ends_it() -> None:
    with MockContext() as context, pytest.raises(pr.WorkflowTimeoutError):
        await mock_slow()
    assert context.sleeps == []


async def test_a_test_that_gives_up_waiting_leaves_nothing_behind() -> None:
    begun = asyncio.Event()
    cleaned: list[str] = []

    async def answer(*_: Any) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            cleaned.append("step")

    with MockContext(mock_results={"mock_charge": answer}):
        task = asyncio.create_task(mock_order("A"))
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        direct = asyncio.create_task(mock_ship("A"))
        assert await direct == "shipped A"
    assert cleaned == ["step"]
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_client_calls_are_refused_as_in_a_workflow() -> None:
    with MockContext(), pytest.raises(pr.WorkflowError, match="cannot be called in the code of a workflow"):
        await pr.start(mock_order, "A")
