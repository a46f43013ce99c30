"""What engines do that are killed meanwhile, and what is asked of the rows afterwards.

Each scenario is run by one process after another on the same database, until one gets to its end. So it
sends what it sends under fixed keys, or looks first whether it was done. What it returns must be the same as
without a death.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyworkflow_ray as pr
from pyworkflow_ray.actors.drives import Drive
from pyworkflow_ray.actors.hook_registry import HookAnswer
from pyworkflow_ray.client.sessions import session
from pyworkflow_ray.client.shipments import shipped
from pyworkflow_ray.client.starts import hand_over
from pyworkflow_ray.storage.placements import Placement, place
from pyworkflow_ray.storage.runs import get_run
from pyworkflow_ray.storage.statements import Statement
from tests.crashes.engines import LEASE, OneProcess

Scenario = Callable[[OneProcess], Awaitable[Any]]
scenarios: dict[str, Scenario] = {}
_EXPIRE = Statement("UPDATE runs SET lease_expires_at = <now - :ago> WHERE run_id = :run_id")
_DAMAGE = Statement("UPDATE runs SET wake_at = '2020-13-45 00:00:00.000000' WHERE run_id = :run_id")
_SET_ASIDE = Statement("""
    UPDATE runs SET status = 'interrupted', owner = NULL, lease_expires_at = NULL, coordinator = NULL
    WHERE run_id = :run_id
""")
_STATUS = Statement("SELECT status FROM runs WHERE run_id = :run_id")


def scenario(function: Scenario) -> Scenario:
    """Register a scenario under its function's name."""
    scenarios[function.__name__] = function
    return function


@pr.step(name="crashes_quick", local=True, retry_delay="10ms")
async def quick(value: str) -> str:
    return value


@pr.step(name="crashes_slow", local=True)
async def slow(seconds: float) -> str:
    await asyncio.sleep(seconds)
    return "slow"


@pr.workflow(name="crashes_child")
async def child() -> str:
    return await quick("child")


@pr.workflow(name="crashes_order")
async def order() -> list[Any]:
    first = await quick("first")
    await pr.sleep("200ms")
    told, answer = await asyncio.gather(pr.receive("price"), pr.hook("answer", token="crashes"))
    second = await pr.start_child_workflow(child)
    try:
        late = await pr.hook("late", timeout="200ms")
    except pr.HookExpiredError:
        late = "nobody came"
    return [first, told, answer, second, late]


@pr.workflow(name="crashes_long")
async def long() -> str:
    return await slow(LEASE.total_seconds() / 2)


@pr.step(name="crashes_until", local=True)
async def until(folder: str) -> str:
    while not (Path(folder) / "go").exists():
        await asyncio.sleep(0.01)
    return "went on"


@pr.workflow(name="crashes_held_up")
async def held_up(folder: str) -> str:
    return await until(folder)


@pr.workflow(name="crashes_short")
async def short(value: str = "short") -> str:
    return await quick(value)


@pr.workflow(name="crashes_failing")
async def failing() -> str:
    value = await quick("kept")
    if not await pr.receive("is_mended"):
        raise ValueError("not mended")
    return value


async def _hook_of(token: str) -> None:
    while await pr.get_hook(token) is None:
        await asyncio.sleep(0.02)


async def _types(run_id: str) -> list[str]:
    return [event.type for event in await pr.get_workflow_events(run_id)]


async def _all_ended() -> list[tuple[str, str]]:
    """The workflows and states of all runs, once none goes on."""
    while True:
        runs, _ = await pr.list_runs(limit=1000)
        if all(run.status.is_terminal for run in runs):
            return sorted((run.workflow_name, run.status.value) for run in runs)
        await asyncio.sleep(0.02)


@scenario
async def an_order(engine: OneProcess) -> Any:
    """A run that does all that runs do; its client sends, answers and waits."""
    run = await pr.start.options(run_id="order")(order)
    await _hook_of("crashes")
    await run.signal("price", 5, dedup_key="only")
    await engine.until("suspended", run) if engine.is_first_time("look") else None
    await pr.resume_hook("crashes", "yes", dedup_key="only")
    result = await run.result()
    history = await _types(run)
    once = [history.count(each) for each in ("hook.received", "signal.received", "sleep.completed")]
    return [result, once, await _all_ended()]


@scenario
async def a_long_step(engine: OneProcess) -> Any:
    """A run that is held for so long that its lease must be renewed, and is asked to cancel."""
    run = await pr.start.options(run_id="long")(long)
    doomed = await pr.start.options(run_id="doomed")(order)
    await doomed.cancel("no more")
    await engine.first.wake([run])  # a nudge, although it is driven already
    return [await run.result(), await _all_ended()]


