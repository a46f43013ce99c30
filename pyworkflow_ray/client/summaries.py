"""Summaries of histories: what a run has done so far, its steps and children, and what it waits for.

A summary is built event by event from what the storage holds. No code is run and no value is unpickled.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, assert_never

from pyworkflow_ray.client.records import Event
from pyworkflow_ray.event_types import EventType
from pyworkflow_ray.statuses import RunStatus, StepStatus

_ENDS = {
    EventType.WORKFLOW_COMPLETED: RunStatus.COMPLETED,
    EventType.WORKFLOW_FAILED: RunStatus.FAILED,
    EventType.WORKFLOW_CANCELLED: RunStatus.CANCELLED,
    EventType.WORKFLOW_CONTINUED_AS_NEW: RunStatus.CONTINUED_AS_NEW,
}
_STEP_ENDS = {
    EventType.STEP_COMPLETED: StepStatus.COMPLETED,
    EventType.STEP_FAILED: StepStatus.FAILED,
    EventType.STEP_CANCELLED: StepStatus.CANCELLED,
}
_CHILD_STATES = {
    EventType.CHILD_WORKFLOW_STARTED: RunStatus.RUNNING,
    EventType.CHILD_WORKFLOW_COMPLETED: RunStatus.COMPLETED,
    EventType.CHILD_WORKFLOW_FAILED: RunStatus.FAILED,
    EventType.CHILD_WORKFLOW_CANCELLED: RunStatus.CANCELLED,
}


@dataclass(slots=True)
class StepSummary:
    """A step of a run. `attempt` is the number of its last attempt; of the next one while it is retrying."""

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
    """A child run, from its parent's history."""

    child_id: str
    run_id: str
    workflow_name: str
    status: RunStatus = RunStatus.RUNNING
    error: str | None = None
    error_type: str | None = None


@dataclass(frozen=True, slots=True)
class Wait:
    """Something that a run waits for, other than steps and children: a "sleep", or a "hook" with its token.

    A timer that the code gave up leaves no event. It counts as a sleep until its time. An example is the
    timer of an `asyncio.timeout` whose block ended in time.
    """

    kind: str
    id: str
    until: datetime | None = None
    token: str | None = field(default=None, repr=False)


