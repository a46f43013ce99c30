"""Local steps, one after another in one run, against DBOS on the same databases."""

from __future__ import annotations

import asyncio
import time
from contextlib import ExitStack

from clusters import EngineSettings, start_ray
from measurements import Line, Setting, Side, compared, in_turns, progress
from peers import Dbos, dbos_on, our_pragmas, postgresql, wal_file
from workloads import counting

AT_LEAST = 5


async def measure(setting: Setting) -> list[Line]:
    """Steps a second on a coordinator actor, in this process, and of DBOS; on SQLite and PostgreSQL."""
    count = 200 if setting.quick else 1_000
    start_ray()
    with ExitStack() as stack:
        database = stack.enter_context(postgresql(setting.folder / "pg"))
        wal, as_shipped, server = (
            stack.enter_context(dbos_on(url))
            for url in (
                wal_file(setting.folder / "dbos_wal.db"),
                f"sqlite:///{setting.folder / 'dbos.db'}",
                database("dbos"),
            )
        )
        file = setting.folder / "ours.db"
        progress(f"pyworkflow_ray on SQLite: {our_pragmas(file)}")
        for name, peer in (("SQLite", wal), ("SQLite as shipped", as_shipped), ("PostgreSQL", server)):
            progress(f"DBOS {peer.facts['version']} on {name}: {peer.facts['durability']}")
        engines = {
            "ours, SQLite": EngineSettings("local-steps", file),
            "ours in process, SQLite": EngineSettings(
                "local-steps-here", setting.folder / "here.db", default_runtime="local"
            ),
            "ours, PostgreSQL": EngineSettings("local-steps-pg", database("ours")),
        }
        sides: dict[str, Side] = {name: _ours(engine, count) for name, engine in engines.items()}
        sides["DBOS, SQLite"] = _theirs(wal, count)
        sides["DBOS, SQLite as shipped"] = _theirs(as_shipped, count)
        sides["DBOS, PostgreSQL"] = _theirs(server, count)
        progress("warming up")
        for side in [*(_ours(engine, 50) for engine in engines.values()), *list(sides.values())[3:]]:
            await side()
        reached = await in_turns(setting.rounds, sides)
    title = f"{count:,} local steps, one after another"
    return [
        compared(f"{title}: {where}", "steps/s", reached, ours, other, at_least=bar)
        for where, ours, other, bar in (
            ("SQLite (WAL, FULL)", "ours, SQLite", "DBOS, SQLite", AT_LEAST),
            ("SQLite, in process", "ours in process, SQLite", "DBOS, SQLite", AT_LEAST),
            ("SQLite, DBOS as shipped", "ours, SQLite", "DBOS, SQLite as shipped", None),
            ("PostgreSQL", "ours, PostgreSQL", "DBOS, PostgreSQL", AT_LEAST),
        )
    ]


def _ours(engine: EngineSettings, count: int) -> Side:
    async def side() -> float:
        from pyworkflow_ray import start

        engine.use()
        await (await start(counting, 5))
        started = time.perf_counter()
        total = await (await start(counting, count))
        elapsed = time.perf_counter() - started
        assert total == count
        return count / elapsed

    return side


def _theirs(peer: Dbos, count: int) -> Side:
    async def side() -> float:
        return await asyncio.to_thread(peer.sequential_steps, count)

    return side