@scenario
async def a_lease_taken_by_a_sweep(engine: OneProcess) -> Any:
    """1. A run waits for its step. 2. Its lease runs out, and a sweep places it. 3. Its drive commits."""
    engine.stop_timer()  # a nudge would have the lease taken again before the drive needs it
    run = await pr.start.options(run_id="stalled")(held_up, str(engine.folder))
    if engine.is_first_time("sweep"):
        while "step.started" not in await _types(run):
            await asyncio.sleep(0.02)
        await engine.storage.write(_EXPIRE.change(run_id=run, ago=1.0).on)
        await engine.storage.write(place([str(run)], Placement(slots=1)))
    (engine.folder / "go").touch()
    return [await run.result(), await _all_ended()]


@scenario
async def a_drive_that_fails(engine: OneProcess) -> Any:
    """A run whose drive fails of an error of the engine's is given up, and driven again."""
    drive = Drive.drive

    async def fails_once(self: Drive) -> Any:
        Drive.drive = drive  # type: ignore[method-assign]
        raise RuntimeError("a fault in the engine")

    if engine.is_first_time("fault"):
        Drive.drive = fails_once  # type: ignore[method-assign]
    run = await pr.start.options(run_id="given_up")(short)
    return [await run.result(), await _all_ended()]


@scenario
async def runs_together(engine: OneProcess) -> Any:
    """Two runs in one process, which dies twice while their steps are under way; they are set apart."""
    folder = str(engine.folder)
    runs = [await pr.start.options(run_id=f"together_{number}")(held_up, folder) for number in range(2)]
    if engine.lives > 2:
        (engine.folder / "go").touch()
    return [[await run.result() for run in runs], await _all_ended()]


@scenario
async def refused_answers(engine: OneProcess) -> Any:
    """Of two answers to hooks that come together, the database refuses one."""
    run = await pr.start.options(run_id="asked")(order)
    await _hook_of("crashes")
    answers = [
        HookAnswer("crashes", "only", payload=b'"yes"'),
        HookAnswer("no\0token", "other", payload=b"1"),
    ]
    done = await asyncio.gather(*map(engine.runtime.answer_hook, answers), return_exceptions=True)
    assert isinstance(done[1], Exception)
    assert not isinstance(done[0], Exception), done[0]
    await run.signal("price", 5, dedup_key="only")
    return [await run.result(), await _all_ended()]


@scenario
async def a_refused_hand_over(engine: OneProcess) -> Any:
    """The engine cannot take an accepted run. So it is deleted again, and nobody drives it."""

    async def refuse(run: Any) -> None:
        raise pr.ConfigurationError("another storage")

    engine.runtime.start = refuse  # type: ignore[method-assign]
    try:
        await pr.start.options(run_id="refused", delay="1h")(short)
    except pr.ConfigurationError:
        pass
    else:  # the process before this one died before it could delete the run
        record = engine.storage.read(get_run("refused"))
        assert record is not None
        with contextlib.suppress(pr.ConfigurationError):
            await hand_over(session(), record)
    return await _all_ended()


@scenario
async def a_run_that_could_not_begin(engine: OneProcess) -> Any:
    """A run was set aside before it began. The next start with its idempotency key makes another one."""
    if engine.is_first_time("made"):
        start = engine.runtime.start

        async def nobody_drives(run: Any) -> None:
            await engine.storage.write(_SET_ASIDE.change(run_id=run.run_id).on)

        engine.runtime.start = nobody_drives  # type: ignore[method-assign]
        await pr.start.options(run_id="unbegun", idempotency_key="only")(short)
        engine.runtime.start = start  # type: ignore[method-assign]
    run = await pr.start.options(idempotency_key="only")(short)
    assert run != "unbegun"
    return await run.result()


@scenario
async def a_bundle(engine: OneProcess) -> Any:
    """The files of a workflow's code are stored, as for Ray: once, and before a run needs them."""
    engine.runtime.has_other_processes = True
    shipment = await shipped(session(), short, "workflow 'crashes_short'")
    count = Statement("SELECT count(*) FROM bundles WHERE hash = :hash")
    (stored,) = engine.storage.read(count.find_all(hash=shipment.code.bundle).on)
    return list(stored)


