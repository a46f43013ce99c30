"""Manual fires: one fire now, or all fires of a past time."""

from __future__ import annotations

import asyncio
import secrets
from datetime import datetime
from typing import Any

from pyworkflow_ray.actors.schedulers import ask_to_cancel
from pyworkflow_ray.client.guards import refuse_in_workflow
from pyworkflow_ray.client.handles import RunHandle
from pyworkflow_ray.client.lookups import read_record
from pyworkflow_ray.client.schedules import opened, own_now
from pyworkflow_ray.client.sessions import Session
from pyworkflow_ray.durations import in_utc
from pyworkflow_ray.event_types import EventType
from pyworkflow_ray.exceptions import ConfigurationError, ScheduleNotFoundError
from pyworkflow_ray.recurrences.overlaps import policy_of
from pyworkflow_ray.statuses import OverlapPolicy, ScheduleStatus
from pyworkflow_ray.storage import fires, schedules
from pyworkflow_ray.storage.schedule_records import ScheduleRecord
from pyworkflow_ray.storage.works import Steps, locking, together, work

MOST_BACKFILLED = 10_000
_BATCH = 100


async def trigger_schedule(
    schedule_id: str, overlap_policy: OverlapPolicy | str = OverlapPolicy.ALLOW_ALL
) -> RunHandle[Any] | None:
    """Fire a schedule now, whatever its times, and even while it is paused.

    Args:
        overlap_policy: What to do if a run of the schedule has not ended, or another fire waits for its turn.
            The default starts a run beside it. A fire that must wait also waits until a paused schedule is
            resumed.

    Returns:
        The run; None if the policy starts no run now.

    Raises:
        ScheduleNotFoundError: There is no such schedule.
        ConfigurationError: There is no such policy.
    """
    refuse_in_workflow("trigger_schedule")
    policy = policy_of(overlap_policy)
    of = await opened()
    call = _new_call()

    @locking(lambda: fires.locks_of_trigger(schedule_id, policy))
    @work
    def trigger() -> Steps[fires.Fired | None]:
        fired = yield from fires.trigger(schedule_id, policy, call, now=own_now(of))
        for run_id in [] if fired is None else fired.cancelled:
            yield from ask_to_cancel(run_id)
        return fired

    fired = await of.storage.write(trigger())
    if fired is None:
        raise ScheduleNotFoundError(schedule_id)
    await of.runtime.wake_all(fired.runs)
    for run_id in fired.cancelled:
        await of.runtime.wake(await read_record(of, run_id))
    return RunHandle(fired.runs[0].run_id, of) if fired.runs else None


async def backfill_schedule(schedule_id: str, start_time: datetime, end_time: datetime) -> list[str]:
    """Start the missing runs of past fires, all at once; the ids of the new runs.

    Args:
        start_time: The beginning of the time. A fire at this instant counts. A naive instant is UTC.
        end_time: The end of the time. A fire at this instant does not count.

    Raises:
        ScheduleNotFoundError: There is no such schedule.
        ConfigurationError: The times are not in order, lie in the future, or hold more than 10,000 fires.
    """
    refuse_in_workflow("backfill_schedule")
    start, end = in_utc(start_time), in_utc(end_time)
    of = await opened()
    record, now = await _there(of, schedule_id)
    if not start < end <= max(now, of.runtime.now()):
        raise ConfigurationError(
            f"A backfill goes from one past time to a later one, not from {start} to {end}."
        )
    due = await asyncio.to_thread(_fires_between, record, start, end)
    span = {"start": start.isoformat(), "end": end.isoformat()}
    call = _new_call()
    await _note(of, schedule_id, EventType.SCHEDULE_BACKFILL_STARTED, span, call)
    made: list[str] = []
    for first in range(0, len(due), _BATCH):
        some = due[first : first + _BATCH]
        fired = await of.storage.write(fires.backfill(schedule_id, some, call, now=own_now(of)))
        if fired is None:
            raise ScheduleNotFoundError(schedule_id)
        made += [run.run_id for run in fired.runs]
        await of.runtime.wake_all(fired.runs)
    done = span | {"started": len(made), "skipped": len(due) - len(made)}
    await _note(of, schedule_id, EventType.SCHEDULE_BACKFILL_COMPLETED, done, call)
    return made


def _new_call() -> str:
    """The name of one call. A write that is run again knows by it what the call has already written."""
    return secrets.token_hex(8)


async def _there(of: Session, schedule_id: str) -> tuple[ScheduleRecord, datetime]:
    """The schedule, and the present time by the schedule's clock."""

    look = together(schedules.get_schedule(schedule_id), schedules.database_now())
    record, now = await asyncio.to_thread(of.storage.read, look)
    if record is None or record.status is ScheduleStatus.DELETED:
        raise ScheduleNotFoundError(schedule_id)
    return record, own_now(of) or now


async def _note(of: Session, schedule_id: str, type_: EventType, data: dict[str, Any], call: str) -> None:
    await of.storage.write(schedules.note_once(schedule_id, type_, data, call, now=own_now(of)))


def _fires_between(record: ScheduleRecord, start: datetime, end: datetime) -> list[datetime]:
    found = []
    for fire in record.spec.between(start, end, record.anchor_at):
        found.append(fire)
        if len(found) > MOST_BACKFILLED:
            raise ConfigurationError(
                f"From {start} to {end} schedule {record.schedule_id!r} has more than {MOST_BACKFILLED:,} "
                "fires. Give a shorter time."
            )
    return found
