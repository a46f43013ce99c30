"""Faults where a test wants them: crashes around commits, lost workers, errors and delays of steps."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

import pyworkflow_ray as pr
from pyworkflow_ray.testing import WorkflowEnvironment, check_every_crash
from pyworkflow_ray.testing.simulated_crashes import LostError
from tests.local.notes import note, notes, write_note

calls: Counter[str] = Counter()


@pytest.fixture(autouse=True)
def no_calls() -> Iterator[None]:
    calls.clear()
    yield
    calls.clear()


@pr.step(max_retries=2, retry_delay="1m")
async def point_charge(order: str) -> str:
    count_call("charge")
    return f"charged {order}"


@pr.step(retry_delay="1m")
def point_ship(order: str) -> str:
    count_call("ship")
    return f"shipped {order}"


def count_call(name: str) -> None:
    """Called by steps, whose code travels by value: the module itself is what there is one of."""
    sys.modules[__name__].calls[name] += 1


def calls_of(name: str) -> int:
    """As `count_call`."""
    counted: int = sys.modules[__name__].calls[name]
    return counted


@pr.workflow
async def point_order(order: str) -> list[str]:
    charged = await point_charge(order)
    await pr.sleep("1h")
    return [charged, await point_ship(order)]


EXPECTED = ["charged A", "shipped A"]


async def types(run: str) -> list[str]:
    return [event.type for event in await pr.get_workflow_events(run)]


async def test_a_crash_loses_what_is_in_memory_and_a_successor_goes_on() -> None:
    async with WorkflowEnvironment() as env:
        run = await env.start(point_order, "A")
        await env.settle()
        await env.crash()
        assert await run == EXPECTED
        events = await run.events()
        (interrupted,) = [event for event in events if event.type == "workflow.interrupted"]
        assert interrupted.data["recovery_attempt"] == 1
        assert calls == {"charge": 1, "ship": 1}


async def test_a_crash_runs_no_finally_of_workflows_or_steps(tmp_path: Path) -> None:
    @pr.step(name="point_hanging")
    async def hanging(folder: str) -> str:
        if pr.get_context().attempt > 1:
            return "second"
        try:
            await asyncio.Event().wait()
        finally:
            write_note(folder, "step cleaned up")
        return "first"

    @pr.workflow(name="point_careful")
    async def careful(folder: str) -> str:
        try:
            return await hanging(folder)
        finally:
            await note(folder, "workflow cleaned up")

    async with WorkflowEnvironment() as env:
        run = await env.start(careful, str(tmp_path))
        while not await types(run):
            await asyncio.sleep(0.001)
        await env.crash()
        assert await run == "second"
        started, *_ = [e for e in await run.events() if e.type == "step.completed"]
        assert started.data["attempt"] == 2
    assert notes(tmp_path) == ["workflow cleaned up"]


async def test_a_crash_before_a_commit_loses_the_steps_result() -> None:
    async with WorkflowEnvironment() as env:
        point = env.crash_at("before_commit", "step.completed", step="point_charge")
        run = await env.start(point_order, "A")
        assert await run == EXPECTED
        assert (point.seen, point.hits) == (2, 1)
        assert calls == {"charge": 2, "ship": 1}
        completed = [event for event in await run.events() if event.type == "step.completed"]
        assert [event.data["attempt"] for event in completed] == [2, 1]


async def test_a_crash_after_a_commit_keeps_the_steps_result() -> None:
    async with WorkflowEnvironment() as env:
        point = env.crash_at("after_commit", "step.completed", step="point_charge#1")
        assert await env.run(point_order, "A") == EXPECTED
        assert (point.hits, calls) == (1, {"charge": 1, "ship": 1})
        assert "step.completed point_charge#1" in point.last


@pytest.mark.parametrize("when", ["before_commit", "after_commit"])
@pytest.mark.parametrize("event", ["workflow.started", "sleep.completed", "workflow.completed"])
async def test_a_crash_at_any_event_is_repaired(when: str, event: str) -> None:
    async with WorkflowEnvironment() as env:
        env.crash_at(when, event)
        run = await env.start(point_order, "A")
        assert await run == EXPECTED
        assert await run.status() is pr.RunStatus.COMPLETED
        assert (await types(run)).count("workflow.completed") == 1


async def test_crashes_repeat_and_skip_as_often_as_told() -> None:
    async with WorkflowEnvironment() as env:
        first = env.crash_at("before_commit", "step.completed", times=2)
        second = env.crash_at("after_commit", "step.completed", step="point_ship", workflow="point_order")
        other = env.crash_at("after_commit", workflow="no_such_workflow", times=None)
        skipping = env.crash_at("after_commit", "sleep.completed", skip=1)
        run = await env.start(point_order, "A")
        assert await run == EXPECTED
        assert [point.hits for point in (first, second, other, skipping)] == [2, 1, 0, 0]
        assert (await types(run)).count("workflow.interrupted") == 2  # the third was as the run ended
        assert calls == {"charge": 3, "ship": 1}
        assert repr(first) == "<crash before commit of step.completed: 2 of 2 times>"


async def test_a_successor_may_be_lost_while_it_takes_over() -> None:
    async with WorkflowEnvironment() as env:
        runs = [await env.start(point_order, "A") for _ in range(3)]
        late = await pr.start.options(delay="1d")(point_order, "A")
        await env.settle()
        points = [env.crash_at(when, "workflow.interrupted") for when in ("before_commit", "after_commit")]
        await env.crash()
        assert await asyncio.gather(*runs, late) == [EXPECTED] * 4
        assert [point.hits for point in points] == [1, 1]


async def test_a_run_that_gets_nowhere_fails_after_as_many_crashes_as_are_allowed() -> None:
    async with WorkflowEnvironment() as env:
        env.crash_at("before_commit", "step.completed", times=None)
        with pytest.raises(pr.WorkerDiedError, match="3 recoveries are allowed"):
            await env.run(point_order, "A")


async def test_clients_notice_nothing_of_a_crash() -> None:
    async with WorkflowEnvironment() as env:
        runs = [await env.start(point_order, str(number)) for number in range(5)]
        waiting = asyncio.gather(*runs)
        for _ in range(3):
            await env.crash()
            runs.append(await pr.start.options(delay="1d")(point_order, "late"))
        results = await waiting
        assert [result[0] for result in results] == [f"charged {number}" for number in range(5)]
        assert await runs[-3] == ["charged late", "shipped late"]
        await env.crash()
        assert await asyncio.gather(*runs[-2:]) == [["charged late", "shipped late"]] * 2


@pr.workflow
async def point_asking() -> list[Any]:
    answer = await pr.hook("point_answer", timeout="1d")
    return [answer, await pr.receive("point_price")]


async def test_what_comes_from_outside_survives_a_crash() -> None:
    async with WorkflowEnvironment() as env:
        for event in ("hook.created", "hook.received", "signal.received"):
            env.crash_at("before_commit", event)
            env.crash_at("after_commit", event)
        run = await env.start(point_asking)
        await env.settle()
        (hook,), _ = await pr.list_hooks(run)
        await pr.resume_hook(hook.token, "yes")
        await run.signal("point_price", 5)
        assert await run == ["yes", 5]
        history = await types(run)
        assert history.count("hook.received") == history.count("signal.received") == 1


@pr.workflow
async def point_parent() -> str:
    return (await pr.start_child_workflow(point_order, "child"))[0]


async def test_a_family_survives_a_crash_at_each_commit_of_the_child() -> None:
    async with WorkflowEnvironment(max_recovery_attempts=9) as env:
        point = env.crash_at("after_commit", workflow="point_order", times=3)
        assert await env.run(point_parent) == "charged child"
        assert point.hits == 3


async def test_leases_are_renewed_until_the_crash() -> None:
    async with WorkflowEnvironment() as env:
        await env.start(point_asking)
        await env.settle()
        lost = env._runtime.coordinator()
        assert lost._renewals is not None
        assert lost._storage is not None
        assert await lost._renewals._renewed()
        await env.crash()
        with pytest.raises(LostError):
            lost._storage.write_aside(lambda connection: 1)


async def test_a_lost_worker_costs_an_attempt_and_no_retry() -> None:
    async with WorkflowEnvironment() as env:
        before, after = env.lose_worker("point_charge"), env.lose_worker("point_ship", after_work=True)
        run = await env.start(point_order, "A")
        assert await run == EXPECTED
        assert (before.hits, after.hits, calls) == (1, 1, {"charge": 1, "ship": 2})
        retrying = [event.data for event in await run.events() if event.type == "step.retrying"]
        assert [data["cause"] for data in retrying] == ["worker_died", "worker_died"]


async def test_faults_of_a_step_follow_one_another() -> None:
    async with WorkflowEnvironment() as env:
        env.lose_worker("point_charge", times=2)
        env.fail_step("point_charge", ConnectionError("no route"))
        begun = env.now()
        run = await env.start(point_order, "A")
        assert await run == EXPECTED
        retrying = [event.data for event in await run.events() if event.type == "step.retrying"]
        assert [data.get("cause", "error") for data in retrying] == ["worker_died", "worker_died", "error"]
        assert retrying[2]["error"] == "no route"
        assert env.now() - begun >= timedelta(hours=1, minutes=1)
        assert calls["charge"] == 1


async def test_a_step_that_fails_always_fails_for_good() -> None:
    async with WorkflowEnvironment() as env:
        point = env.fail_step("point_charge", ConnectionError, times=None)
        with pytest.raises(ConnectionError):
            await env.run(point_order, "A")
        assert (point.hits, calls) == (3, {})


async def test_a_call_is_chosen_by_its_step_id() -> None:
    @pr.workflow(name="point_twice")
    async def twice() -> list[str]:
        return [await point_charge("A"), await point_charge("B")]

    async with WorkflowEnvironment(default_retries=0) as env:
        point = env.fail_step("point_charge#2", KeyError("B"), times=None)
        with pytest.raises(KeyError):
            await env.run(twice)
        assert (point.hits, calls["charge"]) == (3, 1)


@pr.workflow
async def point_deadline() -> str:
    try:
        async with asyncio.timeout(7200):
            return await point_charge("A")
    except TimeoutError:
        return "too late"


async def test_a_delayed_step_takes_time_on_the_environments_clock() -> None:
    async with WorkflowEnvironment() as env:
        env.delay_step("point_charge", "1h")
        env.delay_step("point_charge", "3h")
        begun = env.now()
        assert await env.run(point_deadline) == "charged A"
        assert env.now() - begun == timedelta(hours=1)
        assert await env.run(point_deadline) == "too late"
        assert env.now() - begun == timedelta(hours=3)
        assert calls["charge"] == 1


async def test_a_delay_beyond_a_steps_timeout_fails_the_attempt() -> None:
    @pr.workflow(name="point_hasty")
    async def hasty() -> str:
        return await point_charge.options(timeout="1m", max_retries=0)("A")

    async with WorkflowEnvironment() as env:
        env.delay_step("point_charge", "1h", times=1)
        begun = env.now()
        with pytest.raises(pr.StepTimeoutError):
            await env.run(hasty)
        assert env.now() - begun == timedelta(minutes=1)
        assert await env.run(hasty) == "charged A"


async def test_a_delay_and_a_fault_go_together_and_a_crash_ends_both() -> None:
    async with WorkflowEnvironment() as env:
        env.delay_step("point_charge", "1h")
        env.fail_step("point_charge", ConnectionError("late"))
        begun = env.now()
        run = await env.start(point_order, "A")
        await env.settle()
        assert env.now() == begun
        await env.crash()
        assert await run == EXPECTED
        assert calls["charge"] == 1
        assert not [event for event in await run.events() if event.type == "step.retrying"]


async def test_a_fail_point_must_be_one_that_there_is() -> None:
    async with WorkflowEnvironment() as env:
        with pytest.raises(ValueError, match=r"did you mean 'step\.completed'"):
            env.crash_at("after_commit", "step.complete")
        with pytest.raises(ValueError, match="'before_commit', 'after_commit'"):
            env.crash_at("during_commit")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="0 or more"):
            env.lose_worker("point_charge", times=-1)


async def test_a_sound_workflow_passes_every_crash() -> None:
    assert await check_every_crash(point_order, "A") == 8  # before and after each of four commits
    assert calls["charge"] > 1


async def test_every_crash_is_tried_with_hooks_children_and_concurrency() -> None:
    @pr.workflow(name="point_wide")
    async def wide() -> list[Any]:
        child = await pr.start_child_workflow(point_parent, wait_for_completion=False)
        parts = await asyncio.gather(pr.hook("point_wide"), *(point_ship(str(n)) for n in range(3)))
        return [parts, await child.result(), pr.get_context().random()]

    async def answer(env: WorkflowEnvironment, run: pr.RunHandle[Any]) -> None:
        await env.settle()
        (hook,), _ = await pr.list_hooks(run)
        await pr.resume_hook(hook.token, "yes")

    assert await check_every_crash(wide, during=answer) > 10


async def test_a_workflow_that_depends_on_memory_is_found_out() -> None:
    @pr.workflow(name="point_forgetful")
    async def forgetful() -> int:
        count_call("forgetful")
        await point_charge("A")
        return calls_of("forgetful") % 2

    with pytest.raises(
        AssertionError, match=r"(?s)coordinator crashes (before|after) commit \d.*result is .*history"
    ):
        await check_every_crash(forgetful)


async def test_a_workflow_without_a_history_has_no_crash_to_try() -> None:
    @pr.workflow(name="point_transient", durable=False)
    async def transient() -> None:
        pass

    with pytest.raises(AssertionError, match="is it durable"):
        await check_every_crash(transient)


async def test_a_workflow_that_fails_must_fail_in_the_same_way() -> None:
    @pr.workflow(name="point_failing")
    async def failing(order: str) -> None:
        raise ValueError(await point_charge(order))

    assert await check_every_crash(failing, "A", settings={"default_retries": 0}) >= 4
