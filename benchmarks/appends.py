"""What one append and a group of appends cost: the storage alone, near and far."""

from __future__ import annotations

import asyncio
import statistics
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from databases import Postgresql, postgresql, round_trip_ms
from internals import History, events_of, histories, open_storage
from measurements import Line, Setting, at_most, progress

GROUP = 200
AT_MOST_TRIPS = 1.3


@dataclass(frozen=True, slots=True)
class _Costs:
    """How long appends take on one database, in milliseconds."""

    one: float
    group: float


async def measure(setting: Setting) -> list[Line]:
    """Milliseconds of one append and of a group of appends; far away also in round trips."""
    with ExitStack() as stack:
        database = stack.enter_context(postgresql(setting.folder / "pg", setting.delay_ms))
        sqlite = await _costs(setting, setting.folder / "appends.db")
        near = await _costs(setting, database.near())
        lines = [
            Line("one append: SQLite (WAL, FULL)", sqlite.one, "ms"),
            _group_line("SQLite (WAL, FULL)", sqlite),
            Line("one append: PostgreSQL", near.one, "ms"),
            _group_line("PostgreSQL", near),
        ]
        if not setting.delay_ms:
            return lines
        url = database.far()
        trip = round_trip_ms(url)
        progress(f"the far PostgreSQL: {trip:.2f} ms for the smallest question")
        far = await _costs(setting, url)
        counted = await _counted(url, database)
    smallest = f"the smallest question: {trip:.2f} ms"
    return [
        *lines,
        Line(f"one append: {setting.far}", far.one, "ms", smallest, far.one / trip),
        at_most("... that is", far.one / trip, "round trips", AT_MOST_TRIPS),
        Line("... beyond the same near, that is", (far.one - near.one) / trip, "round trips"),
        Line("... as the proxy counts them", counted, "round trips"),
        _group_line(setting.far, far),
        Line("... that is", far.group / trip, "round trips"),
    ]


def _group_line(where: str, costs: _Costs) -> Line:
    return Line(
        f"{GROUP} appends of as many runs, submitted together: {where}",
        costs.group,
        "ms",
        against=f"one after another: {costs.one * GROUP:,.0f}",
        ratio=costs.group / (costs.one * GROUP),
    )


async def _costs(setting: Setting, url: str | Path) -> _Costs:
    count, rounds = (40, 5) if setting.quick else (200, 20)
    with open_storage(url) as storage:
        runs = await histories(storage, GROUP)
        first = runs[0]
        await _all(runs)
        one = []
        for _ in range(count):
            started = time.perf_counter()
            await first.append()
            one.append(time.perf_counter() - started)
        group = []
        for _ in range(rounds):
            started = time.perf_counter()
            await _all(runs)
            group.append(time.perf_counter() - started)
        for run in (first, runs[-1]):
            assert events_of(storage, run.run_id) == run.position > 0
    return _Costs(statistics.median(one) * 1e3, statistics.median(group) * 1e3)


async def _all(runs: list[History]) -> None:
    await asyncio.gather(*(run.append() for run in runs))


async def _counted(url: str, database: Postgresql) -> float:
    """Round trips of one append, counted by the proxy."""
    count = 20
    with open_storage(url) as storage:
        (run,) = await histories(storage, 1)
        for _ in range(10):
            await run.append()
        before = database.trips()
        for _ in range(count):
            await run.append()
        return (database.trips() - before) / count
