"""Waiting for the time of a run on the real clock."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pyworkflow_ray as pr
from pyworkflow_ray.client.lookups import read_record
from pyworkflow_ray.client.sessions import session


async def until_due(run: str) -> None:
    """Return when the run is suspended, and the time has come for which it waits."""
    while True:
        record = await read_record(session(), str(run))
        assert not record.status.is_terminal
        is_suspended = record.status is pr.RunStatus.SUSPENDED
        if is_suspended and record.wake_at is not None and record.wake_at < datetime.now(UTC):
            return
        await asyncio.sleep(0.01)
