"""What user code does stays with its run."""

from __future__ import annotations

import asyncio
import time
import uuid
from pathlib import Path

import pytest
import ray

import pyworkflow_ray as pr
from pyworkflow_ray.actors.coordinator import ENGINE_THREADS
from tests.ray.conftest import EngineUnderTest, eventually


@pr.step(local=True)
async def at_hand() -> int:
    return 1


@pr.workflow
async def blocks(seconds: float) -> str:
    time.sleep(seconds)
    return "after"


@pr.workflow
async def quick() -> int:
    return await at_hand()


def test_workflow_code_that_blocks_makes_neither_its_coordinator_deaf_nor_other_runs_wait(
    engine: EngineUnderTest,
) -> None:
    slow = pr.start_sync(blocks, 6.0)
    assert pr.run_workflow(quick) == 1
    status = ray.get(engine.actor("coordinator-0").status.remote(), timeout=5)
    assert status["runs"] == [slow]
    assert slow.wait(timeout=60) == "after"


@pr.workflow
async def never_waits(folder: str, pause: float) -> None:
    (Path(folder) / uuid.uuid4().hex).touch()
    while True:
        if pause:
            time.sleep(pause)  # it leaves the others of this machine their time


def test_more_endless_loops_than_threads_hold_up_no_other_run_and_one_can_be_cancelled(
    engine: EngineUnderTest, tmp_path: Path
) -> None:
    loops = [pr.start_sync(never_waits, str(tmp_path), 0.0)]
    loops += [pr.start_sync(never_waits, str(tmp_path), 0.01) for _ in range(ENGINE_THREADS + 1)]
    eventually(lambda: len(list(tmp_path.iterdir())) >= ENGINE_THREADS)
    assert pr.start_sync(quick).wait(timeout=60) == 1
    assert pr.run_sync(loops[0].cancel("it never ends"))
    with pytest.raises(pr.CancellationError, match="it never ends"):
        loops[0].wait(timeout=60)


@pr.workflow
async def diverges(switch: str) -> int:
    # Decides by something that may differ from one execution to the next.
    if Path(switch).exists():
        await at_hand()
    else:
        await at_hand.options(name="other")()
    await pr.sleep(1)
    return 1


def test_a_run_whose_code_leaves_its_history_is_interrupted_until_it_is_mended(
    engine: EngineUnderTest, tmp_path: Path
) -> None:
    switch = tmp_path / "switch"
    run = pr.start_sync(diverges, str(switch))
    eventually(lambda: run.status_sync() is pr.RunStatus.SUSPENDED)
    switch.touch()
    with pytest.raises(pr.NonDeterminismError, match=r"position 1:\nrecorded StepScheduled\('other#1'\)"):
        run.wait(timeout=60)
    assert run.status_sync() is pr.RunStatus.INTERRUPTED
    switch.unlink()
    pr.run_sync(pr.resume(run))
    assert run.wait(timeout=60) == 1


@pr.workflow(durable=False)
async def forgetful() -> int:
    await asyncio.sleep(0.05)
    return await at_hand()


def test_a_run_that_is_not_durable_leaves_its_row_and_no_history(engine: EngineUnderTest) -> None:
    run = pr.start_sync(forgetful)
    assert run.wait(timeout=60) == 1
    assert run.events_sync() == []
    assert run.status_sync() is pr.RunStatus.COMPLETED


@pr.workflow(isolation="process")
async def alone() -> int:
    return await at_hand()


def test_an_isolated_run_has_a_coordinator_of_its_own(engine: EngineUnderTest) -> None:
    run = pr.start_sync(alone)
    assert run.wait(timeout=60) == 1
    assert pr.run_sync(run.refresh()).coordinator == f"coordinator-{run}"
