"""What a coordinator that cannot renew its leases promises: it begins nothing that others may begin, too."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

import pyworkflow_ray as pr
from pyworkflow_ray.actors.codes import pack
from pyworkflow_ray.actors.coordinator import Coordinator
from pyworkflow_ray.actors.new_runs import new_run
from pyworkflow_ray.actors.settings import EngineSettings
from pyworkflow_ray.storage.acceptances import accept
from pyworkflow_ray.storage.histories import read_events
from pyworkflow_ray.storage.runs import get_run
from pyworkflow_ray.storage.storages import Storage
from pyworkflow_ray.values import codec
from tests.local.notes import notes, write_note

LEASE = 0.4
PAUSE = 1.2


@pr.step(local=True, max_retries=3, retry_delay=PAUSE)
async def renewal_fails_once(folder: str) -> str:
    write_note(folder, "attempt")
    if len(notes(Path(folder))) == 1:
        raise pr.RetryableError("again")
    return "done"


@pr.workflow
async def renewal_retries(folder: str) -> str:
    return await renewal_fails_once(folder)


@pytest.fixture
async def waiting(tmp_path: Path) -> AsyncIterator[tuple[Path, Storage, Coordinator, str]]:
    """A coordinator with a run whose step has failed once and is due again after `PAUSE`."""
    path = tmp_path / "local.db"
    settings = EngineSettings(str(path), lease_ttl=timedelta(seconds=LEASE), suspend_after=timedelta(days=1))
    with Storage(path) as storage:
        coordinator = Coordinator("coordinator-9", settings, storage=storage)
        await coordinator.open()
        code = pack(renewal_retries, "the workflow")
        options = {"coordinator": "coordinator-9", "owner_lease": LEASE}
        new = new_run(
            settings, renewal_retries, code, "run_1", codec.encode([str(tmp_path)]), b"{}", **options
        )
        run = (await storage.write(accept(new))).run
        await coordinator.accept_runs([run])
        while "step.retrying" not in [type_ for _, _, type_, _ in storage.read(read_events("run_1"))]:
            await asyncio.sleep(0.01)
        yield path, storage, coordinator, "run_1"
        await coordinator.close()


def _locked(path: Path) -> sqlite3.Connection:
    """A connection that has locked the database: nothing can be renewed."""
    connection = sqlite3.connect(path, isolation_level=None, timeout=10)
    connection.execute("BEGIN IMMEDIATE")
    return connection


async def _until_the_step_is_due() -> None:
    until = time.monotonic() + PAUSE + LEASE
    while time.monotonic() < until:
        await asyncio.sleep(0.02)


async def test_nothing_is_dispatched_while_the_leases_cannot_be_renewed(
    waiting: tuple[Path, Storage, Coordinator, str],
) -> None:
    path, storage, coordinator, run = waiting
    lock = _locked(path)
    await _until_the_step_is_due()
    assert len(notes(path.parent)) == 1
    lock.execute("ROLLBACK")
    end = await coordinator.end_of(run)
    assert end is not None
    assert (end.status, len(notes(path.parent))) == ("completed", 2)
    record = storage.read(get_run(run))
    assert record is not None
    assert record.recovery_attempts == 0


async def test_a_run_that_was_taken_over_meanwhile_is_dropped_and_nothing_is_dispatched(
    waiting: tuple[Path, Storage, Coordinator, str],
) -> None:
    path, _, coordinator, run = waiting
    ending = asyncio.ensure_future(coordinator.end_of(run))
    lock = _locked(path)
    await _until_the_step_is_due()
    lock.execute(
        "UPDATE runs SET epoch = epoch + 1, owner = 'another', "
        "lease_expires_at = '2099-01-01 00:00:00.000000' WHERE run_id = ?",
        [run],
    )
    lock.execute("COMMIT")
    end = await ending
    assert end is not None
    assert (end.status, len(notes(path.parent))) == ("lost", 1)
    assert not coordinator.is_driving(run)