class RunSummary:
    """A run, summarised from its events; `add` them in their order."""

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
        """The reason of the request to cancel; None if there was no request."""
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
        """What the run waits for, other than steps and children; the longest wait comes first."""
        return list(self._waits.values())

    def add(self, event: Event) -> None:
        """Take in the next event. One of a type that only a later version knows changes nothing."""
        self.last_position = event.sequence
        if not event.type.is_known:
            return
        data = event.data
        match event.type:
            case EventType.WORKFLOW_STARTED:
                self.workflow_name = data.get("workflow_name", "")
                self.started_at = event.timestamp
                self.status = RunStatus.RUNNING
            case EventType.WORKFLOW_INTERRUPTED:
                self.interruptions += 1
            case (
                EventType.WORKFLOW_COMPLETED
                | EventType.WORKFLOW_FAILED
                | EventType.WORKFLOW_CANCELLED
                | EventType.WORKFLOW_CONTINUED_AS_NEW
            ):
                self._end(event, _ENDS[event.type])
            case EventType.STEP_STARTED:
                self._add_step(event)
            case EventType.STEP_COMPLETED | EventType.STEP_FAILED | EventType.STEP_CANCELLED:
                self._end_step(event, _STEP_ENDS[event.type])
            case EventType.STEP_RETRYING:
                self._retry_step(event)
            case (
                EventType.CHILD_WORKFLOW_STARTED
                | EventType.CHILD_WORKFLOW_COMPLETED
                | EventType.CHILD_WORKFLOW_FAILED
                | EventType.CHILD_WORKFLOW_CANCELLED
            ):
                self._add_child(data, _CHILD_STATES[event.type])
            case EventType.SLEEP_STARTED:
                self._add_wait(Wait("sleep", data["sleep_id"], datetime.fromisoformat(data["resume_at"])))
            case EventType.SLEEP_COMPLETED:
                self._waits.pop(("sleep", data["sleep_id"]), None)
            case EventType.HOOK_CREATED:
                at = data.get("expires_at")
                until = None if at is None else datetime.fromisoformat(at)
                self._add_wait(Wait("hook", data["hook_id"], until, token=data["token"]))
            case EventType.HOOK_RECEIVED | EventType.HOOK_EXPIRED | EventType.HOOK_DISPOSED:
                self._waits.pop(("hook", data["hook_id"]), None)
            case EventType.CANCELLATION_REQUESTED:
                self.cancel_reason = data.get("reason", "")
            case (
                EventType.SIGNAL_RECEIVED
                | EventType.SIDE_EFFECT_RECORDED
                | EventType.PATCH_APPLIED
                | EventType.ATTRIBUTES_SET
            ):
                pass  # a summary has no place for them
            case (
                EventType.SCHEDULE_CREATED
                | EventType.SCHEDULE_UPDATED
                | EventType.SCHEDULE_PAUSED
                | EventType.SCHEDULE_RESUMED
                | EventType.SCHEDULE_DELETED
                | EventType.SCHEDULE_TRIGGERED
                | EventType.SCHEDULE_SKIPPED
                | EventType.SCHEDULE_BACKFILL_STARTED
                | EventType.SCHEDULE_BACKFILL_COMPLETED
            ):
                pass  # events of schedules stand in no run's history
            case _:
                assert_never(event.type)

    def _end(self, event: Event, status: RunStatus) -> None:
        data = event.data
        self.status, self.ended_at = status, event.timestamp
        self.error, self.error_type = data.get("error"), data.get("error_type")
        self.traceback = data.get("traceback") or None
        self.continued_to = data.get("new_run_id")
        self._waits.clear()

    def _add_step(self, event: Event) -> StepSummary:
        data = event.data
        step = self.steps[data["step_id"]] = StepSummary(
            data["step_id"],
            data["step_name"],
            event.timestamp,
            attempt=data.get("attempt", 1),
            max_retries=data.get("options", {}).get("max_retries"),
        )
        return step

    def _step_of(self, event: Event) -> StepSummary:
        """The step of an outcome, with what the outcome says of its last attempt."""
        data = event.data
        step = self.steps.get(data["step_id"]) or self._add_step(event)
        step.attempt = data.get("attempt", step.attempt)
        step.node = data.get("node", step.node)
        step.worker_pid = data.get("worker_pid", step.worker_pid)
        if data.get("started_at"):
            step.started_at = datetime.fromisoformat(data["started_at"])
        return step

    def _end_step(self, event: Event, status: StepStatus) -> None:
        step = self._step_of(event)
        step.status, step.ended_at, step.retry_at = status, event.timestamp, None
        match status:
            case StepStatus.COMPLETED:
                step.error, step.error_type = None, None
            case StepStatus.FAILED:
                step.error, step.error_type = event.data["error"], event.data.get("error_type")
            case _:
                pass  # a cancelled step keeps the error of its last attempt

    def _retry_step(self, event: Event) -> None:
        step = self._step_of(event)
        step.status = StepStatus.RETRYING
        step.retry_at = datetime.fromisoformat(event.data["retry_at"])
        step.error, step.error_type = event.data["error"], event.data.get("error_type")

    def _add_child(self, data: dict[str, Any], status: RunStatus) -> None:
        child_id = data["child_id"]
        child = self.children.get(child_id)
        if child is None:
            child = ChildSummary(child_id, data["child_run_id"], data["child_workflow_name"])
            self.children[child_id] = child
        child.status = status
        child.error, child.error_type = data.get("error"), data.get("error_type")

    def _add_wait(self, wait: Wait) -> None:
        self._waits[wait.kind, wait.id] = wait
