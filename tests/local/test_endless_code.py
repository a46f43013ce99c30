"""Workflow code that does not come to a wait: other runs go on, and the run can be ended all the same."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from typing import Any

import pytest

import pyworkflow_ray as pr
from pyworkflow_ray.actors import coordinator, watchdogs
from pyworkflow_ray.actors.engine_threads import CodeStoppedError, EngineThreads, Stretch
from pyworkflow_ray.testing import WorkflowEnvironment, replay
from tests.local.notes import types

RELEASED = threading.Event()


def released() -> threading.Event:
    """Called by workflows, whose code travels by value: the module itself is what there is one of."""
    event: threading.Event = sys.modules[__name__].RELEASED
    return event


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Seconds become tenths, and what is left of code ends with the test."""
    monkeypatch.setattr(coordinator, "LOOK_EVERY", 0.05)
    for name in ("SLOW_FEED", "STOP_AFTER", "ABANDON_AFTER"):
        monkeypatch.setattr(watchdogs, name, 0.3)
    monkeypatch.setattr(watchdogs, "QUERY_LIMIT", 1.5)
    RELEASED.clear()
    yield
    RELEASED.set()


@pytest.fixture
async def environment() -> AsyncIterator[WorkflowEnvironment]:
    async with WorkflowEnvironment(skip_time=False) as environment:
        yield environment


@pr.step(local=True)
async def works(value: int) -> int:
    return value


@pr.workflow
async def computes_for_ever() -> None:
    await works(1)
    while True:
        pass


@pr.workflow
async def begins_with_a_loop() -> None:
    while not released().wait(0.01):  # a loop in Python, which leaves the others their time
        pass


@pr.workflow(max_duration="1h")
async def has_an_hour() -> None:
    while not released().wait(0.01):
        pass


@pr.workflow
async def catches_everything() -> None:
    await works(1)
    for attempt in range(3):
        try:
            while not released().wait(0.01):
                pass
        except BaseException:
            assert attempt < 2


@pr.workflow
async def is_stuck_within_c() -> None:
    await works(1)
    released().wait()
    await works(2)


@pr.workflow
async def loops_while_it_cleans_up() -> None:
    try:
        await pr.sleep("1d")
    finally:
        while not released().wait(0.01):
            pass


@pr.workflow
async def is_short(value: int) -> int:
    return await works(await works(value))


@pr.workflow
async def answers_never() -> None:
    def answer() -> None:
        while not released().wait(0.01):
            pass

    pr.set_query_handler("endless", answer)
    pr.set_query_handler("quick", lambda: "quick")
    await pr.sleep("1d")


async def until_blocked(environment: WorkflowEnvironment, count: int) -> None:
    here = environment._runtime.coordinator()
    while sum(_is_blocked(drive.code.stretch) for drive in here.drives) < count:
        await asyncio.sleep(0.01)


def _is_blocked(stretch: Stretch | None) -> bool:
    return stretch is not None and time.monotonic() - stretch.began > watchdogs.SLOW_FEED


async def test_more_loops_than_threads_keep_no_other_run_from_its_end(
    environment: WorkflowEnvironment,
) -> None:
    loops = [await environment.start(begins_with_a_loop) for _ in range(coordinator.ENGINE_THREADS + 4)]
    await until_blocked(environment, coordinator.ENGINE_THREADS + 4)
    assert await environment.run(is_short, 7) == 7
    for run in loops:
        await run.cancel("it never ends")
    for run in loops:
        with pytest.raises(pr.CancellationError, match="it never ends"):
            await run
        assert await types(run) == ["workflow.started", "cancellation.requested", "workflow.cancelled"]
        replay(run)
    assert await environment.run(is_short, 8) == 8


@pytest.mark.parametrize(
    "workflow", [computes_for_ever, catches_everything, is_stuck_within_c, loops_while_it_cleans_up]
)
async def test_a_run_whose_code_does_not_wait_can_be_cancelled(
    workflow: Any, environment: WorkflowEnvironment
) -> None:
    run = await environment.start(workflow)
    if workflow is loops_while_it_cleans_up:
        await environment.settle()
    else:
        await until_blocked(environment, 1)
    await run.cancel("it never ends")
    with pytest.raises(pr.CancellationError, match="it never ends"):
        await run
    assert (await types(run))[-2:] == ["cancellation.requested", "workflow.cancelled"]
    events = await pr.get_workflow_events(run)
    for length in range(1, len(events) + 1):
        replay(events[:length], workflow=workflow)
    assert await environment.run(is_short, 7) == 7


