"""Attempts that share Ray tasks: each is a step of its own, whatever becomes of the task."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import ray

import pyworkflow_ray as pr
from tests.ray.conftest import EngineUnderTest, eventually

COUNT = 12


@pr.step(retry_delay="10ms")
def in_task(number: int) -> tuple[int, str, int]:
    """The number, the Ray task that the attempt ran in, and the attempt's number."""
    return number, ray.get_runtime_context().get_task_id() or "", pr.get_context().attempt


@pr.step
async def in_task_async(number: int) -> tuple[int, str, int]:
    return number, ray.get_runtime_context().get_task_id() or "", pr.get_context().attempt


@pr.workflow
async def many_in_batches(
    count: int, size: int, bound: int | None = None, is_async: bool = False
) -> list[Any]:
    step: Any = in_task_async if is_async else in_task
    return list(await step.map(range(count), batch_size=size, max_in_flight=bound))


def outcomes(run: pr.RunHandle[Any], kind: str = "step.completed") -> dict[str, int]:
    """The attempts of the steps' events of a kind, by step; no step has two."""
    events = [event.data for event in run.events_sync() if event.type == kind]
    assert len({data["step_id"] for data in events}) == len(events)
    return {data["step_id"]: data["attempt"] for data in events}


@pytest.mark.parametrize("is_async", [False, True])
def test_steps_share_tasks_and_each_has_its_outcome(shared_engine: EngineUnderTest, is_async: bool) -> None:
    run = pr.start_sync(many_in_batches, 70, 32, None, is_async)
    results = run.wait(timeout=60)
    assert [number for number, _, _ in results] == list(range(70))
    sizes = Counter(task for _, task, _ in results)
    assert sorted(sizes.values()) == [6, 32, 32]
    started = [event.data for event in run.events_sync() if event.type == "step.started"]
    assert [data["options"]["batch_size"] for data in started] == [32] * 70
    assert list(outcomes(run).values()) == [1] * 70


def test_a_bound_counts_attempts_and_not_tasks(shared_engine: EngineUnderTest) -> None:
    results = pr.start_sync(many_in_batches, 40, 32, 10).wait(timeout=60)
    assert [number for number, _, _ in results] == list(range(40))
    assert max(Counter(task for _, task, _ in results).values()) <= 10


@pr.step(retry_delay="10ms")
def fails_at_first(number: int) -> tuple[str, int]:
    context = pr.get_context()
    if number == 3 and context.attempt == 1:
        raise ValueError("not yet")
    return ray.get_runtime_context().get_task_id() or "", context.attempt


@pr.workflow
async def one_fails() -> list[Any]:
    return await fails_at_first.map(range(COUNT), batch_size=COUNT)


def test_a_step_that_fails_is_tried_again_alone(shared_engine: EngineUnderTest) -> None:
    run = pr.start_sync(one_fails)
    results = run.wait(timeout=60)
    (task,) = {task for number, (task, _) in enumerate(results) if number != 3}
    assert results[3][0] != task
    assert [attempt for _, attempt in results] == [2 if number == 3 else 1 for number in range(COUNT)]
    assert outcomes(run, "step.retrying") == {"fails_at_first#4": 2}


@pr.step
def kills_its_worker(number: int) -> int:
    attempt = pr.get_context().attempt
    if number == 4 and attempt == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return attempt


@pr.workflow
async def loses_a_worker() -> list[int]:
    return await kills_its_worker.map(range(COUNT), batch_size=COUNT)


def test_a_killed_worker_loses_no_outcome_that_was_made(shared_engine: EngineUnderTest) -> None:
    """1. Four attempts of a batch end. 2. The fifth kills its worker, within a moment. 3. Four outcomes are
    recorded, and the other attempts are made again."""
    run = pr.start_sync(loses_a_worker)
    assert run.wait(timeout=60) == [1] * 4 + [2] * (COUNT - 4)
    retrying = [event.data for event in run.events_sync() if event.type == "step.retrying"]
    assert [data["cause"] for data in retrying] == ["worker_died"] * (COUNT - 4)
    assert len(outcomes(run)) == COUNT


@pr.step(timeout="2s", max_retries=0)
def slow_in_the_middle(number: int) -> int:
    if number == 2:
        time.sleep(60)
    return number


