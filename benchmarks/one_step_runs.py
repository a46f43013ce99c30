"""Many runs of one step each, started together: ours with the step on Ray, DBOS with the step in process."""

from __future__ import annotations

import asyncio
import time
from contextlib import ExitStack

from clusters import EngineSettings, start_ray
from measurements import Line, Setting, Side, compared, in_turns, progress
from peers import Dbos, dbos_on, postgresql, wal_file
from workloads import ARGUMENT, one_step

AT_LEAST = 5
WARM_UPS = 3


async def measure(setting: Setting) -> list[Line]:
    """Runs a second from the first start until the last has ended."""
    count = 200 if setting.quick else 500
    start_ray()
    with ExitStack() as stack:
        database = stack.enter_context(postgresql(setting.folder / "pg"))
        sqlite = stack.enter_context(dbos_on(wal_file(setting.folder / "dbos.db")))
        server = stack.enter_context(dbos_on(database("dbos")))
        folder = setting.folder
        engines = {
            "ours": EngineSettings("runs", folder / "ours.db"),
            "ours, 1 coordinator": EngineSettings("runs-1", folder / "ours1.db", coordinators=1),
            "ours, 2 coordinators": EngineSettings("runs-2", folder / "ours2.db", coordinators=2),
            "ours, PostgreSQL": EngineSettings("runs-pg", database("ours")),
        }
        sides: dict[str, Side] = {name: _ours(engine, count) for name, engine in engines.items()}
        sides["DBOS, SQLite"] = _theirs(sqlite, count)
        sides["DBOS, PostgreSQL"] = _theirs(server, count)
        for name, side in sides.items():
            progress(f"warming up: {name}")
            for _ in range(WARM_UPS):
                await side()
        reached = await in_turns(setting.rounds, sides)
    title = f"{count} one-step runs together"
    return [
        compared(f"{title}: {where}", "runs/s", reached, ours, other, at_least=bar)
        for where, ours, other, bar in (
            ("SQLite", "ours", "DBOS, SQLite", AT_LEAST),
            ("SQLite, coordinators=1", "ours, 1 coordinator", "DBOS, SQLite", None),
            ("SQLite, coordinators=2", "ours, 2 coordinators", "DBOS, SQLite", None),
            ("PostgreSQL", "ours, PostgreSQL", "DBOS, PostgreSQL", AT_LEAST),
        )
    ]


def _ours(engine: EngineSettings, count: int) -> Side:
    async def side() -> float:
        from pyworkflow_ray import start

        engine.use()
        await asyncio.gather(*[await start(one_step, number) for number in range(8)])
        started = time.perf_counter()
        runs = await asyncio.gather(*(start(one_step, number) for number in range(count)))
        results = await asyncio.gather(*runs)
        elapsed = time.perf_counter() - started
        assert results == [len(ARGUMENT) + number for number in range(count)]
        return count / elapsed

    return side


def _theirs(peer: Dbos, count: int) -> Side:
    async def side() -> float:
        return await asyncio.to_thread(peer.one_step_runs, count)

    return side
