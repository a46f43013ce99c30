"""How often each operation of the engine waits for the database, counted by the proxy.

Each operation is done alone, several times, on connections that are open and warm. The proxy counts round
trips. The milliseconds beside the count, divided by a round trip, also contain the work of the database and
of both ends. The whole flows at the end run in this process, so that Ray's messages do not disturb them.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import internals
from clusters import EngineSettings
from databases import Postgresql, postgresql, round_trip_ms
from measurements import Line, Setting, progress
from workloads import one_local_step, waiting_for_tick

DELAY_MS = 2.6
"""The delay if `--delay-ms` is 0: without one, a pipeline and single queries cannot be distinguished."""
WARM_UPS = 8
"""The driver prepares a statement after it has run it five times. Preparing takes extra round trips."""
PAGE = 100
LEASES = 100

Act = Callable[[], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class _Part:
    """One operation of the engine.

    Args:
        name: Its name.
        prepare: Prepares each time, which is not counted, and returns the operation, which is counted.
    """

    name: str
    prepare: Callable[[], Awaitable[Act]]


async def measure(setting: Setting) -> list[Line]:
    """Round trips of each part, and the time that it takes."""
    count = 5 if setting.quick else 20
    delay_ms = setting.delay_ms or DELAY_MS
    with postgresql(setting.folder / "pg", delay_ms) as database:
        url = database.far()
        trip = round_trip_ms(url)
        progress(f"the far PostgreSQL: {trip:.2f} ms for the smallest question")
        EngineSettings("parts", url, default_runtime="local").use()
        with internals.open_storage(url) as storage:
            lines = [await _line(part, database, count, trip) for part in _parts(storage)]
        flows_url = database.far()
        EngineSettings("flows", flows_url, default_runtime="local").use()
        with internals.open_storage(flows_url) as storage:
            lines += [await _line(part, database, count, trip) for part in _flows(storage)]
    return lines


async def _line(part: _Part, database: Postgresql, count: int, trip: float) -> Line:
    trips, took = [], []
    for number in range(WARM_UPS + count):
        act = await part.prepare()
        before, started = database.trips(), time.perf_counter()
        await act()
        elapsed = time.perf_counter() - started
        if number >= WARM_UPS:
            trips.append(database.trips() - before)
            took.append(elapsed * 1e3)
    median = statistics.median(took)
    progress(f"{part.name}: {trips}")
    against = f"{median:.1f} ms, {median / trip:.1f} times a round trip's"
    return Line(part.name, statistics.median(trips), "round trips", against=against)


def _parts(storage: Any) -> list[_Part]:
    """The operations of clients, coordinators, the timer and the hook registry on the storage, each alone."""

    async def history() -> internals.History:
        (made,) = await internals.histories(storage, 1)
        return made

    async def start() -> Act:
        run_id = (await history()).run_id
        return lambda: internals.accept_run(storage, f"{run_id}-again")

    async def append() -> Act:
        return (await history()).append

    async def suspend() -> Act:
        run = await history()
        return lambda: run.suspend(None)

    async def wake() -> Act:
        (run_id,) = await internals.sleepers(storage, 1, due=False)
        return lambda: internals.place_woken(storage, run_id)

    async def claim() -> Act:
        (run_id,) = await internals.sleepers(storage, 1, due=False)
        return lambda: internals.claim_run(storage, run_id)

    async def renew() -> Act:
        runs = await internals.histories(storage, LEASES)
        return lambda: internals.renew(storage, runs)

    async def hook() -> Act:
        run_id = (await history()).run_id
        (token,) = await internals.make_hooks(storage, run_id, 1)
        return lambda: internals.answer_hooks(internals.hook_registry(storage), [token], b'{"a":1}')

    async def signal() -> Act:
        run_id = (await history()).run_id
        return lambda: internals.send_signal(storage, run_id)

    async def fire() -> Act:
        await _make_due_schedule()
        return lambda: _expect(internals.fire_schedules(storage), 1)

    async def inbox() -> Act:
        run_id = (await history()).run_id
        await internals.send_signal(storage, run_id)
        return lambda: asyncio.to_thread(internals.read_inbox, storage, run_id, 1)

    async def page() -> Act:
        run = await history()
        for _ in range(PAGE // 2):
            await run.append()
        return lambda: asyncio.to_thread(internals.read_page, storage, run.run_id, PAGE)

    return [
        _Part("one start: accept and place a run", start),
        _Part("one append", append),
        _Part("one append that suspends its run", suspend),
        _Part("one wake of a suspended run: find it a coordinator", wake),
        _Part("one claim", claim),
        _Part(f"renew {LEASES} leases", renew),
        _Part("one hook delivery", hook),
        _Part("one signal sent", signal),
        _Part("one schedule fired, with its run", fire),
        _Part("one inbox read", inbox),
        _Part(f"one page of a history, {PAGE} events", page),
    ]


def _flows(storage: Any) -> list[_Part]:
    """The operations of a user, from the call until the run ends or is suspended, in this process."""

    async def whole_run() -> Act:
        return _run_one_local_step

    async def woken() -> Act:
        from pyworkflow_ray import start

        run = await start(waiting_for_tick)
        assert internals.statuses_of(storage, [str(run)]) == ["suspended"]

        async def answer() -> None:
            await run.signal("tick")
            assert internals.statuses_of(storage, [str(run)]) == ["completed"]

        return answer

    return [
        _Part("a whole run of one local step, in process", whole_run),
        _Part("a suspended run signalled, woken and ended, in process", woken),
    ]


async def _run_one_local_step() -> None:
    from pyworkflow_ray import start

    assert await (await start(one_local_step, 1)) == 2


async def _make_due_schedule() -> None:
    """Make a schedule that fires once, and wait until the fire is due."""
    from pyworkflow_ray import ScheduleSpec, create_schedule

    end_at = datetime.now(UTC) + timedelta(seconds=1.4)
    made = await create_schedule(one_local_step, ScheduleSpec(interval="1s", end_at=end_at), 1)
    assert made.next_run_time is not None
    await asyncio.sleep((made.next_run_time - datetime.now(UTC)).total_seconds() + 0.05)


async def _expect(given: Awaitable[int], expected: int) -> None:
    assert await given == expected
