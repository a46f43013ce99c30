"""Schedules by a test's clock."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

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
