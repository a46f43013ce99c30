"""Reruns and forks: new runs from old ones, with the same input, or with the first part of the history."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import msgspec

from pyworkflow_ray.actors.activations import blob_links, links_to
from pyworkflow_ray.actors.new_runs import label
from pyworkflow_ray.actors.nudges import is_isolated
from pyworkflow_ray.authoring.workflows import as_workflow
from pyworkflow_ray.client.guards import refuse_in_workflow
from pyworkflow_ray.client.handles import RunHandle
from pyworkflow_ray.client.lookups import read_record
from pyworkflow_ray.client.sessions import Session, session
from pyworkflow_ray.client.shipments import shipped
from pyworkflow_ray.client.starts import hand_over
from pyworkflow_ray.engine.events import (
    ENDINGS,
    ChildCancelled,
    ChildCompleted,
    ChildFailed,
    ChildStarted,
    Event,
    HookCreated,
    StepFailed,
    StepScheduled,
    WorkflowStarted,
    decode_history,
    encode_data,
    type_of,
)
from pyworkflow_ray.engine.unseen_events import is_unseen
from pyworkflow_ray.exceptions import WorkflowError
from pyworkflow_ray.ids import new_run_id, new_token
from pyworkflow_ray.statuses import RunStatus
from pyworkflow_ray.storage.acceptances import NewRun, accept
from pyworkflow_ray.storage.codes import Code
from pyworkflow_ray.storage.environments import bundle_of
from pyworkflow_ray.storage.histories import Append, append, read_events
from pyworkflow_ray.storage.records import RunRecord
from pyworkflow_ray.storage.runs import get_run
from pyworkflow_ray.storage.works import Steps, work

CODES = ("recorded", "current")


async def rerun(run_id: str) -> RunHandle[Any]:
    """Start a new run with the input and the code of this one.

    Raises:
        WorkflowNotFoundError: There is no such run.
    """
    refuse_in_workflow("rerun")
    of = session()
    record = await read_record(of, str(run_id))
    await of.runtime.open()
    new = _copy_of(of, record, None, {"rerun_of": record.run_id})
    accepted = await of.storage.write(accept(new, of.storage.loads))
    await hand_over(of, accepted.run)
    return RunHandle(new.run_id, of)


async def fork(
    run_id: str, from_step: str | None = None, from_position: int | None = None, code: str = "recorded"
) -> RunHandle[Any]:
    """Start a new run that keeps the first part of this run's history, and goes on from there.

    What that part records is not done again. So a run that has failed late can be finished with corrected
    code: ``await fork(run_id, from_step="render#1", code="current")``.

    Args:
        from_step: The id of the first step to run again; by default the step that failed last.
        from_position: The number of events to keep; give it instead of `from_step`.
        code: "recorded" goes on with the code of the old run, "current" with the code of this process.

    Raises:
        WorkflowNotFoundError: There is no such run, or the workflow is not defined here.
        WorkflowError: The history cannot be cut there; the message says why.
        NonDeterminismError: Today's code does not fit the kept part. The new run's result raises this.
    """
    refuse_in_workflow("fork")
    if code not in CODES:
        raise ValueError(f"code is {code!r}: give 'recorded' or 'current'.")
    of = session()
    record = await read_record(of, str(run_id))
    rows = await asyncio.to_thread(of.storage.read, read_events(record.run_id))
    history = decode_history(rows)
    events = [recorded.event for recorded in history]
    kept = _kept(record.run_id, events, from_step, from_position)
    await of.runtime.open()
    current = None
    if code == "current":
        definition = as_workflow(record.workflow_name)
        current = (await shipped(of, definition, f"workflow {definition.name!r}")).code
    new = _copy_of(of, record, current, {"forked_from": record.run_id, "forked_at": kept})
    copied = [_copied(event, record.run_id, of.runtime.now()) for event in events[:kept]]
    stamped = [
        (recorded.timestamp, type_of(event), encode_data(event))
        for recorded, event in zip(history, copied, strict=False)
    ]
    links = [link for event in copied for link in blob_links(event)]

    @work
    def write() -> Steps[RunRecord]:
        run = (yield from accept(new)).run
        changes = {
            "status": RunStatus.RUNNING,
            "started_at": record.started_at,
            "updated_at": datetime.now(UTC),
        }
        yield from append(
            Append(
                run_id=run.run_id, epoch=run.epoch, position=0, events=stamped, changes=changes, blobs=links
            )
        )
        return (yield from get_run(run.run_id)) or run

    await hand_over(of, await of.storage.write(write()))
    return RunHandle(new.run_id, of)


def _kept(run_id: str, events: list[Event], from_step: str | None, from_position: int | None) -> int:
    """How many events a fork keeps."""
    if from_step is not None and from_position is not None:
        raise ValueError("from_step and from_position both say where to cut: give one of them.")
    end = next((place for place, event in enumerate(events) if _is_of_end(event)), len(events))
    kept = _position_of(run_id, events, from_step) if from_position is None else from_position
    if not 1 <= kept <= end:
        raise WorkflowError(f"A fork of run {run_id!r} can keep 1 to {end} events, and not {kept}.")
    open_children = {event.child_id for event in events[:kept] if isinstance(event, ChildStarted)}
    for event in events[:kept]:
        if isinstance(event, ChildCompleted | ChildFailed | ChildCancelled):
            open_children.discard(event.child_id)
    if open_children:
        raise WorkflowError(
            f"A fork of run {run_id!r} cannot be cut at {kept}: child {sorted(open_children)[0]!r} is under "
            "way there, and belongs to the run that started it. Cut before its start or after its end."
        )
    return kept


def _is_of_end(event: Event) -> bool:
    """Whether the run ends with this event, or with what came for it and its code has not seen."""
    return isinstance(event, ENDINGS) or (is_unseen(event) and not isinstance(event, WorkflowStarted))


def _position_of(run_id: str, events: list[Event], step_id: str | None) -> int:
    if step_id is None:
        failed = [event.step_id for event in events if isinstance(event, StepFailed)]
        if not failed:
            raise WorkflowError(f"No step of run {run_id!r} has failed: give from_step or from_position.")
        step_id = failed[-1]
    for place, event in enumerate(events):
        if isinstance(event, StepScheduled) and event.step_id == step_id:
            return place
    known = ", ".join(event.step_id for event in events if isinstance(event, StepScheduled)) or "none"
    raise WorkflowError(f"Run {run_id!r} has no step {step_id!r}; it has {known}.")


def _copied(event: Event, run_id: str, now: datetime) -> Event:
    match event:
        case WorkflowStarted():
            return msgspec.structs.replace(
                event, seed=event.seed or run_id, counted_from=now, is_unseen=False
            )
        case HookCreated():
            return msgspec.structs.replace(event, token=new_token())
        case _:
            return event


def _copy_of(of: Session, record: RunRecord, code: Code | None, origin: dict[str, Any]) -> NewRun:
    run_id = new_run_id()
    bundle = bundle_of(record.environment) if code is None else code.bundle
    return NewRun(
        run_id=run_id,
        workflow_name=record.workflow_name,
        input_args=record.input_args,
        input_kwargs=record.input_kwargs,
        input_hash=record.input_hash,
        code_hash=record.code_hash if code is None else code.hash,
        code=code,
        durable=record.durable,
        tags=record.tags,
        metadata=label(origin),
        attributes=record.attributes,
        max_duration=record.max_duration,
        recover_on_worker_loss=record.recover_on_worker_loss,
        max_recovery_attempts=record.max_recovery_attempts,
        owner_lease=of.runtime.engine_settings.lease_ttl.total_seconds(),
        created_at=datetime.now(UTC),
        blobs=links_to(record.input_args.encode(), record.input_kwargs.encode()),
        **of.runtime.placing(run_id, is_isolated(record), None, bundle),
    )
