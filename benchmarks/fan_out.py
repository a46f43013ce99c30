"""Many steps at once in one run, against as many bare Ray tasks."""

from __future__ import annotations

import time

from clusters import EngineSettings, start_ray
from floors import make_floor
from measurements import Line, Setting, compared, in_turns, progress
from workloads import ARGUMENT, all_at_once

AT_LEAST = 0.90


async def measure(setting: Setting) -> list[Line]:
    """Steps a second of runs that gather all their steps."""
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
    return lines
