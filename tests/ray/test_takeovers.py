"""Processes that stall, and processes that one of their runs ends."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from pathlib import Path

import pytest

import pyworkflow_ray as pr
from pyworkflow_ray.storage.runs import get_run
from tests.ray.conftest import EngineUnderTest, eventually
from tests.ray.test_crashes import assert_counted_once, began, lines, mark, types


@pr.workflow
async def once_beside_others(folder: str) -> list[str]:
    async def once() -> str:
        try:
            return await mark.options(idempotent=False)(folder, "once", 6.0)
        except pr.WorkerDiedError:
            return "told"

    async def others() -> str:
        return [await mark(folder, f"other{number}", 0.5) for number in range(8)][-1]

    return await asyncio.gather(once(), others())


def test_a_coordinator_that_stalls_beyond_its_lease_begins_nothing_twice(
    engine: EngineUnderTest, tmp_path: Path
) -> None:
    """1. A coordinator is stopped. 2. Its lease runs out, and the sweep places its run with it again. 3. It
    goes on, and hears of outcomes that came meanwhile, and of the nudge, in any order."""
    run = pr.start_sync(once_beside_others, str(tmp_path))
    eventually(lambda: began(tmp_path, "other1"))
    pid = engine.pid_of("coordinator-0")
    with engine.storage as storage:
        os.kill(pid, signal.SIGSTOP)
        try:
            eventually(lambda: _lease_is_gone(storage.read(get_run(run))))
        finally:
            os.kill(pid, signal.SIGCONT)
    assert run.wait(timeout=60)[0] in ("told", "once:1")
    for name in ("once", *(f"other{number}" for number in range(8))):
        attempts = Counter(attempt for verb, attempt, _ in lines(tmp_path, name) if verb == "began")
        assert set(attempts.values()) == {1}, name
    assert len(began(tmp_path, "once")) == 1
    assert_counted_once(run)


def _lease_is_gone(record: object) -> bool:
    return getattr(record, "lease_expires_at", "") is None


@pr.workflow
async def innocent(folder: str, name: str) -> str:
    return (await mark(folder, name, 3.0)).split(":")[0]


@pr.workflow(max_recovery_attempts=1)
async def deadly(folder: str) -> None:
    await mark(folder, "deadly")
    await asyncio.sleep(0.01)
    os._exit(1)


def test_a_run_that_ends_its_process_fails_and_the_runs_beside_it_complete(
    engine: EngineUnderTest, tmp_path: Path
) -> None:
    names = [f"innocent{number}" for number in range(6)]
    runs = [pr.start_sync(innocent, str(tmp_path), name) for name in names]
    eventually(lambda: all(began(tmp_path, name) for name in names[:3]))
    guilty = pr.start_sync(deadly, str(tmp_path))
    with pytest.raises(pr.WorkerDiedError, match="went away 2 time"):
        guilty.wait(timeout=150)
    assert [run.wait(timeout=150) for run in runs] == names
    for run in runs:
        assert_counted_once(run)
    assert types(guilty).count("workflow.interrupted") == 3, "two in company, and one alone"
    assert len(began(tmp_path, "deadly")) == 1
