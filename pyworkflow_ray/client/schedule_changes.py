"""Changes to schedules: updating, pausing, resuming and deleting them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import msgspec

from pyworkflow_ray.authoring.schedules import window_of
from pyworkflow_ray.authoring.workflows import WorkflowFunction
from pyworkflow_ray.client.guards import refuse_in_workflow
from pyworkflow_ray.client.run_templates import changed_template, running_now
from pyworkflow_ray.client.schedules import Schedule, opened, own_now, require_fire, schedule_of
from pyworkflow_ray.client.sessions import Session, session
from pyworkflow_ray.durations import Duration
from pyworkflow_ray.event_types import EventType
from pyworkflow_ray.exceptions import ScheduleNotFoundError
from pyworkflow_ray.ids import checked_text
from pyworkflow_ray.recurrences.overlaps import policy_of
from pyworkflow_ray.recurrences.specs import ScheduleSpec
from pyworkflow_ray.statuses import OverlapPolicy, ScheduleStatus
from pyworkflow_ray.storage import schedules
from pyworkflow_ray.storage.codes import Code
from pyworkflow_ray.storage.schedule_records import ScheduleRecord
from pyworkflow_ray.storage.works import Steps, work


async def update_schedule(
    schedule_id: str,
    spec: ScheduleSpec | None = None,
    overlap_policy: OverlapPolicy | str | None = None,
    *,
    workflow: WorkflowFunction[Any, Any] | str | None = None,
    args: Sequence[Any] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    catchup_window: Duration | None = None,
    note: str | None = None,
) -> Schedule:
    """Change the given parts of a schedule. The rest stays as it is, and so do its runs.

    Args:
        spec: When the schedule fires from now on.
        overlap_policy: As in `create_schedule`.
        workflow: The workflow to run from now on, with its present code. It is needed with `args` or
            `kwargs`, unless this process has imported the workflow.
        args, kwargs: All of the workflow's arguments. If neither is given, the arguments stay as they are.
        catchup_window, note: As in `create_schedule.options`.

    Raises:
        ScheduleNotFoundError: There is no such schedule.
        ConfigurationError: The schedule would never fire, there is no such policy, or the code cannot travel.
        StepValidationError: The arguments do not fit the workflow's signature.
    """
    refuse_in_workflow("update_schedule")
    policy = None if overlap_policy is None else policy_of(overlap_policy)
    note = None if note is None else checked_text(note, "The schedule's note")
    window = None if catchup_window is None else window_of(catchup_window)
    of = await opened()
    if spec is not None:
        require_fire(of, spec)
    code: Code | None = None

    async def change(record: ScheduleRecord) -> ScheduleRecord:
        nonlocal code
        if workflow is not None or args is not None or kwargs is not None:
            run, code = await changed_template(of, record, workflow, args, kwargs)
            record = running_now(record, run)
        return msgspec.structs.replace(
            record,
            spec=spec or record.spec,
            overlap_policy=policy or record.overlap_policy,
            catchup_window=record.catchup_window if window is None else window.total_seconds(),
            note=record.note if note is None else note,
        )

    record = await _change(of, schedule_id, EventType.SCHEDULE_UPDATED, change, lambda: code)
    await of.runtime.look_at_schedules()
    return await schedule_of(of, record)


async def pause_schedule(schedule_id: str, note: str | None = None) -> Schedule:
    """Pause a schedule: it does not fire until it is resumed. Its runs go on; fires that wait keep waiting.

    Args:
        note: Shown with the schedule from now on. Without it, the present note stays.

    Raises:
        ScheduleNotFoundError: There is no such schedule.
    """
    refuse_in_workflow("pause_schedule")
    return await _set_status(schedule_id, ScheduleStatus.PAUSED, EventType.SCHEDULE_PAUSED, note)


async def resume_schedule(schedule_id: str, note: str | None = None) -> Schedule:
    """Resume a paused schedule: it fires again from now on. Fires of the time in between are not made up.

    Args:
        note: Shown with the schedule from now on. Without it, the present note stays.

    Raises:
        ScheduleNotFoundError: There is no such schedule.
    """
    refuse_in_workflow("resume_schedule")
    return await _set_status(schedule_id, ScheduleStatus.ACTIVE, EventType.SCHEDULE_RESUMED, note)


async def _set_status(
    schedule_id: str, status: ScheduleStatus, type_: EventType, note: str | None
) -> Schedule:
    note = None if note is None else checked_text(note, "The schedule's note")
    of = await opened()

    async def change(record: ScheduleRecord) -> ScheduleRecord | None:
        if record.status is status:
            return None
        kept = record.note if note is None else note
        return msgspec.structs.replace(record, status=status, note=kept)

    record = await _change(of, schedule_id, type_, change)
    await of.runtime.look_at_schedules()
    return await schedule_of(of, record)


async def delete_schedule(schedule_id: str) -> bool:
    """Delete a schedule; whether there was one. It fires no more. Its runs go on, and are kept."""
    refuse_in_workflow("delete_schedule")
    of = session()
    was_there = False

    @work
    def delete() -> Steps[bool]:
        nonlocal was_there  # it may be run again after its COMMIT, whose answer was lost
        was_there = (yield from schedules.delete_schedule(schedule_id, now=own_now(of))) or was_there
        return was_there

    return await of.storage.write(delete())


async def _change(
    of: Session,
    schedule_id: str,
    type_: EventType,
    change: Callable[[ScheduleRecord], Awaitable[ScheduleRecord | None]],
    code: Callable[[], Code | None] = lambda: None,
) -> ScheduleRecord:
    """Read, change and write a schedule. If another process has changed it in between, do so again."""
    while True:
        record = await asyncio.to_thread(of.storage.read, schedules.get_schedule(schedule_id))
        if record is None or record.status is ScheduleStatus.DELETED:
            raise ScheduleNotFoundError(schedule_id)
        changed = await change(record)
        if changed is None:
            return record
        counts_anew = changed.spec != record.spec or changed.status != record.status
        written = await of.storage.write(
            schedules.change_schedule(changed, type_, code=code(), counts_anew=counts_anew, now=own_now(of))
        )
        if written is not None:
            return written