@pr.step(timeout="2s", max_retries=0)
def stuck_in_the_middle(number: int) -> int:
    while number == 2:
        try:
            time.sleep(60)
        except BaseException:
            continue
    return pr.get_context().attempt


@pr.workflow
async def one_is_late(is_stuck: bool) -> list[Any]:
    step: Any = stuck_in_the_middle if is_stuck else slow_in_the_middle
    results = await step.map(range(5), batch_size=5, return_exceptions=True)
    return [type(each).__name__ if isinstance(each, Exception) else each for each in results]


def test_a_timeout_is_of_one_attempt(shared_engine: EngineUnderTest) -> None:
    run = pr.start_sync(one_is_late, False)
    assert run.wait(timeout=60) == [0, 1, "StepTimeoutError", 3, 4]
    assert outcomes(run, "step.retrying") == {}


def test_an_attempt_that_ignores_its_timeout_is_the_one_that_was_late(shared_engine: EngineUnderTest) -> None:
    """Its process is ended, and with it the attempts that had not begun. These are made again."""
    run = pr.start_sync(one_is_late, True)
    assert run.wait(timeout=60) == [1, 1, "StepTimeoutError", 2, 2]


def dawdle() -> None:
    """Take a minute. Ray's interruption does not end a sleep, but comes behind it."""
    for _ in range(6000):
        time.sleep(0.01)


@pr.step(on_cancel="interrupt")
def waits(folder: str, number: int) -> int:
    try:
        Path(folder, f"began {number}").touch()
        dawdle()
        return number
    finally:
        Path(folder, f"ended {number}").touch()


@pr.workflow
async def is_cancelled(folder: str) -> list[int]:
    return await waits.map([folder] * 6, range(6), batch_size=6)


def test_a_cancelled_run_begins_no_more_of_a_batch(shared_engine: EngineUnderTest, tmp_path: Path) -> None:
    run = pr.start_sync(is_cancelled, str(tmp_path))
    eventually((tmp_path / "began 0").exists)
    assert asyncio.run(run.cancel("enough"))
    eventually(lambda: run.status_sync() is pr.RunStatus.CANCELLED)
    eventually((tmp_path / "ended 0").exists)
    pr.start_sync(many_in_batches, 20, 5).wait(timeout=60)  # the worker is free again
    assert sorted(path.name for path in tmp_path.iterdir()) == ["began 0", "ended 0"]


@pr.step(on_cancel="interrupt")
def fails_late(folder: str, number: int) -> int:
    Path(folder, f"began {number}").touch()
    if number == 1:
        raise pr.FatalError("no more")
    try:
        if number == 2:
            dawdle()
    finally:
        Path(folder, f"ended {number}").touch()
    return number


@pr.workflow
async def stops_at_an_error(folder: str) -> str:
    try:
        await fails_late.map([folder] * 20, range(20), batch_size=20)
    except pr.FatalError as error:
        return str(error)
    return "none"


def test_the_first_error_withdraws_what_has_not_begun(shared_engine: EngineUnderTest, tmp_path: Path) -> None:
    """The outcome comes while the batch is under way, and Ray then interrupts the attempt that runs."""
    run = pr.start_sync(stops_at_an_error, str(tmp_path))
    assert run.wait(timeout=60) == "no more"
    eventually((tmp_path / "ended 2").exists)
    pr.start_sync(many_in_batches, 20, 5).wait(timeout=60)
    assert len(list(tmp_path.glob("began *"))) == 3


@pr.step
def stays_at_the_last(number: int) -> int:
    attempt = pr.get_context().attempt
    if attempt == 1 and number == 9:
        time.sleep(60)
    return attempt


@pr.workflow
async def is_recovered() -> list[int]:
    return await stays_at_the_last.map(range(10), batch_size=10)


def test_outcomes_of_a_batch_are_recorded_while_it_is_under_way(engine: EngineUnderTest) -> None:
    """1. Nine attempts of a batch end, and the last one does not. 2. Nine outcomes are recorded. 3. The
    coordinator dies, and the next one has the last attempt made again."""
    run = pr.start_sync(is_recovered)
    eventually(lambda: len(outcomes(run)) == 9)
    engine.kill("coordinator-0")
    assert run.wait(timeout=60) == [1] * 9 + [2]
    assert list(outcomes(run).values()) == [1] * 9 + [2]