async def test_what_code_decides_after_it_was_abandoned_does_not_count(
    environment: WorkflowEnvironment,
) -> None:
    run = await environment.start(is_stuck_within_c)
    await until_blocked(environment, 1)
    await run.cancel()
    with pytest.raises(pr.CancellationError):
        await run
    history = await types(run)
    RELEASED.set()
    assert await environment.run(is_short, 7) == 7
    assert await types(run) == history
    assert "step.started" in history
    assert history.count("step.started") == 1


async def test_a_run_whose_code_does_not_wait_fails_when_its_time_is_over(
    environment: WorkflowEnvironment,
) -> None:
    run = await environment.start(has_an_hour)
    await until_blocked(environment, 1)
    environment.clock.set_forward(environment.now() + timedelta(hours=2))
    with pytest.raises(pr.WorkflowTimeoutError):
        await run
    assert await types(run) == ["workflow.started", "cancellation.requested", "workflow.failed"]
    replay(run)


async def test_a_query_of_a_run_whose_code_does_not_wait_is_refused(environment: WorkflowEnvironment) -> None:
    run = await environment.start(begins_with_a_loop)
    await until_blocked(environment, 1)
    with pytest.raises(pr.WorkflowError, match="answers no query now"):
        await run.query("anything")


async def test_a_query_that_does_not_end_is_stopped_and_the_run_goes_on(
    environment: WorkflowEnvironment,
) -> None:
    run = await environment.start(answers_never)
    await environment.settle()
    with pytest.raises(pr.WorkflowError, match="did not end within"):
        await run.query("endless")
    assert await run.query("quick") == "quick"
    await environment.advance("2d")
    await run
    with pytest.raises(pr.WorkflowError, match="did not end within"):
        await run.query("endless")  # a replay answers it


async def test_when_there_are_too_many_loops_their_runs_are_set_aside(
    environment: WorkflowEnvironment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchdogs, "MOST_STUCK", 3)
    runs = [await environment.start(begins_with_a_loop) for _ in range(3)]
    while {await run.status() for run in runs} != {pr.RunStatus.INTERRUPTED}:
        await asyncio.sleep(0.01)
    with pytest.raises(pr.WorkflowError, match="without a wait"):
        await runs[0]
    assert await environment.run(is_short, 7) == 7
    RELEASED.set()
    await pr.resume(runs[0])
    await runs[0]


# --- the threads -----------------------------------------------------------------------------------------


def test_threads_that_are_given_up_are_replaced_and_end_after_all() -> None:
    threads, gate = EngineThreads(2), threading.Event()
    try:
        stuck = [threads.submit(gate.wait) for _ in range(2)]
        waiting = threads.submit(threading.get_ident)
        while threads.relieve(0.01, 2) < 2:
            time.sleep(0.01)
        assert waiting.result() is not None
        gate.set()
        assert [future.result() for future in stuck] == [True, True]
        while threads.relieve(60, 2):
            time.sleep(0.01)
        assert {threads.submit(threading.get_ident).result() for _ in range(20)}
    finally:
        threads.shutdown()


def test_code_that_was_stopped_counts_as_stopped_whatever_it_makes_of_that() -> None:
    def stubborn() -> str:
        began.set()
        try:
            while True:
                time.sleep(0.001)
        except BaseException:
            return "caught"

    threads, began = EngineThreads(1), threading.Event()
    stretches: list[Stretch] = []

    def run(work: Any) -> Any:
        stretches.append(Stretch())
        return stretches[-1].run(work)

    try:
        future = threads.submit(run, stubborn)
        assert began.wait(60)
        stretches[-1].stop()
        with pytest.raises(CodeStoppedError):
            future.result()
        stretches[-1].stop()  # it is over: nothing is raised in the thread's next code
        assert threads.submit(run, lambda: sum(range(100_000))).result() > 0
    finally:
        threads.shutdown()


def test_a_stop_that_comes_just_as_the_code_ends_stops_nothing_else() -> None:
    threads = EngineThreads(1)
    try:
        for _ in range(300):
            made: list[Stretch] = []

            def run(made: list[Stretch] = made) -> int:
                made.append(Stretch())
                return made[0].run(lambda: sum(range(500)))

            future = threads.submit(run)
            while not made:
                pass
            made[0].stop()
            assert future.exception() is None or isinstance(future.exception(), CodeStoppedError)
            assert threads.submit(sum, range(1000)).result() == 499_500
    finally:
        threads.shutdown()
