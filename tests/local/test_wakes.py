"""Runs that are woken at once: few calls, and few waits for the database."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

import pyworkflow_ray as pr
from pyworkflow_ray.client.coordinators import CoordinatorClient
from pyworkflow_ray.client.runtimes import LocalRuntime
from pyworkflow_ray.client.sessions import session

RUNS = 20


class Calls:
    """A coordinator as `CoordinatorClient` sees it, which answers once it is let."""

    def __init__(self) -> None:
        self.wakes: list[list[str]] = []
        self.woken = asyncio.Event()
        self.is_open = asyncio.Event()

    async def call(self, callee: str, method: str, run_ids: list[str], **limits: float) -> list[str]:
        assert (callee, method) == ("coordinator-0", "wake")
        self.wakes.append(run_ids)
        self.woken.set()
        await self.is_open.wait()
        return run_ids


async def test_wakes_that_come_during_a_call_go_together_in_the_next() -> None:
    calls = Calls()
    cluster: Any = SimpleNamespace(handles=calls, coordinator_callee=lambda name, environment: name)
    client = CoordinatorClient(cluster, "coordinator-0", "", "")
    first = asyncio.create_task(client.wake(["a"]))
    await calls.woken.wait()
    later = [asyncio.create_task(client.wake(run_ids)) for run_ids in (["b"], ["c", "a"], ["b"])]
    await asyncio.sleep(0)  # they have begun
    calls.is_open.set()
    await asyncio.gather(first, *later)
    assert calls.wakes == [["a"], ["b", "c", "a"]]


@pr.workflow
async def waits(token: str) -> Any:
    return await pr.hook("payload", token=token)


async def test_runs_that_are_driven_are_held_again_in_one_write(monkeypatch: pytest.MonkeyPatch) -> None:
    pr.configure(default_runtime="local", storage="memory", suspend_after="1h", lease_ttl="1h")
    of = session()
    starts = [asyncio.create_task(pr.start(waits, f"held-{number}")) for number in range(RUNS)]
    while len((await pr.list_hooks(status="pending"))[0]) < RUNS:
        await asyncio.sleep(0.01)
    assert isinstance(of.runtime, LocalRuntime)
    coordinator = of.runtime.coordinator()
    run_ids = [drive.run_id for drive in coordinator.drives]
    assert len(run_ids) == RUNS
    writes = []
    write = of.storage.write

    async def counted(task: Any) -> Any:
        writes.append(task)
        return await write(task)

    monkeypatch.setattr(of.storage, "write", counted)
    assert sorted(await coordinator.wake(run_ids)) == sorted(run_ids)
    assert len(writes) == 1

    await asyncio.gather(*(pr.resume_hook(f"held-{number}", number) for number in range(RUNS)))
    runs = await asyncio.gather(*starts)
    assert await asyncio.gather(*runs) == list(range(RUNS))
