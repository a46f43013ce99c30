"""How the parts that all runs share scale: writers, a coordinator, a timer, a hook registry; without Ray."""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import count
from typing import Any

import internals
from clusters import EngineSettings
from databases import postgresql
from measurements import Line, Setting, progress
from workloads import one_local_step

PROCESSES = (1, 2, 4, 8)
RUNS_A_PROCESS = 64
"""Runs of each process. Each run appends again as soon as its last append is answered."""
PATIENCE = 300.0


async def measure(setting: Setting) -> list[Line]:
    """The rate of each part alone; on SQLite, on PostgreSQL, and on a PostgreSQL far away."""
    with ExitStack() as stack:
        database = stack.enter_context(postgresql(setting.folder / "pg", setting.delay_ms))
        places: dict[str, Callable[[], str]] = {"PostgreSQL": database.near}
        if setting.delay_ms:
            places[setting.far] = database.far
        lines = []
        for where, make in places.items():
            lines += await asyncio.to_thread(_writers, setting, where, make)
        files = (str(setting.folder / f"{number}.db") for number in count())
        for where, make in ({"SQLite": partial(next, files)} | places).items():
            for part in (_coordinator, _timer, _hook_registry):
                lines.append(await part(setting, where, make()))
    return lines


# --- writers ------------------------------------------------------------------------------------------


def _writers(setting: Setting, where: str, make: Callable[[], str]) -> list[Line]:
    seconds = 1.5 if setting.quick else 5.0
    first = None
    lines = []
    for processes in PROCESSES[:2] if setting.quick else PROCESSES:
        rate = _appends_a_second(make(), processes, seconds)
        first = first or rate
        progress(f"{processes} writers, {where}: {rate:,.0f} appends/s")
        name = f"{processes} writer processes: {where}" if processes > 1 else f"1 writer process: {where}"
        lines.append(Line(name, rate, "appends/s", against=f"one: {first:,.0f}", ratio=rate / first))
    return lines


def _appends_a_second(url: str, processes: int, seconds: float) -> float:
    with internals.open_storage(url) as storage:
        storage.facts()  # creates the tables before many processes look for them
    spawning = multiprocessing.get_context("spawn")
    ready, counts = spawning.Barrier(processes), spawning.Queue()
    children = [spawning.Process(target=_write, args=(url, seconds, ready, counts)) for _ in range(processes)]
    for child in children:
        child.start()
    rates = [counts.get(timeout=PATIENCE) for _ in children]
    for child in children:
        child.join(PATIENCE)
        assert child.exitcode == 0
    return float(sum(rates))


def _write(url: str, seconds: float, ready: Any, counts: Any) -> None:
    """Append for so many seconds, in its own process, at the same time as the others."""
    counts.put(asyncio.run(_append_for(url, seconds, ready)))


async def _append_for(url: str, seconds: float, ready: Any) -> float:
    with internals.open_storage(url) as storage:
        runs = await internals.histories(storage, RUNS_A_PROCESS)
        await asyncio.gather(*(run.append() for run in runs))
        before = sum(run.position for run in runs)
        await asyncio.to_thread(ready.wait, PATIENCE)
        started = time.perf_counter()

        async def extend(run: internals.History) -> None:
            while time.perf_counter() - started < seconds:
                await run.append()

        await asyncio.gather(*map(extend, runs))
        elapsed = time.perf_counter() - started
        appended = (sum(run.position for run in runs) - before) / 2
        for run in runs:
            assert internals.events_of(storage, run.run_id) == run.position
    return appended / elapsed


# --- one of each actor ----------------------------------------------------------------------------------


async def _coordinator(setting: Setting, where: str, url: str) -> Line:
    """Runs of one local step, started together, all driven by one coordinator in this process."""
    from pyworkflow_ray import start

    many = 200 if setting.quick else 500
    EngineSettings(f"runs-{where}", url, default_runtime="local").use()

    async def run(number: int) -> int:
        return await (await start(one_local_step, number))

    await asyncio.gather(*(run(number) for number in range(20)))
    started = time.perf_counter()
    results = await asyncio.gather(*(run(number) for number in range(many)))
    elapsed = time.perf_counter() - started
    assert results == [number + 1 for number in range(many)]
    progress(f"a coordinator, {where}: {many / elapsed:,.0f} runs/s")
    return Line(f"one coordinator, {many} one-step runs together: {where}", many / elapsed, "runs/s")


async def _timer(setting: Setting, where: str, url: str) -> Line:
    """Runs that are due at the same time, until the last one is placed and its coordinator is nudged."""
    many = 500 if setting.quick else 5_000
    with internals.open_storage(url) as storage:
        run_ids = await internals.sleepers(storage, many, due=True)
        told: set[str] = set()
        all_told = asyncio.Event()

        def tell(some: list[str]) -> None:
            told.update(some)
            if len(told) == many:
                all_told.set()

        started = time.perf_counter()
        with _in_background(internals.timer(storage, tell).run()):
            await asyncio.wait_for(all_told.wait(), PATIENCE)
            elapsed = time.perf_counter() - started
        assert told == set(run_ids)
        assert set(internals.statuses_of(storage, run_ids)) == {"running"}
    progress(f"a timer, {where}: {many / elapsed:,.0f} wakes/s")
    return Line(f"one timer, {many:,} runs due at once: {where}", many / elapsed, "wakes/s")


async def _hook_registry(setting: Setting, where: str, url: str) -> Line:
    """Payloads that arrive at the same time, until the last one is accepted."""
    runs, hooks_a_run = (50, 20) if setting.quick else (500, 20)
    many = runs * hooks_a_run
    with internals.open_storage(url) as storage:
        made = await internals.histories(storage, runs)
        tokens = await asyncio.gather(
            *(internals.make_hooks(storage, run.run_id, hooks_a_run) for run in made)
        )
        registry = internals.hook_registry(storage)
        all_tokens = [token for tokens_of_run in tokens for token in tokens_of_run]
        started = time.perf_counter()
        await internals.answer_hooks(registry, all_tokens, b'{"approved":true}')
        elapsed = time.perf_counter() - started
        for run in (made[0], made[-1]):
            internals.read_inbox(storage, run.run_id, hooks_a_run)
    progress(f"a hook registry, {where}: {many / elapsed:,.0f} payloads/s")
    return Line(f"one hook registry, {many:,} payloads at once: {where}", many / elapsed, "payloads/s")


@contextmanager
def _in_background(work: Any) -> Iterator[None]:
    task = asyncio.get_running_loop().create_task(work)
    try:
        yield
    finally:
        task.cancel()
