"""Whether a million sleeping runs slow the engine down, and how fast thousands go on if due together."""

from __future__ import annotations

import asyncio
import sqlite3
import statistics
import time
from collections.abc import Awaitable, Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

from clusters import EngineSettings, start_ray
from measurements import Line, Setting, at_most, progress
from workloads import late_by, one_local_step, sleeping, sleeping_until

AT_MOST = 1.3
"""The highest ratio that passes: the time with all runs asleep over the time with a page of them.

It is above 1 because of noise.
"""
PAGE = 100
AT_MOST_SECONDS = 5
PATIENCE = 300.0
CHUNK = 100_000

Taken = Callable[[], Awaitable[float]]
"""Does something once, and returns the milliseconds that it took."""


async def measure(setting: Setting) -> list[Line]:
    """Start, list and wake beside a few sleeping runs and beside a million; then thousands due at once."""
    many, due = (20_000, 300) if setting.quick else (1_000_000, 5_000)
    start_ray()
    path = setting.folder / "many.db"
    EngineSettings("many", path, suspend_after="300ms").use()
    await _put_to_sleep(path, PAGE)
    with_few = await _medians(setting)
    seconds = await _put_to_sleep(path, many)
    with_many = await _medians(setting)
    lines = [
        Line(
            f"{what}, {many:,} suspended runs beside",
            milliseconds,
            "ms",
            against=f"a page of them: {with_few[what]:.2f}",
            ratio=milliseconds / with_few[what],
            bar=f"≤ {AT_MOST:g}x",
            is_met=milliseconds <= AT_MOST * with_few[what],
        )
        for what, milliseconds in with_many.items()
    ]
    progress(f"{many:,} rows of sleeping runs took {seconds:.0f} s; now {due:,} runs that are due at once")
    took = await _all_due_at_once(path, due)
    return [
        *lines,
        at_most(f"{due:,} runs due at once, until the last has ended", took, "s", AT_MOST_SECONDS),
    ]


async def _medians(setting: Setting) -> dict[str, float]:
    count = 10 if setting.quick else 40
    sides: dict[str, tuple[Taken, int]] = {
        "start to result, p50": (_started, count),
        "the newest page of runs, p50": (_listed, count),
        "the newest page of suspended runs, p50": (_listed_suspended, count),
        "a sleeping run goes on after its time, p50": (_woken, count // 2),
    }
    medians = {}
    for name, (taken, times) in sides.items():
        for _ in range(3):
            await taken()
        medians[name] = statistics.median([await taken() for _ in range(times)])
        progress(f"{name}: {medians[name]:.2f} ms")
    return medians


async def _started() -> float:
    from pyworkflow_ray import start

    started = time.perf_counter()
    assert await (await start(one_local_step, 1)) == 2
    return (time.perf_counter() - started) * 1e3


async def _listed() -> float:
    from pyworkflow_ray import list_runs

    started = time.perf_counter()
    page, _ = await list_runs(limit=PAGE)
    assert len(page) == PAGE
    return (time.perf_counter() - started) * 1e3


async def _listed_suspended() -> float:
    from pyworkflow_ray import RunStatus, list_runs

    started = time.perf_counter()
    page, _ = await list_runs(limit=PAGE, status=RunStatus.SUSPENDED)
    assert [run.status for run in page] == [RunStatus.SUSPENDED] * PAGE
    return (time.perf_counter() - started) * 1e3


async def _woken() -> float:
    from pyworkflow_ray import start

    return await (await start(late_by, 1.0)) * 1e3


async def _put_to_sleep(path: Path, many: int) -> float:
    """Add so many rows of suspended runs, all copies of an existing one; the seconds that it took.

    They have no histories, since nothing wakes them here.
    """
    from pyworkflow_ray import start

    run = await start(sleeping, 1)
    while not await asyncio.to_thread(_count, path, f"status = 'suspended' AND run_id = '{run}'"):
        await asyncio.sleep(0.1)
    started = time.perf_counter()
    await asyncio.to_thread(_copy, path, str(run), many)
    assert await asyncio.to_thread(_count, path, "status = 'suspended'") >= many
    return time.perf_counter() - started


def _copy(path: Path, run_id: str, many: int) -> None:
    with closing(sqlite3.connect(path, isolation_level=None, timeout=60)) as connection:
        columns = [row[1] for row in connection.execute("PRAGMA table_info(runs)")]
        new = {
            "run_id": "run_id || '-' || number",
            "root_run_id": "run_id || '-' || number",
            "created_at": "strftime('%Y-%m-%d %H:%M:%f000', created_at, printf('-%d seconds', number))",
            "wake_at": "strftime('%Y-%m-%d %H:%M:%f000', wake_at, printf('+%d seconds', number))",
        }
        copied = ", ".join(new.get(column, column) for column in columns)
        for first in range(0, many, CHUNK):
            connection.execute(
                f"""
                WITH RECURSIVE numbers(number) AS (
                    SELECT :first UNION ALL SELECT number + 1 FROM numbers WHERE number + 1 < :end
                )
                INSERT INTO runs ({", ".join(columns)})
                SELECT {copied} FROM runs, numbers WHERE run_id = :run_id
                """,
                {"first": first, "end": min(first + CHUNK, many), "run_id": run_id},
            )
        connection.execute("ANALYZE")


async def _all_due_at_once(path: Path, count: int) -> float:
    """Seconds from the instant for which all of them wait until the last one has ended."""
    from pyworkflow_ray import start

    before = await asyncio.to_thread(_count, path, "status = 'suspended'")
    due_at = datetime.now(UTC) + timedelta(seconds=20 + count / 60)
    await asyncio.gather(*(start(sleeping_until, due_at) for _ in range(count)))
    while await asyncio.to_thread(_count, path, "status = 'suspended'") < before + count:
        assert datetime.now(UTC) < due_at, "the runs are not asleep before they are due"
        await asyncio.sleep(0.2)
    ended = await asyncio.to_thread(_count, path, "status = 'completed'")
    await asyncio.sleep((due_at - datetime.now(UTC)).total_seconds())
    while await asyncio.to_thread(_count, path, "status = 'completed'") < ended + count:
        assert datetime.now(UTC) < due_at + timedelta(seconds=PATIENCE), "the runs do not go on"
        await asyncio.sleep(0.1)
    return (datetime.now(UTC) - due_at).total_seconds()


def _count(path: Path, condition: str) -> int:
    with closing(sqlite3.connect(path)) as connection:
        (count,) = connection.execute(f"SELECT count(*) FROM runs WHERE {condition}").fetchone()
        return int(count)
