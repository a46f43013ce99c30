"""What goes wrong with one run in a coordinator stays with it."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import pyworkflow_ray as pr
from pyworkflow_ray.actors.coordinator import Coordinator
from pyworkflow_ray.actors.drives import Drive
from pyworkflow_ray.actors.settings import EngineSettings
from pyworkflow_ray.storage.acceptances import NewRun, accept
from pyworkflow_ray.storage.runs import get_run
from pyworkflow_ray.storage.storages import Storage
from pyworkflow_ray.storage.sweeps import orphans
from tests.local.waits import until_due


@pr.step(local=True)
async def one() -> int:
    return 1


@pr.workflow
async def counted() -> int:
    total = await one()
    await pr.sleep(1)  # long enough to be seen suspended on a busy machine
    return total + await one()


@pr.workflow
async def dozes() -> None:
    await pr.sleep("1h")


@pytest.fixture
def local(tmp_path: Path) -> Path:
    path = tmp_path / "local.db"
    pr.configure(default_runtime="local", storage=path, suspend_after="50ms")
    return path


async def test_a_run_whose_driving_failed_is_given_back_for_another_to_drive(
    local: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Drive._open

    async def fail(self: Drive) -> None:
        raise pr.StorageError("the database was away for too long")

    monkeypatch.setattr(Drive, "_open", fail)
    run = await pr.start(counted)
    with Storage(local) as storage:
        record = storage.read(get_run(run))
    assert record is not None
    assert (record.lease_expires_at, record.status.is_terminal) == (None, False)
    monkeypatch.setattr(Drive, "_open", whole)
    await pr.resume(run)
    await until_due(run)
    await pr.resume(run)
    assert await run == 2


async def test_a_history_that_cannot_be_read_sets_the_run_aside(local: Path) -> None:
    run = await pr.start(counted)
    assert await run.status() is pr.RunStatus.SUSPENDED
    with Storage(local) as storage:
        storage.submit(_damage(run)).result()
    await pr.resume(run)
    assert await run.status() is pr.RunStatus.INTERRUPTED
    with pytest.raises(pr.SerializationError, match="cannot be read"):
        await run


def _damage(run: str) -> Any:
    from sqlalchemy import text

    def write(connection: Any) -> None:
        connection.execute(
            text("UPDATE events SET data = '{' WHERE run_id = :run AND position = 1"), {"run": run}
        )

    return write


async def test_two_wakes_of_one_run_at_once_drive_it_once(local: Path) -> None:
    run = await pr.start(counted)
    with Storage(local) as storage:
        coordinator = Coordinator("coordinator-0", EngineSettings(str(local)), storage=storage)
        woken = await asyncio.gather(*(coordinator.wake([run]) for _ in range(5)))
        assert {tuple(ids) for ids in woken} <= {(), (run,)}
        end = await coordinator.end_of(run)
        assert end is not None
        assert end.status == "completed"
        await coordinator.close()
    events = await run.events()
    assert [event.type for event in events].count("step.completed") == 2


def _lease_of(storage: Storage, run: str) -> datetime:
    record = storage.read(get_run(run))
    assert record is not None
    assert record.lease_expires_at is not None
    return record.lease_expires_at


async def test_a_run_that_is_held_and_not_driven_loses_its_lease(local: Path) -> None:
    """1. A client has a run accepted. 2. It dies before it tells. 3. Others are driven there."""
    # The driven run stays in memory, however slow this machine is.
    engine = EngineSettings(
        str(local), lease_ttl=timedelta(milliseconds=300), suspend_after=timedelta(days=1)
    )
    with Storage(local) as storage:
        coordinator = Coordinator("coordinator-0", engine, storage=storage)
        await coordinator.open()
        held = NewRun(
            run_id="run_1",
            workflow_name="counted",
            input_args="[]",
            input_kwargs="{}",
            coordinator="coordinator-0",
            owner_lease=0.3,
        )
        await storage.write(accept(held))
        driven = await pr.start(dozes)
        await coordinator.wake([driven])
        claimed = _lease_of(storage, driven)
        while [run.run_id for run in storage.read(orphans())] != ["run_1"]:
            await asyncio.sleep(0.01)
        while _lease_of(storage, driven) == claimed:  # it is renewed
            await asyncio.sleep(0.01)
        await coordinator.close()
