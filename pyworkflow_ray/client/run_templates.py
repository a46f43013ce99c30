"""Run templates: what a schedule makes its runs from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import msgspec

from pyworkflow_ray.actors.new_runs import new_run
from pyworkflow_ray.authoring.workflows import WorkflowFunction, as_workflow
from pyworkflow_ray.client.sessions import Session
from pyworkflow_ray.client.shipments import shipped
from pyworkflow_ray.storage import fires, schedules
from pyworkflow_ray.storage.acceptances import NewRun
from pyworkflow_ray.storage.codes import Code
from pyworkflow_ray.storage.environments import environment_of, job_of
from pyworkflow_ray.storage.schedule_records import ScheduleRecord


async def run_template(
    of: Session, definition: WorkflowFunction[Any, Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[NewRun, Code]:
    """The template of a schedule's runs, and the workflow's code. The arguments must have been checked."""
    what = f"workflow {definition.name!r}"
    shipment = await shipped(of, definition, what)
    code = shipment.code
    isolated = definition.workflow_options.isolation == "process" or of.settings.coordinators == "per_run"
    # Large values stay in the row: a blob belongs to runs, and is deleted with the last of them.
    engine = replace(of.runtime.engine_settings, blob_threshold=2**62)
    with shipment.for_its_run():
        encoded = (
            of.values.encode(list(args), f"the arguments of {what}"),
            of.values.encode(dict(kwargs), f"the keyword arguments of {what}"),
        )
    run = new_run(
        engine,
        definition,
        code,
        "",
        *encoded,
        environment=environment_of(engine.environment, code.bundle),
        coordinator="" if isolated else None,
        owner_lease=None,
    )
    return run, code


def running_now(record: ScheduleRecord, run: NewRun) -> ScheduleRecord:
    """The schedule, changed so that its runs are made from this template."""
    return msgspec.structs.replace(
        record,
        workflow_name=run.workflow_name,
        environment=job_of(run.environment),
        run=schedules.run_text(run),
    )


async def changed_template(
    of: Session,
    record: ScheduleRecord,
    workflow: Any,
    args: Sequence[Any] | None,
    kwargs: Mapping[str, Any] | None,
) -> tuple[NewRun, Code]:
    """The new template of a schedule's runs. Without `args` and `kwargs`, the arguments stay as they are."""
    definition = as_workflow(record.workflow_name if workflow is None else workflow)
    if args is None and kwargs is None:
        before = fires.run_of_text(record.run)
        args = of.values.decode(before.input_args.encode())
        kwargs = of.values.decode(before.input_kwargs.encode())
    return await run_template(of, definition, *definition.check_arguments(tuple(args or ()), kwargs or {}))
