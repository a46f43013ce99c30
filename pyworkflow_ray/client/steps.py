"""Steps of a run, read from its history."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from pyworkflow_ray.client.records import Event
from pyworkflow_ray.client.summaries import RunSummary
from pyworkflow_ray.event_types import EventType
from pyworkflow_ray.statuses import StepStatus


@dataclass(frozen=True, slots=True)
class StepExecution:
    """A step of a run. All times are aware and in UTC.

    `input_args`, `input_kwargs` and `result` hold plain JSON values; a value without a JSON form shows as
    text. `attempt` is the number of the last attempt. While the step waits for its next attempt, it is the
    number of that one, and `retry_after` is its time. `started_at` is when the worker began the last attempt
    that has ended.
    """

    step_id: str
    run_id: str
    step_name: str
    status: StepStatus
    created_at: datetime
    attempt: int = 1
    max_retries: int | None = None
    started_at: datetime | None = None
    completed_at: datetime | None = None
    input_args: list[Any] = field(default_factory=list)
    input_kwargs: dict[str, Any] = field(default_factory=dict)
    result: Any = None
    error: str | None = None
    retry_after: datetime | None = None
    node: str = ""
    worker_pid: int = 0

    @property
    def input(self) -> dict[str, Any]:
        """Its arguments: `{"args": [...], "kwargs": {...}}`."""
        return {"args": self.input_args, "kwargs": self.input_kwargs}


def step_executions(run_id: str, events: Iterable[Event]) -> list[StepExecution]:
    """The steps that a run with these events has called, in the order of the calls."""
    summary = RunSummary(run_id)
    started: dict[str, dict[str, Any]] = {}
    results: dict[str, Any] = {}
    for event in events:
        summary.add(event)
        if event.type is EventType.STEP_STARTED:
            started[event.data["step_id"]] = event.data
        elif event.type is EventType.STEP_COMPLETED:
            results[event.data["step_id"]] = event.data.get("result")
    return [
        StepExecution(
            step_id=step.step_id,
            run_id=run_id,
            step_name=step.step_name,
            status=step.status,
            created_at=step.scheduled_at,
            attempt=step.attempt,
            max_retries=step.max_retries,
            started_at=step.started_at,
            completed_at=step.ended_at,
            input_args=started.get(step.step_id, {}).get("args", []),
            input_kwargs=started.get(step.step_id, {}).get("kwargs", {}),
            result=results.get(step.step_id),
            error=step.error,
            retry_after=step.retry_at,
            node=step.node,
            worker_pid=step.worker_pid,
        )
        for step in summary.steps.values()
    ]
