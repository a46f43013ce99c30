"""Today's code against recorded histories."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from pyworkflow_ray.actors.payloads import Payloads
from pyworkflow_ray.client.records import Event
from pyworkflow_ray.client.sessions import session
from pyworkflow_ray.engine.events import Recorded, WorkflowStarted, decode_event
from pyworkflow_ray.engine.executions import Execution
from pyworkflow_ray.exceptions import WorkflowNotFoundError
from pyworkflow_ray.storage.blobs import load_blob
from pyworkflow_ray.storage.histories import read_events
from pyworkflow_ray.workflows import as_workflow


def replay(history_or_run: str | Sequence[Event], workflow: Any = None) -> None:
    """Check that a workflow's code still asks for what a recorded run did.

    Args:
        history_or_run: A run's id (or handle), whose history is read from the storage, or its events.
        workflow: The workflow, or its name; the one of this process with the recorded name by default.

    Raises:
        NonDeterminismError: The code would not go on with this run; it says where they part.
        WorkflowNotFoundError: There is no such run, or no such workflow.
    """
    of = session()
    if isinstance(history_or_run, str):
        run_id = str(history_or_run)
        rows = of.storage.read(lambda connection: read_events(connection, run_id))
        events = [Event.of(run_id, row) for row in rows]
    else:
        events = list(history_or_run)
    if not events:
        raise WorkflowNotFoundError(
            str(history_or_run), f"There is no history to replay for {history_or_run!r}."
        )
    history = [_recorded(event) for event in events]
    first = history[0].event
    name = first.workflow_name if isinstance(first, WorkflowStarted) else ""
    definition = as_workflow(workflow if workflow is not None else name)
    payloads = Payloads(
        of.values,
        lambda digest: of.storage.read(lambda connection: load_blob(connection, digest)),
        of.settings.blob_threshold,
    )
    execution = Execution(events[0].run_id, definition.fn, payloads)
    try:
        execution.replay(history)
    finally:
        execution.drop()


def _recorded(event: Event) -> Recorded:
    data = event.stored or msgspec.json.encode(event.data)
    return Recorded(event.sequence, event.timestamp, decode_event(event.type, data))
