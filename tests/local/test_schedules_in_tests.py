"""Schedules by a test's clock."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyworkflow_ray as pr
from pyworkflow_ray.testing import WorkflowEnvironment


@pr.workflow
async def tells_its_time() -> str:
    return str(pr.get_context().scheduled_at)


@pr.workflow
async def takes_an_hour() -> None:
    await pr.sleep("1h")


async def test_a_schedule_fires_as_a_tests_time_passes() -> None:
    start = datetime(2020, 2, 27, 12, tzinfo=UTC)
    async with WorkflowEnvironment(start_time=start) as environment:
        daily = pr.ScheduleSpec(cron="30 9 * * *", timezone="Europe/Berlin")
        await pr.create_schedule(tells_its_time, daily, schedule_id="daily")
        await environment.advance("3d")
        schedule = await pr.get_schedule("daily")
        assert schedule is not None
        assert (schedule.total_runs, schedule.successful_runs) == (3, 3)
        runs, _ = await pr.list_runs(workflow="tells_its_time")
        assert sorted(run.result for run in runs) == [
            "2020-02-28 08:30:00+00:00",
            "2020-02-29 08:30:00+00:00",
            "2020-03-01 08:30:00+00:00",
        ]
        assert schedule.next_run_time == datetime(2020, 3, 2, 8, 30, tzinfo=UTC)


async def test_what_waits_for_its_turn_begins_when_the_run_before_has_ended() -> None:
    start = datetime(2020, 1, 1, tzinfo=UTC)
    async with WorkflowEnvironment(start_time=start) as environment:
        often = pr.ScheduleSpec(interval="20m")
        await pr.create_schedule(takes_an_hour, often, schedule_id="often", overlap_policy="buffer_all")
        await environment.advance("2h 30m")
        runs, _ = await pr.list_runs(workflow="takes_an_hour")
        began = sorted(run.started_at - start for run in runs if run.started_at is not None)
        assert began == [timedelta(minutes=20), timedelta(minutes=80), timedelta(minutes=140)]


async def test_a_schedule_survives_the_coordinator_of_its_runs() -> None:
    async with WorkflowEnvironment(start_time=datetime(2020, 1, 1, tzinfo=UTC)) as environment:
        await pr.create_schedule(takes_an_hour, pr.ScheduleSpec(interval="1d"), schedule_id="daily")
        await environment.advance("1d 30m")
        await environment.crash()
        await environment.advance("2d")
        schedule = await pr.get_schedule("daily")
        assert schedule is not None
        assert (schedule.total_runs, schedule.successful_runs) == (3, 2)


async def test_a_fire_years_ahead_comes() -> None:
    async with WorkflowEnvironment(start_time=datetime(2025, 1, 1, tzinfo=UTC)) as environment:
        await pr.create_schedule(tells_its_time, pr.ScheduleSpec(cron="0 0 29 2 *"), schedule_id="leap")
        await environment.advance("1200d")
        schedule = await pr.get_schedule("leap")
        assert schedule is not None
        assert schedule.total_runs == 1


async def test_what_waits_for_its_turn_outlives_a_crash_at_the_end_of_the_run_before() -> None:
    start = datetime(2020, 1, 1, tzinfo=UTC)
    async with WorkflowEnvironment(start_time=start) as environment:
        often = pr.ScheduleSpec(interval="40m")
        await pr.create_schedule(takes_an_hour, often, schedule_id="often", overlap_policy="buffer_one")
        environment.crash_at("after_commit", event="workflow.completed")
        await environment.advance("1h 45m")
        runs, _ = await pr.list_runs(workflow="takes_an_hour")
        assert sorted(run.status.value for run in runs) == ["completed", "running"]


async def test_in_process_a_run_that_is_triggered_is_driven_to_its_end(tmp_path: Path) -> None:
    pr.configure(default_runtime="local", storage=tmp_path / "trigger.db")
    await pr.create_schedule(tells_its_time, pr.ScheduleSpec(interval="1d"), schedule_id="daily")
    run = await pr.trigger_schedule("daily")
    assert run is not None
    assert await run.status() is pr.RunStatus.COMPLETED
