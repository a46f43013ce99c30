"""Whoever takes a run over says so, and no attempt begins twice."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

import pyworkflow_ray as pr
from pyworkflow_ray.actors.coordinator import Coordinator
from pyworkflow_ray.actors.settings import EngineSettings
from pyworkflow_ray.storage.leases import claim
from pyworkflow_ray.storage.placements import Placement, place
from pyworkflow_ray.storage.records import RunRecord
from pyworkflow_ray.storage.runs import get_run
from pyworkflow_ray.storage.statements import Statement
from pyworkflow_ray.storage.storages import Storage
from pyworkflow_ray.testing import WorkflowEnvironment
from pyworkflow_ray.testing.clocks import VirtualClock
from tests.local.notes import notes, types, write_note

_EXPIRE = Statement("UPDATE runs SET lease_expires_at = <now - :ago> WHERE run_id = :run_id")


@pr.step(local=True)
async def until(folder: str, name: str) -> str:
    """Leaves a note that an attempt has begun, and ends once there is a file of this name."""
    write_note(folder, f"{name} {pr.get_context().attempt}")
    while not (Path(folder) / name).exists():
        await asyncio.sleep(0.01)
    return name


async def once(folder: str) -> str:
    try:
        return await until.options(idempotent=False)(folder, "once")
    except pr.WorkerDiedError:
        return "told"


@pr.workflow
async def beside(folder: str) -> list[str]:
    await pr.hook("begin", token="begin")
    return await asyncio.gather(once(folder), until(folder, "brief"))


async def noted(folder: Path, *lines: str) -> None:
    while not set(lines) <= set(notes(folder)):
        await asyncio.sleep(0.01)


def row(storage: Storage, run: str) -> RunRecord:
    found = storage.read(get_run(run))
    assert found is not None
    return found


async def expire(storage: Storage, run: str) -> None:
    """Let the run's lease run out: whoever holds it was not heard of for so long."""
    await storage.write(_EXPIRE.change(run_id=run, ago=1.0).on)


class Stalled:
    """A run whose steps are under way, and whose coordinator has not renewed its lease for too long."""

    def __init__(self, storage: Storage, coordinator: Coordinator, run: pr.RunHandle[Any]) -> None:
        self.storage, self.coordinator, self.run = storage, coordinator, run

    async def sweep(self) -> None:
        await expire(self.storage, self.run)
        await self.storage.write(place([self.run], Placement(slots=1)))

    async def end(self) -> str:
        end = await self.coordinator.end_of(self.run)
        assert end is not None
        return end.status


@pytest.fixture
async def on(tmp_path: Path) -> AsyncIterator[Stalled]:
    path = tmp_path / "local.db"
    pr.configure(default_runtime="local", storage=path, suspend_after="10ms")
    run = await pr.start(beside, str(tmp_path))
    engine = EngineSettings(str(path), lease_ttl=timedelta(hours=1), suspend_after=None)
    with Storage(path) as storage:
        coordinator = Coordinator("coordinator-0", engine, storage=storage)
        assert await coordinator.wake([run]) == [run]
        await pr.resume_hook("begin", None)
        coordinator.deliver(run)
        await noted(tmp_path, "once 1", "brief 1")
        yield Stalled(storage, coordinator, run)
        await coordinator.close()


@pytest.mark.parametrize("is_swept", [False, True])
async def test_a_coordinator_that_takes_its_own_run_over_begins_no_attempt_twice(
    on: Stalled, tmp_path: Path, is_swept: bool
) -> None:
    """1. A coordinator loses its drive of a run. 2. Its lease is there yet, or the sweep places the run with
    it again. 3. The run is woken, and it claims the run."""
    on.coordinator._ends[on.run].cancel()
    while on.coordinator.is_driving(on.run):
        await asyncio.sleep(0.01)
    if is_swept:
        await on.sweep()
    (tmp_path / "brief").touch()

    assert await on.coordinator.wake([on.run]) == [on.run]

    assert await on.end() == "completed"
    assert await on.run == ["told", "brief"]
    assert Counter(notes(tmp_path)) == {"once 1": 1, "brief 1": 1, "brief 2": 1}
    assert (await types(on.run)).count("workflow.interrupted") == 1
    assert row(on.storage, on.run).recovery_attempts == 0, "no process has died"


async def test_a_coordinator_whose_lease_ran_out_goes_on_if_nobody_has_claimed_its_run(
    on: Stalled, tmp_path: Path
) -> None:
    """1. A coordinator stalls; its lease runs out, and the sweep places the run. 2. An attempt ends, and the
    fence refuses its outcome."""
    await on.sweep()
    (tmp_path / "brief").touch()
    while "step.completed" not in await types(on.run):
        await asyncio.sleep(0.01)
    (tmp_path / "once").touch()
    assert await on.end() == "completed"
    assert await on.run == ["once", "brief"]
    assert Counter(notes(tmp_path)) == {"once 1": 1, "brief 1": 1}
    assert "workflow.interrupted" not in await types(on.run)


async def test_a_coordinator_whose_run_was_claimed_by_another_drops_it(on: Stalled, tmp_path: Path) -> None:
    await on.sweep()
    other = await on.storage.write(claim(on.run, "another process", 3600.0))
    assert other is not None
    (tmp_path / "brief").touch()
    assert await on.end() == "lost"
    assert row(on.storage, on.run).owner == "another process"
    assert "step.completed" not in await types(on.run)


async def test_a_coordinator_that_is_nudged_in_time_goes_on_without_an_interruption(
    on: Stalled, tmp_path: Path
) -> None:
    await on.sweep()
    assert await on.coordinator.wake([on.run]) == [on.run]
    for name in ("once", "brief"):
        (tmp_path / name).touch()
    assert await on.end() == "completed"
    assert await on.run == ["once", "brief"]
    assert Counter(notes(tmp_path)) == {"once 1": 1, "brief 1": 1}
    assert "workflow.interrupted" not in await types(on.run)


