"""Schedules as they are: one schedule, pages of them, and their events."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from pyworkflow_ray.client.guards import refuse_in_workflow
from pyworkflow_ray.client.records import Event
from pyworkflow_ray.client.sessions import Session, session
from pyworkflow_ray.exceptions import ConfigurationError, ScheduleNotFoundError
from pyworkflow_ray.recurrences.specs import ScheduleSpec
from pyworkflow_ray.statuses import OverlapPolicy, ScheduleStatus
from pyworkflow_ray.storage import fires, schedules
from pyworkflow_ray.storage.schedule_records import ScheduleRecord
from pyworkflow_ray.storage.storages import Storage
from pyworkflow_ray.storage.works import Steps, together, work
from pyworkflow_ray.values import codec


@dataclass(frozen=True, slots=True)
class Schedule:
    """A schedule, from its row. `args` and `kwargs` hold plain JSON values; nothing is unpickled.

    `next_run_time` is the next fire, without its jitter. It is None while the schedule is paused, and when
    no fire is left. It and `last_run_at` are in UTC.

    `total_runs` counts the runs that were started, `successful_runs` those that completed, and `failed_runs`
    those that failed. `skipped_runs` counts the fires that started no run, and `buffered_count` the fires
    that wait for their turn.
    """

    schedule_id: str
    workflow_name: str
    spec: ScheduleSpec
    status: ScheduleStatus
    overlap_policy: OverlapPolicy
    args: list[Any]
    kwargs: dict[str, Any]
    catchup_window: timedelta
    created_at: datetime
    updated_at: datetime
    next_run_time: datetime | None
    last_run_at: datetime | None
    last_run_id: str | None
    running_run_ids: list[str]
    buffered_count: int
    total_runs: int
    successful_runs: int
    failed_runs: int
    skipped_runs: int
    note: str | None

    @classmethod
    def of(cls, record: ScheduleRecord, running: list[str]) -> Schedule:
        """The schedule of a row, and its runs that have not ended."""
        run = fires.run_of_text(record.run)
        return cls(
            schedule_id=record.schedule_id,
            workflow_name=record.workflow_name,
            spec=record.spec,
            status=record.status,
            overlap_policy=record.overlap_policy,
            args=codec.describe(run.input_args),
            kwargs=codec.describe(run.input_kwargs),
            catchup_window=timedelta(seconds=record.catchup_window),
            created_at=record.created_at,
            updated_at=record.updated_at,
            next_run_time=record.next_fire_at if record.status is ScheduleStatus.ACTIVE else None,
            last_run_at=record.last_run_at,
            last_run_id=record.last_run_id,
            running_run_ids=running,
            buffered_count=len(record.buffered),
            total_runs=record.total_runs,
            successful_runs=record.successful_runs,
            failed_runs=record.failed_runs,
            skipped_runs=record.skipped_runs,
            note=record.note,
        )


async def get_schedule(schedule_id: str) -> Schedule | None:
    """The schedule, or None. Needs no Ray."""
    refuse_in_workflow("get_schedule")
    return await read_schedule(session().storage, schedule_id)


async def read_schedule(storage: Storage, schedule_id: str) -> Schedule | None:
    """The schedule in this storage; see `get_schedule`."""

    look = together(schedules.get_schedule(schedule_id), schedules.running_runs(schedule_id))
    record, running = await asyncio.to_thread(storage.read, look)
    if record is None or record.status is ScheduleStatus.DELETED:
        return None
    return Schedule.of(record, running)


async def list_schedules(
    workflow: str | None = None,
    status: ScheduleStatus | str | None = None,
    limit: int = 100,
    cursor: str | None = None,
) -> tuple[list[Schedule], str | None]:
    """A page of schedules, sorted by id, and the cursor of the next page (None after the last). Needs no Ray.

    Args:
        workflow: Only schedules of this workflow.
        status: "active", "paused" or "deleted"; active and paused ones by default.
        limit: The most schedules in the page.
        cursor: The cursor that came with the page before.

    Raises:
        ValueError: There is no such status.
    """
    refuse_in_workflow("list_schedules")
    return await page_of_schedules(session().storage, workflow, status, limit, cursor)


async def page_of_schedules(
    storage: Storage,
    workflow: str | None,
    status: ScheduleStatus | str | None,
    limit: int,
    cursor: str | None,
) -> tuple[list[Schedule], str | None]:
    """A page of the schedules in this storage; see `list_schedules`."""
    wanted = None if status is None else _status_of(status)

    @work
    def look() -> Steps[tuple[list[Schedule], str | None]]:
        found = yield from schedules.list_schedules(wanted, workflow, limit + 1, cursor or "")
        records = found[:limit]
        running = together(*(schedules.running_runs(each.schedule_id) for each in records))
        page = [Schedule.of(*each) for each in zip(records, (yield from running), strict=True)]
        return page, page[-1].schedule_id if page and len(found) > limit else None

    return await asyncio.to_thread(storage.read, look())


async def get_schedule_events(schedule_id: str) -> list[Event]:
    """The last 1,000 events of a schedule, oldest first. Needs no Ray.

    Raises:
        ScheduleNotFoundError: There is no such schedule.
    """
    refuse_in_workflow("get_schedule_events")
    of = session()
    found = await asyncio.to_thread(of.storage.read, schedules.schedule_events(schedule_id))
    if not found:
        raise ScheduleNotFoundError(schedule_id)
    return [Event.of(schedule_id, (e.position, e.timestamp, e.type, e.data)) for e in found]


async def opened() -> Session:
    """The session in force, with its runtime open: what fires schedules can be reached."""
    of = session()
    await of.runtime.open()
    return of


def own_now(of: Session) -> datetime | None:
    """The time of the test's clock, if a test owns the time; else None, and the database's clock counts."""
    return of.runtime.now() if of.runtime.owns_time else None


async def schedule_of(of: Session, record: ScheduleRecord) -> Schedule:
    """The schedule of a row, with its runs that have not ended."""
    running = schedules.running_runs(record.schedule_id)
    return Schedule.of(record, await asyncio.to_thread(of.storage.read, running))


def require_fire(of: Session, spec: Any) -> None:
    """Check that this is a spec, and that it will fire.

    Raises:
        ConfigurationError: It is no `ScheduleSpec`, or no fire lies ahead.
    """
    if not isinstance(spec, ScheduleSpec):
        raise ConfigurationError(
            f"A schedule needs a ScheduleSpec, such as ScheduleSpec(cron='0 9 * * *'), not {spec!r}."
        )
    now = of.runtime.now()
    if spec.next_after(now, now) is None:
        raise ConfigurationError(
            f"This schedule never fires: {spec.describe()}. Give a time that lies ahead."
        )


def _status_of(status: ScheduleStatus | str) -> ScheduleStatus:
    try:
        return ScheduleStatus(status)
    except ValueError:
        raise ValueError(
            f"status is {status!r}: give one of {', '.join(each.value for each in ScheduleStatus)}."
        ) from None
