"""Local steps, one after another in one run, compared with two peers and with bare commits."""

from __future__ import annotations

import asyncio
import time
from contextlib import ExitStack

from clusters import EngineSettings, start_ray
from databases import postgresql, round_trip_ms, wal_file
from floors import seconds_of_commits
from internals import our_pragmas
from measurements import Line, Setting, Side, compared, in_turns, progress
from peers import dbos_on, restate_in, sides_of
from workloads import counting

AT_LEAST = 4
AT_LEAST_OF_COMMITS = 0.5
AT_LEAST_FAR = 8
FAR_SHARE = 5
"""With a far database the number of steps is divided by this."""


async def measure(setting: Setting) -> list[Line]:
    """Steps per second on a coordinator actor, in this process, and of the peers; near and far."""
    count = 200 if setting.quick else 1_000
    far_count = count // FAR_SHARE
    folder = setting.folder
    start_ray()
    with ExitStack() as stack:
        database = stack.enter_context(postgresql(folder / "pg", setting.delay_ms))
        dbos_urls = {
            "DBOS, SQLite": wal_file(folder / "dbos_wal.db"),
            "DBOS, SQLite as shipped": f"sqlite:///{folder / 'dbos.db'}",
            "DBOS, PostgreSQL": database.near(),
        }
        engines = {
            "ours, SQLite": (EngineSettings("local-steps", folder / "ours.db"), count),
            "ours in process, SQLite": (
                EngineSettings("local-steps-here", folder / "here.db", default_runtime="local"),
                count,
            ),
            "ours, PostgreSQL": (EngineSettings("local-steps-pg", database.near()), count),
        }
        if setting.delay_ms:
            dbos_urls["DBOS, far"] = database.far()
            url = database.far()
            engines["ours, far"] = (EngineSettings("local-steps-far", url), far_count)
            progress(f"the far PostgreSQL: {round_trip_ms(url):.2f} ms for the smallest question")
        peers = {
            name: (stack.enter_context(dbos_on(url)), far_count if name == "DBOS, far" else count)
            for name, url in dbos_urls.items()
        }
        peers["Restate"] = (stack.enter_context(restate_in(folder / "restate")), count)
        progress(f"pyworkflow_ray on SQLite: {our_pragmas(folder / 'ours.db')}")
        for name, (peer, _) in peers.items():
            progress(f"{name}: {peer.facts}")
        ours = {name: _ours(*engine) for name, engine in engines.items()}
        theirs, absent = sides_of(peers, "sequential_steps")
        progress("warming up")
        for side in (*(_ours(engine, 50) for engine, _ in engines.values()), *theirs.values()):
            await side()

        async def commits() -> float:
            return count / await asyncio.to_thread(seconds_of_commits, folder / "commits.db", count)

        reached = await in_turns(setting.rounds, {**ours, **theirs, "bare commits": commits})
    title, far_title = (f"{number:,} local steps, one after another" for number in (count, far_count))
    comparisons: list[tuple[str, str, str, float | None]] = [
        (f"{title}: SQLite (WAL, FULL)", "ours, SQLite", "DBOS, SQLite", AT_LEAST),
        (f"{title}: SQLite, of the bare commits", "ours, SQLite", "bare commits", AT_LEAST_OF_COMMITS),
        (f"{title}: SQLite, in process", "ours in process, SQLite", "DBOS, SQLite", None),
        (f"{title}: SQLite, DBOS as shipped", "ours, SQLite", "DBOS, SQLite as shipped", None),
        (f"{title}: SQLite, Restate on its own log", "ours, SQLite", "Restate", None),
        (f"{title}: PostgreSQL", "ours, PostgreSQL", "DBOS, PostgreSQL", None),
    ]
    if setting.delay_ms:
        comparisons.append((f"{far_title}: {setting.far}", "ours, far", "DBOS, far", AT_LEAST_FAR))
    return [
        compared(name, "steps/s", reached, side, other, at_least=bar, absent=absent)
        for name, side, other, bar in comparisons
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
