"""How long it takes from `start` to the first step and to the result, and from a payload to the code."""

from __future__ import annotations

import asyncio
import statistics
import time

from clusters import EngineSettings, start_ray
from databases import postgresql, round_trip_ms
from measurements import Line, Setting, at_most, percentile, progress
from workloads import answered_at, first_step_at, signalled_at

BAR_MS = 6
PAYLOAD_BAR_MS = 10
AT_MOST_TRIPS = 4
"""How many round trips more a far database may cost from start to result."""
TURN = 10
"""How many runs follow one another on one engine, before it is the other's turn."""


async def measure(setting: Setting) -> list[Line]:
    """Median and 95th percentile of runs started one after another, to their first step and their result."""
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
    to_code = await _answered(count)
    answered = statistics.median(to_code)
    signalled = await _signalled(count)
    return [
        Line("start to first step running, p50", median, "ms", bar=f"< {BAR_MS} ms", is_met=median < BAR_MS),
        Line("start to first step running, p95", percentile(to_step, 0.95), "ms"),
        Line("start to result, p50", statistics.median(to_result), "ms"),
        Line("start to result, p95", percentile(to_result, 0.95), "ms"),
        Line(
            "payload of a hook given to code resumed, resident run, p50",
            answered,
            "ms",
            bar=f"< {PAYLOAD_BAR_MS} ms",
            is_met=answered < PAYLOAD_BAR_MS,
        ),
        Line("payload of a hook given to code resumed, p95", percentile(to_code, 0.95), "ms"),
        Line("signal given to code resumed, resident run, p50", statistics.median(signalled), "ms"),
        *(await _near_and_far(setting, count) if setting.delay_ms else []),
    ]


async def _near_and_far(setting: Setting, count: int) -> list[Line]:
    """From start to result on PostgreSQL, and how many round trips more it takes when far away."""
    with postgresql(setting.folder / "pg", setting.delay_ms) as database:
        near, far = EngineSettings("latency-near", database.near()), database.far()
        trip = round_trip_ms(far)
        progress(f"the far PostgreSQL: {trip:.2f} ms for the smallest question")
        engines = {"near": near, "far": EngineSettings("latency-far", far)}
        took: dict[str, list[float]] = {"near": [], "far": []}
        trips = 0
        for turn in range(1 + count // TURN):
            for name, engine in engines.items():
                engine.use()
                await _from_start_to_result()  # the first one opens the engine, and is not counted
                before = database.trips()
                milliseconds = [await _from_start_to_result() for _ in range(TURN)]
                if turn > 0:  # the first turns warm up
                    took[name] += milliseconds
                    trips += database.trips() - before if name == "far" else 0
    near_ms, far_ms = (statistics.median(took[name]) for name in ("near", "far"))
    return [
        Line("start to result, PostgreSQL, p50", near_ms, "ms"),
        Line(f"start to result, {setting.far}, p50", far_ms, "ms", f"the smallest question: {trip:.2f} ms"),
        at_most("... more than near, that is", (far_ms - near_ms) / trip, "round trips", AT_MOST_TRIPS),
        Line("... as the proxy counts them", trips / len(took["far"]), "round trips"),
    ]


async def _from_start_to_result() -> float:
    from pyworkflow_ray import start

    asked_at = time.time()
    ran_at = await (await start(first_step_at))
    ended_at = time.time()
    assert asked_at < ran_at < ended_at
    return (ended_at - asked_at) * 1e3


async def _answered(count: int) -> list[float]:
    """Milliseconds from before `resume_hook` until the code goes on."""
    from pyworkflow_ray import get_hook, resume_hook, start

    run = await start(answered_at, count)
    given = []
    for number in range(count):
        token = f"{run}-{number}"
        while await get_hook(token) is None:
            await asyncio.sleep(0.002)
        await asyncio.sleep(0.005)  # now the code waits, and the coordinator is idle
        given.append(time.time())
        await resume_hook(token, number)
    return [(at - before) * 1e3 for before, at in zip(given, await run, strict=True)]


async def _signalled(count: int) -> list[float]:
    """Milliseconds from before `signal` until the code goes on."""
    from pyworkflow_ray import start

    run = await start(signalled_at, count)
    given = []
    for _ in range(count):
        await asyncio.sleep(0.05)
        given.append(time.time())
        await run.signal("tick")
    return [(at - before) * 1e3 for before, at in zip(given, await run, strict=True)]
