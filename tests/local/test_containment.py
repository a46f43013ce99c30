"""What goes wrong with one run in a coordinator stays with it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

import pyworkflow_ray as pr
from pyworkflow_ray.actors.drives import Drive
from pyworkflow_ray.storage.runs import get_run
from pyworkflow_ray.storage.storages import Storage


@pr.step(local=True)
async def one() -> int:
    return 1


@pr.workflow
async def counted() -> int:
    total = await one()
    await pr.sleep(0.2)
    return total + await one()


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
        record = storage.read(lambda connection: get_run(connection, run))
    assert record is not None
    assert (record.owner, record.status.is_terminal) == (None, False)
    monkeypatch.setattr(Drive, "_open", whole)
    await pr.resume(run)
    await asyncio.sleep(0.2)
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
