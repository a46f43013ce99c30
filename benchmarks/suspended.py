"""The cost of runs that only wait: rows, and nothing else."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

from clusters import EngineSettings, start_ray
from measurements import Line, Setting, progress
from workloads import sleeping

NAMESPACE = "suspended"
TTL = 5
WARM_UPS = 3
PATIENCE = 180.0
MAX_KIB_A_RUN = 2.0
"""Growth of memory for each sleeping run that still counts as no growth: allocators keep some memory."""


async def measure(setting: Setting) -> list[Line]:
    """Processes and memory of coordinators before a batch of runs has gone to sleep, and after."""
    from pyworkflow_ray import list_runs, start

    count = 200 if setting.quick else 1_000
    batches = WARM_UPS + 1
    start_ray()
    path = setting.folder / "suspended.db"
    EngineSettings(NAMESPACE, path, coordinator_ttl=f"{TTL}s", suspend_after="500ms").use()

    async def put_to_sleep() -> float:
        started = time.perf_counter()
        await asyncio.gather(*(start(sleeping, number) for number in range(count)))
        while await asyncio.to_thread(_count, path, "status != 'suspended'"):
            assert time.perf_counter() - started < PATIENCE, "the runs do not go to sleep"
            await asyncio.sleep(0.2)
        return time.perf_counter() - started

    progress("first batches, after which the coordinators have the memory that a batch takes")
    for _ in range(WARM_UPS):
        await put_to_sleep()
        await asyncio.sleep(2)  # a coordinator with nothing to do collects its garbage each second
    before = _resident(await _coordinators())
    progress("one more batch")
    seconds = await put_to_sleep()
    await asyncio.sleep(2)
    actors = await _coordinators()
    after, held = _resident(actors), [run for actor in actors for run in actor["runs"]]
    common = before.keys() & after.keys()
    growth = sum(after[pid] - before[pid] for pid in common) / count if common else 0.0
    progress("waiting for the coordinators to leave")
    left = await _wait_until_none(TTL + 30)
    asleep = _count(path, "status = 'suspended' AND owner IS NULL AND wake_at IS NOT NULL")
    assert asleep == batches * count
    first_page, _ = await list_runs(limit=1)
    assert first_page
    return [
        Line(f"{count:,} runs started and put to sleep", count / seconds, "runs/s"),
        Line(
            f"sleeping runs held by {len(actors)} coordinators", len(held), "runs", bar="0", is_met=not held
        ),
        Line(
            "memory of the coordinators for each sleeping run",
            growth,
            "KiB",
            bar=f"≤ {MAX_KIB_A_RUN:g} KiB",
            is_met=growth <= MAX_KIB_A_RUN,
        ),
        Line(
            f"coordinators left for {batches * count:,} sleeping runs",
            left,
            "processes",
            bar="0",
            is_met=not left,
        ),
        Line("database for each sleeping run", path.stat().st_size / 1024 / (batches * count), "KiB"),
    ]


async def _coordinators() -> list[dict[str, Any]]:
    """What each coordinator that is alive says of itself, with its process id."""
    import ray
    from ray.util import list_named_actors

    found = []
    for actor in await asyncio.to_thread(list_named_actors, all_namespaces=True):
        if actor["namespace"] != NAMESPACE or not actor["name"].startswith("coordinator-"):
            continue
        try:
            handle = await asyncio.to_thread(ray.get_actor, actor["name"], NAMESPACE)
            status = await asyncio.wait_for(handle.status.remote(), 10)
            found.append({**status, "pid": await handle.pid.remote()})
        except (ValueError, TimeoutError, ray.exceptions.RayActorError):
            continue  # this coordinator has left
    return found


def _resident(actors: list[dict[str, Any]]) -> dict[int, float]:
    """Resident memory of each coordinator in KiB, by process id."""
    page = os.sysconf("SC_PAGE_SIZE") / 1024
    pids = [int(actor["pid"]) for actor in actors]
    return {pid: int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * page for pid in pids}


async def _wait_until_none(seconds: float) -> int:
    deadline = time.monotonic() + seconds
    while (left := len(await _coordinators())) and time.monotonic() < deadline:
        await asyncio.sleep(1.0)
    return left


def _count(path: Path, condition: str) -> int:
    import sqlite3

    connection = sqlite3.connect(path)
    try:
        (count,) = connection.execute(f"SELECT count(*) FROM runs WHERE {condition}").fetchone()
        return int(count)
    finally:
        connection.close()
