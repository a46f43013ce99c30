"""One remote step after another, compared with the floor: a bare task and a bare commit for each step."""

from __future__ import annotations

import statistics
import time

from clusters import EngineSettings, start_ray
from distances import near_and_far
from floors import make_floor, seconds_of_commits
from measurements import Line, Setting, compared, in_turns, progress
from workloads import ARGUMENT, one_after_another

AT_LEAST = 0.85


async def measure(setting: Setting) -> list[Line]:
    """Steps per second, and their share of the floor's rate."""
    from pyworkflow_ray import start

    count = 100 if setting.quick else 300
    start_ray()
    EngineSettings("sequential", setting.folder / "sequential.db").use()
    floor = make_floor("sequential-floor")
    bare_tasks: list[float] = []
    bare_commits: list[float] = []

    async def ours() -> float:
        started = time.perf_counter()
        total = await (await start(one_after_another, count))
        elapsed = time.perf_counter() - started
        assert total == count * len(ARGUMENT)
        return count / elapsed

    async def floor_rate() -> float:
        tasks, total = await floor.one_by_one.remote(count, ARGUMENT)
        assert total == count * len(ARGUMENT)
        commits = seconds_of_commits(setting.folder / "floor.db", count)
        bare_tasks.append(tasks / count)
        bare_commits.append(commits / count)
        return count / (tasks + commits)

    progress("warming up")
    await (await start(one_after_another, 50))
    await floor.one_by_one.remote(50, ARGUMENT)
    reached = await in_turns(setting.rounds, {"pyworkflow_ray": ours, "floor": floor_rate})
    line = compared(
        f"{count} remote steps, one after another",
        "steps/s",
        reached,
        "pyworkflow_ray",
        "floor",
        at_least=AT_LEAST,
    )
    assert line.value is not None
    task, commit = (statistics.median(values) * 1e3 for values in (bare_tasks, bare_commits))
    return [
        line,
        Line("... of the floor: a bare Ray task", task, "ms"),
        Line("... of the floor: a bare commit", commit, "ms"),
        Line("... one of our steps", 1e3 / line.value, "ms"),
        *await near_and_far(setting, f"{count} remote steps, one after another", "steps/s", ours),
    ]
