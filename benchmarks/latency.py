"""How long it takes from `start` until the first step runs, on a coordinator that is warm."""

from __future__ import annotations

import statistics
import time

from clusters import EngineSettings, start_ray
from measurements import Line, Setting, percentile, progress
from workloads import first_step_at

BAR_MS = 10


async def measure(setting: Setting) -> list[Line]:
    """Median and 95th percentile, of runs started one after another; and of their results' way back."""
    from pyworkflow_ray import start

    count = 30 if setting.quick else 100
    start_ray()
    EngineSettings("latency", setting.folder / "latency.db").use()
    progress("warming up")
    for _ in range(10):
        await (await start(first_step_at))
    to_step, to_result = [], []
    for _ in range(count):
        asked_at = time.time()
        ran_at = await (await start(first_step_at))
        to_step.append((ran_at - asked_at) * 1e3)
        to_result.append((time.time() - asked_at) * 1e3)
        assert 0 < to_step[-1] < to_result[-1]
    median = statistics.median(to_step)
    return [
        Line("start to first step running, p50", median, "ms", bar=f"< {BAR_MS} ms", is_met=median < BAR_MS),
        Line("start to first step running, p95", percentile(to_step, 0.95), "ms"),
        Line("start to result, p50", statistics.median(to_result), "ms"),
        Line("start to result, p95", percentile(to_result, 0.95), "ms"),
    ]
