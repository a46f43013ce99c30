"""Many runs of one step each, started together. Our step is a Ray task; a peer's step is in its process."""

from __future__ import annotations

import asyncio
import time
from contextlib import ExitStack

from clusters import EngineSettings, start_ray
from databases import postgresql, round_trip_ms, wal_file
from floors import make_floor
from measurements import Line, Setting, Side, compared, in_turns, progress
from peers import dbos_on, restate_in, sides_of
from workloads import ARGUMENT, one_step

AT_LEAST = 5
AT_LEAST_FAR = 2
AT_LEAST_OF_NEAR = 0.7
WARM_UPS = 3


async def measure(setting: Setting) -> list[Line]:
    """Runs per second from the first start to the last end; near and far."""
    count = 200 if setting.quick else 500
    folder = setting.folder
    start_ray()
    floor = make_floor("runs-floor")
    with ExitStack() as stack:
        database = stack.enter_context(postgresql(folder / "pg", setting.delay_ms))
        dbos_urls = {
            "DBOS, SQLite": wal_file(folder / "dbos.db"),
            "DBOS, PostgreSQL": database.near(),
        }
        engines = {
            "ours": EngineSettings("runs", folder / "ours.db"),
            "ours, 1 coordinator": EngineSettings("runs-1", folder / "ours1.db", coordinators=1),
            "ours, 2 coordinators": EngineSettings("runs-2", folder / "ours2.db", coordinators=2),
            "ours, PostgreSQL": EngineSettings("runs-pg", database.near()),
        }
        if setting.delay_ms:
            dbos_urls["DBOS, far"] = database.far()
            url = database.far()
            engines["ours, far"] = EngineSettings("runs-far", url)
            progress(f"the far PostgreSQL: {round_trip_ms(url):.2f} ms for the smallest question")
        peers = {name: (stack.enter_context(dbos_on(url)), count) for name, url in dbos_urls.items()}
        peers["Restate"] = (stack.enter_context(restate_in(folder / "restate")), count)
        for name, (peer, _) in peers.items():
            progress(f"{name}: {peer.facts}")
        sides: dict[str, Side] = {name: _ours(engine, count) for name, engine in engines.items()}
        theirs, absent = sides_of(peers, "one_step_runs")

        async def bare() -> float:
            await floor.all_at_once.remote(8, ARGUMENT)  # Ray has stopped its idle workers meanwhile
            elapsed, total = await floor.all_at_once.remote(count, ARGUMENT)
            assert total == count * len(ARGUMENT)
            return count / float(elapsed)

        sides |= theirs | {"bare tasks": bare}
        for name, side in sides.items():
            progress(f"warming up: {name}")
            for _ in range(1 if "far" in name else WARM_UPS):
                await side()
        reached = await in_turns(setting.rounds, sides)
    title = f"{count} one-step runs together"
    comparisons: list[tuple[str, str, str, float | None]] = [
        ("SQLite", "ours", "DBOS, SQLite", AT_LEAST),
        ("SQLite, of as many bare tasks", "ours", "bare tasks", None),
        ("SQLite, coordinators=1", "ours, 1 coordinator", "DBOS, SQLite", None),
        ("SQLite, coordinators=2", "ours, 2 coordinators", "DBOS, SQLite", None),
        ("SQLite, Restate on its own log", "ours", "Restate", None),
        ("PostgreSQL", "ours, PostgreSQL", "DBOS, PostgreSQL", None),
    ]
    if setting.delay_ms:
        comparisons += [
            (setting.far, "ours, far", "DBOS, far", AT_LEAST_FAR),
            (f"{setting.far}, of the same near", "ours, far", "ours, PostgreSQL", AT_LEAST_OF_NEAR),
        ]
    return [
        compared(f"{title}: {where}", "runs/s", reached, ours, other, at_least=bar, absent=absent)
        for where, ours, other, bar in comparisons
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
