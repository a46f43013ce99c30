"""Declarations: schedules that decorators declare, created and kept up to date."""

from __future__ import annotations

import hashlib

import msgspec

from pyworkflow_ray.authoring.schedules import Declaration, declarations
from pyworkflow_ray.client.guards import refuse_in_workflow
from pyworkflow_ray.client.run_templates import run_template, running_now
from pyworkflow_ray.client.schedules import opened, own_now
from pyworkflow_ray.client.sessions import Session
from pyworkflow_ray.storage import schedules
from pyworkflow_ray.storage.works import Steps, work


async def activate_scheduled_workflows() -> list[str]:
    """Create the schedules of all `@scheduled_workflow` functions that this process has imported; their ids.

    An existing schedule is updated if its decorator or its workflow's code has changed. A paused schedule
    stays paused.
    """
    refuse_in_workflow("activate_scheduled_workflows")
    of = await opened()
    for schedule_id, declaration in declarations.items():
        await _declare(of, schedule_id, declaration)
    await of.runtime.look_at_schedules()
    return list(declarations)


async def _declare(of: Session, schedule_id: str, declared: Declaration) -> None:
    run, code = await run_template(of, declared.definition, *declared.definition.check_arguments((), {}))
    window = declared.catchup_window.total_seconds()
    said = [declared.spec.to_dict(), declared.overlap_policy.value, window, schedules.run_text(run)]
    digest = hashlib.sha256(msgspec.json.encode(said, order="sorted")).hexdigest()

    @work
    def declare() -> Steps[None]:
        made = yield from schedules.create_schedule(
            schedule_id,
            run,
            declared.spec,
            declared.overlap_policy,
            window,
            code=code,
            declared=digest,
            now=own_now(of),
        )
        record = made or (yield from schedules.locked_schedule(schedule_id))
        if record is None or record.declared == digest:
            return
        changed = msgspec.structs.replace(
            running_now(record, run),
            spec=declared.spec,
            overlap_policy=declared.overlap_policy,
            catchup_window=window,
            declared=digest,
        )
        yield from schedules.change_schedule(
            changed,
            "schedule.updated",
            code=code,
            counts_anew=record.spec != declared.spec,
            now=own_now(of),
        )

    await of.storage.write(declare())
