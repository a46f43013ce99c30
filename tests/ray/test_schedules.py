"""Schedules that fire by the timer actor: on time, once each, whoever dies."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
import ray

import pyworkflow_ray as pr
from pyworkflow_ray.client.event_loops import run_sync
from pyworkflow_ray.storage import schedules
from pyworkflow_ray.storage.fires import run_of_text
from tests.ray.conftest import EngineUnderTest, eventually, kill_ray_process

MANY = 200
SECOND = timedelta(seconds=1)
NEVER_BY_ITSELF = pr.ScheduleSpec(cron="@yearly")


@pytest.fixture(autouse=True)
def on(shared_engine: EngineUnderTest) -> EngineUnderTest:
    """The engine of this module; each test has schedules of its own in it."""
    return shared_engine


@pr.workflow
async def sched_tells_time() -> datetime | None:
    return pr.get_context().scheduled_at


@pr.step(local=True)
async def takes_a_while() -> None:
    await asyncio.sleep(0.2)


@pr.workflow
async def sched_takes_a_while() -> None:
    await takes_a_while()


@pr.workflow
async def sched_waits_for_ever() -> None:
    await pr.hook("never")


def made(workflow: Any, spec: pr.ScheduleSpec, schedule_id: str, policy: str) -> pr.Schedule:
    make = pr.create_schedule.options(schedule_id=schedule_id, overlap_policy=policy)
    return run_sync(make(workflow, spec))


def now_of(schedule_id: str) -> pr.Schedule:
    schedule = run_sync(pr.get_schedule(schedule_id))
    assert schedule is not None
    return schedule


def runs_of(workflow: str) -> list[pr.WorkflowRun]:
    """All runs of a workflow, oldest first."""
    found, _ = run_sync(pr.list_runs(workflow=workflow, limit=2000))
    return found[::-1]


def timer_of(engine: EngineUnderTest, but: int) -> int | None:
    """The process id of the timer once it is another than this one."""
    with contextlib.suppress(ray.exceptions.RayError):
        pid = engine.pid_of("timer")
        return pid if pid != but else None
    return None


def test_no_fire_is_lost_or_doubled_while_the_timer_is_killed(on: EngineUnderTest) -> None:
    schedule = made(sched_tells_time, pr.ScheduleSpec(interval="1s"), "each-second", "allow_all")
    killed = 0
    for fires in (2, 4):
        eventually(lambda fires=fires: now_of("each-second").total_runs >= fires)  # type: ignore[misc]
        killed = eventually(lambda but=killed: timer_of(on, but))  # type: ignore[misc]
        kill_ray_process(killed)
    eventually(lambda: now_of("each-second").total_runs >= 7)
    total = run_sync(pr.pause_schedule("each-second")).total_runs
    eventually(lambda: now_of("each-second").successful_runs == total)
    runs = runs_of("sched_tells_time")
    times = sorted(datetime.fromisoformat(run.metadata["scheduled_at"]) for run in runs)
    assert times == [schedule.created_at + n * SECOND for n in range(1, total + 1)]
    assert sorted(run.result for run in runs) == [at.isoformat() for at in times], "each run sees its time"
    assert run_sync(pr.delete_schedule("each-second"))


def test_fires_that_wait_for_their_turn_run_one_after_another() -> None:
    made(sched_takes_a_while, NEVER_BY_ITSELF, "in-turn", "buffer_all")
    for _ in range(4):
        run_sync(pr.trigger_schedule("in-turn", "buffer_all"))
    eventually(lambda: now_of("in-turn").successful_runs == 4)
    runs = runs_of("sched_takes_a_while")
    for before, after in pairwise(runs):
        assert before.completed_at is not None
        assert after.started_at is not None
        assert before.completed_at <= after.started_at


def test_cancel_other_cancels_what_runs_and_starts_the_latest() -> None:
    made(sched_waits_for_ever, NEVER_BY_ITSELF, "latest", "cancel_other")
    first = run_sync(pr.trigger_schedule("latest", "cancel_other"))
    assert first is not None
    eventually(lambda: first.status_sync() is pr.RunStatus.SUSPENDED)
    assert run_sync(pr.trigger_schedule("latest", "cancel_other")) is None
    eventually(lambda: now_of("latest").total_runs == 2)
    assert first.status_sync() is pr.RunStatus.CANCELLED
    (second,) = now_of("latest").running_run_ids
    assert run_sync(pr.cancel_workflow(second, wait=True))


def test_hundreds_of_schedules_fire_at_one_instant(on: EngineUnderTest) -> None:
    made(sched_tells_time, NEVER_BY_ITSELF, "like-this", "skip")
    with on.storage as storage:
        like = storage.read(schedules.get_schedule("like-this"))
        assert like is not None
        run = run_of_text(like.run)
        at = datetime.now(UTC) + 2 * SECOND
        spec = pr.ScheduleSpec(interval="1d", start_at=at)

        def make_all(connection: Any) -> None:
            for number in range(MANY):
                schedules.create_schedule(f"many-{number}", run, spec, pr.OverlapPolicy.SKIP, 3600.0).on(
                    connection
                )

        storage.submit(make_all).result(30)

    def ends() -> list[datetime]:
        mine = [run for run in runs_of("sched_tells_time") if run.metadata["scheduled_at"] == at.isoformat()]
        return [run.completed_at for run in mine if run.completed_at is not None]

    last = max(eventually(lambda: len(found := ends()) == MANY and found))
    print(f"all had ended {(last - at).total_seconds():.2f} s after it")
