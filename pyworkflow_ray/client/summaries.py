"""What a history says of its run so far: its steps, and what it waits for.

Built event by event from what the storage holds; no code is run and no value is unpickled.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from pyworkflow_ray.client.records import Event
from pyworkflow_ray.statuses import RunStatus, StepStatus

_ENDS = {
    "workflow.completed": RunStatus.COMPLETED,
    "workflow.failed": RunStatus.FAILED,
    "workflow.cancelled": RunStatus.CANCELLED,
    "workflow.continued_as_new": RunStatus.CONTINUED_AS_NEW,
}

_CHILD_ENDS = {
    "child_workflow.completed": RunStatus.COMPLETED,
    "child_workflow.failed": RunStatus.FAILED,
    "child_workflow.cancelled": RunStatus.CANCELLED,
}


@dataclass(slots=True)
class StepSummary:
    """A step of a run. `attempt` is the last one's number, or the coming one's while it is retrying."""

    step_id: str
    step_name: str
    scheduled_at: datetime
    status: StepStatus = StepStatus.RUNNING
    attempt: int = 1
    max_retries: int | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None
    retry_at: datetime | None = None
    error: str | None = None
    error_type: str | None = None
    node: str = ""
    worker_pid: int = 0


@dataclass(slots=True)
class ChildSummary:
    """A child run of a run, as its parent's history tells it."""

    child_id: str
    run_id: str
    workflow_name: str
    status: RunStatus = RunStatus.RUNNING
    error: str | None = None
    error_type: str | None = None


@dataclass(frozen=True, slots=True)
class Wait:
    """Something that a run waits for besides steps and children: a "sleep", or a "hook" with its token.

    A timer that the code has let go, such as that of an `asyncio.timeout` that was not needed, leaves
    no event, and counts as a sleep until its time.
    """

    kind: str
    id: str
    until: datetime | None = None
    token: str | None = field(default=None, repr=False)


class RunSummary:
    """A run as its events tell it; `add` them in their order."""

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id
        self.workflow_name = ""
        self.steps: dict[str, StepSummary] = {}
        self.children: dict[str, ChildSummary] = {}
        self.status = RunStatus.PENDING
        self.started_at: datetime | None = None
        self.ended_at: datetime | None = None
        self.error: str | None = None
        self.error_type: str | None = None
        self.traceback: str | None = None
        self.continued_to: str | None = None
        self.interruptions = 0
        self.cancel_reason: str | None = None
        """Why the run was asked to cancel; None when nobody has asked."""
        self.last_position = -1
        self._waits: dict[tuple[str, str], Wait] = {}

    @classmethod
    def of(cls, run_id: str, events: Iterable[Event]) -> RunSummary:
        """The summary of a run with these events."""
        summary = cls(run_id)
        for event in events:
            summary.add(event)
        return summary

    @property
    def waits(self) -> list[Wait]:
        """What the run waits for besides steps and children, in the order in which it began to."""
        return list(self._waits.values())

    def add(self, event: Event) -> None:
        """Take in the next event; one of an unknown type changes nothing."""
        self.last_position = event.sequence
        kind = event.type.partition(".")[0]
        match kind:
            case "workflow":
                self._add_of_workflow(event)
            case "step":
                self._add_of_step(event, event.data)
            case "child_workflow":
                self._add_of_child(event, event.data)
            case "sleep" | "hook":
                self._add_of_wait(event, event.data)
            case "cancellation":
                self.cancel_reason = event.data.get("reason", "")
            case _:
                pass

    def _add_of_workflow(self, event: Event) -> None:
        data = event.data
        if event.type == "workflow.started":
            self.workflow_name = data.get("workflow_name", "")
            self.started_at = event.timestamp
            self.status = RunStatus.RUNNING
        elif event.type == "workflow.interrupted":
            self.interruptions += 1
        elif event.type in _ENDS:
            self.status = _ENDS[event.type]
            self.ended_at = event.timestamp
            self.error, self.error_type = data.get("error"), data.get("error_type")
            self.traceback = data.get("traceback") or None
            self.continued_to = data.get("new_run_id")
            self._waits.clear()

    def _add_of_step(self, event: Event, data: dict[str, Any]) -> None:
        step_id = data["step_id"]
        step = self.steps.get(step_id)
        if event.type == "step.started" or step is None:
            step = self.steps[step_id] = StepSummary(
                step_id,
                data["step_name"],
                event.timestamp,
                max_retries=data.get("options", {}).get("max_retries"),
            )
        step.attempt = data.get("attempt", step.attempt)
        step.node = data.get("node", step.node)
        step.worker_pid = data.get("worker_pid", step.worker_pid)
        match event.type:
            case "step.completed":
                step.status, step.error, step.error_type = StepStatus.COMPLETED, None, None
            case "step.failed":
                step.status = StepStatus.FAILED
            case "step.retrying":
                step.status = StepStatus.RETRYING
                step.retry_at = datetime.fromisoformat(data["retry_at"])
            case "step.cancelled":
                step.status = StepStatus.CANCELLED
            case _:
                return
        if event.type in ("step.failed", "step.retrying"):
            step.error, step.error_type = data["error"], data.get("error_type")
        if event.type != "step.retrying":
            step.ended_at, step.retry_at = event.timestamp, None
        if data.get("started_at"):
            step.started_at = datetime.fromisoformat(data["started_at"])

    def _add_of_child(self, event: Event, data: dict[str, Any]) -> None:
        child_id = data["child_id"]
        child = self.children.get(child_id)
        if child is None:
            child = ChildSummary(child_id, data["child_run_id"], data["child_workflow_name"])
            self.children[child_id] = child
        child.status = _CHILD_ENDS.get(event.type, RunStatus.RUNNING)
        child.error, child.error_type = data.get("error"), data.get("error_type")

    def _add_of_wait(self, event: Event, data: dict[str, Any]) -> None:
        match event.type:
            case "sleep.started":
                wait = Wait("sleep", data["sleep_id"], datetime.fromisoformat(data["resume_at"]))
            case "hook.created":
                until = data.get("expires_at")
                wait = Wait(
                    "hook",
                    data["hook_id"],
                    None if until is None else datetime.fromisoformat(until),
                    token=data["token"],
                )
            case _:
                kind = event.type.partition(".")[0]
                self._waits.pop((kind, data.get(f"{kind}_id", "")), None)
                return
        self._waits[wait.kind, wait.id] = wait
