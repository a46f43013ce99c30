"""Many steps at once in one run, compared with as many bare Ray tasks."""

from __future__ import annotations

import time
from typing import Any

from clusters import EngineSettings, start_ray
from distances import near_and_far
from floors import make_floor
from measurements import Line, Setting, compared, in_turns, progress
from workloads import ARGUMENT, all_at_once, in_batches, lengths_in_batches

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
    """Steps of a millisecond, and steps that take no time, many in one Ray task; as many bare tasks."""
    from pyworkflow_ray import start

    count = 1_000 if setting.quick else 10_000
    lines = []
    for what, workflow, task, expected, bar in (
        ("of 1 ms", in_batches, floor.pauses_at_once, sum(range(count)), AT_LEAST_IN_BATCHES),
        ("that take no time", lengths_in_batches, floor.lengths_at_once, count * len(ARGUMENT), None),
    ):

        async def ours(workflow: Any = workflow, expected: int = expected) -> float:
            started = time.perf_counter()
            total = await (await start(workflow, count, BATCH))
            elapsed = time.perf_counter() - started
            assert total == expected
            return count / elapsed

        async def bare(task: Any = task, expected: int = expected) -> float:
            elapsed, total = await task.remote(count)
            assert total == expected
            return count / float(elapsed)

        reached = await in_turns(3, {"pyworkflow_ray": ours, "bare tasks": bare})
        name = f"{count:,} remote steps {what} at once, batch_size={BATCH}"
        lines.append(compared(name, "steps/s", reached, "pyworkflow_ray", "bare tasks", at_least=bar))
    return lines
