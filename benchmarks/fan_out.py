"""Many steps at once in one run, compared with as many bare Ray tasks."""

from __future__ import annotations

import time
from typing import Any

from clusters import EngineSettings, start_ray
from distances import near_and_far
from floors import make_floor
from measurements import Line, Setting, compared, in_turns, progress
from workloads import ARGUMENT, all_at_once, in_batches

AT_LEAST = 0.90
AT_LEAST_IN_BATCHES = 2
BATCH = 32


async def measure(setting: Setting) -> list[Line]:
    """Steps per second of runs that gather all their steps."""
    from pyworkflow_ray import start

    start_ray()
    EngineSettings("fan-out", setting.folder / "fan_out.db").use()
    floor = make_floor("fan-out-floor")

    async def ours(count: int) -> float:
        started = time.perf_counter()
        total = await (await start(all_at_once, count))
        elapsed = time.perf_counter() - started
        assert total == count * len(ARGUMENT)
        return count / elapsed

    async def bare(count: int) -> float:
        elapsed, total = await floor.all_at_once.remote(count, ARGUMENT)
        assert total == count * len(ARGUMENT)
        return count / float(elapsed)

    progress("warming up")
    await ours(500)
    await bare(500)
    lines = []
    for count in (1_000,) if setting.quick else (1_000, 10_000):
        sides = {
            "pyworkflow_ray": lambda count=count: ours(count),
            "bare tasks": lambda count=count: bare(count),
        }
        reached = await in_turns(setting.rounds if count < 10_000 else 3, sides)
        name = f"{count:,} remote steps at once in one run"
        lines.append(compared(name, "steps/s", reached, "pyworkflow_ray", "bare tasks", at_least=AT_LEAST))
    lines += await _in_batches(setting, floor)
    name = "1,000 remote steps at once in one run"
    return [*lines, *await near_and_far(setting, name, "steps/s", lambda: ours(1_000))]


async def _in_batches(setting: Setting, floor: Any) -> list[Line]:
    """Steps of a millisecond, many in one Ray task, compared with as many bare tasks."""
    from pyworkflow_ray import start

    count = 1_000 if setting.quick else 10_000
    name = f"{count:,} remote steps of 1 ms at once, batch_size={BATCH}"
    expected = sum(range(count))

    async def ours() -> float:
        started = time.perf_counter()
        total = await (await start(in_batches, count, BATCH))
        elapsed = time.perf_counter() - started
        assert total == expected
        return count / elapsed

    async def bare() -> float:
        elapsed, total = await floor.pauses_at_once.remote(count)
        assert total == expected
        return count / float(elapsed)

    reached = await in_turns(3, {"pyworkflow_ray": ours, "bare tasks": bare})
    return [compared(name, "steps/s", reached, "pyworkflow_ray", "bare tasks", at_least=AT_LEAST_IN_BATCHES)]