@scenario
async def forks(engine: OneProcess) -> Any:
    """A failed run is run again and forked."""
    run = await pr.start.options(run_id="failing")(failing)
    while "step.completed" not in await _types(run):
        await asyncio.sleep(0.02)
    await _tell(run, is_mended=False)
    with contextlib.suppress(ValueError):
        await run.result()
    made: dict[str, Any] = {}
    for each, origin in (("rerun", "rerun_of"), ("fork", "forked_from")):
        known = [found for found in (await pr.list_runs())[0] if found.metadata.get(origin) == "failing"]
        assert len(known) <= 1
        if known:
            made[each] = pr.RunHandle(known[0].run_id)
        else:
            made[each] = await (pr.rerun(run) if each == "rerun" else pr.fork(run, from_position=3))
        await _tell(made[each], is_mended=True)
    return [{each: await again.result() for each, again in made.items()}, await _all_ended()]


async def _tell(run: pr.RunHandle[Any], *, is_mended: bool) -> None:
    with contextlib.suppress(pr.WorkflowError):  # a process before this one told it, and it has ended since
        await run.signal("is_mended", is_mended, dedup_key="only")


@scenario
async def deletions(engine: OneProcess) -> Any:
    """Ended runs are deleted, one by its id and the others by their age."""
    if engine.is_first_time("runs"):
        for number in range(3):
            await (await pr.start.options(run_id=f"old_{number}")(short)).result()
    await pr.delete_run("old_0")
    await pr.purge("0s")
    (left,) = engine.storage.read(Statement("SELECT count(*) FROM events").find_all().on)
    return [await _all_ended(), list(left)]


@scenario
async def a_damaged_run(engine: OneProcess) -> Any:
    """A sleeping run whose row cannot be read is set aside by the timer; another one goes on."""
    if not (engine.folder / "damaged").exists():
        run = await pr.start.options(run_id="damaged")(order)
        await engine.until("suspended", run)
        await engine.storage.write(_DAMAGE.change(run_id=run).on)
        (engine.folder / "damaged").touch()
    result = await (await pr.start.options(run_id="sound")(short)).result()
    while engine.storage.read(_STATUS.find_all(run_id="damaged").on) != [("interrupted",)]:
        await asyncio.sleep(0.02)
    return result


@scenario
async def a_schedule(engine: OneProcess) -> Any:
    """A schedule is created, fires, is changed and deleted."""
    deleting = engine.folder / "deleting"
    if await pr.get_schedule("daily") is None and not deleting.exists():
        spec = pr.ScheduleSpec(interval="1d")
        await pr.create_schedule.options(schedule_id="daily")(short, spec, "daily")
    if await pr.get_schedule("daily") is not None:
        await pr.update_schedule("daily", pr.ScheduleSpec(interval="2d"), note="changed")
        await pr.pause_schedule("daily")
        found = await pr.get_schedule("daily")
        assert found is not None
        assert (found.note, found.status.value) == ("changed", "paused")
    deleting.touch()
    await pr.delete_schedule("daily")
    return [await pr.get_schedule("daily"), len((await pr.list_schedules(status="deleted"))[0])]


@scenario
async def fires(engine: OneProcess) -> Any:
    """A schedule that has become due fires once."""
    if await pr.get_schedule("due") is None:
        spec = pr.ScheduleSpec(interval="1d", start_at=datetime.now(UTC) + timedelta(seconds=1))
        await pr.create_schedule.options(schedule_id="due")(short, spec, "due")
    while not (await pr.list_runs(limit=100))[0]:
        await asyncio.sleep(0.02)
    return await _all_ended()


@scenario
async def manual_fires(engine: OneProcess) -> Any:
    """A schedule is fired by hand, for now and for past days."""
    start = datetime(2020, 1, 1, tzinfo=UTC)
    if engine.is_first_time("made"):
        spec = pr.ScheduleSpec(interval="1d", start_at=start)
        await pr.create_schedule.options(schedule_id="by_hand")(short, spec, "by hand")
        await pr.pause_schedule("by_hand")
    if not (await pr.list_runs(limit=100))[0]:
        await pr.trigger_schedule("by_hand")
    await pr.backfill_schedule("by_hand", start, start + timedelta(days=5))
    return await _all_ended()


@pr.scheduled_workflow(interval="1d", name="crashes_declared")
async def declared() -> None:
    pass


@scenario
async def a_declaration(engine: OneProcess) -> Any:
    """A declared schedule is there once, however often it is activated."""
    await pr.activate_scheduled_workflows()
    return [each.schedule_id for each in (await pr.list_schedules())[0]]