@pr.step(local=True, retry_delay="1h")
async def second_time(folder: str) -> int:
    attempt = pr.get_context().attempt
    write_note(folder, f"second_time {attempt}")
    if attempt == 1:
        raise ValueError("no")
    return attempt


@pr.workflow
async def tries_again(folder: str, idempotent: bool) -> int:
    await pr.hook("begin", token="begin")
    return await second_time.options(idempotent=idempotent)(folder)


@pytest.mark.parametrize("idempotent", [True, False])
async def test_one_that_was_replaced_begins_no_attempt_that_its_successor_makes(
    tmp_path: Path, idempotent: bool
) -> None:
    """1. A step is to be tried again in an hour. 2. Another coordinator takes the run over. 3. The first one
    does not know it. 4. The hour is over, for both."""
    path = tmp_path / "local.db"
    pr.configure(default_runtime="local", storage=path, suspend_after="10ms")
    run = await pr.start(tries_again, str(tmp_path), idempotent)
    clock = VirtualClock()
    engine = EngineSettings(str(path), lease_ttl=timedelta(hours=1), suspend_after=None)
    with Storage(path) as storage:
        first, second = (
            Coordinator(f"coordinator-{number}", engine, storage=storage, clock=clock) for number in range(2)
        )
        assert await first.wake([run]) == [run]
        await pr.resume_hook("begin", None)
        first.deliver(run)
        while (await types(run))[-1] != "step.retrying":
            await asyncio.sleep(0.01)
        await expire(storage, run)
        assert await second.wake([run]) == [run]
        while (await types(run))[-1] != "workflow.interrupted":
            await asyncio.sleep(0.01)
        while clock.sleepers < 2:
            await asyncio.sleep(0.01)

        clock.set_forward(clock.now() + timedelta(hours=2))

        end = await second.end_of(run)
        while first.is_driving(run):
            await asyncio.sleep(0.01)
        await asyncio.gather(first.close(), second.close())
    assert end is not None
    assert end.status == "completed"
    assert await run == 3
    begun = ["second_time 1", "second_time 2", "second_time 3"]
    assert sorted(notes(tmp_path)) == (begun if idempotent else begun[::2])


@pr.workflow
async def turns(folder: str, idempotent: bool) -> str:
    if (Path(folder) / "switch").exists():
        await pr.sleep("1h")
    try:
        return await until.options(idempotent=idempotent)(folder, "step")
    except pr.WorkerDiedError:
        return "told"


@pytest.mark.parametrize("idempotent", [True, False])
async def test_a_run_that_was_set_aside_after_a_crash_begins_no_attempt_twice(
    tmp_path: Path, idempotent: bool
) -> None:
    """1. A coordinator dies while an attempt is under way. 2. Its successor finds other code, and sets the
    run aside. 3. The code is mended, and the run is resumed."""
    switch = tmp_path / "switch"
    async with WorkflowEnvironment() as env:
        run = await env.start(turns, str(tmp_path), idempotent)
        await noted(tmp_path, "step 1")
        switch.touch()
        await env.crash()
        with pytest.raises(pr.NonDeterminismError):
            await run
        switch.unlink()
        (tmp_path / "step").touch()
        await pr.resume(run)
        assert await run == ("step" if idempotent else "told")
        interrupted = [event for event in await run.events() if event.type == "workflow.interrupted"]
    assert Counter(notes(tmp_path)) == ({"step 1": 1, "step 2": 1} if idempotent else {"step 1": 1})
    assert len(interrupted) == 1


@pr.workflow
async def turns_later(folder: str) -> str:
    if (Path(folder) / "switch").exists():
        await pr.sleep("2h")
    await pr.hook("later", token="later")
    return await until(folder, "step")


async def test_a_run_that_was_set_aside_with_nothing_under_way_is_not_interrupted(tmp_path: Path) -> None:
    switch = tmp_path / "switch"
    pr.configure(default_runtime="local", storage=tmp_path / "local.db", suspend_after="10ms")
    run = await pr.start(turns_later, str(tmp_path))
    switch.touch()
    await pr.resume(run)
    assert await run.status() is pr.RunStatus.INTERRUPTED
    switch.unlink()
    (tmp_path / "step").touch()
    await pr.resume(run)
    await pr.resume_hook("later", None)
    assert await run == "step"
    assert "workflow.interrupted" not in await types(run)


@pr.step(local=True)
async def until_with(folder: str, name: str, data: str) -> int:
    await until.fn(folder, name)
    return len(data)


@pr.step(local=True)
async def at_once(folder: str) -> None:
    write_note(folder, f"at once {pr.get_context().attempt}")


@pr.workflow
async def grows_by_a_step(folder: str) -> list[Any]:
    calls: list[Any] = [until_with(folder, "large", "x" * 300_000)]
    if (Path(folder) / "switch").exists():
        calls.append(at_once(folder))
    return await asyncio.gather(*calls)


async def test_a_step_that_ends_while_others_are_begun_again_begins_once(tmp_path: Path) -> None:
    """1. A run is opened again, and its code asks for a new step. 2. The new step ends while the arguments of
    another step are fetched, which is still under way."""
    async with WorkflowEnvironment() as env:
        run = await env.start(grows_by_a_step, str(tmp_path))
        await noted(tmp_path, "large 1")
        (tmp_path / "switch").touch()
        await env.crash()
        await noted(tmp_path, "large 2")
        (tmp_path / "large").touch()
        assert await run == [300_000, None]
    assert Counter(notes(tmp_path)) == {"large 1": 1, "large 2": 1, "at once 1": 1}
