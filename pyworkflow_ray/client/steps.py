"""The steps of a run, as its history tells them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from pyworkflow_ray.client.records import Event
from pyworkflow_ray.client.summaries import RunSummary
from pyworkflow_ray.statuses import StepStatus


@dataclass(frozen=True, slots=True)
class StepExecution:
    """A step of a run. All times are aware and in UTC.

    `input_args`, `input_kwargs` and `result` hold plain JSON values; a value that has no JSON form shows as
    text. `attempt` is the last one's number, or the coming one's while the step waits for it, until
    `retry_after`. `started_at` is when the last attempt that has ended began, in its worker.
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
    """The steps that a run with these events has called, in that order."""
    summary = RunSummary(run_id)
    started: dict[str, dict[str, Any]] = {}
    results: dict[str, Any] = {}
    for event in events:
        summary.add(event)
        if event.type == "step.started":
            started[event.data["step_id"]] = event.data
        elif event.type == "step.completed":
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
